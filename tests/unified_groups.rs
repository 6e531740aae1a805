//! Prefill by the products of warp groups, on an emulator that passes for a GPU that has them.
#![allow(missing_docs, reason = "a test crate has no readers of its docs")]

mod common;

use common::{assert_pass_on, case, emulated, judge, listed};
use ferroattn::cases::fill::Amount;
use ferroattn::cases::{Case, DeviceUnified, UnifiedCase, UnifiedTensors};
use ferroattn::emulator::Emulator;
use ferroattn::plan::DeviceInfo;
use ferroattn::runtime::Launcher;
use gpu_kernels::entry::Variant;
use gpu_kernels::prefill::MmaKind;

const SEED: u64 = 3;

/// Who multiplies in the kernel that a case of prefills is planned with.
fn planned(case: &UnifiedCase, machine: &Emulator) -> Option<MmaKind> {
    let tensors = UnifiedTensors::new(case, SEED, Amount::WHOLE).expect("few tokens");
    let mut device = DeviceUnified::new(machine, tensors).expect("memory");
    let request = device.request(case, SEED, 0).expect("a request");
    let checked = request.check().expect("a good request");
    let plan = checked.plan(&machine.device()).expect("a plan");
    plan.launches()
        .find_map(|launch| match launch.kernel.entry().variant {
            Variant::PrefillGqa { products, .. } => Some(products),
            _ => None,
        })
}

#[test]
fn four_warps_multiply_together_where_a_gpu_and_a_kernel_do() {
    let alone = [(8, 6), (9, 1), (10, 0)];
    for (form, hopper) in [
        ("bf16 heads=6/2 d=64", MmaKind::WarpGroup),
        ("bf16 heads=6/2 d=128", MmaKind::WarpGroup),
        ("f16 heads=6/2 d=64", MmaKind::WarpGroup),
        ("f16 heads=6/2 d=128", MmaKind::WarpGroup),
        ("bf16 heads=6/2 kv=fp8_e4m3 d=64", MmaKind::WarpGroup),
        ("bf16 heads=6/2 kv=fp8_e4m3 d=128", MmaKind::WarpGroup),
        (
            "bf16 heads=6/2 kv=fp8_e4m3 q=fp8_e4m3 d=64",
            MmaKind::WarpGroupOfBytes,
        ),
        (
            "bf16 heads=6/2 kv=fp8_e4m3 q=fp8_e4m3 d=128",
            MmaKind::WarpGroupOfBytes,
        ),
        (
            "bf16 heads=6/2 kv=fp8_e4m3 q=fp8_e4m3 f32_scores=on d=64",
            MmaKind::WarpGroup,
        ),
        (
            "bf16 heads=6/2 kv=fp8_e4m3 q=fp8_e4m3 f32_scores=on d=128",
            MmaKind::WarpGroup,
        ),
        ("bf16 heads=6/2 d=256", MmaKind::WarpGroup),
        ("f16 heads=6/2 d=256", MmaKind::WarpGroup),
        ("bf16 heads=6/2 kv=fp8_e4m3 d=256", MmaKind::WarpGroup),
        ("f16 heads=6/2 kv=fp8_e5m2 d=256", MmaKind::WarpGroup),
        // No kernel multiplies FP8 by FP8.
        (
            "bf16 heads=6/2 kv=fp8_e4m3 q=fp8_e4m3 d=256",
            MmaKind::WarpGroup,
        ),
        // Rows that do not begin at multiples of 16 bytes.
        ("bf16 heads=6/2 d=64 pad=4/0/0", MmaKind::Warp),
        ("bf16 heads=6/2 d=64 pad=0/12/0", MmaKind::Warp),
        ("bf16 heads=6/2 d=64 pad=8/8/0", MmaKind::WarpGroup),
        ("bf16 heads=6/2 d=256 pad=4/0/0", MmaKind::Warp),
        ("bf16 heads=6/2 d=96", MmaKind::Warp),
        ("bf16 heads=6/2 d=192", MmaKind::Warp),
        ("bf16 heads=6/2 kv=fp8_e5m2 d=128", MmaKind::Warp),
    ] {
        let line = format!("unified {form} page=16 layout=nhd lens=90,40,33 q_lens=90,3,1");
        let parsed = case(&line);
        let Case::Unified(unified) = &parsed else {
            panic!("{line} is no unified attention")
        };
        let others = alone.map(|capability| (capability, MmaKind::Warp));
        for (capability, expected) in [((9, 0), hopper)].into_iter().chain(others) {
            let machine = emulated(capability);
            assert_eq!(
                planned(unified, &machine),
                Some(expected),
                "{line} on {capability:?}"
            );
            if let Err(error) = judge(&parsed, &machine, SEED) {
                panic!("{line} on {capability:?}: {error}");
            }
        }
    }
}

/// The emulator's own numbers are those of a GPU without such kernels.
#[test]
fn edges_where_four_warps_multiply_together() {
    let machine = emulated((9, 0));
    let cases = listed(
        "edges",
        |case| matches!(case, Case::Unified(case) if planned(case, &machine).is_some_and(MmaKind::is_group)),
    );
    assert_pass_on(&machine, &cases, 2);
}

/// So many tiles that every stage of the ring is filled several times, for one group of rows and for all.
#[test]
fn a_ring_that_is_filled_again_and_again() {
    for form in [
        "d=64",
        "d=128",
        "kv=fp8_e4m3 d=64",
        "kv=fp8_e4m3 d=128",
        "kv=fp8_e4m3 q=fp8_e4m3 d=64",
        "kv=fp8_e4m3 q=fp8_e4m3 d=128",
        "d=256",
        "kv=fp8_e4m3 d=256",
        "kv=fp8_e5m2 q=fp8_e4m3 d=256",
    ] {
        let parsed = case(&format!(
            "unified bf16 heads=6/1 {form} page=16 layout=nhd lens=700,650,90 q_lens=40,9,40"
        ));
        for seed in 0..3 {
            let machine = Emulator::with_seed(seed).with_device(DeviceInfo::H200);
            if let Err(error) = judge(&parsed, &machine, SEED) {
                panic!("{form}, order {seed}: {error}");
            }
        }
    }
}
