//! What the warps that load do over a cache of bytes: as [`super::group_loader`], and each byte becomes the f16 that tensor
//! cores multiply, in the room that it was copied into.
//!
//! ```text
//! for each tile of the stage:
//!     wait until the half is empty; both its goes are under way: 128 bytes of a row, over the first of two panels
//!     for each go: wait until it is there; widen it into both panels; it is full
//! ```
//!
//! A lane widens other bytes than it copied: lines are copied whole, which is what copies are fast with, and widened in an
//! order in which no two lanes want the same bank.

use crate::dtype::CacheFormat;
use crate::gpu::unroll::{rolled, unroll};
use crate::gpu::{
    Gpu, Line, PANEL_BYTES, PANEL_ROW_BYTES, bytes_in_panel, in_panels, store_sixteen,
};
use crate::mla::MlaTile;
use crate::mla::group_loader::{GROUP, Tiles, WINDOW_TILES, group_at};
use crate::mla::group_tile::{GROUPS, Part, ROWS};
use crate::params::DecodeMlaParams;

/// Groups of tokens in a tile.
const TILE_GROUPS: usize = (ROWS / GROUP) as usize;
/// Bytes of a group's rows in a panel.
const GROUP_BYTES: u32 = GROUP * PANEL_ROW_BYTES;
/// Bytes of the cache that become a panel's row.
pub(super) const PANEL_VALUES: u32 = PANEL_ROW_BYTES / 2;

/// Brings this warp's part of every tile of `tokens`, from the first to the end, of sequence `seq`.
///
/// # Safety
/// As [`super::group_loader::Loader::run`], over a cache of bytes.
#[inline(always)]
pub(super) unsafe fn load_bytes<G: Gpu, C: CacheFormat>(
    gpu: G,
    cut: MlaTile,
    params: &DecodeMlaParams,
    seq: u32,
    tokens: (u32, u32),
) {
    // SAFETY: this function's contract.
    let tiles = unsafe { Tiles::of_warp(gpu, params, seq, tokens) };
    let Tiles {
        part,
        mut window,
        cache,
        mut first,
        end,
    } = tiles;
    let has_rest = part.has_rest();
    let step = GROUPS * ROWS;
    let mut own = window.own(cache);
    let stage = gpu.shared_base() + cut.group_stage(part.stage);
    let half = stage + part.half * cut.half_bytes();
    let rest = stage + cut.rest();
    let lane = gpu.lane();
    // Copying, eight lanes have a line of the go, and four a row of the rest.
    let (line_row, line_chunk) = (lane / 8, lane % 8);
    let (row, quad) = (lane / 4, lane % 4);
    // SAFETY: converged. See `Loader::run` for why they come from a lane.
    let [line_to, rest_to] = unsafe {
        [
            half + bytes_in_panel(line_row, line_chunk),
            rest + bytes_in_panel(row, quad),
        ]
        .map(|target| gpu.shfl(target, lane))
    };
    let stride = cache.stride_slot();
    let column = part.half * (cut.head_size_v / 2);
    let line_from = line_row * stride + column + 16 * line_chunk;
    let rest_from = row * stride + cut.head_size_v + 16 * quad;
    let store_both = |(): (), at: u32, [first, second]: [[u32; 4]; 2]| {
        // SAFETY: this lane's parts of both panels, of which it has taken what lay there.
        unsafe {
            store_sixteen(gpu, at, C::widen16(gpu, first));
            store_sixteen(gpu, at + PANEL_BYTES, C::widen16(gpu, second));
        }
    };
    let mut tile = 0;
    while first < end {
        let mut groups = [0; TILE_GROUPS];
        unroll!([8] group in 0..TILE_GROUPS {
            // SAFETY: the warp is converged; the window has the tile.
            groups[group] = unsafe { group_at(gpu, own, tile, group as u32) };
        });
        if tile > 0 {
            // SAFETY: the warp is converged; a group comes there when it is done with the half, if another tile follows in
            // the stage.
            unsafe { gpu.barrier_sync(part.empty(), Part::THREADS) };
        }
        let left = end - first;
        rolled!(gpu, go in 0..2 {
            let (to, from) = (
                line_to + go * (2 * PANEL_BYTES),
                line_from + go * (2 * PANEL_VALUES),
            );
            unroll!([8] group in 0..TILE_GROUPS {
                let first = group as u32 * GROUP;
                let target = to + group as u32 * GROUP_BYTES;
                let source = groups[group] + from as u64;
                // SAFETY: the half is free; a row is only read if it exists.
                unsafe {
                    gpu.cp_async_b128(target, source, first + line_row < left, Line::ONCE);
                    gpu.cp_async_b128(
                        target + 4 * PANEL_ROW_BYTES,
                        source + 4 * stride as u64,
                        first + 4 + line_row < left,
                        Line::ONCE,
                    );
                }
            });
            if go == 0 {
                gpu.cp_async_commit();
            }
        });
        if has_rest {
            unroll!([8] group in 0..TILE_GROUPS {
                let target = rest_to + group as u32 * GROUP_BYTES;
                let is_valid = group as u32 * GROUP + row < left;
                // SAFETY: the rest is free, too; a row is only read if it exists.
                unsafe {
                    gpu.cp_async_b128(target, groups[group] + rest_from as u64, is_valid, Line::ONCE);
                }
            });
        }
        gpu.cp_async_commit();
        // No fence: it would wait for all that is under way. Those that multiply have one.
        // SAFETY: the warp is converged, and what it waited for is there; the group that computes the stage's scores waits at
        // the barriers for each tile.
        unsafe {
            rolled!(gpu, go in 0..2 {
                if go == 0 {
                    gpu.cp_async_wait::<1>();
                } else {
                    gpu.cp_async_wait::<0>();
                }
                widen_lines(gpu, half + go * (2 * PANEL_BYTES), |_, _| (), store_both);
                if go == 1 && has_rest {
                    widen_line(gpu, rest, |at, bytes| store_sixteen(gpu, at, C::widen16(gpu, bytes)));
                }
                gpu.barrier_arrive(part.full(go), Part::THREADS);
            });
        }
        first += step;
        tile += 1;
        // While others still multiply.
        if tile % WINDOW_TILES == 0 {
            // SAFETY: as `new`.
            unsafe { window.advance(gpu) };
            own = window.own(cache);
        }
    }
}

/// Widens the lines that lie over the panel at `panels` into it and the next one: of each row of a group, `store` puts two
/// chunks of bytes to where the first belongs, and to the same place of the next panel, with what `factor_of` says of the
/// half of the tile, and the group in it: it is asked before the bytes are.
///
/// # Safety
/// Converged; the warp copied them, and each lane has waited for its copies. Both may be called, converged.
#[inline(always)]
pub(super) unsafe fn widen_lines<G: Gpu, Factor: Copy + Default>(
    gpu: G,
    panels: u32,
    factor_of: impl Fn(u32, usize) -> Factor,
    store: impl Fn(Factor, u32, [[u32; 4]; 2]),
) {
    const HALF: usize = TILE_GROUPS / 2;
    // A lane has a chunk for each panel of a row.
    let (row, quad) = (gpu.lane() / 4, gpu.lane() % 4);
    let [first, second] = [bytes_in_panel(row, quad), bytes_in_panel(row, 4 + quad)];
    let wide = in_panels(row, 2 * quad);
    rolled!(gpu, half in 0..2 {
        let panels = panels + half * (HALF as u32 * GROUP_BYTES);
        let mut factors = [Factor::default(); HALF];
        unroll!([4] group in 0..HALF {
            factors[group] = factor_of(half, group);
        });
        let mut bytes = [[[0; 4]; 2]; HALF];
        // SAFETY: converged: all copies are there, and nobody writes over them before all lanes have what they widen.
        unsafe {
            gpu.sync_warp();
            unroll!([4] group in 0..HALF {
                let at = panels + group as u32 * GROUP_BYTES;
                bytes[group] = [gpu.ld_shared_b128(at + first), gpu.ld_shared_b128(at + second)];
            });
            gpu.sync_warp();
        }
        unroll!([4] group in 0..HALF {
            let at = panels + group as u32 * GROUP_BYTES + wide;
            store(factors[group], at, bytes[group]);
        });
    });
}

/// Widens the rows of which one line of bytes lies over the panel that it becomes.
///
/// # Safety
/// As [`widen_lines`].
#[inline(always)]
unsafe fn widen_line<G: Gpu>(gpu: G, panel: u32, store: impl Fn(u32, [u32; 4])) {
    let (row, quad) = (gpu.lane() / 4, gpu.lane() % 4);
    let mut bytes = [[0; 4]; TILE_GROUPS];
    // SAFETY: converged; as in `widen_lines`.
    unsafe {
        gpu.sync_warp();
        unroll!([8] group in 0..TILE_GROUPS {
            bytes[group] = gpu.ld_shared_b128(panel + group as u32 * GROUP_BYTES + bytes_in_panel(row, quad));
        });
        gpu.sync_warp();
    }
    unroll!([8] group in 0..TILE_GROUPS {
        store(panel + group as u32 * GROUP_BYTES + in_panels(row, 2 * quad), bytes[group]);
    });
}
