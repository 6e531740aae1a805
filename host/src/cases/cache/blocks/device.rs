//! Cases of operations on blocks on a machine.

use std::cell::RefCell;

use rand_chacha::ChaCha8Rng;

use super::rules::{BlocksCase, BlocksTensors};
use crate::cases::base::compare::Accuracy;
use crate::cases::base::device_case::{DeviceCase, Runnable, Workspaces, all_same};
use crate::cases::base::memory_mistake::MemoryMistake;
use crate::cases::base::mismatch::Mismatch;
use crate::cases::base::tensors::Amount;
use crate::cases::base::uploads::Uploads;
use crate::cases::named::Stage;
use crate::error::{Error, Result};
use crate::ops::CheckMode;
use crate::reference::HostTensor;
use crate::runtime::{Launcher, Runtime};

/// A case on a machine.
struct BlocksRun<'m> {
    tensors: BlocksTensors,
    stage: Stage<'m>,
    workspaces: Workspaces<'m>,
    /// Names of the tensors that a launch has written.
    written: Vec<&'static str>,
}

impl Runnable for BlocksCase {
    fn check(&self) -> CheckMode {
        self.check
    }

    fn on<'m>(
        &self,
        runtime: &'m dyn Runtime,
        seed: u64,
        _amount: Amount,
    ) -> Result<Box<dyn DeviceCase<'m> + 'm>> {
        let tensors = BlocksTensors::new(self, seed);
        let op = self.operation.operation();
        let stage = Stage::new(runtime, op, tensors.file_contents(), usize::MAX);
        Ok(Box::new(BlocksRun {
            stage: stage.map_err(library_error)?,
            workspaces: Workspaces::new(runtime, self.check),
            tensors,
            written: Vec::new(),
        }))
    }
}

/// The library's own error.
///
/// # Panics
/// If it is another: the case gives its operation something that this does not take.
fn library_error(error: anyhow::Error) -> Error {
    let error = error.downcast();
    error.unwrap_or_else(|error| panic!("no inputs of the operation: {error:#}"))
}

impl<'m> DeviceCase<'m> for BlocksRun<'m> {
    fn launch(&mut self, set: usize, launcher: &dyn Launcher) -> Result<String> {
        let workspaces = RefCell::new(&mut self.workspaces);
        let plan = RefCell::default();
        let launched = self.stage.launch(self.tensors.case.check, &|ready| {
            let mut workspaces = workspaces.borrow_mut();
            let workspace = workspaces.of(set, ready.workspace_bytes)?;
            (ready.launch)(&mut workspace.view_mut(), launcher)?;
            *plan.borrow_mut() = ready.plan;
            Ok(())
        });
        self.written = launched.map_err(library_error)?;
        Ok(plan.into_inner())
    }

    fn uploads(&self) -> &Uploads<'m> {
        self.stage.uploads()
    }

    fn find_fault(&self) -> Result<()> {
        self.workspaces.find_fault()
    }

    fn outputs(&self) -> Result<Vec<HostTensor>> {
        let names = self.written.iter();
        names
            .map(|name| self.stage.read(name).map_err(library_error))
            .collect()
    }

    fn judge(&self, outputs: &[HostTensor], _budget: u64) -> Result<Accuracy, Mismatch> {
        let mut expected = (self.tensors.case.operation.rules().expected)(&self.tensors);
        // In the order of the outputs.
        expected.sort_by_key(|(name, _)| self.written.iter().position(|other| other == name));
        let (names, bytes): (Vec<_>, Vec<_>) = expected.into_iter().unzip();
        assert_eq!(names, self.written, "what is written is expected");
        all_same(outputs, &bytes)
    }

    fn mistakes(&self, random: &mut ChaCha8Rng) -> Vec<MemoryMistake> {
        (self.tensors.case.operation.rules().mistakes)(&self.tensors, random)
    }
}
