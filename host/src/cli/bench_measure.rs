//! How `bench` times a case: it is compared with the reference first; what is timed is a CUDA graph of several
//! launches, which take disjoint sets of inputs in turn so that none finds its own in the level-2 cache.

use crate::cases::fill::Amount;
use crate::cases::{Case, run_case};
use crate::error::Result;
use crate::reference::HostTensor;
use crate::report::Measurement;
use crate::runtime::{Cuda, Graph, Launcher, Runtime};

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
    /// Compares the case with the reference, or a smaller one where all of it would take the reference long; then times
    /// it.
    pub(super) fn measure(&self) -> anyhow::Result<Measurement> {
        let (cuda, sets) = (self.cuda, self.sets());
        let amount = Amount {
            sets,
            pattern_bytes: PATTERN_BYTES,
        };
        let mut device = self.case.on(cuda, self.seed, amount)?;
        // Each set gets its workspace, before a graph is captured.
        let mut plan = String::new();
        for set in 0..sets {
            plan = device.launch(set, cuda)?;
        }
        cuda.synchronize()?;
        device.find_fault()?;
        let (verdict, before) = match self.case.sample() {
            Some(smaller) => (run_case(&smaller, cuda, self.seed)?.verdict, None),
            None => {
                let outputs = device.outputs()?;
                (device.judge(&outputs, REFERENCE_BUDGET), Some(outputs))
            }
        };
        let accuracy = verdict
            .map_err(|mismatch| anyhow::anyhow!("not what the reference says: {mismatch}"))?;
        let (launches, times_us) =
            self.replay(sets, |set, launcher| device.launch(set, launcher).map(drop))?;
        if let Some(before) = before {
            let same = |old: &HostTensor, new: &HostTensor| old.storage.bytes == new.storage.bytes;
            let after = device.outputs()?;
            anyhow::ensure!(
                before.iter().zip(&after).all(|(old, new)| same(old, new)),
                "the replays' output differs from the one that was compared with the reference"
            );
        }
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
