//! What a lane is: a coroutine that suspends where it must wait for other lanes.
//!
//! Loads and stores are done and checked on the spot. A warp operation or a barrier puts down a
//! [`Request`], suspends, and finds the reply when the scheduler resumes it.
//!
//! A lane never suspends while it unwinds, be it for a panic of its own or because another lane has a fault: who
//! runs next would seem to panic too. What a `Drop` asks of the machine then has no effect.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::panic::Location;
use std::ptr;
use std::thread::panicking;

use corosensei::Yielder;
use corosensei::trap::CoroutineTrapHandler;
use gpu_kernels::gpu::WARP;

use super::cta::Cta;
use super::fault::{Fault, FaultKind, Finding};
use super::memory::Access;
use super::page::Place;
use super::race::Now;
use super::warp::{Factors, Reply, WarpOp};

/// How often a lane may ask an atomic in vain before it counts as deadlocked. While it asks, the other
/// lanes of its thread block run.
const PATIENCE: u32 = 1 << 20;

/// Barriers of a thread block.
pub(super) const BARRIERS: u32 = 16;

/// Bytes that an operation leaves free of its lane's stack: enough to do it, and to unwind the lane.
pub(super) const RED_ZONE: usize = 64 << 10;

thread_local! {
    /// The lane that this OS thread runs now, or null.
    static RUNNING: Cell<*const LaneState<'static>> = const { Cell::new(ptr::null()) };
}

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
    /// No operation may begin below this address; set when its coroutine is made.
    lowest: Cell<usize>,
    /// How its coroutine can be ended from outside; set when that is made.
    trap: Cell<Option<CoroutineTrapHandler<()>>>,
    /// Whether it would have waited or had a fault while it unwound.
    has_skipped: Cell<bool>,
    /// Whether what is on its stack was given up.
    is_abandoned: Cell<bool>,
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
            lowest: Cell::new(0),
            trap: Cell::new(None),
            has_skipped: Cell::new(false),
            is_abandoned: Cell::new(false),
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

    /// Called once, when its coroutine is made: where its stack ends, and how it can be ended.
    pub(super) fn own_stack(&self, end: usize, trap: CoroutineTrapHandler<()>) {
        self.lowest.set(end + RED_ZONE);
        self.trap.set(Some(trap));
    }

    /// Says that this lane's coroutine runs next. Whoever calls it has a [`Running`].
    #[inline]
    pub(super) fn runs_now(&self) {
        RUNNING.set(ptr::from_ref(self).cast());
    }

    /// Notes where in the kernel the lane is, at the begin of each operation.
    #[inline(always)]
    pub(super) fn begin(&self, at: &'static Location<'static>) {
        self.at.set(at);
        let here = 0u8;
        if (&raw const here).addr() < self.lowest.get() {
            self.overflows();
        }
    }

    /// In a signal handler: whether `address` is behind the end of this lane's stack, and if so how to end it.
    pub(super) fn overflow(&self, address: usize) -> Option<CoroutineTrapHandler<()>> {
        let trap = self.trap.get()?;
        // Of a stack, the guard page at its end is all that cannot be used.
        (trap.stack_ptr_in_bounds(address) && !panicking()).then_some(trap)
    }

    /// What the lane does instead of going on, on an empty stack.
    pub(super) fn abandon(&self) {
        self.is_abandoned.set(true);
        self.cta.report(*stack_overflow(), self);
        self.request.set(Request::Exited);
    }

    /// Whether somebody may still point to what was on its stack.
    pub(super) fn is_abandoned(&self) -> bool {
        self.is_abandoned.get()
    }

    /// Whether it did not do what it was asked for while it unwound.
    pub(super) fn has_skipped(&self) -> bool {
        self.has_skipped.get()
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
            return;
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
        let place = memory.access(&self.now(), address, bytes, access);
        if access != Access::Read && place.is_ok() && self.cta.sources.may_have(address) {
            self.check_sources(address, bytes);
        }
        self.ok_or(place, Place::nowhere)
    }

    #[inline]
    pub(super) fn load_shared<const N: usize>(&self, address: u32) -> [u32; N] {
        let loaded = self.cta.shared.load(&self.now().alone(), address);
        self.ok_or(loaded, || [0; N])
    }

    #[inline]
    pub(super) fn store_shared<const N: usize>(&self, address: u32, values: [u32; N]) {
        let stored = self.cta.shared.store(&self.now().alone(), address, values);
        self.ok_or(stored, || ());
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

    /// Starts a copy of so many words, zeros without a source.
    pub(super) fn begin_copy<const WORDS: usize>(&self, target: u32, source: Option<u64>) {
        let values: [u32; WORDS] = source.map_or([0; WORDS], |source| {
            self.global(source, 4 * WORDS as u32, Access::Read).load()
        });
        let shared = self.cta.shared;
        if let Err(finding) = shared.begin_copy(&self.now().alone(), target, values) {
            return self.stop(*finding);
        }
        if let Some(source) = source {
            self.cta.sources.begin(source);
        }
        self.copies.borrow_mut().push_back(InFlight {
            group: self.open_group.get(),
            target,
            source,
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
            if let Some(source) = copy.source {
                self.cta.sources.end(source);
            }
            copies.pop_front();
        }
    }

    /// Whether a copy in flight reads any of these bytes.
    pub(super) fn copies_from(&self, address: u64, bytes: u32) -> bool {
        let overlaps = |copy: &InFlight| {
            let end = |source| source + 4 * copy.words as u64;
            copy.source
                .is_some_and(|source| source < address + u64::from(bytes) && address < end(source))
        };
        self.copies.borrow().iter().any(overlaps)
    }

    #[inline(always)]
    fn suspend(&self, request: Request) {
        if panicking() {
            self.has_skipped.set(true);
            self.reply.set([0; 4]);
            return;
        }
        self.request.set(request);
        let yielder = self.yielder.get().expect("set before the kernel began");
        // SAFETY: the yielder lives as long as the lane's coroutine, which is what runs here: a `Lane`
        // reaches the kernel only in there, cannot be sent to another thread, and cannot outlive it.
        unsafe { (*yielder).suspend(()) };
    }

    /// Reports what was found. The scheduler never resumes a lane after that, it only unwinds it; one that unwinds
    /// already comes back from here, and the reason why it does is what counts.
    #[cold]
    fn stop(&self, finding: Finding) {
        if panicking() {
            self.has_skipped.set(true);
            return;
        }
        self.cta.report(finding, self);
        self.suspend(Request::Exited);
        unreachable!("resumed after a fault")
    }

    #[cold]
    fn overflows(&self) {
        self.stop(*stack_overflow());
    }

    #[cold]
    fn check_sources(&self, address: u64, bytes: u32) {
        let Some(thread) = self.cta.copier(address, bytes) else {
            return;
        };
        let detail = format!("thread {thread} copies from here and has not waited for it");
        let memory = self.cta.memory;
        let mut finding = memory.finding(FaultKind::AsyncCopyNotWaited, address, detail);
        finding.other = Some(thread);
        self.stop(*finding);
    }

    /// What an operation found; for a lane that unwinds, `otherwise`.
    #[inline]
    fn ok_or<T>(&self, result: Result<T, Box<Finding>>, otherwise: impl FnOnce() -> T) -> T {
        result.unwrap_or_else(|finding| {
            self.stop(*finding);
            otherwise()
        })
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
    /// Where it reads, if it does.
    source: Option<u64>,
    words: usize,
}

/// Lanes run on this OS thread until this is dropped, which must be before they are.
pub(super) struct Running;

impl Drop for Running {
    fn drop(&mut self) {
        RUNNING.set(ptr::null());
    }
}

/// Refuses a call of the host that comes from a kernel: its lane has a fault.
pub(super) fn refuse_kernels(call: &str) -> Result<(), Box<Fault>> {
    // SAFETY: what `running` returns is used while the lane runs, for it is who calls.
    unsafe { running() }.map_or(Ok(()), |lane| {
        let detail = format!("`{call}` (after the operation named)");
        let finding = Finding::lanes(FaultKind::HostCall, detail);
        Err(lane.cta.report(*finding, lane))
    })
}

/// The lane that this OS thread runs now.
///
/// # Safety
/// It is used by code that runs in the lane alone, or in a signal handler on top of it.
pub(super) unsafe fn running() -> Option<&'static LaneState<'static>> {
    // SAFETY: `Running` resets it before the lane goes; by this function's contract nobody keeps it longer than that.
    unsafe { RUNNING.get().as_ref() }
}

#[cold]
fn stack_overflow() -> Box<Finding> {
    let detail = "the lane's stack is full (after the operation named)".to_owned();
    Finding::lanes(FaultKind::StackOverflow, detail)
}
