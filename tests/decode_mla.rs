//! MLA decode on the emulator, against the f64 reference.
#![allow(missing_docs, reason = "a test crate has no readers of its docs")]

mod common;

use common::{emulated, listed};
use ferroattn::cases::{Case, run_case};
use ferroattn::emulator::Emulator;
use ferroattn::plan::DeviceInfo;

/// A list's cases over latent caches.
fn cases(grid: &str) -> Vec<Case> {
    listed(
        grid,
        |case| matches!(case, Case::Decode(case) if case.latent.is_some()),
    )
}

/// Runs the cases on a machine; returns the kernels that ran.
fn run(cases: &[Case], machine: &Emulator) -> Vec<String> {
    assert!(!cases.is_empty());
    let mut plans = Vec::new();
    for (seed, case) in (7..).zip(cases) {
        let outcome =
            run_case(case, machine, seed).unwrap_or_else(|error| panic!("{case}: {error}"));
        if let Err(mismatch) = outcome.verdict {
            panic!("{case}: {mismatch}\n{}", outcome.plan);
        }
        plans.push(outcome.plan);
    }
    plans
}

#[test]
fn every_case_is_right_on_a_small_machine() {
    for grid in ["smoke", "edges"] {
        let plans = run(&cases(grid), &Emulator::new());
        // Wide thread blocks of wide rows need more shared memory than it has.
        assert!(
            !plans.iter().any(|plan| plan.contains("d576v512_h64")),
            "{plans:?}"
        );
    }
}

#[test]
fn every_case_is_right_on_a_large_machine() {
    let machine = Emulator::with_seed(3).with_device(DeviceInfo::H200);
    let plans: Vec<_> = ["smoke", "edges"]
        .into_iter()
        .flat_map(|grid| run(&cases(grid), &machine))
        .collect();
    for kernel in [
        "_h16 ",
        "_h64 ",
        "_bf16_d576v512_h64_sm90a ",
        "_f16_d576v512_h64_sm90a ",
        "_e4m3_d576v512_h64_sm90a ",
        "_e5m2_d576v512_h64_sm90a ",
    ] {
        assert!(plans.iter().any(|plan| plan.contains(kernel)), "{kernel}");
    }
}

/// The wide kernels for machines on which groups of warps do not multiply.
#[test]
fn many_heads_are_right_on_a_large_machine_without_warp_groups() {
    let machine = emulated((10, 0));
    let mut cases = cases("smoke");
    cases.retain(|case| case.to_string().contains("heads=40/"));
    let plans = run(&cases, &machine);
    for dtype in ["bf16", "f16", "e4m3", "e5m2"] {
        let kernel = format!("decode_mla_{dtype}_d576v512_h64 ");
        assert!(plans.iter().any(|plan| plan.contains(&kernel)), "{kernel}");
    }
}
