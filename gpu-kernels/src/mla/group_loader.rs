//! What the warps that load do: each fills its half of its stage, again and again.
//!
//! Nobody waits for another: a warp has one half tile under way, and there is no room for more.

use crate::attention::paged_kv::{BlockWindow, CacheHead};
use crate::gpu::unroll::unroll;
use crate::gpu::{Gpu, Line, PANEL_BYTES, PANEL_ROW_BYTES, in_panels};
use crate::mla::MlaTile;
use crate::mla::group_tile::{GROUPS, Part, ROWS};
use crate::params::DecodeMlaParams;

/// Tokens that lie in one block.
pub(super) const GROUP: u32 = 8;

/// Rows that a warp copies a line of at a time: eight lanes each.
const LINES: u32 = 4;
/// How often that is, for a tile.
const TIMES: usize = (ROWS / LINES) as usize;

/// A warp's part of the tiles of some tokens.
#[derive(Clone, Copy)]
pub(super) struct Loader {
    part: Part,
    window: BlockWindow,
    /// Where this lane's group of tokens of the window begins.
    group: u64,
    /// Bytes from a row to the next.
    stride: u32,
    /// Where this lane's first 16 bytes go in shared memory: of its first row's half, and of its rest.
    half: u32,
    rest: u32,
    /// From a row to its half.
    half_offset: u32,
    /// From a row's half to its rest.
    rest_offset: u32,
}

impl Loader {
    /// Brings this warp's part of every tile of `tokens`, from the first to the end, of sequence `seq`.
    ///
    /// # Safety
    /// Converged; the other warps of the group that loads come here too, and the groups that multiply to
    /// [`super::group_softmax::GroupSoftmax::consume`] with the same tokens. The first is a multiple of 8; the block table
    /// and the cache have every token below the end.
    #[inline(always)]
    pub(super) unsafe fn run<G: Gpu>(
        gpu: G,
        cut: MlaTile,
        params: &DecodeMlaParams,
        seq: u32,
        tokens: (u32, u32),
    ) {
        // SAFETY: as `run`.
        let tiles = unsafe { Tiles::of_warp(gpu, params, seq, tokens) };
        let Tiles {
            part,
            window,
            cache,
            mut first,
            end,
        } = tiles;
        let step = GROUPS * ROWS;
        let stage = gpu.shared_base() + cut.group_stage(part.stage);
        let lane = in_panels(gpu.lane() / 8, gpu.lane() % 8);
        // Of an address that is part lane, part what all lanes have in common, and a cache policy, ptxas makes an
        // instruction that the H200 refuses. Of what comes from a lane, be it itself, it does not know the parts.
        // SAFETY: converged.
        let [half, rest] = unsafe {
            [part.half * cut.half_bytes(), cut.rest()]
                .map(|offset| gpu.shfl(stage + offset + lane, gpu.lane()))
        };
        let half_offset = part.half * cut.head_size_v;
        let mut loader = Self {
            part,
            window,
            group: window.own(cache),
            stride: cache.stride_slot(),
            half,
            rest,
            half_offset,
            rest_offset: 2 * cut.head_size_v - half_offset,
        };
        let mut tile = 0;
        while first < end {
            // SAFETY: the warp is converged; the window has the tile.
            let rows = unsafe { loader.rows(gpu, tile) };
            if tile > 0 {
                // SAFETY: the warp is converged; a group comes there when it is done with the half, if another tile
                // follows in the stage.
                unsafe { gpu.barrier_sync(part.empty(), Part::THREADS) };
            }
            // SAFETY: the half is free, and so is the rest if it belongs to it.
            unsafe {
                if end - first >= ROWS {
                    loader.copy(gpu, &rows, |_| true);
                } else {
                    loader.copy(gpu, &rows, |row| first + row < end);
                }
            }
            // No fence: it would wait for both goes. Those that multiply have one.
            gpu.cp_async_wait::<1>();
            // SAFETY: the group that computes the stage's scores waits there for each tile.
            unsafe { gpu.barrier_arrive(part.full(0), Part::THREADS) };
            gpu.cp_async_wait::<0>();
            // SAFETY: as above.
            unsafe { gpu.barrier_arrive(part.full(1), Part::THREADS) };
            first += step;
            tile += 1;
            // While others still multiply.
            if tile % WINDOW_TILES == 0 {
                // SAFETY: as `new`.
                unsafe { loader.window.advance(gpu) };
                loader.group = loader.window.own(cache);
            }
        }
    }

    /// Where this lane's 16 bytes are in the half of each of its rows of tile `tile`: `lane / 8` and every
    /// fourth one after it.
    ///
    /// # Safety
    /// Converged; the window has the tile.
    #[inline(always)]
    unsafe fn rows<G: Gpu>(&self, gpu: G, tile: u32) -> [u64; TIMES] {
        let lane = gpu.lane();
        let in_group = lane as u64 / 8 * self.stride as u64;
        let offset = in_group + (self.half_offset + lane % 8 * 16) as u64;
        let mut rows = [0; TIMES];
        unroll!([8] group in 0..8 {
            // SAFETY: converged; the group is one of the window's.
            rows[2 * group] = unsafe { group_at(gpu, self.group, tile, group as u32) } + offset;
            rows[2 * group + 1] = rows[2 * group] + LINES as u64 * self.stride as u64;
        });
        rows
    }

    /// Starts copying the part of the tile with these rows in two goes; rows that do not exist become zero.
    ///
    /// # Safety
    /// Converged; the memory is free; rows that are valid exist.
    #[inline(always)]
    unsafe fn copy<G: Gpu>(&self, gpu: G, rows: &[u64; TIMES], is_valid: impl Fn(u32) -> bool) {
        unroll!([4] panel in 0..4 {
            // SAFETY: a panel of the half, 128 bytes of each row.
            unsafe { self.copy_panel(gpu, rows, self.half + panel as u32 * PANEL_BYTES, panel as u32 * 128, &is_valid) };
            if panel == 1 {
                gpu.cp_async_commit();
            }
        });
        if self.part.has_rest() {
            // SAFETY: the rest is free, too, and has as many bytes.
            unsafe { self.copy_panel(gpu, rows, self.rest, self.rest_offset, &is_valid) };
        }
        gpu.cp_async_commit();
    }

    /// Starts copying 128 bytes of each row, which are `offset` bytes behind the half's beginning, to a panel, of which
    /// `panel` is this lane's part of its first row.
    ///
    /// # Safety
    /// As [`Loader::copy`].
    #[inline(always)]
    unsafe fn copy_panel<G: Gpu>(
        &self,
        gpu: G,
        rows: &[u64; TIMES],
        panel: u32,
        offset: u32,
        is_valid: impl Fn(u32) -> bool,
    ) {
        unroll!([16] time in 0..TIMES {
            let row = time as u32 * LINES;
            // In the swizzle a row's number, modulo 8, is mixed into the place in the line.
            let target = (panel ^ (row % 8 * 16)) + row * PANEL_ROW_BYTES;
            let is_valid = is_valid(row + gpu.lane() / 8);
            // SAFETY: this lane's part of the panel; the row is only read if it exists.
            unsafe {
                gpu.cp_async_b128(target, rows[time] + offset as u64, is_valid, Line::ONCE);
            }
        });
    }
}

/// The tiles that a warp which loads brings its part of: every second one of some tokens.
pub(super) struct Tiles {
    pub(super) part: Part,
    /// Of the block table: where the groups of tokens of the next tiles are.
    pub(super) window: BlockWindow,
    pub(super) cache: CacheHead,
    /// The first tile's first token, and where tokens end.
    pub(super) first: u32,
    pub(super) end: u32,
}

impl Tiles {
    /// Those of this warp.
    ///
    /// # Safety
    /// Converged; the block table has every token below the end.
    #[inline(always)]
    pub(super) unsafe fn of_warp<G: Gpu>(
        gpu: G,
        params: &DecodeMlaParams,
        seq: u32,
        tokens: (u32, u32),
    ) -> Self {
        // SAFETY: converged.
        let (part, first, end) = unsafe { own_part(gpu, tokens) };
        // SAFETY: the row has every block before `end`: this function's contract.
        let window = unsafe {
            BlockWindow::new(
                gpu,
                params.block_table + seq as u64 * params.stride_block_table as u64,
                params.block_size,
                first,
                GROUPS * ROWS,
                ROWS / GROUP,
                end,
            )
        };
        let cache = CacheHead::new(
            params.cache,
            0,
            params.stride_cache_block,
            params.stride_cache_slot,
            0,
        );
        Self {
            part,
            window,
            cache,
            first,
            end,
        }
    }
}

/// What this warp brings a part of: which, of the tiles from where on, and where tokens end.
///
/// # Safety
/// Converged.
#[inline(always)]
pub(super) unsafe fn own_part<G: Gpu>(gpu: G, (start, end): (u32, u32)) -> (Part, u32, u32) {
    // A warp that might part would have to be gathered before each exchange between its lanes.
    // SAFETY: converged.
    let [warp, start, end] = unsafe { [gpu.warp(), start, end].map(|value| gpu.uniform(value)) };
    let part = Part {
        stage: warp / 2,
        half: warp % 2,
    };
    (part, start + part.stage * ROWS, end)
}

/// Where group `group` of a warp's tile number `tile` begins, if `own` is where this lane's group of the window does.
///
/// # Safety
/// Converged; the window has the tile.
#[inline(always)]
pub(super) unsafe fn group_at<G: Gpu>(gpu: G, own: u64, tile: u32, group: u32) -> u64 {
    let from = tile % WINDOW_TILES * (ROWS / GROUP) + group;
    // SAFETY: converged: this function's contract.
    unsafe {
        let (low, high) = (
            gpu.shfl(own as u32, from),
            gpu.shfl((own >> 32) as u32, from),
        );
        low as u64 | (high as u64) << 32
    }
}

/// Tiles of a warp that its block window covers.
pub(super) const WINDOW_TILES: u32 = crate::gpu::WARP / (ROWS / GROUP);
