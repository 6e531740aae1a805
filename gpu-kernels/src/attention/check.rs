//! Looking at what a kernel trusts before it does.
//!
//! ```text
//! check_paged     x = sequence, y = part     starts of query tokens, lengths, block ids that are read, scales
//! check_slots     x = tokens, y = layer      slots, whether two tokens have one, positions, scales
//! check_gather    (see `gather_rows`)        starts of rows, which token each has, the scale
//! check_pairs     (see `copy_blocks`)        blocks, whether a target is another pair's source or target
//! check_compact   (see `compact_mark`)       lengths, blocks or slots
//! check_lists     x = query token            how many of its indices count, and these
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
/// `check` is 0, or a record whose check has finished.
#[inline(always)]
pub(crate) unsafe fn found_fault<G: Gpu>(gpu: G, check: u64) -> bool {
    // SAFETY: a record that nobody writes any more: this function's contract.
    check != 0 && unsafe { gpu.ld_global_b32(check) } != 0
}

/// Checks what attention over a paged cache reads: of a sequence that has query tokens its length, and of the row of
/// the block table the entries between the first key that a query sees and the last.
///
/// # Safety
/// Launched on the grid above with [`THREADS`] threads; `params` names tensors of the shapes it documents, and a record
/// that was all 0 before the launch.
#[inline(always)]
pub unsafe fn check_paged<G: Gpu>(gpu: G, params: &CheckPagedParams) {
    let (seq, part) = (gpu.cta_idx_x(), gpu.cta_idx_y());
    if seq == 0 && part == 0 {
        unroll!([4] i in 0..4 {
            // SAFETY: a list of the host's `scales_to_check`, of tensors that it checked, and a record: this function's
            // contract.
            unsafe { check_scales(gpu, params.check, params.scales[i]) };
        });
    }
    // SAFETY: starts, if there are any, are one more than sequences: the host's `UnifiedRequest::check`; all lanes come
    // here.
    let query_len = unsafe { query_len(gpu, params, seq) };
    if query_len == 0 {
        return;
    }
    // SAFETY: x is a sequence, and each has a length: the host's `check_seq_lens`.
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
        // SAFETY: a record, which only `report` touches: this function's contract.
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
        // SAFETY: `position` is below the blocks of `max_seq_len` tokens, which each row names: the host's
        // `max_seq_len`.
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
            // SAFETY: a record, which only `report` touches: this function's contract.
            unsafe { report(gpu, params.check, fault) };
        } else {
            let start = position * params.block_size;
            let tokens = [
                first.max(start) - start,
                (seq_len - start).min(params.block_size),
            ];
            unroll!([2] i in 0..2 {
                // SAFETY: a block of the cache, and tokens of it; a record: this function's contract.
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
/// `query_start_loc` is 0, or holds the start of the sequence and of the next; all threads come here; `params.check` is
/// a record as [`report`] asks.
#[inline(always)]
unsafe fn query_len<G: Gpu>(gpu: G, params: &CheckPagedParams, seq: u32) -> u32 {
    if params.query_start_loc == 0 {
        return params.query_len;
    }
    let at = params.query_start_loc + 4 * seq as u64;
    // SAFETY: the start of the sequence and of the next: this function's contract.
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
    // SAFETY: a record, which only `report` touches: this function's contract.
    unsafe { report_once(gpu, params.check, fault) };
    0
}

/// Checks the scales of the tokens `begin..end` of a block, all heads.
///
/// # Safety
/// If `scales` has an address, it has a scale for each block, slot and head of the cache; `block` is one of its blocks,
/// and `end` at most the block size. `params.check` is a record as [`report`] asks.
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
            // SAFETY: scales beside the cache are of its shape: the host's `check_scales`; block, slot and head are:
            // this function's contract.
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
                // SAFETY: a record, which only `report` touches: this function's contract.
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
            // SAFETY: a list of the host's `Slots`, of tensors that it checked, and a record: this function's contract.
            unsafe { check_scales(gpu, params.check, params.scales[i]) };
        });
    }
    let slots = params.slot_mapping + layer as u64 * params.stride_layer as u64;
    let named_layer = if params.has_layers != 0 { layer + 1 } else { 0 };
    let mut token = gpu.cta_idx_x() * THREADS + gpu.thread_idx();
    while token < params.num_tokens {
        // SAFETY: `token` and y are below the tokens and layers that have slots: the host's `Slots::launch_check`.
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
            // SAFETY: a record, which only `report` touches: this function's contract.
            unsafe { report(gpu, params.check, fault) };
        } else if slot >= 0 {
            let seen = params.seen + layer as u64 * 4 * (params.seen_mask as u64 + 1);
            // SAFETY: the layer's table of `seen_mask + 1` words, twice as many as tokens: the host's `Slots::entries`.
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
                // SAFETY: a record, which only `report` touches: this function's contract.
                unsafe { report(gpu, params.check, fault) };
            }
        }
        if params.positions != 0 && (slot >= 0 || params.all_positions != 0) {
            // SAFETY: `token` is below the tokens, each of which has a position: the host's `check_table`.
            let position = unsafe { gpu.ld_global_b64(params.positions + 8 * token as u64) } as i64;
            if position < 0 || position >= params.num_positions {
                let fault = CheckFault {
                    kind: CheckFault::POSITION,
                    row: token,
                    value: position,
                    limit: params.num_positions,
                    ..CheckFault::NONE
                };
                // SAFETY: a record, which only `report` touches: this function's contract.
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
/// `slots` has a slot for each token, that of `token` not negative and below 2^31; `seen` is a table of `mask + 1`
/// words, more than there are tokens, that was all 0 before the launch and that nobody touches in another way.
#[inline(always)]
unsafe fn same_slot<G: Gpu>(gpu: G, mask: u32, seen: u64, slots: u64, token: u32) -> Option<u32> {
    // SAFETY: `token`, and each that is found in the table, is a token with a slot: this function's contract.
    let slot_of = |token: u32| unsafe { gpu.ld_global_b64(slots + 8 * token as u64) };
    let slot = slot_of(token);
    let mut place = (slot as u32).wrapping_mul(0x9e37_79b1) & mask;
    loop {
        // SAFETY: `mask` cuts `place` to the table, which only these atomics touch: this function's contract.
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
/// `scales` has as many as it says; `check` is a record as [`report`] asks.
#[inline(always)]
pub(crate) unsafe fn check_scales<G: Gpu>(gpu: G, check: u64, scales: ScaleList) {
    let mut at = gpu.thread_idx();
    while at < scales.count {
        // SAFETY: `at` is below the scales that the list has: this function's contract.
        let bits = unsafe { gpu.ld_global_b32(scales.address + at as u64 * scales.stride as u64) };
        if !is_scale(bits) {
            let fault = CheckFault {
                kind: CheckFault::SCALE,
                row: at,
                tensor: scales.tensor,
                value: bits as i64,
                ..CheckFault::NONE
            };
            // SAFETY: a record, which only `report` touches: this function's contract.
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
pub(crate) unsafe fn report_once<G: Gpu>(gpu: G, check: u64, fault: CheckFault) {
    if gpu.thread_idx() == 0 {
        // SAFETY: a record, which only `report` touches: this function's contract.
        unsafe { report(gpu, check, fault) };
    }
}

/// Fills the record, if nobody has claimed it.
///
/// # Safety
/// `check` is a record that was all 0 before the launch, and that only lanes of this launch touch, through this
/// function.
#[inline(always)]
pub(crate) unsafe fn report<G: Gpu>(gpu: G, check: u64, fault: CheckFault) {
    // SAFETY: a record, whose first word only this line touches in this launch: this function's contract.
    if unsafe { gpu.atomic_cas_global_b32(check, 0, fault.kind) } == 0 {
        // SAFETY: the first word was 0, so this lane alone has the rest of the record: this function's contract.
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
        // SAFETY: launched as `check_paged` asks, on tensors of its shapes: the contract of `Kernel::run`.
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
        // SAFETY: launched as `check_slots` asks, on tensors of its shapes: the contract of `Kernel::run`.
        unsafe { check_slots(gpu, params) }
    }
}
