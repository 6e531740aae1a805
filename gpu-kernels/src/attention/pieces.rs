//! The other way to cut a batch: each sequence by itself, into pieces of nearly the same length, a thread block for each.
//!
//! Runs of equal work (see [`crate::attention::schedule`]) end in the middle of sequences, so that a thread block ends one
//! and begins another, and a sequence has a part more than it needs. Where all sequences are about as long, pieces are
//! better: those of the least length of which no more are needed than there are runs. Where there are more sequences than
//! runs, they may be left whole.
//!
//! Which way is taken depends on what each would cost, in tiles of the one who is the last to end:
//!
//! ```text
//! by runs:    the run + what a cut costs: ends of a thread block more, and merging
//! by pieces:  (the piece + ends) for each of those that a thread block's place gets; and merging, if there are cuts
//! ```
//!
//! Neither pieces nor runs are shorter than `sqrt(longest / parts_per_tile)`: of shorter ones merging so many would take
//! more time than they save.

use core::num::{NonZeroU32, NonZeroU64};

use crate::attention::item::{Item, MergeItem};
use crate::attention::line::{Line, Measure, WARPS, hear_all, length, sum_up};
use crate::gpu::{Gpu, WARP, div};
use crate::params::ScheduleParams;

/// Fewest tiles of a part, for the longest sequence's sake.
#[inline(always)]
pub(crate) fn shortest(params: &ScheduleParams, longest: u32) -> u32 {
    let mut tiles = 1u32;
    while (tiles as u64 * tiles as u64) * (params.parts_per_tile as u64) < longest as u64 {
        tiles += 1;
    }
    tiles
}

/// What merging costs if the longest sequence is cut into parts of `len` tiles.
#[inline(always)]
fn merging(params: &ScheduleParams, longest: u32, len: u32) -> u64 {
    // SAFETY: parts have a tile, and the host's plan has parts per tile.
    let parts = unsafe { div(div(longest, len), params.parts_per_tile) };
    params.merge_tiles as u64 + parts as u64
}

/// The length of pieces, in tiles, if the batch is to be cut into such.
///
/// # Safety
/// Every thread comes here, and the line, of this measure, is complete.
#[inline(always)]
pub(crate) unsafe fn choose<G: Gpu>(
    gpu: G,
    params: &ScheduleParams,
    line: Line,
    all: Measure,
) -> Option<NonZeroU32> {
    let longest = all.longest.saturating_sub(params.ends);
    if longest == 0 {
        return None;
    }
    let least = shortest(params, longest);
    // Up: where they do not come out even, some have a tile more, and those end last.
    let run = all
        .total
        .div_ceil(params.num_runs.max(1) as u64)
        .max(least as u64);
    let by_runs =
        run + params.ends as u64 + merging(params, longest, run.min(longest as u64).max(1) as u32);
    let (piece, by_pieces) = if params.num_seqs < params.num_runs {
        // SAFETY: this function's contract.
        let fitting = unsafe { fitting(gpu, params, line, longest) };
        let piece = fitting.max(least).min(longest);
        let merging = if piece < longest {
            merging(params, longest, piece)
        } else {
            0
        };
        (piece, (piece + params.ends) as u64 + merging)
    } else {
        // SAFETY: there are runs: the host's plan.
        let whole = unsafe { div(all.count, params.num_runs) };
        let lots = whole + (whole * params.num_runs < all.count) as u32;
        (longest, lots as u64 * (longest + params.ends) as u64)
    };
    if by_pieces <= by_runs {
        NonZeroU32::new(piece)
    } else {
        None
    }
}

/// The least length of pieces of which there are no more than runs, of sequences of which there are fewer.
///
/// # Safety
/// Every thread comes here, and the line is complete.
#[inline(always)]
unsafe fn fitting<G: Gpu>(gpu: G, params: &ScheduleParams, line: Line, longest: u32) -> u32 {
    // Too short; and long enough.
    let (mut short, mut fitting) = (0, longest);
    while fitting - short > 1 {
        // Each warp tries one, evenly spaced.
        let step = (fitting - short).div_ceil(WARPS + 1).max(1);
        let tried = (short + step * (gpu.warp() + 1)).min(fitting);
        let mut needed = 0u32;
        let mut seq = gpu.lane();
        while seq < params.num_seqs {
            // SAFETY: a sequence; the line is complete.
            let ends = unsafe { line.ends(gpu, seq) };
            needed = needed.saturating_add(pieces(params, ends, tried));
            seq += WARP;
        }
        for mask in [1, 2, 4, 8, 16] {
            // SAFETY: converged, as lanes whose sequences have ended wait for the others.
            needed = needed.saturating_add(unsafe { gpu.shfl_xor(needed, mask) });
        }
        let (mut next_short, mut next_fitting) = (short, fitting);
        // SAFETY: every thread comes here, as all have the same bounds.
        unsafe {
            hear_all(gpu, [needed; 4], |warp, [needed, ..]| {
                let tried = (short + step * (warp + 1)).min(fitting);
                if needed > params.num_runs {
                    next_short = next_short.max(tried);
                } else {
                    next_fitting = next_fitting.min(tried);
                }
            });
        }
        (short, fitting) = (next_short, next_fitting);
    }
    fitting
}

/// How many pieces of `len` tiles a sequence between these ends has: one if it has no tokens, none if it is not there.
#[inline(always)]
fn pieces(params: &ScheduleParams, (begin, end): (u64, u64), len: u32) -> u32 {
    if begin == end {
        return 0;
    }
    let tiles = (end - begin) as u32 - params.ends;
    // SAFETY: tried lengths are not 0.
    let whole = unsafe { div(tiles, len) };
    (whole + (whole * len < tiles) as u32).max(1)
}

/// Cuts the batch into pieces of up to `len` tiles, and stores the items and what is to be merged.
///
/// # Safety
/// Every thread comes here, and the line is complete; [`choose`] chose the length.
#[inline(always)]
pub(crate) unsafe fn store<G: Gpu>(gpu: G, params: &ScheduleParams, line: Line, len: NonZeroU32) {
    let len = len.get();
    // SAFETY: every thread comes here; sequences, and a complete line.
    let total = unsafe {
        line.lay(gpu, |seq| pieces(params, line.ends(gpu, seq), len) as u64)
            .total as u32
    };
    let mut index = gpu.thread_idx();
    while index < params.num_runs + params.num_seqs {
        let mut item = Item::NONE;
        if index < total {
            // SAFETY: a piece, so a sequence has it; lengths are there, as they were for the line.
            unsafe {
                let seq = line.seq_at(gpu, index as u64);
                let (first, behind) = line.ends(gpu, seq);
                let piece = (index as u64 - first) as u32;
                let num_pieces = (behind - first) as u32;
                let tiles = length(gpu, params, seq) - params.ends as u64;
                item = Item {
                    seq,
                    from: begin(params, tiles, piece, num_pieces),
                    to: if piece + 1 == num_pieces {
                        u32::MAX
                    } else {
                        begin(params, tiles, piece + 1, num_pieces)
                    },
                    part: index,
                };
            }
        }
        // SAFETY: there are so many items, and this one is this thread's.
        unsafe { item.store(gpu, params.items, index) };
        index += WARPS * WARP;
    }
    // SAFETY: every thread comes here; sequences, a complete line. No more are cut than fit, and each has its own number.
    unsafe {
        let cut = sum_up(
            gpu,
            params.num_seqs,
            |seq| {
                let (first, behind) = line.ends(gpu, seq);
                (behind - first > 1) as u64
            },
            |seq, number, is_cut| {
                let (first, behind) = line.ends(gpu, seq);
                if is_cut != 0 {
                    let merge = MergeItem {
                        seq,
                        first_part: first as u32,
                        num_parts: (behind - first) as u32,
                        step: 1,
                    };
                    merge.store(gpu, params.merges, number as u32);
                }
            },
        );
        if gpu.thread_idx() == 0 {
            MergeItem::store_count(gpu, params.merges, cut.total as u32);
        }
    }
}

/// The token that piece `piece` of so many begins with, of a sequence of so many tiles.
#[inline(always)]
fn begin(params: &ScheduleParams, tiles: u64, piece: u32, num_pieces: u32) -> u32 {
    match NonZeroU32::new(num_pieces) {
        Some(pieces) => (tiles * piece as u64 / NonZeroU64::from(pieces)) as u32 * params.tile_len,
        None => 0,
    }
}
