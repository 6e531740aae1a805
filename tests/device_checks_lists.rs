//! What a check on the device finds in the index lists of a decode over FP8 entries, and what it does not look at; on every
//! machine that is here.
#![allow(missing_docs, reason = "a test crate has no readers of its docs")]

mod common;
mod planted;

use common::{case, machines};
use ferroattn::cases::fill::Amount;
use ferroattn::cases::{Case, DeviceEntries, EntryTensors, HostList, run_case};
use ferroattn::error::CheckError;
use ferroattn::reference::HostTensor;
use ferroattn::runtime::Runtime;
use planted::{judge, plant, workspace};

const SEED: u64 = 3;

/// Two sequences of two query tokens: 12 indices each, of which 6, 0, 12, 12 count; a second list of 6, of which half do,
/// and so on.
const SLOTS: &str =
    "decode_mla_entry bf16 form=656 heads=4 page=16 lens=40,33 q_len=2 topk=12 swa=6 lengths=drawn";
/// The same of V4's entries, whose indices are tokens of the sequence.
const TOKENS: &str = "decode_mla_entry bf16 form=584 heads=4 page=16 lens=40,33 q_len=2 topk=12 lengths=drawn by=table";

/// Runs a decode on tensors that were changed.
fn run(
    machine: &dyn Runtime,
    line: &str,
    change: impl Fn(&mut EntryTensors),
) -> Result<(), CheckError> {
    let Case::DecodeEntries(case) = case(&format!("{line} check=device")) else {
        panic!("{line} is no decode over entries")
    };
    let mut tensors = EntryTensors::new(&case, SEED, Amount::WHOLE);
    change(&mut tensors);
    let mut device = DeviceEntries::new(machine, tensors).expect("memory");
    let plan = device.plan(&case, &machine.device()).expect("a plan");
    let mut workspace = workspace(machine, plan.workspace_bytes());
    let launched = device.launch(&case, 0, &plan, &mut workspace, machine);
    launched.unwrap_or_else(|error| panic!("{line}: {error}"));
    judge(machine, &workspace, device.results().expect("results"))
}

fn plant_i32(tensor: &mut HostTensor, index: &[usize], value: i32) {
    plant(tensor, index, value.to_le_bytes());
}

/// One of the two lists.
fn list(tensors: &mut EntryTensors, is_window: bool) -> &mut HostList {
    if is_window {
        &mut tensors.window.as_mut().expect("a window").1
    } else {
        tensors.topk.as_mut().expect("a list")
    }
}

#[test]
fn no_decode_follows_a_bad_index() {
    for machine in machines() {
        for (is_window, name, len) in [(false, "topk_indices", 12), (true, "window.indices", 6)] {
            let slots_of = |t: &EntryTensors| match is_window {
                false => 16 * t.cache.shape[0],
                true => 16 * t.window.as_ref().expect("a window").0.shape[0],
            };
            let Case::DecodeEntries(of_slots) = case(SLOTS) else {
                panic!("a decode over entries")
            };
            let tensors = EntryTensors::new(&of_slots, SEED, Amount::WHOLE);
            let num_slots = i32::try_from(slots_of(&tensors)).expect("few slots");
            for bad in [num_slots, i32::MAX] {
                for (row, at) in [(2, len - 1), (2, 0), (0, 0)] {
                    let found = run(machine.as_ref(), SLOTS, |t| {
                        plant_i32(&mut list(t, is_window).indices, &[row, at], bad);
                    });
                    let expected = format!(
                        "`{name}[{}, {}, {at}]` is {bad}, outside 0..{num_slots} (negative indices are skipped)",
                        row / 2,
                        row % 2
                    );
                    let found = found.expect_err(&expected);
                    assert_eq!(found.to_string(), expected, "on {}", machine.name());
                }
            }
            // Its largest slot, and padding of every kind.
            for good in [num_slots - 1, -1, -2, i32::MIN] {
                let found = run(machine.as_ref(), SLOTS, |t| {
                    plant_i32(&mut list(t, is_window).indices, &[2, 0], good);
                });
                assert_eq!(found, Ok(()), "{name} {good}");
            }
        }
    }
}

#[test]
fn indices_that_do_not_count_are_not_looked_at() {
    for machine in machines() {
        for is_window in [false, true] {
            let found = run(machine.as_ref(), SLOTS, |t| {
                let list = list(t, is_window);
                let len = list.indices.shape[1];
                for (row, from) in [(0, len / 2), (1, 0)] {
                    for at in from..len {
                        plant_i32(&mut list.indices, &[row, at], i32::MAX);
                    }
                }
            });
            assert_eq!(found, Ok(()), "on {}", machine.name());
            // The last that counts.
            let found = run(machine.as_ref(), SLOTS, |t| {
                let list = list(t, is_window);
                let last = list.indices.shape[1] / 2 - 1;
                plant_i32(&mut list.indices, &[0, last], i32::MAX);
            });
            assert!(
                matches!(
                    found,
                    Err(CheckError::ListIndex {
                        seq: 0,
                        token: 0,
                        ..
                    })
                ),
                "{found:?}"
            );
        }
    }
}

#[test]
fn lengths_are_those_of_lists() {
    for machine in machines() {
        for (is_window, name, len) in [(false, "topk_length", 12), (true, "window.length", 6)] {
            for (bad, row) in [(-1, 0), (i32::MIN, 1), (len + 1, 2), (i32::MAX, 3)] {
                let found = run(machine.as_ref(), SLOTS, |t| {
                    let lengths = list(t, is_window).lengths.as_mut().expect("lengths");
                    plant_i32(lengths, &[row], bad);
                });
                let expected = format!(
                    "`{name}` of query token {} of sequence {} is {bad}, outside 0..={len}",
                    row % 2,
                    row / 2
                );
                let found = found.expect_err(&expected);
                assert_eq!(found.to_string(), expected, "on {}", machine.name());
            }
            for good in [0, 1, len] {
                let found = run(machine.as_ref(), SLOTS, |t| {
                    let lengths = list(t, is_window).lengths.as_mut().expect("lengths");
                    plant_i32(lengths, &[1], good);
                });
                assert_eq!(found, Ok(()), "{name} {good}");
            }
        }
    }
}

#[test]
fn tokens_are_those_that_the_block_table_names() {
    for machine in machines() {
        let machine = machine.as_ref();
        assert_eq!(run(machine, TOKENS, |_| {}), Ok(()));
        // A row of the table has 4 columns of 16 tokens, the last of which is nobody's.
        for bad in [64, i32::MAX] {
            let found = run(machine, TOKENS, |t| {
                plant_i32(&mut list(t, false).indices, &[2, 3], bad);
            });
            let expected = format!(
                "`topk_indices[1, 0, 3]` is {bad}, outside 0..64 (negative indices are skipped)"
            );
            assert_eq!(found.expect_err(&expected).to_string(), expected);
        }
        // An entry of the table that some index needs, and one that none does.
        for (value, token) in [(-1, 20), (i32::MAX, 0)] {
            let found = run(machine, TOKENS, |t| {
                plant_i32(&mut list(t, false).indices, &[2, 3], token);
                let column = usize::try_from(token).expect("a token") / 16;
                plant_i32(&mut t.block_table, &[1, column], value);
            });
            match found {
                Err(CheckError::BlockId {
                    seq: 1,
                    position,
                    value: named,
                    ..
                }) => {
                    assert_eq!(i64::from(position), i64::from(token) / 16);
                    assert_eq!(named, i64::from(value));
                }
                other => panic!("{other:?}"),
            }
        }
        let found = run(machine, TOKENS, |t| {
            let indices = &mut list(t, false).indices;
            for row in 0..4 {
                for (at, token) in (0..12).enumerate() {
                    plant_i32(indices, &[row, at], token);
                }
            }
            for column in 1..4 {
                plant_i32(&mut t.block_table, &[0, column], -1);
            }
        });
        assert_eq!(found, Ok(()));
    }
}

/// The merge behind a fault, too.
#[test]
fn after_a_fault_in_a_list_no_kernel_writes() {
    for machine in machines() {
        let machine = machine.as_ref();
        for line in [
            "decode_mla_entry bf16 form=656 heads=4 page=16 lens=100,60 topk=90 split=32",
            "decode_mla_entry bf16 form=584 heads=4 page=16 lens=100,60 topk=50 swa=40 sinks=on split=32",
        ] {
            let checked = case(&format!("{line} check=device"));
            let outcome = run_case(&checked, machine, SEED);
            let outcome = outcome.unwrap_or_else(|error| panic!("{line}: {error}"));
            outcome
                .verdict
                .unwrap_or_else(|mismatch| panic!("{line}: {mismatch}"));
            assert!(outcome.plan.contains("check_lists "), "{}", outcome.plan);
            assert!(outcome.plan.contains("merge_few_bf16 "), "{}", outcome.plan);
            let found = run(machine, line, |t| {
                plant_i32(&mut list(t, false).indices, &[1, 7], i32::MAX);
            });
            assert!(
                matches!(
                    found,
                    Err(CheckError::ListIndex {
                        seq: 1,
                        token: 0,
                        position: 7,
                        ..
                    })
                ),
                "{found:?}"
            );
        }
    }
}
