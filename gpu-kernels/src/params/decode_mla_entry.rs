//! Arguments of `decode_mla_entry`.

use crate::gpu::fast_divmod::FastDivmod;
use crate::params::{DecodeMlaParams, KernelParams};

/// Arguments of `decode_mla_entry`. A thread block works on *positions*: without indices position `p` is token
/// `p` of the sequence; with indices, positions `0 .. lists[0].len` are the entries of the first list and those
/// after it the entries of the second.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct DecodeMlaEntryParams {
    /// Query, output, lengths and workspace. Its cache, its scales and their strides are not used.
    /// `block_table` may be 0 if there are indices: they are slots then, and tokens of the sequence else.
    /// `seq_lens` is 0 if there are indices; `max_seq_len` then is the number of positions.
    pub rows: DecodeMlaParams,
    /// The cache and what is attended to in it, and a second one; the second has `len` 0 if there is none.
    pub lists: [EntryList; 2],
    /// `[num_query_heads]`, f32, natural logarithm: `exp(sink)` is added to the softmax's denominator, and not
    /// to the lse; 0 if there are none.
    pub sink: u64,
    /// Query tokens that a thread block may take together: 1 if there are indices, which each has for itself,
    /// else all of a sequence.
    pub tokens_per_group: u32,
    /// Zero; keeps the size a multiple of 8.
    pub reserved: u32,
}

/// A cache, and which of its tokens a query token attends to.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct EntryList {
    /// `[num_blocks, block_size, 656]` bytes; V4: `[num_blocks]` pages. See [`crate::mla::cache_format`].
    pub cache: u64,
    /// `[num_seqs, query_len, len]`, i32; those below 0 or outside the cache are skipped. 0 for all tokens of
    /// the sequence.
    pub indices: u64,
    /// `[num_seqs, query_len]`, i32: how many of them count, the first ones; 0 if all do.
    pub lens: u64,
    /// From a block of the cache to the next.
    pub stride_block: i64,
    /// From a slot to the next in its block; V4: unused.
    pub stride_slot: i64,
    /// From a sequence's indices to the next one's.
    pub stride_indices_seq: i64,
    /// From a query token's indices to the next one's.
    pub stride_indices_token: i64,
    /// From a sequence's length to the next one's.
    pub stride_lens_seq: i64,
    /// From a query token's length to the next one's.
    pub stride_lens_token: i64,
    /// Tokens per cache block.
    pub block_size: FastDivmod,
    /// Slots of the cache.
    pub num_slots: u32,
    /// Indices of a query token.
    pub len: u32,
    /// Tokens that a row of the block table can name; indices beyond are skipped.
    pub num_tokens: u32,
}

const _: () = assert!(size_of::<EntryList>() == 9 * 8 + 6 * 4);
const _: () = assert!(
    size_of::<DecodeMlaEntryParams>()
        == size_of::<DecodeMlaParams>() + 2 * size_of::<EntryList>() + 8 + 2 * 4
);
// SAFETY: repr(C), Copy; the sizes above are the sums of the fields, so there is no padding.
unsafe impl KernelParams for DecodeMlaEntryParams {}
