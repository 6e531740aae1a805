//! A checked gather's plan and launch.

use std::fmt;

use gpu_kernels::params::{GatherParams, KernelParams};

use super::device_check::{CHECK_BYTES, empty_record};
use super::gather::CheckedGather;
use crate::error::Result;
use crate::runtime::{Launch, Launcher};
use crate::tensor::TensorViewMut;

/// What was decided: prints as one line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GatherPlan {
    check: Option<Launch>,
    launch: Launch,
}

impl CheckedGather<'_> {
    /// What will be launched: a pure function of shapes.
    pub fn plan(&self) -> GatherPlan {
        GatherPlan {
            check: self.check,
            launch: self.launch,
        }
    }

    /// Enqueues the plan's kernels. Allocates nothing and waits for nothing.
    ///
    /// # Errors
    /// [`crate::error::RequestError::Workspace`] if `workspace` (u8, 256-byte aligned) is smaller than the
    /// plan's [`GatherPlan::workspace_bytes`]; whatever the launcher reports.
    pub fn launch(
        &self,
        plan: &GatherPlan,
        workspace: &mut TensorViewMut<'_>,
        launcher: &dyn Launcher,
    ) -> Result<()> {
        let planned = plan.check.as_ref();
        // SAFETY: the workspace is valid until the launch has finished, as its maker promised.
        let check = unsafe { empty_record(planned, CHECK_BYTES, workspace, launcher)? };
        if self.params.num_rows == 0 {
            return Ok(());
        }
        let params = GatherParams {
            check,
            ..self.params
        };
        for launch in plan.launches() {
            // SAFETY: views and workspace are valid until the launch has finished, as their makers promised;
            // `check()` made shapes and strides agree.
            unsafe { launcher.launch(launch, params.as_bytes())? };
        }
        Ok(())
    }
}

impl GatherPlan {
    /// Bytes of workspace that [`CheckedGather::launch`] needs: 0 without a check.
    pub fn workspace_bytes(&self) -> usize {
        self.check.map_or(0, |_| CHECK_BYTES)
    }
    /// The launches, in order: what to prepare before a graph is captured.
    pub fn launches(&self) -> impl Iterator<Item = &Launch> {
        self.check.iter().chain([&self.launch])
    }
}

impl fmt::Display for GatherPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let entry = self.launch.kernel.entry();
        write!(
            f,
            "{} grid {:?} x {} threads",
            entry.name, self.launch.grid, entry.threads
        )
    }
}
