//! What a schedule consists of, and how those read it who attend by it: see [`crate::attention::schedule`].

use crate::gpu::Gpu;

/// Where a run ends and the next one begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// The sequence that the next run begins with.
    pub seq: u32,
    /// Tokens of it, counted from the first that it sees, that belong to runs before: a multiple of the tile.
    pub token: u32,
    /// If there are any: the run that has the sequence's first part.
    pub first_run: u32,
    /// If there are any: its parts, each of a run of its own, one after the other; else 0.
    pub num_parts: u32,
}

impl Cut {
    /// Bytes in memory.
    pub const BYTES: u64 = 16;

    /// Cut `index` of those at `cuts`.
    ///
    /// # Safety
    /// It is readable.
    #[inline(always)]
    pub(crate) unsafe fn load<G: Gpu>(gpu: G, cuts: u64, index: u32) -> Self {
        // SAFETY: this function's contract; cuts are as aligned as the tensor: the host's check.
        let [seq, token, first_run, num_parts] =
            unsafe { gpu.ld_global_b128(cuts + Self::BYTES * index as u64) };
        Self {
            seq,
            token,
            first_run,
            num_parts,
        }
    }
}

/// What a thread block attends to: tokens of a sequence, counted from the first group of tokens that it sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Item {
    /// Which; none if there is no such sequence.
    pub seq: u32,
    /// The first token.
    pub from: u32,
    /// One past the last token; or the sequence ends before.
    pub to: u32,
    /// The workspace's part for them, if they are not all that the sequence sees.
    pub part: u32,
}

impl Item {
    /// Bytes in memory.
    pub const BYTES: u64 = 16;

    /// Nothing.
    pub(crate) const NONE: Self = Self {
        seq: u32::MAX,
        from: 0,
        to: 0,
        part: 0,
    };

    /// Split `split` of sequence `seq`, if there are no `items`; else item `split` of them.
    ///
    /// # Safety
    /// `items` is 0, or the item is readable.
    #[inline(always)]
    pub(crate) unsafe fn of<G: Gpu>(
        gpu: G,
        items: u64,
        (seq, split): (u32, u32),
        (split_len, num_kv_splits): (u32, u32),
    ) -> Self {
        if items == 0 {
            let from = split * split_len;
            return Self {
                seq,
                from,
                to: from + split_len,
                part: seq * num_kv_splits + split,
            };
        }
        // SAFETY: this function's contract; items are as aligned as the tensor: the host's check.
        let [seq, from, to, part] =
            unsafe { gpu.ld_global_b128(items + Self::BYTES * split as u64) };
        Self {
            seq,
            from,
            to,
            part,
        }
    }

    /// Its tokens, of a sequence of `seq_len`, of which the first group that is seen begins at `first`.
    #[inline(always)]
    pub(crate) fn tokens(self, first: u32, seq_len: u32) -> (u32, u32) {
        (
            first.saturating_add(self.from),
            seq_len.min(first.saturating_add(self.to)),
        )
    }

    /// Whether it begins with the first group that is seen.
    #[inline(always)]
    pub(crate) fn is_first(self) -> bool {
        self.from == 0
    }
}
