//! Stage 2 of unified attention: the parts of rows whose keys were split become their output.
//!
//! Grid: x = tile and KV head, as in `prefill_gqa`. A thread block owns the same rows; its warps take them in
//! turn, a lane four columns at a time:
//!
//! ```text
//! for each row of this warp:
//!     lse = all of partial_lse and the sink        a maximum, base 2, and a sum each
//!     out = sum of weight of partial_lse * partial_out / lse's sum
//! ```
//!
//! Rows of one split were finished by stage 1.

use crate::attention::lse::Lse;
use crate::attention::out::{recip_of_sum, sink_log2};
use crate::dtype::{Bf16, F16, Half, QueryDtype};
use crate::entry::Variant;
use crate::gpu::unroll::unroll;
use crate::gpu::{Gpu, WARP};
use crate::kernel::Kernel;
use crate::params::PrefillParams;
use crate::prefill::out::{out_scale, store_lse};
use crate::prefill::work::RowWork;

const WARPS: u32 = 4;
/// Threads per thread block.
pub const THREADS: u32 = WARPS * WARP;

/// The kernel.
///
/// # Safety
/// Launched on the grid above with [`THREADS`] threads; `params` is stage 1's, which has finished.
#[inline(always)]
pub unsafe fn merge_rows<G: Gpu>(gpu: G, params: &PrefillParams) {
    gpu.wait_for_previous_kernels();
    // SAFETY: `check` is 0 or a finished check's record: the host's `launch`.
    if unsafe { crate::attention::check::found_fault(gpu, params.check) } {
        return;
    }
    // SAFETY: converged; the start of every sequence is readable.
    let work = unsafe { RowWork::find(gpu, params, params.tile_rows) };
    if work.first_row >= work.num_rows {
        return;
    }
    // SAFETY: one length per sequence.
    let visible = unsafe { work.visible(gpu, params) };
    let keys = work.keys(params, visible, params.tile_rows, params.tile_kv);
    if keys.num_splits == 1 {
        return;
    }
    // SAFETY: a scale, if the output is of bytes.
    let out_scale = unsafe { out_scale(gpu, params) };
    let rows = work.rows(params, work.first_row);
    let end = work.num_rows.min(work.first_row + params.tile_rows);
    let mut row = work.first_row + gpu.warp();
    while row < end {
        let token = work.query_start + rows.token(row);
        let head = work.first_head(params) + rows.head(row);
        // SAFETY: converged; stage 1 wrote the parts of this row, which is this warp's.
        unsafe { merge_row(gpu, params, (token, head), keys.num_splits, out_scale) };
        row += WARPS;
    }
}

/// One row by one warp.
#[inline(always)]
unsafe fn merge_row<G: Gpu>(
    gpu: G,
    params: &PrefillParams,
    (token, head): (u32, u32),
    num_parts: u32,
    out_scale: f32,
) {
    let num_heads = params.num_kv_heads * params.num_queries_per_kv;
    let first = (token as u64 * num_heads as u64 + head as u64) * params.num_kv_splits as u64;
    let lse_of = |part: u32| {
        // SAFETY: stage 1 wrote the lse of every part.
        unsafe { Lse::load(gpu, params.partial_lse, first + part as u64) }
    };
    // SAFETY: one for each head, if there are any.
    let sink = Lse::of_score(unsafe { sink_log2(gpu, &params.score, head) });
    let mut max = sink.max;
    for part in 0..num_parts {
        max = gpu.max(max, lse_of(part).max);
    }
    let mut sum = sink.weight(gpu, max);
    for part in 0..num_parts {
        sum += lse_of(part).weight(gpu, max);
    }
    // A row that saw nothing, and has no sink: 0 and -inf.
    let scale = recip_of_sum(gpu, sum);
    let row = params.out
        + token as u64 * params.stride_out_token as u64
        + head as u64 * params.stride_out_head as u64;
    let mut column = gpu.lane() * 4;
    while column < params.head_size_v {
        let mut acc = [0.0f32; 4];
        for part in 0..num_parts {
            let element = (first + part as u64) * params.head_size_v as u64 + column as u64;
            // SAFETY: stage 1 wrote every part.
            let values = unsafe { gpu.ld_global_b128(params.partial_out + 4 * element) };
            let weight = lse_of(part).weight(gpu, max) * scale;
            unroll!([4] i in 0..4 {
                acc[i] = gpu.fma(weight, f32::from_bits(values[i]), acc[i]);
            });
        }
        // SAFETY: four columns of this warp's row, this lane's.
        unsafe {
            store_columns(
                gpu,
                params,
                (row, column),
                acc.map(|value| value * out_scale),
            )
        };
        column += 4 * WARP;
    }
    if gpu.lane() == 0 {
        // SAFETY: one lane of the row.
        unsafe { store_lse(gpu, params, token, head, Lse { max, sum }) };
    }
}

/// Stores four columns, from `column` on, of the row at `row`.
#[inline(always)]
unsafe fn store_columns<G: Gpu>(
    gpu: G,
    params: &PrefillParams,
    (row, column): (u64, u32),
    [a, b, c, d]: [f32; 4],
) {
    if params.out_dtype == QueryDtype::F8E4m3 as u32 {
        let packed = gpu.pack_e4m3(a, b) as u32 | (gpu.pack_e4m3(c, d) as u32) << 16;
        // SAFETY: the row's element of an output whose strides and columns are multiples of 4 (the host's check).
        unsafe { gpu.st_global_b32(row + column as u64, packed) };
        return;
    }
    let pack = |low, high| {
        if params.out_dtype == QueryDtype::F16 as u32 {
            F16::pack(gpu, low, high)
        } else {
            Bf16::pack(gpu, low, high)
        }
    };
    let packed = pack(a, b) as u64 | (pack(c, d) as u64) << 32;
    // SAFETY: as above.
    unsafe { gpu.st_global_b64(row + 2 * column as u64, packed) };
}

/// [`merge_rows`].
#[derive(Debug)]
pub enum MergeRows {}

impl Kernel for MergeRows {
    type Params = PrefillParams;
    const VARIANT: Variant = Variant::MergeRows;
    const THREADS: u32 = THREADS;

    #[inline(always)]
    unsafe fn run<G: Gpu>(gpu: G, params: &PrefillParams) {
        // SAFETY: whoever launches keeps the kernel's conditions.
        unsafe { merge_rows(gpu, params) }
    }
}
