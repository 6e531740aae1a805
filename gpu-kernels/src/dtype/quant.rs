//! Storing real values in 8 bits: division by a scale, and the rules by which scales are chosen.

use crate::dtype::Element;
use crate::gpu::Gpu;
use crate::gpu::unroll::unroll;

/// Divides many numbers by one. Quotients are the IEEE ones (correctly rounded) as far as an 8-bit float can
/// tell: rounded to one, saturating, they give the same byte.
///
/// `1 / divisor` is kept in two parts, so that the quotient of a 16-bit value is one product and one fma, with
/// no branch: the exact quotient, made larger by less than 2^-39 of itself, rounded to f32. Why the byte is
/// right: rounding `x / s` and something so little above it can only differ if a point `m` halfway between two
/// f32 lies between them, and a byte can only show it if one of those two f32, `b`, lies halfway between two
/// bytes. Scale all to integers: `s` to `S` of 24 bits, `b` to `B` of 5, `x` to `X 2^j` of at most 11 bits, so
/// that it is a multiple of 2^16. `m - b` is 2^-20 then, and `X 2^j - S B` has to be `±n`, the integer next to
/// `S 2^-20`, with `S = n 2^20 + k` and `|k| < 2^11`. So `k B ± n`, which is less than 2^16, is a multiple of
/// it: zero, and as `B >= 16 >= n`, `B = n = 16` and `k = -1`. For those the exact quotient is above `m`
/// already, and stays there. Values of 24 bits have no such luck; they are divided one by one.
#[derive(Clone, Copy, Debug)]
pub struct Divisor {
    divisor: f32,
    /// A few units in the last place below the reciprocal.
    high: f32,
    /// What is missing, and a little more. Positive, so that zeros keep their sign and infinities stay.
    low: f32,
}

impl Divisor {
    /// Of a scale.
    #[inline(always)]
    pub fn new<G: Gpu>(gpu: G, divisor: f32) -> Self {
        // The machine's reciprocal is off by one unit at most.
        let high = f32::from_bits(gpu.recip(divisor).to_bits().wrapping_sub(4));
        // 2^-40 is more than the square of the missing part, which the product with `high` leaves out, and
        // more than all roundings.
        let missing = gpu.fma(-divisor, high, 1.0) + f32::from_bits((127 - 40) << 23);
        Self {
            divisor,
            high,
            low: missing * high,
        }
    }

    /// Eight quotients.
    #[inline(always)]
    pub fn divide8<G: Gpu, In: Element>(self, gpu: G, values: In::Eight) -> [f32; 8] {
        let values = In::widen8(gpu, values);
        // Far from the ends of the exponent range no part can overflow or lose bits.
        if In::BYTES <= 2 && self.divisor >= 1e-18 && self.divisor <= 1e18 {
            values.map(|x| gpu.fma(x, self.high, x * self.low))
        } else {
            values.map(|x| x / self.divisor)
        }
    }
}

/// `amax / qmax`, correctly rounded, for a `qmax` of 127 or 448. A quotient by an odd number, or one times a
/// power of two, is never near a point halfway between two f32, so one correction is enough. Subnormal quotients
/// may be off: scales are larger.
#[inline(always)]
pub fn over_qmax<G: Gpu>(gpu: G, amax: f32, qmax: f32) -> f32 {
    let reciprocal = 1.0 / qmax;
    let first = amax * reciprocal;
    let better = gpu.fma(gpu.fma(-first, qmax, amax), reciprocal, first);
    // Infinity met `inf - inf`.
    if first < f32::INFINITY { better } else { first }
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

/// The largest of each `amax` in each group of `lanes` lanes (a power of two), in all of them. Several are
/// found together, so that one waits while another moves.
///
/// # Safety
/// Converged, with one `lanes <= 32` for all; `N` is 1 or 2.
#[inline(always)]
#[track_caller]
pub unsafe fn amax_over_lanes<G: Gpu, const N: usize>(
    gpu: G,
    mut amax: [f32; N],
    lanes: u32,
) -> [f32; N] {
    let mut mask = lanes / 2;
    while mask > 0 {
        let mut other = [0; N];
        // SAFETY: converged, with one mask below 32 for all, as `lanes` is one for all and at most 32: this function's
        // contract.
        unsafe {
            unroll!([2] i in 0..N {
                other[i] = gpu.shfl_xor(amax[i].to_bits(), mask);
            });
        }
        unroll!([2] i in 0..N {
            amax[i] = gpu.max(amax[i], f32::from_bits(other[i]));
        });
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
