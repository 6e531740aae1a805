//! What does the emulator say about a broken kernel?
//!
//! The kernel sums 64 numbers through shared memory and forgets one barrier: the second warp may read the
//! partial sum of the first before it is there. On a GPU that goes wrong now and then; here always, with the
//! line. Run it with `cargo run --example emulate_a_race`.

use ferroattn::Error;
use ferroattn::emulator::{Emulator, FaultKind, Lane};
use ferroattn::runtime::DeviceMemory;
use gpu_kernels::gpu::{Memory, Threads, WARP};

const THREADS: u32 = 64;

/// `out[0] = sum of input[0..64]`; correct if `with_barrier`.
fn sum(gpu: Lane<'_>, input: u64, out: u64, with_barrier: bool) {
    // SAFETY: what the contract of `Gpu` asks for, the emulator checks.
    unsafe {
        let mut sum = gpu.ld_global_b32(input + 4 * u64::from(gpu.thread_idx()));
        for step in [16, 8, 4, 2, 1] {
            sum += gpu.shfl_xor(sum, step);
        }
        let slot = |warp: u32| gpu.shared_base() + 4 * warp;
        if gpu.lane() == 0 {
            gpu.st_shared_b32(slot(gpu.warp()), sum);
        }
        if with_barrier {
            gpu.sync_cta();
        }
        if gpu.thread_idx() == WARP {
            let total = gpu.ld_shared_b32(slot(0)) + gpu.ld_shared_b32(slot(1));
            gpu.st_global_b32(out, total);
        }
    }
}

fn main() -> Result<(), Error> {
    let emulator = Emulator::new();
    let input = emulator.allocate("input", 4 * THREADS as usize)?;
    let out = emulator.allocate("out", 4)?;
    let numbers: Vec<u8> = (0..THREADS).flat_map(u32::to_le_bytes).collect();
    // SAFETY: `input` is that long.
    unsafe { emulator.copy_in(input, &numbers)? };

    let launch = |with_barrier| {
        emulator.launch_fn("sum", [1; 3], THREADS, 8, |gpu| {
            sum(gpu, input, out, with_barrier)
        })
    };
    let Err(Error::Fault(fault)) = launch(false) else {
        panic!("the missing barrier went unnoticed");
    };
    println!("without the barrier: {fault}");
    assert_eq!(fault.kind, FaultKind::DataRace);

    launch(true)?;
    let mut total = [0; 4];
    // SAFETY: `out` is that long.
    unsafe { emulator.copy_out(out, &mut total)? };
    println!("with it: {}", u32::from_le_bytes(total));
    assert_eq!(u32::from_le_bytes(total), (0..THREADS).sum::<u32>());
    Ok(())
}
