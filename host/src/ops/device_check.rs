//! Checking where they live what a kernel trusts: a small kernel ahead of the real one.
//!
//! Block tables, lengths, slots and scales are in device memory, so the host cannot look at them without waiting.
//! With [`CheckMode::Device`] a kernel looks first and writes what it found into the first
//! [`CHECK_BYTES`] bytes of the workspace; the kernels behind it read that record and write nothing if it
//! holds a fault. Nothing waits: whoever wants to know reads the record when it suits them and hands it to
//! [`check_result`].

use gpu_kernels::entry::Variant;
use gpu_kernels::params::{CheckFault, CheckPagedParams, KernelParams, ScaleList, TokenScaleList};

use super::checks::named;
use super::layout::{byte_stride, byte_strides};
use crate::error::{CheckError, RequestError, Result};
use crate::plan::variants;
use crate::runtime::{Launch, Launcher};
use crate::tensor::{Dtype, TensorView, TensorViewMut};

/// Bytes at the start of the workspace that hold the check's record, when checks are on.
pub const CHECK_BYTES: usize = 256;

/// Whether what lies in device memory is checked before it is used.
///
/// A check looks at exactly what the operation reads: indices, lengths, starts and scales, as each request says. Not at
/// block-table entries left of a sliding window, nor at sequences without query tokens, nor at indices behind a list's
/// length.
///
/// Of scales it looks at every one that lies in a tensor of scales, however many there are: those that all share, those
/// of heads and layers, and of scales per token and head (`k_scale_cache`, `v_scale_cache`, f32 beside an 8-bit cache)
/// those of all tokens that a query sees. That is a load for each token, head and side, which the decode makes, too: a
/// check of a long context takes its time. Too many to look at are the scales *inside* a cache: those of the FP8 entries
/// of MLA caches, one for each 64 or 128 values of a token. They count as values of the cache, of which no check looks
/// at any; `decode_mla_entry` and the gathers of entries take them as they are stored. Scales that an operation computes
/// and stores itself (`reshape_and_cache_flash` per token and head, entries of `concat_and_cache_mla`) are not read, and
/// so not looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CheckMode {
    /// Trust it: a wrong index reads or writes the wrong memory. What tensors of indices hold (slots, block tables,
    /// lengths, starts, lists, schedules) is then the caller's responsibility, as if a launch were `unsafe`: safe calls,
    /// [`crate::runtime::Buffer`]'s among them, do not make up for a number that is wrong.
    #[default]
    Off,
    /// Check it on the device, ahead of the operation. If there is a fault nothing is written.
    Device,
}

/// Names of scales, as [`CheckFault::tensor`] numbers them.
const SCALES: [&str; 6] = [
    "q_scale",
    "k_scale",
    "v_scale",
    "output_scale",
    "scale",
    "scales",
];

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
    let (row, position, tensor, value, limit) = (word(4), word(8), word(12), long(16), long(24));
    let end = position.cast_signed().into();
    let float = || f32::from_bits(u32::try_from(value).unwrap_or(0));
    let name = || SCALES.get(tensor as usize).copied().unwrap_or("scale");
    // One more than the layer.
    let layer = |number: i64| u32::try_from(number).ok().and_then(|n| n.checked_sub(1));
    Err(match word(0) {
        0 => return Ok(()),
        CheckFault::SEQ_LEN => CheckError::SeqLen {
            seq: row,
            value,
            limit,
        },
        CheckFault::BLOCK_ID => CheckError::BlockId {
            seq: row,
            position,
            value,
            num_blocks: limit,
        },
        CheckFault::QUERY_START => CheckError::QueryStart {
            seq: row,
            start: value,
            end,
            num_tokens: limit,
        },
        CheckFault::QUERY_LEN => CheckError::QueryLen {
            seq: row,
            value,
            limit,
        },
        CheckFault::NUM_DECODES => CheckError::NumDecodes {
            seq: row,
            start: value,
            end,
            num_decodes: limit,
        },
        CheckFault::SLOT => CheckError::Slot {
            layer: layer(position.into()),
            token: row,
            value,
            num_slots: limit,
        },
        CheckFault::SAME_SLOT => CheckError::SameSlot {
            layer: layer(limit),
            tokens: [row, position],
            slot: value,
        },
        CheckFault::POSITION => CheckError::Position {
            token: row,
            value,
            num_positions: limit,
        },
        CheckFault::INDEX => CheckError::Index {
            row,
            position: position.checked_sub(1),
            value,
            num_slots: limit,
        },
        CheckFault::ROW_START => CheckError::RowStart {
            seq: row,
            start: value,
            end,
            num_rows: limit,
        },
        CheckFault::FIRST_TOKEN => CheckError::FirstToken { seq: row, value },
        CheckFault::SEQ => CheckError::Seq {
            token: row,
            value,
            num_seqs: limit,
        },
        CheckFault::TOKEN => CheckError::Token {
            row,
            seq: position,
            value,
            limit,
        },
        CheckFault::PAIR => CheckError::Pair {
            pair: row,
            side: position,
            value,
            num_blocks: limit,
        },
        CheckFault::SAME_TARGET => CheckError::SameTarget {
            pairs: [row, position],
            block: value,
        },
        CheckFault::TARGET_IS_SOURCE => CheckError::TargetIsSource {
            pair: row,
            other: position,
            block: value,
        },
        kind @ (CheckFault::TOPK_INDEX | CheckFault::WINDOW_INDEX) => CheckError::ListIndex {
            list: match kind {
                CheckFault::TOPK_INDEX => "topk_indices",
                _ => "window.indices",
            },
            seq: row,
            token: tensor,
            position,
            value,
            limit,
        },
        kind @ (CheckFault::TOPK_LENGTH | CheckFault::WINDOW_LENGTH) => CheckError::ListLength {
            length: match kind {
                CheckFault::TOPK_LENGTH => "topk_length",
                _ => "window.length",
            },
            seq: row,
            token: tensor,
            value,
            limit,
        },
        CheckFault::SCALE => CheckError::Scale {
            name: name(),
            index: row,
            value: float(),
        },
        CheckFault::TOKEN_SCALE => CheckError::TokenScale {
            name: name(),
            block: row,
            slot: position,
            head: limit,
            value: float(),
        },
        kind => CheckError::NoRecord { kind },
    })
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

/// The launch of a check that needs no memory of its own, if there is to be one.
pub(super) fn plan_check(mode: CheckMode, variant: Variant, grid: [u32; 3]) -> Option<Launch> {
    match mode {
        CheckMode::Off => None,
        CheckMode::Device => Some(Launch {
            kernel: variants::entry(variant).id,
            grid,
            shared_bytes: 0,
            overlaps_previous: false,
        }),
    }
}

/// An empty record at the start of the workspace, if there is to be a check, with zeros up to `bytes` behind it: its
/// address, or 0.
///
/// # Safety
/// As [`Launcher::zero`], for what the workspace holds.
pub(super) unsafe fn empty_record(
    check: Option<&Launch>,
    bytes: usize,
    workspace: &TensorViewMut<'_>,
    launcher: &dyn Launcher,
) -> Result<u64> {
    if check.is_none() {
        return Ok(0);
    }
    let record = workspace_base(workspace, bytes)?;
    // SAFETY: the bytes lie in the workspace, whose size was checked.
    unsafe { launcher.zero(record, bytes)? };
    Ok(record)
}

/// A check as a plan's launch is given it.
pub(super) struct CheckParams<'p> {
    /// Where the record is, or 0.
    pub(super) record: u64,
    pub(super) grid: [u32; 3],
    pub(super) bytes: &'p [u8],
}

impl<'p> From<&'p CheckPagedParams> for CheckParams<'p> {
    fn from(params: &'p CheckPagedParams) -> Self {
        Self {
            record: params.check,
            grid: [params.num_seqs, params.num_parts, 1],
            bytes: params.as_bytes(),
        }
    }
}

/// Scales to look at: `[count]`, f32.
pub(super) fn scale_list(tensor: u32, scales: Option<&TensorView<'_>>) -> ScaleList {
    scales.map_or(ScaleList::NONE, |scales| ScaleList {
        address: scales.address(),
        stride: byte_stride(scales, 0),
        count: u32::try_from(scales.shape()[0]).expect("as many as heads or layers"),
        tensor,
    })
}

/// The same of `[num_blocks, block_size, num_kv_heads]`.
pub(super) fn token_scale_list(scales: &TensorView<'_>) -> TokenScaleList {
    let [stride_block, stride_slot, stride_head] = byte_strides(scales);
    TokenScaleList {
        address: scales.address(),
        stride_block,
        stride_slot,
        stride_head,
    }
}
