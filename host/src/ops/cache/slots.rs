//! The slots that new tokens go to, and the check that looks at them first.

use gpu_kernels::attention::check;
use gpu_kernels::entry::Variant;
use gpu_kernels::params::{CheckSlotsParams, KernelParams, ScaleList};

use super::places::Places;
use crate::error::Result;
use crate::ops::device_check::{CHECK_BYTES, CheckMode, empty_record, plan_check};
use crate::runtime::{Launch, Launcher};
use crate::tensor::TensorViewMut;

/// A slot mapping to look at, and what else a write of new tokens reads.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slots {
    /// `[num_layers, num_tokens]`.
    pub(super) address: u64,
    pub(super) num_layers: u32,
    pub(super) num_tokens: u32,
    /// In bytes.
    pub(super) stride_layer: i64,
    pub(super) has_layers: bool,
    /// `num_blocks * block_size`: slots stay below it.
    pub(super) limit: i64,
    /// What is written is divided by these.
    pub(super) scales: [ScaleList; 3],
    pub(super) positions: Option<Positions>,
}

/// Rows of a table of angles, one for each token.
#[derive(Clone, Copy, Debug)]
pub(super) struct Positions {
    /// `[num_tokens]`, i64.
    pub(super) address: u64,
    /// Rows of the table.
    pub(super) num_positions: u32,
    /// Whether tokens with a negative slot are rotated, too.
    pub(super) of_all: bool,
}

impl Slots {
    /// The same of other tensors.
    pub(super) fn at(&self, places: &Places) -> Self {
        Self {
            address: places.slot_mapping,
            scales: places.scales,
            positions: self.positions.map(|positions| Positions {
                address: places.positions,
                ..positions
            }),
            ..*self
        }
    }

    /// Layers whose slots differ.
    pub(super) fn num_rows(&self) -> u32 {
        if self.stride_layer == 0 {
            self.num_layers.min(1)
        } else {
            self.num_layers
        }
    }

    /// Entries of a layer's table of tokens that were seen: a power of two, twice as many as tokens or more.
    fn entries(&self) -> u64 {
        (2 * u64::from(self.num_tokens)).next_power_of_two().max(2)
    }

    /// Bytes of workspace that the check needs.
    pub(super) fn check_bytes(&self) -> usize {
        let seen = (4 * self.entries()).saturating_mul(self.num_rows().into());
        usize::try_from(seen).map_or(usize::MAX, |seen| seen.saturating_add(CHECK_BYTES))
    }

    /// The launch that looks at them, if slots are to be checked.
    pub(super) fn plan_check(&self, mode: CheckMode) -> Option<Launch> {
        let ctas = self.num_tokens.div_ceil(check::THREADS).clamp(1, 1024);
        let grid = [ctas, self.num_rows().max(1), 1];
        plan_check(mode, Variant::CheckSlots, grid)
    }

    /// Enqueues the check that was planned, if any, and returns the address of its record, or 0.
    ///
    /// # Safety
    /// Slots, positions and scales are valid until the launch has finished.
    pub(super) unsafe fn launch_check(
        &self,
        launch: Option<&Launch>,
        workspace: &TensorViewMut<'_>,
        launcher: &dyn Launcher,
    ) -> Result<u64> {
        // SAFETY: the workspace's own bytes.
        let check = unsafe { empty_record(launch, self.check_bytes(), workspace, launcher)? };
        let Some(launch) = launch else {
            return Ok(check);
        };
        if self.num_tokens == 0 || self.num_layers == 0 {
            return Ok(check);
        }
        let positions = self.positions;
        let params = CheckSlotsParams {
            slot_mapping: self.address,
            check,
            seen: check + CHECK_BYTES as u64,
            positions: positions.map_or(0, |positions| positions.address),
            num_slots: self.limit,
            num_positions: positions.map_or(0, |positions| positions.num_positions.into()),
            stride_layer: self.stride_layer,
            scales: self.scales,
            num_tokens: self.num_tokens,
            seen_mask: u32::try_from(self.entries() - 1).expect("fewer than 2^31 tokens"),
            has_layers: u32::from(self.has_layers),
            all_positions: u32::from(positions.is_some_and(|positions| positions.of_all)),
        };
        // SAFETY: slots and workspace are valid until the launch has finished, as the caller and the makers
        // of the view promise; the table of tokens lies in the workspace, whose size was checked.
        unsafe { launcher.launch(launch, params.as_bytes())? };
        Ok(check)
    }
}
