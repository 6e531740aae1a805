//! Global to shared memory: the thread block's ring of latent tiles, filled ahead by asynchronous copies.

use core::marker::PhantomData;

use super::{Cut, RowChunks};
use crate::gpu::{Gpu, WARP};
use crate::kv::{BlockWindow, CacheFormat, CacheHead};
use crate::tile::row_bytes;
use crate::unroll::unroll;

/// The tiles of a split, in order. Each warp copies its own groups of 8 tokens of every tile.
#[derive(Clone, Copy, Debug)]
pub struct LatentStream<C, const K_STEPS: usize, const WARP_GROUPS: usize> {
    cache: CacheHead,
    window: BlockWindow,
    end: u32,
    tile_len: u32,
    tile_bytes: u32,
    /// Rows from here on are loaded by [`LatentStream::load_late`].
    late_row: u32,
    /// First token of the next tile to load.
    load_token: u32,
    /// Its number within the block window.
    load_tile: u32,
    ring: u32,
    stages: u32,
    load_stage: u32,
    /// Where this lane's row of the warp's first group goes in that stage. Counted along instead of computed from
    /// the stage: of an address that is part lane, part stage, and a cache policy, ptxas makes an instruction
    /// that the H200 refuses.
    load_row: u32,
    stage: u32,
    format: PhantomData<C>,
}

impl<C: CacheFormat, const K_STEPS: usize, const WARP_GROUPS: usize>
    LatentStream<C, K_STEPS, WARP_GROUPS>
{
    /// Tiles that a block window covers.
    const WINDOW_TILES: u32 = WARP / WARP_GROUPS as u32;

    /// Starts streaming tokens `first_token..end`: all but one of the `stages` tiles of the ring are on their way
    /// when this returns.
    ///
    /// # Safety
    /// Converged, by every warp. The ring holds `stages` tiles. The block-table row at `block_row` and the cache
    /// hold every token below `end`.
    #[inline(always)]
    #[allow(
        clippy::too_many_arguments,
        reason = "each is one fact about the stream"
    )]
    pub unsafe fn start<G: Gpu>(
        gpu: G,
        cache: CacheHead,
        block_row: u64,
        block_size: u32,
        first_token: u32,
        end: u32,
        cut: Cut,
        ring: u32,
        stages: u32,
    ) -> Self {
        let tile_len = cut.tile_len;
        let first_of_warp = first_token + gpu.warp() * WARP_GROUPS as u32 * 8;
        // SAFETY: the row covers `end`, as the caller promises.
        let window = unsafe {
            BlockWindow::new(
                gpu,
                block_row,
                block_size,
                first_of_warp,
                tile_len,
                WARP_GROUPS as u32,
                end,
            )
        };
        let mut stream = Self {
            cache,
            window,
            end,
            tile_len,
            tile_bytes: cut.tile_bytes,
            late_row: cut.late_row(),
            load_token: first_token,
            load_tile: 0,
            ring,
            stages,
            load_stage: 0,
            load_row: ring + Self::row(gpu) * row_bytes::<C, K_STEPS>(),
            stage: 0,
            format: PhantomData,
        };
        for _ in 1..stages {
            // SAFETY: as the caller promises; the stage is empty.
            unsafe { stream.load(gpu) };
        }
        stream
    }

    /// Waits for the next tile, starts loading the one that replaces its predecessor, but for its late rows, and
    /// returns the tile's address and that of the late rows' memory, which is free until they are loaded.
    ///
    /// # Safety
    /// Every thread of the thread block comes here, done with the tile handed out before; there is a next one.
    #[inline(always)]
    pub unsafe fn next<G: Gpu>(&mut self, gpu: G) -> (u32, u32) {
        // All but the youngest `stages - 2` groups: those are the tiles after this one.
        match self.stages {
            2 => gpu.cp_async_wait::<0>(),
            3 => gpu.cp_async_wait::<1>(),
            4 => gpu.cp_async_wait::<2>(),
            _ => gpu.cp_async_wait::<3>(),
        }
        // SAFETY: all come here. It shows this tile to all, and means that all are done with the last one.
        unsafe { gpu.sync_cta() };
        let scratch = self.ring
            + self.load_stage * self.tile_bytes
            + self.late_row * row_bytes::<C, K_STEPS>();
        if !self.is_late(gpu) {
            // SAFETY: so the stage of the last tile is free.
            unsafe { self.load(gpu) };
        }
        let tile = self.ring + self.stage * self.tile_bytes;
        self.stage = self.after(self.stage);
        (tile, scratch)
    }

    /// Starts loading the late rows.
    ///
    /// # Safety
    /// Converged; once after each [`LatentStream::next`], when nobody uses their memory any more.
    #[inline(always)]
    pub unsafe fn load_late<G: Gpu>(&mut self, gpu: G) {
        if self.is_late(gpu) {
            // SAFETY: as the caller promises.
            unsafe { self.load(gpu) };
        }
    }

    /// Whether this warp's rows are late ones.
    #[inline(always)]
    fn is_late<G: Gpu>(&self, gpu: G) -> bool {
        self.late_row < self.tile_len && gpu.warp() * WARP_GROUPS as u32 * 8 >= self.late_row
    }

    #[inline(always)]
    fn after(&self, stage: u32) -> u32 {
        if stage + 1 == self.stages {
            0
        } else {
            stage + 1
        }
    }

    /// Starts copying the next tile into the next stage. Past the end it only closes an empty group, so that
    /// groups and tiles stay in step.
    #[inline(always)]
    unsafe fn load<G: Gpu>(&mut self, gpu: G) {
        if self.load_token < self.end {
            if self.load_tile == Self::WINDOW_TILES {
                self.load_tile = 0;
                // SAFETY: the row covers `end`.
                unsafe { self.window.advance(gpu) };
            }
            unroll!([4] group in 0..WARP_GROUPS {
                let in_window = self.load_tile * WARP_GROUPS as u32 + group as u32;
                // SAFETY: converged; the group is one of the window's.
                let (block, slot) = unsafe { self.window.locate(gpu, in_window) };
                // SAFETY: the group lies in one block.
                unsafe { self.copy_group(gpu, group as u32 * 8, block, slot) };
            });
            self.load_token += self.tile_len;
            self.load_tile += 1;
            self.load_stage = self.after(self.load_stage);
            self.load_row += self.tile_bytes;
            if self.load_stage == 0 {
                self.load_row -= self.stages * self.tile_bytes;
            }
        }
        gpu.cp_async_commit();
    }

    /// Lanes to a row: a line of 128 bytes at a time, if rows have whole lines.
    const ROW_LANES: u32 = if row_bytes::<C, K_STEPS>().is_multiple_of(128) {
        8
    } else {
        4
    };
    /// Rows that a warp copies at a time.
    const ROWS: u32 = WARP / Self::ROW_LANES;

    /// The first row that this lane copies of the warp's first group.
    #[inline(always)]
    fn row<G: Gpu>(gpu: G) -> u32 {
        gpu.warp() * WARP_GROUPS as u32 * 8 + gpu.lane() / Self::ROW_LANES
    }

    /// Copies 16 bytes a lane of each line of the 8 rows of a group; zero where there is no token. The group begins
    /// `skipped` rows after the warp's first. The swizzle of rows 8 apart is the same.
    #[inline(always)]
    unsafe fn copy_group<G: Gpu>(&self, gpu: G, skipped: u32, block: u32, slot: u32) {
        let bytes = row_bytes::<C, K_STEPS>();
        let chunks = bytes / 16;
        // There is no register to keep an address in from tile to tile.
        let lane = gpu.opaque(gpu.lane());
        let chunk = lane % Self::ROW_LANES;
        let stride = self.cache.stride_slot_bytes();
        let source =
            self.cache.slot(block, slot) + (lane / Self::ROW_LANES * stride + chunk * 16) as u64;
        unroll!([2] part in 0..2 {
            let part_rows = part as u32 * Self::ROWS;
            if part_rows < 8 {
                let row = Self::row(gpu) + part_rows;
                let exists = self.load_token + skipped + row < self.end;
                let targets = RowChunks::new(
                    self.load_row + (skipped + part_rows) * bytes,
                    row,
                    chunk,
                    Self::ROW_LANES,
                    chunks,
                );
                let source = source + (part_rows * stride) as u64;
                unroll!([36] line in 0..(K_STEPS.div_ceil(2)) {
                    let first = line as u32 * Self::ROW_LANES;
                    // Both are the same for all lanes but in the last part of a row of 18 chunks.
                    if first < chunks && first + chunk < chunks {
                        // SAFETY: a chunk of a slot of the block, read only if it holds a token; a chunk of the
                        // free stage.
                        unsafe {
                            gpu.cp_async_b128(targets.at(line), source + first as u64 * 16, exists, false)
                        };
                    }
                });
            }
        });
    }
}
