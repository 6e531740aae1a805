//! Where splits of the keys leave their results until they are merged.

use gpu_kernels::attention::item::Item;
use gpu_kernels::attention::lse::Lse;

use crate::ops::device_check::CHECK_BYTES;

/// A workspace: the check's record, if there is a check; schedule and line, if the device decides; then the lse of
/// each part, then its output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Partials {
    /// In bytes.
    pub(super) schedule_offset: u64,
    pub(super) line_offset: u64,
    pub(super) lse_offset: u64,
    pub(super) out_offset: u64,
    pub(super) workspace_bytes: usize,
}

impl Partials {
    /// For as many parts as the product of `parts`, with outputs of `head_size_v` values in f32. Nothing overflows: of
    /// what no machine has, a workspace of all that there is is asked for.
    pub(super) fn new(has_check: bool, parts: [u32; 4], head_size_v: u32) -> Self {
        Self::with_schedule(has_check, None, parts, head_size_v)
    }

    /// The same, with room for a schedule of so many rows, of so many sequences.
    pub(super) fn with_schedule(
        has_check: bool,
        schedule: Option<(usize, u32)>,
        parts: [u32; 4],
        head_size_v: u32,
    ) -> Self {
        let parts = parts
            .into_iter()
            .map(u64::from)
            .fold(1, u64::saturating_mul);
        let schedule_offset = if has_check { CHECK_BYTES as u64 } else { 0 };
        let [schedule_bytes, line_bytes] = schedule.map_or([0; 2], |(rows, num_seqs)| {
            [
                Item::BYTES.saturating_mul(rows as u64),
                8 * (u64::from(num_seqs) + 1),
            ]
        });
        let line_offset = schedule_offset + aligned(schedule_bytes);
        let lse_offset = line_offset + aligned(line_bytes);
        let lse_bytes = aligned(parts.saturating_mul(size_of::<Lse>() as u64));
        let out_offset = lse_bytes.saturating_add(lse_offset);
        let out_bytes = parts.saturating_mul(4 * u64::from(head_size_v));
        let workspace_bytes = out_offset.saturating_add(out_bytes);
        Self {
            schedule_offset,
            line_offset,
            lse_offset,
            out_offset,
            workspace_bytes: usize::try_from(workspace_bytes).unwrap_or(usize::MAX),
        }
    }
}

/// As many bytes, in whole lines.
fn aligned(bytes: u64) -> u64 {
    bytes.checked_next_multiple_of(256).unwrap_or(u64::MAX)
}
