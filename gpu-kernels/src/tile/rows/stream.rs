//! Global to shared memory: KV tiles that all warps of a thread block fill together and read together.
//!
//! A value of bytes is copied into the room that it takes as f16, to be widened there.
//!
//! The loop around it has hardly a register to spare. So whatever can be computed from the parameters and the
//! lane is computed where it is needed, addresses wait in shared memory, and little is kept: the blocks of the
//! next tile, a position.

use core::marker::PhantomData;

use super::widen::first_place;
use super::{Products, RowShape, STAGES, WARPS, wide_bytes};
use crate::gpu::{Gpu, Line, PANEL_ROW_BYTES, WARP, in_panels};
use crate::kv::{CacheFormat, TokenScales};
use crate::params::PrefillParams;
use crate::tile::{row_bytes, swizzle};
use crate::unroll::unroll;

/// A tile in shared memory, ready to be read by every warp.
#[derive(Clone, Copy, Debug)]
pub struct SharedTile {
    /// Position of its first token.
    pub token: u32,
    /// `[tile_kv, head_size]`, swizzled.
    pub keys: u32,
    /// `[tile_kv, head_size_v]`, swizzled.
    pub values: u32,
    /// Scales of the keys, then of the values: `[2, tile_kv]` f32, if the format has them.
    pub scales: u32,
}

/// The tiles of a thread block, in order, from one that begins at a multiple of `tile_kv`.
#[derive(Clone, Copy, Debug)]
pub struct SharedStream<'p, C, const K_STEPS: usize, const V_STEPS: usize, const UNITS: usize> {
    params: &'p PrefillParams,
    /// Blocks of this warp's groups of the next tile to load.
    blocks: [u32; 2],
    /// First token of the next tile to load, one tile ahead of the one that is handed out.
    pub(super) load_token: u32,
    end: u32,
    format: PhantomData<C>,
}

/// Where a stream's tokens are.
#[derive(Clone, Copy, Debug)]
struct Sources {
    /// Addresses of the KV head in slot 0 of block 0.
    keys: u64,
    values: u64,
    /// The sequence's row of the block table.
    block_row: u64,
    /// Bytes from a token to the next in its block.
    key_stride: u32,
    value_stride: u32,
    kv_head: u32,
}

impl<'p, C: CacheFormat, const K_STEPS: usize, const V_STEPS: usize, const UNITS: usize>
    SharedStream<'p, C, K_STEPS, V_STEPS, UNITS>
{
    pub(super) const SHAPE: RowShape =
        RowShape::of_kernel::<C, K_STEPS, V_STEPS>(Products::of_units(UNITS));
    const GROUP: bool = UNITS > 1;
    /// Groups of 8 tokens that a warp copies of each tile: one or two.
    pub(super) const GROUPS: usize = (Self::SHAPE.tile_kv / 8 / WARPS) as usize;
    /// Bytes of a stage before its values, and before its scales.
    pub(super) const VALUES: u32 = Self::SHAPE.tile_kv
        * if Self::GROUP {
            wide_bytes::<K_STEPS>()
        } else {
            row_bytes::<C, K_STEPS>()
        };
    const SCALES: u32 = Self::VALUES + Self::SHAPE.tile_kv * wide_bytes::<V_STEPS>();

    /// Starts streaming tokens `begin .. end` of sequence `seq` from the tile at `first_token` on, which `begin`
    /// lies in or before: the first tile is on its way when this returns.
    ///
    /// # Safety
    /// Every thread of the thread block comes here, and its shared memory is that of [`RowShape`]. The block table
    /// and the caches hold every token of the sequence from `begin` up to `end`; `first_token` is a multiple of the
    /// tile.
    #[inline(always)]
    pub unsafe fn start<G: Gpu>(
        gpu: G,
        params: &'p PrefillParams,
        seq: u32,
        kv_head: u32,
        first_token: u32,
        (begin, end): (u32, u32),
    ) -> Self {
        let sources = Sources {
            keys: params.key_cache + kv_head as u64 * params.stride_key_head_bytes as u64,
            values: params.value_cache + kv_head as u64 * params.stride_value_head_bytes as u64,
            block_row: params.block_table + 4 * (seq as u64 * params.stride_block_table as u64),
            key_stride: params.stride_key_slot_bytes as u32,
            value_stride: params.stride_value_slot_bytes as u32,
            kv_head,
        };
        let mut stream = Self {
            params,
            blocks: [0; 2],
            load_token: first_token,
            end,
            format: PhantomData,
        };
        // SAFETY: nobody reads them before the first tile's barrier; the row covers `end`; the ring is empty.
        unsafe {
            sources.store(gpu, gpu.shared_base() + Self::SHAPE.sources());
            stream.look_up(gpu, sources, begin);
            stream.load(gpu, sources, begin);
        }
        stream
    }

    /// Waits for the next tile and starts loading the one after it. `None` after the last.
    ///
    /// # Safety
    /// Every thread of the thread block calls it, done with the tile handed out before, and has widened the next.
    #[inline(always)]
    pub unsafe fn next<G: Gpu>(&mut self, gpu: G) -> Option<SharedTile> {
        let token = self.load_token - Self::SHAPE.tile_kv;
        if token >= self.end {
            return None;
        }
        if C::BYTES == 2 || Self::GROUP {
            gpu.cp_async_wait::<0>();
        }
        if Self::GROUP {
            // SAFETY: this warp's part of the tile, which has arrived.
            unsafe { self.widen_panels(gpu) };
            gpu.fence_warpgroup();
        }
        // SAFETY: all come here. It shows this tile to all warps, and means that all are done with the last.
        unsafe { gpu.sync_cta() };
        // SAFETY: so the other stage is free, and the sources are there.
        unsafe {
            let sources = Sources::load(
                gpu,
                gpu.shared_base() + Self::SHAPE.sources(),
                C::TOKEN_SCALES,
            );
            self.load(gpu, sources, 0);
        }
        let stage = Self::stage(gpu, token);
        Some(SharedTile {
            token,
            keys: stage,
            values: stage + Self::VALUES,
            scales: stage + Self::SCALES,
        })
    }

    /// Where the tile that begins at `token` lies: tiles take turns.
    #[inline(always)]
    pub(super) fn stage<G: Gpu>(gpu: G, token: u32) -> u32 {
        const { assert!(STAGES == 2) };
        let odd = token / Self::SHAPE.tile_kv % STAGES;
        gpu.shared_base() + Self::SHAPE.query_bytes + odd * Self::SHAPE.tile_bytes
    }

    /// First token of this warp's group `i` of the next tile.
    #[inline(always)]
    fn group_token(&self, warp: u32, i: usize) -> u32 {
        self.load_token + (warp * Self::GROUPS as u32 + i as u32) * 8
    }

    /// Finds the blocks of this warp's groups of the next tile, of which tokens before `begin` do not exist.
    #[inline(always)]
    unsafe fn look_up<G: Gpu>(&mut self, gpu: G, sources: Sources, begin: u32) {
        let warp = gpu.opaque(gpu.thread_idx()) / WARP;
        unroll!([2] i in 0..2 {
            if i < Self::GROUPS {
                let token = self.group_token(warp, i);
                if token < self.end && token + 8 > begin {
                    let block_idx = self.params.by_block_size.divide(token);
                    // SAFETY: the block holds a token of the range, so the row has an entry for it.
                    self.blocks[i] =
                        unsafe { gpu.ld_global_b32(sources.block_row + 4 * block_idx as u64) };
                }
            }
        });
    }

    /// Starts copying this warp's part of the next tile, of which tokens before `begin` do not exist, and looks
    /// up the one after it.
    #[inline(always)]
    unsafe fn load<G: Gpu>(&mut self, gpu: G, sources: Sources, begin: u32) {
        // What is widened whether it is needed or not has to be there.
        if (C::BYTES == 1 && !Self::GROUP) || self.load_token < self.end {
            let thread = gpu.opaque(gpu.thread_idx());
            let (warp, lane) = (thread / WARP, thread % WARP);
            let stage = Self::stage(gpu, self.load_token);
            let params = self.params;
            unroll!([2] i in 0..2 {
                if i < Self::GROUPS {
                    let token = self.group_token(warp, i);
                    // Past the end nothing is read, and the slot means nothing.
                    let slot = token - params.by_block_size.divide(token) * params.block_size;
                    let group = Group {
                        tile_row: token - self.load_token,
                        begin: begin.max(token) - token,
                        end: self.end.max(token) - token,
                    };
                    let block = self.blocks[i] as u64;
                    let keys = sources.keys
                        + block * params.stride_key_block_bytes as u64
                        + slot as u64 * params.stride_key_slot_bytes as u64;
                    let values = sources.values
                        + block * params.stride_value_block_bytes as u64
                        + slot as u64 * params.stride_value_slot_bytes as u64;
                    // SAFETY: the group lies in one block; rows past the end are not read.
                    unsafe {
                        let stride = sources.key_stride;
                        group.copy::<G, C, K_STEPS, false, UNITS>(gpu, lane, keys, stride, stage);
                        let stride = sources.value_stride;
                        group.copy::<G, C, V_STEPS, true, UNITS>(gpu, lane, values, stride, stage + Self::VALUES);
                    }
                    if C::TOKEN_SCALES {
                        // SAFETY: as above.
                        unsafe { self.copy_scales(gpu, (lane, sources.kv_head), self.blocks[i], slot, stage + Self::SCALES, group) };
                    }
                }
            });
        }
        // A counter that compilers see through, they widen to 64 bits, and count a second one along.
        self.load_token = gpu.opaque(self.load_token + Self::SHAPE.tile_kv);
        // SAFETY: the row covers `end`.
        unsafe { self.look_up(gpu, sources, 0) };
        gpu.cp_async_commit();
    }

    /// Copies the scales of 8 tokens: a lane each, first those of keys, then those of values.
    #[inline(always)]
    unsafe fn copy_scales<G: Gpu>(
        &self,
        gpu: G,
        (lane, kv_head): (u32, u32),
        block: u32,
        slot: u32,
        scales: u32,
        group: Group,
    ) {
        let (side, token) = (lane / 8, lane % 8);
        let params = self.params;
        let key = TokenScales::new(
            params.k_scale,
            kv_head,
            params.stride_k_scale_block,
            params.stride_k_scale_slot,
            params.stride_k_scale,
        );
        let value = TokenScales::new(
            params.v_scale,
            kv_head,
            params.stride_v_scale_block,
            params.stride_v_scale_slot,
            params.stride_v_scale,
        );
        let (key, value) = (
            key.slot(block, slot + token),
            value.slot(block, slot + token),
        );
        let source = if side == 0 { key } else { value };
        if side < 2 {
            let target = scales + (side * Self::SHAPE.tile_kv + group.tile_row + token) * 4;
            // SAFETY: the token's scale, read only if it exists; the target is this lane's word.
            unsafe { gpu.cp_async_b32(target, source, group.has(token)) };
        }
    }
}

impl Sources {
    /// Leaves them at `at`, in 36 bytes.
    ///
    /// # Safety
    /// Nobody else touches the memory until the next barrier.
    #[inline(always)]
    unsafe fn store<G: Gpu>(self, gpu: G, at: u32) {
        let halves = |word: u64| [word as u32, (word >> 32) as u32];
        let ([a, b], [c, d], [e, f]) = (
            halves(self.keys),
            halves(self.values),
            halves(self.block_row),
        );
        if gpu.thread_idx() == 0 {
            // SAFETY: as the caller promises.
            unsafe {
                gpu.st_shared_b128(at, [a, b, c, d]);
                gpu.st_shared_b128(at + 16, [e, f, self.key_stride, self.value_stride]);
                gpu.st_shared_b32(at + 32, self.kv_head);
            }
        }
    }

    /// Takes them from there, the KV head only if it is asked for.
    ///
    /// # Safety
    /// They were stored at `at` before a barrier.
    #[inline(always)]
    unsafe fn load<G: Gpu>(gpu: G, at: u32, with_head: bool) -> Self {
        let mut kv_head = 0;
        if with_head {
            // SAFETY: as the caller promises.
            kv_head = unsafe { gpu.ld_shared_b32(at + 32) };
        }
        let word = |low: u32, high: u32| low as u64 | (high as u64) << 32;
        // SAFETY: as the caller promises.
        let ([a, b, c, d], [e, f, key_stride, value_stride]) =
            unsafe { (gpu.ld_shared_b128(at), gpu.ld_shared_b128(at + 16)) };
        Self {
            keys: word(a, b),
            values: word(c, d),
            block_row: word(e, f),
            key_stride,
            value_stride,
            kv_head,
        }
    }
}

/// Eight tokens that lie side by side in a block.
#[derive(Clone, Copy, Debug)]
struct Group {
    /// The first one's row in the tile, a multiple of 8.
    tile_row: u32,
    /// Those from `begin` to `end` exist.
    begin: u32,
    end: u32,
}

impl Group {
    #[inline(always)]
    fn has(self, row: u32) -> bool {
        self.begin <= row && row < self.end
    }

    /// Copies 8 rows of `STEPS * 16` values, 16 bytes a lane, maybe to be widened; rows that do not exist become zero.
    ///
    /// # Safety
    /// The rows at `source` are readable as far as they exist; the tile at `tile` is free.
    #[inline(always)]
    unsafe fn copy<
        G: Gpu,
        C: CacheFormat,
        const STEPS: usize,
        const WIDENED: bool,
        const UNITS: usize,
    >(
        self,
        gpu: G,
        lane: u32,
        source: u64,
        stride_bytes: u32,
        tile: u32,
    ) {
        let bytes = row_bytes::<C, STEPS>();
        let chunks = bytes / 16;
        // The rest of the line is the next head's row, which another thread block reads at about this time. Every tile
        // of rows reads all keys before it.
        let line = Line {
            is_whole: bytes < 128 && 128 % bytes == 0,
            stays: true,
        };
        let room = if WIDENED {
            wide_bytes::<STEPS>()
        } else {
            bytes
        };
        let panels = tile + self.tile_row * PANEL_ROW_BYTES;
        let tile = tile + self.tile_row * room;
        unroll!([8] part in 0..8 {
            // Both are the same for all lanes but in the last part of rows like 6 chunks.
            let item = part as u32 * WARP + lane;
            if part as u32 * WARP < 8 * chunks && item < 8 * chunks {
                let (row, chunk) = (item / chunks, item % chunks);
                let place = if WIDENED {
                    first_place::<C, STEPS>(row, chunk)
                } else {
                    swizzle(row, chunk, chunks)
                };
                let target = if UNITS > 1 {
                    // Bytes wait in the first panel, a line of the cache in a line of it.
                    panels + in_panels(row, chunk)
                } else {
                    tile + row * room + place * 16
                };
                let offset = row * stride_bytes + chunk * 16;
                // SAFETY: the row is a slot of the block and only read if it holds a token; the target is a
                // chunk of the free tile.
                unsafe { gpu.cp_async_b128(target, source + offset as u64, self.has(row), line) };
            }
        });
    }
}
