//! Index lists, looked at on the device: `check_lists` reads what `decode_mla_entry` will read of them, and reports
//! what is not there.
//!
//! Grid: x = query token, all sequences. Indices that do not count are not read; negative ones name nothing and are
//! skipped by the decode, too.

use crate::attention::check::{THREADS, report, report_once};
use crate::entry::Variant;
use crate::gpu::unroll::unroll;
use crate::gpu::{Gpu, div};
use crate::kernel::Kernel;
use crate::params::{CheckFault, DecodeMlaEntryParams, EntryList};

/// Checks the lists of a query token: how many of their indices count, that these are of the cache or of tokens that the
/// block table names, and the entries of the block table that they need.
///
/// # Safety
/// Launched on the grid above with [`THREADS`] threads; `params` names tensors of the shapes it documents, index lists
/// among them, and a record that was all 0 before the launch.
#[inline(always)]
pub unsafe fn check_lists<G: Gpu>(gpu: G, params: &DecodeMlaEntryParams) {
    let row = gpu.cta_idx_x();
    // SAFETY: the host refuses queries without tokens.
    let seq = unsafe { div(row, params.rows.query_len) };
    let token = row - seq * params.rows.query_len;
    unroll!([2] i in 0..2 {
        let list = &params.lists[i];
        if list.len > 0 {
            // SAFETY: a list that there is, and a query token of the grid: this function's contract.
            unsafe { check_list(gpu, params, list, i as u32, [seq, token]) };
        }
    });
}

/// Checks list `which` of query token `token` of a sequence.
///
/// # Safety
/// As [`check_lists`], by all threads of a thread block; there is such a query token, and `list` has indices.
#[inline(always)]
unsafe fn check_list<G: Gpu>(
    gpu: G,
    params: &DecodeMlaEntryParams,
    list: &EntryList,
    which: u32,
    [seq, token]: [u32; 2],
) {
    let record = params.rows.check;
    let of_token = CheckFault {
        row: seq,
        tensor: token,
        ..CheckFault::NONE
    };
    let mut len = list.len;
    if list.lens != 0 {
        let at = list.lens
            + seq as u64 * list.stride_lens_seq as u64
            + token as u64 * list.stride_lens_token as u64;
        // SAFETY: the length of the query token, or of its sequence: the host's `index_list`.
        len = unsafe { gpu.ld_global_b32(at) };
        if len > list.len {
            let fault = CheckFault {
                kind: CheckFault::TOPK_LENGTH + which,
                value: len as i32 as i64,
                limit: list.len as i64,
                ..of_token
            };
            // SAFETY: a record, which only `report` touches: this function's contract.
            unsafe { report_once(gpu, record, fault) };
            return;
        }
    }
    // Of the second list indices are always slots.
    let block_table = if which == 0 {
        params.rows.block_table
    } else {
        0
    };
    let limit = if block_table == 0 {
        list.num_slots
    } else {
        list.num_tokens
    };
    let num_blocks = list.block_size.divide(list.num_slots);
    let indices = list.indices
        + seq as u64 * list.stride_indices_seq as u64
        + token as u64 * list.stride_indices_token as u64;
    let block_row = block_table + seq as u64 * params.rows.stride_block_table as u64;
    let mut at = gpu.thread_idx();
    while at < len {
        // SAFETY: `at` is below the indices of the query token: the lines before, and the host's `index_list`.
        let index = unsafe { gpu.ld_global_b32(indices + 4 * at as u64) };
        let is_skipped = (index as i32) < 0;
        let mut fault = CheckFault::NONE;
        if !is_skipped && index >= limit {
            fault = CheckFault {
                kind: CheckFault::TOPK_INDEX + which,
                position: at,
                value: index as i64,
                limit: limit as i64,
                ..of_token
            };
        } else if !is_skipped && block_table != 0 {
            let column = list.block_size.divide(index);
            // SAFETY: the block table has a column for each of the `num_tokens` tokens: the host's `tokens_of`.
            let block = unsafe { gpu.ld_global_b32(block_row + 4 * column as u64) };
            if block >= num_blocks {
                fault = CheckFault {
                    kind: CheckFault::BLOCK_ID,
                    row: seq,
                    position: column,
                    value: block as i32 as i64,
                    limit: num_blocks as i64,
                    ..CheckFault::NONE
                };
            }
        }
        if fault.kind != 0 {
            // SAFETY: a record, which only `report` touches: this function's contract.
            unsafe { report(gpu, record, fault) };
        }
        at += THREADS;
    }
}

/// [`check_lists`].
#[derive(Debug)]
pub enum CheckLists {}

impl Kernel for CheckLists {
    type Params = DecodeMlaEntryParams;
    const VARIANT: Variant = Variant::Only("check_lists");
    const THREADS: u32 = THREADS;

    #[inline(always)]
    unsafe fn run<G: Gpu>(gpu: G, params: &DecodeMlaEntryParams) {
        // SAFETY: launched as `check_lists` asks, on tensors of its shapes: the contract of `Kernel::run`.
        unsafe { check_lists(gpu, params) }
    }
}
