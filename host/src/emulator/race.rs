//! Who touched which bytes, and whether the lanes were ordered.
//!
//! Every granule of memory has a [`History`]: its last write, and a summary of the reads since. An access
//! is checked against both. Two accesses of one thread block are ordered if one thread made both, if a
//! `sync_cta` or a barrier that both warps come to lies between them, or, in one warp, a `sync_warp`. Thread blocks of
//! one launch are never ordered; launches always are.
//!
//! Time is one counter per thread block ([`Order`](super::order::Order)). So "was there a barrier since that access?"
//! is a comparison of the access's time with what the warp has seen.
//!
//! The summary of reads loses nothing that matters. A read that happened before a later read may be
//! forgotten, for whoever is ordered after the later one is ordered after both. Unordered reads join into
//! "several lanes of this warp", "several warps" or "several thread blocks", and whoever writes without
//! being ordered after all of them races with at least one. When each warp read is kept beside the history in shared
//! memory; of global memory, whose warps meet at `sync_cta` alone, the time of the last has to do.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use gpu_kernels::gpu::WARP;

use super::order::LAST_TICK;

/// Thread blocks that get numbers of their own before histories must be forgotten.
pub(super) const RUNS: u64 = 1 << 28;
const ATOMIC: u64 = 1;
const IN_FLIGHT: u64 = 2;

/// One access, in 64 bits: `run:28 | clock:20 | thread:10 | scope:2 | flags:4`. 0 is "never".
#[derive(Clone, Copy, PartialEq, Eq)]
struct Record(u64);

/// Whom a record stands for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Scope {
    Thread,
    Warp,
    Cta,
    Grid,
}

/// The lane that makes an access, and what its warp has seen.
#[derive(Clone, Copy)]
pub(super) struct Now<'o> {
    /// Number of the thread block among all that ever ran.
    pub(super) run: u64,
    /// Number of this launch's first thread block.
    pub(super) first_run: u64,
    /// Thread index in the thread block.
    pub(super) thread: u32,
    /// Time.
    pub(super) clock: u32,
    /// The accesses of each warp before these times happened before this one.
    pub(super) seen: &'o [Cell<u32>],
    /// The least of them.
    pub(super) seen_all: u32,
    /// One more than when each warp last read the granule, if several have; empty where that is not kept.
    pub(super) readers: &'o [Cell<u32>],
}

/// Another lane's access that is not ordered before this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Conflict {
    /// Its thread.
    pub(super) thread: u32,
    /// Its thread block, counted from the launch's first.
    pub(super) block: u64,
    /// What it did: "read", "wrote" or "changed atomically".
    pub(super) did: &'static str,
}

/// Somewhere to keep a record: plain for memory of one thread block, atomic for memory of all.
pub(super) trait Slot: Default {
    fn load(&self) -> u64;
    fn store(&self, value: u64);
    fn swap(&self, value: u64) -> u64;
    /// Stores `new` if the slot still holds `old`.
    fn replace(&self, old: u64, new: u64) -> bool;
}

/// The accesses to one granule that still matter.
#[derive(Default)]
pub(super) struct History<S> {
    write: S,
    read: S,
}

impl Now<'_> {
    /// For memory that each thread block has for itself: what others left there is no concern.
    #[inline]
    pub(super) fn alone(self) -> Self {
        Self {
            first_run: self.run,
            ..self
        }
    }

    /// Whether all that read the granule have done so before this.
    #[inline]
    fn is_after_readers(&self) -> bool {
        let mut both = self.readers.iter().zip(self.seen);
        !self.readers.is_empty() && both.all(|(read, seen)| read.get() <= seen.get())
    }
}

impl<S: Slot> History<S> {
    /// Checks and records a read.
    #[inline]
    pub(super) fn read(&self, now: &Now) -> Result<(), Conflict> {
        // First publish, then look: of two thread blocks at the same time, at least one sees the other.
        loop {
            let old = self.read.load();
            let joined = Record(old).joined(now);
            if old == joined.0 || self.read.replace(old, joined.0) {
                break;
            }
        }
        self.check_read(now)
    }

    /// Checks and records a write.
    #[inline]
    pub(super) fn write(&self, now: &Now) -> Result<(), Conflict> {
        let old = Record(self.write.swap(Record::of(now).0));
        old.check(now)?;
        Record(self.read.load()).check_as_read(now)
    }

    /// Checks and records an atomic read-modify-write; such accesses do not race with each other.
    pub(super) fn atomic(&self, now: &Now) -> Result<(), Conflict> {
        loop {
            let old = Record(self.write.load());
            let is_concurrent_atomic = old.0 & ATOMIC != 0 && old.run() >= now.first_run;
            if !is_concurrent_atomic {
                old.check(now)?;
            }
            let new = old.joined(now).0 | ATOMIC;
            if self.write.replace(old.0, new) {
                break;
            }
        }
        Record(self.read.load()).check_as_read(now)
    }

    /// Checks a read that is recorded elsewhere.
    #[inline]
    pub(super) fn check_read(&self, now: &Now) -> Result<(), Conflict> {
        Record(self.write.load()).check(now)
    }

    /// Checks a write that is recorded elsewhere.
    pub(super) fn check_write(&self, now: &Now) -> Result<(), Conflict> {
        self.check_read(now)?;
        Record(self.read.load()).check_as_read(now)
    }

    /// Checks and records the begin of an asynchronous write.
    #[inline]
    pub(super) fn begin_copy(&self, now: &Now) -> Result<(), Conflict> {
        self.write(now)?;
        self.write.store(Record::of(now).0 | IN_FLIGHT);
        Ok(())
    }

    /// Records that the lane has waited for its asynchronous write.
    #[inline]
    pub(super) fn end_copy(&self, now: &Now) {
        self.write.store(Record::of(now).0);
    }

    /// The thread whose asynchronous copy into this granule is in flight.
    #[inline]
    pub(super) fn in_flight(&self, now: &Now) -> Option<u32> {
        let write = Record(self.write.load());
        (write.0 & IN_FLIGHT != 0 && write.run() == now.run).then(|| write.thread())
    }

    /// Whether this thread block has written the granule.
    #[inline]
    pub(super) fn is_written(&self, now: &Now) -> bool {
        Record(self.write.load()).run() == now.run
    }

    /// As if never touched.
    pub(super) fn forget(&self) {
        self.write.store(0);
        self.read.store(0);
    }
}

impl Record {
    #[inline]
    fn new(run: u64, clock: u32, thread: u32, scope: Scope) -> Self {
        Self(run << 36 | u64::from(clock) << 16 | u64::from(thread) << 6 | (scope as u64) << 4)
    }
    #[inline]
    fn of(now: &Now) -> Self {
        Self::new(now.run, now.clock, now.thread, Scope::Thread)
    }
    #[inline]
    fn run(self) -> u64 {
        self.0 >> 36
    }
    #[inline]
    fn clock(self) -> u32 {
        (self.0 >> 16) as u32 & LAST_TICK
    }
    #[inline]
    fn thread(self) -> u32 {
        (self.0 >> 6) as u32 & 0x3ff
    }
    #[inline]
    fn scope(self) -> Scope {
        match self.0 >> 4 & 3 {
            0 => Scope::Thread,
            1 => Scope::Warp,
            2 => Scope::Cta,
            _ => Scope::Grid,
        }
    }
    #[inline]
    fn warp(self) -> usize {
        (self.thread() / WARP) as usize
    }

    /// Whether everything this record stands for happened before `now`.
    #[inline]
    fn is_ordered(self, now: &Now) -> bool {
        if self.run() < now.first_run {
            return true;
        }
        let scope = self.scope();
        if self.run() != now.run || scope == Scope::Grid {
            return false;
        }
        self.clock() < now.seen_all
            || self.clock() == LAST_TICK
            || (scope == Scope::Thread && self.thread() == now.thread)
            || (scope <= Scope::Warp && self.clock() < now.seen[self.warp()].get())
            || (scope == Scope::Cta && now.is_after_readers())
    }

    /// The record of this access too.
    #[inline]
    fn joined(self, now: &Now) -> Self {
        if self.is_ordered(now) {
            return Self::of(now);
        }
        let scope = if self.run() != now.run || self.scope() == Scope::Grid {
            Scope::Grid
        } else if self.scope() <= Scope::Warp && self.warp() == (now.thread / WARP) as usize {
            Scope::Warp
        } else {
            self.join_readers(now);
            Scope::Cta
        };
        Self::new(now.run, now.clock, now.thread, scope)
    }

    /// Several warps read: notes when.
    #[inline]
    fn join_readers(self, now: &Now) {
        if now.readers.is_empty() {
            return;
        }
        if self.scope() <= Scope::Warp {
            now.readers.iter().for_each(|read| read.set(0));
            now.readers[self.warp()].set(self.clock() + 1);
        }
        now.readers[(now.thread / WARP) as usize].set(now.clock + 1);
    }

    #[inline]
    fn check(self, now: &Now) -> Result<(), Conflict> {
        if self.is_ordered(now) {
            return Ok(());
        }
        let did = if self.0 & ATOMIC != 0 {
            "changed atomically"
        } else {
            "wrote"
        };
        Err(self.conflict(now, did))
    }

    #[inline]
    fn check_as_read(self, now: &Now) -> Result<(), Conflict> {
        if self.is_ordered(now) {
            return Ok(());
        }
        Err(self.conflict(now, "read"))
    }

    #[cold]
    fn conflict(self, now: &Now, did: &'static str) -> Conflict {
        Conflict {
            thread: self.thread(),
            block: self.run() - now.first_run,
            did,
        }
    }
}

impl Slot for Cell<u64> {
    #[inline]
    fn load(&self) -> u64 {
        self.get()
    }
    #[inline]
    fn store(&self, value: u64) {
        self.set(value);
    }
    #[inline]
    fn swap(&self, value: u64) -> u64 {
        Cell::replace(self, value)
    }
    #[inline]
    fn replace(&self, _old: u64, new: u64) -> bool {
        // Nobody else could have changed it.
        self.set(new);
        true
    }
}

impl Slot for AtomicU64 {
    #[inline]
    fn load(&self) -> u64 {
        AtomicU64::load(self, SeqCst)
    }
    #[inline]
    fn store(&self, value: u64) {
        AtomicU64::store(self, value, SeqCst);
    }
    #[inline]
    fn swap(&self, value: u64) -> u64 {
        AtomicU64::swap(self, value, SeqCst)
    }
    #[inline]
    fn replace(&self, old: u64, new: u64) -> bool {
        self.compare_exchange(old, new, SeqCst, SeqCst).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of two warps, one has seen the other up to `all`, and itself up to `own`.
    fn now(thread: u32, clock: u32, all: u32, own: u32) -> Now<'static> {
        let mut seen = [all; 2];
        seen[(thread / WARP) as usize] = own.max(all);
        Now {
            run: 7,
            first_run: 5,
            thread,
            clock,
            seen: Vec::leak(seen.map(Cell::new).to_vec()),
            seen_all: all,
            readers: &[],
        }
    }

    #[test]
    fn barriers_order_and_nothing_else_does() {
        let history = History::<Cell<u64>>::default();
        assert!(history.write(&now(0, 0, 0, 0)).is_ok());
        assert!(history.write(&now(0, 0, 0, 0)).is_ok(), "the same thread");
        assert_eq!(history.read(&now(1, 0, 0, 0)).unwrap_err().thread, 0);
        assert!(history.read(&now(1, 1, 0, 1)).is_ok(), "sync_warp");
        assert!(history.read(&now(32, 1, 0, 1)).is_err(), "another warp");
        assert!(history.read(&now(32, 2, 2, 0)).is_ok(), "sync_cta");
    }

    #[test]
    fn a_write_is_checked_against_every_reader() {
        let history = History::<Cell<u64>>::default();
        for thread in [3, 4, 3] {
            assert!(history.read(&now(thread, 1, 0, 0)).is_ok());
        }
        assert!(history.check_write(&now(3, 1, 0, 0)).is_err(), "4 read too");
        assert!(history.check_write(&now(3, 2, 0, 2)).is_ok(), "sync_warp");
        assert!(history.read(&now(40, 1, 0, 0)).is_ok());
        assert!(history.check_write(&now(40, 2, 0, 2)).is_err());
        assert!(history.check_write(&now(40, 2, 2, 0)).is_ok(), "sync_cta");
        // A later read by the same warp forgets nothing of the other one.
        assert!(history.read(&now(3, 2, 0, 2)).is_ok());
        assert!(history.check_write(&now(3, 2, 0, 2)).is_err());
    }

    #[test]
    fn thread_blocks_of_a_launch_are_never_ordered_and_launches_always() {
        let history = History::<AtomicU64>::default();
        let mut other = now(0, 9, 9, 9);
        assert!(history.read(&now(0, 0, 0, 0)).is_ok());
        other.run = 6;
        assert!(history.read(&other).is_ok(), "both only read");
        assert_eq!(history.check_write(&other).unwrap_err().did, "read");
        other.run = 8;
        other.first_run = 8;
        assert!(history.write(&other).is_ok(), "the next launch");
    }

    #[test]
    fn atomics_race_with_plain_accesses_alone() {
        let history = History::<AtomicU64>::default();
        assert!(history.atomic(&now(0, 0, 0, 0)).is_ok());
        assert!(history.atomic(&now(50, 0, 0, 0)).is_ok());
        let conflict = history.read(&now(50, 0, 0, 0)).unwrap_err();
        assert_eq!(conflict.did, "changed atomically");
        assert!(history.check_read(&now(50, 1, 1, 0)).is_ok(), "sync_cta");
    }
}
