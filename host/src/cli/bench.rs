//! `bench`: times cases on the GPU.
//!
//! Each case is compared with the reference first. What is timed is a CUDA graph of several launches, which
//! take disjoint sets of inputs in turn so that none finds its own in the level-2 cache.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use super::ceiling;
use super::machines::{self, PtxSets};
use crate::cases::fill::{self, Amount};
use crate::cases::grids::GRIDS;
use crate::cases::{
    Accuracy, Case, DecodeCase, DeviceDecode, DeviceEntries, DeviceUnified, EntryCase,
    EntryTensors, UnifiedCase, UnifiedTensors, compare_decode, compare_entries, compare_unified,
    run_case, sample_rows, sample_seqs,
};
use crate::error::Result;
use crate::ops::UnifiedPlan;
use crate::report::{self, Environment, Measurement, PeerTimes, Record, Report};
use crate::runtime::{Buffer, Cuda, Graph, Launcher, Runtime};
use crate::tensor::Dtype;

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

/// Bytes of inputs in rotation, if the case is smaller: many times the level-2 cache.
const ROTATED_BYTES: u64 = 1 << 30;
/// Most sets of inputs.
const MAX_SETS: u64 = 256;
/// A replay lasts about this long at least, so that its start and end do not count.
const REPLAY_US: f64 = 1000.0;
/// Warming up lasts about this long.
const WARM_UP_US: f64 = 300_000.0;
/// Bytes of each cache that are generated on the host; larger ones repeat them.
const PATTERN_BYTES: usize = 64 << 20;
/// Multiplications that the reference spends on a case.
const REFERENCE_BUDGET: u64 = 1_500_000_000;

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

struct Bench<'a> {
    cuda: &'a Cuda,
    case: &'a Case,
    seed: u64,
    replays: usize,
}

impl Bench<'_> {
    fn measure(&self) -> anyhow::Result<Measurement> {
        match self.case {
            Case::Decode(case) => self.measure_decode(case),
            Case::DecodeEntries(case) => self.measure_entries(case),
            Case::Unified(case) => self.measure_unified(case),
            _ => self.measure_exact(),
        }
    }

    fn measure_decode(&self, case: &DecodeCase) -> anyhow::Result<Measurement> {
        let cuda = self.cuda;
        let sets = self.sets();
        let amount = Amount {
            sets,
            pattern_bytes: PATTERN_BYTES,
        };
        let mut device = DeviceDecode::new(cuda, fill::decode(case, self.seed, amount))?;
        let plan = device.plan(case, &cuda.device())?;
        // One workspace per set: the partial results of one launch are no more in the cache than its
        // inputs are, and launches may overlap.
        let bytes = plan.workspace_bytes().next_multiple_of(256).max(256);
        let mut workspaces = (0..sets)
            .map(|_| Buffer::uninit(cuda, "workspace", Dtype::U8, &[bytes]))
            .collect::<Result<Vec<_>>>()?;

        for (set, workspace) in workspaces.iter_mut().enumerate() {
            device.launch(case, set, &plan, workspace, cuda)?;
        }
        cuda.synchronize()?;
        let (accuracy, expected_out) = self.verify_decode(case, &device, sets)?;

        let launches = self.launches(sets);
        let times_us = {
            let graph = cuda.capture(|launcher| {
                (0..launches).try_for_each(|at| {
                    let set = at % sets;
                    let workspace = &mut workspaces[set];
                    device.launch(case, set, &plan, workspace, launcher)
                })
            })?;
            self.time(&graph, launches)?
        };
        let (out, _) = device.results()?;
        anyhow::ensure!(
            out.storage.bytes == expected_out,
            "the replays' output differs from the one that was compared with the reference"
        );
        Ok(Measurement {
            plan: plan.to_string(),
            times_us,
            launches,
            sets,
            accuracy,
        })
    }

    /// Compares a sample of the first and the last set with the reference; returns all bytes of the output.
    fn verify_decode(
        &self,
        case: &DecodeCase,
        device: &DeviceDecode<'_>,
        sets: usize,
    ) -> anyhow::Result<(Accuracy, Vec<u8>)> {
        let (out, lse) = device.results()?;
        let mut seqs = sample_seqs(case, self.seed, REFERENCE_BUDGET);
        if sets > 1 {
            let last = (sets - 1) * device.tensors().num_seqs;
            seqs.extend(seqs.clone().into_iter().map(|seq| last + seq));
        }
        let accuracy = compare_decode(case, device.tensors(), &out, lse.as_ref(), &seqs)
            .map_err(|mismatch| anyhow::anyhow!("not what the reference says: {mismatch}"))?;
        Ok((accuracy, out.storage.bytes.clone()))
    }

    fn measure_entries(&self, case: &EntryCase) -> anyhow::Result<Measurement> {
        let (cuda, sets) = (self.cuda, self.sets());
        let amount = Amount {
            sets,
            pattern_bytes: PATTERN_BYTES,
        };
        let tensors = EntryTensors::new(case, self.seed, amount);
        let mut device = DeviceEntries::new(cuda, tensors)?;
        let plan = device.plan(case, &cuda.device())?;
        let bytes = plan.workspace_bytes().next_multiple_of(256).max(256);
        let mut workspaces = (0..sets)
            .map(|_| Buffer::uninit(cuda, "workspace", Dtype::U8, &[bytes]))
            .collect::<Result<Vec<_>>>()?;
        let mut launch = |device: &mut DeviceEntries<'_>, set: usize, launcher: &dyn Launcher| {
            device.launch(case, set, &plan, &mut workspaces[set], launcher)
        };
        for set in 0..sets {
            launch(&mut device, set, cuda)?;
        }
        let (out, lse) = device.results()?;
        let rows = sample_rows(case, self.seed, sets, REFERENCE_BUDGET);
        let accuracy = compare_entries(case, device.tensors(), &out, lse.as_ref(), &rows)
            .map_err(|mismatch| anyhow::anyhow!("not what the reference says: {mismatch}"))?;
        let launches = self.launches(sets);
        let graph = cuda.capture(|launcher| {
            (0..launches).try_for_each(|at| launch(&mut device, at % sets, launcher))
        })?;
        let times_us = self.time(&graph, launches)?;
        drop(graph);
        anyhow::ensure!(
            device.results()?.0.storage.bytes == out.storage.bytes,
            "the replays' output differs from the one that was compared with the reference"
        );
        Ok(Measurement {
            plan: plan.to_string(),
            times_us,
            launches,
            sets,
            accuracy,
        })
    }

    fn measure_unified(&self, case: &UnifiedCase) -> anyhow::Result<Measurement> {
        let cuda = self.cuda;
        let sets = self.sets();
        let amount = Amount {
            sets,
            pattern_bytes: PATTERN_BYTES,
        };
        let mut device = DeviceUnified::new(cuda, UnifiedTensors::new(case, self.seed, amount)?)?;
        let plan: UnifiedPlan = {
            let checked = device.request(case, self.seed, 0)?.check()?;
            checked.plan(&cuda.device())?
        };
        let bytes = plan.workspace_bytes().next_multiple_of(256).max(256);
        let mut workspaces = (0..sets)
            .map(|_| Buffer::uninit(cuda, "workspace", Dtype::U8, &[bytes]))
            .collect::<Result<Vec<_>>>()?;
        let mut launch = |device: &mut DeviceUnified<'_>, set: usize, launcher: &dyn Launcher| {
            let checked = device.request(case, self.seed, set)?.check()?;
            checked.launch(&plan, &mut workspaces[set].view_mut(), launcher)
        };
        for set in 0..sets {
            launch(&mut device, set, cuda)?;
        }
        let (out, lse) = device.results()?;
        let tokens = case.sample_tokens(self.seed, REFERENCE_BUDGET);
        let accuracy = compare_unified(case, device.tensors(), &out, lse.as_ref(), &tokens)
            .map_err(|mismatch| anyhow::anyhow!("not what the reference says: {mismatch}"))?;
        let launches = self.launches(sets);
        let graph = cuda.capture(|launcher| {
            (0..launches).try_for_each(|at| launch(&mut device, at % sets, launcher))
        })?;
        let times_us = self.time(&graph, launches)?;
        drop(graph);
        anyhow::ensure!(
            device.results()?.0.storage.bytes == out.storage.bytes,
            "the replays' output differs from the one that was compared with the reference"
        );
        Ok(Measurement {
            plan: plan.to_string(),
            times_us,
            launches,
            sets,
            accuracy,
        })
    }

    fn measure_exact(&self) -> anyhow::Result<Measurement> {
        let cuda = self.cuda;
        let outcome = run_case(&self.case.sample(), cuda, self.seed)?;
        let accuracy = match outcome.verdict {
            Ok(accuracy) => accuracy,
            Err(mismatch) => bail!("not what the reference says: {mismatch}"),
        };
        let sets = self.sets();
        let amount = Amount {
            sets,
            pattern_bytes: PATTERN_BYTES,
        };
        let mut device = self
            .case
            .on(cuda, self.seed, amount)?
            .context("a case with exact outputs")?;
        let plan = device.launch(0, cuda)?;
        cuda.synchronize()?;
        let launches = self.launches(sets);
        let graph = cuda.capture(|launcher| {
            (0..launches).try_for_each(|at| device.launch(at % sets, launcher).map(drop))
        })?;
        Ok(Measurement {
            plan,
            times_us: self.time(&graph, launches)?,
            launches,
            sets,
            accuracy,
        })
    }

    /// Sets of inputs in rotation.
    fn sets(&self) -> usize {
        let bytes = self.case.unavoidable_bytes(self.seed).max(1);
        usize::try_from((ROTATED_BYTES / bytes).clamp(1, MAX_SETS)).unwrap_or(1)
    }

    /// Launches per replay, a multiple of the sets.
    fn launches(&self, sets: usize) -> usize {
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "between 1 and REPLAY_US"
        )]
        let enough = (REPLAY_US / self.expected_us()).ceil().max(1.0) as usize;
        enough.next_multiple_of(sets)
    }

    /// A launch's time at 4 TB/s or 300 TFLOP/s, and never less than a kernel takes.
    #[allow(clippy::cast_precision_loss, reason = "far below 2^53")]
    fn expected_us(&self) -> f64 {
        let bytes_us = self.case.unavoidable_bytes(self.seed) as f64 / 4e6;
        let flops_us = self.case.flops(self.seed) as f64 / 3e8;
        bytes_us.max(flops_us).max(2.0)
    }

    /// Microseconds per launch of each replay.
    #[allow(clippy::cast_precision_loss, reason = "a few thousand launches")]
    fn time(&self, graph: &Graph<'_>, launches: usize) -> anyhow::Result<Vec<f64>> {
        let replay_us = self.expected_us() * launches as f64;
        let mut warm_up_us = 0.0;
        while warm_up_us < WARM_UP_US {
            graph.launch()?;
            warm_up_us += replay_us;
        }
        let milliseconds = self.cuda.time(self.replays, || Ok(()), || graph.launch())?;
        Ok(milliseconds
            .into_iter()
            .map(|milliseconds| f64::from(milliseconds) * 1e3 / launches as f64)
            .collect())
    }
}
