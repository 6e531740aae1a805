//! Arguments of `merge_splits`.

use super::KernelParams;

/// Arguments of `merge_splits`. Strides count elements.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct MergeParams {
    /// `[num_seqs, num_query_heads, num_kv_splits, head_size_v]`, f32.
    pub partial_out: u64,
    /// `[num_seqs, num_query_heads, num_kv_splits]`, f32, base 2.
    pub partial_lse: u64,
    /// `[num_seqs]`, i32.
    pub seq_lens: u64,
    /// `[num_seqs, num_query_heads, head_size_v]`, bf16 or f16.
    pub out: u64,
    /// `[num_seqs, num_query_heads]`, f32, natural logarithm; 0 if not wanted.
    pub lse: u64,
    /// A [`super::CheckFault`] that stops the launch if it holds a fault; 0 if nothing was checked.
    pub check: u64,
    /// Elements from a sequence's length to the next one's.
    pub stride_seq_lens: i64,
    /// Elements from a sequence's output to the next one's.
    pub stride_out_seq: i64,
    /// Elements from an output head to the next.
    pub stride_out_head: i64,
    /// Elements from a sequence's lse to the next one's.
    pub stride_lse_seq: i64,
    /// Elements from a head's lse to the next head's.
    pub stride_lse_head: i64,
    /// Query heads.
    pub num_query_heads: u32,
    /// Values per output head, a multiple of 4.
    pub head_size_v: u32,
    /// As in the stage-1 launch.
    pub max_seq_len: u32,
    /// As in the stage-1 launch.
    pub split_len: u32,
    /// As in the stage-1 launch.
    pub num_kv_splits: u32,
    /// Zero; keeps the size a multiple of 8.
    pub reserved: u32,
}

const _: () = assert!(size_of::<MergeParams>() == 11 * 8 + 6 * 4);
// SAFETY: repr(C), Copy; the size above is the sum of the fields, so there is no padding.
unsafe impl KernelParams for MergeParams {}
