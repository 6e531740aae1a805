//! MLA decode on the emulator, against the f64 reference.
#![allow(missing_docs, reason = "a test crate has no readers of its docs")]

use ferroattn::cases::grid::GRIDS;
use ferroattn::cases::{Case, run_case};
use ferroattn::emulator::Emulator;
use ferroattn::plan::DeviceInfo;

/// The lists' cases over latent caches.
fn cases(grid: &str) -> Vec<Case> {
    let grid = GRIDS
        .iter()
        .find(|other| other.name == grid)
        .expect("a list");
    let is_latent = |case: &Case| matches!(case, Case::Decode(case) if case.latent.is_some());
    (grid.cases)().into_iter().filter(is_latent).collect()
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
    for kernel in ["_h16 ", "_h64 ", "_h64_sm90a "] {
        assert!(plans.iter().any(|plan| plan.contains(kernel)), "{kernel}");
    }
}
