//! The slots that a thread block attends to, one after the other in shared memory, none left out between.

use crate::gpu::unroll::unroll;
use crate::gpu::{Gpu, WARP};
use crate::mla::MlaTile;
use crate::params::EntryList;

/// Which of the two lists a slot belongs to.
pub(super) const SECOND_LIST: u32 = 1 << 31;

/// The word of the slot list for a slot of the second list.
#[inline(always)]
pub(crate) fn of_second_list(slot: u32) -> u32 {
    slot | SECOND_LIST
}

/// Where a slot's block begins in the cache of its list, and which slot of the block it is.
#[inline(always)]
pub(super) fn find(list: &EntryList, slot: u32) -> (u64, u32) {
    let block = list.block_size.divide(slot);
    let offset = slot - block * list.block_size.divisor();
    (list.cache + block as u64 * list.stride_block as u64, offset)
}

/// Slots that a thread looks up at a time: that many loads are in flight.
const AT_A_TIME: usize = 8;

/// Writes the slots of positions `start..end` to `list`, in their order, without those that have none; returns how
/// many there are. Every position is looked up once, by one thread.
///
/// # Safety
/// Every thread of the thread block comes here. There is room for `end - start` words at `list`, and nobody uses
/// the statistics.
#[inline(always)]
pub(crate) unsafe fn list_slots<G: Gpu>(
    gpu: G,
    cut: MlaTile,
    list: u32,
    start: u32,
    end: u32,
    slot_of: impl Fn(u32) -> Option<u32>,
) -> u32 {
    let counts = gpu.shared_base() + MlaTile::stats_of(0);
    let mut total = 0;
    let mut from = start;
    while from < end {
        let first = from + gpu.warp() * (AT_A_TIME as u32 * WARP) + gpu.lane();
        let mut slots = [None; AT_A_TIME];
        unroll!([8] i in 0..AT_A_TIME {
            let position = first + i as u32 * WARP;
            if position < end {
                slots[i] = slot_of(position);
            }
        });
        // A byte each: sums over a warp are at most 32.
        let mut found = [0u32; 2];
        unroll!([8] i in 0..AT_A_TIME {
            found[i / 4] |= (slots[i].is_some() as u32) << (i % 4 * 8);
        });
        // SAFETY: converged.
        let upto = found.map(|found| unsafe { sum_upto(gpu, found) });
        // SAFETY: converged.
        let all = upto.map(|upto| unsafe { gpu.shfl(upto, WARP - 1) });
        let byte = |words: [u32; 2], i: usize| words[i / 4] >> (i % 4 * 8) & 0xff;
        let mut ranks = [0; AT_A_TIME];
        let mut in_warp = 0;
        unroll!([8] i in 0..AT_A_TIME {
            ranks[i] = in_warp + byte(upto, i) - byte(found, i);
            in_warp += byte(all, i);
        });
        if gpu.lane() == 0 {
            // SAFETY: one lane for each warp; what was read there was read before the last barrier.
            unsafe { gpu.st_shared_b32(counts + gpu.warp() * 4, in_warp) };
        }
        // SAFETY: all come here.
        unsafe { gpu.sync_cta() };
        let mut before = total;
        for warp in 0..cut.warps {
            // SAFETY: written before the barrier.
            let count = unsafe { gpu.ld_shared_b32(counts + warp * 4) };
            before += if warp < gpu.warp() { count } else { 0 };
            total += count;
        }
        unroll!([8] i in 0..AT_A_TIME {
            if let Some(slot) = slots[i] {
                // SAFETY: every slot has a rank of its own, fewer than there are positions.
                unsafe { gpu.st_shared_b32(list + (before + ranks[i]) * 4, slot) };
            }
        });
        // SAFETY: all come here. The counts were read, and the slots are visible.
        unsafe { gpu.sync_cta() };
        from += cut.threads() * AT_A_TIME as u32;
    }
    total
}

/// The sum over this lane and those before it.
///
/// # Safety
/// Converged.
#[inline(always)]
unsafe fn sum_upto<G: Gpu>(gpu: G, mut sum: u32) -> u32 {
    for distance in [1, 2, 4, 8, 16] {
        // SAFETY: converged.
        let before = unsafe { gpu.shfl(sum, gpu.lane().wrapping_sub(distance) % WARP) };
        if gpu.lane() >= distance {
            sum += before;
        }
    }
    sum
}
