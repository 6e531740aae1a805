//! Arguments of `prefill_gqa` and `merge_rows`.

use crate::gpu::fast_divmod::FastDivmod;
use crate::params::{KernelParams, ScoreParams};

/// Arguments of `prefill_gqa` and `merge_rows`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct PrefillParams {
    /// `[num_tokens, num_query_heads, head_size]`, the cache's dtype, or `query_dtype` if that is of bytes.
    pub query: u64,
    /// `[num_blocks, block_size, num_kv_heads, head_size]`, the entry's cache dtype.
    pub key_cache: u64,
    /// `[num_blocks, block_size, num_kv_heads, head_size_v]`, the entry's cache dtype.
    pub value_cache: u64,
    /// `[num_seqs, max_num_blocks_per_seq]`, i32; entries past a sequence's last block are not read.
    pub block_table: u64,
    /// `[num_seqs]`, i32; zero and below mean an empty sequence.
    pub seq_lens: u64,
    /// `[num_seqs + 1]`, i32, contiguous: first query token of each sequence.
    pub query_start_loc: u64,
    /// `[num_seqs]`, u8, contiguous: whether queries of each sequence see no key after their own; 0 if the flags of
    /// `score` say it for all.
    pub causal: u64,
    /// `[num_tokens, num_query_heads, head_size_v]`, of type `out_dtype`.
    pub out: u64,
    /// `[num_tokens, num_query_heads]`, f32, natural logarithm; 0 if not wanted.
    pub lse: u64,
    /// One f32 that an FP8 query was divided by; 0 for 1. The scales are only read if the cache is of bytes.
    pub q_scale: u64,
    /// What keys were divided by: `[num_kv_heads]` f32, or one (stride 0); or, in a format with a scale per
    /// token, `[num_blocks, block_size, num_kv_heads]`.
    pub k_scale: u64,
    /// As `k_scale`, for values.
    pub v_scale: u64,
    /// One f32 that the output is divided by before it is stored as FP8; read only then.
    pub output_scale: u64,
    /// `[num_tokens, num_query_heads, num_kv_splits, head_size_v]`, f32, each part normalised by itself; written
    /// only for rows of several parts.
    pub partial_out: u64,
    /// `[num_tokens, num_query_heads, num_kv_splits]`, each an [`Lse`](crate::attention::lse::Lse), without the sink.
    pub partial_lse: u64,
    /// A [`super::CheckFault`] that stops the launch if it holds a fault; 0 if nothing was checked.
    pub check: u64,
    /// What becomes of products.
    pub score: ScoreParams,
    /// From a token's query to the next one's.
    pub stride_query_token: i64,
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
    /// From a token's output to the next one's.
    pub stride_out_token: i64,
    /// From an output head to the next.
    pub stride_out_head: i64,
    /// From a token's lse to the next one's.
    pub stride_lse_token: i64,
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
    /// Query tokens, all sequences; `query_start_loc` is cut to it.
    pub num_tokens: u32,
    /// Sequences.
    pub num_seqs: u32,
    /// KV heads.
    pub num_kv_heads: u32,
    /// Divides by `num_queries_per_kv`.
    pub by_queries_per_kv: FastDivmod,
    /// Divides by `block_size`.
    pub by_block_size: FastDivmod,
    /// Query heads that share a KV head.
    pub num_queries_per_kv: u32,
    /// Tokens per cache block, a multiple of 8.
    pub block_size: u32,
    /// Tokens that a row of the block table can name; longer `seq_lens` are cut to it.
    pub max_seq_len: u32,
    /// Keys per split, a multiple of `tile_kv`: splits begin at multiples of it.
    pub split_len: u32,
    /// The most splits that the keys of a tile of rows lie in.
    pub num_kv_splits: u32,
    /// Values per value head.
    pub head_size_v: u32,
    /// Rows of a thread block.
    pub tile_rows: u32,
    /// Tokens of a KV tile.
    pub tile_kv: u32,
    /// Zero; keeps the size a multiple of 8.
    pub reserved: u32,
    /// If the cache is of bytes: a [`crate::dtype::QueryDtype`].
    pub query_dtype: u32,
    /// A [`crate::dtype::QueryDtype`].
    pub out_dtype: u32,
}

const _: () =
    assert!(size_of::<PrefillParams>() == 16 * 8 + size_of::<ScoreParams>() + 20 * 8 + 20 * 4);
// SAFETY: repr(C), Copy; the size above is the sum of the fields, so there is no padding.
unsafe impl KernelParams for PrefillParams {}
