//! Where the asynchronous copies of a thread block read that nobody has waited for: nobody may write there.
//!
//! What other thread blocks write is a race with the read itself. Within one, a barrier may order the write after the
//! begin of a copy, but not after its end.
//!
//! Copies are many and writes meanwhile are few. So a copy only counts up and down; a write that meets a count asks
//! each lane.

use std::cell::Cell;

const COUNTS: usize = 1 << 10;

/// How many copies in flight read from each 16 bytes of global memory, or from others that share their count.
pub(super) struct Sources(Box<[Cell<u32>; COUNTS]>);

impl Default for Sources {
    fn default() -> Self {
        Self(Box::new([const { Cell::new(0) }; COUNTS]))
    }
}

impl Sources {
    /// A copy from `address` begins.
    #[inline]
    pub(super) fn begin(&self, address: u64) {
        let count = self.count(address);
        count.set(count.get() + 1);
    }

    /// Ends what [`Sources::begin`] began.
    #[inline]
    pub(super) fn end(&self, address: u64) {
        let count = self.count(address);
        count.set(count.get() - 1);
    }

    /// Whether a copy may read any of the 16 bytes around `address`; if not, surely none does.
    #[inline]
    pub(super) fn may_have(&self, address: u64) -> bool {
        self.count(address).get() != 0
    }

    #[inline]
    fn count(&self, address: u64) -> &Cell<u32> {
        &self.0[(address / 16) as usize % COUNTS]
    }
}
