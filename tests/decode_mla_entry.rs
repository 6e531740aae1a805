//! MLA decode over FP8 entries on the emulator, against the f64 reference.
#![allow(missing_docs, reason = "a test crate has no readers of its docs")]

mod common;

use common::{emulated, listed};
use ferroattn::cases::fill::Amount;
use ferroattn::cases::{
    Case, DeviceEntries, EntryCase, EntryTensors, HostList, Outcome, compare_entries, run_case,
};
use ferroattn::emulator::Emulator;
use ferroattn::plan::DeviceInfo;
use ferroattn::reference::HostTensor;
use ferroattn::runtime::{Buffer, Launcher};
use ferroattn::tensor::Dtype;

/// The lists' cases over entries.
fn cases(grid: &str) -> Vec<Case> {
    listed(grid, |case| matches!(case, Case::DecodeEntries(_)))
}

fn entry_case(line: &str) -> EntryCase {
    match line.parse() {
        Ok(Case::DecodeEntries(case)) => case,
        other => panic!("{line} is no case over entries: {other:?}"),
    }
}

/// Decodes over these tensors; returns plan, output and lse.
fn decode(
    case: &EntryCase,
    tensors: &EntryTensors,
    machine: &Emulator,
) -> (String, HostTensor, Option<HostTensor>) {
    let mut device = DeviceEntries::new(machine, tensors.clone()).expect("small");
    let plan = device.plan(case, &machine.device()).expect("a plan");
    let bytes = plan.workspace_bytes().max(256);
    let mut workspace = Buffer::uninit(machine, "workspace", Dtype::U8, &[bytes]).expect("small");
    device
        .launch(case, 0, &plan, &mut workspace, machine)
        .expect("launched");
    let (out, lse) = device.results().expect("results");
    (plan.to_string(), out, lse)
}

fn run(case: &Case, machine: &Emulator, seed: u64) -> Outcome {
    let outcome = run_case(case, machine, seed).unwrap_or_else(|error| panic!("{case}: {error}"));
    if let Err(mismatch) = &outcome.verdict {
        panic!("{case}: {mismatch}\n{}", outcome.plan);
    }
    outcome
}

/// The cases on a machine; returns their plans.
fn run_all(cases: &[Case], machine: &Emulator) -> Vec<String> {
    assert!(!cases.is_empty());
    (7..)
        .zip(cases)
        .map(|(seed, case)| run(case, machine, seed).plan)
        .collect()
}

#[test]
fn smoke() {
    run_all(&cases("smoke"), &Emulator::new());
}

#[test]
fn edges() {
    run_all(&cases("edges"), &Emulator::new());
}

#[test]
fn every_case_is_right_on_a_large_machine() {
    let machine = Emulator::with_seed(3).with_device(DeviceInfo::H200);
    let mut plans = run_all(&cases("smoke"), &machine);
    plans.extend(run_all(&cases("edges"), &machine));
    for kernel in ["fp8_ds_h16 ", "fp8_ds_h64_sm90a ", "v4_h16 ", "v4_h64 "] {
        assert!(plans.iter().any(|plan| plan.contains(kernel)), "{kernel}");
    }
}

#[test]
fn the_kernels_for_many_heads_on_a_machine_without_warp_groups() {
    let machine = Emulator::new().with_device(DeviceInfo {
        num_sms: 4,
        compute_capability: (10, 0),
        ..DeviceInfo::H200
    });
    let lines = [
        "decode_mla_entry bf16 form=656 heads=64 page=16 lens=70,0,130 topk=100 skip=4 sinks=on",
        "decode_mla_entry bf16 form=656-any-scale heads=100 page=64 lens=200,3 topk=130 swa=70 lengths=drawn by=table",
        "decode_mla_entry bf16 form=584 heads=40 page=16 lens=150,70 q_len=2 topk=80 swa=60 sinks=on split=64",
        "decode_mla_entry bf16 form=656 heads=24 page=64 lens=150,63,65 q_len=4 split=64 check=device",
        "decode_mla_entry bf16 form=584 heads=128 page=64 lens=129,0",
    ];
    let cases = lines.map(|line| line.parse::<Case>().expect("a case"));
    let plans = run_all(&cases, &machine);
    for kernel in [
        "decode_mla_entry_fp8_ds_h64 ",
        "decode_mla_entry_v4_h64 ",
        "merge_few_bf16 ",
    ] {
        assert!(
            plans.iter().any(|plan| plan.contains(kernel)),
            "{kernel} of {plans:#?}"
        );
    }
    // As long as the longest list, which shared memory has room for.
    let line = "decode_mla_entry bf16 form=656 heads=1 page=64 lens=9000 split=100000";
    let plan = run_all(&[line.parse().expect("a case")], &machine);
    assert!(plan[0].starts_with("3 splits of 4096 tokens"), "{plan:?}");
}

#[test]
fn lines_read_back() {
    for grid in ["smoke", "edges", "sweep", "bench"] {
        for case in cases(grid) {
            assert_eq!(case.to_string().parse(), Ok(case.clone()), "{case}");
        }
    }
    let names: Vec<_> = cases("bench").iter().map(Case::peer_name).collect();
    for name in [
        "mla sparse656 h=128 b=64 topk=2048",
        "mla sparse584 h=64 b=16 swa=128 topk=512",
    ] {
        assert!(names.iter().any(|other| other == name), "{names:?}");
    }
}

#[test]
fn outputs_do_not_depend_on_the_schedule() {
    let line = "decode_mla_entry bf16 form=656 heads=5 page=16 lens=90,40 topk=50 swa=20 skip=3 sinks=on split=32";
    let case: Case = line.parse().expect("a case");
    let first = run(&case, &Emulator::with_seed(1), 3);
    let second = run(&case, &Emulator::with_seed(2), 3);
    first.same_outputs(&second).expect("the same bits");
}

#[test]
fn the_order_of_indices_means_nothing_but_rounding() {
    let line = "decode_mla_entry bf16 form=656 heads=6 page=16 lens=200,90 topk=80 skip=7 sinks=on split=32";
    let case = entry_case(line);
    let machine = Emulator::new();
    let tensors = EntryTensors::new(&case, 5, Amount::WHOLE);
    let mut turned = tensors.clone();
    let list = turned.topk.as_mut().expect("a list");
    let rows = list.indices.storage.bytes.chunks(80 * 4);
    let reversed = rows.flat_map(|row| row.chunks(4).rev().flatten().copied());
    let reversed: Vec<u8> = reversed.collect();
    assert_ne!(reversed, list.indices.storage.bytes);
    list.indices = list.indices.with_bytes(reversed);
    let [first, second] = [tensors, turned].map(|tensors| decode(&case, &tensors, &machine).1);
    let mut differ = false;
    for at in 0..first.num_elements() {
        let (a, b) = (first.float_at(at), second.float_at(at));
        // Two units in the last place.
        let limit = a.abs().max(0.5) / 64.0;
        assert!((a - b).abs() <= limit, "element {at}: {a} and {b}");
        differ |= a != b;
    }
    assert!(differ, "the lists were really in another order");
}

/// A length below zero is an empty list, and slots are those of their own cache: the window's may be the smaller one.
#[test]
fn lists_may_be_empty_and_caches_of_different_sizes() {
    let line = "decode_mla_entry bf16 form=584 heads=6 page=16 lens=200,90,40 topk=40 swa=30 lengths=drawn";
    let case = entry_case(line);
    let mut tensors = EntryTensors::new(&case, 5, Amount::WHOLE);
    let minus_one = |list: &mut HostList, row: usize| {
        let lengths = list.lengths.as_mut().expect("lengths");
        let mut bytes = lengths.storage.bytes.clone();
        let at = 4 * lengths.position(&[row]);
        bytes[at..at + 4].copy_from_slice(&(-1i32).to_le_bytes());
        *lengths = lengths.with_bytes(bytes);
    };
    // Row 0 has neither list, row 1 the window alone.
    minus_one(tensors.topk.as_mut().expect("a list"), 0);
    minus_one(tensors.topk.as_mut().expect("a list"), 1);
    let (window, list) = tensors.window.as_mut().expect("a window");
    minus_one(list, 0);
    let slots = list.indices.storage.bytes.chunks(4);
    let slots = slots.map(|slot| i32::from_le_bytes(slot.try_into().expect("four bytes")));
    let largest = slots.max().expect("indices");
    window.shape[0] = usize::try_from(largest).expect("a slot") / 16;
    assert!(
        window.shape[0] < tensors.cache.shape[0],
        "some slots are those of the other cache alone"
    );
    let (_, out, lse) = decode(&case, &tensors, &Emulator::new());
    let verdict = compare_entries(&case, &tensors, &out, lse.as_ref(), &[0, 1, 2]);
    verdict.unwrap_or_else(|mismatch| panic!("{mismatch}"));
    let lse = lse.expect("an lse");
    for head in 0..6 {
        assert_eq!(lse.float(&[0, head]), f64::NEG_INFINITY);
        assert!((0..512).all(|dim| out.float(&[0, head, dim]) == 0.0));
    }
}

/// Warp groups multiply f16: scales with which an f16 is not exact, or has no room, take other ways.
#[test]
fn any_scale_is_right_by_warp_groups() {
    const VALUES: usize = 512;
    let machine = emulated((9, 0));
    let judge = |scale: f32, is_zero: bool, every: usize, tokens: &str| {
        let line = format!(
            "decode_mla_entry bf16 form=656-any-scale heads=20 page=16 lens=150,64 {tokens}"
        );
        let case = entry_case(&line);
        let mut tensors = EntryTensors::new(&case, 5, Amount::WHOLE);
        let mut bytes = tensors.cache.storage.bytes.clone();
        let [blocks, slots] = [tensors.cache.shape[0], tensors.cache.shape[1]];
        for slot in (0..blocks * slots).step_by(every) {
            let at = tensors.cache.position(&[slot / slots, slot % slots, 0]);
            if is_zero {
                bytes[at..at + VALUES].fill(0);
            }
            for group in bytes[at + VALUES..at + VALUES + 16].chunks_exact_mut(4) {
                group.copy_from_slice(&scale.to_le_bytes());
            }
        }
        tensors.cache = tensors.cache.with_bytes(bytes);
        let (plan, out, lse) = decode(&case, &tensors, &machine);
        assert!(
            plan.contains("decode_mla_entry_fp8_ds_h64_sm90a "),
            "{plan}"
        );
        let verdict = compare_entries(&case, &tensors, &out, lse.as_ref(), &[0, 1]);
        verdict.unwrap_or_else(|mismatch| panic!("{line}, scale {scale}: {mismatch}"));
    };
    for tokens in ["", "topk=70"] {
        for scale in [
            // An f16 is exact, at both ends; its values are too large for one.
            1.0 / 16_384.0,
            128.0,
            262_144.0,
            // Not a power of two, or a small one.
            0.013,
            1e-5,
            1.0 / 1_048_576.0,
            // So small that an f16 would lose most bits, or all.
            1e-7,
            1e-20,
        ] {
            judge(scale, false, 1, tokens);
        }
        // One among others, and the scale that rows of zeros have.
        judge(1e-12, false, 3, tokens);
        judge(f32::MIN_POSITIVE, true, 3, tokens);
    }
}
