//! Stage 1 of split-KV decode attention: one KV split, all query heads of one KV head.
//!
//! Grid: x = KV head and head tile (fastest, because the heads of a token lie side by side in an NHD
//! cache), y = split, z = sequence. A thread block owns the tokens
//! `split_idx * split_len .. + split_len` of one sequence and up to `8 * HEAD_TILES` query heads; or, if a
//! [`schedule`](crate::attention::schedule) was made, those of item y, and z is 0. Its warps take tiles of 16 tokens in turn
//! and never wait for each other:
//!
//! ```text
//! for each tile of this warp, four or so ahead in flight:
//!     scores  = keys · queryᵀ                      16 tokens x 8 heads, tensor cores
//!     softcap, ALiBi, keys before the window       only in kernels with score mods
//!     max, sum, acc rescaled                       online softmax, base 2
//!     acc    += valuesᵀ · probs                    head_size_v x 8 heads, tensor cores
//! partials of the warps are merged through shared memory
//! a sequence that was seen whole is finished: out, lse; else partial_out, partial_lse
//! ```
//!
//! Kernels with score mods count tokens and splits from the window's first group of 8, so that a window needs no more
//! thread blocks than it has tokens for, and take sinks into account where a sequence is finished.

use core::marker::PhantomData;

use crate::attention::item::Item;
use crate::attention::paged_kv::{CacheHead, TokenScales};
use crate::attention::sequence::{clamp_len, first_key, query_row};
use crate::attention::tile::{HEADS, TILE_GROUP, TILE_KV};
use crate::decode::score_mods::DecodeMods;
use crate::decode::{DecodeTile, KvStream, OnlineSoftmax, QueryWords};
use crate::dtype::CacheFormat;
use crate::entry::Variant;
use crate::gpu::{Gpu, div};
use crate::kernel::{Dims, Heads, Kernel};
use crate::params::DecodeParams;

/// The kernel. `K_STEPS = head_size / 16`, `V_STEPS = head_size_v / 16`; `MODS` if scores are more than products times
/// a scale, or rows are not sequences.
///
/// # Safety
/// Launched on the grid above with [`Kernel::THREADS`] threads and `DecodeTile::shared_bytes` shared memory, or
/// `shared_bytes_of` with `MODS`, and then one head tile; `params` names tensors of the shapes it documents, valid for
/// the launch. No two sequences have one row, and the caches have the blocks that are named for tokens that a query
/// sees.
#[inline(always)]
pub unsafe fn decode_gqa<
    G: Gpu,
    C: CacheFormat,
    const K_STEPS: usize,
    const V_STEPS: usize,
    const HEAD_TILES: usize,
    const MODS: bool,
>(
    gpu: G,
    params: &DecodeParams,
) {
    // SAFETY: `check` is 0 or a finished check's record: the host's `launch`.
    if unsafe { crate::attention::check::found_fault(gpu, params.check) } {
        return;
    }
    let shape = const {
        let shape = DecodeTile::of_kernel::<C, K_STEPS, V_STEPS>();
        // What warps leave for each other at the end lies where the rings were.
        let merge = shape.merge_bytes(HEAD_TILES as u32, V_STEPS as u32 * 16);
        assert!(if MODS {
            HEAD_TILES == 1
        } else {
            merge <= shape.shared_bytes()
        });
        shape
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
    let mut cta = Cta::<C, V_STEPS, HEAD_TILES, MODS>::new(gpu, params, item);
    let len_at = params.seq_lens + cta.seq as u64 * params.stride_seq_lens as u64;
    // SAFETY: a sequence, and each has a length: the host's `check_seq_lens`.
    let seq_len = unsafe { gpu.ld_global_b32(len_at) };
    if MODS {
        // SAFETY: a sequence; where there are starts, they are one more than sequences: the host's
        // `UnifiedRequest::check`.
        let row = unsafe { query_row(gpu, params.query_start_loc, params.num_tokens, cta.seq) };
        let Some(row) = row else { return };
        cta.row = row;
    }
    // The query and the scales are under way before the length, on which all else depends, is waited for.
    let query_row = |head: u32| {
        let head = (cta.first_head + head) as u64;
        params.query
            + cta.row as u64 * params.stride_query_seq as u64
            + head * params.stride_query_head as u64
    };
    // SAFETY: `num_heads` query heads of the sequence's row, aligned to two values: the host's `Query::check`.
    let query = unsafe {
        QueryWords::<K_STEPS, HEAD_TILES>::load::<G, C>(
            gpu,
            query_row,
            cta.num_heads,
            params.query_dtype,
        )
    };
    // SAFETY: an FP8 cache has scales: the host's `check_scales`.
    let (k_scale, v_scale) = unsafe { cta.kv_scales(gpu, params) };
    let seq_len = clamp_len(seq_len, params.max_seq_len);
    let (mut begin, mut first) = (0, 0);
    if MODS {
        begin = first_key(seq_len, params.score.mask);
        first = begin / TILE_GROUP * TILE_GROUP;
    }
    let (start, end) = item.tokens(first, seq_len);
    if start >= end {
        if item.is_first() {
            // SAFETY: the sequence sees no token, and no other thread block has its first; `params` as they are.
            unsafe { cta.store_empty(gpu, params) };
        }
        return;
    }

    let keys = CacheHead::new(
        params.key_cache,
        cta.kv_head,
        params.stride_key_block,
        params.stride_key_slot,
        params.stride_key_head,
    );
    let values = CacheHead::new(
        params.value_cache,
        cta.kv_head,
        params.stride_value_block,
        params.stride_value_slot,
        params.stride_value_head,
    );
    let row = params.block_table + cta.seq as u64 * params.stride_block_table as u64;
    let first_token = start + gpu.warp() * TILE_KV;
    let ring_tiles = if MODS {
        params.ring_tiles
    } else {
        shape.stages
    };
    let ring = gpu.shared_base() + gpu.warp() * (ring_tiles * shape.tile_bytes);
    // SAFETY: converged, as lengths are the thread block's; the launch's shared memory has a ring for each warp; the
    // block table names every token below `seq_len`, at most `max_seq_len`: the host's `max_seq_len`.
    let mut stream = unsafe {
        KvStream::<C, K_STEPS, V_STEPS, MODS>::start(
            gpu,
            keys,
            values,
            cta.token_scales(params),
            row,
            params.block_size,
            first_token,
            shape.tokens_per_cta(),
            (begin, end),
            ring,
        )
    };
    // SAFETY: converged: as above.
    let query = unsafe {
        query.into_tile::<G, C>(
            gpu,
            params.query_dtype,
            params.score.qk_scale_log2 * k_scale,
        )
    };
    let mut mods = DecodeMods::NONE;
    if MODS {
        let position = seq_len as i32 - 1;
        // SAFETY: `num_heads` query heads; slopes, if there are any, are one for each: the host's `ScoreMods::check`.
        mods = unsafe {
            DecodeMods::load(gpu, &params.score, cta.first_head, cta.num_heads, position)
        };
    }

    let mut partial = OnlineSoftmax::<V_STEPS, HEAD_TILES>::EMPTY;
    // SAFETY: converged: as above; each tile is used up before the next is asked for.
    while let Some(tile) = unsafe { stream.next(gpu) } {
        // SAFETY: converged: as above; the stream just handed the tile out, so it is visible and has a token that the
        // query sees.
        unsafe { partial.attend::<G, C, K_STEPS, MODS>(gpu, &query, &mods, tile) };
    }
    gpu.let_next_kernel_start();
    // SAFETY: converged: as above; after the last tile.
    unsafe { partial.reduce(gpu) };
    // SAFETY: all threads come here, and no warp uses its ring any more; shared memory has room: this function's
    // contract.
    unsafe {
        cta.merge_warps(
            gpu,
            params,
            &partial,
            shape.warps,
            v_scale,
            item.is_first() && end == seq_len,
        )
    };
}

/// What a thread block owns of a sequence.
#[derive(Clone, Copy)]
pub(crate) struct Cta<C, const V_STEPS: usize, const HEAD_TILES: usize, const MODS: bool> {
    kv_head: u32,
    pub(crate) seq: u32,
    /// The workspace's part that is its own, if it does not finish the sequence.
    pub(crate) part: u32,
    /// The row of query, output and lse.
    pub(crate) row: u32,
    /// First query head, and how many.
    pub(crate) first_head: u32,
    pub(crate) num_heads: u32,
    format: PhantomData<C>,
}

impl<C: CacheFormat, const V_STEPS: usize, const HEAD_TILES: usize, const MODS: bool>
    Cta<C, V_STEPS, HEAD_TILES, MODS>
{
    /// Heads that the tiles have room for.
    pub(crate) const MAX_HEADS: u32 = HEAD_TILES as u32 * HEADS;

    #[inline(always)]
    fn new<G: Gpu>(gpu: G, params: &DecodeParams, item: Item) -> Self {
        // SAFETY: a KV head has query heads, so it has a head tile: the host's `Query::shares`, and the plan.
        let kv_head = unsafe { div(gpu.cta_idx_x(), params.head_tiles) };
        let head_tile = gpu.cta_idx_x() - kv_head * params.head_tiles;
        let skipped = head_tile * Self::MAX_HEADS;
        Self {
            kv_head,
            seq: item.seq,
            part: item.part,
            row: item.seq,
            first_head: kv_head * params.num_queries_per_kv + skipped,
            num_heads: Self::MAX_HEADS.min(params.num_queries_per_kv - skipped),
            format: PhantomData,
        }
    }

    /// Scales of single tokens, of keys and of values: meaningless if the format has none.
    #[inline(always)]
    fn token_scales(self, params: &DecodeParams) -> [TokenScales; 2] {
        [
            TokenScales::new(
                params.k_scale,
                self.kv_head,
                params.stride_k_scale_block,
                params.stride_k_scale_slot,
                params.stride_k_scale,
            ),
            TokenScales::new(
                params.v_scale,
                self.kv_head,
                params.stride_v_scale_block,
                params.stride_v_scale_slot,
                params.stride_v_scale,
            ),
        ]
    }

    /// What products with keys, and sums of values, have to be multiplied by.
    ///
    /// # Safety
    /// The scales of an FP8 cache are readable: one for all KV heads, with a stride of 0, or one for each.
    #[inline(always)]
    unsafe fn kv_scales<G: Gpu>(self, gpu: G, params: &DecodeParams) -> (f32, f32) {
        if C::BYTES == 2 {
            return (1.0, 1.0);
        }
        let load = |scales: u64, stride: i64| {
            let at = scales + self.kv_head as u64 * stride as u64;
            // SAFETY: one scale for all KV heads, with stride 0, or one for each: the host's `check_scales`.
            f32::from_bits(unsafe { gpu.ld_global_b32(at) })
        };
        let q_scale = if params.q_scale != 0 {
            load(params.q_scale, 0)
        } else {
            1.0
        };
        if C::TOKEN_SCALES {
            return (q_scale, 1.0);
        }
        let k_scale = load(params.k_scale, params.stride_k_scale);
        (
            q_scale * k_scale,
            load(params.v_scale, params.stride_v_scale),
        )
    }
}

/// [`decode_gqa`] for a cache format, head sizes and query heads; with `MODS`, the one that takes a sliding window, a
/// softcap, ALiBi, sinks and rows that are not sequences.
#[derive(Debug)]
pub struct DecodeGqa<C, Dims, Heads, const MODS: bool = false>(PhantomData<(C, Dims, Heads)>);

impl<C, const K_STEPS: usize, const V_STEPS: usize, const HEAD_TILES: usize, const MODS: bool>
    Kernel for DecodeGqa<C, Dims<K_STEPS, V_STEPS>, Heads<HEAD_TILES>, MODS>
where
    C: CacheFormat,
{
    type Params = DecodeParams;
    const VARIANT: Variant = Variant::DecodeGqa {
        cache: C::CACHE,
        head_size: K_STEPS as u32 * 16,
        head_size_v: V_STEPS as u32 * 16,
        heads_per_cta: HEAD_TILES as u32 * HEADS,
        ruled: MODS,
    };
    const THREADS: u32 = DecodeTile::of_kernel::<C, K_STEPS, V_STEPS>().threads();

    #[inline(always)]
    unsafe fn run<G: Gpu>(gpu: G, params: &DecodeParams) {
        // SAFETY: launched as `decode_gqa` asks, on tensors of its shapes: the contract of `Kernel::run`.
        unsafe { decode_gqa::<G, C, K_STEPS, V_STEPS, HEAD_TILES, MODS>(gpu, params) }
    }
}
