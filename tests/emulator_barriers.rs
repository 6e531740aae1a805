//! The emulator: barriers that some warps of a thread block come to, and what they order.
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

use ferroattn::emulator::{FaultKind, Lane};
use gpu_kernels::gpu::{Memory, Threads};
use tiny_kernels::{fault, passes};

/// Rounds of a ring of two words: warp 0 fills them, warps 1 and 2 read them. `waits` says whether warp 0 waits until
/// both have read a word before it fills it again.
fn ring(lane: Lane<'_>, waits: bool) {
    let (full, empty) = (
        |slot: u32, reader: u32| 1 + slot * 2 + reader,
        |slot: u32| 5 + slot,
    );
    for round in 0..6 {
        let slot = round % 2;
        let word = lane.shared_base() + 4 * slot;
        unsafe {
            if lane.warp() == 0 {
                if waits && round >= 2 {
                    lane.barrier_sync(empty(slot), 96);
                }
                if lane.lane() == 0 {
                    lane.st_shared_b32(word, round);
                }
                lane.barrier_arrive(full(slot, 0), 64);
                lane.barrier_arrive(full(slot, 1), 64);
            } else {
                lane.barrier_sync(full(slot, lane.warp() - 1), 64);
                let seen = lane.ld_shared_b32(word);
                assert!(seen == round, "saw {seen} in round {round}");
                if waits && round < 4 {
                    lane.barrier_arrive(empty(slot), 96);
                }
            }
        }
    }
}

#[test]
fn a_ring_passes_words_from_warp_to_warp() {
    passes([2, 1, 1], 96, 8, |lane, _| ring(lane, true));
}

#[test]
fn a_word_must_not_be_filled_again_before_its_readers_are_done() {
    let fault = fault(96, 8, |lane, _| ring(lane, false));
    assert!(
        // Depending on who runs first, the word or the barrier is taken too early.
        [FaultKind::DataRace, FaultKind::BarrierDivergence].contains(&fault.kind),
        "{fault}"
    );
}

#[test]
fn a_barrier_orders_nobody_who_did_not_come() {
    let fault = fault(96, 4, |lane, _| unsafe {
        match lane.warp() {
            0 => {
                if lane.lane() == 0 {
                    lane.st_shared_b32(lane.shared_base(), 1);
                }
                lane.barrier_arrive(1, 64);
            }
            1 => lane.barrier_sync(1, 64),
            _ => {
                if lane.lane() == 0 {
                    lane.st_shared_b32(lane.shared_base(), 2);
                }
            }
        }
    });
    assert_eq!(fault.kind, FaultKind::DataRace);
}

#[test]
fn who_arrives_is_not_ordered_behind_those_who_wait() {
    let fault = fault(64, 4, |lane, _| unsafe {
        if lane.warp() == 0 {
            lane.barrier_arrive(1, 64);
            if lane.lane() == 0 {
                lane.st_shared_b32(lane.shared_base(), 1);
            }
        } else {
            if lane.lane() == 0 {
                lane.st_shared_b32(lane.shared_base(), 2);
            }
            lane.barrier_sync(1, 64);
        }
    });
    assert_eq!(fault.kind, FaultKind::DataRace);
}

#[test]
fn what_one_saw_is_passed_on() {
    passes([1; 3], 96, 4, |lane, _| unsafe {
        match lane.warp() {
            0 => {
                if lane.lane() == 0 {
                    lane.st_shared_b32(lane.shared_base(), 1);
                }
                lane.barrier_arrive(1, 64);
            }
            1 => {
                lane.barrier_sync(1, 64);
                lane.barrier_arrive(2, 64);
            }
            _ => {
                lane.barrier_sync(2, 64);
                lane.ld_shared_b32(lane.shared_base());
            }
        }
    });
}

#[test]
fn whoever_is_expected_must_come() {
    let alone = fault(64, 0, |lane, _| unsafe {
        if lane.warp() == 0 {
            lane.barrier_sync(3, 64);
        }
    });
    assert_eq!(alone.kind, FaultKind::BarrierDivergence);
    assert_eq!(alone.detail, "32 threads of 64 have come to barrier 3");

    let disagree = fault(64, 0, |lane, _| unsafe {
        lane.barrier_arrive(3, 32 + 32 * (1 - lane.warp() % 2) + 32);
    });
    assert_eq!(disagree.kind, FaultKind::BarrierDivergence);

    let twice = fault(64, 0, |lane, _| unsafe {
        if lane.warp() == 0 {
            lane.barrier_arrive(3, 64);
            lane.barrier_arrive(3, 64);
        }
    });
    assert_eq!(twice.kind, FaultKind::BarrierDivergence);

    for (barrier, threads) in [(16, 64), (1, 33), (1, 96)] {
        let bad = fault(64, 0, |lane, _| unsafe {
            lane.barrier_arrive(barrier, threads);
        });
        assert_eq!(bad.kind, FaultKind::BarrierDivergence);
        assert_eq!(
            bad.detail,
            format!("barrier {barrier} for {threads} threads of 64")
        );
    }

    let some_lanes = fault(32, 0, |lane, _| unsafe {
        if lane.lane() < 7 {
            lane.barrier_sync(1, 32);
        }
    });
    assert_eq!(some_lanes.kind, FaultKind::MissingLanes);
}
