//! `sweep`: every case against the reference, on every machine.

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::machines::{self, Choices, PtxSets};
use crate::cases::grid::GRIDS;
use crate::cases::{Case, Outcome, run_case_again};
use crate::runtime::Runtime;

#[derive(Debug, Args)]
pub(super) struct SweepArgs {
    /// Which list of cases; `all` is smoke, edges and sweep
    #[arg(long, value_enum, default_value_t = List::Smoke)]
    list: List,
    /// One case, as a line that was printed before, instead of a list
    #[arg(long, conflicts_with = "list")]
    case: Option<Case>,
    /// Only cases whose line contains this
    #[arg(long)]
    filter: Option<String>,
    /// Without the first so many of those: what a run that was cut short has left
    #[arg(long, default_value_t = 0)]
    skip: usize,
    /// Only the first so many of the rest
    #[arg(long)]
    limit: Option<usize>,
    /// Seeds lengths, values and the order of blocks
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Which machines
    #[arg(long, value_enum, default_value_t = Choices::Auto)]
    runtime: Choices,
    /// Whose PTX the GPU runs; with `both`, every case runs with each, and the outputs have to agree bit for
    /// bit [env: FERROATTN_PTX] [default: rust-cuda's, if this build has it]
    #[arg(long, value_enum)]
    ptx: Option<PtxSets>,
    /// Print one JSON object per case and machine
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum List {
    /// One of everything, small enough for the emulator
    Smoke,
    /// Lengths and shapes at which a paged, tiled kernel goes wrong
    Edges,
    /// Every supported shape at sizes people run; for a GPU
    Sweep,
    /// The shapes that `bench` times; for a GPU
    Bench,
    /// Smoke, edges and sweep
    All,
}

/// What became of a case on a machine, as `--json` prints it.
#[derive(Debug, Serialize)]
struct Line<'a> {
    case: String,
    seed: u64,
    runtime: &'a str,
    passed: bool,
    error: Option<String>,
    rel_frobenius: Option<f64>,
    ulps: Option<f64>,
    lse_abs: Option<f64>,
    plan: Option<String>,
    milliseconds: u128,
}

/// A machine and what reports call it.
struct Machine {
    runtime: Box<dyn Runtime>,
    name: String,
}

pub(super) fn run(args: &SweepArgs) -> anyhow::Result<ExitCode> {
    let cases = args.cases();
    anyhow::ensure!(!cases.is_empty(), "no case matches");
    let groups = args.machines()?;
    let machines: usize = groups.iter().map(Vec::len).sum();
    let progress = ProgressBar::new((cases.len() * machines) as u64).with_style(
        ProgressStyle::with_template("{bar:30} {pos}/{len} {elapsed} {wide_msg}")
            .context("the progress bar's template")?,
    );
    progress.enable_steady_tick(Duration::from_millis(200));
    let (mut passed, mut failed) = (0, 0);
    let (mut agreed, mut differences) = (0, Vec::new());
    for group in &groups {
        for case in &cases {
            let mut first: Option<Outcome> = None;
            for machine in group {
                progress.set_message(format!("{}: {case}", machine.name));
                let (mut line, outcome) = run_one(case, args.seed, machine, first.as_ref());
                if let (Some(first), Some(outcome)) = (&first, &outcome) {
                    match difference(outcome, first) {
                        None => agreed += 1,
                        Some(difference) => {
                            let difference = format!("not as {}: {difference}", group[0].name);
                            differences.push(format!("{case}: {difference}"));
                            line.fail(difference);
                        }
                    }
                }
                first = first.or(outcome);
                if line.passed {
                    passed += 1;
                } else {
                    failed += 1;
                }
                progress.suspend(|| print(&line, args.json))?;
                progress.inc(1);
            }
        }
    }
    progress.finish_and_clear();
    eprintln!("{passed} passed, {failed} failed");
    if let Some([first, second]) = groups.first().map(Vec::as_slice) {
        eprintln!(
            "{} and {}: {agreed} outputs agree bit for bit, {} differ",
            first.name,
            second.name,
            differences.len()
        );
        differences.iter().for_each(|line| eprintln!("  {line}"));
    }
    Ok(if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Where the outputs of two runs of a case differ, in words.
fn difference(ours: &Outcome, theirs: &Outcome) -> Option<String> {
    ours.same_outputs(theirs)
        .err()
        .map(|mismatch| mismatch.to_string())
}

impl SweepArgs {
    /// The machines, in groups whose outputs have to agree to the bit.
    fn machines(&self) -> anyhow::Result<Vec<Vec<Machine>>> {
        if self.ptx == Some(PtxSets::Both) {
            anyhow::ensure!(
                self.runtime != Choices::Emulator,
                "--ptx both is for the GPU: the emulator runs no PTX"
            );
            let machine = |route| -> anyhow::Result<Machine> {
                let cuda = machines::cuda(route)?;
                let name = format!("{}, {}", cuda.name(), cuda.kernels().set().route);
                Ok(Machine {
                    runtime: Box::new(cuda),
                    name,
                })
            };
            let routes = PtxSets::routes(self.ptx).into_iter();
            return Ok(vec![routes.map(machine).collect::<anyhow::Result<_>>()?]);
        }
        let [route] = PtxSets::routes(self.ptx)[..] else {
            unreachable!("one set unless both are asked for");
        };
        let machines = machines::open(self.runtime, route)?.into_iter();
        Ok(machines
            .map(|runtime| {
                let name = runtime.name();
                vec![Machine { runtime, name }]
            })
            .collect())
    }

    fn cases(&self) -> Vec<Case> {
        if let Some(case) = &self.case {
            return vec![case.clone()];
        }
        let listed = |name: &str| match self.list {
            List::Smoke => name == "smoke",
            List::Edges => name == "edges",
            List::Sweep => name == "sweep",
            List::Bench => name == "bench",
            List::All => name != "bench",
        };
        let matches = |case: &Case| {
            self.filter
                .as_ref()
                .is_none_or(|text| case.to_string().contains(text))
        };
        GRIDS
            .iter()
            .filter(|grid| listed(grid.name))
            .flat_map(|grid| (grid.cases)())
            .filter(matches)
            .skip(self.skip)
            .take(self.limit.unwrap_or(usize::MAX))
            .collect()
    }
}

impl Line<'_> {
    fn fail(&mut self, error: String) {
        self.passed = false;
        self.error = Some(match self.error.take() {
            None => error,
            Some(earlier) => format!("{earlier}; {error}"),
        });
    }
}

fn run_one<'a>(
    case: &Case,
    seed: u64,
    machine: &'a Machine,
    before: Option<&Outcome>,
) -> (Line<'a>, Option<Outcome>) {
    let start = Instant::now();
    let outcome = run_case_again(case, machine.runtime.as_ref(), seed, before);
    let mut line = Line {
        case: case.to_string(),
        seed,
        runtime: &machine.name,
        passed: true,
        error: None,
        rel_frobenius: None,
        ulps: None,
        lse_abs: None,
        plan: None,
        milliseconds: start.elapsed().as_millis(),
    };
    match &outcome {
        Err(error) => line.fail(error.to_string()),
        Ok(outcome) => {
            line.plan = Some(outcome.plan.clone());
            match &outcome.verdict {
                Err(mismatch) => line.fail(mismatch.to_string()),
                Ok(accuracy) => {
                    line.rel_frobenius = Some(accuracy.rel_frobenius);
                    line.ulps = Some(accuracy.ulps);
                    line.lse_abs = Some(accuracy.lse_abs);
                }
            }
        }
    }
    (line, outcome.ok())
}

fn print(line: &Line<'_>, json: bool) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    if json {
        serde_json::to_writer(&mut stdout, line)?;
        return writeln!(stdout);
    }
    match &line.error {
        None => writeln!(
            stdout,
            "ok     {} [{}] rel {:.1e} ulps {:.2} lse {:.0e} {} ms",
            line.case,
            line.runtime,
            line.rel_frobenius.unwrap_or(0.0),
            line.ulps.unwrap_or(0.0),
            line.lse_abs.unwrap_or(0.0),
            line.milliseconds
        ),
        Some(error) => {
            writeln!(stdout, "FAILED {} [{}]", line.case, line.runtime)?;
            writeln!(stdout, "       {error}")?;
            if let Some(plan) = &line.plan {
                writeln!(stdout, "       {plan}")?;
            }
            writeln!(
                stdout,
                "       replay: ferroattn sweep --case '{}' --seed {}",
                line.case, line.seed
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::emulator::Emulator;

    #[test]
    fn one_bit_makes_a_difference() {
        let machine = Machine {
            runtime: Box::new(Emulator::new()),
            name: "emulator".into(),
        };
        let cases: Vec<Case> = [
            "decode bf16 heads=8/2 d=64 page=16 layout=nhd lens=uniform:2:40 lse=off",
            "decode bf16 heads=8/2 d=64 page=16 layout=nhd lens=uniform:2:40",
        ]
        .iter()
        .map(|line| line.parse().expect("a case"))
        .collect();
        for case in &cases {
            let run = || run_one(case, 0, &machine, None).1.expect("it runs");
            let (first, mut second) = (run(), run());
            assert_eq!(difference(&second, &first), None);
            for at in 0..first.outputs.len() {
                let mut bytes = first.outputs[at].storage.bytes.clone();
                *bytes.last_mut().expect("no empty output") ^= 1;
                second.outputs[at] = first.outputs[at].with_bytes(bytes);
                let text = difference(&second, &first).expect("a difference");
                assert!(text.contains(first.outputs[at].storage.name), "{text}");
                second.outputs[at] = first.outputs[at].clone();
            }
        }
    }

    #[test]
    fn a_line_keeps_all_its_errors() {
        let machine = Machine {
            runtime: Box::new(Emulator::new()),
            name: "emulator".into(),
        };
        let case = "decode bf16 heads=8/2 d=64 page=16 layout=nhd lens=uniform:2:40 lse=off";
        let case: Case = case.parse().expect("a case");
        let (mut line, _) = run_one(&case, 0, &machine, None);
        assert!(line.passed && line.error.is_none());
        line.fail("a".into());
        line.fail("b".into());
        assert!(!line.passed);
        assert_eq!(line.error.as_deref(), Some("a; b"));
    }
}
