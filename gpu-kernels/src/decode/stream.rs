//! Global to shared memory: a warp's own ring of KV tiles, filled ahead by asynchronous copies.

use core::marker::PhantomData;

use crate::attention::paged_kv::{BlockWindow, CacheHead, TokenScales};
use crate::attention::tile::{TILE_GROUP, TILE_KV, row_bytes, swizzle};
use crate::decode::DecodeTile;
use crate::dtype::CacheFormat;
use crate::gpu::unroll::unroll;
use crate::gpu::{Gpu, Line, WARP};

/// Groups of tokens in a tile.
const TILE_GROUPS: u32 = TILE_KV / TILE_GROUP;
/// Tiles that a block window covers.
const WINDOW_TILES: u32 = WARP / TILE_GROUPS;

/// A tile in shared memory, ready to be read by the warp.
#[derive(Clone, Copy, Debug)]
pub struct KvTile {
    /// `[TILE_KV, head_size]`, swizzled.
    pub keys: u32,
    /// `[TILE_KV, head_size_v]`, swizzled.
    pub values: u32,
    /// Scales of the keys, then of the values: `[2, TILE_KV]` f32, if the format has them.
    pub scales: u32,
    /// Tokens of the tile that exist; the rest is zero.
    pub len: u32,
    /// Tokens of the tile, its first, that the query does not see: zero too.
    pub skipped: u32,
    /// Position of the tile's first token.
    pub token: u32,
}

/// The tiles of one warp, in order: tokens `first_token + i * tile_step`, 16 each, up to `end`. With `WINDOWED`, tokens
/// before `begin` are not read.
#[derive(Clone, Copy, Debug)]
pub struct KvStream<C, const K_STEPS: usize, const V_STEPS: usize, const WINDOWED: bool> {
    keys: CacheHead,
    values: CacheHead,
    key_scales: TokenScales,
    value_scales: TokenScales,
    window: BlockWindow,
    begin: u32,
    end: u32,
    tile_step: u32,
    /// First token of the next tile to load.
    load_token: u32,
    /// Its number within the block window.
    load_tile: u32,
    /// First token of the next tile to hand out.
    token: u32,
    ring: u32,
    load_stage: u32,
    stage: u32,
    format: PhantomData<C>,
}

impl<C: CacheFormat, const K_STEPS: usize, const V_STEPS: usize, const WINDOWED: bool>
    KvStream<C, K_STEPS, V_STEPS, WINDOWED>
{
    const SHAPE: DecodeTile = DecodeTile::of_kernel::<C, K_STEPS, V_STEPS>();
    /// Bytes of a stage before its scales.
    const SCALES: u32 = TILE_KV * (row_bytes::<C, K_STEPS>() + row_bytes::<C, V_STEPS>());

    /// Starts streaming: all but one stage of the ring at `ring` are on their way when this returns.
    ///
    /// # Safety
    /// Converged. `ring` is this warp's own, with room for `DecodeTile::stages` tiles, or for as many as the warp has
    /// if those are fewer. `first_token` and `tile_step` are multiples of 8. The block-table row at `block_row` and the
    /// caches, with their scales if tokens have any, hold every token from `first_token`, or `begin`, up to `end`.
    #[inline(always)]
    #[allow(
        clippy::too_many_arguments,
        reason = "each is one fact about the stream"
    )]
    pub unsafe fn start<G: Gpu>(
        gpu: G,
        keys: CacheHead,
        values: CacheHead,
        [key_scales, value_scales]: [TokenScales; 2],
        block_row: u64,
        block_size: u32,
        first_token: u32,
        tile_step: u32,
        (begin, end): (u32, u32),
        ring: u32,
    ) -> Self {
        // SAFETY: the row names every token below `end`: this function's contract.
        let window = unsafe {
            BlockWindow::new(
                gpu,
                block_row,
                block_size,
                first_token,
                tile_step,
                TILE_GROUPS,
                end,
            )
        };
        let mut stream = Self {
            keys,
            values,
            key_scales,
            value_scales,
            window,
            begin,
            end,
            tile_step,
            load_token: first_token,
            load_tile: 0,
            token: first_token,
            ring,
            load_stage: 0,
            stage: 0,
            format: PhantomData,
        };
        for _ in 1..Self::SHAPE.stages {
            // SAFETY: converged: this function's contract; the stage is empty, as fewer tiles than stages were loaded.
            unsafe { stream.load(gpu) };
        }
        stream
    }

    /// Waits for the next tile and starts loading the one that replaces its predecessor. `None` after the
    /// last.
    ///
    /// # Safety
    /// Converged; the warp is done with the tile handed out before.
    #[inline(always)]
    pub unsafe fn next<G: Gpu>(&mut self, gpu: G) -> Option<KvTile> {
        if self.token >= self.end {
            return None;
        }
        const { assert!(Self::SHAPE.stages >= 2) };
        // All but the youngest `stages - 2` groups: those are the tiles after this one.
        match Self::SHAPE.stages {
            2 => gpu.cp_async_wait::<0>(),
            3 => gpu.cp_async_wait::<1>(),
            4 => gpu.cp_async_wait::<2>(),
            5 => gpu.cp_async_wait::<3>(),
            _ => gpu.cp_async_wait::<4>(),
        }
        // SAFETY: converged: this function's contract. It shows this tile to all lanes, and means that all are done
        // with the last one.
        unsafe { gpu.sync_warp() };
        // SAFETY: converged: this function's contract; so the stage of the last tile is free.
        unsafe { self.load(gpu) };
        let keys = self.ring + self.stage * Self::SHAPE.tile_bytes;
        let tile = KvTile {
            keys,
            values: keys + TILE_KV * row_bytes::<C, K_STEPS>(),
            scales: keys + Self::SCALES,
            len: self.end - self.token,
            skipped: self.unseen(self.token),
            token: self.token,
        };
        self.token += self.tile_step;
        self.stage = if self.stage + 1 == Self::SHAPE.stages {
            0
        } else {
            self.stage + 1
        };
        Some(tile)
    }

    /// Tokens before the first that the query sees, of those from `token` on.
    #[inline(always)]
    fn unseen(&self, token: u32) -> u32 {
        if WINDOWED {
            self.begin.saturating_sub(token)
        } else {
            0
        }
    }

    /// Starts copying the next tile into the next stage. Past the end it only closes an empty group, so
    /// that groups and tiles stay in step.
    ///
    /// # Safety
    /// Converged; the warp is done with what was in the next stage. The rest as [`KvStream::start`].
    #[inline(always)]
    unsafe fn load<G: Gpu>(&mut self, gpu: G) {
        if self.load_token < self.end {
            if self.load_tile == WINDOW_TILES {
                self.load_tile = 0;
                // SAFETY: the row names every token below `end`: the contract of `start`.
                unsafe { self.window.advance(gpu) };
            }
            let stage = self.ring + self.load_stage * Self::SHAPE.tile_bytes;
            let values = stage + TILE_KV * row_bytes::<C, K_STEPS>();
            let rows = (self.unseen(self.load_token), self.end - self.load_token);
            unroll!([2] group in 0..2 {
                let group = group as u32;
                // SAFETY: converged: this function's contract; `load_tile` is below `WINDOW_TILES`, so the group is one
                // of the window's.
                let (block, slot) = unsafe {
                    self.window
                        .locate(gpu, self.load_tile * TILE_GROUPS + group)
                };
                // SAFETY: a group lies in one block, which the caches have, and in the free stage: the contract of
                // `start`, and this one.
                unsafe {
                    copy_group::<G, C, K_STEPS>(
                        gpu,
                        &self.keys,
                        block,
                        slot,
                        stage,
                        group,
                        rows,
                    );
                    copy_group::<G, C, V_STEPS>(
                        gpu,
                        &self.values,
                        block,
                        slot,
                        values,
                        group,
                        rows,
                    );
                }
            });
            if C::TOKEN_SCALES {
                // Half the lanes copy a token's key scale, the other half its value scale.
                let token = gpu.lane() % TILE_KV;
                let group = self.load_tile * TILE_GROUPS + token / 8;
                // SAFETY: converged: this function's contract; the group is one of the window's.
                let (block, slot) = unsafe { self.window.locate(gpu, group) };
                // Two addresses to choose from, not two references: rust-cuda's LLVM would keep all of `self` in
                // local memory.
                let [key, value] = [&self.key_scales, &self.value_scales]
                    .map(|scales| scales.slot(block, slot + token % 8));
                let source = if gpu.lane() < TILE_KV { key } else { value };
                // SAFETY: a slot's scale, which is there as the slot is, read only if the token is seen: the contract
                // of `start`; the target is this lane's word of the free stage.
                unsafe {
                    gpu.cp_async_b32(
                        stage + Self::SCALES + gpu.lane() * 4,
                        source,
                        token >= rows.0 && token < rows.1,
                    )
                };
            }
            self.load_token += self.tile_step;
            self.load_tile += 1;
            self.load_stage = if self.load_stage + 1 == Self::SHAPE.stages {
                0
            } else {
                self.load_stage + 1
            };
        }
        gpu.cp_async_commit();
    }
}

/// Copies 8 rows of `STEPS * 16` values, 16 bytes a lane; rows before `begin` and from `end` on become zero.
///
/// # Safety
/// Rows of a group of the tile that are not to become zero are slots of `block`, from `slot` on, which the cache has;
/// `tile` is a stage of this warp's that nobody uses.
#[inline(always)]
unsafe fn copy_group<G: Gpu, C: CacheFormat, const STEPS: usize>(
    gpu: G,
    head: &CacheHead,
    block: u32,
    slot: u32,
    tile: u32,
    group: u32,
    (begin, end): (u32, u32),
) {
    let bytes = row_bytes::<C, STEPS>();
    let chunks = bytes / 16;
    // The rest of the line is the next head's row, which another thread block reads at about this time.
    let line = Line {
        is_whole: bytes < 128 && 128 % bytes == 0,
        stays: false,
    };
    let source = head.slot(block, slot);
    unroll!([8] part in 0..8 {
        let item = part as u32 * WARP + gpu.lane();
        // Both are the same for all lanes but in the last part of rows like 6 chunks.
        if part as u32 * WARP < 8 * chunks && item < 8 * chunks {
            let (row, chunk) = (item / chunks, item % chunks);
            let tile_row = group * 8 + row;
            let target = tile + tile_row * bytes + swizzle(tile_row, chunk, chunks) * 16;
            let offset = row * head.stride_slot() + chunk * 16;
            // SAFETY: a row that is read is a slot of the block, 16-byte aligned (the host's `PagedCache::check`); the
            // target is this lane's chunk of a free stage: this function's contract.
            unsafe { gpu.cp_async_b128(target, source + offset as u64, tile_row >= begin && tile_row < end, line) };
        }
    });
}
