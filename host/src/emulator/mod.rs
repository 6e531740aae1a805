//! The emulator: the kernels' own source on a CPU, every access checked.
//!
//! [`Lane`] is the third implementation of [`Gpu`](gpu_kernels::gpu::Gpu), and [`Emulator`] a
//! [`Runtime`] that calls the kernels with it. What a kernel gets wrong comes back as a [`Fault`] that names the
//! rule, the thread, the tensor, the byte and the line.
//!
//! # What it checks
//!
//! - Bounds and alignment of every access; allocations lie far apart, and freed ones stay forbidden.
//! - Reads of bytes that nobody wrote, in global and in shared memory.
//! - Data races: within a thread block every pair of accesses to a byte, at least one a write, needs a
//!   `sync_cta` between them, a barrier that both warps come to, or a `sync_warp` within one warp; two thread blocks
//!   of a launch may share what they only read or only change atomically.
//! - Asynchronous copies: nobody touches the target until the lane that copied has waited for the group, and
//!   nobody else until a barrier after that; nobody changes the source until then either.
//! - Meetings: all 32 lanes make the same call of a warp operation, all threads reach a `sync_cta`, and as many as are
//!   said to come to a barrier do.
//! - Kernels that panic, that fill their stack, or that call an emulator, their own or another: each is a [`Fault`].
//!
//! [`Emulator::with_seed`] runs the lanes in another order and puts allocations to other addresses.
//!
//! After a fault the machine works as before. All lanes of the thread block were unwound: each `Drop` has run, and
//! where it asked its [`Lane`] for something that would have to wait or have a fault, it got zeros. What the kernel
//! had written stays written.
//!
//! # What it cannot see
//!
//! - Time: bank conflicts, coalescing, occupancy, registers.
//! - The overlap of kernels (`Gpu::wait_for_previous_kernels`): launches run one after the other.
//! - Weak memory: a lane that reads a word while another thread block writes it faults, whatever value it sees.
//! - Rounding as in tensor cores, which have fewer bits for sums of FP8 products; see the comment in `warp.rs`. `exp2`,
//!   `log2` and `recip` are more precise than a GPU's.
//! - A warp group: each of its warps computes its own part of a product, at once. That the four come together, that
//!   what they wrote is fenced (`Gpu::fence_warpgroup`) and that sums are waited for, it takes on trust.
//! - Thread blocks that wait for each other: no more of them run at once than there are CPUs.
//! - Loops that never end, unless they ask an atomic.
//! - Races of a thread block after its millionth meeting.
//! - A wild index that happens to meet another allocation. They lie at random places of a space of 2^63 bytes, one in
//!   each 2^40: a jump between two of them that is not aimed hits a tensor of `n` bytes once in `2^39 / n` times.
//! - What reads shared memory on its own: the factors of a warp group's product, overwritten before it is done. Its
//!   products are done at once.
//! - Kernels of your own ([`Emulator::launch_fn`]) that wait for another thread of the host that waits for the
//!   emulator; and a `Drop` that panics while its lane is unwound, which Rust answers with an abort.
//! - Stacks that overflow between two operations of a lane, on another system than Linux on x86-64 or arm64: the
//!   process dies. On these, what is on the stack is given up without any `Drop`. For this, the first launch puts
//!   itself before the process's handler of SIGSEGV and passes on to it whatever else comes.
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_possible_wrap,
    reason = "offsets fit once they are checked against an allocation; words are cut from bit fields"
)]

mod cta;
mod fault;
mod lane;
mod memory;
mod order;
mod overflow;
mod page;
mod race;
mod schedule;
mod shared;
mod sources;
mod state;
mod warp;

pub use fault::{Fault, FaultKind};
pub use lane::Lane;

use std::panic::Location;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard};

use gpu_kernels::entry;

use crate::error::{Error, RequestError, Result};
use crate::plan::DeviceInfo;
use crate::runtime::{DeviceMemory, Launch, Launcher, MachineId, Runtime};

use cta::{LaunchSpec, Worker};
use fault::Finding;
use memory::GlobalMemory;
use race::RUNS;

/// A machine without a GPU. Launches are done when they return; threads that share one take turns.
pub struct Emulator {
    id: MachineId,
    seed: u64,
    device: DeviceInfo,
    state: Mutex<State>,
}

struct State {
    memory: GlobalMemory,
    /// Thread blocks numbered so far.
    runs: u64,
    workers: Vec<Worker>,
}

impl Emulator {
    /// An empty machine that runs lanes in their natural order.
    pub fn new() -> Self {
        Self::with_seed(0)
    }

    /// A machine that runs lanes and warps in an order drawn from `seed`: what works in one order only, shows.
    pub fn with_seed(seed: u64) -> Self {
        Self {
            id: MachineId::unique(),
            seed,
            device: DeviceInfo::EMULATED,
            state: Mutex::new(State {
                memory: GlobalMemory::new(seed),
                runs: 0,
                workers: Vec::new(),
            }),
        }
    }

    /// The same machine with other numbers: kernels that want more shared memory than
    /// [`DeviceInfo::EMULATED`] has run on it too.
    #[must_use]
    pub fn with_device(mut self, device: DeviceInfo) -> Self {
        self.device = device;
        self
    }

    /// Runs a kernel of your own, called once for each lane, under the name `kernel`.
    ///
    /// # Errors
    /// The first [`Fault`] of the first thread block that has one; or the launch is not possible.
    #[track_caller]
    pub fn launch_fn(
        &self,
        kernel: &str,
        grid: [u32; 3],
        threads: u32,
        shared_bytes: u32,
        body: impl Fn(Lane<'_>) + Sync,
    ) -> Result<()> {
        let spec = LaunchSpec {
            kernel,
            grid,
            threads,
            shared_bytes,
            at: Location::caller(),
            first_run: 0,
            seed: self.seed,
        };
        check_launch(&spec, &self.device)?;
        self.run(spec, &body)
    }

    fn run(&self, mut spec: LaunchSpec<'_>, body: &(dyn Fn(Lane<'_>) + Sync)) -> Result<()> {
        let mut state = self.lock("launch")?;
        let num_blocks = spec.grid.into_iter().map(u64::from).product();
        spec.first_run = state.number_blocks(num_blocks);

        // Threads of our own rather than a shared pool: the state is locked, and a pool's thread that
        // waits for its part of the launch could pick up another launch, which would wait for the lock.
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let num_workers = cpus.min(usize::try_from(num_blocks).unwrap_or(cpus));
        let State {
            memory, workers, ..
        } = &mut *state;
        workers.resize_with(num_workers.max(workers.len()), Worker::default);
        for worker in &mut workers[..num_workers] {
            worker.resize(&spec).map_err(|error| {
                let expected = format!("as many as there is memory for ({error})");
                refused("threads", &expected, spec.threads)
            })?;
        }
        let (spec, memory) = (&spec, &*memory);
        let next_block = AtomicU64::new(0);
        let stop = AtomicBool::new(false);
        let work = |worker: &mut Worker| {
            let _armed = overflow::arm();
            // Blocks are given out in order, so the lowest one with a fault is always among those begun.
            while !stop.load(Relaxed) {
                let block = next_block.fetch_add(1, Relaxed);
                if block >= num_blocks {
                    break;
                }
                if let Err(fault) = worker.run(spec, memory, block, body) {
                    stop.store(true, Relaxed);
                    return Some((block, fault));
                }
            }
            None
        };
        let first_fault = std::thread::scope(|scope| {
            // Lanes that run while this thread panics, in a `Drop`, would seem to panic themselves.
            let here = usize::from(!std::thread::panicking());
            let (here, others) = workers[..num_workers].split_at_mut(here);
            let others: Vec<_> = others
                .iter_mut()
                .map(|worker| scope.spawn(|| work(worker)))
                .collect();
            let mut faults: Vec<_> = here.iter_mut().map(work).collect();
            faults.extend(others.into_iter().map(|other| match other.join() {
                Ok(fault) => fault,
                Err(panic) => std::panic::resume_unwind(panic),
            }));
            faults.into_iter().flatten().min_by_key(|(block, _)| *block)
        });
        first_fault.map_or(Ok(()), |(_, fault)| Err(Error::Fault(fault)))
    }

    /// For `call`, which a kernel must not make: it would wait for itself.
    fn lock(&self, call: &str) -> Result<MutexGuard<'_, State>> {
        state::refuse_kernels(call)?;
        let state = self.state.lock();
        Ok(state.expect("the emulator itself panicked before"))
    }
}

impl Default for Emulator {
    fn default() -> Self {
        Self::new()
    }
}

impl State {
    /// Number of the first of so many new thread blocks.
    fn number_blocks(&mut self, num_blocks: u64) -> u64 {
        // Number 0 is nobody's.
        if self.runs + num_blocks >= RUNS {
            self.memory.forget_histories();
            for worker in &self.workers {
                worker.shared.forget_histories();
            }
            self.runs = 0;
        }
        let first = self.runs + 1;
        self.runs += num_blocks;
        first
    }
}

impl Launcher for Emulator {
    #[track_caller]
    unsafe fn launch(&self, launch: &Launch, params: &[u8]) -> Result<()> {
        let entry = launch.kernel.entry();
        assert_eq!(
            params.len(),
            entry.params_bytes,
            "parameter block of `{}`",
            entry.name
        );
        let spec = LaunchSpec {
            kernel: entry.name,
            grid: launch.grid,
            threads: entry.threads,
            shared_bytes: launch.shared_bytes,
            at: Location::caller(),
            first_run: 0,
            seed: self.seed,
        };
        check_launch(&spec, &self.device)?;
        self.run(spec, &|lane| {
            // SAFETY: the block has the length of the kernel's parameters; `Lane` checks the rest itself.
            unsafe { entry::run(launch.kernel, lane, params.as_ptr()) }
        })
    }

    #[track_caller]
    unsafe fn zero(&self, address: u64, bytes: usize) -> Result<()> {
        let result = self.lock("zero")?.memory.copy_in(address, &vec![0; bytes]);
        host_result("zero", result)
    }

    fn device(&self) -> DeviceInfo {
        self.device
    }

    fn machine(&self) -> MachineId {
        self.id
    }
}

// SAFETY: no address is given out twice, and each allocation has room for its bytes until it is freed.
unsafe impl DeviceMemory for Emulator {
    fn owner(&self) -> MachineId {
        self.id
    }
    /// Contents appear with the first write; an allocation of many gigabytes costs what is written of it.
    fn allocate(&self, name: &'static str, bytes: usize) -> Result<u64> {
        let address = self.lock("allocate")?.memory.allocate(name, bytes as u64);
        address.map_err(|expected| refused(name, &expected, bytes))
    }
    unsafe fn free(&self, address: u64, _bytes: usize) {
        // In a kernel, the launch returns the error.
        if let Ok(mut state) = self.lock("free") {
            state.memory.free(address);
        }
    }
    #[track_caller]
    unsafe fn copy_in(&self, address: u64, bytes: &[u8]) -> Result<()> {
        let result = self.lock("copy_in")?.memory.copy_in(address, bytes);
        host_result("copy_in", result)
    }
    /// Bytes never written read as 0xff: NaN in every float type.
    #[track_caller]
    unsafe fn copy_out(&self, address: u64, bytes: &mut [u8]) -> Result<()> {
        let result = self.lock("copy_out")?.memory.copy_out(address, bytes);
        host_result("copy_out", result)
    }
}

impl Runtime for Emulator {
    fn name(&self) -> String {
        "emulator".into()
    }
    fn is_emulator(&self) -> bool {
        true
    }
    fn synchronize(&self) -> Result<()> {
        Ok(())
    }
}

/// Refuses what a driver would refuse.
fn check_launch(spec: &LaunchSpec<'_>, device: &DeviceInfo) -> Result<()> {
    let [x, y, z] = spec.grid;
    let blocks = spec.grid.iter().map(|&n| u64::from(n)).product::<u64>();
    if blocks == 0 || blocks >= RUNS || x > i32::MAX as u32 || y.max(z) > 0xffff {
        let expected = "[1..=2147483647, 1..=65535, 1..=65535], less than 2^28 in all";
        return Err(refused("grid", expected, spec.grid));
    }
    if !(1..=1024).contains(&spec.threads) {
        return Err(refused("threads", "1..=1024", spec.threads));
    }
    if spec.shared_bytes > device.shared_bytes_per_cta {
        let expected = format!("at most {}", device.shared_bytes_per_cta);
        return Err(refused("shared_bytes", &expected, spec.shared_bytes));
    }
    Ok(())
}

fn refused(name: &'static str, expected: &str, got: impl std::fmt::Debug) -> Error {
    Error::Request(RequestError::Value {
        name,
        expected: expected.into(),
        got: format!("{got:?}"),
    })
}

#[track_caller]
fn host_result(call: &str, result: std::result::Result<(), Box<Finding>>) -> Result<()> {
    let at = Location::caller();
    result.map_err(|finding| Error::Fault(Box::new(finding.into_fault(call, [0; 3], 0, at))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use gpu_kernels::gpu::{Memory, Threads};

    #[test]
    fn numbers_of_thread_blocks_may_start_over() {
        let emulator = Emulator::new();
        let word = emulator.allocate("word", 4).expect("small");
        let write = || {
            emulator.launch_fn("write", [1; 3], 1, 16, |lane| {
                // SAFETY: one lane, in bounds.
                unsafe {
                    lane.st_global_b32(word, 1);
                    lane.st_shared_b32(lane.shared_base(), 1);
                }
            })
        };
        write().expect("in bounds");
        emulator.lock("test").expect("no kernel").runs = RUNS - 1;
        let result = emulator.launch_fn("read", [1; 3], 1, 16, |lane| {
            // SAFETY: this thread block has not written it, which the emulator notices.
            unsafe { lane.ld_shared_b32(lane.shared_base()) };
        });
        assert!(result.is_err(), "it has the number of the one that wrote");
        let runs = emulator.lock("test").expect("no kernel").runs;
        assert_eq!(runs, 1, "started over");
        write().expect("nobody else is in this launch");
    }
}
