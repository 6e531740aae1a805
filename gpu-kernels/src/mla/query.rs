//! The query of a thread block: each warp's one tile of heads in registers, or all tiles in shared memory, as
//! operands that lanes read back as they wrote them.

use crate::attention::tile::HEADS;
use crate::decode::QueryWords;
use crate::dtype::CacheFormat;
use crate::gpu::unroll::unroll;
use crate::gpu::{Gpu, WARP};
use crate::mla::MlaTile;

/// A warp's `WARP_HEAD_TILES` tiles of 8 heads.
#[derive(Clone, Copy, Debug)]
pub struct LatentQuery<const K_STEPS: usize, const WARP_HEAD_TILES: usize> {
    /// The operands, if there is one tile.
    registers: [[u32; 2]; K_STEPS],
    /// Where this lane's operands of the thread block's first tile lie, if a warp has several.
    shared: u32,
    /// Turns a product into a score in powers of two, for heads `2 (lane % 4)` and `+ 1` of the tile, if there is
    /// one.
    scale_log2: [f32; 2],
}

/// A tile of heads as it lies in memory, loaded as early as possible: the warp's one tile, or, if warps have several
/// and shared memory holds them, the tile of the warp's number.
#[derive(Clone, Copy, Debug)]
pub struct LatentWords<const K_STEPS: usize, const WARP_HEAD_TILES: usize> {
    words: QueryWords<K_STEPS, 1>,
}

impl<const K_STEPS: usize, const WARP_HEAD_TILES: usize> LatentWords<K_STEPS, WARP_HEAD_TILES> {
    /// Loads the heads below `num_heads`, whose addresses `head_address` knows; the others are zero. The warp's
    /// tiles begin at `first_tile`.
    ///
    /// # Safety
    /// The heads are in bounds and 4-byte aligned.
    #[inline(always)]
    pub unsafe fn load<G: Gpu, C: CacheFormat>(
        gpu: G,
        first_tile: u32,
        head_address: impl Fn(u32) -> u64,
        num_heads: u32,
        dtype: u32,
    ) -> Self {
        let tile = if WARP_HEAD_TILES == 1 {
            first_tile
        } else {
            gpu.warp()
        };
        let address = |head| head_address(tile * HEADS + head);
        let left = num_heads.saturating_sub(tile * HEADS);
        // SAFETY: heads below `num_heads` are in bounds and aligned: the contract of `load`.
        let words = unsafe { QueryWords::load::<G, C>(gpu, address, left, dtype) };
        Self { words }
    }
}

impl<const K_STEPS: usize, const WARP_HEAD_TILES: usize> LatentQuery<K_STEPS, WARP_HEAD_TILES> {
    /// Bytes of a tile in shared memory: 16 for each lane and pair of steps.
    const TILE_BYTES: u32 = K_STEPS as u32 / 2 * WARP * 16;

    /// Makes the query of the words, which every warp loaded for its own tile.
    ///
    /// # Safety
    /// Every thread of the thread block comes here.
    #[inline(always)]
    pub unsafe fn of<G: Gpu, C: CacheFormat>(
        gpu: G,
        cut: MlaTile,
        words: LatentWords<K_STEPS, WARP_HEAD_TILES>,
        dtype: u32,
        qk_scale_log2: f32,
    ) -> Self {
        // SAFETY: converged.
        let tile = unsafe { words.words.into_tile::<G, C>(gpu, dtype, qk_scale_log2) };
        if WARP_HEAD_TILES == 1 {
            return Self {
                registers: tile.fragments[0],
                shared: 0,
                scale_log2: tile.scale_log2[0],
            };
        }
        let base = gpu.shared_base() + cut.query() + gpu.lane() * 16;
        let own = gpu.warp();
        if own < cut.heads / HEADS {
            let at = base + own * Self::TILE_BYTES;
            unroll!([36] pair in 0..(K_STEPS / 2) {
                let [a, b] = [tile.fragments[0][2 * pair], tile.fragments[0][2 * pair + 1]];
                // SAFETY: this lane's operands of this warp's tile.
                unsafe { gpu.st_shared_b128(at + pair as u32 * WARP * 16, [a[0], a[1], b[0], b[1]]) };
            });
            if gpu.lane() < 4 {
                let at = gpu.shared_base() + cut.scales() + (own * HEADS + gpu.lane() * 2) * 4;
                unroll!([2] i in 0..2 {
                    // SAFETY: one lane for each head.
                    unsafe { gpu.st_shared_b32(at + i as u32 * 4, tile.scale_log2[0][i].to_bits()) };
                });
            }
        }
        // SAFETY: all come here.
        unsafe { gpu.sync_cta() };
        Self {
            registers: [[0; 2]; K_STEPS],
            shared: base,
            scale_log2: [0.0; 2],
        }
    }

    /// What turns products with the heads `2 (lane % 4)` and `+ 1` of tile `tile` of the thread block into scores in
    /// powers of two: read where it is needed, if there are several.
    #[inline(always)]
    pub(crate) fn scale_log2<G: Gpu>(&self, gpu: G, cut: MlaTile, tile: u32) -> [f32; 2] {
        if WARP_HEAD_TILES == 1 {
            return self.scale_log2;
        }
        let at = gpu.shared_base() + cut.scales() + (tile * HEADS + gpu.lane() % 4 * 2) * 4;
        // SAFETY: written by `load` before its barrier; no tile changes it.
        let words = unsafe { gpu.ld_shared_b64(at) };
        [words as u32, (words >> 32) as u32].map(f32::from_bits)
    }

    /// The operands of a pair of steps, `pair` after `first_pair`, of the tile `tile` after `first_tile`: what is not
    /// constant stands first. In registers there is one tile, and its pairs.
    #[inline(always)]
    pub(crate) fn pair<G: Gpu>(
        &self,
        gpu: G,
        first_tile: u32,
        first_pair: u32,
        tile: usize,
        pair: usize,
    ) -> [u32; 4] {
        if WARP_HEAD_TILES == 1 {
            let [a, b] = [self.registers[2 * pair], self.registers[2 * pair + 1]];
            return [a[0], a[1], b[0], b[1]];
        }
        let first = self.shared + first_tile * Self::TILE_BYTES + first_pair * WARP * 16;
        let at = first + tile as u32 * Self::TILE_BYTES + pair as u32 * WARP * 16;
        // SAFETY: written by `load` before its barrier, and never again.
        unsafe { gpu.ld_shared_b128(at) }
    }
}
