//! A checked gather's plan and launch.

use std::fmt;

use gpu_kernels::params::GatherParams;

use super::gather::{CheckedGather, GatherRequest};
use crate::error::Result;
use crate::ops::made_for::{Fact, MadeFor};
use crate::ops::plan::KernelPlan;
use crate::ops::tensors::{alike, on_machine, same, same_kind};
use crate::runtime::{Launch, Launcher};
use crate::tensor::TensorViewMut;

/// What was decided: prints as one line.
///
/// It fits every request that takes the same kernel (which depends on the form, on dtypes, and on whether rows of a
/// multiple of 8 values are aligned) with the same `check`, and has at most as many rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GatherPlan(KernelPlan<3>);

impl CheckedGather<'_> {
    /// What will be launched: a pure function of shapes.
    pub fn plan(&self) -> GatherPlan {
        let made_for = MadeFor {
            names: &["kernel", "check", "num_rows"],
            facts: [
                Fact::Kernel(self.launch.kernel),
                Fact::Check(self.request.check),
                Fact::AtMost(self.params.num_rows),
            ],
        };
        GatherPlan(KernelPlan::new(made_for, self.check, self.launch))
    }

    /// The same for other tensors, of the next layer for instance: looks at no more than whether they are given where
    /// these are, have the same dtypes, shapes and strides, and are aligned as well (up to 16 bytes).
    ///
    /// # Errors
    /// [`crate::error::RequestError`] naming the first tensor that differs, or `form`, `rows`, `block_size`,
    /// `zero_missing` or `check`.
    pub fn rebind<'b>(&self, request: GatherRequest<'b>) -> Result<CheckedGather<'b>> {
        let old = &self.request;
        same_kind("form", old.form.kind(), request.form.kind())?;
        same_kind("rows", old.rows.kind(), request.rows.kind())?;
        alike(&old.tensors(), &request.tensors())?;
        same("block_size", old.block_size, request.block_size)?;
        same("zero_missing", old.zero_missing, request.zero_missing)?;
        same("check", old.check, request.check)?;
        Ok(CheckedGather {
            params: request.at(self.params),
            request,
            ..*self
        })
    }

    /// Enqueues the plan's kernels. Allocates nothing and waits for nothing.
    ///
    /// # Errors
    /// [`crate::error::RequestError::Plan`] if the plan was made for something that this is not (see [`GatherPlan`]);
    /// [`crate::error::RequestError::Machine`] for memory of another machine;
    /// [`crate::error::RequestError::Workspace`] if `workspace` (u8, 256-byte aligned) is smaller than the
    /// plan's [`GatherPlan::workspace_bytes`]; whatever the launcher reports.
    pub fn launch(
        &self,
        plan: &GatherPlan,
        workspace: &mut TensorViewMut<'_>,
        launcher: &dyn Launcher,
    ) -> Result<()> {
        let plan = plan.0.refit(self.plan().0)?;
        on_machine(launcher, &self.request.tensors(), workspace)?;
        let params = |check| GatherParams {
            check,
            ..self.params
        };
        // SAFETY: the views are valid until the launch has finished, as their makers promised; `check()` made shapes,
        // strides and grids agree.
        unsafe { plan.enqueue(self.params.num_rows > 0, workspace, launcher, params) }
    }
}

impl GatherPlan {
    /// Bytes of workspace that [`CheckedGather::launch`] needs: 0 without a check.
    pub fn workspace_bytes(&self) -> usize {
        self.0.workspace_bytes
    }
    /// The launches, in order: what to prepare before a graph is captured.
    pub fn launches(&self) -> impl Iterator<Item = &Launch> {
        self.0.launches()
    }
}

impl fmt::Display for GatherPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
