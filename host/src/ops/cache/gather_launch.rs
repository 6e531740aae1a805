//! A checked gather's plan and launch.

use std::fmt;

use gpu_kernels::params::{GatherParams, KernelParams};

use super::gather::{CheckedGather, GatherForm, GatherRequest, GatherRows};
use crate::error::Result;
use crate::ops::checks::named;
use crate::ops::device_check::{CHECK_BYTES, empty_record};
use crate::ops::made_for::{Fact, MadeFor};
use crate::ops::tensors::{Given, given, on_machine};
use crate::runtime::{Launch, Launcher};
use crate::tensor::TensorViewMut;

/// What was decided: prints as one line.
///
/// It fits every request that takes the same kernel (which depends on the form, on dtypes, and on whether rows of a
/// multiple of 8 values are aligned) with the same `check`, and has at most as many rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GatherPlan {
    made_for: MadeFor<3>,
    check: Option<Launch>,
    launch: Launch,
}

impl CheckedGather<'_> {
    /// What will be launched: a pure function of shapes.
    pub fn plan(&self) -> GatherPlan {
        GatherPlan {
            made_for: MadeFor {
                names: &["kernel", "check", "num_rows"],
                facts: [
                    Fact::Kernel(self.launch.kernel),
                    Fact::Check(self.request.check),
                    Fact::AtMost(self.params.num_rows),
                ],
            },
            check: self.check,
            launch: self.launch,
        }
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
        let own = self.plan();
        plan.made_for.fits(&own.made_for)?;
        on_machine(launcher, &self.request.views(), workspace)?;
        let planned = own.check.as_ref();
        // SAFETY: the workspace is valid until the launch has finished, as its maker promised.
        let check = unsafe { empty_record(planned, CHECK_BYTES, workspace, launcher)? };
        if self.params.num_rows == 0 {
            return Ok(());
        }
        let params = GatherParams {
            check,
            ..self.params
        };
        for launch in own.launches() {
            // SAFETY: views and workspace are valid until the launch has finished, as their makers promised;
            // `check()` made shapes, strides and grids agree.
            unsafe { launcher.launch(launch, params.as_bytes())? };
        }
        Ok(())
    }
}

impl<'a> GatherRequest<'a> {
    fn views(&self) -> [Given<'_, 'a>; 6] {
        let scale = match &self.form {
            GatherForm::Fp8 { scale } => Some(scale),
            GatherForm::Raw | GatherForm::Fp8Ds | GatherForm::V4 => None,
        };
        let [block_table, rows, seqs] = match &self.rows {
            GatherRows::Ragged {
                block_table,
                row_starts,
                first_tokens,
            } => [
                Some(named("block_table", block_table)),
                Some(named("row_starts", row_starts)),
                given("first_tokens", first_tokens.as_ref()),
            ],
            GatherRows::Padded {
                block_table,
                seq_lens,
                lens,
            } => [
                Some(named("block_table", block_table)),
                Some(named("seq_lens", seq_lens)),
                given("lens", lens.as_ref()),
            ],
            GatherRows::TopK {
                block_table,
                indices,
                seqs,
            } => [
                Some(named("block_table", block_table)),
                Some(named("indices", indices)),
                given("seqs", seqs.as_ref()),
            ],
            GatherRows::Slots { slots } => [None, Some(named("slots", slots)), None],
        };
        let cache = Some(named("cache", &self.cache));
        let out = Some(named("out", self.out.view()));
        [cache, out, given("scale", scale), block_table, rows, seqs]
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
