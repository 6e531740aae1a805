//! The query heads of a warp, as operands of the tensor cores.

use super::HEADS;
use crate::dtype::{Bf16, F16, Half, HalfDtype};
use crate::gpu::Gpu;
use crate::kv::CacheFormat;
use crate::unroll::unroll;

/// How a query is stored, when the cache is of bytes: the numbers of `DecodeParams::query_dtype`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum QueryDtype {
    /// bfloat16.
    Bf16 = 0,
    /// IEEE binary16.
    F16 = 1,
    /// FP8 e4m3.
    E4m3 = 2,
}

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
    /// The heads are in bounds and 4-byte aligned.
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
                    // SAFETY: two pairs of dims of a head that exists.
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
                // SAFETY: converged.
                let exponent = unsafe { to_f16(gpu, &mut fragments[tile], dtype) };
                unroll!([2] i in 0..2 {
                    // SAFETY: converged; a lane that holds this head.
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

/// What products with bytes are multiplied by, but never zero: a masked score is minus infinity, and that times zero
/// would be NaN. Such products are so small that with the smallest factor, too, they come to nothing.
#[inline(always)]
pub(super) fn score_scale(scale_log2: f32) -> f32 {
    if scale_log2.abs() < f32::MIN_POSITIVE {
        f32::MIN_POSITIVE
    } else {
        scale_log2
    }
}

/// Bytes per value of a query of type `dtype` over such a cache.
#[inline(always)]
pub(crate) fn query_bytes<C: CacheFormat>(dtype: u32) -> u64 {
    if C::BYTES == 1 && dtype == QueryDtype::E4m3 as u32 {
        1
    } else {
        2
    }
}

/// Makes f16 of a head's dims, of which each lane of a quad holds a part. A bf16 may be too large or too
/// small for an f16, so it is first multiplied by the power of two that brings the head's largest into
/// `2^14..2^15`; returns the power that takes it back.
///
/// # Safety
/// Converged.
#[inline(always)]
pub(super) unsafe fn to_f16<G: Gpu, const K_STEPS: usize>(
    gpu: G,
    words: &mut [[u32; 2]; K_STEPS],
    dtype: u32,
) -> f32 {
    if dtype == QueryDtype::F16 as u32 {
        return 1.0;
    }
    if dtype == QueryDtype::E4m3 as u32 {
        unroll!([36] step in 0..K_STEPS {
            unroll!([2] i in 0..2 {
                words[step][i] = gpu.widen_e4m3x4(words[step][i])[0];
            });
        });
        return 1.0;
    }
    let mut largest = 0.0;
    unroll!([36] step in 0..K_STEPS {
        unroll!([2] i in 0..2 {
            let word = words[step][i];
            largest = gpu.max(largest, f32::from_bits((word << 16) & 0x7fff_ffff));
            largest = gpu.max(largest, f32::from_bits(word & 0x7fff_0000));
        });
    });
    unroll!([2] i in 0..2 {
        // SAFETY: converged.
        let other = unsafe { gpu.shfl_xor(f32::to_bits(largest), 1 << i) };
        largest = gpu.max(largest, f32::from_bits(other));
    });
    // Biased exponents: 2^(14 - e) has 127 + 14 - (biased - 127), which is finite from 14 up, and its inverse is not 0
    // from 15 up. A head whose largest dim is smaller than that has scores of 0, and a NaN or an infinity stays one.
    let biased = (largest.to_bits() >> 23).max(15);
    let (scale, unscale) = if biased < 255 {
        (
            f32::from_bits((268 - biased) << 23),
            f32::from_bits((biased - 14) << 23),
        )
    } else {
        (1.0, 1.0)
    };
    unroll!([36] step in 0..K_STEPS {
        unroll!([2] i in 0..2 {
            let word = words[step][i];
            let low = Bf16::widen(gpu, word as u16) * scale;
            let high = Bf16::widen(gpu, (word >> 16) as u16) * scale;
            words[step][i] = F16::pack(gpu, low, high);
        });
    });
    unscale
}

impl QueryDtype {
    /// The number for a 16-bit type.
    pub const fn of(dtype: HalfDtype) -> Self {
        match dtype {
            HalfDtype::Bf16 => Self::Bf16,
            HalfDtype::F16 => Self::F16,
        }
    }
}
