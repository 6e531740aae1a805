//! Global to shared memory: the thread block's ring of latent tiles, filled ahead by asynchronous copies.

use core::marker::PhantomData;

use crate::attention::paged_kv::{BlockWindow, CacheHead};
use crate::attention::tile::row_bytes;
use crate::dtype::CacheFormat;
use crate::gpu::unroll::unroll;
use crate::gpu::{Gpu, Line, WARP};
use crate::mla::{MlaTile, RowChunks};

/// The tiles of a split, in order. Each warp copies its own groups of 8 tokens of every tile.
#[derive(Clone, Copy, Debug)]
pub struct LatentStream<C, const K_STEPS: usize, const WARP_GROUPS: usize> {
    cache: CacheHead,
    window: BlockWindow,
    end: u32,
    tile_len: u32,
    tile_bytes: u32,
    /// Rows from here on are loaded by [`LatentStream::end_rows`].
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
        cut: MlaTile,
        ring: u32,
        stages: u32,
    ) -> Self {
        let tile_len = cut.tile_len;
        let first_of_warp = first_token + gpu.warp() * WARP_GROUPS as u32 * 8;
        // SAFETY: the row has every block before `end`: the contract of `start`.
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
            // SAFETY: converged; the ring has `stages` tiles: the contract of `start`; the stage is empty.
            unsafe { stream.load(gpu) };
        }
        stream
    }

    /// Waits for the next tile, and returns its address and that of the late rows of the one that replaces its
    /// predecessor: their memory is free until they are loaded.
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
        let tile = self.ring + self.stage * self.tile_bytes;
        self.stage = self.after(self.stage);
        (tile, scratch)
    }

    /// Whether the caller copies the next tile between other work. Rows of bytes leave it time for that: they take
    /// longer to compute with than to read. Those of 16 bits have to be asked for as early as possible.
    const SPREAD: bool = C::BYTES == 1;

    /// After [`LatentStream::next`]: what the caller copies between other work for the tile that replaces the last
    /// one, or nothing if that is copied here, but for its late rows.
    ///
    /// # Safety
    /// Converged.
    #[inline(always)]
    pub unsafe fn next_rows<G: Gpu>(
        &mut self,
        gpu: G,
    ) -> Option<NextRows<C, K_STEPS, WARP_GROUPS>> {
        if Self::SPREAD {
            // SAFETY: converged: the contract of `next_rows`.
            return Some(unsafe { self.take_rows(gpu, gpu.black_box(gpu.lane())) });
        }
        if !self.is_late(gpu) {
            // SAFETY: the stage of the last tile is free.
            unsafe { self.load(gpu) };
        }
        None
    }

    /// Closes the group of the next rows, or starts loading them if they are late ones.
    ///
    /// # Safety
    /// Converged; once after each [`LatentStream::next_rows`], when all of those were copied, and nobody uses the
    /// memory of late rows any more.
    #[inline(always)]
    pub unsafe fn end_rows<G: Gpu>(&mut self, gpu: G) {
        if Self::SPREAD {
            gpu.cp_async_commit();
        } else if self.is_late(gpu) {
            // SAFETY: converged, and nobody uses the memory of late rows: the contract of `end_rows`.
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
    ///
    /// # Safety
    /// Converged; the place of this warp's rows in that stage is free.
    #[inline(always)]
    unsafe fn load<G: Gpu>(&mut self, gpu: G) {
        if self.load_token < self.end {
            let lane = gpu.black_box(gpu.lane());
            // SAFETY: converged; the stage is free: the contract of `load`.
            unsafe { self.take_rows(gpu, lane).copy_part(gpu, lane, 0, 1) };
        }
        gpu.cp_async_commit();
    }

    /// The rows of the next tile that this warp copies, and goes on to the next stage.
    ///
    /// # Safety
    /// Converged.
    #[inline(always)]
    unsafe fn take_rows<G: Gpu>(&mut self, gpu: G, lane: u32) -> NextRows<C, K_STEPS, WARP_GROUPS> {
        let mut rows = NextRows {
            sources: [0; WARP_GROUPS],
            stride: self.cache.stride_slot(),
            target: self.load_row,
            left: self.end.saturating_sub(self.load_token + Self::row(gpu)),
            format: PhantomData,
        };
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
                let offset = lane / Self::ROW_LANES * rows.stride + lane % Self::ROW_LANES * 16;
                rows.sources[group] = self.cache.slot(block, slot) + offset as u64;
            });
        }
        self.load_token += self.tile_len;
        self.load_tile += 1;
        self.load_stage = self.after(self.load_stage);
        self.load_row += self.tile_bytes;
        if self.load_stage == 0 {
            self.load_row -= self.stages * self.tile_bytes;
        }
        rows
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
}

/// What a lane copies of the next tile: 16 bytes of each line of a row or two of every group. A few copies at a time,
/// between other work: many in a row fill the queue to the memory, and all warps would stand before it at once.
#[derive(Clone, Copy, Debug)]
pub struct NextRows<C, const K_STEPS: usize, const WARP_GROUPS: usize> {
    /// Of this lane's first row of each group.
    sources: [u64; WARP_GROUPS],
    stride: u32,
    /// Where its first row begins.
    target: u32,
    /// Rows from there on that exist.
    left: u32,
    format: PhantomData<C>,
}

impl<C: CacheFormat, const K_STEPS: usize, const WARP_GROUPS: usize>
    NextRows<C, K_STEPS, WARP_GROUPS>
{
    const ROW_LANES: u32 = LatentStream::<C, K_STEPS, WARP_GROUPS>::ROW_LANES;
    const ROWS: u32 = LatentStream::<C, K_STEPS, WARP_GROUPS>::ROWS;
    const CHUNKS: u32 = row_bytes::<C, K_STEPS>() / 16;
    /// Copies of a row, the last of which may be for a part of the lanes.
    const LINES: usize = Self::CHUNKS.div_ceil(Self::ROW_LANES) as usize;
    /// Rows of a group that a lane copies.
    const PARTS: usize = (8 / Self::ROWS) as usize;
    /// Copies of all.
    const COPIES: usize = WARP_GROUPS * Self::PARTS * Self::LINES;

    /// Starts the copies for step `step` of `steps`.
    ///
    /// # Safety
    /// The stage is free; each step is called once before [`LatentStream::end_rows`].
    #[inline(always)]
    pub unsafe fn copy_step<G: Gpu>(self, gpu: G, step: usize, steps: usize) {
        // There is no register to keep the lane's place in from step to step.
        // SAFETY: the stage is free: the contract of `copy_step`.
        unsafe { self.copy_part(gpu, gpu.black_box(gpu.lane()), step, steps) };
    }

    /// The same by lane `lane`, which is this one.
    ///
    /// # Safety
    /// The stage is free.
    #[inline(always)]
    unsafe fn copy_part<G: Gpu>(self, gpu: G, lane: u32, step: usize, steps: usize) {
        unroll!([36] copy in 0..(Self::COPIES) {
            if step * Self::COPIES / steps <= copy && copy < (step + 1) * Self::COPIES / steps {
                // SAFETY: the stage is free: the contract of `copy_part`.
                unsafe { self.copy(gpu, lane, copy) };
            }
        });
    }

    /// Copies 16 bytes, zero where there is no token. The swizzle of rows 8 apart is the same.
    ///
    /// # Safety
    /// The stage is free.
    #[inline(always)]
    unsafe fn copy<G: Gpu>(self, gpu: G, lane: u32, copy: usize) {
        let (line, part) = (copy % Self::LINES, copy / Self::LINES % Self::PARTS);
        let group = copy / Self::LINES / Self::PARTS;
        let chunk = lane % Self::ROW_LANES;
        let (first, part_rows) = (line as u32 * Self::ROW_LANES, part as u32 * Self::ROWS);
        let skipped = group as u32 * 8 + part_rows;
        let targets = RowChunks::new(
            self.target + skipped * row_bytes::<C, K_STEPS>(),
            lane / Self::ROW_LANES + part_rows,
            chunk,
            Self::ROW_LANES,
            Self::CHUNKS,
        );
        let source = self.sources[group] + (part_rows * self.stride) as u64 + first as u64 * 16;
        // Both are the same for all lanes but in the last part of a row of 18 chunks.
        if first < Self::CHUNKS && first + chunk < Self::CHUNKS {
            // SAFETY: a chunk of a slot of the block, read only if it holds a token; a chunk of the free stage.
            unsafe { gpu.cp_async_b128(targets.at(line), source, skipped < self.left, Line::ONCE) };
        }
    }
}
