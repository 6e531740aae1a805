//! How `bench` times a case: it is compared with the reference first; what is timed is a CUDA graph of several
//! launches, which take disjoint sets of inputs in turn so that none finds its own in the level-2 cache.

use anyhow::{Context, bail};

use crate::cases::fill::{self, Amount};
use crate::cases::{
    Accuracy, Case, DecodeCase, DeviceDecode, DeviceEntries, DeviceUnified, EntryTensors, Mismatch,
    UnifiedTensors, compare_decode, compare_entries, compare_unified, run_case, sample_rows,
    sample_seqs, score_sums,
};
use crate::error::Result;
use crate::reference::HostTensor;
use crate::report::Measurement;
use crate::runtime::{Buffer, Cuda, Graph, Launcher, Runtime};
use crate::tensor::Dtype;

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

/// One case on one GPU.
pub(super) struct Bench<'a> {
    pub(super) cuda: &'a Cuda,
    pub(super) case: &'a Case,
    pub(super) seed: u64,
    pub(super) replays: usize,
}

impl Bench<'_> {
    pub(super) fn measure(&self) -> anyhow::Result<Measurement> {
        let (cuda, seed, sets) = (self.cuda, self.seed, self.sets());
        let amount = Amount {
            sets,
            pattern_bytes: PATTERN_BYTES,
        };
        match self.case {
            Case::Decode(case) => {
                let mut device = DeviceDecode::new(cuda, fill::decode(case, seed, amount))?;
                let plan = device.plan(case, &cuda.device())?;
                let seqs = sample_sets(case, seed, device.tensors().num_seqs, sets);
                self.measure_attention(
                    device,
                    (plan.to_string(), plan.workspace_bytes()),
                    |device, set, workspace, launcher| {
                        device.launch(case, set, &plan, workspace, launcher)
                    },
                    |device| device.results(),
                    |device, out, lse| compare_decode(case, device.tensors(), out, lse, &seqs),
                )
            }
            Case::DecodeEntries(case) => {
                let mut device = DeviceEntries::new(cuda, EntryTensors::new(case, seed, amount))?;
                let plan = device.plan(case, &cuda.device())?;
                let rows = sample_rows(case, seed, sets, REFERENCE_BUDGET);
                self.measure_attention(
                    device,
                    (plan.to_string(), plan.workspace_bytes()),
                    |device, set, workspace, launcher| {
                        device.launch(case, set, &plan, workspace, launcher)
                    },
                    |device| device.results(),
                    |device, out, lse| compare_entries(case, device.tensors(), out, lse, &rows),
                )
            }
            Case::Unified(case) => {
                let mut device =
                    DeviceUnified::new(cuda, UnifiedTensors::new(case, seed, amount)?)?;
                let plan = {
                    let checked = device.request(case, seed, 0)?.check()?;
                    checked.plan(&cuda.device())?
                };
                let tokens = case.sample_tokens(seed, REFERENCE_BUDGET);
                let sums = score_sums(&plan, cuda);
                self.measure_attention(
                    device,
                    (plan.to_string(), plan.workspace_bytes()),
                    |device, set, workspace, launcher| {
                        let checked = device.request(case, seed, set)?.check()?;
                        checked.launch(&plan, &mut workspace.view_mut(), launcher)
                    },
                    |device| device.results(),
                    |device, out, lse| {
                        compare_unified(case, device.tensors(), out, lse, &tokens, sums)
                    },
                )
            }
            _ => self.measure_exact(amount),
        }
    }

    /// Attention, whose output is compared by tolerance. `launch` enqueues a set with a workspace, `results`
    /// reads what was written, and `judge` compares that with the reference.
    fn measure_attention<D>(
        &self,
        mut device: D,
        (plan, workspace_bytes): (String, usize),
        mut launch: impl FnMut(&mut D, usize, &mut Buffer<'_>, &dyn Launcher) -> Result<()>,
        results: impl Fn(&D) -> Result<(HostTensor, Option<HostTensor>)>,
        judge: impl Fn(&D, &HostTensor, Option<&HostTensor>) -> Result<Accuracy, Mismatch>,
    ) -> anyhow::Result<Measurement> {
        let (cuda, sets) = (self.cuda, self.sets());
        // One workspace per set: the partial results of one launch are no more in the cache than its
        // inputs are, and launches may overlap.
        let bytes = workspace_bytes.next_multiple_of(256).max(256);
        let mut workspaces = (0..sets)
            .map(|_| Buffer::uninit(cuda, "workspace", Dtype::U8, &[bytes]))
            .collect::<Result<Vec<_>>>()?;
        for (set, workspace) in workspaces.iter_mut().enumerate() {
            launch(&mut device, set, workspace, cuda)?;
        }
        cuda.synchronize()?;
        let (out, lse) = results(&device)?;
        let accuracy = judge(&device, &out, lse.as_ref())
            .map_err(|mismatch| anyhow::anyhow!("not what the reference says: {mismatch}"))?;
        let (launches, times_us) = self.replay(sets, |set, launcher| {
            launch(&mut device, set, &mut workspaces[set], launcher)
        })?;
        anyhow::ensure!(
            results(&device)?.0.storage.bytes == out.storage.bytes,
            "the replays' output differs from the one that was compared with the reference"
        );
        Ok(Measurement {
            plan,
            times_us,
            launches,
            sets,
            accuracy,
        })
    }

    /// What is right to the last bit or wrong. A case of fewer tokens is compared; the sets' outputs are not.
    fn measure_exact(&self, amount: Amount) -> anyhow::Result<Measurement> {
        let (cuda, sets) = (self.cuda, amount.sets);
        let accuracy = match run_case(&self.case.sample(), cuda, self.seed)?.verdict {
            Ok(accuracy) => accuracy,
            Err(mismatch) => bail!("not what the reference says: {mismatch}"),
        };
        let mut device = self
            .case
            .on(cuda, self.seed, amount)?
            .context("a case with exact outputs")?;
        let plan = device.launch(0, cuda)?;
        cuda.synchronize()?;
        let (launches, times_us) =
            self.replay(sets, |set, launcher| device.launch(set, launcher).map(drop))?;
        Ok(Measurement {
            plan,
            times_us,
            launches,
            sets,
            accuracy,
        })
    }

    /// Times a graph that launches the sets in turn: launches per replay, and microseconds per launch.
    fn replay(
        &self,
        sets: usize,
        mut launch: impl FnMut(usize, &dyn Launcher) -> Result<()>,
    ) -> anyhow::Result<(usize, Vec<f64>)> {
        let launches = self.launches(sets);
        let graph = self
            .cuda
            .capture(|launcher| (0..launches).try_for_each(|at| launch(at % sets, launcher)))?;
        Ok((launches, self.time(&graph, launches)?))
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

/// A sample of the sequences of the first and the last of `sets` copies of a batch.
fn sample_sets(case: &DecodeCase, seed: u64, num_seqs: usize, sets: usize) -> Vec<usize> {
    let mut seqs = sample_seqs(case, seed, REFERENCE_BUDGET);
    if sets > 1 {
        let last = (sets - 1) * num_seqs;
        seqs.extend(seqs.clone().into_iter().map(|seq| last + seq));
    }
    seqs
}
