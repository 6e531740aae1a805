//! What the tests share: the machines that are here, and running a case on each.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test crate uses a part of this"
)]

pub mod files;
pub mod matrix;
pub mod parts;
pub mod program;
pub mod rebind;

use std::io::Write;

use ferroattn::cases::{Case, DecodeCase, grid::GRIDS, run_case};
use ferroattn::emulator::Emulator;
use ferroattn::plan::DeviceInfo;
use ferroattn::runtime::{Cuda, Runtime};

/// The emulator, and the GPU if there is one. Says so if there is none.
pub fn machines() -> Vec<Box<dyn Runtime>> {
    let mut machines: Vec<Box<dyn Runtime>> = vec![Box::new(Emulator::new())];
    match Cuda::open(0) {
        Ok(cuda) => machines.push(Box::new(cuda)),
        // Past the test harness, which swallows `eprintln!` of tests that pass.
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "GPU ABSENT: SKIPPED THERE ({error})");
        }
    }
    machines
}

/// An emulator that passes for a GPU of another compute capability than its own.
pub fn emulated(compute_capability: (u32, u32)) -> Emulator {
    Emulator::new().with_device(DeviceInfo {
        compute_capability,
        ..DeviceInfo::H200
    })
}

/// The cases of a named list that `wanted` chooses.
pub fn listed(name: &str, wanted: impl Fn(&Case) -> bool) -> Vec<Case> {
    let grid = GRIDS
        .iter()
        .find(|grid| grid.name == name)
        .expect("a list of this name");
    (grid.cases)().into_iter().filter(wanted).collect()
}

/// Runs cases on every machine and names all that fail.
pub fn assert_pass(cases: &[Case], seed: u64) {
    for machine in machines() {
        assert_pass_on(machine.as_ref(), cases, seed);
    }
}

/// Runs cases on one machine and names all that fail.
pub fn assert_pass_on(machine: &dyn Runtime, cases: &[Case], seed: u64) {
    assert!(!cases.is_empty(), "no case to run");
    let failures: Vec<_> = cases
        .iter()
        .filter_map(|case| {
            let error = judge(case, machine, seed).err()?;
            Some(format!("{case} on {}: {error}", machine.name()))
        })
        .collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Runs one case on one machine.
pub fn judge(case: &Case, machine: &dyn Runtime, seed: u64) -> Result<(), String> {
    let outcome = run_case(case, machine, seed).map_err(|error| error.to_string())?;
    outcome.verdict.map(drop).map_err(|error| error.to_string())
}

/// A case from its line.
pub fn case(line: &str) -> Case {
    line.parse().expect("a case")
}

/// A decode from its line.
pub fn decode_case(line: &str) -> DecodeCase {
    match case(line) {
        Case::Decode(case) => case,
        other => panic!("{other} is no decode"),
    }
}
