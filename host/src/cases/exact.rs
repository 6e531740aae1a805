//! Cases whose outputs are right to the last bit or wrong.

use super::blocks::ExactBlocks;
use super::device_write::ExactWrite;
use super::fill::Amount;
use super::gather::ExactGather;
use super::mla_write::ExactMlaWrite;
use super::{Accuracy, Case, Mismatch, Outcome, Uploads, compare};
use crate::error::Result;
use crate::reference::HostTensor;
use crate::runtime::{Launcher, Runtime};

/// Such a case on a machine.
pub(crate) trait DeviceCase<'m> {
    /// Enqueues the operation on copy `set` of the inputs; returns the plan, on one line.
    fn launch(&mut self, set: usize, launcher: &dyn Launcher) -> Result<String>;
    /// The tensors on the machine.
    fn uploads(&self) -> &Uploads<'m>;
    /// Waits, and reads every tensor that is written.
    fn outputs(&self) -> Result<Vec<HostTensor>>;
    /// The bytes that the outputs have to have after a launch of the first set.
    fn expected(&self) -> Vec<Vec<u8>>;
}

impl Case {
    /// The case on a machine; `None` for attention, whose outputs are compared by tolerance.
    pub(crate) fn on<'m>(
        &self,
        runtime: &'m dyn Runtime,
        seed: u64,
        amount: Amount,
    ) -> Result<Option<Box<dyn DeviceCase<'m> + 'm>>> {
        Ok(match self {
            Self::Decode(_) | Self::DecodeEntries(_) | Self::Unified(_) => None,
            Self::CacheWrite(case) => Some(Box::new(ExactWrite::new(case, runtime, seed, amount)?)),
            Self::MlaWrite(case) => {
                Some(Box::new(ExactMlaWrite::new(case, runtime, seed, amount)?))
            }
            Self::Gather(case) => Some(Box::new(ExactGather::new(case, runtime, seed, amount)?)),
            Self::Blocks(case) => Some(Box::new(ExactBlocks::new(case, runtime, seed, amount)?)),
        })
    }
}

/// Launches the first set and compares.
pub(super) fn run(device: &mut dyn DeviceCase<'_>, runtime: &dyn Runtime) -> Result<Outcome> {
    let plan = device.launch(0, runtime)?;
    runtime.synchronize()?;
    let outputs = device.outputs()?;
    let verdict: Result<(), Mismatch> = outputs
        .iter()
        .zip(device.expected())
        .try_for_each(|(output, expected)| compare::same_bytes(output, &expected));
    Ok(Outcome {
        plan,
        verdict: verdict.map(|()| Accuracy::default()),
        outputs,
    })
}
