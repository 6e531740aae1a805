//! Arguments of `merge_few`, `merge_splits`, `merge_many` and `merge_scheduled`.

use crate::params::{KernelParams, MaskParams};

/// Arguments of `merge_few`, `merge_splits`, `merge_many` and `merge_scheduled`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct MergeParams {
    /// `[parts, rows, head_size_v]`, f32, as in the stage-1 launch; a row is one query head of one query token.
    pub partial_out: u64,
    /// `[parts, rows]`, each an [`Lse`](crate::attention::lse::Lse).
    pub partial_lse: u64,
    /// Of `merge_scheduled`: how many [`MergeItem`](crate::attention::item::MergeItem)s that one has, and these,
    /// each 16 bytes.
    pub merges: u64,
    /// `[num_seqs]`, i32; 0 if all are `max_seq_len`.
    pub seq_lens: u64,
    /// `[num_seqs, query_len, num_query_heads, head_size_v]`, bf16 or f16.
    pub out: u64,
    /// `[num_seqs, query_len, num_query_heads]`, f32, natural logarithm; 0 if not wanted.
    pub lse: u64,
    /// A [`super::CheckFault`] that stops the launch if it holds a fault; 0 if nothing was checked.
    pub check: u64,
    /// `[num_query_heads]`, f32, natural logarithm: `exp(sink)` is added to the softmax's denominator; 0 if there
    /// are none.
    pub sink: u64,
    /// As in the stage-1 launch, if it has one; else 0.
    pub query_start_loc: u64,
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
    /// Rows: query tokens of a sequence times query heads.
    pub num_rows: u32,
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
    /// What a query sees, as in the stage-1 launch: its splits begin where that does.
    pub mask: MaskParams,
    /// Whether the sink is added to the lse too.
    pub sink_in_lse: u32,
    /// As in the stage-1 launch.
    pub num_tokens: u32,
    /// As in the stage-1 launch.
    pub num_seqs: u32,
    /// Units of a thread block: 1 or [`MOST_UNITS`](crate::decode::merge::MOST_UNITS), as the host chose for
    /// `merge_scheduled`; the others know.
    pub units: u32,
    /// Thread blocks along y.
    pub ctas_y: u32,
    /// Zero; keeps the size a multiple of 8.
    pub reserved: [u32; MaskParams::reserved(11)],
}

const _: () = assert!(
    size_of::<MergeParams>()
        == 16 * 8 + size_of::<MaskParams>() + (11 + MaskParams::reserved(11)) * 4
);
// SAFETY: repr(C), Copy; the size above is the sum of the fields, so there is no padding.
unsafe impl KernelParams for MergeParams {}
