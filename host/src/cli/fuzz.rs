//! `fuzz`: random requests against the reference, and each of them with one mistake in the request, and one in what the
//! check on the device looks at.

use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;
use clap::builder::PossibleValuesParser;

use super::machines::{self, Choices};
use crate::cases::fuzz::{OPERATIONS, requests};
use crate::runtime::Runtime;

#[derive(Debug, Args)]
pub(super) struct FuzzArgs {
    /// What the requests are drawn from; a fresh one if not given
    #[arg(long)]
    seed: Option<u64>,
    /// How many requests
    #[arg(long, default_value_t = 1000)]
    count: usize,
    /// Without the first so many of them
    #[arg(long, default_value_t = 0)]
    skip: usize,
    /// Only of this operation; may be given several times
    #[arg(long, value_parser = PossibleValuesParser::new(OPERATIONS))]
    op: Vec<String>,
    /// Which machines; the emulator passes for an H200 every other time, and mistakes are made on it only
    #[arg(long, value_enum, default_value_t = Choices::Emulator)]
    runtime: Choices,
}

pub(super) fn run(args: &FuzzArgs) -> anyhow::Result<ExitCode> {
    let machines = machines::open(args.runtime, None)?;
    let seed = match args.seed {
        Some(seed) => seed,
        None => u64::from(SystemTime::now().duration_since(UNIX_EPOCH)?.subsec_nanos()),
    };
    let operations: Vec<&str> = match &args.op[..] {
        [] => OPERATIONS.to_vec(),
        some => some.iter().map(String::as_str).collect(),
    };
    eprintln!("seed {seed}");
    let ops: String = args.op.iter().map(|op| format!(" --op {op}")).collect();
    let (mut right, mut refused, mut found, mut failed) = (0, 0, 0, 0);
    let drawn = requests(&operations, seed).enumerate();
    for (at, drawn) in drawn.skip(args.skip).take(args.count) {
        let again = format!("ferroattn fuzz --seed {seed} --skip {at} --count 1{ops}");
        let emulator = drawn.emulator();
        for machine in &machines {
            let machine: &dyn Runtime = match machine.is_emulator() {
                true => &emulator,
                false => machine.as_ref(),
            };
            let (major, minor) = machine.device().compute_capability;
            let name = format!("{}, compute capability {major}.{minor}", machine.name());
            let mut fail = |what: &str, error: String, replay: &str| {
                failed += 1;
                println!("{what} {} [{name}]\n       {error}", drawn.case);
                println!("       replay: {replay}");
            };
            match drawn.judge(machine) {
                Ok(()) => right += 1,
                Err(error) if machine.is_emulator() => fail("FAILED", error, &again),
                Err(error) => fail("FAILED", error, &drawn.replay()),
            }
            if !machine.is_emulator() {
                continue;
            }
            match drawn.judge_broken(machine) {
                Ok(mistake) => refused += usize::from(mistake.is_some()),
                Err(error) => fail("NOT REFUSED", error, &again),
            }
            match drawn.judge_corrupted(machine) {
                Ok(mistake) => found += usize::from(mistake.is_some()),
                Err(error) => fail("NOT FOUND", error, &again),
            }
        }
    }
    eprintln!(
        "{right} right, {refused} mistakes refused, {found} found on the device, {failed} failed"
    );
    Ok(if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
