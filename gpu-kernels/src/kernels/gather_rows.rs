//! Which token a warp of a gather fetches, and where it is.
//!
//! ```text
//! token of this row: from row starts, lengths or indices   (see `GatherParams`)
//! slot of the token: block_table -> block, offset; none if -1, past the table or outside the cache
//! ```

use super::check::report;
use super::gather::THREADS;
use super::slots::Slot;
use crate::gpu::{Gpu, WARP};
use crate::params::{CheckFault, GatherParams};

/// A row of the output.
#[derive(Clone, Copy)]
pub(super) struct Row {
    pub(super) out: u64,
    /// Where the token is; `None` for zeros.
    pub(super) slot: Option<Slot>,
}

impl Row {
    /// This warp's row, unless it stays untouched.
    #[inline(always)]
    pub(super) unsafe fn find<G: Gpu>(gpu: G, params: &GatherParams) -> Option<Self> {
        let row = gpu.cta_idx_x() * (THREADS / WARP) + gpu.warp();
        gpu.wait_for_previous_kernels();
        gpu.let_next_kernel_start();
        if row >= params.num_rows {
            return None;
        }
        let mut out = params.out + row as u64 * params.stride_out_row as u64;
        // SAFETY: as the kernels' callers promise; the whole warp is here.
        let slot = unsafe {
            match params.mode {
                GatherParams::RAGGED => Self::ragged(gpu, params, row),
                GatherParams::PADDED => {
                    let seq = params.rows_per_seq.divide(row);
                    let i = row - seq * params.rows_per_seq.divisor();
                    out = params.out
                        + seq as u64 * params.stride_out_seq as u64
                        + i as u64 * params.stride_out_row as u64;
                    Self::padded(gpu, params, seq, i)
                }
                _ => Self::indexed(gpu, params, row),
            }
        };
        if slot.is_none() && params.zero_missing == 0 {
            return None;
        }
        Some(Self { out, slot })
    }

    /// The lanes count together how many sequences end at or before the row; the last of these ends is where
    /// the row's sequence starts.
    #[inline(always)]
    unsafe fn ragged<G: Gpu>(gpu: G, params: &GatherParams, row: u32) -> Option<Slot> {
        let ends = params.rows + 4;
        // SAFETY: `num_seqs + 1` row starts.
        let mut start = unsafe { gpu.ld_global_b32(params.rows) } as i32;
        let mut seq = 0;
        let mut other = gpu.lane();
        while other < params.num_seqs {
            // SAFETY: as above.
            let end = unsafe { gpu.ld_global_b32(ends + 4 * other as u64) } as i32;
            if end <= row as i32 {
                seq += 1;
                start = if end > start { end } else { start };
            }
            other += WARP;
        }
        let mut mask = WARP / 2;
        while mask > 0 {
            // SAFETY: the whole warp is here.
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
            // SAFETY: a first token per sequence.
            unsafe { gpu.ld_global_b32(params.seqs + 4 * seq as u64) }
        };
        if (first_token as i32) < 0 {
            return None;
        }
        // SAFETY: the sequence has a row in the block table.
        unsafe { Self::look_up(gpu, params, seq, row - start as u32 + first_token) }
    }

    #[inline(always)]
    unsafe fn padded<G: Gpu>(gpu: G, params: &GatherParams, seq: u32, i: u32) -> Option<Slot> {
        // SAFETY: a length per sequence, and a number of tokens to gather if it differs.
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
        // SAFETY: the sequence has a row in the block table.
        unsafe { Self::look_up(gpu, params, seq, (seq_len - len) as u32 + i) }
    }

    #[inline(always)]
    unsafe fn indexed<G: Gpu>(gpu: G, params: &GatherParams, row: u32) -> Option<Slot> {
        // SAFETY: one index per row.
        let index = unsafe { gpu.ld_global_b32(params.rows + 4 * row as u64) };
        if (index as i32) < 0 {
            return None;
        }
        if params.block_table == 0 {
            let slot = Slot::new(index as u64, &params.block_size)?;
            if slot.block < params.num_blocks as u64 {
                return Some(slot);
            }
            let limit = params.num_blocks as i64 * params.block_size.divisor() as i64;
            // SAFETY: a valid record, or none.
            unsafe {
                complain(
                    gpu,
                    params,
                    CheckFault::INDEX,
                    [row, 0],
                    [index as i64, limit],
                )
            };
            return None;
        }
        let token = params.rows_per_seq.divide(row);
        let seq = if params.seqs == 0 {
            token
        } else {
            // SAFETY: a sequence for each token.
            unsafe { gpu.ld_global_b32(params.seqs + 4 * token as u64) }
        };
        if seq >= params.num_seqs {
            return None;
        }
        // SAFETY: the sequence has a row in the block table.
        unsafe { Self::look_up(gpu, params, seq, index) }
    }

    /// Where the block table says that a token is.
    #[inline(always)]
    unsafe fn look_up<G: Gpu>(gpu: G, params: &GatherParams, seq: u32, token: u32) -> Option<Slot> {
        // A token that is no i32 is beyond every table.
        if token > i32::MAX as u32 {
            return None;
        }
        let position = params.block_size.divide(token);
        if position >= params.max_num_blocks_per_seq {
            return None;
        }
        let row = params.block_table + seq as u64 * params.stride_block_table as u64;
        // SAFETY: an entry of the sequence's row.
        let block = unsafe { gpu.ld_global_b32(row + 4 * position as u64) };
        if block >= params.num_blocks {
            let found = [block as i32 as i64, params.num_blocks as i64];
            // SAFETY: a valid record, or none.
            unsafe { complain(gpu, params, CheckFault::BLOCK_ID, [seq, position], found) };
            return None;
        }
        Some(Slot {
            block: block as u64,
            offset: (token - position * params.block_size.divisor()) as u64,
        })
    }
}

/// Reports an index that is skipped, if somebody wants to know.
///
/// # Safety
/// `params.check` is a valid record, or 0.
#[inline(always)]
unsafe fn complain<G: Gpu>(
    gpu: G,
    params: &GatherParams,
    kind: u32,
    [row, position]: [u32; 2],
    [value, limit]: [i64; 2],
) {
    if params.check != 0 && gpu.lane() == 0 {
        // SAFETY: a valid record.
        unsafe { report(gpu, params.check, kind, row, position, value, limit) };
    }
}
