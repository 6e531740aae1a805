//! Which lane runs next, who waits for whom, and what it means if nobody can go on.
//!
//! Every thread is a coroutine; one OS thread runs them all. A lane runs until it waits. When all 32 lanes
//! of a warp wait at the same operation, it is done for all and they go on; when all threads wait at
//! `sync_cta`, so do they. If nobody can go on, the kernel has broken a rule.

use std::panic::Location;

use gpu_kernels::gpu::WARP;

use super::cta::{Cta, Thread};
use super::fault::{FaultKind, Finding};
use super::race::tick;
use super::state::{LaneState, Request};
use super::warp::exchange;

/// The threads of one thread block and where they stand.
pub(super) struct Schedule<'s> {
    cta: &'s Cta<'s>,
    lanes: &'s [LaneState<'s>],
    warps: Vec<WarpState>,
    random: u64,
}

/// What keeps a warp from going on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum WarpState {
    /// Nothing, or some lanes ask an atomic.
    Ready,
    /// Every lane waits at `sync_cta` or has exited.
    AtBarrier,
    /// Every lane has exited.
    Done,
}

impl<'s> Schedule<'s> {
    pub(super) fn new(cta: &'s Cta<'s>, lanes: &'s [LaneState<'s>], block: u64) -> Self {
        let seed = cta.spec.seed;
        Self {
            cta,
            lanes,
            warps: vec![WarpState::Ready; cta.warp_syncs.len()],
            random: if seed == 0 {
                0
            } else {
                mix(seed ^ mix(block)) | 1
            },
        }
    }

    /// Until all have exited or one has a fault.
    pub(super) fn run(mut self, threads: &mut [Thread]) {
        loop {
            for warp in self.order(self.warps.len()) {
                if self.warps[warp] == WarpState::Ready {
                    self.warps[warp] = self.run_warp(warp, threads);
                }
                if self.cta.has_fault() {
                    return;
                }
            }
            if self.warps.contains(&WarpState::Ready) {
                continue;
            }
            if self.warps.iter().all(|&warp| warp == WarpState::Done) {
                return;
            }
            if !self.release_barrier() {
                return;
            }
        }
    }

    /// Runs a warp until it can go on no longer.
    fn run_warp(&mut self, warp: usize, threads: &mut [Thread]) -> WarpState {
        let first = warp * WARP as usize;
        let lanes = &self.lanes[first..self.lanes.len().min(first + WARP as usize)];
        loop {
            for lane in self.order(lanes.len()) {
                if let Request::Ready | Request::Spin = lanes[lane].request.get() {
                    threads[first + lane].resume(());
                    if self.cta.has_fault() {
                        return WarpState::Ready;
                    }
                }
            }
            let state = match lanes[0].request.get() {
                Request::Warp(_) if self.exchange(warp, lanes) => continue,
                _ => self.state_of(lanes),
            };
            return state;
        }
    }

    /// Does a warp operation, if all lanes are there and agree.
    fn exchange(&self, warp: usize, lanes: &[LaneState<'_>]) -> bool {
        let Request::Warp(first) = lanes[0].request.get() else {
            return false;
        };
        let mut ops = [first; WARP as usize];
        if lanes.len() != ops.len() {
            return false;
        }
        let at = lanes[0].at.get();
        for (op, lane) in ops.iter_mut().zip(lanes) {
            match lane.request.get() {
                Request::Warp(theirs)
                    if theirs.matches(&first) && same_place(at, lane.at.get()) =>
                {
                    *op = theirs;
                }
                _ => return false,
            }
        }
        if first.is_sync() {
            self.cta.clock.set(tick(self.cta.clock.get()));
            self.cta.warp_syncs[warp].set(self.cta.clock.get());
        }
        for (lane, reply) in lanes.iter().zip(exchange(&ops)) {
            lane.reply.set(reply);
            lane.request.set(Request::Ready);
        }
        true
    }

    /// What keeps these lanes waiting; a fault, if nothing ever could end it.
    fn state_of(&self, lanes: &[LaneState<'_>]) -> WarpState {
        let some = |wanted: fn(&Request) -> bool| lanes.iter().find(|l| wanted(&l.request.get()));
        if some(|r| matches!(r, Request::Ready | Request::Spin)).is_some() {
            return WarpState::Ready;
        }
        let at_barrier = some(|r| matches!(r, Request::Cta));
        let Some(in_warp_op) = some(|r| matches!(r, Request::Warp(_))) else {
            return match at_barrier {
                Some(_) => WarpState::AtBarrier,
                None => WarpState::Done,
            };
        };
        let (kind, waiting) = match at_barrier {
            Some(lane) => (FaultKind::BarrierDivergence, lane),
            None => (FaultKind::MissingLanes, in_warp_op),
        };
        self.report_missing(kind, waiting, lanes);
        WarpState::Ready
    }

    /// Every warp waits at `sync_cta` or is done: lets all go on, if all are there.
    fn release_barrier(&mut self) -> bool {
        let is_waiting = |lane: &&LaneState<'_>| matches!(lane.request.get(), Request::Cta);
        if !self.lanes.iter().all(|lane| is_waiting(&lane)) {
            let waiting = self.lanes.iter().find(is_waiting);
            let waiting = waiting.expect("not all warps are done");
            self.report_missing(FaultKind::BarrierDivergence, waiting, self.lanes);
            return false;
        }
        self.cta.clock.set(tick(self.cta.clock.get()));
        self.cta.cta_sync.set(self.cta.clock.get());
        for lane in self.lanes {
            lane.request.set(Request::Ready);
        }
        self.warps.fill(WarpState::Ready);
        true
    }

    /// Reports that `waiting` waits in vain, and for whom.
    fn report_missing(&self, kind: FaultKind, waiting: &LaneState<'_>, lanes: &[LaneState<'_>]) {
        let elsewhere = lanes.iter().find(|lane| !waits_like(waiting, lane));
        let detail = match elsewhere {
            None => format!("the warp has {} lanes", lanes.len()),
            Some(lane) => {
                let thread = lane.thread();
                let at = lane.at.get();
                match lane.request.get() {
                    Request::Exited => format!("thread {thread} has exited"),
                    Request::Cta => format!("thread {thread} is in sync_cta, at {at}"),
                    Request::Warp(op) => format!("thread {thread} is in {}, at {at}", op.name()),
                    Request::Ready | Request::Spin => format!("thread {thread} runs, at {at}"),
                }
            }
        };
        self.cta.report(*Finding::lanes(kind, detail), waiting);
    }

    /// An order in which to visit `count` things: natural, or from the seed another one each time.
    fn order(&mut self, count: usize) -> impl Iterator<Item = usize> + use<> {
        let mut start = 0;
        let mut backwards = false;
        if self.random != 0 {
            self.random = mix(self.random) | 1;
            start = (self.random >> 8) as usize % count;
            backwards = self.random >> 4 & 1 != 0;
        }
        (0..count).map(move |i| {
            let at = (start + i) % count;
            if backwards { count - 1 - at } else { at }
        })
    }
}

/// Whether two lanes wait at the same operation.
fn waits_like(one: &LaneState<'_>, other: &LaneState<'_>) -> bool {
    match (one.request.get(), other.request.get()) {
        (Request::Cta, Request::Cta) => true,
        (Request::Warp(x), Request::Warp(y)) => {
            x.matches(&y) && same_place(one.at.get(), other.at.get())
        }
        _ => false,
    }
}

/// Whether two lanes make the same call.
#[inline]
fn same_place(one: &'static Location<'static>, other: &'static Location<'static>) -> bool {
    std::ptr::eq(one, other) || one == other
}

/// SplitMix64's finaliser.
fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}
