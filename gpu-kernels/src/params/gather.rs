//! Arguments of the gathers.

use crate::gpu::fast_divmod::FastDivmod;
use crate::params::KernelParams;

/// Arguments of `gather_*` and `check_gather`.
///
/// Which token goes to row `r` of the output, by [`GatherParams::mode`]:
/// - `RAGGED`: row `r` of sequence `s` with `row_starts[s] <= r < row_starts[s + 1]` is token
///   `r - row_starts[s] + first_tokens[s]`.
/// - `PADDED`: row `i = r % rows_per_seq` of sequence `s = r / rows_per_seq`, if `i < lens[s]`, is token
///   `first_tokens[s] - lens[s] + i`: the last `lens[s]` of `first_tokens[s]` tokens.
/// - `INDICES`: token `indices[r]` of sequence `s = seqs[r / rows_per_seq]`; without a block table, slot
///   `indices[r]`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct GatherParams {
    /// The cache: `[num_blocks, block_size, row]`, or V4's `[num_blocks]` pages.
    pub cache: u64,
    /// `[num_rows, row]`; in `PADDED` row `s, i` is at `s * stride_out_seq + i * stride_out_row`.
    pub out: u64,
    /// `[1]`, f32: what the stored FP8 values were divided by; 0 if the form has scales of its own or none.
    pub scale: u64,
    /// `[num_seqs, max_num_blocks_per_seq]`, i32; 0 if `indices` are slots.
    pub block_table: u64,
    /// `RAGGED`: row starts, i32, `[num_seqs + 1]`. `PADDED`: lens, i32, `[num_seqs]`; 0 to take
    /// `first_tokens`. `INDICES`: indices, i32, `[num_rows]`.
    pub rows: u64,
    /// `RAGGED`: first token of each sequence, i32, `[num_seqs]`; 0 if all begin with token 0. `PADDED`:
    /// sequence lengths. `INDICES`: sequence of each `rows_per_seq` rows, i32; 0 if they are in order.
    pub seqs: u64,
    /// A [`super::CheckFault`] that stops the launch if it holds a fault; 0 if nothing was checked.
    pub check: u64,
    /// From a block of the cache to the next.
    pub stride_cache_block: i64,
    /// From a slot to the next in its block; V4: unused.
    pub stride_cache_slot: i64,
    /// From a row of the output to the next.
    pub stride_out_row: i64,
    /// `PADDED`: from a sequence's rows to the next sequence's.
    pub stride_out_seq: i64,
    /// From a sequence's row of the block table to the next.
    pub stride_block_table: i64,
    /// Rows.
    pub num_rows: u32,
    /// Sequences.
    pub num_seqs: u32,
    /// See the struct.
    pub rows_per_seq: FastDivmod,
    /// One of the constants of this type.
    pub mode: u32,
    /// Tokens per cache block.
    pub block_size: FastDivmod,
    /// Blocks in the cache: others are skipped.
    pub num_blocks: u32,
    /// Entries of a row of the block table: tokens beyond are skipped.
    pub max_num_blocks_per_seq: u32,
    /// 1 if rows without a token get zeros, 0 if they stay as they are.
    pub zero_missing: u32,
    /// Copy: bytes of a unit, a power of two up to 16 to which everything is aligned. Scaled: values of a
    /// unit, 8 or 1.
    pub unit: u32,
    /// Units per row.
    pub row_units: u32,
}

impl GatherParams {
    /// See the struct.
    pub const RAGGED: u32 = 0;
    /// See the struct.
    pub const PADDED: u32 = 1;
    /// See the struct.
    pub const INDICES: u32 = 2;
}

const _: () = assert!(size_of::<GatherParams>() == 12 * 8 + 14 * 4);
// SAFETY: repr(C), Copy; the size above is the sum of the fields, so there is no padding.
unsafe impl KernelParams for GatherParams {}
