//! The emulator: asynchronous copies, whose targets nobody may touch and whose sources nobody may change before
//! they are waited for.
#![allow(
    clippy::undocumented_unsafe_blocks,
    reason = "the emulator checks what the kernels below promise; breaking the promise is the point"
)]
#![allow(missing_docs, reason = "a test crate has no readers of its docs")]

mod tiny_kernels;

use ferroattn::emulator::{Emulator, Fault, FaultKind, Lane};
use gpu_kernels::gpu::{Line, Memory, Threads};
use tiny_kernels::{fault, fault_on, passes, two_tensors};

#[test]
fn an_asynchronous_copy_must_be_waited_for() {
    // By nobody; by somebody else; without a commit; or for an older group only.
    let copy = |lane: Lane<'_>, input: u64| unsafe {
        lane.cp_async_b128(lane.shared_base(), input, true, Line::ONCE);
    };
    let faults = [
        fault(1, 16, |lane, &[input, _]| {
            copy(lane, input);
            lane.cp_async_commit();
            unsafe { lane.ld_shared_b32(lane.shared_base()) };
        }),
        fault(32, 16, |lane, &[input, _]| {
            if lane.lane() == 0 {
                copy(lane, input);
                lane.cp_async_commit();
            } else {
                lane.cp_async_wait::<0>();
            }
            unsafe { lane.sync_warp() };
            if lane.lane() != 0 {
                unsafe { lane.ld_shared_b32(lane.shared_base()) };
            }
        }),
        fault(1, 16, |lane, &[input, _]| {
            copy(lane, input);
            lane.cp_async_wait::<0>();
            unsafe { lane.st_shared_b128(lane.shared_base(), [0; 4]) };
        }),
        fault(1, 16, |lane, &[input, _]| {
            lane.cp_async_commit();
            copy(lane, input);
            lane.cp_async_commit();
            lane.cp_async_wait::<1>();
            unsafe { lane.ld_shared_b128(lane.shared_base()) };
        }),
    ];
    for fault in faults {
        assert_eq!(fault.kind, FaultKind::AsyncCopyNotWaited);
        assert_eq!((fault.tensor.as_str(), fault.index), ("shared memory", 0));
        assert!(fault.detail.starts_with("thread 0 "), "{fault}");
    }
}

#[test]
fn a_copy_that_was_waited_for_is_not_yet_visible_to_others() {
    let fault = fault(32, 512, |lane, &[input, _]| unsafe {
        lane.cp_async_b128(
            lane.shared_base() + 16 * lane.lane(),
            input,
            true,
            Line::ONCE,
        );
        lane.cp_async_commit();
        lane.cp_async_wait::<0>();
        lane.any(true); // so that all have waited, which orders nothing
        lane.ld_shared_b128(lane.shared_base() + 16 * (lane.lane() ^ 1));
    });
    assert_eq!(fault.kind, FaultKind::DataRace);
}

/// Thread 0 of two warps copies 16 bytes of `input`, from byte 32 on.
fn begin(lane: Lane<'_>, input: u64) {
    if lane.thread_idx() == 0 {
        unsafe { lane.cp_async_b128(lane.shared_base(), input + 32, true, Line::ONCE) };
        lane.cp_async_commit();
    }
}

fn assert_source(fault: &Fault, index: i64) {
    assert_eq!(fault.kind, FaultKind::AsyncCopyNotWaited, "{fault}");
    assert_eq!((fault.tensor.as_str(), fault.index), ("input", index));
    let copier = "thread 0 copies from here and has not waited for it";
    assert!(fault.detail.starts_with(copier), "{fault}");
}

#[test]
fn the_source_of_a_copy_must_not_be_written_before_it_is_waited_for() {
    let words = [1, 2, 3, 4];
    // By the lane itself: every width, at either end of the source and around it.
    let own = fault(1, 16, |lane, &[input, _]| unsafe {
        begin(lane, input);
        lane.st_global_b128(input + 32, words);
    });
    assert_source(&own, 32);
    for last in [47, 44] {
        let part = fault(1, 16, |lane, &[input, _]| unsafe {
            begin(lane, input);
            match last {
                47 => lane.st_global_b8(input + 47, 1),
                _ => lane.st_global_b32(input + 44, 1),
            }
        });
        assert_source(&part, last);
    }
    // By another warp, and by the same one, though a barrier lies between.
    for thread in [1, 63] {
        let other = fault(64, 16, |lane, &[input, _]| unsafe {
            begin(lane, input);
            lane.sync_cta();
            if lane.thread_idx() == thread {
                lane.st_global_b16(input + 38, 1);
            }
        });
        assert_eq!(other.thread, thread);
        assert_source(&other, 38);
    }
    // Without a commit; by an atomic; after a wait for an older group; after the lane that copied has left.
    let open = fault(1, 16, |lane, &[input, _]| unsafe {
        lane.cp_async_b128(lane.shared_base(), input + 32, true, Line::ONCE);
        lane.cp_async_wait::<0>();
        lane.atomic_cas_global_b32(input + 36, 0, 1);
    });
    assert_source(&open, 36);
    let younger = fault(1, 32, |lane, &[input, _]| unsafe {
        lane.cp_async_b128(lane.shared_base() + 16, input, true, Line::ONCE);
        lane.cp_async_commit();
        begin(lane, input);
        lane.cp_async_wait::<1>();
        lane.st_global_b128(input, words);
        lane.st_global_b64(input + 40, 1);
    });
    assert_source(&younger, 40);
    let left = fault(64, 16, |lane, &[input, _]| unsafe {
        begin(lane, input);
        if lane.warp() == 0 {
            lane.barrier_arrive(1, 64);
        } else {
            lane.barrier_sync(1, 64);
            if lane.lane() == 0 {
                lane.st_global_b32(input + 32, 1);
            }
        }
    });
    assert_source(&left, 32);
}

#[test]
fn another_thread_block_must_not_write_the_source_at_all() {
    let fault = fault_on([2, 1, 1], 1, 16, |lane, &[input, _]| unsafe {
        if lane.cta_idx_x() == 0 {
            begin(lane, input);
            lane.cp_async_wait::<0>();
        } else {
            lane.st_global_b32(input + 32, 1);
        }
    });
    assert_eq!((fault.kind, fault.index), (FaultKind::DataRace, 32));
}

#[test]
fn a_copy_of_one_word_keeps_that_word_alone() {
    let copy = |lane: Lane<'_>, input: u64| unsafe {
        lane.cp_async_b32(lane.shared_base(), input + 4, true);
        lane.cp_async_commit();
    };
    let fault = fault(1, 16, |lane, &[input, _]| {
        copy(lane, input);
        unsafe { lane.st_global_b8(input + 5, 1) };
    });
    assert_eq!(
        (fault.kind, fault.index),
        (FaultKind::AsyncCopyNotWaited, 5)
    );
    passes([1; 3], 1, 16, |lane, &[input, _]| unsafe {
        copy(lane, input);
        lane.st_global_b32(input, 1);
        lane.st_global_b64(input + 8, 1);
    });
}

#[test]
fn a_source_may_be_read_at_any_time_and_written_once_all_have_waited() {
    passes([1; 3], 64, 1024, |lane, &[input, _]| unsafe {
        for round in 0..3 {
            // All copy the same bytes; a copy that is not valid has no source.
            let target = lane.shared_base() + 16 * lane.thread_idx();
            lane.cp_async_b128(target, input, true, Line::ONCE);
            lane.cp_async_commit();
            lane.ld_global_b128(input);
            lane.cp_async_wait::<0>();
            lane.sync_cta();
            if lane.thread_idx() == 5 {
                lane.st_global_b32(input + 8, round);
            }
            lane.sync_cta();
            lane.cp_async_b128(target, input, false, Line::ONCE);
            if lane.thread_idx() == 7 {
                lane.st_global_b32(input + 12, round);
            }
            lane.cp_async_commit();
            lane.cp_async_wait::<0>();
            lane.sync_cta();
        }
    });
}

#[test]
fn a_copy_that_nobody_waits_for_ends_with_its_thread_block() {
    let emulator = Emulator::new();
    let [input, _] = two_tensors(&emulator);
    let copy = |fails: bool| {
        emulator.launch_fn("copy", [4, 1, 1], 32, 16, |lane| {
            begin(lane, input);
            assert!(!fails, "on purpose");
        })
    };
    let write = || {
        emulator.launch_fn("write", [1; 3], 1, 0, |lane| unsafe {
            lane.st_global_b128(input + 32, [0; 4]);
        })
    };
    copy(false).expect("each only reads");
    write().expect("a launch later");
    assert!(copy(true).is_err());
    write().expect("after a fault too");
}
