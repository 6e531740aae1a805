//! The plan of an operation that is one kernel, as most are.

use std::fmt;

use gpu_kernels::entry::Variant;
use gpu_kernels::params::KernelParams;

use super::device_check::{CHECK_BYTES, empty_record};
use super::made_for::MadeFor;
use crate::error::{RequestError, Result};
use crate::plan::variants;
use crate::runtime::{Launch, Launcher};
use crate::tensor::TensorViewMut;

/// A kernel, a check ahead of it if one was asked for, and the workspace that they need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct KernelPlan<const FACTS: usize> {
    pub(super) made_for: MadeFor<FACTS>,
    pub(super) check: Option<Launch>,
    pub(super) kernel: Launch,
    pub(super) workspace_bytes: usize,
}

impl<const FACTS: usize> KernelPlan<FACTS> {
    /// With a check that needs nothing but its record.
    pub(super) fn new(made_for: MadeFor<FACTS>, check: Option<Launch>, kernel: Launch) -> Self {
        Self {
            made_for,
            check,
            kernel,
            workspace_bytes: check.map_or(0, |_| CHECK_BYTES),
        }
    }

    /// A request's own plan, if this one fits it.
    ///
    /// # Errors
    /// [`RequestError::Plan`].
    pub(super) fn refit(&self, own: Self) -> Result<Self, RequestError> {
        self.made_for.fits(&own.made_for)?;
        Ok(own)
    }

    /// In order.
    pub(super) fn launches(&self) -> impl Iterator<Item = &Launch> {
        self.check.iter().chain([&self.kernel])
    }

    /// Enqueues check and kernel, which take the same parameters: `params` makes them from the address of the check's
    /// record, or 0. Without work only the record is emptied.
    ///
    /// # Safety
    /// What the parameters name is valid until the launch has finished, and is what the kernels of the plan expect, on
    /// grids as large as the plan's.
    pub(super) unsafe fn enqueue<P: KernelParams>(
        &self,
        has_work: bool,
        workspace: &TensorViewMut<'_>,
        launcher: &dyn Launcher,
        params: impl FnOnce(u64) -> P,
    ) -> Result<()> {
        // SAFETY: the workspace is valid until the launch has finished, as its maker promised.
        let record =
            unsafe { empty_record(self.check.as_ref(), CHECK_BYTES, workspace, launcher)? };
        if !has_work {
            return Ok(());
        }
        let params = params(record);
        for launch in self.launches() {
            // SAFETY: the caller promises it for the parameters; the record lies in the workspace, whose size was
            // checked when it was emptied.
            unsafe { launcher.launch(launch, params.as_bytes())? };
        }
        Ok(())
    }
}

impl<const FACTS: usize> fmt::Display for KernelPlan<FACTS> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Summary(&self.kernel).fmt(f)
    }
}

/// A kernel as plans print it.
pub(super) struct Summary<'l>(pub(super) &'l Launch);

impl fmt::Display for Summary<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let entry = self.0.kernel.entry();
        let (name, grid, threads) = (entry.name, self.0.grid, entry.threads);
        write!(f, "{name} grid {grid:?} x {threads} threads")
    }
}

/// A kernel without shared memory of its own that waits on the device for the one ahead of it.
pub(super) fn overlapping(variant: Variant, grid: [u32; 3]) -> Launch {
    Launch {
        kernel: variants::entry(variant).id,
        grid,
        shared_bytes: 0,
        overlaps_previous: true,
    }
}
