//! What a gather's request refers to, looked at on the device: `check_gather` finds each row's token as the gathers
//! do, on the grid of a gather of one unit, and reports those that have none although they should.

use crate::attention::check;
use crate::attention::check::{check_scales, report};
use crate::entry::Variant;
use crate::gather::grid::THREADS;
use crate::gather::rows::Row;
use crate::gpu::Gpu;
use crate::kernel::Kernel;
use crate::params::{CheckFault, GatherParams, ScaleList};

/// Checks the scale, if there is one, starts of rows, and what each row refers to.
///
/// # Safety
/// Launched on [`grid`](crate::gather::grid::grid) of one unit with [`THREADS`] threads; `params` names tensors of the
/// shapes it documents, and a record that was all 0 before the launch.
#[inline(always)]
pub unsafe fn check_gather<G: Gpu>(gpu: G, params: &GatherParams) {
    const { assert!(THREADS == check::THREADS) };
    // SAFETY: one scale, as `scale` is no list; row starts, tensors and record: this function's contract; converged.
    unsafe {
        if gpu.cta_idx_x() == 0 && params.scale != 0 {
            let scales = ScaleList {
                address: params.scale,
                stride: 0,
                count: 1,
                tensor: CheckFault::ENTRY_SCALE,
            };
            check_scales(gpu, params.check, scales);
        }
        if params.mode == GatherParams::RAGGED {
            check_row_starts(gpu, params);
        }
        Row::find::<G, true>(gpu, params);
    }
}

/// Checks that each sequence's rows lie within all, after those of the sequence before.
///
/// # Safety
/// As [`check_gather`].
#[inline(always)]
unsafe fn check_row_starts<G: Gpu>(gpu: G, params: &GatherParams) {
    let mut seq = gpu.cta_idx_x() * THREADS + gpu.thread_idx();
    while seq < params.num_seqs {
        let at = params.rows + 4 * seq as u64;
        // SAFETY: `seq < num_seqs`, and there are `num_seqs + 1` row starts: the host's `GatherRequest::rows`.
        let (start, end) = unsafe { (gpu.ld_global_b32(at), gpu.ld_global_b32(at + 4)) };
        let (first, last) = (start as i32, end as i32);
        if first < 0 || last < first || end > params.num_rows {
            let fault = CheckFault {
                kind: CheckFault::ROW_START,
                row: seq,
                position: end,
                value: first as i64,
                limit: params.num_rows as i64,
                ..CheckFault::NONE
            };
            // SAFETY: a record, which only `report` touches: this function's contract.
            unsafe { report(gpu, params.check, fault) };
        }
        seq += THREADS * gpu.grid_dim_x();
    }
}

/// [`check_gather`].
#[derive(Debug)]
pub enum CheckGather {}

impl Kernel for CheckGather {
    type Params = GatherParams;
    const VARIANT: Variant = Variant::CheckGather;
    const THREADS: u32 = THREADS;

    #[inline(always)]
    unsafe fn run<G: Gpu>(gpu: G, params: &GatherParams) {
        // SAFETY: launched as `check_gather` asks, on tensors of its shapes: the contract of `Kernel::run`.
        unsafe { check_gather(gpu, params) }
    }
}
