//! Arguments of `rope_and_cache_*`.

use crate::gpu::fast_divmod::FastDivmod;
use crate::params::{CacheSide, KernelParams};

/// Arguments of `rope_and_cache_*`. A unit of [`CacheSide`] is here an item, what one thread takes of a head:
/// two runs of `run` values.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct RopeAndCacheParams {
    /// Queries, from `[num_tokens or more, num_query_heads, head_size]` to rows like these: `token` is the
    /// slot in block 0. Without heads there are none.
    pub query: CacheSide,
    /// Keys.
    pub key: CacheSide,
    /// Values, which are not rotated.
    pub value: CacheSide,
    /// `[num_tokens]`, i64: `block * block_size + offset`; negative slots write nothing.
    pub slot_mapping: u64,
    /// `[num_tokens or more]`, i64: the row of the table for each token.
    pub positions: u64,
    /// `[num_positions, 2 * rotated pairs]`: cosines, then sines; f32 or the input's type.
    pub cos_sin: u64,
    /// A [`super::CheckFault`] that stops the launch if it holds a fault; 0 if nothing was checked.
    pub check: u64,
    /// From a position's row to the next one's.
    pub stride_cos_sin: i64,
    /// Bytes from a row's cosines to its sines.
    pub sines_at: u64,
    /// Rows of the table: other positions turn nothing.
    pub num_positions: u32,
    /// Tokens, the length of `slot_mapping`.
    pub num_tokens: u32,
    /// Tokens per cache block.
    pub block_size: FastDivmod,
    /// Values of a run: 8, if everything is aligned to them, else 1.
    pub run: u32,
    /// Runs of a query or key head.
    pub head_runs: u32,
    /// Runs of a value head.
    pub head_runs_v: u32,
    /// Items of a query or key head that are rotated, the first ones.
    pub rotated_items: u32,
    /// 1 if values 2i and 2i + 1 are rotated together (GPT-J), 0 if i and i + half (NeoX).
    pub is_interleaved: u32,
    /// 1 if the table is f32.
    pub table_is_f32: u32,
    /// Base-2 logarithm of the threads of a thread block that share a token.
    pub lanes_log2: u32,
}

const _: () = assert!(size_of::<RopeAndCacheParams>() == 3 * 128 + 6 * 8 + 12 * 4);
// SAFETY: repr(C), Copy; the size above is the sum of the fields, so there is no padding.
unsafe impl KernelParams for RopeAndCacheParams {}
