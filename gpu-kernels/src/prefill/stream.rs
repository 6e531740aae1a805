//! Global to shared memory: KV tiles that all warps of a thread block fill together and read together.
//!
//! A value of bytes is copied into the room that it takes as f16, to be widened there.
//!
//! The loop around it has hardly a register to spare. So whatever can be computed from the parameters and the
//! lane is computed where it is needed, addresses wait in shared memory, and little is kept: the blocks of the
//! next tile, a position.

use core::marker::PhantomData;

use crate::attention::paged_kv::TokenScales;
use crate::attention::tile::{row_bytes, swizzle};
use crate::dtype::CacheFormat;
use crate::gpu::unroll::unroll;
use crate::gpu::{Gpu, Line, WARP};
use crate::params::PrefillParams;
use crate::prefill::kv_addresses::{Eight, KvAddresses};
use crate::prefill::places::{first_place, wide_bytes};
use crate::prefill::{MmaKind, PrefillTile, SharedTile, WARPS};

/// The tiles of a thread block, in order, from one that begins at a multiple of `tile_kv`.
#[derive(Clone, Copy, Debug)]
pub struct SharedStream<'p, C, const K_STEPS: usize, const V_STEPS: usize> {
    params: &'p PrefillParams,
    /// Blocks of this warp's eights of the next tile to load.
    blocks: [u32; 2],
    /// First token of the next tile to load, one tile ahead of the one that is handed out.
    pub(crate) load_token: u32,
    end: u32,
    format: PhantomData<C>,
}

impl<'p, C: CacheFormat, const K_STEPS: usize, const V_STEPS: usize>
    SharedStream<'p, C, K_STEPS, V_STEPS>
{
    pub(crate) const SHAPE: PrefillTile =
        PrefillTile::of_kernel::<C, K_STEPS, V_STEPS>(MmaKind::Warp);
    /// Eights of tokens that a warp copies of each tile: one or two.
    pub(crate) const EIGHTS: usize = (Self::SHAPE.tile_kv / 8 / WARPS) as usize;

    /// Starts streaming tokens `begin .. end` of a sequence and KV head from the tile at `first_token` on, which
    /// `begin` lies in or before: the first tile is on its way when this returns.
    ///
    /// # Safety
    /// Every thread of the thread block comes here, and its shared memory is that of [`PrefillTile`]. The block table
    /// and the caches hold every token of the sequence from `begin` up to `end`; `first_token` is a multiple of the
    /// tile.
    #[inline(always)]
    pub unsafe fn start<G: Gpu>(
        gpu: G,
        params: &'p PrefillParams,
        (seq, kv_head): (u32, u32),
        first_token: u32,
        (begin, end): (u32, u32),
    ) -> Self {
        let sources = KvAddresses::new(params, seq, kv_head);
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
        if C::BYTES == 2 {
            gpu.cp_async_wait::<0>();
        }
        // SAFETY: all come here. It shows this tile to all warps, and means that all are done with the last.
        unsafe { gpu.sync_cta() };
        // SAFETY: so the other stage is free, and the sources are there.
        unsafe {
            let sources = KvAddresses::load(
                gpu,
                gpu.shared_base() + Self::SHAPE.sources(),
                C::TOKEN_SCALES,
            );
            self.load(gpu, sources, 0);
        }
        Some(Self::tile(gpu, token))
    }

    /// The tile that begins at `token`: tiles take turns.
    #[inline(always)]
    pub(crate) fn tile<G: Gpu>(gpu: G, token: u32) -> SharedTile {
        let stage = token / Self::SHAPE.tile_kv % const { Self::SHAPE.stages };
        Self::SHAPE.tile(gpu.shared_base(), token, stage)
    }

    /// First token of this warp's eight `i` of the next tile.
    #[inline(always)]
    fn eight_token(&self, warp: u32, i: usize) -> u32 {
        self.load_token + (warp * Self::EIGHTS as u32 + i as u32) * 8
    }

    /// Finds the blocks of this warp's eights of the next tile, of which tokens before `begin` do not exist.
    #[inline(always)]
    unsafe fn look_up<G: Gpu>(&mut self, gpu: G, sources: KvAddresses, begin: u32) {
        let warp = gpu.black_box(gpu.thread_idx()) / WARP;
        unroll!([2] i in 0..2 {
            if i < Self::EIGHTS {
                let token = self.eight_token(warp, i);
                if token < self.end && token + 8 > begin {
                    // SAFETY: the block holds a token of the range.
                    self.blocks[i] = unsafe { sources.block(gpu, self.params, token) };
                }
            }
        });
    }

    /// Starts copying this warp's part of the next tile, of which tokens before `begin` do not exist, and looks
    /// up the one after it.
    #[inline(always)]
    unsafe fn load<G: Gpu>(&mut self, gpu: G, sources: KvAddresses, begin: u32) {
        // What is widened whether it is needed or not has to be there.
        if C::BYTES == 1 || self.load_token < self.end {
            let thread = gpu.black_box(gpu.thread_idx());
            let (warp, lane) = (thread / WARP, thread % WARP);
            let tile = Self::tile(gpu, self.load_token);
            unroll!([2] i in 0..2 {
                if i < Self::EIGHTS {
                    let token = self.eight_token(warp, i);
                    let eight = sources.eight(self.params, self.blocks[i], token, (begin, self.end));
                    let row = token - self.load_token;
                    // SAFETY: the eight lie in one block; those past the end are not read.
                    unsafe {
                        let at = (eight.keys, sources.key_stride);
                        copy::<G, C, K_STEPS, false>(gpu, lane, eight, at, (tile.keys, row));
                        let at = (eight.values, sources.value_stride);
                        copy::<G, C, V_STEPS, true>(gpu, lane, eight, at, (tile.values, row));
                    }
                    if C::TOKEN_SCALES {
                        // SAFETY: as above.
                        unsafe { self.copy_scales(gpu, (lane, sources.kv_head), eight, (tile.scales, row)) };
                    }
                }
            });
        }
        // A counter that compilers see through, they widen to 64 bits, and count a second one along.
        self.load_token = gpu.black_box(self.load_token + Self::SHAPE.tile_kv);
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
        eight: Eight,
        (scales, tile_row): (u32, u32),
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
            key.slot(eight.block, eight.slot + token),
            value.slot(eight.block, eight.slot + token),
        );
        let source = if side == 0 { key } else { value };
        if side < 2 {
            let target = scales + (side * Self::SHAPE.tile_kv + tile_row + token) * 4;
            // SAFETY: the token's scale, read only if it exists; the target is this lane's word.
            unsafe { gpu.cp_async_b32(target, source, eight.has(token)) };
        }
    }
}

/// Copies 8 rows of `STEPS * 16` values to row `row` of the tile at `tile`, 16 bytes a lane, maybe to be widened; rows
/// that do not exist become zero.
///
/// # Safety
/// The rows at `source`, `stride_bytes` apart, are readable as far as they exist; the tile is free.
#[inline(always)]
unsafe fn copy<G: Gpu, C: CacheFormat, const STEPS: usize, const WIDENED: bool>(
    gpu: G,
    lane: u32,
    eight: Eight,
    (source, stride_bytes): (u64, u32),
    (tile, row): (u32, u32),
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
    let tile = tile + row * room;
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
            let offset = row * stride_bytes + chunk * 16;
            // SAFETY: the row is a slot of the block and only read if it holds a token; the target is a
            // chunk of the free tile.
            unsafe { gpu.cp_async_b128(tile + row * room + place * 16, source + offset as u64, eight.has(row), line) };
        }
    });
}
