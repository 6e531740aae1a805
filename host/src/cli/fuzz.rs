//! `fuzz`: random requests against the reference, and each of them with one mistake.

use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;
use clap::builder::PossibleValuesParser;

use super::machines::{self, Choice};
use crate::cases::fuzz::{OPERATIONS, requests};

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
    /// Which machines; mistakes are made on the emulator only
    #[arg(long, value_enum, default_value_t = Choice::Emulator)]
    runtime: Choice,
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
    let (mut right, mut refused, mut failed) = (0, 0, 0);
    let drawn = requests(&operations, seed).enumerate();
    for (at, drawn) in drawn.skip(args.skip).take(args.count) {
        for machine in &machines {
            let name = machine.name();
            match drawn.judge(machine.as_ref()) {
                Ok(()) => right += 1,
                Err(error) => {
                    failed += 1;
                    println!("FAILED {} [{name}]\n       {error}", drawn.case);
                    println!("       replay: {}", drawn.replay());
                }
            }
            if !machine.is_emulator() {
                continue;
            }
            match drawn.judge_broken(machine.as_ref()) {
                Ok(Some(_)) => refused += 1,
                Ok(None) => {}
                Err(error) => {
                    failed += 1;
                    println!("NOT REFUSED {} [{name}]\n       {error}", drawn.case);
                    let ops: String = args.op.iter().map(|op| format!(" --op {op}")).collect();
                    println!(
                        "       replay: ferroattn fuzz --seed {seed} --skip {at} --count 1{ops}"
                    );
                }
            }
        }
    }
    eprintln!("{right} right, {refused} mistakes refused, {failed} failed");
    Ok(if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
