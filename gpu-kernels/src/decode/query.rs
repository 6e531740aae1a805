//! The query heads of a warp, as operands of the tensor cores.

use crate::attention::query::{query_bytes, score_scale, to_f16};
use crate::attention::tile::HEADS;
use crate::dtype::CacheFormat;
use crate::gpu::Gpu;
use crate::gpu::unroll::unroll;

/// `HEAD_TILES` tiles of 8 heads, `K_STEPS` steps of 16 dims.
#[derive(Clone, Copy, Debug)]
pub struct QueryTile<const K_STEPS: usize, const HEAD_TILES: usize> {
    /// `mma` operands, dims by heads, in the cache format's order of dims.
    pub(crate) fragments: [[[u32; 2]; K_STEPS]; HEAD_TILES],
    /// Turns a product into a score in powers of two, for heads `2 (lane % 4)` and `+ 1` of each tile.
    pub(crate) scale_log2: [[f32; 2]; HEAD_TILES],
}

/// A query as it lies in memory: loaded as early as possible, turned into a [`QueryTile`] when it is there.
#[derive(Clone, Copy, Debug)]
pub struct QueryWords<const K_STEPS: usize, const HEAD_TILES: usize> {
    words: [[[u32; 2]; K_STEPS]; HEAD_TILES],
}

impl<const K_STEPS: usize, const HEAD_TILES: usize> QueryWords<K_STEPS, HEAD_TILES> {
    /// Loads the heads below `num_heads`, whose addresses `address` knows; heads beyond are zero. `dtype` is only
    /// looked at if the cache is of bytes; else the query has the cache's type.
    ///
    /// # Safety
    /// The heads below `num_heads` are `16 * K_STEPS` readable values each, aligned to two of them.
    #[inline(always)]
    pub unsafe fn load<G: Gpu, C: CacheFormat>(
        gpu: G,
        address: impl Fn(u32) -> u64,
        num_heads: u32,
        dtype: u32,
    ) -> Self {
        let (row, quad) = (gpu.lane() / 4, gpu.lane() % 4);
        let (first, second) = C::key_dims(quad);
        let bytes = query_bytes::<C>(dtype);
        let mut words = [[[0u32; 2]; K_STEPS]; HEAD_TILES];
        unroll!([2] tile in 0..HEAD_TILES {
            let head = tile as u32 * HEADS + row;
            if head < num_heads {
                let at = address(head);
                unroll!([36] step in 0..K_STEPS {
                    let dims = at + bytes * step as u64 * 16;
                    let (first, second) = (dims + bytes * first as u64, dims + bytes * second as u64);
                    // SAFETY: two pairs of dims of a head below `num_heads`, aligned to two values: this function's
                    // contract.
                    words[tile][step] = unsafe {
                        if bytes == 1 {
                            [gpu.ld_global_b16(first) as u32, gpu.ld_global_b16(second) as u32]
                        } else {
                            [gpu.ld_global_b32(first), gpu.ld_global_b32(second)]
                        }
                    };
                });
            }
        });
        Self { words }
    }

    /// Makes operands of the words: what they are multiplied by is taken out of `qk_scale_log2`.
    ///
    /// # Safety
    /// Converged.
    #[inline(always)]
    pub unsafe fn into_tile<G: Gpu, C: CacheFormat>(
        self,
        gpu: G,
        dtype: u32,
        qk_scale_log2: f32,
    ) -> QueryTile<K_STEPS, HEAD_TILES> {
        let mut fragments = self.words;
        let mut scale_log2 = [[qk_scale_log2; 2]; HEAD_TILES];
        if C::BYTES == 1 {
            unroll!([2] tile in 0..HEAD_TILES {
                // SAFETY: converged: this function's contract.
                let exponent = unsafe { to_f16::<G, K_STEPS, 2>(gpu, &mut fragments[tile], dtype) };
                unroll!([2] i in 0..2 {
                    // SAFETY: converged: this function's contract; lanes `4 head ..` hold the head.
                    let unscale = unsafe { gpu.shfl(exponent.to_bits(), (2 * (gpu.lane() % 4) + i as u32) * 4) };
                    scale_log2[tile][i] = score_scale(qk_scale_log2 * f32::from_bits(unscale));
                });
            });
        }
        QueryTile {
            fragments,
            scale_log2,
        }
    }
}
