//! Which token a warp of a gather fetches, and where it is.
//!
//! ```text
//! token of this row: from row starts, lengths or indices   (see `GatherParams`)
//! slot of the token: block_table -> block, offset; none if -1, past the table or outside the cache
//! ```

use crate::attention::check::{found_fault, report};
use crate::cache::slots::Slot;
use crate::gather::grid::THREADS;
use crate::gpu::{Gpu, WARP};
use crate::params::{CheckFault, GatherParams};

/// A row of the output.
#[derive(Clone, Copy)]
pub(crate) struct Row {
    pub(crate) out: u64,
    /// Where the token is; `None` for zeros.
    pub(crate) slot: Option<Slot>,
}

impl Row {
    /// This warp's row, unless it stays untouched. `CHECKS` if it is wanted for nothing but to report what is wrong.
    ///
    /// # Safety
    /// Launched on [`grid`](crate::gather::grid::grid) with [`THREADS`] threads; `params` names tensors of the shapes
    /// it documents for its mode, and with `CHECKS` a record that was all 0 before the launch.
    #[inline(always)]
    pub(crate) unsafe fn find<G: Gpu, const CHECKS: bool>(
        gpu: G,
        params: &GatherParams,
    ) -> Option<Self> {
        let row = gpu.cta_idx_x() * (THREADS / WARP) + gpu.warp();
        if !CHECKS {
            gpu.wait_for_previous_kernels();
            gpu.let_next_kernel_start();
            // SAFETY: `check` is 0 or a finished check's record: the host's `launch`.
            if unsafe { found_fault(gpu, params.check) } {
                return None;
            }
        }
        if row >= params.num_rows {
            return None;
        }
        let mut out = params.out + row as u64 * params.stride_out_row as u64;
        // SAFETY: the whole warp comes here, with a row below `num_rows`; the mode's tensors: this function's contract.
        let slot = unsafe {
            match params.mode {
                GatherParams::RAGGED => Self::ragged::<G, CHECKS>(gpu, params, row),
                GatherParams::PADDED => {
                    let seq = params.rows_per_seq.divide(row);
                    let i = row - seq * params.rows_per_seq.divisor();
                    out = params.out
                        + seq as u64 * params.stride_out_seq as u64
                        + i as u64 * params.stride_out_row as u64;
                    Self::padded::<G, CHECKS>(gpu, params, row, seq, i)
                }
                _ => Self::indexed::<G, CHECKS>(gpu, params, row),
            }
        };
        if slot.is_none() && params.zero_missing == 0 {
            return None;
        }
        Some(Self { out, slot })
    }

    /// The lanes count together how many sequences end at or before the row; the last of these ends is where
    /// the row's sequence starts.
    ///
    /// # Safety
    /// As [`Row::find`], by the whole warp, for a `row` below `num_rows`.
    #[inline(always)]
    unsafe fn ragged<G: Gpu, const CHECKS: bool>(
        gpu: G,
        params: &GatherParams,
        row: u32,
    ) -> Option<Slot> {
        let ends = params.rows + 4;
        // SAFETY: `num_seqs + 1` row starts, so one at least: the host's `GatherRequest::rows`.
        let mut start = unsafe { gpu.ld_global_b32(params.rows) } as i32;
        let mut seq = 0;
        let mut other = gpu.lane();
        while other < params.num_seqs {
            // SAFETY: as above, and `other < num_seqs`.
            let end = unsafe { gpu.ld_global_b32(ends + 4 * other as u64) } as i32;
            if end <= row as i32 {
                seq += 1;
                start = if end > start { end } else { start };
            }
            other += WARP;
        }
        let mut mask = WARP / 2;
        while mask > 0 {
            // SAFETY: converged again after the loop: the whole warp came here, as this function's contract has it.
            unsafe {
                seq += gpu.shfl_xor(seq, mask);
                let other = gpu.shfl_xor(start as u32, mask) as i32;
                start = if other > start { other } else { start };
            }
            mask /= 2;
        }
        if seq >= params.num_seqs || (row as i32) < start {
            return None;
        }
        let first_token = if params.seqs == 0 {
            0
        } else {
            // SAFETY: `seq < num_seqs`, and each sequence has a first token: the host's `GatherRequest::rows`.
            unsafe { gpu.ld_global_b32(params.seqs + 4 * seq as u64) }
        };
        if (first_token as i32) < 0 {
            let fault = CheckFault {
                kind: CheckFault::FIRST_TOKEN,
                row: seq,
                value: first_token as i32 as i64,
                ..CheckFault::NONE
            };
            // SAFETY: a record, if this is a check: this function's contract.
            unsafe { complain::<G, CHECKS>(gpu, params, fault) };
            return None;
        }
        // A start below 0 gives no token that means anything; the check names it.
        let token = row.wrapping_sub(start as u32).wrapping_add(first_token);
        // SAFETY: `seq < num_seqs`; the rest is this function's contract.
        unsafe { Self::look_up::<G, CHECKS>(gpu, params, row, seq, token) }
    }

    /// # Safety
    /// As [`Row::find`], for a `row` below `num_rows`, which is row `i` of sequence `seq`.
    #[inline(always)]
    unsafe fn padded<G: Gpu, const CHECKS: bool>(
        gpu: G,
        params: &GatherParams,
        row: u32,
        seq: u32,
        i: u32,
    ) -> Option<Slot> {
        // SAFETY: a sequence of the output, which has a length, and `rows` a number of tokens for each: the host's
        // `GatherRequest::rows`.
        let (seq_len, len) = unsafe {
            let seq_len = gpu.ld_global_b32(params.seqs + 4 * seq as u64) as i32;
            if params.rows == 0 {
                (seq_len, seq_len)
            } else {
                let len = gpu.ld_global_b32(params.rows + 4 * seq as u64) as i32;
                (seq_len, if len < seq_len { len } else { seq_len })
            }
        };
        if i as i32 >= len {
            return None;
        }
        let token = (seq_len - len) as u32 + i;
        // SAFETY: a sequence of the output, and of the block table: the host's `GatherRequest::rows`.
        unsafe { Self::look_up::<G, CHECKS>(gpu, params, row, seq, token) }
    }

    /// # Safety
    /// As [`Row::find`], for a `row` below `num_rows`.
    #[inline(always)]
    unsafe fn indexed<G: Gpu, const CHECKS: bool>(
        gpu: G,
        params: &GatherParams,
        row: u32,
    ) -> Option<Slot> {
        // SAFETY: `row < num_rows`, and there is an index for each: this function's contract.
        let index = unsafe { gpu.ld_global_b32(params.rows + 4 * row as u64) };
        if (index as i32) < 0 {
            return None;
        }
        if params.block_table == 0 {
            let slot = Slot::new(index as u64, &params.block_size)?;
            if slot.block < params.num_blocks as u64 {
                return Some(slot);
            }
            let fault = CheckFault {
                kind: CheckFault::INDEX,
                row,
                value: index as i64,
                limit: params.num_blocks as i64 * params.block_size.divisor() as i64,
                ..CheckFault::NONE
            };
            // SAFETY: a record, if this is a check: this function's contract.
            unsafe { complain::<G, CHECKS>(gpu, params, fault) };
            return None;
        }
        let token = params.rows_per_seq.divide(row);
        let seq = if params.seqs == 0 {
            token
        } else {
            // SAFETY: a sequence for each token: the host's `GatherRequest::rows`.
            unsafe { gpu.ld_global_b32(params.seqs + 4 * token as u64) }
        };
        if seq >= params.num_seqs {
            let fault = CheckFault {
                kind: CheckFault::SEQ,
                row: token,
                value: seq as i32 as i64,
                limit: params.num_seqs as i64,
                ..CheckFault::NONE
            };
            // SAFETY: a record, if this is a check: this function's contract.
            unsafe { complain::<G, CHECKS>(gpu, params, fault) };
            return None;
        }
        // SAFETY: `seq < num_seqs`; the rest is this function's contract.
        unsafe { Self::look_up::<G, CHECKS>(gpu, params, row, seq, index) }
    }

    /// Where the block table says that a token is, which output row `row` wants.
    ///
    /// # Safety
    /// As [`Row::find`]; the block table has a row for `seq`.
    #[inline(always)]
    unsafe fn look_up<G: Gpu, const CHECKS: bool>(
        gpu: G,
        params: &GatherParams,
        row: u32,
        seq: u32,
        token: u32,
    ) -> Option<Slot> {
        // A token that is no i32 is beyond every table.
        let is_named = token <= i32::MAX as u32
            && params.block_size.divide(token) < params.max_num_blocks_per_seq;
        if !is_named {
            let fault = CheckFault {
                kind: CheckFault::TOKEN,
                row,
                position: seq,
                value: token as i64,
                limit: params.max_num_blocks_per_seq as i64 * params.block_size.divisor() as i64,
                ..CheckFault::NONE
            };
            // SAFETY: a record, if this is a check: this function's contract.
            unsafe { complain::<G, CHECKS>(gpu, params, fault) };
            return None;
        }
        let position = params.block_size.divide(token);
        let table_row = params.block_table + seq as u64 * params.stride_block_table as u64;
        // SAFETY: `position` is below the `max_num_blocks_per_seq` entries of the sequence's row: this function's
        // contract.
        let block = unsafe { gpu.ld_global_b32(table_row + 4 * position as u64) };
        if block >= params.num_blocks {
            let fault = CheckFault {
                kind: CheckFault::BLOCK_ID,
                row: seq,
                position,
                value: block as i32 as i64,
                limit: params.num_blocks as i64,
                ..CheckFault::NONE
            };
            // SAFETY: a record, if this is a check: this function's contract.
            unsafe { complain::<G, CHECKS>(gpu, params, fault) };
            return None;
        }
        Some(Slot {
            block: block as u64,
            offset: (token - position * params.block_size.divisor()) as u64,
        })
    }
}

/// Reports what a gather skips, in a check.
///
/// # Safety
/// With `CHECKS`, `params.check` is a record as [`report`] asks.
#[inline(always)]
unsafe fn complain<G: Gpu, const CHECKS: bool>(gpu: G, params: &GatherParams, fault: CheckFault) {
    if CHECKS && gpu.lane() == 0 {
        // SAFETY: a record, as `CHECKS` is true: this function's contract.
        unsafe { report(gpu, params.check, fault) };
    }
}
