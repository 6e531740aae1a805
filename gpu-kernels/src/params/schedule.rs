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
    /// How many [`MergeItem`](crate::attention::item::MergeItem)s there are, and these, each 16 bytes: up to
    /// [`most_merges`](crate::attention::schedule::most_merges).
    pub merges: u64,
    /// `[num_runs + num_seqs]`, each an [`Item`](crate::attention::item::Item).
    pub items: u64,
    /// `[num_seqs + 1]`, u64: scratch, where each sequence begins on the line, if shared memory has no room for it.
    pub line: u64,
    /// From a sequence's length to the next one's.
    pub stride_seq_lens: i64,
    /// Sequences.
    pub num_seqs: u32,
    /// As in the launches that read the items.
    pub num_tokens: u32,
    /// As in the launches that read the items.
    pub max_seq_len: u32,
    /// Runs, at least 1.
    pub num_runs: u32,
    /// Tokens that a thread block takes at a time: what parts are multiples of.
    pub tile_len: u32,
    /// What a sequence costs beside its tokens, in tiles; at least 1.
    pub ends: u32,
    /// Fewest tiles of a part, at least 1.
    pub least_tiles: u32,
    /// What merging costs, in tiles; and how many parts of a sequence cost a tile more, at least 1.
    pub merge_tiles: u32,
    /// See [`ScheduleParams::merge_tiles`].
    pub parts_per_tile: u32,
    /// As in the launches that read the items.
    pub mask: MaskParams,
    /// Zero; keeps the size a multiple of 8.
    pub reserved: [u32; MaskParams::reserved(9)],
}

const _: () = assert!(
    size_of::<ScheduleParams>()
        == 6 * 8 + size_of::<MaskParams>() + (9 + MaskParams::reserved(9)) * 4
);
// SAFETY: repr(C), Copy; the size above is the sum of the fields, so there is no padding.
unsafe impl KernelParams for ScheduleParams {}
