//! What a compaction's request refers to, looked at on the device: `check_compact` walks the references as
//! `compact_mark` does, and reports those that name what is not there.
//!
//! A negative reference names nothing and is none of them: engines write −1 where they have freed a block.

use super::compact::{Row, THREADS};
use crate::attention::check::{report, report_once};
use crate::entry::Variant;
use crate::gpu::{Gpu, div};
use crate::kernel::Kernel;
use crate::params::{CheckFault, CompactParams};

/// Checks the length of a row of the block table and the blocks that it needs, or slots.
///
/// # Safety
/// Launched on [`walk_grid`](super::compact::walk_grid) with [`THREADS`] threads, for a row at least; `params` names
/// tensors of the shapes it documents, and a record that was all 0 before the launch.
#[inline(always)]
pub unsafe fn check_compact<G: Gpu>(gpu: G, params: &CompactParams) {
    let seq = gpu.cta_idx_x();
    if params.seq_lens != 0 {
        // SAFETY: a thread block has a row, each of which has a length: the host's `CompactRequest::references`.
        let len = unsafe { gpu.ld_global_b32(params.seq_lens + 4 * seq as u64) } as i32 as i64;
        let limit = params.max_num_blocks_per_seq as i64 * params.block_size.divisor() as i64;
        if len < 0 || len > limit {
            let fault = CheckFault {
                kind: CheckFault::SEQ_LEN,
                row: seq,
                value: len,
                limit,
                ..CheckFault::NONE
            };
            // SAFETY: a record, which only `report` touches: this function's contract.
            unsafe { report_once(gpu, params.check, fault) };
            return;
        }
    }
    // SAFETY: a row of the grid, and its tensors: this function's contract.
    let row = unsafe { Row::of(gpu, params) };
    let mut at = row.first + gpu.thread_idx();
    while at < row.end {
        // SAFETY: `at` is one of the row's references, which `Row::of` counted.
        let found = unsafe { gpu.ld_global_b32(row.references + 4 * at as u64) };
        if let Some(fault) = wrong(params, seq, at, found) {
            // SAFETY: a record, which only `report` touches: this function's contract.
            unsafe { report(gpu, params.check, fault) };
        }
        at += THREADS;
    }
}

/// What is wrong with reference number `at` of a row, if it is.
#[inline(always)]
fn wrong(params: &CompactParams, seq: u32, at: u32, found: u32) -> Option<CheckFault> {
    if (found as i32) < 0 {
        return None;
    }
    if params.seq_lens != 0 {
        return (found >= params.num_blocks).then_some(CheckFault {
            kind: CheckFault::BLOCK_ID,
            row: seq,
            position: at,
            value: found as i64,
            limit: params.num_blocks as i64,
            ..CheckFault::NONE
        });
    }
    if params.block_size.divide(found) < params.num_blocks {
        return None;
    }
    let (row, position) = match params.max_num_blocks_per_seq {
        0 => (at, 0),
        len => {
            // SAFETY: not 0: the arm before.
            let row = unsafe { div(at, len) };
            (row, at - row * len + 1)
        }
    };
    Some(CheckFault {
        kind: CheckFault::INDEX,
        row,
        position,
        value: found as i64,
        limit: params.num_blocks as i64 * params.block_size.divisor() as i64,
        ..CheckFault::NONE
    })
}

/// [`check_compact`].
#[derive(Debug)]
pub enum CheckCompact {}

impl Kernel for CheckCompact {
    type Params = CompactParams;
    const VARIANT: Variant = Variant::Only("check_compact");
    const THREADS: u32 = THREADS;

    #[inline(always)]
    unsafe fn run<G: Gpu>(gpu: G, params: &CompactParams) {
        // SAFETY: launched as `check_compact` asks, on tensors of its shapes: the contract of `Kernel::run`.
        unsafe { check_compact(gpu, params) }
    }
}
