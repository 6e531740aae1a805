//! Arguments of the kernels that move whole blocks of a cache.

use crate::gpu::fast_divmod::FastDivmod;
use crate::params::KernelParams;

/// Arguments of `copy_blocks` and `check_pairs`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct CopyBlocksParams {
    /// `[num_caches]`, u64: the addresses of the sources; 0 if there is one cache, at `source`.
    pub source_table: u64,
    /// The same of the targets.
    pub target_table: u64,
    /// `[num_blocks, block]`, if there is no table.
    pub source: u64,
    /// As `source`.
    pub target: u64,
    /// `[num_pairs, 2]`, i64: block of the source, block of the target; negative ones are skipped.
    pub pairs: u64,
    /// A [`super::CheckFault`] that stops the launch if it holds a fault; 0 if nothing was checked.
    pub check: u64,
    /// From a block of a source to the next.
    pub stride_source: i64,
    /// From a block of a target to the next.
    pub stride_target: i64,
    /// From a pair to the next.
    pub stride_pairs: i64,
    /// Blocks of a source: others are skipped.
    pub num_blocks_source: u32,
    /// Blocks of a target: others are skipped.
    pub num_blocks_target: u32,
    /// Bytes of a unit, a power of two up to 16 to which everything is aligned.
    pub unit: u32,
    /// Units of a block.
    pub units: u32,
    /// Pairs.
    pub num_pairs: u32,
    /// Caches of a table; 1 if there is none.
    pub num_caches: u32,
}

const _: () = assert!(size_of::<CopyBlocksParams>() == 9 * 8 + 6 * 4);
// SAFETY: repr(C), Copy; the size above is the sum of the fields, so there is no padding.
unsafe impl KernelParams for CopyBlocksParams {}

/// Arguments of `compact_mark`, `compact_number`, `compact_rename` and `check_compact`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct CompactParams {
    /// Which blocks are wanted: `[num_rows, max_num_blocks_per_seq]` block ids, or `[num_rows]` slots; i32.
    pub references: u64,
    /// `[num_rows]`, i32: tokens of each row of block ids; 0 if `references` are slots.
    pub seq_lens: u64,
    /// The references by their new names, shaped as they are.
    pub renamed: u64,
    /// `[num_blocks]`, u32: 1 for blocks that are wanted; zeros before the first launch.
    pub marks: u64,
    /// `[num_blocks]`, i32: the new id of each block that is wanted, −1 past the compact cache's end.
    pub new_ids: u64,
    /// `[num_compact_blocks]`, i32: the block that each new id stands for, −1 past the last one.
    pub old_ids: u64,
    /// `[1]`, i32: how many blocks are wanted.
    pub num_wanted: u64,
    /// A [`super::CheckFault`] that stops the launch if it holds a fault; 0 if nothing was checked.
    pub check: u64,
    /// From a row of `references` to the next.
    pub stride_references: i64,
    /// From a row of `renamed` to the next.
    pub stride_renamed: i64,
    /// Rows of block ids, or slots.
    pub num_rows: u32,
    /// Block ids per row. Of slots, how many share their first index, by which the check names them; 0 if they have but
    /// one index.
    pub max_num_blocks_per_seq: u32,
    /// Tokens per block.
    pub block_size: FastDivmod,
    /// Blocks in the cache: others are nobody's.
    pub num_blocks: u32,
    /// Blocks in the compact cache.
    pub num_compact_blocks: u32,
    /// Zero; keeps the size a multiple of 8.
    pub reserved: u32,
}

const _: () = assert!(size_of::<CompactParams>() == 10 * 8 + 8 * 4);
// SAFETY: repr(C), Copy; the size above is the sum of the fields, so there is no padding.
unsafe impl KernelParams for CompactParams {}
