//! The logarithm of a sum of exponentials, kept as a maximum and a sum until it is wanted.
//!
//! As one number it would lose what tells parts of a row apart: next to a maximum of 2^24 the logarithm of a sum is
//! below the last bit. One rule for all kernels: the logarithm is -inf exactly if no key was attended to or every score
//! is -inf, and NaN if a score is NaN.

use crate::gpu::Gpu;

/// `log2(sum * 2^max)`.
#[derive(Clone, Copy, Debug)]
pub struct Lse {
    /// What was subtracted from scores, base 2; [`LOWEST`] or -inf if no score was larger.
    pub max: f32,
    /// Sum of `2^(score - max)`; 0 if nothing was added, NaN if a score is NaN.
    pub sum: f32,
}

impl Lse {
    /// Bytes in memory.
    pub const BYTES: u64 = 8;
    /// No key.
    pub const EMPTY: Self = Self {
        max: f32::NEG_INFINITY,
        sum: 0.0,
    };

    /// Of one key with this score, base 2.
    #[inline(always)]
    pub fn of_score(score_log2: f32) -> Self {
        let sum = if score_log2 == f32::NEG_INFINITY {
            0.0
        } else {
            1.0
        };
        Self {
            max: score_log2,
            sum,
        }
    }

    /// What its sum counts for beside a maximum of `max`, of which it is no larger.
    #[inline(always)]
    pub fn weight<G: Gpu>(self, gpu: G, max: f32) -> f32 {
        let share = gpu.exp2(self.max - max);
        // Also where both are infinite.
        let share = if self.max == max { 1.0 } else { share };
        share * self.sum
    }

    /// Of the keys of both.
    #[inline(always)]
    pub fn with<G: Gpu>(self, gpu: G, other: Self) -> Self {
        let max = gpu.max(self.max, other.max);
        Self {
            max,
            sum: self.weight(gpu, max) + other.weight(gpu, max),
        }
    }

    /// The logarithm, base 2: exact if the sum is a power of two, else off by 2^-22 at most; then rounded once, as it is
    /// added to the maximum.
    #[inline(always)]
    pub fn log2<G: Gpu>(self, gpu: G) -> f32 {
        if self.sum == 0.0 {
            f32::NEG_INFINITY
        } else {
            self.max + log2(gpu, self.sum)
        }
    }

    /// The natural logarithm.
    #[inline(always)]
    pub fn natural<G: Gpu>(self, gpu: G) -> f32 {
        self.log2(gpu) * core::f32::consts::LN_2
    }

    /// As it is written to memory.
    #[inline(always)]
    pub fn to_bits(self) -> u64 {
        self.max.to_bits() as u64 | (self.sum.to_bits() as u64) << 32
    }

    /// Number `index` of those at `address`.
    ///
    /// # Safety
    /// A kernel before this one wrote element `index` there.
    #[inline(always)]
    #[track_caller]
    pub unsafe fn load<G: Gpu>(gpu: G, address: u64, index: u64) -> Self {
        // SAFETY: a kernel before this one wrote it: this function's contract.
        let bits = unsafe { gpu.ld_global_b64(address + Self::BYTES * index) };
        Self {
            max: f32::from_bits(bits as u32),
            sum: f32::from_bits((bits >> 32) as u32),
        }
    }
}

/// The maximum of what a loop has seen before its first score: below every score, and a number. So it can be subtracted
/// like any other, where -inf less -inf is NaN: scores of -inf still become 2^-inf, and what was summed shrinks to 0.
pub(crate) const LOWEST: f32 = f32::MIN;

/// A maximum that may be that of nothing, as a number near those of scores.
#[inline(always)]
pub(crate) fn finite(max: f32) -> f32 {
    if max <= LOWEST { 0.0 } else { max }
}

/// Whether scores near `max`, which was rounded, are so large that one `fma` of product, scale and maximum no longer tells
/// how far below it a score is: the largest would not become 2^0 but any power of two.
#[inline(always)]
pub(crate) fn is_far(max: f32) -> bool {
    max.abs() > FAR
}

/// Up to here a product is within 1/4 of what it is rounded to.
const FAR: f32 = (1 << 22) as f32;

/// The logarithm of a positive number, exact for powers of two: the exponent, and the approximate logarithm of what is
/// left, which is exact for 1.
#[inline(always)]
fn log2<G: Gpu>(gpu: G, x: f32) -> f32 {
    let bits = x.to_bits();
    // Neither subnormal nor NaN nor infinite.
    if bits.wrapping_sub(0x80_0000) >= 0x7f00_0000 {
        return gpu.log2(x);
    }
    let exponent = (bits >> 23) as i32 - 127;
    let rest = f32::from_bits(bits & 0x7f_ffff | 0x3f80_0000);
    exponent as f32 + gpu.log2(rest)
}
