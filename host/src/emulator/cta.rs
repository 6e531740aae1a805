//! One thread block while it runs: what its lanes share, and their coroutines.

use std::cell::{Cell, OnceCell};
use std::panic::{AssertUnwindSafe, Location, catch_unwind};
use std::{ptr, slice};

use corosensei::Coroutine;
use corosensei::stack::{DefaultStack, Stack};
use gpu_kernels::gpu::WARP;

use super::fault::{Fault, FaultKind, Finding};
use super::lane::Lane;
use super::memory::GlobalMemory;
use super::order::Order;
use super::race::Now;
use super::schedule::Schedule;
use super::shared::SharedMemory;
use super::sources::Sources;
use super::state::{LaneState, RED_ZONE, Request, Running};

/// Bytes of a lane's stack: more than an unoptimised kernel takes. Only what is touched costs memory, and a guard
/// page ends it.
const STACK_BYTES: usize = (1 << 20) + RED_ZONE;

/// A launch: what all its thread blocks have in common.
pub(super) struct LaunchSpec<'l> {
    pub(super) kernel: &'l str,
    pub(super) grid: [u32; 3],
    pub(super) threads: u32,
    pub(super) shared_bytes: u32,
    /// Who launched it.
    pub(super) at: &'static Location<'static>,
    /// Number of the first thread block among all that ever ran.
    pub(super) first_run: u64,
    /// Permutes the lanes; 0 is the natural order.
    pub(super) seed: u64,
}

/// What an OS thread keeps from one thread block to the next.
#[derive(Default)]
pub(super) struct Worker {
    stacks: Vec<DefaultStack>,
    pub(super) shared: SharedMemory,
}

/// A thread block while it runs.
pub(super) struct Cta<'l> {
    pub(super) spec: &'l LaunchSpec<'l>,
    pub(super) block: [u32; 3],
    pub(super) memory: &'l GlobalMemory,
    pub(super) shared: &'l SharedMemory,
    run: u64,
    pub(super) order: Order,
    /// Where asynchronous copies in flight read.
    pub(super) sources: Sources,
    /// The first of all lanes, while they run.
    lanes: Cell<*const LaneState<'static>>,
    /// The first fault, and the thread that the other access of a race belongs to.
    fault: OnceCell<(Box<Fault>, Option<u32>)>,
}

/// The coroutine of one lane.
pub(super) type Thread = Coroutine<(), (), (), DefaultStack>;

impl Worker {
    /// Makes room for a launch: shared memory, and a stack for each lane.
    ///
    /// # Errors
    /// The system has no more memory to map.
    pub(super) fn resize(&mut self, spec: &LaunchSpec<'_>) -> std::io::Result<()> {
        let warps = spec.threads.div_ceil(WARP);
        self.shared.resize(spec.shared_bytes, warps);
        while self.stacks.len() < spec.threads as usize {
            self.stacks.push(DefaultStack::new(STACK_BYTES)?);
        }
        Ok(())
    }

    /// Runs thread block number `block` of a launch.
    pub(super) fn run(
        &mut self,
        spec: &LaunchSpec<'_>,
        memory: &GlobalMemory,
        block: u64,
        kernel: &(dyn Fn(Lane<'_>) + Sync),
    ) -> Result<(), Box<Fault>> {
        let cta = Cta::new(spec, memory, &self.shared, block);
        let lanes: Vec<LaneState<'_>> = (0..spec.threads)
            .map(|thread| LaneState::new(&cta, thread, spec.at))
            .collect();
        cta.lanes.set(lanes.as_ptr().cast());
        let stacks = self.stacks.drain(self.stacks.len() - lanes.len()..);
        let mut threads: Vec<Thread> = lanes
            .iter()
            .zip(stacks)
            .map(|(lane, stack)| start(&cta, lane, kernel, stack))
            .collect();
        let _running = Running;
        Schedule::new(&cta, &lanes, block).run(&mut threads);
        for (lane, mut thread) in lanes.iter().zip(threads) {
            lane.runs_now();
            thread.force_unwind();
            let stack = thread.into_stack();
            if lane.is_abandoned() {
                std::mem::forget(stack);
            } else {
                self.stacks.push(stack);
            }
        }
        cta.result(&lanes)
    }
}

impl<'l> Cta<'l> {
    fn new(
        spec: &'l LaunchSpec<'l>,
        memory: &'l GlobalMemory,
        shared: &'l SharedMemory,
        block: u64,
    ) -> Self {
        let [x, y, _] = spec.grid.map(u64::from);
        let warps = spec.threads.div_ceil(WARP);
        Self {
            spec,
            block: [block % x, block / x % y, block / x / y].map(|index| index as u32),
            memory,
            shared,
            run: spec.first_run + block,
            order: Order::new(warps as usize),
            sources: Sources::default(),
            lanes: Cell::new(ptr::null()),
            fault: OnceCell::new(),
        }
    }

    /// When and who a thread is, for the race check.
    #[inline]
    pub(super) fn now(&self, thread: u32) -> Now<'_> {
        let warp = (thread / WARP) as usize;
        Now {
            run: self.run,
            first_run: self.spec.first_run,
            thread,
            clock: self.order.clock(),
            seen: self.order.seen(warp),
            seen_all: self.order.seen_all(warp),
            readers: &[],
        }
    }

    /// The thread with a copy in flight that reads any of these bytes. Called by a lane.
    pub(super) fn copier(&self, address: u64, bytes: u32) -> Option<u32> {
        let threads = self.spec.threads as usize;
        // SAFETY: lanes run in `Worker::run` alone, which set this to as many and keeps them until it is done; only
        // this OS thread uses them.
        let lanes = unsafe { slice::from_raw_parts(self.lanes.get(), threads) };
        let mut copiers = lanes.iter().filter(|lane| lane.copies_from(address, bytes));
        copiers.next().map(LaneState::thread)
    }

    /// Keeps a fault, or returns the one there is: the first one counts.
    pub(super) fn report(&self, finding: Finding, lane: &LaneState<'_>) -> Box<Fault> {
        let other = finding.other;
        let (thread, at) = (lane.thread(), lane.at.get());
        let (first, _) = self.fault.get_or_init(|| {
            let fault = finding.into_fault(self.spec.kernel, self.block, thread, at);
            (Box::new(fault), other)
        });
        first.clone()
    }

    /// Whether to stop.
    pub(super) fn has_fault(&self) -> bool {
        self.fault.get().is_some()
    }

    /// A kernel panicked, or is being unwound because there was a fault already.
    fn report_panic(&self, lane: &LaneState<'_>, payload: &(dyn std::any::Any + Send)) {
        let message = payload
            .downcast_ref::<&str>()
            .map(ToString::to_string)
            .or_else(|| payload.downcast_ref::<String>().cloned())
            .unwrap_or_default();
        let detail = format!("{message} (after the operation named)");
        self.report(*Finding::lanes(FaultKind::Panicked, detail), lane);
    }

    /// How the thread block ended. Of the other access in a race, the histories know the thread but not the
    /// line; where that thread has come to since is a good hint.
    fn result(&self, lanes: &[LaneState<'_>]) -> Result<(), Box<Fault>> {
        let Some((fault, other)) = self.fault.get() else {
            return Ok(());
        };
        let mut fault = fault.clone();
        if let Some(thread) = *other {
            let at = lanes[thread as usize].at.get();
            fault.detail += &format!(" (thread {thread} is now at {at})");
        }
        Err(fault)
    }
}

/// Makes the coroutine of one lane.
fn start<'c>(
    cta: &'c Cta<'c>,
    lane: &'c LaneState<'c>,
    kernel: &'c (dyn Fn(Lane<'_>) + Sync),
    stack: DefaultStack,
) -> Thread {
    let end = stack.limit().get();
    // SAFETY: `Worker::run` owns what is borrowed here and finishes every coroutine before it lets go.
    let thread = unsafe {
        Coroutine::with_stack_unchecked(stack, move |yielder, ()| {
            lane.enter(yielder);
            let result = catch_unwind(AssertUnwindSafe(|| kernel(Lane(lane))));
            if let Err(payload) = result {
                cta.report_panic(lane, &*payload);
            } else if lane.has_skipped() {
                let detail =
                    "it was caught, but a `Drop` asked for what cannot be done meanwhile".into();
                cta.report(*Finding::lanes(FaultKind::Panicked, detail), lane);
            }
            lane.request.set(Request::Exited);
        })
    };
    lane.own_stack(end, thread.trap_handler());
    thread
}
