//! What a warp group that multiplies does, with 64 rows of 256 values: as [`crate::prefill::consumer`], in turns.
//!
//! Products are of half a row at a time, which is what an instruction's accumulators are written for.

use crate::attention::group_products::{group_more_scores, group_scores, group_values};
use crate::dtype::CacheFormat;
use crate::gpu::unroll::unroll;
use crate::gpu::{Gpu, PANEL_BYTES, Pending};
use crate::prefill::consumer::{PAIRS, pack_all};
use crate::prefill::rows::RowView;
use crate::prefill::score_mods::PrefillMods;
use crate::prefill::wide::{
    FULL_THREADS, STAGES, STEPS, TILE_KV, empty_threads, full, keys_empty, other, values_empty,
};
use crate::prefill::{Group, GroupQueries, MmaKind, OnlineSoftmax, PrefillTile};

/// Steps that are multiplied at a time, and how many bytes of panels they are.
const HALF: usize = STEPS / 2;
const HALF_BYTES: u32 = HALF as u32 / 4 * PANEL_BYTES;

/// Accumulators of a warp's 16 rows and all values.
type Acc = [[[f32; 4]; 2]; STEPS];

impl OnlineSoftmax<STEPS, 1> {
    /// Takes tokens `tokens.0 .. tokens.1`, at least one, of which the first is a tile's. `view` finds out what is
    /// seldom needed of a warp's rows.
    ///
    /// # Safety
    /// The four warps of the group come here, and the group that loads to [`super::producer::Producer::run`] with the
    /// same tokens.
    #[inline(always)]
    pub(super) unsafe fn consume_wide<G: Gpu, C: CacheFormat>(
        &mut self,
        gpu: G,
        query: GroupQueries,
        (mut token, end): (u32, u32),
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
        let shape = const { PrefillTile::of_kernel::<C, STEPS, STEPS>(MmaKind::WarpGroup) };
        let empty_threads = empty_threads(group.groups);
        let tile_of = |stage: u32| {
            // SAFETY: converged.
            shape.tile(gpu.shared_base(), 0, unsafe { gpu.uniform(stage) })
        };
        // Whether the group that loads waits for the keys, or the values, of the tile at `token`: another turn comes to the
        // keys' stage, if only with the last values; another tile to the values'.
        let are_keys_awaited = |token: u32| token + TILE_KV < end;
        let are_values_awaited = |token: u32| token + STAGES * TILE_KV < end;
        let mut stage = 0;
        let mut tile = tile_of(stage);
        // SAFETY: the group that loads brings a first turn.
        let scores = unsafe {
            group.wait(gpu, stage);
            let scores = begin_scores::<G, C>(gpu, query.panels, tile.keys);
            gpu.group_wait::<4, 0>(scores)
        };
        if are_keys_awaited(token) {
            // SAFETY: converged; the group that loads waits there.
            unsafe { gpu.barrier_arrive(keys_empty(stage), empty_threads) };
        }
        // SAFETY: converged. There is nothing to rescale.
        let (weights, _) = unsafe { self.softmax::<G, C>(gpu, scores, query, token, mods, &view) };
        let mut probs = pack_all::<G, C>(gpu, weights);
        while token + TILE_KV < end {
            let next = token + TILE_KV;
            let next_tile = tile_of(other(stage));
            // SAFETY: the group that loads brings another turn; scores are waited for before values, which were begun
            // after them, and `acc` is not touched until they are.
            unsafe {
                group.wait(gpu, other(stage));
                let scores = begin_scores::<G, C>(gpu, query.panels, next_tile.keys);
                let values = begin_values::<G, C>(gpu, &self.acc[0], probs, tile.values);
                // All but the youngest two, which are the values.
                let scores = gpu.group_wait::<4, 2>(scores);
                if are_keys_awaited(next) {
                    gpu.barrier_arrive(keys_empty(other(stage)), empty_threads);
                }
                let (weights, rise) = self.softmax::<G, C>(gpu, scores, query, next, mods, &view);
                end_values(gpu, &mut self.acc[0], values);
                if are_values_awaited(token) {
                    gpu.barrier_arrive(values_empty(stage), empty_threads);
                }
                self.rescale_acc(rise);
                // Not before: the tensor cores read the registers of the last ones.
                probs = pack_all::<G, C>(gpu, weights);
            }
            (stage, tile, token) = (other(stage), next_tile, next);
        }
        // SAFETY: the four come here; the group that loads brings a last turn.
        unsafe {
            group.wait(gpu, other(stage));
            let values = begin_values::<G, C>(gpu, &self.acc[0], probs, tile.values);
            end_values(gpu, &mut self.acc[0], values);
        }
    }
}

impl Group {
    /// Waits for the turn whose keys are in stage `stage`. Whoever loads does not fence what it brought, for that would
    /// make it wait for what else is on its way.
    ///
    /// # Safety
    /// The four warps of the group come here; the group that loads brings the turn.
    #[inline(always)]
    unsafe fn wait<G: Gpu>(self, gpu: G, stage: u32) {
        // SAFETY: the four warps come here, and the group that loads: this function's contract.
        unsafe { gpu.barrier_sync(full(stage, self.group), FULL_THREADS) };
        gpu.fence_warpgroup();
    }
}

/// Begins the scores of a tile.
///
/// # Safety
/// The four warps of the group come here; the panels are visible.
#[inline(always)]
unsafe fn begin_scores<G: Gpu, C: CacheFormat>(gpu: G, queries: u32, keys: u32) -> Pending<PAIRS> {
    // SAFETY: the four warps, and both halves of the panels: this function's contract.
    unsafe {
        let scores = group_scores::<G, C::Math, HALF>(gpu, queries, keys);
        let (queries, keys) = (queries + HALF_BYTES, keys + HALF_BYTES);
        group_more_scores::<G, C::Math, HALF>(gpu, scores, queries, keys)
    }
}

/// Begins to add probabilities times the values of a tile to `acc`.
///
/// # Safety
/// As [`begin_scores`].
#[inline(always)]
unsafe fn begin_values<G: Gpu, C: CacheFormat>(
    gpu: G,
    acc: &Acc,
    probs: [[u32; 4]; PAIRS],
    values: u32,
) -> [Pending<HALF>; 2] {
    let mut halves = [[[[0.0; 4]; 2]; HALF]; 2];
    unroll!([16] step in 0..STEPS {
        halves[step / HALF][step % HALF] = acc[step];
    });
    let [first, second] = halves;
    // SAFETY: the four warps, and both halves of the panels: this function's contract.
    unsafe {
        [
            group_values::<G, C::Math, HALF>(gpu, first, probs, values),
            group_values::<G, C::Math, HALF>(gpu, second, probs, values + HALF_BYTES),
        ]
    }
}

/// Waits for them.
///
/// # Safety
/// The four warps of the group come here.
#[inline(always)]
unsafe fn end_values<G: Gpu>(gpu: G, acc: &mut Acc, [first, second]: [Pending<HALF>; 2]) {
    // SAFETY: the four warps come here: this function's contract.
    let halves = unsafe {
        [
            gpu.group_wait::<HALF, 0>(first),
            gpu.group_wait::<HALF, 0>(second),
        ]
    };
    unroll!([16] step in 0..STEPS {
        acc[step] = halves[step / HALF][step % HALF];
    });
}
