//! Running tiny kernels on the emulator: broken ones, whose fault is returned, and good ones.
#![allow(dead_code, reason = "each test file uses what it needs")]

use ferroattn::Error;
use ferroattn::emulator::{Emulator, Fault, Lane};
use ferroattn::runtime::DeviceMemory;

/// Runs a kernel in one thread block, in the natural order and in a few others; all must fault alike.
pub(crate) fn fault(
    threads: u32,
    shared_bytes: u32,
    kernel: impl Fn(Lane<'_>, &[u64; 2]) + Sync,
) -> Fault {
    fault_on([1; 3], threads, shared_bytes, kernel)
}

pub(crate) fn fault_on(
    grid: [u32; 3],
    threads: u32,
    shared_bytes: u32,
    kernel: impl Fn(Lane<'_>, &[u64; 2]) + Sync,
) -> Fault {
    let faults = (0..5).map(|seed| {
        let emulator = Emulator::with_seed(seed);
        let tensors = two_tensors(&emulator);
        let result = emulator.launch_fn("broken", grid, threads, shared_bytes, |lane| {
            kernel(lane, &tensors)
        });
        let Err(Error::Fault(fault)) = result else {
            panic!("expected a fault, got {result:?}");
        };
        assert!(fault.at.file().starts_with("tests/emulator"), "{fault}");
        assert_eq!(fault.kernel, "broken");
        *fault
    });
    faults
        .reduce(|first, other| {
            assert_eq!((first.kind, &first.tensor), (other.kind, &other.tensor));
            first
        })
        .expect("five")
}

/// Runs a kernel that must not fault, in the natural order and in a few others.
pub(crate) fn passes(
    grid: [u32; 3],
    threads: u32,
    shared_bytes: u32,
    kernel: impl Fn(Lane<'_>, &[u64; 2]) + Sync,
) {
    for seed in 0..5 {
        let emulator = Emulator::with_seed(seed);
        let tensors = two_tensors(&emulator);
        emulator
            .launch_fn("good", grid, threads, shared_bytes, |lane| {
                kernel(lane, &tensors)
            })
            .unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    }
}

/// `input`, 4 KiB that hold their own byte index modulo 251, and `out`, 4 KiB never written.
pub(crate) fn two_tensors(emulator: &Emulator) -> [u64; 2] {
    let input = emulator.allocate("input", 4096).expect("small");
    let out = emulator.allocate("out", 4096).expect("small");
    let bytes: Vec<u8> = (0..251).cycle().take(4096).collect();
    unsafe { emulator.copy_in(input, &bytes) }.expect("in bounds");
    [input, out]
}
