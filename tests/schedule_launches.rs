//! Launches by a schedule: one for all layers of a step, one plan for any lengths, and schedules that nobody made.
#![allow(missing_docs, reason = "a test crate has no readers of its docs")]
#![allow(clippy::cast_possible_truncation, reason = "small test data")]

mod common;

use common::decode_case;
use ferroattn::cases::fill::{self, Amount};
use ferroattn::cases::{DeviceDecode, compare_decode};
use ferroattn::emulator::Emulator;
use ferroattn::plan::DeviceInfo;
use ferroattn::runtime::{Buffer, Launcher};
use ferroattn::tensor::Dtype;

/// One schedule for all layers of a step gives the bits that each layer's own does.
#[test]
fn a_schedule_serves_every_launch_of_a_step() {
    for line in [
        "decode bf16 heads=8/2 d=64 page=16 layout=nhd lens=1,17,700,33,0,256 max_len=4096 split=scheduled",
        "decode bf16 heads=4/1 d=128 kv=fp8_e4m3 page=16 layout=nhd lens=900,17,64 split=scheduled window=200",
        "decode_mla bf16 heads=16/1 d=576 dv=512 page=64 layout=nhd lens=500,1,64,129 max_len=4096 split=scheduled",
    ] {
        let case = decode_case(line);
        let machine = Emulator::new();
        let tensors = fill::decode(&case, 3, Amount::WHOLE);
        let run = |is_given: bool| {
            let mut device = DeviceDecode::new(&machine, tensors.clone()).expect("fits");
            let plan = device.plan(&case, &machine.device()).expect("planned");
            let bytes = plan.workspace_bytes();
            let mut workspace =
                Buffer::uninit(&machine, "workspace", Dtype::U8, &[bytes]).expect("small");
            let rows = plan.runs().expect("a schedule");
            let shape = [rows.schedule_rows(tensors.num_seqs as u32), 4];
            let mut schedule =
                Buffer::uninit(&machine, "schedule", Dtype::I32, &shape).expect("small");
            if is_given {
                let both = (&mut workspace, &mut schedule);
                device
                    .schedule(&case, 0, &plan, both, &machine)
                    .expect("made");
            }
            // Twice, as two layers would.
            for _ in 0..2 {
                let both = (&mut workspace, is_given.then_some(&schedule));
                device
                    .launch_on(&case, 0, &plan, both, &machine)
                    .expect("launched");
            }
            let (out, lse) = device.results().expect("readable");
            (
                out.storage.bytes.clone(),
                lse.map(|lse| lse.storage.bytes.clone()),
            )
        };
        assert_eq!(run(false), run(true), "{line}");
    }
}

/// What a captured graph does: one plan, for lengths that it does not know.
#[test]
fn a_plan_serves_any_lengths() {
    let machine = Emulator::new();
    for (line, all_lens) in [
        (
            "decode bf16 heads=8/2 d=64 page=16 layout=nhd max_len=2048 split=scheduled",
            [
                "700,1,0,64",
                "1,1,1,1",
                "2048,16,17,300",
                "0,0,0,0",
                "40,1900",
            ],
        ),
        (
            "decode_mla f16 heads=20/1 d=288 dv=256 page=16 layout=nhd max_len=1024 q_len=2 split=scheduled",
            [
                "700,2,0,64",
                "33,32,31,1",
                "1024,16,17,300",
                "0,0,0,0",
                "40,900",
            ],
        ),
    ] {
        let mut first = None;
        for lens in all_lens {
            let case = decode_case(&format!("{line} lens={lens}"));
            let tensors = fill::decode(&case, 5, Amount::WHOLE);
            let mut device = DeviceDecode::new(&machine, tensors.clone()).expect("fits");
            let own = device.plan(&case, &machine.device()).expect("planned");
            let plan = first.get_or_insert(own);
            let bytes = plan.workspace_bytes();
            let mut workspace =
                Buffer::uninit(&machine, "workspace", Dtype::U8, &[bytes]).expect("small");
            device
                .launch(&case, 0, plan, &mut workspace, &machine)
                .expect("launched");
            let (out, lse) = device.results().expect("readable");
            let seqs: Vec<usize> = (0..tensors.num_seqs).collect();
            compare_decode(&case, &tensors, &out, lse.as_ref(), &seqs)
                .unwrap_or_else(|mismatch| panic!("{line} lens={lens}: {mismatch}"));
        }
    }
}

/// Whatever a schedule says, nothing is read or written that there is not: the emulator would see it.
#[test]
fn a_schedule_of_nonsense_reaches_nothing_else() {
    let machine = Emulator::new().with_device(DeviceInfo {
        num_sms: 4,
        ..DeviceInfo::H200
    });
    for line in [
        "decode bf16 heads=8/2 d=64 page=8 layout=nhd lens=700,33 max_len=4096 split=scheduled",
        "decode_mla bf16 heads=4/1 d=288 dv=256 page=8 layout=nhd lens=300,64 max_len=4096 split=scheduled",
        "decode_mla bf16 heads=40/1 d=576 dv=512 page=8 layout=nhd lens=300,64 max_len=4096 split=scheduled",
    ] {
        let case = decode_case(line);
        let tensors = fill::decode(&case, 3, Amount::WHOLE);
        let mut device = DeviceDecode::new(&machine, tensors.clone()).expect("fits");
        let plan = device.plan(&case, &machine.device()).expect("planned");
        let bytes = plan.workspace_bytes();
        let mut workspace =
            Buffer::new(&machine, "workspace", Dtype::U8, &[bytes], &vec![0; bytes])
                .expect("small");
        let rows = plan
            .runs()
            .expect("a schedule")
            .schedule_rows(tensors.num_seqs as u32);
        let none = [-1i32; 4];
        // As an item: sequence, first token, end, part. As a merge: sequence, first part, how many, step.
        for row in [
            none,
            [0, 19, i32::MAX, -1],
            [1, 19, i32::MAX, 7],
            [0, -1, -1, -1],
        ] {
            for at in 0..rows {
                let numbers = (0..rows).flat_map(|index| if index == at { row } else { none });
                let bytes: Vec<u8> = numbers.flat_map(i32::to_le_bytes).collect();
                let schedule = Buffer::new(&machine, "schedule", Dtype::I32, &[rows, 4], &bytes)
                    .expect("small");
                let both = (&mut workspace, Some(&schedule));
                device
                    .launch_on(&case, 0, &plan, both, &machine)
                    .unwrap_or_else(|error| panic!("{line}, row {at}: {row:?}: {error}"));
            }
        }
    }
}
