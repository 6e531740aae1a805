//! What a warp group computes: four warps multiply 64 rows together, 16 of each, with a tile. Each warp has two row tiles
//! ("units"), which take turns: the softmax of one hides the products of the other. Right factors, and the queries, lie
//! in shared memory as panels.
//!
//! A panel is 64 rows of 128 bytes, swizzled; a row of 16-bit values takes as many panels as it has 64 values. Rows of
//! bytes are copied into the first panel, and widened into all.

use super::attend::scale_keys;
use super::rule::Scores;
use super::{Products, RowPartial, RowQueries, RowShape, RowView, ScoreRule, SharedTile};
use crate::dtype::Half;
use crate::gpu::{Gpu, in_panels};
use crate::kv::CacheFormat;
use crate::unroll::unroll;

/// 16 tokens each, in a tile of 64.
const PAIRS: usize = 4;

/// Where a lane finds its share of a warp's 16 rows of `STEPS * 16` values, which lie as bytes in the first panel, and
/// where they belong as f16: 16 bytes of every fourth row, or of every eighth.
#[derive(Clone, Copy, Debug)]
pub(super) struct PanelBytes<const STEPS: usize> {
    rows: u32,
    row: u32,
    chunk: u32,
}

/// A lane's share.
pub(super) type Share = [[u32; 4]; 4];

impl<const STEPS: usize> PanelBytes<STEPS> {
    /// Of lane `lane`, with the rows at `rows`.
    #[inline(always)]
    pub(super) fn at(lane: u32, rows: u32) -> Self {
        let chunks = const { STEPS as u32 };
        let (row, chunk) = (lane / chunks, lane % chunks);
        Self { rows, row, chunk }
    }

    /// Row number `part` of the lane.
    #[inline(always)]
    fn row(self, part: usize) -> u32 {
        part as u32 * const { 32 / STEPS as u32 } + self.row
    }

    /// Takes the bytes.
    ///
    /// # Safety
    /// They are this warp's, and there.
    #[inline(always)]
    pub(super) unsafe fn take<G: Gpu>(self, gpu: G) -> Share {
        let mut bytes = [[0u32; 4]; 4];
        unroll!([4] part in 0..4 {
            if part * 2 < STEPS {
                let at = self.rows + in_panels(self.row(part), self.chunk);
                // SAFETY: as the caller promises.
                bytes[part] = unsafe { gpu.ld_shared_b128(at) };
            }
        });
        bytes
    }

    /// Puts them where they belong.
    ///
    /// # Safety
    /// All lanes of the warp have taken theirs.
    #[inline(always)]
    pub(super) unsafe fn put<G: Gpu, C: CacheFormat>(self, gpu: G, bytes: Share) {
        unroll!([4] part in 0..4 {
            if part * 2 < STEPS {
                let row = self.row(part);
                let [first, second] = C::widen16(gpu, bytes[part]);
                // SAFETY: this lane's places.
                unsafe {
                    gpu.st_shared_b128(self.rows + in_panels(row, 2 * self.chunk), first);
                    gpu.st_shared_b128(self.rows + in_panels(row, 2 * self.chunk + 1), second);
                }
            }
        });
    }
}

/// Takes one tile of a stream, with all units: while the products of one are under way, the softmax of another is
/// computed. `view` finds out what is seldom needed of a warp's rows.
///
/// # Safety
/// The thread block comes here together; the tile is visible to it.
#[inline(always)]
pub unsafe fn attend_group<
    G: Gpu,
    C: CacheFormat,
    const K_STEPS: usize,
    const V_STEPS: usize,
    const ROW_TILES: usize,
    const UNITS: usize,
>(
    gpu: G,
    partials: &mut [RowPartial<V_STEPS, ROW_TILES>; UNITS],
    query: &RowQueries<K_STEPS, ROW_TILES>,
    tile: SharedTile,
    rule: &ScoreRule<'_>,
    view: impl Fn() -> RowView,
) {
    let products = |unit: usize| {
        let queries = RowQueries::<K_STEPS, ROW_TILES>::panels(gpu.shared_base(), unit);
        // SAFETY: as the caller promises.
        unsafe { C::Math::group_scores::<G, K_STEPS>(gpu, queries, tile.keys) }
    };
    let (first, second) = (products(0), products(1));
    // SAFETY: the second products are younger.
    let scores = unsafe { gpu.group_wait::<4, 1>(first) };
    // SAFETY: as the caller promises.
    let probs = unsafe {
        partials[0]
            .probs_of_unit::<G, C, K_STEPS>(gpu, scores, (query, 0), tile, rule, || view().unit(0))
    };
    // SAFETY: as the caller promises.
    let first = unsafe { C::Math::group_values(gpu, partials[0].acc[0], probs, tile.values) };
    // SAFETY: the first unit's values are younger.
    let scores = unsafe { gpu.group_wait::<4, 1>(second) };
    // SAFETY: as the caller promises.
    let probs = unsafe {
        partials[1]
            .probs_of_unit::<G, C, K_STEPS>(gpu, scores, (query, 1), tile, rule, || view().unit(1))
    };
    // SAFETY: as the caller promises.
    let second = unsafe { C::Math::group_values(gpu, partials[1].acc[0], probs, tile.values) };
    // SAFETY: nothing younger than the second unit's values was begun.
    unsafe {
        partials[0].acc[0] = gpu.group_wait::<V_STEPS, 1>(first);
        partials[1].acc[0] = gpu.group_wait::<V_STEPS, 0>(second);
    }
}

impl<const V_STEPS: usize, const ROW_TILES: usize> RowPartial<V_STEPS, ROW_TILES> {
    /// The probabilities of a tile whose products are `scores`, as left factors.
    ///
    /// # Safety
    /// As [`attend_group`].
    #[inline(always)]
    unsafe fn probs_of_unit<G: Gpu, C: CacheFormat, const K_STEPS: usize>(
        &mut self,
        gpu: G,
        scores: [[[f32; 4]; 2]; PAIRS],
        (query, unit): (&RowQueries<K_STEPS, ROW_TILES>, usize),
        tile: SharedTile,
        rule: &ScoreRule<'_>,
        view: impl Fn() -> RowView,
    ) -> [[u32; 4]; PAIRS] {
        let shape = const { RowShape::of_kernel::<C, K_STEPS, V_STEPS>(Products::WarpGroup) };
        let mut scores: Scores<PAIRS, ROW_TILES> = [scores; ROW_TILES];
        if C::TOKEN_SCALES {
            // SAFETY: the tile is visible.
            unsafe {
                scale_keys(gpu, &mut scores, tile.scales);
                self.grow_unit(gpu, tile.scales + shape.tile_kv * 4, shape.tile_kv);
            }
        }
        let scales = gpu.shared_base() + shape.scales();
        let mut scale_log2 = [query.unit_scales_log2::<G, C>(gpu, scales, unit); ROW_TILES];
        if rule.bends() {
            // SAFETY: as `ScoreRule` was made.
            unsafe { rule.bend(gpu, &mut scores, &scale_log2, tile.token, view()) };
            scale_log2 = [[1.0; 2]; ROW_TILES];
        }
        if rule.masks(tile.token, shape.tile_kv) {
            rule.mask(gpu, &mut scores, tile.token, view());
        }
        // SAFETY: converged.
        unsafe { self.raise_max(gpu, &scores, &scale_log2) };
        let top = self.top::<C>();
        let mut probs = [[0u32; 4]; PAIRS];
        unroll!([4] pair in 0..PAIRS {
            // SAFETY: the tile is visible.
            let shares = unsafe { self.shares::<G, C>(gpu, tile.scales + shape.tile_kv * 4, pair) };
            probs[pair] = self.probs::<G, C>(gpu, 0, &scores[0][pair], scale_log2[0], top[0], shares);
        });
        probs
    }
}
