//! Rounding to FP8 in plain integer arithmetic: what a machine without the instruction runs, and what the
//! emulator takes for the instruction's meaning.
//!
//! Formats are OCP's: `e4m3` has bias 7, no infinity, one NaN pattern per sign, and ends at 448; `e5m2` is
//! the upper half of an f16 and ends at 57344. Rounding is to nearest even and saturates: what lies beyond
//! the largest finite value, infinities included, becomes it. NaN becomes 0x7f.

/// What an FP8 format is, for [`narrow`].
struct Format {
    /// Bits of the f32 mantissa that are rounded away.
    dropped_bits: u32,
    /// The f32 bias less the format's, in steps of the format's exponent.
    rebias: u32,
    /// Bits of the smallest normal value, as f32.
    min_normal: u32,
    /// Added to a subnormal it leaves the format's bits in its own lowest ones.
    subnormal_magic: f32,
    /// The largest finite value.
    largest: u32,
}

const E4M3: Format = Format {
    dropped_bits: 20,
    rebias: (127 - 7) << 3,
    min_normal: (127 - 6) << 23,
    // One unit in its last place is 2^-9, the smallest subnormal.
    subnormal_magic: 16_384.0,
    largest: 0x7e,
};

const E5M2: Format = Format {
    dropped_bits: 21,
    rebias: (127 - 15) << 2,
    min_normal: (127 - 14) << 23,
    // One unit in its last place is 2^-16, the smallest subnormal.
    subnormal_magic: 128.0,
    largest: 0x7b,
};

/// Rounds to e4m3.
#[inline(always)]
pub fn to_e4m3(x: f32) -> u8 {
    narrow(x, &E4M3)
}

/// Rounds to e5m2.
#[inline(always)]
pub fn to_e5m2(x: f32) -> u8 {
    narrow(x, &E5M2)
}

#[inline(always)]
fn narrow(x: f32, format: &Format) -> u8 {
    let sign = (x.to_bits() >> 24) & 0x80;
    let magnitude = x.to_bits() & 0x7fff_ffff;
    if magnitude > 0x7f80_0000 {
        return 0x7f;
    }
    let code = if magnitude < format.min_normal {
        // The sum is rounded to nearest even where the subnormals lie; it may reach the smallest normal.
        let sum = f32::from_bits(magnitude) + format.subnormal_magic;
        sum.to_bits() - format.subnormal_magic.to_bits()
    } else {
        let odd = (magnitude >> format.dropped_bits) & 1;
        let half = (1 << (format.dropped_bits - 1)) - 1;
        let rounded = (magnitude + half + odd) >> format.dropped_bits;
        let code = rounded - format.rebias;
        if code > format.largest {
            format.largest
        } else {
            code
        }
    };
    (sign | code) as u8
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::vec;

    use super::*;

    /// Values by the definition of the format: sign, exponent, mantissa.
    fn by_definition(byte: u8, mantissa_bits: i32, bias: i32) -> f32 {
        let sign = if byte & 0x80 == 0 { 1.0 } else { -1.0 };
        let exponent = i32::from((byte & 0x7f) >> mantissa_bits);
        let mantissa = f32::from(byte & ((1 << mantissa_bits) - 1));
        let fraction = mantissa / f32::from(1u8 << mantissa_bits);
        let power = |e: i32| f32::from_bits(u32::try_from(127 + e).expect("normal") << 23);
        sign * if exponent == 0 {
            fraction * power(1 - bias)
        } else {
            (1.0 + fraction) * power(exponent - bias)
        }
    }

    fn e4m3_to_f32(byte: u8) -> f32 {
        by_definition(byte, 3, 7)
    }

    fn e5m2_to_f32(byte: u8) -> f32 {
        by_definition(byte, 2, 15)
    }

    /// The nearest finite value, the even code at a tie: a search over all of them.
    fn nearest(x: f32, largest: u8, value: impl Fn(u8) -> f32) -> u8 {
        if x.is_nan() {
            return 0x7f;
        }
        let magnitude = f64::from(x.abs());
        let mut best = 0;
        for code in 1..=largest {
            let distance = |code: u8| (f64::from(value(code)) - magnitude).abs();
            if distance(code) < distance(best)
                || (distance(code) == distance(best) && code % 2 == 0)
            {
                best = code;
            }
        }
        if magnitude > f64::from(value(largest)) {
            best = largest;
        }
        best | if x.is_sign_negative() { 0x80 } else { 0 }
    }

    #[test]
    fn narrowing_rounds_to_the_nearest() {
        let mut inputs = vec![
            0.0,
            f32::INFINITY,
            f32::NAN,
            f32::MIN_POSITIVE,
            1e-45,
            f32::MAX,
        ];
        for code in 0..0x7e {
            for value in [e4m3_to_f32, e5m2_to_f32] {
                let (low, high) = (value(code), value(code + 1));
                {
                    // Each value, each tie, and their neighbours.
                    for x in [low, (low + high) / 2.0, high] {
                        for steps in [-1, 0, 1] {
                            let bits = x.to_bits().saturating_add_signed(steps);
                            inputs.push(f32::from_bits(bits));
                        }
                    }
                }
            }
        }
        inputs.extend([
            448.0, 464.0, 465.0, 480.0, 57344.0, 61440.0, 61441.0, 65536.0,
        ]);
        // And a walk through all exponents.
        inputs.extend((0..0x7f80_0000u32).step_by(77_777).map(f32::from_bits));
        for x in inputs.into_iter().flat_map(|x| [x, -x]) {
            assert_eq!(to_e4m3(x), nearest(x, 0x7e, e4m3_to_f32), "{x:e} to e4m3");
            assert_eq!(to_e5m2(x), nearest(x, 0x7b, e5m2_to_f32), "{x:e} to e5m2");
        }
    }
}
