//! Arguments of `decode_mla`.

use crate::params::KernelParams;

/// Arguments of `decode_mla`. A row is one query head of one query token: row `r` of a sequence is head
/// `r % num_query_heads` of token `r / num_query_heads`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct DecodeMlaParams {
    /// `[num_seqs, query_len, num_query_heads, head_size]`, the cache's dtype, or `query_dtype` if that is FP8.
    pub query: u64,
    /// `[num_blocks, block_size, head_size]`, the entry's cache dtype; values are the first columns.
    pub cache: u64,
    /// `[num_seqs, max_num_blocks_per_seq]`, i32; entries past a sequence's last block are not read.
    pub block_table: u64,
    /// `[num_seqs]`, i32, the query tokens included; zero and below mean an empty sequence.
    pub seq_lens: u64,
    /// `[num_seqs, query_len, num_query_heads, head_size_v]`, the cache's dtype, or `out_dtype` if that is FP8.
    pub out: u64,
    /// `[num_seqs, query_len, num_query_heads]`, f32, natural logarithm; 0 if not wanted.
    pub lse: u64,
    /// `[parts, rows, head_size_v]`, f32, each part normalised by itself: `num_kv_splits` for each sequence, or two for
    /// each run.
    pub partial_out: u64,
    /// `[parts, rows]`, each an [`Lse`](crate::attention::lse::Lse); those of splits past a sequence's end are not written.
    pub partial_lse: u64,
    /// One f32 that an FP8 query was divided by; 0 for 1. The scales are only read if the cache is FP8.
    pub q_scale: u64,
    /// One f32 that the cache was divided by.
    pub k_scale: u64,
    /// A [`super::CheckFault`] that stops the launch if it holds a fault; 0 if nothing was checked.
    pub check: u64,
    /// An [`Item`](crate::attention::item::Item) for each y of the grid; 0 if y are splits.
    pub items: u64,
    /// From a sequence's query to the next one's.
    pub stride_query_seq: i64,
    /// From a query token to the next.
    pub stride_query_token: i64,
    /// From a query head to the next.
    pub stride_query_head: i64,
    /// From a block to the next.
    pub stride_cache_block: i64,
    /// From a token to the next in the block; eight of them fit 32 bits.
    pub stride_cache_slot: i64,
    /// From a sequence's row of the block table to the next.
    pub stride_block_table: i64,
    /// From a sequence's length to the next one's.
    pub stride_seq_lens: i64,
    /// From a sequence's output to the next one's.
    pub stride_out_seq: i64,
    /// From a query token's output to the next one's.
    pub stride_out_token: i64,
    /// From an output head to the next.
    pub stride_out_head: i64,
    /// From a sequence's lse to the next one's.
    pub stride_lse_seq: i64,
    /// From a query token's lse to the next one's.
    pub stride_lse_token: i64,
    /// From a head's lse to the next head's.
    pub stride_lse_head: i64,
    /// Query heads.
    pub num_query_heads: u32,
    /// Query tokens per sequence, the last ones of the sequence: each sees itself and those before.
    pub query_len: u32,
    /// Tokens per cache block, a multiple of 8.
    pub block_size: u32,
    /// Tokens that a row of the block table can name; longer `seq_lens` are cut to it.
    pub max_seq_len: u32,
    /// Tokens per split, a multiple of the thread block's tile.
    pub split_len: u32,
    /// Splits of the longest sequence, or runs.
    pub num_kv_splits: u32,
    /// Tiles in the ring of shared memory.
    pub stages: u32,
    /// `softmax_scale * log2 e`.
    pub qk_scale_log2: f32,
    /// If the cache is FP8: a [`crate::dtype::QueryDtype`].
    pub query_dtype: u32,
    /// If the cache is FP8: a [`crate::dtype::QueryDtype`], of 16 bits.
    pub out_dtype: u32,
    /// Sequences: what the items are held to.
    pub num_seqs: u32,
    /// Zero; keeps the size a multiple of 8.
    pub reserved: u32,
}

const _: () = assert!(size_of::<DecodeMlaParams>() == 12 * 8 + 13 * 8 + 12 * 4);
// SAFETY: repr(C), Copy; the size above is the sum of the fields, so there is no padding.
unsafe impl KernelParams for DecodeMlaParams {}
