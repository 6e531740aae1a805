//! What happened before what in a thread block: one clock, and what each warp has seen of the others.
//!
//! Every meeting advances the clock. A warp knows of each warp, itself included, until when its accesses happened
//! before whatever comes now; a meeting passes that on.

use std::cell::Cell;

/// The last tick of a thread block's clock. Whatever happens then counts as ordered: a thread block that
/// synchronises more often is checked up to here.
pub(super) const LAST_TICK: u32 = (1 << 20) - 1;

/// The clock of a thread block, and what its warps have seen.
pub(super) struct Order {
    clock: Cell<u32>,
    num_warps: usize,
    /// `[warp, other]`: accesses of `other` before this time happened before what `warp` does now.
    seen: Vec<Cell<u32>>,
    /// The least of each warp's.
    seen_all: Vec<Cell<u32>>,
}

/// What those who have come to a barrier have seen.
#[derive(Default)]
pub(super) struct Passed(Vec<u32>);

impl Order {
    pub(super) fn new(num_warps: usize) -> Self {
        Self {
            clock: Cell::new(0),
            num_warps,
            seen: vec![Cell::new(0); num_warps * num_warps],
            seen_all: vec![Cell::new(0); num_warps],
        }
    }

    #[inline]
    pub(super) fn num_warps(&self) -> usize {
        self.num_warps
    }

    #[inline]
    pub(super) fn clock(&self) -> u32 {
        self.clock.get()
    }

    /// What a warp has seen of each.
    #[inline]
    pub(super) fn seen(&self, warp: usize) -> &[Cell<u32>] {
        &self.seen[warp * self.num_warps..][..self.num_warps]
    }

    /// What a warp has seen of all.
    #[inline]
    pub(super) fn seen_all(&self, warp: usize) -> u32 {
        self.seen_all[warp].get()
    }

    /// The lanes of a warp meet.
    pub(super) fn meet_warp(&self, warp: usize) {
        self.seen(warp)[warp].set(self.tick());
        self.sum_up(warp);
    }

    /// All threads meet.
    pub(super) fn meet_all(&self) {
        let now = self.tick();
        for seen in self.seen.iter().chain(&self.seen_all) {
            seen.set(now);
        }
    }

    /// A warp comes to a barrier.
    pub(super) fn come(&self, warp: usize, passed: &mut Passed) {
        passed.0.resize(self.num_warps, 0);
        for (passed, seen) in passed.0.iter_mut().zip(self.seen(warp)) {
            *passed = seen.get().max(*passed);
        }
        passed.0[warp] = self.tick();
    }

    /// All have come, and those that waited go on: what they did until now happened before what they do then.
    pub(super) fn go(&self, waiting: &[usize], mut passed: Passed) {
        let now = self.tick();
        for &warp in waiting {
            passed.0[warp] = now;
        }
        for &warp in waiting {
            for (seen, &passed) in self.seen(warp).iter().zip(&passed.0) {
                seen.set(seen.get().max(passed));
            }
            self.sum_up(warp);
        }
    }

    fn tick(&self) -> u32 {
        self.clock.set((self.clock.get() + 1).min(LAST_TICK));
        self.clock.get()
    }

    fn sum_up(&self, warp: usize) {
        let least = self.seen(warp).iter().map(Cell::get).min();
        self.seen_all[warp].set(least.unwrap_or(0));
    }
}
