//! What a schedule consists of, and how those read it who attend by it: see [`crate::attention::schedule`].

use crate::attention::tile::TILE_GROUP;
use crate::gpu::Gpu;

/// A sequence of several parts: what is merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MergeItem {
    /// Which.
    pub seq: u32,
    /// The workspace's part that is the first.
    pub first_part: u32,
    /// How many parts there are.
    pub num_parts: u32,
    /// From a part to the next one: 1; or 2 between those that begin runs, of which the first is the second part of the run
    /// before, so that the next one lies beside it.
    pub step: u32,
}

impl MergeItem {
    /// Bytes in memory.
    pub const BYTES: u64 = 16;

    /// Of the sequence in which cuts `first` to `last` lie, without the latter.
    #[inline(always)]
    pub(crate) fn of(seq: u32, first: u32, last: u32) -> Self {
        Self {
            seq,
            first_part: 2 * first - 1,
            num_parts: last - first + 1,
            step: 2,
        }
    }

    /// Stores how many there are at `merges`, ahead of them.
    ///
    /// # Safety
    /// There is room for it, and no other thread stores it.
    #[inline(always)]
    pub(crate) unsafe fn store_count<G: Gpu>(gpu: G, merges: u64, count: u32) {
        // SAFETY: this function's contract; as aligned as the tensor: the host's check.
        unsafe { gpu.st_global_b128(merges, [count, 0, 0, 0]) };
    }

    /// How many there are at `merges`.
    ///
    /// # Safety
    /// It is readable.
    #[inline(always)]
    pub(crate) unsafe fn load_count<G: Gpu>(gpu: G, merges: u64) -> u32 {
        // SAFETY: this function's contract; as aligned as the tensor: the host's check.
        unsafe { gpu.ld_global_b32(merges) }
    }

    /// Stores it as number `index` of those at `merges`.
    ///
    /// # Safety
    /// There is room for it, and no other thread stores it.
    #[inline(always)]
    pub(crate) unsafe fn store<G: Gpu>(self, gpu: G, merges: u64, index: u32) {
        let words = [self.seq, self.first_part, self.num_parts, self.step];
        // SAFETY: this function's contract; as aligned as the tensor: the host's check.
        unsafe { gpu.st_global_b128(merges + Self::BYTES * (index as u64 + 1), words) };
    }

    /// Number `index` of those at `merges`.
    ///
    /// # Safety
    /// It is readable.
    #[inline(always)]
    pub(crate) unsafe fn load<G: Gpu>(gpu: G, merges: u64, index: u32) -> Self {
        // SAFETY: this function's contract; as aligned as the tensor: the host's check.
        let [seq, first_part, num_parts, step] =
            unsafe { gpu.ld_global_b128(merges + Self::BYTES * (index as u64 + 1)) };
        Self {
            seq,
            first_part,
            num_parts,
            step,
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
        // Whatever it says, nothing is read or written that there is not: groups of tokens lie in one block, and runs have
        // two parts each.
        Self {
            seq,
            from: from / TILE_GROUP * TILE_GROUP,
            to,
            part: part.min(2 * num_kv_splits - 1),
        }
    }

    /// Stores it as number `index` of those at `items`.
    ///
    /// # Safety
    /// There is room for it, and no other thread stores it.
    #[inline(always)]
    pub(crate) unsafe fn store<G: Gpu>(self, gpu: G, items: u64, index: u32) {
        let words = [self.seq, self.from, self.to, self.part];
        // SAFETY: this function's contract; as aligned as the tensor: the host's check.
        unsafe { gpu.st_global_b128(items + Self::BYTES * index as u64, words) };
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
