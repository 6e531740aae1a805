//! Looking at indices before a kernel trusts them.
//!
//! `check_paged`: grid x = sequence; a thread block walks its row of the block table. `check_slots`: grid y =
//! layer; threads of all thread blocks along x share out its tokens. The first lane to find a fault claims the record; kernels behind
//! it ask [`found_fault`] and leave their outputs alone.

use crate::gpu::{Gpu, WARP, div};
use crate::params::{CheckFault, CheckPagedParams, CheckSlotsParams};

/// Threads per thread block.
pub const THREADS: u32 = 4 * WARP;

/// Whether the record at `check` holds a fault; never if there is no record.
///
/// # Safety
/// `check` is 0 or a valid record that nobody is writing.
#[inline(always)]
pub(super) unsafe fn found_fault<G: Gpu>(gpu: G, check: u64) -> bool {
    // SAFETY: as the caller promises.
    check != 0 && unsafe { gpu.ld_global_b32(check) } != 0
}

/// Checks lengths against what a row can name, block ids against the cache, starts of query tokens, and scales.
///
/// # Safety
/// Launched on the grid above with [`THREADS`] threads; `params` names tensors of the shapes it documents.
#[inline(always)]
pub unsafe fn check_paged<G: Gpu>(gpu: G, params: &CheckPagedParams) {
    let seq = gpu.cta_idx_x();
    if seq == 0 {
        // SAFETY: one q_scale, and a k_scale and a v_scale for each head.
        unsafe {
            check_scales(gpu, params, 0, params.q_scale, 0);
            check_scales(gpu, params, 1, params.k_scale, params.stride_k_scale);
            check_scales(gpu, params, 2, params.v_scale, params.stride_v_scale);
        }
    }
    if params.query_start_loc != 0 && gpu.thread_idx() == 0 {
        // SAFETY: the start of every sequence of the grid, and the end of the last, are readable.
        unsafe { check_query_start(gpu, params, seq) };
    }
    // SAFETY: one length per sequence of the grid.
    let seq_len = unsafe {
        gpu.ld_global_b32(params.seq_lens + 4 * (seq as u64 * params.stride_seq_lens as u64))
    };
    if seq_len as i32 > params.max_seq_len as i32 || (seq_len as i32) < 0 {
        if gpu.thread_idx() == 0 {
            let limit = params.max_seq_len as i64;
            // SAFETY: a valid record.
            unsafe {
                report(
                    gpu,
                    params.check,
                    CheckFault::SEQ_LEN,
                    seq,
                    0,
                    seq_len as i32 as i64,
                    limit,
                )
            };
        }
        return;
    }
    let row = params.block_table + 4 * (seq as u64 * params.stride_block_table as u64);
    // SAFETY: the host refuses empty blocks.
    let num_blocks = unsafe { div(seq_len + params.block_size - 1, params.block_size) };
    let mut position = gpu.thread_idx();
    while position < num_blocks {
        // SAFETY: the row names every block of a sequence up to `max_seq_len`.
        let block = unsafe { gpu.ld_global_b32(row + 4 * position as u64) } as i32 as i64;
        if block < 0 || block >= params.num_blocks {
            // SAFETY: a valid record.
            unsafe {
                report(
                    gpu,
                    params.check,
                    CheckFault::BLOCK_ID,
                    seq,
                    position,
                    block,
                    params.num_blocks,
                )
            };
        }
        position += THREADS;
    }
}

/// Checks slots against the cache; negative ones are padding.
///
/// # Safety
/// As [`check_paged`].
#[inline(always)]
pub unsafe fn check_slots<G: Gpu>(gpu: G, params: &CheckSlotsParams) {
    let mut token = gpu.cta_idx_x() * THREADS + gpu.thread_idx();
    let slots = params.slot_mapping + gpu.cta_idx_y() as u64 * params.stride_layer as u64;
    while token < params.num_tokens {
        // SAFETY: one slot per token.
        let slot = unsafe { gpu.ld_global_b64(slots + 8 * token as u64) } as i64;
        if slot >= params.num_slots {
            // SAFETY: a valid record.
            unsafe {
                report(
                    gpu,
                    params.check,
                    CheckFault::SLOT,
                    token,
                    0,
                    slot,
                    params.num_slots,
                )
            };
        }
        token += THREADS * gpu.grid_dim_x();
    }
}

/// Checks that a sequence's query tokens lie within all, after those of the sequence before, and are not too many.
///
/// # Safety
/// `query_start_loc` holds the start of the sequence and of the next.
#[inline(always)]
unsafe fn check_query_start<G: Gpu>(gpu: G, params: &CheckPagedParams, seq: u32) {
    let at = params.query_start_loc + 4 * seq as u64;
    // SAFETY: as the caller promises.
    let (start, end) = unsafe { (gpu.ld_global_b32(at), gpu.ld_global_b32(at + 4)) };
    let (first, last) = (start as i32, end as i32);
    let (kind, value, limit);
    if first < 0 || last < first || last as u32 > params.num_tokens {
        (kind, value, limit) = (
            CheckFault::QUERY_START,
            first as i64,
            params.num_tokens as i64,
        );
    } else if end - start > params.max_query_len {
        kind = CheckFault::QUERY_LEN;
        (value, limit) = ((end - start) as i64, params.max_query_len as i64);
    } else {
        return;
    }
    // SAFETY: a valid record.
    unsafe { report(gpu, params.check, kind, seq, end, value, limit) };
}

/// Checks that scales are positive and finite.
///
/// # Safety
/// `scales` is 0 or has a value for each head.
#[inline(always)]
unsafe fn check_scales<G: Gpu>(
    gpu: G,
    params: &CheckPagedParams,
    which: u32,
    scales: u64,
    stride: i64,
) {
    let mut head = gpu.thread_idx();
    while scales != 0 && head < params.num_kv_heads {
        // SAFETY: as the caller promises.
        let bits = unsafe { gpu.ld_global_b32(scales + 4 * (head as u64 * stride as u64)) };
        // Zero, infinities, NaN and all negative numbers; as bits, so that NaN needs no case of its own.
        if bits == 0 || bits >= 0x7f80_0000 {
            // SAFETY: a valid record.
            unsafe {
                report(
                    gpu,
                    params.check,
                    CheckFault::SCALE,
                    which,
                    head,
                    bits as i64,
                    0,
                )
            };
        }
        head += THREADS;
    }
}

/// Fills the record, if nobody has claimed it.
///
/// # Safety
/// `check` is a valid record that only lanes of this launch touch, through this function.
#[inline(always)]
pub(super) unsafe fn report<G: Gpu>(
    gpu: G,
    check: u64,
    kind: u32,
    row: u32,
    position: u32,
    value: i64,
    limit: i64,
) {
    // SAFETY: the word is only touched by atomics while a check runs.
    if unsafe { gpu.atomic_cas_global_b32(check, 0, kind) } == 0 {
        // SAFETY: the claim makes the rest of the record this lane's.
        unsafe {
            gpu.st_global_b32(check + 4, row);
            gpu.st_global_b32(check + 8, position);
            gpu.st_global_b64(check + 16, value as u64);
            gpu.st_global_b64(check + 24, limit as u64);
        }
    }
}
