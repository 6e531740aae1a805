//! A checked gather's plan and launch.

use std::fmt;

use gpu_kernels::params::GatherParams;

use super::gather::{CheckedGather, GatherForm, GatherRequest, GatherRows};
use crate::error::Result;
use crate::ops::checks::named;
use crate::ops::made_for::{Fact, MadeFor};
use crate::ops::plan::KernelPlan;
use crate::ops::tensors::{Given, addresses, alike, given, on_machine, same, same_kind};
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

impl<'a> GatherRequest<'a> {
    /// The tensors, in the order of the kernels' parameters.
    fn tensors(&self) -> [Given<'_, 'a>; 6] {
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
                given("lens", lens.as_ref()),
                Some(named("seq_lens", seq_lens)),
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

    /// Parameters with the addresses of the tensors.
    pub(super) fn at(&self, params: GatherParams) -> GatherParams {
        let [cache, out, scale, block_table, rows, seqs] = addresses(self.tensors());
        GatherParams {
            cache,
            out,
            scale,
            block_table,
            rows,
            seqs,
            ..params
        }
    }
}

impl GatherForm<'_> {
    /// Which of them it is.
    fn kind(&self) -> &'static str {
        match self {
            Self::Raw => "Raw",
            Self::Fp8 { .. } => "Fp8",
            Self::Fp8Ds => "Fp8Ds",
            Self::V4 => "V4",
        }
    }
}

impl GatherRows<'_> {
    /// Which of them it is.
    fn kind(&self) -> &'static str {
        match self {
            Self::Ragged { .. } => "Ragged",
            Self::Padded { .. } => "Padded",
            Self::TopK { .. } => "TopK",
            Self::Slots { .. } => "Slots",
        }
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
