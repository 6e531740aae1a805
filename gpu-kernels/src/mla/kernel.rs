//! Stage 1 of split-KV decode attention over a latent (MLA) cache: one KV split, some query heads.
//!
//! Grid: x = tile of rows (fastest, because all rows of a sequence want the same tokens), y = split,
//! z = sequence. A row is a query head of a query token. A thread block owns the tokens
//! `split_idx * split_len .. + split_len` of one sequence and up to `8 * HEAD_TILES` rows; or, if a
//! [`schedule`](crate::attention::schedule) was made, those of item y, and z is 0:
//!
//! ```text
//! for each tile of 32 or 64 tokens, one or more ahead in flight:      barrier: it is there, the last one is free
//!     scores = keys · queryᵀ       warps share out tokens, rows, maybe columns (then a barrier); tensor cores
//!     maxima of all token warps    barrier
//!     acc rescaled; probabilities  barrier
//!     acc   += valuesᵀ · probs     warps share out columns, tensor cores
//! a sequence that was seen whole is finished: out, lse; else partial_out, partial_lse
//! ```

use core::marker::PhantomData;

use crate::attention::careful::{careful_row, load_pair, load_query_pair};
use crate::attention::item::Item;
use crate::attention::paged_kv::CacheHead;
use crate::attention::query::query_bytes;
use crate::attention::sequence::seq_len;
use crate::dtype::CacheFormat;
use crate::entry::Variant;
use crate::gpu::{Gpu, WARP, div};
use crate::kernel::{Dims, Kernel};
use crate::mla::cta::Cta;
use crate::mla::{LatentQuery, LatentStream, LatentWords, MlaTile, OnlineSoftmax};
use crate::params::DecodeMlaParams;

/// The kernel. `K_STEPS = head_size / 16`, `V_STEPS = head_size_v / 16`; a thread block takes `HEAD_TILES` tiles
/// of 8 rows; a warp takes `WARP_HEAD_TILES` of them and `WARP_TOKEN_TILES` tiles of 16 tokens of the scores, and
/// `WARP_DIM_TILES` tiles of 16 columns of the output.
///
/// # Safety
/// Launched on the grid above with [`MlaTile::threads`] threads and [`MlaTile::shared_bytes`] shared memory for
/// `params.stages`; `params` names tensors of the shapes it documents, valid for the launch; the block table names
/// blocks of the cache for the tokens of each sequence.
#[inline(always)]
pub unsafe fn decode_mla<
    G: Gpu,
    C: CacheFormat,
    const K_STEPS: usize,
    const V_STEPS: usize,
    const HEAD_TILES: usize,
    const WARP_HEAD_TILES: usize,
    const WARP_TOKEN_TILES: usize,
    const WARP_DIM_TILES: usize,
    const WARP_GROUPS: usize,
>(
    gpu: G,
    params: &DecodeMlaParams,
) {
    // SAFETY: `check` is 0 or a finished check's record: the host's `launch`.
    if unsafe { crate::attention::check::found_fault(gpu, params.check) } {
        return;
    }
    let cut = const {
        let cut = MlaTile::of_kernel::<
            C,
            K_STEPS,
            HEAD_TILES,
            WARP_HEAD_TILES,
            WARP_TOKEN_TILES,
            WARP_DIM_TILES,
        >(V_STEPS as u32 * 16);
        assert!(cut.tile_len == cut.warps * WARP_GROUPS as u32 * 8);
        assert!(cut.tile_len.is_multiple_of(32) && cut.tile_len <= 64);
        cut
    };
    // SAFETY: y is a split, or one of the items: the plan.
    let item = unsafe {
        Item::of(
            gpu,
            params.items,
            (gpu.cta_idx_z(), gpu.cta_idx_y()),
            (params.split_len, params.num_kv_splits),
        )
    };
    if item.seq >= params.num_seqs {
        return;
    }
    let cta = Cta::new(gpu, cut, params, (item.seq, item.part));
    // The query is under way before the length, on which all else depends, is waited for.
    // SAFETY: the rows exist.
    let words = unsafe {
        LatentWords::<K_STEPS, WARP_HEAD_TILES>::load::<G, C>(
            gpu,
            OnlineSoftmax::<C, HEAD_TILES, WARP_HEAD_TILES, WARP_DIM_TILES>::first_tile(gpu, cut),
            |row| cta.query_row(params, row),
            cta.num_rows,
            params.query_dtype,
        )
    };
    // SAFETY: one length per sequence of the grid.
    let seq_len = unsafe {
        seq_len(
            gpu,
            params.seq_lens,
            params.stride_seq_lens,
            cta.seq,
            params.max_seq_len,
        )
    };
    let (start, end) = item.tokens(0, seq_len);
    let owned = gpu.shared_base() + cut.owned();
    if gpu.thread_idx() == 0 {
        // SAFETY: nobody else writes it; it is read behind barriers.
        unsafe { gpu.st_shared_b128(owned, [item.seq, item.part, start, end]) };
    }
    if start >= end {
        if item.is_first() {
            // SAFETY: rows of this thread block.
            unsafe { cta.store_empty(gpu, cut, params) };
        }
        return;
    }

    let cache = CacheHead::new(
        params.cache,
        0,
        params.stride_cache_block,
        params.stride_cache_slot,
        0,
    );
    // SAFETY: every warp comes here; the ring has `stages` tiles, and tokens lie in blocks of the cache: the kernel's
    // contract; the block table has a column for each: the host's `max_seq_len`, to which `seq_len` is cut.
    let mut stream = unsafe {
        LatentStream::<C, K_STEPS, WARP_GROUPS>::start(
            gpu,
            cache,
            params.block_table + cta.seq as u64 * params.stride_block_table as u64,
            params.block_size,
            start,
            end,
            cut,
            gpu.shared_base() + cut.ring(),
            params.stages,
        )
    };
    // SAFETY: the scales of an FP8 cache are readable.
    let (q_scale, k_scale) = unsafe { scales::<G, C>(gpu, params) };
    let mut running = OnlineSoftmax::<C, HEAD_TILES, WARP_HEAD_TILES, WARP_DIM_TILES>::EMPTY;
    // SAFETY: every thread comes here.
    let query = unsafe {
        LatentQuery::<K_STEPS, WARP_HEAD_TILES>::of::<G, C>(
            gpu,
            cut,
            words,
            params.query_dtype,
            params.qk_scale_log2 * q_scale * k_scale,
        )
    };
    // What a row sees ends with its own token: `query_len - 1` before the end for the first one.
    let all_see = (seq_len + 1).saturating_sub(params.query_len).min(end);
    let mut token = start;
    while token < end {
        // SAFETY: every thread comes here; there is a tile for each step of this loop.
        let (tile, next) = unsafe { (stream.next(gpu), stream.next_rows(gpu)) };
        let len_of = |row: u32| {
            let query_token = cta.token_of(params, row);
            (seq_len + 1 + query_token)
                .saturating_sub(params.query_len)
                .min(end)
                .saturating_sub(token)
        };
        // SAFETY: every thread comes here; the tile was just handed out.
        unsafe {
            running.attend::<G, K_STEPS, WARP_TOKEN_TILES>(
                gpu,
                cut,
                &query,
                tile,
                token + cut.tile_len <= all_see,
                len_of,
                |step, steps| {
                    if let Some(rows) = next {
                        rows.copy_step(gpu, step, steps);
                    }
                },
                || stream.end_rows(gpu),
            )
        };
        token += cut.tile_len;
    }
    gpu.let_next_kernel_start();
    // SAFETY: written before the barriers of the query's statistics.
    let [seq, part, start, end] = unsafe { gpu.ld_shared_b128(owned) };
    let cta = Cta::new(gpu, cut, params, (seq, part));
    let is_whole = start == 0 && end == seq_len;
    // SAFETY: every thread comes here, after the last tile; each row's lse is stored once.
    unsafe {
        let rows = running.finish(gpu, cut, k_scale, |row, lse| {
            cta.store_lse(gpu, params, row, lse, is_whole);
        });
        cta.store_out::<G, C, V_STEPS, 0>(
            gpu,
            cut,
            params,
            rows,
            is_whole,
            |_| 1.0,
            |row| {
                // Found out again: the loop has no register to keep it in.
                let [seq, part, start, end] = gpu.ld_shared_b128(owned);
                let cta = Cta::new(gpu, cut, params, (seq, part));
                let stride = params.stride_seq_lens;
                let seq_len = self::seq_len(gpu, params.seq_lens, stride, seq, params.max_seq_len);
                let seen = cta.seen(params, row, seq_len, (start, end));
                let cache = CacheHead::new(
                    params.cache,
                    0,
                    params.stride_cache_block,
                    gpu.black_box(params.stride_cache_slot as u32) as i64,
                    0,
                );
                let (q_scale, k_scale) = scales::<G, C>(gpu, params);
                let query = cta.query_row(params, row);
                let place = |token: u32| {
                    let block_idx = div(token, params.block_size);
                    let table = params.block_table
                        + cta.seq as u64 * params.stride_block_table as u64
                        + 4 * block_idx as u64;
                    let slot = token - block_idx * params.block_size;
                    cache.slot(gpu.ld_global_b32(table), slot)
                };
                careful_row::<G, _, K_STEPS, V_STEPS>(
                    gpu,
                    seen,
                    |dim| {
                        let at = query + query_bytes::<C>(params.query_dtype) * dim as u64;
                        load_query_pair::<G, C>(gpu, at, params.query_dtype)
                    },
                    place,
                    |row, dim| load_pair::<G, C>(gpu, row + (C::BYTES * dim) as u64),
                    |row, dim| {
                        let values = load_pair::<G, C>(gpu, row + (C::BYTES * dim) as u64);
                        values.map(|value| value * k_scale)
                    },
                    |_, _, product| product * (params.qk_scale_log2 * q_scale * k_scale),
                    f32::NEG_INFINITY,
                )
            },
        );
    }
}

/// The scales of query and cache.
///
/// # Safety
/// Over a cache of bytes `k_scale`, and `q_scale` if it is not 0, are one f32 each.
#[inline(always)]
pub(super) unsafe fn scales<G: Gpu, C: CacheFormat>(
    gpu: G,
    params: &DecodeMlaParams,
) -> (f32, f32) {
    if C::BYTES == 2 {
        return (1.0, 1.0);
    }
    // SAFETY: one f32 each, and a cache of bytes has a `k_scale`: the host's `check_latent_scales`.
    unsafe {
        let q_scale = if params.q_scale != 0 {
            f32::from_bits(gpu.ld_global_b32(params.q_scale))
        } else {
            1.0
        };
        (q_scale, f32::from_bits(gpu.ld_global_b32(params.k_scale)))
    }
}

/// How a thread block of [`decode_mla`] shares a tile out: tiles of 8 rows, and of these a warp's; a warp's tiles of 16
/// tokens, and of 16 columns of the output.
#[derive(Debug)]
pub enum MlaTiling<
    const HEAD_TILES: usize,
    const WARP_HEAD_TILES: usize,
    const WARP_TOKEN_TILES: usize,
    const WARP_DIM_TILES: usize,
    const WARP_GROUPS: usize = 1,
> {}

/// Thread blocks that have to fit on a multiprocessor: those of few heads leave each other room.
pub(crate) const fn min_ctas(head_tiles: usize) -> u32 {
    if head_tiles == 2 { 2 } else { 1 }
}

/// [`decode_mla`] for a cache format, row sizes and a tile.
#[derive(Debug)]
pub struct DecodeMla<C, Dims, Tile>(PhantomData<(C, Dims, Tile)>);

impl<
    C,
    const K_STEPS: usize,
    const V_STEPS: usize,
    const HEAD_TILES: usize,
    const WARP_HEAD_TILES: usize,
    const WARP_TOKEN_TILES: usize,
    const WARP_DIM_TILES: usize,
    const WARP_GROUPS: usize,
> Kernel
    for DecodeMla<
        C,
        Dims<K_STEPS, V_STEPS>,
        MlaTiling<HEAD_TILES, WARP_HEAD_TILES, WARP_TOKEN_TILES, WARP_DIM_TILES, WARP_GROUPS>,
    >
where
    C: CacheFormat,
{
    type Params = DecodeMlaParams;
    const VARIANT: Variant = Variant::DecodeMla {
        cache: C::CACHE,
        head_size: K_STEPS as u32 * 16,
        cut: MlaTile::of_kernel::<
            C,
            K_STEPS,
            HEAD_TILES,
            WARP_HEAD_TILES,
            WARP_TOKEN_TILES,
            WARP_DIM_TILES,
        >(V_STEPS as u32 * 16),
    };
    const THREADS: u32 = (V_STEPS / WARP_DIM_TILES) as u32 * WARP;
    const MIN_CTAS: u32 = min_ctas(HEAD_TILES);

    #[inline(always)]
    unsafe fn run<G: Gpu>(gpu: G, params: &DecodeMlaParams) {
        // SAFETY: the contract of `run` is that of `decode_mla`.
        unsafe {
            decode_mla::<
                G,
                C,
                K_STEPS,
                V_STEPS,
                HEAD_TILES,
                WARP_HEAD_TILES,
                WARP_TOKEN_TILES,
                WARP_DIM_TILES,
                WARP_GROUPS,
            >(gpu, params);
        }
    }
}
