//! One operation's tensors on a machine, and its launches there.

use std::cell::RefCell;
use std::fmt::Display;
use std::sync::Arc;

use anyhow::Context;

use super::caches::Caches;
use super::inputs::{Inputs, span_bytes};
use super::operation::Output;
use crate::cases::base::tensors::POISON;
use crate::cases::base::uploads::Uploads;
use crate::error::Result;
use crate::ops::CheckMode;
use crate::reference::HostTensor;
use crate::runtime::{Launcher, Runtime};
use crate::tensor::{TensorView, TensorViewMut};

/// What an operation is given, and the tensors that are made for it to write, on a machine.
pub(crate) struct Stage<'m> {
    machine: &'m dyn Runtime,
    inputs: Inputs,
    tensors: Vec<HostTensor>,
    uploads: Uploads<'m>,
}

impl<'m> Stage<'m> {
    /// Outputs are poisoned.
    ///
    /// # Errors
    /// The operation cannot say what it makes of these inputs, or it has more than `most_bytes` bytes; out of memory.
    pub(crate) fn new(
        machine: &'m dyn Runtime,
        inputs: Inputs,
        most_bytes: usize,
    ) -> anyhow::Result<Self> {
        let mut tensors = inputs.tensors().to_vec();
        let mut left = most_bytes;
        for output in (inputs.operation().outputs)(&inputs)? {
            let span = span_bytes(output.dtype, &output.shape);
            span.filter(|&bytes| bytes <= left).with_context(|| {
                let Output { name, shape, .. } = &output;
                format!("`{name}` would have shape {shape:?}: all that is made may have {most_bytes} bytes")
            })?;
            let tensor = poisoned(&output);
            left -= tensor.storage.len;
            tensors.push(tensor);
        }
        for (at, tensor) in tensors.iter().enumerate() {
            let is_shared = |other: &HostTensor| Arc::ptr_eq(&other.storage, &tensor.storage);
            assert!(!tensors[..at].iter().any(is_shared), "a storage for each");
        }
        Ok(Self {
            machine,
            uploads: Uploads::new(machine, &tensors)?,
            inputs,
            tensors,
        })
    }

    /// Launches the operation once: it makes its request, whose indices are checked as `check` says, and `start` is given
    /// what is ready. Returns the names of the tensors that are written, in the order in which the request has them.
    ///
    /// # Errors
    /// The request is refused, or something that was given has no effect; whatever `start` says. Those that the library
    /// has are its own [`crate::Error`].
    pub(crate) fn launch(
        &mut self,
        check: CheckMode,
        start: &dyn Fn(Ready<'_>) -> anyhow::Result<()>,
    ) -> anyhow::Result<Vec<&'static str>> {
        let job = Job {
            stage: self,
            check,
            written: RefCell::default(),
            start,
        };
        (job.inputs().operation().launch)(&job)?;
        Ok(job.written.into_inner())
    }

    fn find(&self, name: &str) -> Option<&HostTensor> {
        let mut tensors = self.tensors.iter();
        tensors.find(|tensor| tensor.storage.name == name)
    }

    /// The tensors on the machine.
    pub(crate) fn uploads(&self) -> &Uploads<'m> {
        &self.uploads
    }

    /// Waits, and reads the tensor of this name.
    ///
    /// # Errors
    /// There is none, or something enqueued failed.
    pub(crate) fn read(&self, name: &str) -> anyhow::Result<HostTensor> {
        let tensor = self.find(name).with_context(|| no_tensor(name))?;
        Ok(self.uploads.read(tensor)?)
    }
}

/// One launch of an operation: what its request is made of.
pub(crate) struct Job<'j> {
    /// Borrowed alone, by [`Stage::launch`].
    stage: &'j Stage<'j>,
    check: CheckMode,
    /// Names of tensors that somebody has a view to write of.
    written: RefCell<Vec<&'static str>>,
    start: &'j dyn Fn(Ready<'_>) -> anyhow::Result<()>,
}

/// A checked request and its plan.
pub(crate) struct Ready<'r> {
    pub(crate) plan: String,
    pub(crate) workspace_bytes: usize,
    /// Whether the workspace begins with a check's record.
    pub(crate) check: CheckMode,
    /// Launches it, with a workspace.
    pub(crate) launch: &'r dyn Fn(&mut TensorViewMut<'_>, &dyn Launcher) -> Result<()>,
}

impl<'j> Job<'j> {
    pub(crate) fn inputs(&self) -> &'j Inputs {
        &self.stage.inputs
    }

    pub(crate) fn machine(&self) -> &'j dyn Runtime {
        self.stage.machine
    }

    /// Whether the request's indices are to be checked on the device, if they can be.
    pub(crate) fn check(&self) -> CheckMode {
        self.check
    }

    fn find(&self, name: &str) -> Option<&'j HostTensor> {
        let found = self.stage.find(name)?;
        self.inputs().ask(found.storage.name);
        Some(found)
    }

    /// A tensor to read, if there is one.
    pub(crate) fn optional(&self, name: &str) -> Result<Option<TensorView<'_>>> {
        let is_written = self.written.borrow().contains(&name);
        assert!(!is_written, "`{name}` is written by this operation");
        let view = |tensor| self.stage.uploads.view(tensor);
        Ok(self.find(name).map(view).transpose()?)
    }

    /// A tensor to read.
    pub(crate) fn view(&self, name: &str) -> anyhow::Result<TensorView<'_>> {
        self.optional(name)?.with_context(|| no_tensor(name))
    }

    /// A tensor to write, if there is one; once each.
    pub(crate) fn optional_mut(&self, name: &str) -> Result<Option<TensorViewMut<'_>>> {
        let Some(tensor) = self.find(name) else {
            return Ok(None);
        };
        let mut written = self.written.borrow_mut();
        assert!(!written.contains(&name), "`{name}` twice");
        written.push(tensor.storage.name);
        // SAFETY: no two tensors share a storage (`Stage::new`), the stage has no other job meanwhile (`Stage::launch`
        // borrows it alone, and launches of one stream run in order), and in this one the view is the only one of the
        // tensor from here on, as the assertions here and in `optional` ensure; `view` comes before, in an operation
        // that works in place.
        Ok(Some(unsafe { self.stage.uploads.view_mut(tensor)? }))
    }

    /// A tensor to write; once each.
    pub(crate) fn view_mut(&self, name: &str) -> anyhow::Result<TensorViewMut<'_>> {
        self.optional_mut(name)?.with_context(|| no_tensor(name))
    }

    /// The caches of a tensor `[num_caches, ..]` to read, if there is one.
    pub(crate) fn optional_caches(&self, name: &str) -> anyhow::Result<Option<Caches<'_>>> {
        let all = self.optional(name)?;
        all.map(|all| Caches::new(self.machine(), all, name))
            .transpose()
    }

    /// The caches of a tensor `[num_caches, ..]` to write; once each.
    pub(crate) fn caches_mut(&self, name: &str) -> anyhow::Result<Caches<'_>> {
        Caches::new(self.machine(), *self.view_mut(name)?.view(), name)
    }

    /// What [`launch!`] does with the parts of a request.
    pub(crate) fn launch(
        &self,
        plan: &impl Display,
        workspace_bytes: usize,
        check: CheckMode,
        launch: &dyn Fn(&mut TensorViewMut<'_>, &dyn Launcher) -> Result<()>,
    ) -> anyhow::Result<()> {
        self.inputs().refuse_unasked()?;
        (self.start)(Ready {
            plan: plan.to_string(),
            workspace_bytes,
            check,
            launch,
        })
    }
}

/// Launches a checked request by its plan: requests and plans of all operations have the same methods.
macro_rules! launch {
    ($job:expr, $checked:expr, $plan:expr, $check:expr) => {{
        let plan = $plan;
        $job.launch(
            &plan,
            plan.workspace_bytes(),
            $check,
            &|workspace, launcher| $checked.launch(&plan, workspace, launcher),
        )
    }};
}
pub(crate) use launch;

fn no_tensor(name: &str) -> String {
    format!("there is no tensor `{name}`")
}

/// A tensor that nobody has written.
fn poisoned(output: &Output) -> HostTensor {
    let &Output {
        name,
        dtype,
        ref shape,
    } = output;
    let bytes = shape.iter().product::<usize>() * dtype.size();
    HostTensor::contiguous(name, dtype, shape, vec![POISON; bytes])
}
