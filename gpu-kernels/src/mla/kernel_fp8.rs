//! Stage 1 of split-KV decode attention over a latent (MLA) cache of FP8 entries: all tokens of a sequence, or
//! those that an index list names.
//!
//! Grid: x = tile of rows, y = split, z = group of query tokens (all of a sequence; with index lists, one).
//! A row is a query head of a query token. A thread block owns positions
//! `split_idx * split_len .. + split_len` of one group and up to `8 * HEAD_TILES` rows:
//!
//! ```text
//! list the slots of the split's positions, without those that name none
//! for each tile of 32 or 64 slots, one or more ahead in flight:
//!     barrier: the last tile is free
//!     warps turn their raw entries into rows of the bf16 tile
//!     barrier: the tile is there
//!     attend, as `decode_mla` does; between the products warps start copying their next entries
//! a group of one split is finished: out, with the sink, and lse; else partial_out, partial_lse
//! ```

use core::marker::PhantomData;

use crate::dtype::Bf16;
use crate::entry::Variant;
use crate::gpu::{Gpu, WARP};
use crate::kernel::Kernel;
use crate::mla::entry_places::{Places, num_positions};
pub use crate::mla::entry_rows::HEAD_SIZE_V;
use crate::mla::entry_rows::{V_STEPS, is_causal, mended_row, own_rows, seen_by_all, sink_factor};
use crate::mla::kernel::{MlaTiling, min_ctas};
use crate::mla::{
    EntryStream, LatentQuery, LatentWords, MlaEntry, MlaTile, OnlineSoftmax, WARP_TOKENS,
    list_slots, tile_row_bytes,
};
use crate::params::DecodeMlaEntryParams;

/// The kernel. `K_STEPS` is the number of steps of 16 values of an entry `E`; the other sizes are those of
/// [`crate::mla::kernel::decode_mla`].
///
/// # Safety
/// Launched on the grid above with [`MlaTile::threads`] threads and [`MlaTile::entry_shared_bytes`] shared memory for
/// `params.rows.stages` and `params.rows.split_len`; `params` names tensors of the shapes it documents, valid
/// for the launch; without indices the block table names blocks of the cache for the tokens of each sequence.
#[inline(always)]
pub unsafe fn decode_mla_entry<
    G: Gpu,
    E: MlaEntry,
    const K_STEPS: usize,
    const HEAD_TILES: usize,
    const WARP_HEAD_TILES: usize,
    const WARP_TOKEN_TILES: usize,
    const WARP_DIM_TILES: usize,
>(
    gpu: G,
    params: &DecodeMlaEntryParams,
) {
    let rows = &params.rows;
    // SAFETY: `check` is 0 or a finished check's record: the host's `launch`.
    if unsafe { crate::attention::check::found_fault(gpu, rows.check) } {
        return;
    }
    let cut = const {
        let cut = MlaTile::of_kernel::<
            Bf16,
            K_STEPS,
            HEAD_TILES,
            WARP_HEAD_TILES,
            WARP_TOKEN_TILES,
            WARP_DIM_TILES,
        >(HEAD_SIZE_V);
        assert!(cut.tile_len == cut.warps * WARP_TOKENS);
        assert!(tile_row_bytes::<E>() == K_STEPS as u32 * 32);
        cut
    };
    let (cta, split, first_token) = own_rows(gpu, cut, params);
    // The query is under way before the length and the slots are waited for.
    // SAFETY: the rows exist.
    let words = unsafe {
        LatentWords::<K_STEPS, WARP_HEAD_TILES>::load::<G, Bf16>(
            gpu,
            OnlineSoftmax::<Bf16, HEAD_TILES, WARP_HEAD_TILES, WARP_DIM_TILES>::first_tile(
                gpu, cut,
            ),
            |row| cta.query_row(rows, row),
            cta.num_rows,
            0,
        )
    };
    // SAFETY: one length per sequence of the grid, if there are lengths.
    let num_positions = unsafe { num_positions(gpu, params, cta.seq) };
    let split_start = split * rows.split_len;
    if split_start >= num_positions {
        if split == 0 {
            // SAFETY: rows of this thread block.
            unsafe { cta.store_empty(gpu, cut, rows) };
        }
        return;
    }
    let split_end = num_positions.min(split_start + rows.split_len);

    let list = gpu.shared_base() + cut.slot_list(E::FORM, rows.stages);
    // SAFETY: every thread comes here; the list holds a split; positions below `num_positions` can be looked up.
    let count = unsafe {
        let places = Places::of(gpu, params, cta.seq, first_token);
        list_slots(gpu, cut, list, split_start, split_end, |position| {
            places.slot(gpu, params, position)
        })
    };
    // SAFETY: every thread comes here; the ring has `rows.stages` tiles: the kernel's contract; there are `count` slots
    // in the list, each of its cache: `Places::slot`.
    let mut stream =
        unsafe { EntryStream::<E>::start(gpu, cut, &params.lists, count, rows.stages) };
    let mut running = OnlineSoftmax::<Bf16, HEAD_TILES, WARP_HEAD_TILES, WARP_DIM_TILES>::EMPTY;
    // SAFETY: every thread comes here.
    let query = unsafe {
        LatentQuery::<K_STEPS, WARP_HEAD_TILES>::of::<G, Bf16>(
            gpu,
            cut,
            words,
            0,
            rows.qk_scale_log2,
        )
    };
    let is_causal = is_causal(params);
    let all_see = seen_by_all(params, num_positions)
        .min(split_end)
        .saturating_sub(split_start)
        .min(count);
    let tile = gpu.shared_base() + cut.ring();
    let scratch = gpu.shared_base() + cut.entry_scratch();
    let mut token = 0;
    while token < count {
        // SAFETY: every thread comes here; there is a tile for each step of this loop.
        let next = unsafe { stream.next(gpu, &params.lists, rows.stages, tile) };
        let len_of = |row: u32| {
            if !is_causal {
                return count - token;
            }
            (num_positions + 1 + cta.token_of(rows, row))
                .saturating_sub(rows.query_len)
                .min(split_end)
                .saturating_sub(split_start + token)
        };
        // SAFETY: every thread comes here; the tile is there.
        unsafe {
            running.attend::<G, K_STEPS, WARP_TOKEN_TILES>(
                gpu,
                cut,
                &query,
                (tile, scratch),
                token + cut.tile_len <= all_see,
                len_of,
                |step, steps| next.copy_step(gpu, step, steps),
                || gpu.cp_async_commit(),
            )
        };
        token += cut.tile_len;
    }
    if count == 0 {
        // SAFETY: all come here or none. No tile's barriers lie between the query's statistics and the last ones.
        unsafe { gpu.sync_cta() };
    }
    gpu.let_next_kernel_start();
    let is_whole = num_positions <= rows.split_len;
    let factors = gpu.shared_base() + cut.factors();
    let has_sinks = params.sink != 0;
    // SAFETY: every thread comes here, after the last tile; each row's lse is stored once, and so is its factor,
    // where those of the tiles were.
    unsafe {
        let out = running.finish(gpu, cut, 1.0, |row, lse| {
            cta.store_lse(gpu, rows, row, lse, is_whole);
            if has_sinks && row < cta.num_rows {
                let factor = sink_factor(gpu, params, cta, row, lse);
                gpu.st_shared_b32(factors + row * 4, factor.to_bits());
            }
        });
        let factor = |row: u32| {
            if has_sinks {
                f32::from_bits(gpu.ld_shared_b32(factors + row * 4))
            } else {
                1.0
            }
        };
        cta.store_out::<G, Bf16, V_STEPS, 0>(gpu, cut, rows, out, is_whole, factor, |row| {
            mended_row::<G, E, K_STEPS>(gpu, cut, params, row, is_whole)
        });
    }
}

/// [`decode_mla_entry`] for a form of entries and a tile of as many steps of 16 values.
#[derive(Debug)]
pub struct DecodeMlaEntry<E, const K_STEPS: usize, Tile>(PhantomData<(E, Tile)>);

impl<
    E,
    const K_STEPS: usize,
    const HEAD_TILES: usize,
    const WARP_HEAD_TILES: usize,
    const WARP_TOKEN_TILES: usize,
    const WARP_DIM_TILES: usize,
> Kernel
    for DecodeMlaEntry<
        E,
        K_STEPS,
        MlaTiling<HEAD_TILES, WARP_HEAD_TILES, WARP_TOKEN_TILES, WARP_DIM_TILES>,
    >
where
    E: MlaEntry,
{
    type Params = DecodeMlaEntryParams;
    const VARIANT: Variant = Variant::DecodeMlaEntry {
        form: E::FORM,
        cut: MlaTile::of_kernel::<
            Bf16,
            K_STEPS,
            HEAD_TILES,
            WARP_HEAD_TILES,
            WARP_TOKEN_TILES,
            WARP_DIM_TILES,
        >(HEAD_SIZE_V),
    };
    const THREADS: u32 = HEAD_SIZE_V / 16 / WARP_DIM_TILES as u32 * WARP;
    const MIN_CTAS: u32 = min_ctas(HEAD_TILES);

    #[inline(always)]
    unsafe fn run<G: Gpu>(gpu: G, params: &DecodeMlaEntryParams) {
        // SAFETY: the contract of `run` is that of `decode_mla_entry`.
        unsafe {
            decode_mla_entry::<
                G,
                E,
                K_STEPS,
                HEAD_TILES,
                WARP_HEAD_TILES,
                WARP_TOKEN_TILES,
                WARP_DIM_TILES,
            >(gpu, params);
        }
    }
}
