//! The emulator: a tiny broken kernel for each kind of fault in memory, and launches and copies that are refused.
#![allow(
    clippy::undocumented_unsafe_blocks,
    reason = "the emulator checks what the kernels below promise; breaking the promise is the point"
)]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "small test data"
)]
#![allow(missing_docs, reason = "a test crate has no readers of its docs")]

mod tiny_kernels;

use ferroattn::Error;
use ferroattn::emulator::{Emulator, FaultKind};
use ferroattn::runtime::DeviceMemory;
use gpu_kernels::gpu::{Memory, Threads};
use tiny_kernels::{fault, fault_on, two_tensors};

#[test]
fn a_store_behind_the_end_is_out_of_bounds() {
    let fault = fault(64, 0, |lane, &[_, out]| {
        let index = u64::from(lane.thread_idx()) + 1024 - 63;
        unsafe { lane.st_global_b32(out + 4 * index, 1) };
    });
    assert_eq!(fault.kind, FaultKind::OutOfBounds);
    assert_eq!((fault.tensor.as_str(), fault.index), ("out", 4096));
    assert_eq!((fault.thread, fault.block), (63, [0; 3]));
    assert!(
        fault.to_string().contains("`out` byte 4096, thread 63"),
        "{fault}"
    );
}

#[test]
fn a_negative_index_names_its_tensor() {
    let fault = fault(1, 0, |lane, &[_, out]| {
        unsafe { lane.ld_global_b128(out - 16) };
    });
    assert_eq!(fault.kind, FaultKind::OutOfBounds);
    assert_eq!((fault.tensor.as_str(), fault.index), ("out", -16));
}

#[test]
fn null_and_wild_addresses_are_out_of_bounds() {
    for address in [0, 4, 1 << 40, u64::MAX - 3] {
        let fault = fault(1, 0, |lane, _| {
            unsafe { lane.ld_global_b32(address) };
        });
        assert_eq!(
            (fault.kind, fault.tensor.as_str()),
            (FaultKind::OutOfBounds, "")
        );
    }
}

#[test]
fn no_wild_index_lands_in_another_tensor() {
    for seed in 0..3 {
        let emulator = Emulator::with_seed(seed);
        // As a model has them: caches of many layers, and small things between.
        let tensors: Vec<u64> = (0..60)
            .map(|i| [4096, 1 << 20, 40][i % 3])
            .map(|bytes| emulator.allocate("tensor", bytes).expect("small"))
            .collect();
        for &tensor in &tensors {
            unsafe { emulator.copy_in(tensor, &[1; 40]) }.expect("in bounds");
        }
        let misses = |jump: u64| {
            let wild: Vec<u64> = tensors
                .iter()
                .flat_map(|tensor| [tensor.wrapping_add(jump), tensor.wrapping_sub(jump)])
                .collect();
            let mut byte = [0];
            let hit = |&place: &u64| unsafe { emulator.copy_out(place, &mut byte) }.is_ok();
            assert!(!wild.iter().any(hit), "a jump by {jump:#x}");
        };
        for bit in 20..64 {
            misses(1 << bit);
        }
        // Indices that nobody meant, times the bytes of a block or an entry.
        for index in [
            i64::from(i32::MAX),
            i64::from(i32::MIN),
            1 << 31,
            0x7f7f_7f7f,
        ] {
            for stride in [656, 1152, 4096, 73_728, 1 << 18, 1 << 21] {
                misses((index * stride) as u64);
            }
        }
    }
}

#[test]
fn freed_memory_stays_forbidden() {
    let emulator = Emulator::new();
    let [input, _] = two_tensors(&emulator);
    unsafe { emulator.free(input, 4096) };
    let result = emulator.launch_fn("late", [1; 3], 1, 0, |lane| {
        unsafe { lane.ld_global_b32(input) };
    });
    let message = result.unwrap_err().to_string();
    assert!(
        message.contains("`input` byte 0") && message.contains("it was freed"),
        "{message}"
    );
}

#[test]
fn shared_memory_ends_where_the_launch_says() {
    for (address, index) in [(0, -0x400), (0x400 + 48, 48)] {
        let fault = fault(1, 48, |lane, _| {
            unsafe { lane.st_shared_b128(address, [0; 4]) };
        });
        assert_eq!(fault.kind, FaultKind::OutOfBounds);
        assert_eq!(
            (fault.tensor.as_str(), fault.index),
            ("shared memory", index)
        );
    }
}

#[test]
fn vector_accesses_must_be_aligned() {
    let global = fault(1, 0, |lane, &[input, _]| {
        unsafe { lane.ld_global_b64(input + 12) };
    });
    assert_eq!(global.kind, FaultKind::Misaligned);
    assert_eq!((global.tensor.as_str(), global.index), ("input", 12));

    let shared = fault(1, 64, |lane, _| {
        unsafe { lane.st_shared_b128(lane.shared_base() + 8, [0; 4]) };
    });
    assert_eq!(shared.kind, FaultKind::Misaligned);
    assert_eq!((shared.tensor.as_str(), shared.index), ("shared memory", 8));
}

#[test]
fn bytes_never_written_must_not_be_read() {
    let global = fault(1, 0, |lane, &[_, out]| unsafe {
        lane.st_global_b16(out, 1);
        lane.st_global_b8(out + 3, 1);
        lane.ld_global_b32(out);
    });
    assert_eq!(global.kind, FaultKind::UninitialisedRead);
    assert_eq!((global.tensor.as_str(), global.index), ("out", 2));

    let shared = fault(1, 64, |lane, _| unsafe {
        lane.st_shared_b32(lane.shared_base(), 1);
        lane.ld_shared_b128(lane.shared_base());
    });
    assert_eq!(shared.kind, FaultKind::UninitialisedRead);
    assert_eq!((shared.tensor.as_str(), shared.index), ("shared memory", 4));
}

#[test]
fn shared_memory_is_not_inherited_from_the_thread_block_before() {
    let fault = fault_on([4, 1, 1], 1, 16, |lane, _| unsafe {
        if lane.cta_idx_x() == 0 {
            lane.st_shared_b32(lane.shared_base(), 1);
        }
        lane.ld_shared_b32(lane.shared_base());
    });
    assert_eq!(
        (fault.kind, fault.block),
        (FaultKind::UninitialisedRead, [1, 0, 0])
    );
}

#[test]
fn impossible_launches_are_refused() {
    let emulator = Emulator::new();
    for (grid, threads, shared_bytes, name) in [
        ([1, 0, 1], 32, 0, "grid"),
        ([1, 65536, 1], 32, 0, "grid"),
        ([1, 1, 1], 1025, 0, "threads"),
        ([1, 1, 1], 32, 101_377, "shared_bytes"),
    ] {
        let error = emulator
            .launch_fn("unborn", grid, threads, shared_bytes, |_| unreachable!())
            .unwrap_err();
        assert!(
            error.to_string().starts_with(&format!("`{name}` must be ")),
            "{error}"
        );
    }
}

#[test]
fn host_copies_are_checked_too() {
    let emulator = Emulator::new();
    let [input, _] = two_tensors(&emulator);
    let error = unsafe { emulator.copy_in(input + 4090, &[0; 7]) }.unwrap_err();
    let Error::Fault(fault) = error else {
        panic!("{error}");
    };
    assert_eq!(
        (fault.kind, fault.kernel.as_str()),
        (FaultKind::OutOfBounds, "copy_in")
    );
    assert_eq!(fault.at.file(), file!());
}
