//! What every case can do, whatever its operation: say what it costs, come to a machine, run there and be judged.

use std::fmt;

use rand_chacha::ChaCha8Rng;

use super::compare::Accuracy;
use super::memory_mistake::MemoryMistake;
use super::mismatch::Mismatch;
use super::same_bytes::same_bytes;
use super::tensors::Amount;
use super::uploads::Uploads;
use crate::error::Result;
use crate::ops::{CHECK_BYTES, CheckMode, check_result};
use crate::reference::HostTensor;
use crate::runtime::{Buffer, Launcher, Runtime};
use crate::tensor::Dtype;

/// What reports say of a case. It prints as its line.
pub(crate) trait Described: fmt::Display {
    /// The name that the tables of measured peers use, which says less: shapes, dtype, batch, context.
    fn peer_name(&self) -> String;

    /// Bytes that any implementation has to move, counted from the shape: lengths drawn with `seed`.
    fn unavoidable_bytes(&self, seed: u64) -> u64;

    /// Floating-point operations of the two products of attention; none of other operations.
    fn flops(&self, _seed: u64) -> u64 {
        0
    }
}

/// A case that can be brought to a machine.
pub(crate) trait Runnable: Described {
    /// Whether what lies in device memory is checked there.
    fn check(&self) -> CheckMode;

    /// The tensors of the case on a machine, to be launched.
    ///
    /// # Errors
    /// There is no such case, or no memory for it.
    fn on<'m>(
        &self,
        runtime: &'m dyn Runtime,
        seed: u64,
        amount: Amount,
    ) -> Result<Box<dyn DeviceCase<'m> + 'm>>;
}

/// A case on a machine.
pub(crate) trait DeviceCase<'m> {
    /// Enqueues the operation on copy `set` of the inputs; returns the plan, on one line. Each set has a workspace of
    /// its own, which its first launch allocates.
    ///
    /// # Errors
    /// The request was refused, or the machine failed.
    fn launch(&mut self, set: usize, launcher: &dyn Launcher) -> Result<String>;

    /// The tensors on the machine.
    fn uploads(&self) -> &Uploads<'m>;

    /// What the check on the device found in the launches so far, if the case has one.
    ///
    /// # Errors
    /// The fault that was found, or the machine failed.
    fn find_fault(&self) -> Result<()>;

    /// Waits, and reads every tensor that is written; attention's output is the first.
    ///
    /// # Errors
    /// Something enqueued failed.
    fn outputs(&self) -> Result<Vec<HostTensor>>;

    /// Compares outputs with what the reference says of them, after one launch of every set. Where the reference would
    /// spend more than `budget` multiplications, it looks at a sample.
    ///
    /// # Errors
    /// Where they are wrong.
    fn judge(&self, outputs: &[HostTensor], budget: u64) -> Result<Accuracy, Mismatch>;

    /// Wrong values for device memory, each of which the check on the device finds, if the case has one.
    fn mistakes(&self, random: &mut ChaCha8Rng) -> Vec<MemoryMistake>;
}

/// Judges outputs that are right to the last bit or wrong.
///
/// # Errors
/// The first byte that differs.
pub(crate) fn all_same(outputs: &[HostTensor], expected: &[Vec<u8>]) -> Result<Accuracy, Mismatch> {
    assert_eq!(outputs.len(), expected.len(), "one of each output");
    outputs
        .iter()
        .zip(expected)
        .try_for_each(|(output, expected)| same_bytes(output, expected))?;
    Ok(Accuracy::default())
}

/// Workspaces of the sets of a case, and the records of the checks in them.
pub(crate) struct Workspaces<'m> {
    runtime: &'m dyn Runtime,
    check: CheckMode,
    by_set: Vec<Option<Buffer<'m>>>,
}

impl<'m> Workspaces<'m> {
    pub(crate) fn new(runtime: &'m dyn Runtime, check: CheckMode) -> Self {
        Self {
            runtime,
            check,
            by_set: Vec::new(),
        }
    }

    /// The machine that they are on.
    pub(crate) fn runtime(&self) -> &'m dyn Runtime {
        self.runtime
    }

    /// The workspace of `set`, of at least `bytes` bytes: as many at each launch.
    ///
    /// # Errors
    /// Out of memory.
    pub(crate) fn of(&mut self, set: usize, bytes: usize) -> Result<&mut Buffer<'m>> {
        if self.by_set.len() <= set {
            self.by_set.resize_with(set + 1, || None);
        }
        let place = &mut self.by_set[set];
        if place.is_none() {
            // A check's record fits in any.
            let shape = [bytes.max(CHECK_BYTES)];
            *place = Some(Buffer::uninit(
                self.runtime,
                "workspace",
                Dtype::U8,
                &shape,
            )?);
        }
        let workspace = place.as_mut().expect("it was allocated");
        assert!(workspace.bytes() >= bytes, "one plan for all launches");
        Ok(workspace)
    }

    /// See [`DeviceCase::find_fault`].
    pub(crate) fn find_fault(&self) -> Result<()> {
        if self.check == CheckMode::Device {
            for workspace in self.by_set.iter().flatten() {
                check_result(&workspace.read()?[..CHECK_BYTES])?;
            }
        }
        Ok(())
    }
}
