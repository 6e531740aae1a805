//! Which tokens a sequence has, as its tensors say.

use crate::attention::mask::Visible;
use crate::gpu::Gpu;
use crate::params::MaskParams;

/// The length of sequence `seq`, between 0 and what its row of the block table can name.
///
/// # Safety
/// `seq_lens` has an element for `seq`.
#[inline(always)]
pub(crate) unsafe fn seq_len<G: Gpu>(
    gpu: G,
    seq_lens: u64,
    stride: i64,
    seq: u32,
    max: u32,
) -> u32 {
    // SAFETY: `seq_lens` has an element for `seq`: this function's contract.
    clamp_len(
        unsafe { gpu.ld_global_b32(seq_lens + seq as u64 * stride as u64) },
        max,
    )
}

/// A length as it is stored: a negative one (padding of a captured graph) is an empty sequence.
#[inline(always)]
pub(crate) fn clamp_len(seq_len: u32, max: u32) -> u32 {
    if (seq_len as i32) < 0 {
        0
    } else {
        seq_len.min(max)
    }
}

/// The first key that the last of `seq_len` tokens sees.
#[inline(always)]
pub(crate) fn first_key(seq_len: u32, mask: MaskParams) -> u32 {
    let visible = Visible::of_last(seq_len, mask);
    visible.first(visible.position(0))
}

/// The row of query, output and lse that sequence `seq` has; none if it has no query token.
///
/// # Safety
/// `query_start_loc` is 0, or holds the start of the sequence and of the next.
#[inline(always)]
pub(crate) unsafe fn query_row<G: Gpu>(
    gpu: G,
    query_start_loc: u64,
    num_tokens: u32,
    seq: u32,
) -> Option<u32> {
    if query_start_loc == 0 {
        return Some(seq);
    }
    let at = query_start_loc + 4 * seq as u64;
    // SAFETY: the start of the sequence and of the next: this function's contract.
    let (start, next) = unsafe { (gpu.ld_global_b32(at), gpu.ld_global_b32(at + 4)) };
    // A table that does not increase gives a sequence without tokens.
    (start < next.min(num_tokens)).then_some(start)
}
