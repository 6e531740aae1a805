//! What checked cache writes have in common: their plan, other tensors in their places, and the launch.

use std::fmt;

use super::places::Places;
use super::row_write::RowWrite;
use super::slots::Slots;
use crate::error::Result;
use crate::ops::device_check::CheckMode;
use crate::ops::made_for::{Fact, MadeFor};
use crate::ops::plan::KernelPlan;
use crate::ops::tensors::{Given, on_machine};
use crate::runtime::{Launch, Launcher};
use crate::tensor::TensorViewMut;

/// What was decided: prints as one line.
///
/// It fits every request that takes the same kernel (which depends on dtypes, on the form of an entry or of scales, and
/// on whether rows of a multiple of 8 values are aligned) with the same `check`, and has at most as many tokens, and
/// layers.
#[derive(Clone, Debug, PartialEq)]
pub struct CacheWritePlan(KernelPlan<5>);

impl CacheWritePlan {
    /// Bytes of workspace that [`super::CheckedCacheWrite::launch`] needs: 0 unless slots are checked.
    pub fn workspace_bytes(&self) -> usize {
        self.0.workspace_bytes
    }
    /// The launches, in order: what to prepare before a graph is captured.
    pub fn launches(&self) -> impl Iterator<Item = &Launch> {
        self.0.launches()
    }
}

impl fmt::Display for CacheWritePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A write whose tensors agree with each other, and what is checked before it.
#[derive(Clone, Copy, Debug)]
pub(super) struct SlotWrite {
    pub(super) rows: RowWrite,
    pub(super) slots: Slots,
    pub(super) check: CheckMode,
}

impl SlotWrite {
    /// A pure function of shapes.
    pub(super) fn plan(&self) -> CacheWritePlan {
        let (slots, check) = (&self.slots, self.slots.plan_check(self.check));
        let made_for = MadeFor {
            names: &[
                "kernel",
                "check",
                "num_layers",
                "layers of slots",
                "num_tokens",
            ],
            facts: [
                Fact::Kernel(self.rows.launch.kernel),
                Fact::Check(self.check),
                Fact::AtMost(slots.num_layers),
                Fact::AtMost(slots.num_rows()),
                Fact::AtMost(slots.num_tokens),
            ],
        };
        CacheWritePlan(KernelPlan {
            workspace_bytes: check.map_or(0, |_| slots.check_bytes()),
            ..KernelPlan::new(made_for, check, self.rows.launch)
        })
    }

    /// The same of other tensors, which were found to be like the ones before.
    pub(super) fn at(&self, places: &Places) -> Self {
        Self {
            rows: self.rows.at(places),
            slots: self.slots.at(places),
            check: self.check,
        }
    }

    /// Enqueues the plan's kernels; `tensors` are the request's.
    ///
    /// # Errors
    /// As [`super::CheckedCacheWrite::launch`].
    ///
    /// # Safety
    /// This was made from `tensors`, which are valid until the launch has finished.
    pub(super) unsafe fn launch(
        &self,
        plan: &CacheWritePlan,
        tensors: &[Given<'_, '_>],
        workspace: &TensorViewMut<'_>,
        launcher: &dyn Launcher,
    ) -> Result<()> {
        let plan = plan.0.refit(self.plan().0)?;
        on_machine(launcher, tensors, workspace)?;
        let check = plan.check.as_ref();
        // SAFETY: slots, positions and scales are among the tensors that the caller vouches for.
        let record = unsafe { self.slots.launch_check(check, workspace, launcher)? };
        if self.slots.num_tokens == 0 || self.slots.num_layers == 0 {
            return Ok(());
        }
        // SAFETY: the caller vouches for the tensors, and the request's check made shapes and strides agree.
        unsafe { self.rows.launch(launcher, record) }
    }
}
