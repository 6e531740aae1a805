//! Arguments of `schedule`.

use crate::params::{KernelParams, MaskParams};

/// Arguments of `schedule`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ScheduleParams {
    /// `[num_seqs]`, i32; zero and below mean an empty sequence.
    pub seq_lens: u64,
    /// `[num_seqs + 1]`, i32, contiguous, or 0: as in [`super::DecodeParams`].
    pub query_start_loc: u64,
    /// `[num_runs + 1]`, each a [`Cut`](crate::attention::item::Cut).
    pub cuts: u64,
    /// `[num_runs + num_seqs]`, each an [`Item`](crate::attention::item::Item).
    pub items: u64,
    /// `[num_seqs + 1]`, u64: scratch, where each sequence begins on the line.
    pub line: u64,
    /// From a sequence's length to the next one's.
    pub stride_seq_lens: i64,
    /// Sequences.
    pub num_seqs: u32,
    /// As in the launches that read the cuts.
    pub num_tokens: u32,
    /// As in the launches that read the cuts.
    pub max_seq_len: u32,
    /// Runs, at least 1.
    pub num_runs: u32,
    /// Tokens that a thread block takes at a time: what cuts are multiples of.
    pub tile_len: u32,
    /// What a sequence costs beside its tokens, in tiles; at least 1.
    pub ends: u32,
    /// Fewest tiles of a part, at least 1.
    pub least_tiles: u32,
    /// As in the launches that read the cuts.
    pub mask: MaskParams,
    /// Zero; keeps the size a multiple of 8.
    pub reserved: [u32; MaskParams::reserved(7)],
}

const _: () = assert!(
    size_of::<ScheduleParams>()
        == 6 * 8 + size_of::<MaskParams>() + (7 + MaskParams::reserved(7)) * 4
);
// SAFETY: repr(C), Copy; the size above is the sum of the fields, so there is no padding.
unsafe impl KernelParams for ScheduleParams {}
