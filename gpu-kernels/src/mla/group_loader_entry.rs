//! What the warps that load do over 656-byte entries: as [`super::group_loader_fp8`], but that each row is where a list, or the
//! block table, says, and that the f16 which bytes become are multiplied by the scale of their group of values.
//!
//! ```text
//! for each tile of the stage:
//!     wait until the half is empty; both its goes are under way
//!     for each go: wait until it is there; widen it; it is full
//!     look up the rows of the next tile by the words that have arrived, and ask for those of the one behind it
//! ```
//!
//! A position at which there is nothing gets zeros, and is left out of the bits that say which tokens there are.

use crate::gpu::unroll::rolled;
use crate::gpu::{Gpu, PANEL_BYTES, bytes_in_panel, in_panels};
use crate::mla::MlaTile;
use crate::mla::cache_format::fp8_ds;
use crate::mla::entry_places::Places;
use crate::mla::group_entry_rows::{LINES_BYTES, Rows, words};
use crate::mla::group_loader::own_part;
use crate::mla::group_loader_fp8::PANEL_VALUES;
use crate::mla::group_tile::{GROUPS, Part, ROWS};
use crate::params::DecodeMlaEntryParams;

/// Brings this warp's part of every tile of `positions`, from the first to the end, of a group of query tokens.
///
/// # Safety
/// Converged; the other warps of the group that loads come here too, and the groups that multiply to
/// [`super::group_softmax::GroupSoftmax::consume`] with the same positions, which exist.
#[inline(always)]
pub(super) unsafe fn load_entries<G: Gpu>(
    gpu: G,
    cut: MlaTile,
    params: &DecodeMlaEntryParams,
    places: Places,
    positions: (u32, u32),
) {
    // SAFETY: converged.
    let (part, mut first, end) = unsafe { own_part(gpu, positions) };
    let step = GROUPS * ROWS;
    let lane = gpu.lane();
    let stage = gpu.shared_base() + cut.group_stage(part.stage);
    let half = stage + part.half * cut.half_bytes();
    // Rotary values are the row's rest, and not widened.
    let rotary = stage + cut.rest();
    // Copying, eight lanes have a line of a row.
    let (line_row, line_chunk) = (lane / 8, lane % 8);
    // SAFETY: converged. See `Loader::run` for why they come from a lane.
    let [line_to, rotary_to] = unsafe {
        [
            half + bytes_in_panel(line_row, line_chunk),
            rotary + in_panels(line_row, line_chunk),
        ]
        .map(|target| gpu.shfl(target, lane))
    };
    // In the swizzle a row's number, modulo 8, is mixed into the place in the line.
    let rotary_lines = |time: u32| (rotary_to ^ (time % 2 * 64)) + time * LINES_BYTES;
    let column = part.half * (cut.head_size_v / 2);

    // SAFETY: positions below the end exist: this function's contract.
    let (mut rows, mut next) = unsafe {
        let own = words(gpu, params, places, first, end);
        (
            Rows::of(gpu, params, places, (first, end), own, part.half),
            words(gpu, params, places, first + step, end),
        )
    };
    let mut tile = 0;
    while first < end {
        if tile > 0 {
            // SAFETY: the warp is converged; a group comes there when it is done with the half, if another tile follows in
            // the stage.
            unsafe { gpu.barrier_sync(part.empty(), Part::THREADS) };
        }
        // SAFETY: the warp is converged, and the half is free.
        unsafe {
            rolled!(gpu, go in 0..2 {
                let column = column + go * (2 * PANEL_VALUES);
                let to = line_to + go * (2 * PANEL_BYTES);
                rows.copy_lines(
                    gpu,
                    |time| to + time * LINES_BYTES,
                    column + 16 * line_chunk,
                );
                if go == 0 {
                    gpu.cp_async_commit();
                }
            });
            if part.has_rest() {
                rows.copy_lines(gpu, rotary_lines, fp8_ds::ROPE_AT + 16 * line_chunk);
            }
            gpu.cp_async_commit();
        }
        // No fence: it would wait for all that is under way. Those that multiply have one.
        // SAFETY: the warp is converged, and what it waited for is there; the half's group has read the bits of before; the
        // group that computes the stage's scores waits at the barriers for each tile.
        unsafe {
            if part.stage == part.half {
                let there = rows.there(gpu);
                if lane == 0 {
                    gpu.st_shared_b64(gpu.shared_base() + cut.group_there(part.stage), there);
                }
            }
            let are_plain = rows.are_plain(gpu);
            rolled!(gpu, go in 0..2 {
                if go == 0 {
                    gpu.cp_async_wait::<1>();
                } else {
                    gpu.cp_async_wait::<0>();
                }
                let panels = half + go * (2 * PANEL_BYTES);
                rows.widen_go(gpu, go, panels, are_plain);
                gpu.barrier_arrive(part.full(go), Part::THREADS);
            });
        }
        // While others still multiply.
        // SAFETY: as above; the words are those of the next tile.
        rows = unsafe {
            let tokens = (first + step, end);
            Rows::of(gpu, params, places, tokens, next, part.half)
        };
        // SAFETY: as above.
        next = unsafe { words(gpu, params, places, first + 2 * step, end) };
        first += step;
        tile += 1;
    }
}
