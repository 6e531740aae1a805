//! A checked gather's plan and launch.

use std::fmt;

use gpu_kernels::params::{GatherParams, KernelParams};

use super::device_check::{CHECK_BYTES, CheckMode, workspace_base};
use super::gather::CheckedGather;
use crate::error::Result;
use crate::runtime::{Launch, Launcher};
use crate::tensor::TensorViewMut;

/// What was decided: prints as one line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GatherPlan {
    launch: Launch,
    check: CheckMode,
}

impl CheckedGather<'_> {
    /// What will be launched: a pure function of shapes.
    pub fn plan(&self) -> GatherPlan {
        GatherPlan {
            launch: self.launch,
            check: self.request.check,
        }
    }

    /// Enqueues the one kernel. Allocates nothing and waits for nothing.
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
        let check = match plan.check {
            CheckMode::Off => 0,
            CheckMode::Device => {
                let check = workspace_base(workspace, CHECK_BYTES)?;
                // SAFETY: the record lies in the workspace, whose size was checked.
                unsafe { launcher.zero(check, CHECK_BYTES)? };
                check
            }
        };
        if self.params.num_rows == 0 {
            return Ok(());
        }
        let params = GatherParams {
            check,
            ..self.params
        };
        // SAFETY: views and workspace are valid until the launch has finished, as their makers promised;
        // `check()` made shapes and strides agree.
        unsafe { launcher.launch(&plan.launch, params.as_bytes()) }
    }
}

impl GatherPlan {
    /// Bytes of workspace that [`CheckedGather::launch`] needs: 0 unless bad blocks are reported.
    pub fn workspace_bytes(&self) -> usize {
        match self.check {
            CheckMode::Off => 0,
            CheckMode::Device => CHECK_BYTES,
        }
    }
    /// The launches, in order: what to prepare before a graph is captured.
    pub fn launches(&self) -> impl Iterator<Item = &Launch> {
        std::iter::once(&self.launch)
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
