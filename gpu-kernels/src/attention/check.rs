//! Looking at what a kernel trusts before it does.
//!
//! ```text
//! check_paged     x = sequence, y = part     starts of query tokens, lengths, block ids that are read, scales
//! check_slots     x = tokens, y = layer      slots, whether two tokens have one, positions, scales
//! check_gather    (see `gather_rows`)        starts of rows, which token each has, the scale
//! check_pairs     (see `copy_blocks`)        blocks, whether a target is another pair's source or target
//! ```
//!
//! The first lane to find a fault claims the record; kernels behind it ask [`found_fault`] and leave their outputs
//! alone.

use crate::attention::mask::first_seen;
use crate::entry::Variant;
use crate::gpu::unroll::unroll;
use crate::gpu::{Gpu, WARP, div};
use crate::kernel::Kernel;
use crate::params::{CheckFault, CheckPagedParams, CheckSlotsParams, ScaleList, TokenScaleList};

/// Threads per thread block.
pub const THREADS: u32 = 4 * WARP;

/// Whether the record at `check` holds a fault; never if there is no record.
///
/// # Safety
/// `check` is 0 or a valid record that nobody is writing.
#[inline(always)]
pub(crate) unsafe fn found_fault<G: Gpu>(gpu: G, check: u64) -> bool {
    // SAFETY: a record that nobody is writing: this kernel runs behind the check that wrote it.
    check != 0 && unsafe { gpu.ld_global_b32(check) } != 0
}

/// Checks what attention over a paged cache reads: of a sequence that has query tokens its length, and of the row of
/// the block table the entries between the first key that a query sees and the last.
///
/// # Safety
/// Launched on the grid above with [`THREADS`] threads; `params` names tensors of the shapes it documents.
#[inline(always)]
pub unsafe fn check_paged<G: Gpu>(gpu: G, params: &CheckPagedParams) {
    let (seq, part) = (gpu.cta_idx_x(), gpu.cta_idx_y());
    if seq == 0 && part == 0 {
        unroll!([4] i in 0..4 {
            // SAFETY: lists as long as they say (the host's), and a valid record.
            unsafe { check_scales(gpu, params.check, params.scales[i]) };
        });
    }
    // SAFETY: the host's check holds `query_start_loc` to one start more than there are sequences; all lanes come here.
    let query_len = unsafe { query_len(gpu, params, seq) };
    if query_len == 0 {
        return;
    }
    // SAFETY: one length per sequence of the grid.
    let seq_len =
        unsafe { gpu.ld_global_b32(params.seq_lens + seq as u64 * params.stride_seq_lens as u64) };
    if seq_len as i32 > params.max_seq_len as i32 || (seq_len as i32) < 0 {
        let fault = CheckFault {
            kind: CheckFault::SEQ_LEN,
            row: seq,
            value: seq_len as i32 as i64,
            limit: params.max_seq_len as i64,
            ..CheckFault::NONE
        };
        // SAFETY: a valid record.
        unsafe { report_once(gpu, params.check, fault) };
        return;
    }
    let first = first_seen(seq_len, query_len, params.mask);
    let row = params.block_table + seq as u64 * params.stride_block_table as u64;
    // SAFETY: the host refuses empty blocks.
    let (begin, end) = unsafe {
        (
            div(first, params.block_size),
            div(seq_len + params.block_size - 1, params.block_size),
        )
    };
    let mut position = begin + part * THREADS + gpu.thread_idx();
    while position < end {
        // SAFETY: the row names every block of a sequence up to `max_seq_len`.
        let block = unsafe { gpu.ld_global_b32(row + 4 * position as u64) } as i32 as i64;
        if block < 0 || block >= params.num_blocks {
            let fault = CheckFault {
                kind: CheckFault::BLOCK_ID,
                row: seq,
                position,
                value: block,
                limit: params.num_blocks,
                ..CheckFault::NONE
            };
            // SAFETY: a valid record.
            unsafe { report(gpu, params.check, fault) };
        } else {
            let start = position * params.block_size;
            let tokens = [
                first.max(start) - start,
                (seq_len - start).min(params.block_size),
            ];
            unroll!([2] i in 0..2 {
                // SAFETY: a block of the cache; a valid record.
                unsafe { check_token_scales(gpu, params, i as u32, params.token_scales[i], block, tokens) };
            });
        }
        position += THREADS * params.num_parts;
    }
}

/// How many query tokens the sequence has, after checking that they lie within all, after those of the sequence
/// before, are not too many, and are where a decode's is; 0 if they do not.
///
/// # Safety
/// `query_start_loc` is 0, or holds the start of the sequence and of the next; converged.
#[inline(always)]
unsafe fn query_len<G: Gpu>(gpu: G, params: &CheckPagedParams, seq: u32) -> u32 {
    if params.query_start_loc == 0 {
        return params.query_len;
    }
    let at = params.query_start_loc + 4 * seq as u64;
    // SAFETY: the host's check holds `query_start_loc` to one start more than there are sequences.
    let (start, end) = unsafe { (gpu.ld_global_b32(at), gpu.ld_global_b32(at + 4)) };
    let (first, last) = (start as i32, end as i32);
    let mut fault = CheckFault {
        row: seq,
        position: end,
        value: first as i64,
        ..CheckFault::NONE
    };
    if seq < params.num_decodes && (start != seq || end != seq + 1) {
        fault.kind = CheckFault::NUM_DECODES;
        fault.limit = params.num_decodes as i64;
    } else if first < 0 || last < first || end > params.num_tokens {
        fault.kind = CheckFault::QUERY_START;
        fault.limit = params.num_tokens as i64;
    } else if end - start > params.max_query_len {
        fault.kind = CheckFault::QUERY_LEN;
        fault.value = (end - start) as i64;
        fault.limit = params.max_query_len as i64;
    } else {
        return end - start;
    }
    // SAFETY: a valid record.
    unsafe { report_once(gpu, params.check, fault) };
    0
}

/// Checks the scales of the tokens `begin..end` of a block, all heads.
///
/// # Safety
/// `scales` has them, if it has an address.
#[inline(always)]
unsafe fn check_token_scales<G: Gpu>(
    gpu: G,
    params: &CheckPagedParams,
    which: u32,
    scales: TokenScaleList,
    block: i64,
    [begin, end]: [u32; 2],
) {
    let mut slot = begin;
    while scales.address != 0 && slot < end {
        let mut head = 0;
        while head < params.num_kv_heads {
            let at = scales.address
                + (block * scales.stride_block) as u64
                + slot as u64 * scales.stride_slot as u64
                + head as u64 * scales.stride_head as u64;
            // SAFETY: scales beside the cache are of its shape (the host's `check_scales`): block, slot and head are.
            let bits = unsafe { gpu.ld_global_b32(at) };
            if !is_scale(bits) {
                let fault = CheckFault {
                    kind: CheckFault::TOKEN_SCALE,
                    row: block as u32,
                    position: slot,
                    tensor: CheckFault::K_SCALE + which,
                    value: bits as i64,
                    limit: head as i64,
                };
                // SAFETY: a valid record.
                unsafe { report(gpu, params.check, fault) };
            }
            head += 1;
        }
        slot += 1;
    }
}

/// Checks slots against the cache and each other; negative ones are padding. Positions and scales, if there are any.
///
/// # Safety
/// As [`check_paged`].
#[inline(always)]
pub unsafe fn check_slots<G: Gpu>(gpu: G, params: &CheckSlotsParams) {
    let layer = gpu.cta_idx_y();
    if gpu.cta_idx_x() == 0 && layer == 0 {
        unroll!([4] i in 0..3 {
            // SAFETY: lists as long as they say (the host's), and a valid record.
            unsafe { check_scales(gpu, params.check, params.scales[i]) };
        });
    }
    let slots = params.slot_mapping + layer as u64 * params.stride_layer as u64;
    let named_layer = if params.has_layers != 0 { layer + 1 } else { 0 };
    let mut token = gpu.cta_idx_x() * THREADS + gpu.thread_idx();
    while token < params.num_tokens {
        // SAFETY: one slot per token.
        let slot = unsafe { gpu.ld_global_b64(slots + 8 * token as u64) } as i64;
        if slot >= params.num_slots {
            let fault = CheckFault {
                kind: CheckFault::SLOT,
                row: token,
                position: named_layer,
                value: slot,
                limit: params.num_slots,
                ..CheckFault::NONE
            };
            // SAFETY: a valid record.
            unsafe { report(gpu, params.check, fault) };
        } else if slot >= 0 {
            let seen = params.seen + layer as u64 * 4 * (params.seen_mask as u64 + 1);
            // SAFETY: the layer's table, with room for its tokens.
            if let Some(other) = unsafe { same_slot(gpu, params.seen_mask, seen, slots, token) } {
                let is_first = token < other;
                let fault = CheckFault {
                    kind: CheckFault::SAME_SLOT,
                    row: if is_first { token } else { other },
                    position: if is_first { other } else { token },
                    value: slot,
                    limit: named_layer as i64,
                    ..CheckFault::NONE
                };
                // SAFETY: a valid record.
                unsafe { report(gpu, params.check, fault) };
            }
        }
        if params.positions != 0 && (slot >= 0 || params.all_positions != 0) {
            // SAFETY: one position per token.
            let position = unsafe { gpu.ld_global_b64(params.positions + 8 * token as u64) } as i64;
            if position < 0 || position >= params.num_positions {
                let fault = CheckFault {
                    kind: CheckFault::POSITION,
                    row: token,
                    value: position,
                    limit: params.num_positions,
                    ..CheckFault::NONE
                };
                // SAFETY: a valid record.
                unsafe { report(gpu, params.check, fault) };
            }
        }
        token += THREADS * gpu.grid_dim_x();
    }
}

/// A token with the slot of `token` that was here before it. Each token takes the first free place of the table from
/// the one that its slot says, and passes all those of its slot on the way.
///
/// # Safety
/// `slots` has a slot for `token`, not negative and below 2^31; `seen` is a table of `mask + 1` words, more than there
/// are tokens, that nobody touches in another way.
#[inline(always)]
unsafe fn same_slot<G: Gpu>(gpu: G, mask: u32, seen: u64, slots: u64, token: u32) -> Option<u32> {
    // SAFETY: `token` is one of the tokens of `slot_mapping`: the contract of `same_slot`.
    let slot_of = |token: u32| unsafe { gpu.ld_global_b64(slots + 8 * token as u64) };
    let slot = slot_of(token);
    let mut place = (slot as u32).wrapping_mul(0x9e37_79b1) & mask;
    loop {
        // SAFETY: a place of the table, which `mask` cuts to.
        let found = unsafe { gpu.atomic_cas_global_b32(seen + 4 * place as u64, 0, token + 1) };
        if found == 0 {
            return None;
        }
        if slot_of(found - 1) == slot {
            return Some(found - 1);
        }
        place = place.wrapping_add(1) & mask;
    }
}

/// Checks that scales are positive and finite. Threads of the thread block share them out.
///
/// # Safety
/// `scales` has as many as it says; `check` is a valid record.
#[inline(always)]
pub(crate) unsafe fn check_scales<G: Gpu>(gpu: G, check: u64, scales: ScaleList) {
    let mut at = gpu.thread_idx();
    while at < scales.count {
        // SAFETY: the list is as long as it says: the host makes it of tensors that it checked.
        let bits = unsafe { gpu.ld_global_b32(scales.address + at as u64 * scales.stride as u64) };
        if !is_scale(bits) {
            let fault = CheckFault {
                kind: CheckFault::SCALE,
                row: at,
                tensor: scales.tensor,
                value: bits as i64,
                ..CheckFault::NONE
            };
            // SAFETY: a valid record: the contract of `check_scales`.
            unsafe { report(gpu, check, fault) };
        }
        at += THREADS;
    }
}

/// Whether these are the bits of a positive and finite number: not zero, infinity, a NaN or anything negative.
#[inline(always)]
fn is_scale(bits: u32) -> bool {
    bits != 0 && bits < 0x7f80_0000
}

/// [`report`] by the first thread, of a fault that all have found.
///
/// # Safety
/// As [`report`].
#[inline(always)]
unsafe fn report_once<G: Gpu>(gpu: G, check: u64, fault: CheckFault) {
    if gpu.thread_idx() == 0 {
        // SAFETY: a valid record: the contract of `report_once`.
        unsafe { report(gpu, check, fault) };
    }
}

/// Fills the record, if nobody has claimed it.
///
/// # Safety
/// `check` is a valid record that only lanes of this launch touch, through this function.
#[inline(always)]
pub(crate) unsafe fn report<G: Gpu>(gpu: G, check: u64, fault: CheckFault) {
    // SAFETY: the word is only touched by atomics while a check runs.
    if unsafe { gpu.atomic_cas_global_b32(check, 0, fault.kind) } == 0 {
        // SAFETY: the claim makes the rest of the record this lane's.
        unsafe {
            gpu.st_global_b32(check + 4, fault.row);
            gpu.st_global_b32(check + 8, fault.position);
            gpu.st_global_b32(check + 12, fault.tensor);
            gpu.st_global_b64(check + 16, fault.value as u64);
            gpu.st_global_b64(check + 24, fault.limit as u64);
        }
    }
}

/// [`check_paged`].
#[derive(Debug)]
pub enum CheckPaged {}

impl Kernel for CheckPaged {
    type Params = CheckPagedParams;
    const VARIANT: Variant = Variant::CheckPaged;
    const THREADS: u32 = THREADS;

    #[inline(always)]
    unsafe fn run<G: Gpu>(gpu: G, params: &CheckPagedParams) {
        // SAFETY: whoever launches keeps the kernel's conditions.
        unsafe { check_paged(gpu, params) }
    }
}

/// [`check_slots`].
#[derive(Debug)]
pub enum CheckSlots {}

impl Kernel for CheckSlots {
    type Params = CheckSlotsParams;
    const VARIANT: Variant = Variant::CheckSlots;
    const THREADS: u32 = THREADS;

    #[inline(always)]
    unsafe fn run<G: Gpu>(gpu: G, params: &CheckSlotsParams) {
        // SAFETY: whoever launches keeps the kernel's conditions.
        unsafe { check_slots(gpu, params) }
    }
}
