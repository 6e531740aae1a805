//! The emulator: a tiny broken kernel for each kind of race, barrier and deadlock.
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

use ferroattn::emulator::{Emulator, FaultKind};
use gpu_kernels::gpu::{Memory, Threads};
use tiny_kernels::{fault, fault_on, two_tensors};

#[test]
fn lanes_of_a_warp_need_sync_warp() {
    let fault = fault(32, 128, |lane, _| unsafe {
        let mine = lane.shared_base() + 4 * lane.lane();
        lane.st_shared_b32(mine, lane.lane());
        lane.shfl_xor(0, 1); // orders no memory
        lane.ld_shared_b32(lane.shared_base() + 4 * (lane.lane() ^ 1));
    });
    assert_eq!(
        (fault.kind, fault.tensor.as_str()),
        (FaultKind::DataRace, "shared memory")
    );
    assert!(
        fault
            .detail
            .contains(&format!("thread {} wrote", fault.thread ^ 1)),
        "{fault}"
    );
}

#[test]
fn warps_need_sync_cta() {
    let fault = fault(64, 256, |lane, _| unsafe {
        let word = |thread: u32| lane.shared_base() + 4 * thread;
        lane.st_shared_b32(word(lane.thread_idx()), 0);
        lane.sync_cta();
        lane.st_shared_b32(word(lane.thread_idx()), 1);
        lane.sync_warp();
        lane.ld_shared_b32(word(lane.thread_idx() ^ 32));
    });
    assert_eq!(fault.kind, FaultKind::DataRace);
}

#[test]
fn a_buffer_must_not_be_overwritten_before_its_readers_are_done() {
    let fault = fault(64, 16, |lane, _| unsafe {
        if lane.thread_idx() == 0 {
            lane.st_shared_b128(lane.shared_base(), [1; 4]);
        }
        lane.sync_cta();
        lane.ld_shared_b32(lane.shared_base() + 4);
        if lane.thread_idx() == 0 {
            lane.st_shared_b128(lane.shared_base(), [2; 4]);
        }
    });
    assert_eq!((fault.kind, fault.index), (FaultKind::DataRace, 4));
}

#[test]
fn one_byte_written_twice_is_a_race_in_global_memory() {
    let fault = fault(32, 0, |lane, &[_, out]| unsafe {
        lane.st_global_b8(out + u64::from(lane.lane() % 31), 1);
    });
    assert_eq!(fault.kind, FaultKind::DataRace);
    assert_eq!((fault.tensor.as_str(), fault.index), ("out", 0));
    assert!([0, 31].contains(&fault.thread));
}

#[test]
fn a_word_races_with_its_bytes() {
    let fault = fault(32, 0, |lane, &[_, out]| unsafe {
        match lane.lane() {
            0 => lane.st_global_b32(out, 1),
            1 => lane.st_global_b8(out + 2, 1),
            _ => {}
        }
    });
    assert_eq!(
        (fault.kind, fault.tensor.as_str()),
        (FaultKind::DataRace, "out")
    );
}

#[test]
fn thread_blocks_must_not_share_what_one_of_them_writes() {
    let fault = fault_on([2, 1, 1], 1, 0, |lane, &[_, out]| unsafe {
        lane.st_global_b32(out + 8, lane.cta_idx_x());
    });
    assert_eq!((fault.kind, fault.index), (FaultKind::DataRace, 8));
    assert!(fault.detail.contains("of thread block"), "{fault}");
}

#[test]
fn atomics_race_with_plain_accesses() {
    let fault = fault(64, 0, |lane, &[input, _]| unsafe {
        match lane.thread_idx() {
            0 => _ = lane.atomic_cas_global_b32(input, 0x0302_0100, 7),
            32 => _ = lane.ld_global_b32(input),
            _ => {}
        }
    });
    assert_eq!(
        (fault.kind, fault.tensor.as_str()),
        (FaultKind::DataRace, "input")
    );
}

#[test]
fn every_thread_must_reach_the_barrier() {
    let exited = fault(64, 0, |lane, _| {
        if lane.thread_idx() != 40 {
            unsafe { lane.sync_cta() };
        }
    });
    assert_eq!(
        (exited.kind, exited.thread),
        (FaultKind::BarrierDivergence, 0)
    );
    assert_eq!(exited.detail, "thread 40 has exited");

    let elsewhere = fault(32, 0, |lane, _| unsafe {
        if lane.lane() < 5 {
            lane.sync_warp();
        } else {
            lane.sync_cta();
        }
    });
    assert_eq!(
        (elsewhere.kind, elsewhere.thread),
        (FaultKind::BarrierDivergence, 5)
    );
    assert!(
        elsewhere
            .detail
            .starts_with(concat!("thread 0 is in sync_warp, at ", file!(), ":"))
    );
}

#[test]
fn every_lane_must_join_a_warp_operation() {
    let exited = fault(64, 0, |lane, _| {
        if lane.thread_idx() != 63 {
            unsafe { lane.shfl(1, 2) };
        }
    });
    assert_eq!((exited.kind, exited.thread), (FaultKind::MissingLanes, 32));
    assert_eq!(exited.detail, "thread 63 has exited");

    let different = fault(32, 0, |lane, _| unsafe {
        if lane.lane() < 16 {
            lane.any(true);
        } else {
            lane.shfl_xor(1, 1);
        }
    });
    assert_eq!(
        (different.kind, different.thread),
        (FaultKind::MissingLanes, 0)
    );
    assert!(
        different.detail.contains("thread 16 is in shfl_xor, at "),
        "{different}"
    );

    let elsewhere = fault(32, 0, |lane, _| unsafe {
        if lane.lane() < 16 {
            lane.any(true);
        } else {
            lane.any(false);
        }
    });
    assert_eq!(elsewhere.kind, FaultKind::MissingLanes);

    let half_a_warp = fault(48, 0, |lane, _| {
        unsafe { lane.sync_warp() };
    });
    assert_eq!(
        (half_a_warp.kind, half_a_warp.thread),
        (FaultKind::MissingLanes, 32)
    );
    assert_eq!(half_a_warp.detail, "the warp has 16 lanes");
}

#[test]
fn shuffles_must_name_a_lane_and_agree() {
    let outside = fault(32, 0, |lane, _| {
        unsafe { lane.shfl(1, lane.lane() + 1) };
    });
    assert_eq!(
        (outside.kind, outside.thread),
        (FaultKind::MissingLanes, 31)
    );

    let contradicting = fault(32, 0, |lane, _| {
        unsafe { lane.shfl_xor(1, lane.lane() & 1) };
    });
    assert_eq!(
        (contradicting.kind, contradicting.thread),
        (FaultKind::MissingLanes, 0)
    );
}

#[test]
fn asking_an_atomic_forever_is_a_deadlock() {
    let fault = fault(2, 0, |lane, &[input, _]| unsafe {
        if lane.lane() == 1 {
            while lane.atomic_cas_global_b32(input + 4, 0, 1) != 0 {}
        }
    });
    assert_eq!((fault.kind, fault.thread), (FaultKind::Deadlock, 1));
    assert_eq!((fault.tensor.as_str(), fault.index), ("input", 4));
}

#[test]
fn a_panic_is_a_fault() {
    let fault = fault(32, 0, |lane, _| {
        unsafe { lane.sync_warp() };
        assert!(lane.lane() != 9, "nine");
    });
    assert_eq!((fault.kind, fault.thread), (FaultKind::Panicked, 9));
    assert!(fault.detail.starts_with("nine"), "{fault}");
}

#[test]
fn the_first_thread_block_with_a_fault_is_named() {
    for _ in 0..20 {
        let fault = fault_on([5, 4, 3], 1, 0, |lane, _| {
            let block = [lane.cta_idx_x(), lane.cta_idx_y(), lane.cta_idx_z()];
            if block >= [2, 1, 1] && block[2] == 1 {
                unsafe { lane.ld_global_b32(0) };
            }
        });
        assert_eq!(fault.block, [3, 0, 1]);
    }
}

#[test]
fn the_machine_works_after_a_fault() {
    let emulator = Emulator::new();
    let [input, _] = two_tensors(&emulator);
    for round in 0..3 {
        let bad = emulator.launch_fn("bad", [8, 1, 1], 64, 0, |lane| unsafe {
            lane.sync_cta();
            lane.st_global_b32(input, 0);
        });
        assert!(bad.is_err(), "round {round}");
        let good = emulator.launch_fn("good", [8, 1, 1], 64, 0, |lane| unsafe {
            lane.sync_cta();
            lane.ld_global_b32(input);
        });
        assert!(good.is_ok(), "round {round}");
    }
}
