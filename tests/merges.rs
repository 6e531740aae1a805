//! Merges of few parts, and of many: right beside a workspace in which everything that nobody wrote is poison, and the kernel
//! is chosen by how many parts there may be.
#![allow(missing_docs, reason = "a test crate has no readers of its docs")]

mod common;

use common::decode_case;
use ferroattn::cases::fill::{self, Amount, DecodeTensors};
use ferroattn::cases::{DecodeCase, DeviceDecode, compare_decode};
use ferroattn::emulator::Emulator;
use ferroattn::plan::DeviceInfo;
use ferroattn::reference::HostTensor;
use ferroattn::runtime::{Buffer, Launcher};
use ferroattn::tensor::Dtype;

/// f32: a NaN, and infinity.
const POISONS: [u32; 2] = [u32::MAX, 0x7f80_0000];

/// Runs a case on these tensors, beside a workspace of `poison`; returns its plan, output and lse.
fn run(
    case: &DecodeCase,
    tensors: &DecodeTensors,
    poison: u32,
    machine: &Emulator,
) -> (String, HostTensor, Option<HostTensor>) {
    let mut device = DeviceDecode::new(machine, tensors.clone()).expect("fits");
    let plan = device.plan(case, &machine.device()).expect("planned");
    let bytes = poison
        .to_le_bytes()
        .repeat(plan.workspace_bytes().div_ceil(4));
    let mut workspace =
        Buffer::uninit(machine, "workspace", Dtype::U8, &[bytes.len()]).expect("small");
    workspace.write(&bytes).expect("there");
    device
        .launch(case, 0, &plan, &mut workspace, machine)
        .expect("launched");
    let (out, lse) = device.results().expect("readable");
    (plan.to_string(), out, lse)
}

/// Runs a case, and compares it with the reference; returns its plan.
fn judged(line: &str, poison: u32, machine: &Emulator) -> String {
    let case = decode_case(line);
    let tensors = fill::decode(&case, 11, Amount::WHOLE);
    let (plan, out, lse) = run(&case, &tensors, poison, machine);
    let seqs: Vec<usize> = (0..tensors.num_seqs).collect();
    compare_decode(&case, &tensors, &out, lse.as_ref(), &seqs)
        .unwrap_or_else(|mismatch| panic!("{line}: {mismatch}"));
    plan
}

/// Beside the longest sequence one of a part less, one that is whole, and one without tokens.
#[test]
fn few_parts_and_many_are_merged_right() {
    let machine = Emulator::new();
    for (num_parts, kernel) in [
        (2, "merge_few_"),
        (3, "merge_few_"),
        (4, "merge_few_"),
        (5, "merge_splits_"),
        (16, "merge_splits_"),
        (32, "merge_splits_"),
        (33, "merge_many_"),
        (70, "merge_many_"),
        (140, "merge_many_"),
    ] {
        for (shape, split) in [
            ("decode bf16 heads=6/2 d=64 page=16 layout=nhd", 64),
            (
                "decode f16 heads=3/1 d=192 dv=128 page=16 layout=nhd sinks=on",
                64,
            ),
            (
                "decode_mla bf16 heads=5/1 d=576 dv=512 page=64 layout=nhd q_len=2",
                32,
            ),
        ] {
            let longest = split * num_parts - 5;
            let lens = format!("{longest},{},{split},0", longest - split);
            let line = format!(
                "{shape} lens={lens} max_len={} split={split}",
                split * num_parts
            );
            for poison in POISONS {
                let plan = judged(&line, poison, &machine);
                assert!(plan.contains(kernel), "{line}: {plan}");
            }
        }
    }
}

/// A row's bits do not tell which kernel merged its parts, that is, how many parts there might have been.
#[test]
fn every_merge_adds_in_the_same_order() {
    let machine = Emulator::new();
    let line = "decode bf16 heads=6/2 d=64 page=16 layout=nhd split=64";
    for (num_parts, kernels) in [
        (
            3,
            &[(4, "merge_few_"), (9, "merge_splits_"), (40, "merge_many_")][..],
        ),
        (32, &[(32, "merge_splits_"), (70, "merge_many_")]),
    ] {
        let of_bound = |bound: usize| {
            decode_case(&format!(
                "{line} lens={},1 max_len={}",
                64 * num_parts - 5,
                64 * bound
            ))
        };
        let tensors = fill::decode(&of_bound(70), 11, Amount::WHOLE);
        let results = kernels.iter().map(|&(bound, kernel)| {
            let (plan, out, lse) = run(&of_bound(bound), &tensors, POISONS[0], &machine);
            assert!(plan.contains(kernel), "{bound}: {plan}");
            (
                out.storage.bytes.clone(),
                lse.map(|lse| lse.storage.bytes.clone()),
            )
        });
        let results: Vec<_> = results.collect();
        assert!(
            results.windows(2).all(|pair| pair[0] == pair[1]),
            "{num_parts} parts"
        );
    }
}

/// Of what a schedule cuts, each sequence is merged as its own number of parts asks: here seven or so, and two.
#[test]
fn a_schedule_may_leave_few_parts_and_many() {
    // Few multiprocessors: so many rows for each that a thread block has four units.
    let small = || {
        Emulator::new().with_device(DeviceInfo {
            num_sms: 4,
            ..DeviceInfo::H200
        })
    };
    for (line, machine, kernel) in [
        (
            "decode bf16 heads=8/2 d=64 page=16 layout=nhd lens=4000,100,0,700,1 max_len=4096 split=scheduled",
            Emulator::new(),
            "merge_scheduled_bf16 grid [8, ",
        ),
        (
            "decode_mla f16 heads=16/1 d=576 dv=512 page=64 layout=nhd lens=900,64,0,300,1 max_len=1024 split=scheduled",
            small(),
            "merge_scheduled_f16 grid [16, ",
        ),
    ] {
        for poison in POISONS {
            let plan = judged(line, poison, &machine);
            assert!(plan.contains(kernel), "{line}: {plan}");
        }
    }
}
