//! The rows of a thread block that decodes over entries: which they are, what sinks leave of them, and how one that went
//! wrong is computed again.

use crate::attention::careful::{CarefulRow, careful_row, load_pair};
use crate::attention::lse::Lse;
use crate::dtype::Bf16;
use crate::gpu::unroll::unroll;
use crate::gpu::{Gpu, div};
use crate::mla::cta::Cta;
use crate::mla::entry_places::{Places, num_positions};
use crate::mla::{MlaEntry, MlaTile, entry_pair};
use crate::params::DecodeMlaEntryParams;

/// Values of an output row.
pub const HEAD_SIZE_V: u32 = 512;
pub(super) const V_STEPS: usize = HEAD_SIZE_V as usize / 16;

/// The rows of this thread block, its split, and the first query token of its group.
#[inline(always)]
pub(super) fn own_rows<G: Gpu>(
    gpu: G,
    cut: MlaTile,
    params: &DecodeMlaEntryParams,
) -> (Cta, u32, u32) {
    let rows = &params.rows;
    // What is made of them is made again where it is asked for again.
    let [x, y, z] =
        [gpu.cta_idx_x(), gpu.cta_idx_y(), gpu.cta_idx_z()].map(|index| gpu.black_box(index));
    // SAFETY: the host refuses queries without tokens.
    let seq = unsafe { div(z * params.tokens_per_group, rows.query_len) };
    let first_token = z * params.tokens_per_group - seq * rows.query_len;
    let skipped = x * cut.heads;
    let cta = Cta {
        seq,
        part: seq * rows.num_kv_splits + y,
        first_row: first_token * rows.num_query_heads + skipped,
        num_rows: cut
            .heads
            .min(params.tokens_per_group * rows.num_query_heads - skipped),
    };
    (cta, y, first_token)
}

/// The first positions that all rows see, if thread blocks own `num_positions`: with lists all, else all but those of the
/// query tokens behind the first.
#[inline(always)]
pub(super) fn seen_by_all(params: &DecodeMlaEntryParams, num_positions: u32) -> u32 {
    let hidden = if is_causal(params) {
        params.rows.query_len - 1
    } else {
        0
    };
    num_positions.saturating_sub(hidden)
}

/// Whether a query token sees what is before it, and not what its lists name.
#[inline(always)]
pub(super) fn is_causal(params: &DecodeMlaEntryParams) -> bool {
    params.lists[0].indices == 0
}

/// What its head's sink leaves of a row: the softmax's denominator without it, divided by that with it.
///
/// # Safety
/// There are sinks, and the row exists.
#[inline(always)]
pub(super) unsafe fn sink_factor<G: Gpu>(
    gpu: G,
    params: &DecodeMlaEntryParams,
    cta: Cta,
    row: u32,
    lse: Lse,
) -> f32 {
    let rows = &params.rows;
    let head = cta.first_row + row - cta.token_of(rows, row) * rows.num_query_heads;
    // SAFETY: a sink for each head: this function's contract.
    let sink = f32::from_bits(unsafe { gpu.ld_global_b32(params.sink + 4 * head as u64) });
    let lse_log2 = lse.log2(gpu);
    if lse_log2 == f32::NEG_INFINITY {
        return 0.0;
    }
    gpu.recip(1.0 + gpu.exp2(sink * core::f32::consts::LOG2_E - lse_log2))
}

/// A row, computed again: see [`careful_row`].
///
/// # Safety
/// Converged; the row is one of this thread block, whose tensors have what the kernel's contract says.
#[inline(always)]
pub(super) unsafe fn mended_row<G: Gpu, E: MlaEntry, const K_STEPS: usize>(
    gpu: G,
    cut: MlaTile,
    params: &DecodeMlaEntryParams,
    row: u32,
    is_whole: bool,
) -> CarefulRow<V_STEPS> {
    let rows = &params.rows;
    // Found out again: the loop has no register to keep it in.
    let (cta, split, first_token) = own_rows(gpu, cut, params);
    // SAFETY: lengths, lists, slots, query and sinks are there: this function's contract.
    unsafe {
        let num_positions = num_positions(gpu, params, cta.seq);
        let start = split * rows.split_len;
        let mut seen = (start, num_positions.min(start + rows.split_len));
        if is_causal(params) {
            seen = cta.seen(rows, row, num_positions, seen);
        }
        let query = cta.query_row(rows, row);
        let places = Places::of(gpu, params, cta.seq, first_token);
        let pair = |slot: Option<u32>, dim: u32| match slot {
            Some(slot) => entry_pair::<G, E>(gpu, &params.lists, slot, dim),
            None => [0.0; 2],
        };
        let mut mended = careful_row::<G, _, K_STEPS, V_STEPS>(
            gpu,
            seen,
            |dim| load_pair::<G, Bf16>(gpu, query + 2 * dim as u64),
            |position| places.slot(gpu, params, position),
            pair,
            pair,
            |_, slot, product| match slot {
                Some(_) => product * rows.qk_scale_log2,
                None => f32::NEG_INFINITY,
            },
            f32::NEG_INFINITY,
        );
        if params.sink != 0 && is_whole {
            let factor = sink_factor(gpu, params, cta, row, mended.lse);
            unroll!([8] i in 0..(V_STEPS / 4) {
                mended.values[i] = mended.values[i].map(|value| value * factor);
            });
        }
        mended
    }
}
