//! Which lane runs next, who waits for whom, and what it means if nobody can go on.
//!
//! Every thread is a coroutine; one OS thread runs them all. A lane runs until it waits. When all 32 lanes
//! of a warp wait at the same operation, it is done for all and they go on; when all threads wait at
//! `sync_cta`, or as many as were announced have come to a barrier, so do they. If nobody can go on, the kernel has
//! broken a rule.

use std::panic::Location;

use gpu_kernels::gpu::WARP;

use super::cta::{Cta, Thread};
use super::fault::{FaultKind, Finding};
use super::order::Passed;
use super::state::{BARRIERS, LaneState, Request};
use super::warp::{WarpOp, exchange};

/// The threads of one thread block and where they stand.
pub(super) struct Schedule<'s> {
    cta: &'s Cta<'s>,
    lanes: &'s [LaneState<'s>],
    warps: Vec<WarpState>,
    barriers: [Barrier; BARRIERS as usize],
    random: u64,
}

/// Who has come to a barrier since it last let anybody go on.
#[derive(Default)]
struct Barrier {
    /// Threads that are to come, if anybody has.
    threads: u32,
    warps: Vec<usize>,
    waiting: Vec<usize>,
    passed: Passed,
}

/// What keeps a warp from going on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum WarpState {
    /// Nothing, or some lanes ask an atomic.
    Ready,
    /// Every lane waits at `sync_cta` or another barrier, or has exited.
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
            warps: vec![WarpState::Ready; cta.order.num_warps()],
            barriers: Default::default(),
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
                    lanes[lane].runs_now();
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
    fn exchange(&mut self, warp: usize, lanes: &[LaneState<'_>]) -> bool {
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
        match first {
            WarpOp::Sync => self.cta.order.meet_warp(warp),
            WarpOp::Barrier {
                barrier,
                threads,
                waits,
            } => return self.come(warp, &lanes[0], barrier, threads, waits),
            _ => {}
        }
        for (lane, reply) in lanes.iter().zip(exchange(&ops)) {
            lane.reply.set(reply);
            lane.request.set(Request::Ready);
        }
        true
    }

    /// A warp comes to a barrier. Whether it can go on.
    fn come(
        &mut self,
        warp: usize,
        lane: &LaneState<'_>,
        idx: u32,
        threads: u32,
        waits: bool,
    ) -> bool {
        let barrier = &mut self.barriers[idx as usize];
        let disagrees = barrier.threads != threads && barrier.threads != 0;
        if disagrees || barrier.warps.contains(&warp) {
            let (came, expected) = (barrier.warps.len(), barrier.threads);
            let detail = format!(
                "barrier {idx} for {threads} threads, where {came} warps have come for {expected}"
            );
            self.cta
                .report(*Finding::lanes(FaultKind::BarrierDivergence, detail), lane);
            return false;
        }
        barrier.threads = threads;
        barrier.warps.push(warp);
        self.cta.order.come(warp, &mut barrier.passed);
        if waits {
            barrier.waiting.push(warp);
            set_all(self.lanes, warp, Request::Barrier(idx));
        } else {
            set_all(self.lanes, warp, Request::Ready);
        }
        let is_full = barrier.warps.len() as u32 * WARP == threads;
        if is_full {
            let full = std::mem::take(barrier);
            self.cta.order.go(&full.waiting, full.passed);
            for warp in full.waiting {
                set_all(self.lanes, warp, Request::Ready);
                self.warps[warp] = WarpState::Ready;
            }
        }
        is_full || !waits
    }

    /// What keeps these lanes waiting; a fault, if nothing ever could end it.
    fn state_of(&self, lanes: &[LaneState<'_>]) -> WarpState {
        let some = |wanted: fn(&Request) -> bool| lanes.iter().find(|l| wanted(&l.request.get()));
        if some(|r| matches!(r, Request::Ready | Request::Spin)).is_some() {
            return WarpState::Ready;
        }
        let at_barrier = some(|r| matches!(r, Request::Cta | Request::Barrier(_)));
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
        let at_other = |lane: &'s LaneState<'s>| match lane.request.get() {
            Request::Barrier(idx) => Some((lane, idx)),
            _ => None,
        };
        if let Some((waiting, idx)) = self.lanes.iter().find_map(at_other) {
            let barrier = &self.barriers[idx as usize];
            let (came, wanted) = (barrier.warps.len() as u32 * WARP, barrier.threads);
            let detail = format!("{came} threads of {wanted} have come to barrier {idx}");
            let finding = Finding::lanes(FaultKind::BarrierDivergence, detail);
            self.cta.report(*finding, waiting);
            return false;
        }
        if !self.lanes.iter().all(|lane| is_waiting(&lane)) {
            let waiting = self.lanes.iter().find(is_waiting);
            let waiting = waiting.expect("not all warps are done");
            self.report_missing(FaultKind::BarrierDivergence, waiting, self.lanes);
            return false;
        }
        self.cta.order.meet_all();
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
                    Request::Barrier(idx) => {
                        format!("thread {thread} is at barrier {idx}, at {at}")
                    }
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

/// Lets all lanes of a warp wait for the same.
fn set_all(lanes: &[LaneState<'_>], warp: usize, request: Request) {
    let first = warp * WARP as usize;
    for lane in &lanes[first..first + WARP as usize] {
        lane.request.set(request);
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
pub(super) fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}
