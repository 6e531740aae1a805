//! What a check on the device finds in attention's tensors, and what it does not look at; on every machine that is here.
#![allow(missing_docs, reason = "a test crate has no readers of its docs")]

mod common;
mod planted;

use common::{case, emulated, machines};
use ferroattn::Error;
use ferroattn::cases::fill::{self, Amount, NO_BLOCK};
use ferroattn::cases::{
    Case, DeviceDecode, DeviceEntries, DeviceUnified, EntryTensors, UnifiedTensors, run_case,
};
use ferroattn::emulator::Emulator;
use ferroattn::error::CheckError;
use ferroattn::ops::{DecodeOptions, ScoreMods, UnifiedOptions, check_result};
use ferroattn::runtime::{DeviceMemory, Launcher, Runtime};
use ferroattn::tensor::{Dtype, TensorView};
use planted::{judge, plant, workspace};

const SEED: u64 = 3;

/// Runs unified attention on tensors and options that were changed.
fn unified(
    machine: &dyn Runtime,
    line: &str,
    change: impl Fn(&mut UnifiedTensors),
    options: impl Fn(&mut UnifiedOptions<'_>),
) -> Result<(), CheckError> {
    let Case::Unified(case) = case(&format!("{line} check=device")) else {
        panic!("{line} is no unified attention")
    };
    let mut tensors = UnifiedTensors::new(&case, SEED, Amount::WHOLE).expect("few tokens");
    change(&mut tensors);
    let mut device = DeviceUnified::new(machine, tensors).expect("memory");
    let mut request = device.request(&case, SEED, 0).expect("views");
    options(&mut request.options);
    let checked = request.check().expect("a good request");
    let plan = checked.plan(&machine.device()).expect("a plan");
    let mut workspace = workspace(machine, plan.workspace_bytes());
    let launched = checked.launch(&plan, &mut workspace.view_mut(), machine);
    launched.unwrap_or_else(|error| panic!("{line}: {error}"));
    judge(machine, &workspace, device.results().expect("results"))
}

/// Runs a decode, over heads or a latent cache, with a bad or missing block in its table.
fn decode(
    machine: &dyn Runtime,
    line: &str,
    planted: &[([usize; 2], i32)],
) -> Result<(), CheckError> {
    let (plan, record, results);
    match case(&format!("{line} check=device")) {
        Case::Decode(case) => {
            let mut tensors = fill::decode(&case, SEED, Amount::WHOLE);
            for (index, block) in planted {
                plant(&mut tensors.block_table, index, block.to_le_bytes());
            }
            let mut device = DeviceDecode::new(machine, tensors).expect("memory");
            plan = device.plan(&case, &machine.device()).expect("a plan");
            let mut workspace = workspace(machine, plan.workspace_bytes());
            let launched = device.launch(&case, 0, &plan, &mut workspace, machine);
            launched.unwrap_or_else(|error| panic!("{line}: {error}"));
            (record, results) = (workspace, device.results());
        }
        Case::DecodeEntries(case) => {
            let mut tensors = EntryTensors::new(&case, SEED, Amount::WHOLE);
            for (index, block) in planted {
                plant(&mut tensors.block_table, index, block.to_le_bytes());
            }
            let mut device = DeviceEntries::new(machine, tensors).expect("memory");
            plan = device.plan(&case, &machine.device()).expect("a plan");
            let mut workspace = workspace(machine, plan.workspace_bytes());
            let launched = device.launch(&case, 0, &plan, &mut workspace, machine);
            launched.unwrap_or_else(|error| panic!("{line}: {error}"));
            (record, results) = (workspace, device.results());
        }
        other => panic!("{other} is no decode"),
    }
    judge(machine, &record, results.expect("results"))
}

/// Every kernel of attention that takes a record, whole and with a merge behind it.
#[test]
fn after_a_fault_no_kernel_writes() {
    let is_bad = |found: Result<(), CheckError>| matches!(found, Err(CheckError::BlockId { .. }));
    let decodes = [
        "decode bf16 heads=4/2 d=64 page=16 layout=nhd lens=40,33,20",
        "decode bf16 heads=4/2 d=64 page=16 layout=nhd lens=400,33,20 split=64",
        "decode bf16 heads=4/2 d=64 page=16 layout=nhd lens=400,33,20 split=64 window=200",
        "decode bf16 heads=4/2 d=64 page=16 layout=nhd lens=900,33,20 split=scheduled",
        "decode bf16 heads=4/2 kv=fp8_e4m3 d=64 page=16 layout=nhd lens=40,33,20",
        "decode_mla bf16 heads=4/1 d=576 dv=512 page=16 layout=nhd lens=40,33,20",
        "decode_mla bf16 heads=4/1 d=576 dv=512 page=16 layout=nhd lens=200,33,20 split=32",
        "decode_mla bf16 heads=40/1 d=576 dv=512 page=16 layout=nhd lens=40,33,20",
        "decode_mla bf16 heads=40/1 kv=fp8_e4m3 d=576 dv=512 page=16 layout=nhd lens=40,33,20",
        "decode_mla bf16 heads=40/1 d=288 dv=256 page=16 layout=nhd lens=40,33,20",
        "decode_mla_entry bf16 form=656 heads=4 page=16 lens=40,33,20",
        "decode_mla_entry bf16 form=656 heads=4 page=16 lens=200,33,20 split=32",
        "decode_mla_entry bf16 form=584 heads=4 page=16 lens=40,33,20",
        "decode_mla_entry bf16 form=656 heads=64 page=16 lens=40,33,20",
        "decode_mla_entry bf16 form=584 heads=64 page=16 lens=40,33,20",
    ];
    let unifieds = [
        "unified bf16 heads=4/2 d=64 page=16 layout=nhd lens=40,33,20 q_lens=3,1,2",
        "unified bf16 heads=4/2 d=64 page=16 layout=nhd lens=900,33,20 q_lens=3,1,2 split=64",
        "unified bf16 heads=4/2 d=64 page=16 layout=nhd lens=40,33,20 q_lens=1,0,1 max_q_len=1",
        "unified bf16 heads=4/2 kv=fp8_e4m3 d=64 page=16 layout=nhd lens=40,33,20 q_lens=3,1,2",
        "unified bf16 heads=4/2 kv=fp8_e4m3 q=fp8_e4m3 d=64 page=16 layout=nhd lens=40,33,20 q_lens=3,1,2",
        "unified bf16 heads=4/2 d=256 page=16 layout=nhd lens=40,33,20 q_lens=3,1,2",
    ];
    let mut machines = machines();
    // On which groups of warps multiply, and one that is as large, but where they do not.
    for capability in [(9, 0), (10, 0)] {
        machines.push(Box::new(emulated(capability)));
    }
    let mut plans = Vec::new();
    for machine in &machines {
        let machine = machine.as_ref();
        let pass = |line: &str| {
            let outcome = run_case(&case(&format!("{line} check=device")), machine, SEED);
            let outcome = outcome.unwrap_or_else(|error| panic!("{line}: {error}"));
            outcome
                .verdict
                .unwrap_or_else(|mismatch| panic!("{line}: {mismatch}"));
            outcome.plan
        };
        for line in decodes {
            plans.push(pass(line));
            assert!(is_bad(decode(machine, line, &[([2, 0], -1)])), "{line}");
        }
        for line in unifieds {
            plans.push(pass(line));
            let bad = |t: &mut UnifiedTensors| {
                plant(&mut t.base.block_table, &[2, 0], (-1i32).to_le_bytes());
            };
            assert!(is_bad(unified(machine, line, bad, |_| {})), "{line}");
        }
    }
    for kernel in [
        "decode_gqa_bf16_d64_h8 ",
        "decode_gqa_bf16_d64_h8_rule ",
        "decode_gqa_e4m3_",
        "decode_mla_bf16_d576v512_h16 ",
        "decode_mla_bf16_d576v512_h64_sm90a ",
        "decode_mla_e4m3_d576v512_h64 ",
        "decode_mla_e4m3_d576v512_h64_sm90a ",
        "decode_mla_bf16_d288v256_h64 ",
        "decode_mla_entry_fp8_ds_h16 ",
        "decode_mla_entry_fp8_ds_h64 ",
        "decode_mla_entry_fp8_ds_h64_sm90a ",
        "decode_mla_entry_v4_h16 ",
        "decode_mla_entry_v4_h64 ",
        "merge_few_bf16 ",
        "merge_splits_bf16 ",
        "schedule ",
        "merge_scheduled_bf16 ",
        "prefill_gqa_bf16_d64 ",
        "prefill_gqa_bf16_d64_sm90a ",
        "prefill_gqa_e4m3_d64 ",
        "prefill_gqa_e4m3_d64_sm90a ",
        "prefill_gqa_e4m3_qe4m3_d64_sm90a ",
        "prefill_gqa_bf16_d256 ",
        "prefill_gqa_bf16_d256_sm90a ",
        "merge_rows ",
    ] {
        let is_planned = plans.iter().any(|plan| plan.contains(kernel));
        assert!(is_planned, "{kernel} of {plans:#?}");
    }
}

/// Of a row of the block table, entries before the first visible token's are nobody's.
#[test]
fn a_window_begins_where_the_check_does() {
    let base = "bf16 heads=4/2 d=64 page=16 layout=nhd lens=100,50 window=20";
    // The last of 100 tokens sees from 80 on, in the table's column 5; the first of 3 from 78.
    for machine in machines() {
        let machine = machine.as_ref();
        let freed = |columns: usize| -> Vec<_> {
            let ids = [-1, NO_BLOCK, i32::MAX].into_iter().cycle();
            (0..columns)
                .zip(ids)
                .map(|(at, id)| ([0, at], id))
                .collect()
        };
        let fault = |position| {
            Err(CheckError::BlockId {
                seq: 0,
                position,
                value: -1,
                num_blocks: 14,
            })
        };
        let line = format!("decode {base}");
        let whole = decode(machine, &line, &freed(5));
        assert_eq!(whole, Ok(()), "on {}", machine.name());
        let found = decode(machine, &line, &[([0, 5], -1)]);
        assert_eq!(found, fault(5));
        for (q_lens, columns, max_q_len) in [("3,2", 4, ""), ("1,1", 5, " max_q_len=1")] {
            let line = format!("unified {base} q_lens={q_lens}{max_q_len}");
            let table = |entries: Vec<([usize; 2], i32)>| {
                move |t: &mut UnifiedTensors| {
                    for (index, block) in &entries {
                        plant(&mut t.base.block_table, index, block.to_le_bytes());
                    }
                }
            };
            let whole = unified(machine, &line, table(freed(columns)), |_| {});
            assert_eq!(whole, Ok(()), "{line}");
            let bad = table(vec![([0, columns], -1)]);
            let found = unified(machine, &line, bad, |_| {});
            assert_eq!(
                found,
                fault(u32::try_from(columns).expect("small")),
                "{line}"
            );
        }
    }
}

/// An engine that never had the blocks before a window has not written their entries either: no kernel reads them.
#[test]
fn entries_before_a_window_may_never_have_been_written() {
    let machine = Emulator::new();
    let line = "decode bf16 heads=4/2 d=64 page=16 layout=nhd lens=100 window=20 check=device";
    let Case::Decode(case) = case(line) else {
        panic!("a decode")
    };
    let tensors = fill::decode(&case, SEED, Amount::WHOLE);
    let table = tensors.block_table.clone();
    let bytes = table.storage.bytes.len();
    let address = machine.allocate("block_table", bytes).expect("small");
    // SAFETY: the allocation is that long, and nobody uses it yet.
    unsafe { machine.copy_in(address + 20, &table.storage.bytes[20..]) }.expect("in bounds");
    // SAFETY: as above; the emulator refuses to read what nobody wrote.
    let view = unsafe {
        let [rows, columns] = table.shape[..] else {
            panic!("two dimensions")
        };
        TensorView::contiguous(address, Dtype::I32, &[rows, columns])
    };
    let mut device = DeviceDecode::new(&machine, tensors).expect("memory");
    let options = DecodeOptions::default()
        .check(case.check)
        .score_mods(ScoreMods::default().sliding_window(20));
    let mut request = device.request(0, case.scale(), options).expect("views");
    request.block_table = view.expect("two strides");
    let checked = request.check().expect("a good request");
    let plan = checked.plan(&machine.device()).expect("a plan");
    let mut workspace = workspace(&machine, plan.workspace_bytes());
    let launched = checked.launch(&plan, &mut workspace.view_mut(), &machine);
    launched.unwrap_or_else(|error: Error| panic!("{error}"));
    assert_eq!(check_result(&workspace.read().expect("read")), Ok(()));
}

/// Rows of a captured graph that nobody has filled this time.
#[test]
fn sequences_without_queries_may_be_anything() {
    let base = "unified bf16 heads=4/2 d=64 page=16 layout=nhd lens=40,33,20";
    for machine in machines() {
        for q_lens in ["q_lens=3,0,2", "q_lens=1,0,1 max_q_len=1"] {
            for stale in [-7, 1 << 20] {
                let change = |t: &mut UnifiedTensors| {
                    plant(&mut t.base.seq_lens, &[1], i32::to_le_bytes(stale));
                    plant(&mut t.base.block_table, &[1, 0], NO_BLOCK.to_le_bytes());
                };
                let line = format!("{base} {q_lens}");
                let found = unified(machine.as_ref(), &line, change, |_| {});
                assert_eq!(found, Ok(()), "{line}");
            }
        }
    }
}

#[test]
fn what_the_host_says_of_query_lengths_is_held_against_them() {
    let base = "unified bf16 heads=4/2 d=64 page=16 layout=nhd lens=40,33,20";
    let not_alone = |seq, start, end, num_decodes| {
        Err(CheckError::NumDecodes {
            seq,
            start,
            end,
            num_decodes,
        })
    };
    let too_many = Err(CheckError::QueryLen {
        seq: 0,
        value: 3,
        limit: 2,
    });
    // Query lengths of the tensors, where they begin after all, decodes, a bound.
    let table = [
        ("q_lens=1,1,3", [0, 1, 2, 5], 2, None, Ok(())),
        ("q_lens=1,1,3", [0, 1, 3, 5], 2, None, not_alone(1, 1, 3, 2)),
        ("q_lens=1,1,3", [0, 1, 1, 5], 2, None, not_alone(1, 1, 1, 2)),
        ("q_lens=1,1,1", [0, 1, 2, 3], 3, None, Ok(())),
        ("q_lens=1,1,1", [0, 1, 2, 2], 3, None, not_alone(2, 2, 2, 3)),
        ("q_lens=1,1,1", [0, 1, 1, 1], 1, Some(1), Ok(())),
        (
            "q_lens=1,1,1",
            [0, 1, 1, 1],
            2,
            Some(1),
            not_alone(1, 1, 1, 2),
        ),
        ("q_lens=3,1,2", [0, 3, 4, 6], 0, Some(3), Ok(())),
        ("q_lens=3,1,2", [0, 3, 4, 6], 0, Some(2), too_many),
    ];
    for machine in machines() {
        for (q_lens, starts, num_decodes, max_query_len, expected) in &table {
            let change = |t: &mut UnifiedTensors| {
                for (at, start) in starts.iter().enumerate() {
                    plant(&mut t.query_start_loc, &[at], i32::to_le_bytes(*start));
                }
            };
            let found = unified(machine.as_ref(), &format!("{base} {q_lens}"), change, |o| {
                (o.num_decodes, o.max_query_len) = (*num_decodes, *max_query_len);
            });
            assert_eq!(&found, expected, "{q_lens} {starts:?} {num_decodes}");
        }
    }
}

#[test]
fn every_scale_that_is_read_is_looked_at() {
    let base = "heads=6/3 d=64 page=16 layout=nhd lens=70,33";
    let bad = [0.0, -1.0, f32::NAN, f32::INFINITY];
    for machine in machines() {
        let machine = machine.as_ref();
        for value in bad {
            for (at, name) in [(1, "k_scale"), (2, "v_scale")] {
                let line = format!("unified bf16 kv=fp8_e4m3 scales=head {base} q_lens=3,2");
                let change = |t: &mut UnifiedTensors| {
                    let scales = t.base.scales.as_mut().expect("scales");
                    let scale = match name {
                        "k_scale" => &mut scales.k_scale,
                        _ => &mut scales.v_scale,
                    };
                    plant(scale, &[at], value.to_le_bytes());
                };
                let found = unified(machine, &line, change, |_| {});
                let message = found.expect_err("a bad scale").to_string();
                let expected =
                    format!("`{name}[{at}]` is {value}, but a scale must be positive and finite");
                assert_eq!(message, expected);
            }
            let line = format!("unified bf16 {base} q_lens=3,2 output_scale=0.5");
            let change = |t: &mut UnifiedTensors| {
                let scale = t.output_scale.as_mut().expect("a scale");
                plant(scale, &[0], value.to_le_bytes());
            };
            let message = unified(machine, &line, change, |_| {}).expect_err("a bad scale");
            assert!(
                message.to_string().starts_with("`output_scale[0]`"),
                "{message}"
            );
        }
    }
}

/// Where every token has scales of its own, those of tokens that a query sees are looked at, and no others.
#[test]
fn scales_of_tokens_that_are_seen_are_looked_at() {
    let base = "bf16 kv=i8 scales=token heads=4/2 d=64 page=16 layout=nhd lens=70,33 window=20";
    for machine in machines() {
        // Token 50 is the first that the last of 70 sees: slot 2 of column 3. The first of 3 sees 48: slot 0.
        for (line, first) in [
            (format!("unified {base} q_lens=3,2"), 48),
            (format!("unified {base} q_lens=1,1 max_q_len=1"), 50),
        ] {
            for (token, is_seen) in [(first - 1, false), (first, true), (69, true), (70, false)] {
                let change = |t: &mut UnifiedTensors| {
                    let block = t.base.block_table.integer(&[0, token / 16]);
                    let index = [usize::try_from(block).expect("an id"), token % 16, 1];
                    let scales = t.base.scales.as_mut().expect("scales");
                    plant(&mut scales.v_scale, &index, 0f32.to_le_bytes());
                };
                match unified(machine.as_ref(), &line, change, |_| {}) {
                    Ok(()) => assert!(!is_seen, "{line}: the scale of token {token} is 0"),
                    Err(CheckError::TokenScale {
                        name: "v_scale",
                        slot,
                        head: 1,
                        ..
                    }) => assert!(is_seen && slot as usize == token % 16, "{line} {token}"),
                    Err(other) => panic!("{line} {token}: {other}"),
                }
            }
        }
    }
}
