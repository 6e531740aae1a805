//! Storing real values in 8 bits: division by a scale, and the rules by which scales are chosen.

use crate::dtype::with_sign_of;
use crate::gpu::Gpu;

/// Divides many numbers by one. Each quotient is the IEEE one (correctly rounded) as far as an 8-bit type
/// can tell: quotients below 2^-60 or from 2^17 on may be off, but round to zero or saturate all the same.
#[derive(Clone, Copy, Debug)]
pub struct Divisor {
    divisor: f32,
    reciprocal: f32,
}

impl Divisor {
    /// Of a scale.
    #[inline(always)]
    pub fn new(divisor: f32) -> Self {
        Self {
            divisor,
            reciprocal: 1.0 / divisor,
        }
    }

    /// Eight quotients.
    #[inline(always)]
    pub fn divide8<G: Gpu>(self, gpu: G, values: [f32; 8]) -> [f32; 8] {
        // Far from the ends of the exponent range no step below can overflow or lose bits.
        if self.divisor >= 1e-18 && self.divisor <= 1e18 {
            let [a, b, c, d, e, f, g, h] = values;
            let quotient = |x| self.quotient(gpu, x);
            [
                quotient(a),
                quotient(b),
                quotient(c),
                quotient(d),
                quotient(e),
                quotient(f),
                quotient(g),
                quotient(h),
            ]
        } else {
            values.map(|x| x / self.divisor)
        }
    }

    /// Markstein's division: the reciprocal is correctly rounded, the first correction makes the quotient
    /// faithful, and the second one then makes it the correctly rounded one.
    #[inline(always)]
    fn quotient<G: Gpu>(self, gpu: G, x: f32) -> f32 {
        let first = x * self.reciprocal;
        let better = gpu.fma(gpu.fma(-first, self.divisor, x), self.reciprocal, first);
        let best = gpu.fma(gpu.fma(-better, self.divisor, x), self.reciprocal, better);
        // Infinities and NaN fail the comparison: above they met `inf - inf`. Zeros lost their sign there.
        if first.abs() < 131_072.0 {
            with_sign_of(best, first)
        } else {
            first
        }
    }
}

/// The larger magnitude of `so_far` and the values; NaN is passed over.
#[inline(always)]
pub fn amax8<G: Gpu>(gpu: G, so_far: f32, values: [f32; 8]) -> f32 {
    let [a, b, c, d, e, f, g, h] = values.map(f32::abs);
    let max = |x, y| gpu.max(x, y);
    max(
        so_far,
        max(max(max(a, b), max(c, d)), max(max(e, f), max(g, h))),
    )
}

/// The largest `amax` of each group of `lanes` lanes (a power of two), in all of them.
///
/// # Safety
/// Converged, with one `lanes <= 32` for all.
#[inline(always)]
#[track_caller]
pub unsafe fn amax_over_lanes<G: Gpu>(gpu: G, mut amax: f32, lanes: u32) -> f32 {
    let mut mask = lanes / 2;
    while mask > 0 {
        // SAFETY: converged, as the caller promises; the mask is less than 32.
        let other = unsafe { gpu.shfl_xor(amax.to_bits(), mask) };
        amax = gpu.max(amax, f32::from_bits(other));
        mask /= 2;
    }
    amax
}

/// The least power of two that is not below `x`, a positive normal number; its exponent as an f32 has it.
#[inline(always)]
pub fn exponent_up(x: f32) -> u32 {
    let bits = x.to_bits();
    let exponent = bits >> 23;
    if bits & 0x007f_ffff == 0 {
        exponent
    } else {
        exponent + 1
    }
}
