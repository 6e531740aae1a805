//! `bench`: times cases on the GPU.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use super::bench_measure::Bench;
use super::ceiling;
use super::machines::{self, PtxSets};
use crate::cases::Case;
use crate::cases::grid::GRIDS;
use crate::report::{self, Environment, PeerTimes, Record, Report};
use crate::runtime::Cuda;

#[derive(Debug, Args)]
pub(super) struct BenchArgs {
    /// Only cases whose line or peer name contains this
    #[arg(long)]
    filter: Option<String>,
    /// One case, as a line, instead of the list
    #[arg(long)]
    case: Option<Case>,
    /// Print the cases and their peer names, and run nothing
    #[arg(long)]
    list: bool,
    /// Measure how fast the GPU reads, and nothing else
    #[arg(long)]
    ceiling: bool,
    /// Write the records to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw the records into this file
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Times of other implementations to show beside ours: JSON rows with `case`, `impl` and `us`
    #[arg(long, value_name = "FILE")]
    compare: Option<PathBuf>,
    /// Whose PTX the GPU runs; with `both`, every case is timed with each, and shown as a pair
    /// [env: FERROATTN_PTX] [default: rust-cuda's, if this build has it]
    #[arg(long, value_enum)]
    ptx: Option<PtxSets>,
    /// Timed replays per case
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    replays: u32,
    /// Seeds lengths, values and the order of blocks
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

pub(super) fn run(args: &BenchArgs) -> anyhow::Result<ExitCode> {
    let cases = args.cases();
    if args.list {
        let mut stdout = io::stdout().lock();
        for case in &cases {
            writeln!(stdout, "{case}  # {}", case.peer_name())?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let peers = match &args.compare {
        Some(path) => report::read_peers(path)
            .with_context(|| format!("reading peers' times from {}", path.display()))?,
        None => PeerTimes::new(),
    };
    let both = args.ptx == Some(PtxSets::Both);
    anyhow::ensure!(
        !both || (args.svg.is_none() && args.compare.is_none()),
        "--ptx both compares the sets with each other: --svg and --compare are for one"
    );
    let machines = PtxSets::routes(args.ptx)
        .into_iter()
        .map(machines::cuda)
        .collect::<anyhow::Result<Vec<Cuda>>>()?;
    let read_ceiling_gbps = ceiling::read_gbps(&machines[0])?;
    if args.ceiling {
        let gbps = read_ceiling_gbps.context("the GPU has too little memory to measure it")?;
        writeln!(io::stdout(), "{gbps:.1} GB/s")?;
        return Ok(ExitCode::SUCCESS);
    }
    anyhow::ensure!(!cases.is_empty(), "no case matches");

    let mut report = Report {
        environment: machines
            .iter()
            .map(|cuda| Environment::of(cuda, args.seed))
            .reduce(|first, second| first.and(&second))
            .context("a machine")?,
        read_ceiling_gbps,
        records: Vec::new(),
    };
    let progress = ProgressBar::new((cases.len() * machines.len()) as u64).with_style(
        ProgressStyle::with_template("{bar:30} {pos}/{len} {elapsed} {wide_msg}")
            .context("the progress bar's template")?,
    );
    let runs = cases
        .iter()
        .flat_map(|case| machines.iter().map(move |cuda| (case, cuda)));
    for (case, cuda) in runs {
        let route = cuda.kernels().set().route;
        progress.set_message(format!("{} ({route})", case.peer_name()));
        let bench = Bench {
            cuda,
            case,
            seed: args.seed,
            replays: args.replays as usize,
        };
        let measured = bench
            .measure()
            .with_context(|| format!("{case} ({route})"))?;
        let mut record = Record::new(case, args.seed, measured, read_ceiling_gbps);
        record.ptx_route = Some(route.name().into());
        progress.suspend(|| {
            let Record {
                peer_name,
                median_us,
                gbps,
                plan,
                ..
            } = &record;
            eprintln!("{peer_name} ({route}): {median_us:.2} µs, {gbps:.0} GB/s; {plan}");
        });
        report.records.push(record);
        // Written each time: a run that is cut short leaves what it has measured.
        if let Some(path) = &args.json {
            report::write_report(&report, path)
                .with_context(|| format!("writing {}", path.display()))?;
        }
        progress.inc(1);
    }
    progress.finish_and_clear();
    if let Some(path) = &args.svg {
        report::bar_chart(&report, &peers, path)
            .with_context(|| format!("writing {}", path.display()))?;
    }
    let mut stdout = io::stdout().lock();
    if let Some(gbps) = read_ceiling_gbps {
        writeln!(stdout, "{}: reads {gbps:.0} GB/s\n", report.environment.gpu)?;
    }
    if both {
        writeln!(stdout, "{}", report::pairs(&report))?;
    } else {
        writeln!(stdout, "{}", report::table(&report, &peers))?;
    }
    Ok(ExitCode::SUCCESS)
}

impl BenchArgs {
    fn cases(&self) -> Vec<Case> {
        if let Some(case) = &self.case {
            return vec![case.clone()];
        }
        let matches = |case: &Case| {
            self.filter.as_ref().is_none_or(|text| {
                case.to_string().contains(text) || case.peer_name().contains(text)
            })
        };
        GRIDS
            .iter()
            .filter(|grid| grid.name == "bench")
            .flat_map(|grid| (grid.cases)())
            .filter(matches)
            .collect()
    }
}
