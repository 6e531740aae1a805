//! One launch of an operation: the tensors that its request is made of.

use std::cell::RefCell;
use std::fmt::Display;

use anyhow::Context;

use super::caches::Caches;
use super::inputs::Inputs;
use crate::cases::base::uploads::Uploads;
use crate::error::Result;
use crate::ops::CheckMode;
use crate::reference::HostTensor;
use crate::runtime::{Launcher, Runtime};
use crate::tensor::{TensorView, TensorViewMut};

/// One launch of an operation: what its request is made of.
pub(crate) struct Job<'j> {
    pub(super) machine: &'j dyn Runtime,
    pub(super) inputs: &'j Inputs,
    /// All that the operation is given or writes, no two in one storage.
    pub(super) tensors: &'j [HostTensor],
    /// The same on the machine; no other job has them meanwhile.
    pub(super) uploads: &'j Uploads<'j>,
    pub(super) check: CheckMode,
    /// Names of tensors that somebody has a view to write of.
    pub(super) written: RefCell<Vec<&'static str>>,
    pub(super) start: &'j dyn Fn(Ready<'_>) -> anyhow::Result<()>,
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
        self.inputs
    }

    pub(crate) fn machine(&self) -> &'j dyn Runtime {
        self.machine
    }

    /// Whether the request's indices are to be checked on the device, if they can be.
    pub(crate) fn check(&self) -> CheckMode {
        self.check
    }

    fn find(&self, name: &str) -> Option<&'j HostTensor> {
        let found = find(self.tensors, name)?;
        self.inputs.ask(found.storage.name);
        Some(found)
    }

    /// A tensor to read, if there is one.
    pub(crate) fn optional(&self, name: &str) -> Result<Option<TensorView<'_>>> {
        let is_written = self.written.borrow().contains(&name);
        assert!(!is_written, "`{name}` is written by this operation");
        let view = |tensor| self.uploads.view(tensor);
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
        // SAFETY: no two tensors share a storage (`Stage::new` asserts it), no other job has them meanwhile
        // (`Stage::launch` borrows its stage alone, and launches of one stream run in order), and in this one the view is
        // the only one of the tensor from here on, as the assertions here and in `optional` ensure; `view` comes before,
        // in an operation that works in place.
        Ok(Some(unsafe { self.uploads.view_mut(tensor)? }))
    }

    /// A tensor to write; once each.
    pub(crate) fn view_mut(&self, name: &str) -> anyhow::Result<TensorViewMut<'_>> {
        self.optional_mut(name)?.with_context(|| no_tensor(name))
    }

    /// The caches of a tensor `[num_caches, ..]` to read, if there is one.
    pub(crate) fn optional_caches(&self, name: &str) -> anyhow::Result<Option<Caches<'_>>> {
        let all = self.optional(name)?;
        all.map(|all| Caches::new(self.machine, all, name))
            .transpose()
    }

    /// The caches of a tensor `[num_caches, ..]` to write; once each.
    pub(crate) fn caches_mut(&self, name: &str) -> anyhow::Result<Caches<'_>> {
        Caches::new(self.machine, *self.view_mut(name)?.view(), name)
    }

    /// What [`launch!`] does with the parts of a request.
    pub(crate) fn launch(
        &self,
        plan: &impl Display,
        workspace_bytes: usize,
        check: CheckMode,
        launch: &dyn Fn(&mut TensorViewMut<'_>, &dyn Launcher) -> Result<()>,
    ) -> anyhow::Result<()> {
        self.inputs.refuse_unasked()?;
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

/// The tensor of this name.
pub(super) fn find<'t>(tensors: &'t [HostTensor], name: &str) -> Option<&'t HostTensor> {
    tensors.iter().find(|tensor| tensor.storage.name == name)
}

pub(super) fn no_tensor(name: &str) -> String {
    format!("there is no tensor `{name}`")
}
