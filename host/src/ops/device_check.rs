//! Checking indices where they live: a small kernel ahead of the real one.
//!
//! Block tables, lengths and slots are in device memory, so the host cannot look at them without waiting.
//! With [`CheckMode::Device`] a kernel looks first and writes what it found into the first
//! [`CHECK_BYTES`] bytes of the workspace; the kernels behind it read that record and write nothing if it
//! holds a fault. Nothing waits: whoever wants to know reads the record when it suits them and hands it to
//! [`check_result`].

use gpu_kernels::entry::Variant;
use gpu_kernels::kernels::check;
use gpu_kernels::params::{CheckFault, CheckSlotsParams, KernelParams};

use super::checks::named;
use crate::error::{CheckError, RequestError, Result};
use crate::plan::variants;
use crate::runtime::{Launch, Launcher};
use crate::tensor::{Dtype, TensorViewMut};

/// Bytes at the start of the workspace that hold the check's record, when checks are on.
pub const CHECK_BYTES: usize = 256;

/// Whether indices in device memory are checked before they are used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CheckMode {
    /// Trust them: a wrong index reads or writes the wrong memory.
    #[default]
    Off,
    /// Check them on the device, ahead of the operation.
    Device,
}

/// Reads a check record: the first [`CHECK_BYTES`] bytes of the workspace, copied to the host.
///
/// # Errors
/// The fault that the record holds.
///
/// # Panics
/// If `record` is shorter than 32 bytes.
pub fn check_result(record: &[u8]) -> Result<(), CheckError> {
    let word = |at: usize| u32::from_le_bytes(record[at..at + 4].try_into().expect("four bytes"));
    let long = |at: usize| i64::from_le_bytes(record[at..at + 8].try_into().expect("eight bytes"));
    let (row, position, value, limit) = (word(4), word(8), long(16), long(24));
    match word(0) {
        CheckFault::SEQ_LEN => Err(CheckError::SeqLen {
            seq: row,
            value,
            limit,
        }),
        CheckFault::BLOCK_ID => Err(CheckError::BlockId {
            seq: row,
            position,
            value,
            num_blocks: limit,
        }),
        CheckFault::SCALE => Err(CheckError::Scale {
            name: ["q_scale", "k_scale", "v_scale"][(row as usize).min(2)],
            head: position,
            value: f32::from_bits(u32::try_from(value).unwrap_or(0)),
        }),
        CheckFault::INDEX => Err(CheckError::Index {
            row,
            value,
            num_slots: limit,
        }),
        CheckFault::QUERY_START => Err(CheckError::QueryStart {
            seq: row,
            start: value,
            end: position.cast_signed().into(),
            num_tokens: limit,
        }),
        CheckFault::QUERY_LEN => Err(CheckError::QueryLen {
            seq: row,
            value,
            limit,
        }),
        CheckFault::SLOT => Err(CheckError::Slot {
            token: row,
            value,
            num_slots: limit,
        }),
        _ => Ok(()),
    }
}

/// The workspace's address, if it is bytes, aligned and large enough.
pub(super) fn workspace_base(
    workspace: &TensorViewMut<'_>,
    needed: usize,
) -> Result<u64, RequestError> {
    let view = named("workspace", workspace.view());
    view.dtype(&[Dtype::U8])?;
    let [got] = view.rank("[workspace_bytes]")?;
    view.strides(1)?;
    if got < needed {
        return Err(RequestError::Workspace { needed, got });
    }
    view.aligned(256)?;
    Ok(workspace.view().address())
}

/// A slot mapping to look at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slots {
    /// `[num_layers, num_tokens]`.
    pub(super) address: u64,
    pub(super) num_layers: u32,
    pub(super) num_tokens: u32,
    /// In bytes.
    pub(super) stride_layer: i64,
    /// `num_blocks * block_size`: slots stay below it.
    pub(super) limit: i64,
}

impl Slots {
    /// The launch that looks at them, if slots are to be checked.
    pub(super) fn plan_check(&self, mode: CheckMode) -> Option<Launch> {
        let ctas = self.num_tokens.div_ceil(check::THREADS).clamp(1, 1024);
        (mode == CheckMode::Device).then(|| Launch {
            kernel: variants::entry(Variant::CheckSlots).id,
            grid: [ctas, self.num_layers.max(1), 1],
            shared_bytes: 0,
            overlaps_previous: false,
        })
    }

    /// Enqueues the check that was planned, if any, and returns the address of its record, or 0.
    ///
    /// # Safety
    /// The slots are valid until the launch has finished.
    pub(super) unsafe fn launch_check(
        &self,
        launch: Option<&Launch>,
        workspace: &TensorViewMut<'_>,
        launcher: &dyn Launcher,
    ) -> Result<u64> {
        let Some(launch) = launch else {
            return Ok(0);
        };
        let check = workspace_base(workspace, CHECK_BYTES)?;
        if self.num_tokens == 0 || self.num_layers == 0 {
            return Ok(check);
        }
        let params = CheckSlotsParams {
            slot_mapping: self.address,
            check,
            num_slots: self.limit,
            stride_layer: self.stride_layer,
            num_tokens: self.num_tokens,
            reserved: 0,
        };
        // SAFETY: the record lies in the workspace, whose size was checked.
        unsafe { launcher.zero(check, CHECK_BYTES)? };
        // SAFETY: slots and workspace are valid until the launch has finished, as the caller and the makers
        // of the view promise.
        unsafe { launcher.launch(launch, params.as_bytes())? };
        Ok(check)
    }
}
