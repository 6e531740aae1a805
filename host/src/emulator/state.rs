//! What a lane is: a coroutine that suspends where it must wait for other lanes.
//!
//! Loads and stores are done and checked on the spot. A warp operation or a barrier puts down a
//! [`Request`], suspends, and finds the reply when the scheduler resumes it.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::panic::Location;

use corosensei::Yielder;
use gpu_kernels::gpu::WARP;

use super::cta::Cta;
use super::fault::{FaultKind, Finding};
use super::memory::{Access, Place};
use super::race::Now;
use super::warp::{Factors, Reply, WarpOp};

/// How often a lane may ask an atomic in vain before it counts as deadlocked. While it asks, the other
/// lanes of its thread block run.
const PATIENCE: u32 = 1 << 20;

/// Barriers of a thread block.
pub(super) const BARRIERS: u32 = 16;

/// What a lane waits for.
#[derive(Clone, Copy)]
pub(super) enum Request {
    /// Nothing: it can run.
    Ready,
    /// Nothing, but others should run first: an atomic was not as it hoped.
    Spin,
    /// All threads of the thread block.
    Cta,
    /// All lanes of the warp.
    Warp(WarpOp),
    /// Whoever else comes to this barrier.
    Barrier(u32),
    /// It has left the kernel.
    Exited,
}

/// Everything a lane is.
pub(super) struct LaneState<'a> {
    cta: &'a Cta<'a>,
    thread: u32,
    /// The operation it is at.
    pub(super) at: Cell<&'static Location<'static>>,
    pub(super) request: Cell<Request>,
    pub(super) reply: Cell<Reply>,
    /// How it suspends; set when its coroutine starts.
    yielder: Cell<Option<*const Yielder<(), ()>>>,
    /// Asynchronous copies in flight, oldest first.
    copies: RefCell<VecDeque<InFlight>>,
    /// The group that the next copy belongs to.
    open_group: Cell<u32>,
    spins: Cell<u32>,
}

impl<'a> LaneState<'a> {
    pub(super) fn new(cta: &'a Cta<'a>, thread: u32, at: &'static Location<'static>) -> Self {
        Self {
            cta,
            thread,
            at: Cell::new(at),
            request: Cell::new(Request::Ready),
            reply: Cell::new([0; 4]),
            yielder: Cell::new(None),
            copies: RefCell::default(),
            open_group: Cell::new(0),
            spins: Cell::new(0),
        }
    }

    pub(super) fn cta(&self) -> &'a Cta<'a> {
        self.cta
    }

    pub(super) fn thread(&self) -> u32 {
        self.thread
    }

    /// Called once, inside the lane's coroutine, before the kernel.
    pub(super) fn enter(&self, yielder: &Yielder<(), ()>) {
        self.yielder.set(Some(yielder));
    }

    /// Waits for other lanes.
    #[inline(always)]
    pub(super) fn wait(&self, request: Request) {
        self.suspend(request);
        self.spins.set(0);
    }

    /// Does a warp operation together with the others.
    #[inline(always)]
    pub(super) fn meet(&self, op: WarpOp) -> Reply {
        self.wait(Request::Warp(op));
        self.reply.get()
    }

    /// Comes to a barrier together with the others of the warp.
    pub(super) fn come(&self, barrier: u32, threads: u32, waits: bool) {
        let most = self.cta.spec.threads;
        if barrier >= BARRIERS || !threads.is_multiple_of(WARP) || threads > most {
            let detail = format!("barrier {barrier} for {threads} threads of {most}");
            self.stop(*Finding::lanes(FaultKind::BarrierDivergence, detail));
        }
        self.meet(WarpOp::Barrier {
            barrier,
            threads,
            waits,
        });
    }

    #[inline]
    pub(super) fn global(&self, address: u64, bytes: u32, access: Access) -> Place<'a> {
        let memory = self.cta.memory;
        self.ok(memory.access(&self.now(), address, bytes, access))
    }

    #[inline]
    pub(super) fn load_shared<const N: usize>(&self, address: u32) -> [u32; N] {
        self.ok(self.cta.shared.load(&self.now().alone(), address))
    }

    #[inline]
    pub(super) fn store_shared<const N: usize>(&self, address: u32, values: [u32; N]) {
        self.ok(self.cta.shared.store(&self.now().alone(), address, values));
    }

    pub(super) fn load_matrices(&self, row_address: u32, transposed: bool) -> [u32; 4] {
        let row = self.load_shared(row_address);
        self.meet(WarpOp::LoadMatrix { row, transposed })
    }

    pub(super) fn multiply(
        &self,
        factors: Factors,
        acc: [f32; 4],
        a: [u32; 4],
        b: [u32; 2],
    ) -> [f32; 4] {
        let product = self.meet(WarpOp::Mma { factors, acc, a, b });
        product.map(f32::from_bits)
    }

    pub(super) fn check_lane(&self, operand: &str, lane: u32) {
        if lane >= WARP {
            let detail = format!("`{operand}` is {lane}, but a warp has {WARP} lanes");
            self.stop(*Finding::lanes(FaultKind::MissingLanes, detail));
        }
    }

    /// A compare-and-swap that lets others run before it returns in vain.
    pub(super) fn compare_and_swap(&self, address: u64, expected: u32, value: u32) -> u32 {
        let place = self.global(address, 4, Access::Atomic);
        let old = place.compare_and_swap(expected, value);
        let has_changed = old == expected && value != old;
        if has_changed {
            return old;
        }
        let spins = self.spins.get() + 1;
        self.spins.set(spins);
        if spins == PATIENCE {
            let detail = format!("it asked {PATIENCE} times and always found {old:#x}");
            let memory = self.cta.memory;
            self.stop(*memory.finding(FaultKind::Deadlock, address, detail));
        }
        self.suspend(Request::Spin);
        old
    }

    /// Starts a copy of 16 bytes, zeros without a source.
    pub(super) fn begin_copy<const WORDS: usize>(&self, target: u32, source: Option<u64>) {
        let values: [u32; WORDS] = source.map_or([0; WORDS], |source| {
            self.global(source, 4 * WORDS as u32, Access::Read).load()
        });
        let shared = self.cta.shared;
        self.ok(shared.begin_copy(&self.now().alone(), target, values));
        self.copies.borrow_mut().push_back(InFlight {
            group: self.open_group.get(),
            target,
            words: WORDS,
        });
    }

    /// Closes the open group.
    pub(super) fn commit_copies(&self) {
        self.open_group.set(self.open_group.get() + 1);
    }

    /// Ends the copies of all closed groups but the youngest `pending`.
    pub(super) fn wait_for_copies(&self, pending: u32) {
        let finished = self.open_group.get().saturating_sub(pending);
        let now = self.now().alone();
        let mut copies = self.copies.borrow_mut();
        while let Some(copy) = copies.front()
            && copy.group < finished
        {
            self.cta.shared.end_copy(&now, copy.target, copy.words);
            copies.pop_front();
        }
    }

    #[inline(always)]
    fn suspend(&self, request: Request) {
        self.request.set(request);
        let yielder = self.yielder.get().expect("set before the kernel began");
        // SAFETY: the yielder lives as long as the lane's coroutine, which is what runs here: a `Lane`
        // reaches the kernel only in there, cannot be sent to another thread, and cannot outlive it.
        unsafe { (*yielder).suspend(()) };
    }

    /// Reports what was found. The scheduler never resumes a lane after that, it only unwinds it.
    #[cold]
    fn stop(&self, finding: Finding) -> ! {
        self.cta.report(finding, self);
        self.suspend(Request::Exited);
        unreachable!("resumed after a fault")
    }

    #[inline]
    fn ok<T>(&self, result: Result<T, Box<Finding>>) -> T {
        match result {
            Ok(value) => value,
            Err(finding) => self.stop(*finding),
        }
    }

    #[inline]
    fn now(&self) -> Now<'a> {
        self.cta.now(self.thread)
    }
}

/// An asynchronous copy that its lane has not waited for.
pub(super) struct InFlight {
    group: u32,
    target: u32,
    words: usize,
}
