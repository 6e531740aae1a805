//! Which keys a query sees.
//!
//! A rule is written here once, as a range of keys. Where splits and tiles begin and end, which of them are masked, and
//! which entries of a block table are read and checked, all follow from it. Hence neither end of the range may go back
//! from a query to the next.

use crate::params::MaskParams;

/// The keys that the queries of one sequence see. Positions are signed: a sequence that is shorter than its
/// query begins before position 0.
#[derive(Clone, Copy, Debug)]
pub struct Visible {
    /// Keys of the sequence.
    pub seq_len: u32,
    /// Position of its first query token.
    pub context_len: i32,
    /// As in the parameters.
    pub mask: MaskParams,
    /// No key after the query's own.
    pub causal: bool,
}

impl Visible {
    /// What the one query token of a sequence sees: it is the last of `seq_len` tokens, so that nothing follows
    /// it.
    #[inline(always)]
    pub fn of_last(seq_len: u32, mask: MaskParams) -> Self {
        Self {
            seq_len,
            context_len: seq_len as i32 - 1,
            mask,
            causal: true,
        }
    }

    /// The position of query token `token`.
    #[inline(always)]
    pub fn position(self, token: u32) -> i32 {
        self.context_len + token as i32
    }

    /// The first key that the query at `position` may see.
    #[inline(always)]
    pub fn first(self, position: i32) -> u32 {
        match self.mask.sliding_window {
            0 => 0,
            window => (position - window as i32 + 1).max(0) as u32,
        }
    }

    /// One past the last key that the query at `position` sees.
    #[inline(always)]
    pub fn end(self, position: i32) -> u32 {
        let all = self.seq_len as i32;
        let end = match (self.causal, self.mask.sliding_window) {
            (true, _) => position + 1,
            (false, 0) => all,
            (false, window) => position + window as i32,
        };
        end.min(all).max(0) as u32
    }
}

/// [`Visible::first`] of a sequence's first query token, in 64 bits: for the check of lengths that may be anything.
#[inline(always)]
pub(crate) fn first_seen(seq_len: u32, query_len: u32, mask: MaskParams) -> u32 {
    let before = seq_len as i64 - query_len as i64 - mask.sliding_window as i64 + 1;
    if mask.sliding_window == 0 || before < 0 {
        0
    } else {
        before as u32
    }
}
