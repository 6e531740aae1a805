//! What a warp group that multiplies does: its four warps multiply 64 rows together, 16 of each, with every tile that
//! the group that loads brings.
//!
//! The softmax of a tile runs while the values of the tile before are multiplied, and while other groups multiply.

use crate::attention::group_products::{group_scores, group_values};
use crate::dtype::CacheFormat;
use crate::gpu::unroll::unroll;
use crate::gpu::{Gpu, Pending};
use crate::prefill::rows::RowView;
use crate::prefill::score_mods::PrefillMods;
use crate::prefill::softmax::{Rise, pack};
use crate::prefill::stages::{empty, empty_threads, full, full_threads, next_stage};
use crate::prefill::{GroupQueries, MmaKind, OnlineSoftmax, PrefillTile, SharedTile};

/// 16 tokens each, in a tile of 64.
pub(super) const PAIRS: usize = 4;

/// Scores of a warp's rows, or their probabilities.
type Tile = [[[f32; 4]; 2]; PAIRS];

/// This is group `group` of `groups`.
#[derive(Clone, Copy, Debug)]
pub struct Group {
    /// Its index.
    pub group: u32,
    /// Groups that have rows.
    pub groups: u32,
}

impl<const V_STEPS: usize> OnlineSoftmax<V_STEPS, 1> {
    /// Takes tokens `tokens.0 .. tokens.1`, at least one, of which the first is a tile's. `view` finds out what is
    /// seldom needed of a warp's rows.
    ///
    /// # Safety
    /// The four warps of the group come here, and the group that loads to [`super::Producer::run`] with the same
    /// tokens.
    #[inline(always)]
    pub unsafe fn consume<G: Gpu, C: CacheFormat, const K_STEPS: usize, const BYTE_KEYS: bool>(
        &mut self,
        gpu: G,
        query: GroupQueries,
        tokens: (u32, u32),
        group: Group,
        mods: &PrefillMods<'_>,
        view: impl Fn() -> RowView,
    ) {
        const {
            assert!(
                !C::TOKEN_SCALES,
                "values are multiplied before their unit could grow"
            )
        };
        let shape =
            const { PrefillTile::of_kernel::<C, K_STEPS, V_STEPS>(MmaKind::of_groups(BYTE_KEYS)) };
        let (mut token, end) = tokens;
        let tile_of = |token: u32, stage: u32| {
            // SAFETY: converged.
            shape.tile(gpu.shared_base(), token, unsafe { gpu.uniform(stage) })
        };
        let mut stage = 0;
        let mut tile = tile_of(token, stage);
        // SAFETY: the group that loads brings a first tile.
        let scores = unsafe { group.scores::<G, C, K_STEPS, BYTE_KEYS>(gpu, query, tile, stage) };
        // SAFETY: the four come here.
        let scores = unsafe { gpu.group_wait::<4, 0>(scores) };
        // SAFETY: converged. There is nothing to rescale.
        let (weights, _) = unsafe { self.softmax::<G, C>(gpu, scores, query, token, mods, &view) };
        let mut probs = pack_all::<G, C>(gpu, weights);
        while token + shape.tile_kv < end {
            let next = next_stage(stage, shape.stages);
            let next_tile = tile_of(token + shape.tile_kv, next);
            // SAFETY: the group that loads brings a next tile; scores are waited for before values, which were begun
            // after them, and `acc` is not touched until they are.
            unsafe {
                let scores = group.scores::<G, C, K_STEPS, BYTE_KEYS>(gpu, query, next_tile, next);
                let values =
                    group_values::<G, C::Math, V_STEPS>(gpu, self.acc[0], probs, tile.values);
                let scores = gpu.group_wait::<4, 1>(scores);
                let (weights, rise) =
                    self.softmax::<G, C>(gpu, scores, query, next_tile.token, mods, &view);
                self.acc[0] = gpu.group_wait::<V_STEPS, 0>(values);
                if token + shape.stages * shape.tile_kv < end {
                    // Another tile is to come to the stage, which the group is done with.
                    let threads = empty_threads::<K_STEPS>(group.groups);
                    gpu.barrier_arrive(empty(stage, shape.stages), threads);
                }
                self.rescale_acc(rise);
                // Not before: the tensor cores read the registers of the last ones.
                probs = pack_all::<G, C>(gpu, weights);
                (stage, tile) = (next, next_tile);
            }
            token += shape.tile_kv;
        }
        // SAFETY: the four come here.
        self.acc[0] = unsafe {
            let values = group_values::<G, C::Math, V_STEPS>(gpu, self.acc[0], probs, tile.values);
            gpu.group_wait::<V_STEPS, 0>(values)
        };
    }

    /// The probabilities of the tile at `token`, which are added to the sums; and how much `acc` has to shrink.
    #[inline(always)]
    pub(super) unsafe fn softmax<G: Gpu, C: CacheFormat>(
        &mut self,
        gpu: G,
        scores: Tile,
        query: GroupQueries,
        token: u32,
        mods: &PrefillMods<'_>,
        view: impl Fn() -> RowView,
    ) -> (Tile, Rise<1>) {
        let mut scores = [scores];
        // SAFETY: converged, for the four warps of a group come here together; the rows' heads exist.
        let (scale_log2, rise) = unsafe {
            let scale_log2 = Self::apply(gpu, mods, &mut scores, [query.scale_log2], token, view);
            (scale_log2, self.raise_max(gpu, &scores, &scale_log2))
        };
        self.rescale_sum(rise);
        let top = self.top::<C>();
        let mut weights = scores[0];
        unroll!([4] pair in 0..PAIRS {
            weights[pair] = self.weights(gpu, 0, &scores[0][pair], scale_log2[0], top[0]);
        });
        (weights, rise)
    }
}

/// A tile's probabilities, as left factors.
#[inline(always)]
pub(super) fn pack_all<G: Gpu, C: CacheFormat>(gpu: G, weights: Tile) -> [[u32; 4]; PAIRS] {
    let mut probs = [[0u32; 4]; PAIRS];
    unroll!([4] pair in 0..PAIRS {
        probs[pair] = pack::<G, C>(gpu, weights[pair], [[1.0; 2]; 2]);
    });
    probs
}

impl Group {
    /// Waits for the tile in stage `stage`, and begins its scores.
    ///
    /// # Safety
    /// The four warps of the group come here; the group that loads brings the tile.
    #[inline(always)]
    unsafe fn scores<G: Gpu, C: CacheFormat, const K_STEPS: usize, const BYTE_KEYS: bool>(
        self,
        gpu: G,
        query: GroupQueries,
        tile: SharedTile,
        stage: u32,
    ) -> Pending<4> {
        // SAFETY: the four warps come here together, and the group that loads fills the stage: the contract of `consume`.
        unsafe {
            gpu.barrier_sync(full(stage, self.group), full_threads::<K_STEPS>());
            if BYTE_KEYS {
                gpu.group_scores_e4m3::<K_STEPS>(query.panels, tile.keys)
            } else {
                group_scores::<G, C::Math, K_STEPS>(gpu, query.panels, tile.keys)
            }
        }
    }
}
