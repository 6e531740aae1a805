//! Arguments of `decode_gqa`.

use crate::params::{KernelParams, ScoreParams};

/// Arguments of `decode_gqa`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct DecodeParams {
    /// `[num_seqs, num_query_heads, head_size]`, the cache's dtype, or `query_dtype` if that is FP8.
    pub query: u64,
    /// `[num_blocks, block_size, num_kv_heads, head_size]`, the entry's cache dtype.
    pub key_cache: u64,
    /// `[num_blocks, block_size, num_kv_heads, head_size_v]`, the entry's cache dtype.
    pub value_cache: u64,
    /// `[num_seqs, max_num_blocks_per_seq]`, i32; entries past a sequence's last block are not read.
    pub block_table: u64,
    /// `[num_seqs]`, i32; zero and below mean an empty sequence.
    pub seq_lens: u64,
    /// `[num_seqs, num_query_heads, head_size_v]`, the cache's dtype, or `out_dtype` if that is FP8.
    pub out: u64,
    /// `[num_seqs, num_query_heads]`, f32, natural logarithm; 0 if not wanted.
    pub lse: u64,
    /// `[parts, num_query_heads, head_size_v]`, f32, each part normalised by itself: `num_kv_splits` for each sequence, or
    /// two for each run.
    pub partial_out: u64,
    /// `[parts, num_query_heads]`, each an [`Lse`](crate::attention::lse::Lse); those of splits past a sequence's end are
    /// not written.
    pub partial_lse: u64,
    /// One f32 that an FP8 query was divided by; 0 for 1. The scales are only read if the cache is FP8.
    pub q_scale: u64,
    /// What keys were divided by: `[num_kv_heads]` f32, or one (stride 0); or, in a format with a scale per
    /// token, `[num_blocks, block_size, num_kv_heads]`.
    pub k_scale: u64,
    /// As `k_scale`, for values.
    pub v_scale: u64,
    /// A [`super::CheckFault`] that stops the launch if it holds a fault; 0 if nothing was checked.
    pub check: u64,
    /// `[num_seqs + 1]`, i32, contiguous: the row of `query`, `out` and `lse` that each sequence has, none if the next
    /// one's is the same; 0 if every sequence has its own number. Only kernels with score mods look at it.
    pub query_start_loc: u64,
    /// An [`Item`](crate::attention::item::Item) for each y of the grid; 0 if y are splits.
    pub items: u64,
    /// What becomes of products; of kernels without score mods only the scale is looked at.
    pub score: ScoreParams,
    /// From a sequence's query to the next one's.
    pub stride_query_seq: i64,
    /// From a query head to the next.
    pub stride_query_head: i64,
    /// From a block of keys to the next.
    pub stride_key_block: i64,
    /// From a token's key to the next in the block; eight of them fit 32 bits.
    pub stride_key_slot: i64,
    /// From a head's key to the next head's.
    pub stride_key_head: i64,
    /// As `stride_key_block`, for values.
    pub stride_value_block: i64,
    /// As `stride_key_slot`, for values.
    pub stride_value_slot: i64,
    /// As `stride_key_head`, for values.
    pub stride_value_head: i64,
    /// From a sequence's row of the block table to the next.
    pub stride_block_table: i64,
    /// From a sequence's length to the next one's.
    pub stride_seq_lens: i64,
    /// From a sequence's output to the next one's.
    pub stride_out_seq: i64,
    /// From an output head to the next.
    pub stride_out_head: i64,
    /// From a sequence's lse to the next one's.
    pub stride_lse_seq: i64,
    /// From a head's lse to the next head's.
    pub stride_lse_head: i64,
    /// From a KV head's `k_scale` to the next head's; 0 if they share one.
    pub stride_k_scale: i64,
    /// As `stride_k_scale`, for values.
    pub stride_v_scale: i64,
    /// From a block's scales of keys to the next block's, in a format with a scale per token.
    pub stride_k_scale_block: i64,
    /// From a token's scale to the next in its block.
    pub stride_k_scale_slot: i64,
    /// As `stride_k_scale_block`, for values.
    pub stride_v_scale_block: i64,
    /// As `stride_k_scale_slot`, for values.
    pub stride_v_scale_slot: i64,
    /// Query heads, all groups.
    pub num_query_heads: u32,
    /// Query heads that share a KV head.
    pub num_queries_per_kv: u32,
    /// Thread blocks that share out the query heads of one KV head.
    pub head_tiles: u32,
    /// Tokens per cache block, a multiple of 8.
    pub block_size: u32,
    /// Tokens that a row of the block table can name; longer `seq_lens` are cut to it.
    pub max_seq_len: u32,
    /// Tokens per split, a multiple of the thread block's tile.
    pub split_len: u32,
    /// Splits of the longest sequence, or runs.
    pub num_kv_splits: u32,
    /// If the cache is FP8: a [`crate::dtype::QueryDtype`].
    pub query_dtype: u32,
    /// If the cache is FP8: a [`crate::dtype::QueryDtype`], of 16 bits.
    pub out_dtype: u32,
    /// Rows of `query`: what `query_start_loc` is cut to.
    pub num_tokens: u32,
    /// Tiles that a warp's ring has room for, in kernels with score mods: no more than a split has tiles for a warp, so
    /// that more thread blocks fit on a multiprocessor if a window leaves them little to do.
    pub ring_tiles: u32,
    /// Sequences: what the items are held to.
    pub num_seqs: u32,
}

const _: () =
    assert!(size_of::<DecodeParams>() == 15 * 8 + size_of::<ScoreParams>() + 20 * 8 + 12 * 4);
// SAFETY: repr(C), Copy; the size above is the sum of the fields, so there is no padding.
unsafe impl KernelParams for DecodeParams {}
