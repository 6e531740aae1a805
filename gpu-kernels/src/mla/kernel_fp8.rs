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

use crate::attention::careful::{careful_row, load_pair};
use crate::attention::sequence::seq_len;
use crate::dtype::Bf16;
use crate::entry::Variant;
use crate::gpu::unroll::unroll;
use crate::gpu::{Gpu, WARP, div};
use crate::kernel::Kernel;
use crate::mla::cta::Cta;
use crate::mla::kernel::{MlaTiling, min_ctas};
use crate::mla::{
    EntryStream, LatentQuery, LatentWords, MlaEntry, MlaTile, OnlineSoftmax, WARP_TOKENS,
    entry_pair, list_slots, of_second_list, tile_row_bytes,
};
use crate::params::{DecodeMlaEntryParams, EntryList};

/// Values of an output row.
pub const HEAD_SIZE_V: u32 = 512;

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
    // Without lists the last rows see all, and rows of `n` tokens before them all but `n` positions.
    let is_causal = params.lists[0].indices == 0;
    let hidden = if is_causal { rows.query_len - 1 } else { 0 };
    let all_see = num_positions
        .saturating_sub(hidden)
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
                let head = cta.first_row + row - cta.token_of(rows, row) * rows.num_query_heads;
                let sink = f32::from_bits(gpu.ld_global_b32(params.sink + 4 * head as u64));
                let factor = sink_factor(gpu, sink, lse.log2(gpu));
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
            // Found out again: the loop has no register to keep it in.
            let (cta, split, first_token) = own_rows(gpu, cut, params);
            let num_positions = self::num_positions(gpu, params, cta.seq);
            let start = split * rows.split_len;
            let mut seen = (start, num_positions.min(start + rows.split_len));
            if params.lists[0].indices == 0 {
                seen = cta.seen(rows, row, num_positions, seen);
            }
            let query = cta.query_row(rows, row);
            let places = Places::of(gpu, params, cta.seq, first_token);
            let pair = |slot: Option<u32>, dim: u32| match slot {
                Some(slot) => entry_pair::<G, E>(gpu, &params.lists, slot, dim),
                None => [0.0; 2],
            };
            let mut mended = careful_row::<G, _, K_STEPS, V_STEPS>(
                gpu,
                seen,
                |dim| load_pair::<G, Bf16>(gpu, query + 2 * dim as u64),
                |position| places.slot(gpu, params, position),
                pair,
                pair,
                |_, slot, product| match slot {
                    Some(_) => product * rows.qk_scale_log2,
                    None => f32::NEG_INFINITY,
                },
                f32::NEG_INFINITY,
            );
            if has_sinks && is_whole {
                let head = cta.first_row + row - cta.token_of(rows, row) * rows.num_query_heads;
                let sink = f32::from_bits(gpu.ld_global_b32(params.sink + 4 * head as u64));
                let factor = sink_factor(gpu, sink, mended.lse.log2(gpu));
                unroll!([8] i in 0..(V_STEPS / 4) {
                    mended.values[i] = mended.values[i].map(|value| value * factor);
                });
            }
            mended
        });
    }
}

const V_STEPS: usize = HEAD_SIZE_V as usize / 16;

/// What a sink leaves of a row: the softmax's denominator without it, divided by that with it.
#[inline(always)]
fn sink_factor<G: Gpu>(gpu: G, sink: f32, lse_log2: f32) -> f32 {
    if lse_log2 == f32::NEG_INFINITY {
        return 0.0;
    }
    gpu.recip(1.0 + gpu.exp2(sink * core::f32::consts::LOG2_E - lse_log2))
}

/// The rows of this thread block, its split, and the first query token of its group.
#[inline(always)]
fn own_rows<G: Gpu>(gpu: G, cut: MlaTile, params: &DecodeMlaEntryParams) -> (Cta, u32, u32) {
    let rows = &params.rows;
    // What is made of them is made again where it is asked for again.
    let [x, y, z] =
        [gpu.cta_idx_x(), gpu.cta_idx_y(), gpu.cta_idx_z()].map(|index| gpu.black_box(index));
    // SAFETY: the host refuses queries without tokens.
    let seq = unsafe { div(z * params.tokens_per_group, rows.query_len) };
    let first_token = z * params.tokens_per_group - seq * rows.query_len;
    let skipped = x * cut.heads;
    let cta = Cta {
        seq,
        part: seq * rows.num_kv_splits + y,
        first_row: first_token * rows.num_query_heads + skipped,
        num_rows: cut
            .heads
            .min(params.tokens_per_group * rows.num_query_heads - skipped),
    };
    (cta, y, first_token)
}

/// Positions of a sequence's groups.
///
/// # Safety
/// `seq_lens`, if it is given, has a length for it.
#[inline(always)]
unsafe fn num_positions<G: Gpu>(gpu: G, params: &DecodeMlaEntryParams, seq: u32) -> u32 {
    let rows = &params.rows;
    if rows.seq_lens == 0 {
        return rows.max_seq_len;
    }
    // SAFETY: there is a length for `seq`: the contract of `num_positions`.
    unsafe {
        seq_len(
            gpu,
            rows.seq_lens,
            rows.stride_seq_lens,
            seq,
            rows.max_seq_len,
        )
    }
}

/// Where the indices of a group are.
#[derive(Clone, Copy)]
struct Places {
    /// The group's row of the block table.
    block_row: u64,
    /// Its rows of the two lists, and how many indices of each count.
    indices: [u64; 2],
    lens: [u32; 2],
}

impl Places {
    /// # Safety
    /// The lists, and their lengths if there are any, have a row for the query token.
    #[inline(always)]
    unsafe fn of<G: Gpu>(gpu: G, params: &DecodeMlaEntryParams, seq: u32, token: u32) -> Self {
        let indices = |list: &EntryList| {
            list.indices
                + seq as u64 * list.stride_indices_seq as u64
                + token as u64 * list.stride_indices_token as u64
        };
        let len = |list: &EntryList| {
            if list.lens == 0 {
                return list.len;
            }
            let at = list.lens
                + seq as u64 * list.stride_lens_seq as u64
                + token as u64 * list.stride_lens_token as u64;
            // SAFETY: the length of the query token, or of its sequence: the contract of `of`.
            let len = unsafe { gpu.ld_global_b32(at) };
            if (len as i32) < 0 { 0 } else { len }
        };
        let [first, second] = &params.lists;
        Self {
            block_row: params.rows.block_table + seq as u64 * params.rows.stride_block_table as u64,
            indices: [indices(first), indices(second)],
            lens: [len(first), len(second)],
        }
    }

    /// The slot at a position, one of its list's cache, marked if it is the second list's; `None` if there is none.
    ///
    /// # Safety
    /// The position exists.
    #[inline(always)]
    unsafe fn slot<G: Gpu>(
        &self,
        gpu: G,
        params: &DecodeMlaEntryParams,
        position: u32,
    ) -> Option<u32> {
        let [first, second] = &params.lists;
        if first.indices == 0 {
            // SAFETY: the block table has a column for every token of a sequence: the host's `tokens_of`.
            return Some(unsafe { self.slot_of_token(gpu, first, position) } as u32);
        }
        if position >= first.len {
            let at = position - first.len;
            if at >= self.lens[1] {
                return None;
            }
            // SAFETY: an index of the second list.
            let slot = unsafe { gpu.ld_global_b32(self.indices[1] + 4 * at as u64) };
            return (slot < second.num_slots).then(|| of_second_list(slot));
        }
        if position >= self.lens[0] {
            return None;
        }
        // SAFETY: an index of the first list.
        let index = unsafe { gpu.ld_global_b32(self.indices[0] + 4 * position as u64) };
        if params.rows.block_table == 0 {
            return (index < first.num_slots).then_some(index);
        }
        if index >= first.num_tokens {
            return None;
        }
        // SAFETY: the block table has a column for the token.
        let slot = unsafe { self.slot_of_token(gpu, first, index) };
        (slot < first.num_slots as u64).then_some(slot as u32)
    }

    /// # Safety
    /// The token's column of the block table exists.
    #[inline(always)]
    unsafe fn slot_of_token<G: Gpu>(self, gpu: G, list: &EntryList, token: u32) -> u64 {
        let column = list.block_size.divide(token);
        // SAFETY: the block table has the column: the contract of `slot_of_token`.
        let block = unsafe { gpu.ld_global_b32(self.block_row + 4 * column as u64) };
        let block_size = list.block_size.divisor();
        block as u64 * block_size as u64 + (token - column * block_size) as u64
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
