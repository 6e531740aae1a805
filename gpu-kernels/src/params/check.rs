//! Arguments of the device-side checks, and the record in which they report.

use super::KernelParams;

/// What a check found, in device memory: the first fault that was claimed, or `kind` 0.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CheckFault {
    /// 0: none; else one of the constants of this type.
    pub kind: u32,
    /// Sequence, or token for a slot.
    pub row: u32,
    /// Position within the row (block index); 0 where there is none.
    pub position: u32,
    /// Zero; keeps `value` aligned.
    pub reserved: u32,
    /// What was found.
    pub value: i64,
    /// What it had to stay below.
    pub limit: i64,
}

impl CheckFault {
    /// A sequence length below zero or above what its block-table row can name.
    pub const SEQ_LEN: u32 = 1;
    /// A block id outside the cache.
    pub const BLOCK_ID: u32 = 2;
    /// A slot outside the cache.
    pub const SLOT: u32 = 3;
    /// A scale that is not positive and finite: `row` 0, 1, 2 is q, k, v, `position` the head, `value` the
    /// bits.
    pub const SCALE: u32 = 4;
    /// An index of a gather that names a slot outside the cache.
    pub const INDEX: u32 = 5;
    /// Query tokens of a sequence that begin before 0, end before they begin, or end past the last: `position` is the
    /// end, an i32, `value` the beginning.
    pub const QUERY_START: u32 = 6;
    /// More query tokens in a sequence than the host said.
    pub const QUERY_LEN: u32 = 7;
}

const _: () = assert!(size_of::<CheckFault>() == 32);

/// Arguments of `check_paged`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct CheckPagedParams {
    /// `[num_seqs, max_num_blocks_per_seq]`, i32.
    pub block_table: u64,
    /// `[num_seqs]`, i32.
    pub seq_lens: u64,
    /// One [`CheckFault`], all zero before the launch.
    pub check: u64,
    /// Elements from a row of the block table to the next.
    pub stride_block_table: i64,
    /// Elements from a sequence's length to the next one's.
    pub stride_seq_lens: i64,
    /// Blocks in the cache.
    pub num_blocks: i64,
    /// Sequences.
    pub num_seqs: u32,
    /// Tokens per cache block.
    pub block_size: u32,
    /// Tokens that a row of the block table can name.
    pub max_seq_len: u32,
    /// KV heads.
    pub num_kv_heads: u32,
    /// As in [`super::DecodeParams`]; 0 if there is none.
    pub q_scale: u64,
    /// As `q_scale`.
    pub k_scale: u64,
    /// As `q_scale`.
    pub v_scale: u64,
    /// As in [`super::DecodeParams`].
    pub stride_k_scale: i64,
    /// As in [`super::DecodeParams`].
    pub stride_v_scale: i64,
    /// `[num_seqs + 1]`, i32, contiguous: first query token of each sequence; 0 if there is none to check.
    pub query_start_loc: u64,
    /// Query tokens, all sequences.
    pub num_tokens: u32,
    /// The most query tokens of a sequence.
    pub max_query_len: u32,
}

const _: () = assert!(size_of::<CheckPagedParams>() == 12 * 8 + 6 * 4);
// SAFETY: repr(C), Copy; the size above is the sum of the fields, so there is no padding.
unsafe impl KernelParams for CheckPagedParams {}

/// Arguments of `check_slots`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct CheckSlotsParams {
    /// `[num_layers, num_tokens]`, i64.
    pub slot_mapping: u64,
    /// One [`CheckFault`], all zero before the launch.
    pub check: u64,
    /// `num_blocks * block_size`: slots stay below it.
    pub num_slots: i64,
    /// Bytes from a layer's slots to the next layer's; the layer is the grid's y.
    pub stride_layer: i64,
    /// Tokens.
    pub num_tokens: u32,
    /// Zero; keeps the size a multiple of 8.
    pub reserved: u32,
}

const _: () = assert!(size_of::<CheckSlotsParams>() == 4 * 8 + 2 * 4);
// SAFETY: repr(C), Copy; the size above is the sum of the fields, so there is no padding.
unsafe impl KernelParams for CheckSlotsParams {}
