//! Where splits of the keys leave their results until they are merged.

use gpu_kernels::attention::lse::Lse;

use crate::ops::device_check::CHECK_BYTES;

/// A workspace: the check's record, if there is a check, then the lse of each part, then its output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Partials {
    /// In bytes.
    pub(super) lse_offset: u64,
    pub(super) out_offset: u64,
    pub(super) workspace_bytes: usize,
}

impl Partials {
    /// For as many parts as the product of `parts`, with outputs of `head_size_v` values in f32. Nothing overflows: of
    /// what no machine has, a workspace of all that there is is asked for.
    pub(super) fn new(has_check: bool, parts: [u32; 4], head_size_v: u32) -> Self {
        const ALIGN: u64 = 256;
        let parts = parts
            .into_iter()
            .map(u64::from)
            .fold(1, u64::saturating_mul);
        let lse_offset = if has_check { CHECK_BYTES as u64 } else { 0 };
        let lse_bytes = parts.saturating_mul(size_of::<Lse>() as u64);
        let lse_bytes = lse_bytes
            .checked_next_multiple_of(ALIGN)
            .unwrap_or(u64::MAX);
        let out_offset = lse_bytes.saturating_add(lse_offset);
        let out_bytes = parts.saturating_mul(4 * u64::from(head_size_v));
        let workspace_bytes = out_offset.saturating_add(out_bytes);
        Self {
            lse_offset,
            out_offset,
            workspace_bytes: usize::try_from(workspace_bytes).unwrap_or(usize::MAX),
        }
    }
}
