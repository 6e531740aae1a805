//! Queries over a cache of bytes: as they are stored, and as the tensor cores take them.

use crate::dtype::{Bf16, CacheFormat, F16, Half, QueryDtype};
use crate::gpu::Gpu;
use crate::gpu::unroll::unroll;

/// What products with bytes are multiplied by, but never zero: a masked score is minus infinity, and that times zero
/// would be NaN. Such products are so small that with the smallest factor, too, they come to nothing.
#[inline(always)]
pub(crate) fn score_scale(scale_log2: f32) -> f32 {
    if scale_log2.abs() < f32::MIN_POSITIVE {
        f32::MIN_POSITIVE
    } else {
        scale_log2
    }
}

/// Makes f16 of a head's dims, of which each of `2^LOG_LANES` lanes side by side holds a part. A bf16 may be too large or too
/// small for an f16, so it is first multiplied by the power of two that brings the head's largest into
/// `2^14..2^15`; returns the power that takes it back.
///
/// # Safety
/// Converged.
#[inline(always)]
pub(crate) unsafe fn to_f16<G: Gpu, const PARTS: usize, const LOG_LANES: usize>(
    gpu: G,
    words: &mut [[u32; 2]; PARTS],
    dtype: u32,
) -> f32 {
    if dtype == QueryDtype::F16 as u32 {
        return 1.0;
    }
    if dtype == QueryDtype::F8E4m3 as u32 {
        unroll!([36] part in 0..PARTS {
            unroll!([2] i in 0..2 {
                words[part][i] = gpu.widen_e4m3x4(words[part][i])[0];
            });
        });
        return 1.0;
    }
    let mut largest = 0.0;
    unroll!([36] part in 0..PARTS {
        unroll!([2] i in 0..2 {
            let word = words[part][i];
            largest = gpu.max(largest, f32::from_bits((word << 16) & 0x7fff_ffff));
            largest = gpu.max(largest, f32::from_bits(word & 0x7fff_0000));
        });
    });
    unroll!([8] i in 0..LOG_LANES {
        // SAFETY: converged: this function's contract.
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
    unroll!([36] part in 0..PARTS {
        unroll!([2] i in 0..2 {
            let word = words[part][i];
            let low = Bf16::widen(gpu, word as u16) * scale;
            let high = Bf16::widen(gpu, (word >> 16) as u16) * scale;
            words[part][i] = F16::pack(gpu, low, high);
        });
    });
    unscale
}

/// Bytes per value of a query of type `dtype` over such a cache.
#[inline(always)]
pub(crate) fn query_bytes<C: CacheFormat>(dtype: u32) -> u64 {
    if C::BYTES == 1 && dtype == QueryDtype::F8E4m3 as u32 {
        1
    } else {
        2
    }
}
