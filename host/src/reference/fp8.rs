//! FP8 by definition: sign, exponent, mantissa; rounding is a search for the nearest value.

use std::sync::OnceLock;

use crate::tensor::Dtype;

/// What the bits of an FP8 dtype mean.
#[derive(Clone, Copy, Debug)]
pub struct Fp8Format {
    /// Below the exponent.
    pub mantissa_bits: u32,
    /// What is added to a number's exponent.
    pub bias: i32,
    /// The code of the largest finite number.
    pub largest: u8,
    /// The code of infinity, if there is one.
    pub infinity: Option<u8>,
}

impl Fp8Format {
    /// Of a dtype, if it is one of OCP's FP8 types.
    pub fn of(dtype: Dtype) -> Option<Self> {
        match dtype {
            Dtype::F8E4m3 => Some(Self {
                mantissa_bits: 3,
                bias: 7,
                largest: 0x7e,
                infinity: None,
            }),
            Dtype::F8E5m2 => Some(Self {
                mantissa_bits: 2,
                bias: 15,
                largest: 0x7b,
                infinity: Some(0x7c),
            }),
            Dtype::F32 | Dtype::F16 | Dtype::Bf16 => None,
            Dtype::F8E4m3Fnuz | Dtype::F8E5m2Fnuz => None,
            Dtype::I8 | Dtype::U8 | Dtype::I32 | Dtype::I64 => None,
        }
    }
}

fn format(dtype: Dtype) -> Fp8Format {
    Fp8Format::of(dtype).unwrap_or_else(|| panic!("{dtype} is no FP8 type"))
}

/// The value of a byte.
///
/// # Panics
/// If `dtype` is not one of OCP's FP8 types.
pub fn fp8_value(dtype: Dtype, byte: u8) -> f64 {
    values_of_bytes(dtype)[usize::from(byte)]
}

/// The values of all bytes.
fn values_of_bytes(dtype: Dtype) -> &'static [f64] {
    static TABLES: [OnceLock<Vec<f64>>; Dtype::ALL.len()] =
        [const { OnceLock::new() }; Dtype::ALL.len()];
    let format = format(dtype);
    TABLES[dtype as usize].get_or_init(|| {
        (0..=255)
            .map(|byte| value_by_definition(format, byte))
            .collect()
    })
}

fn value_by_definition(format: Fp8Format, byte: u8) -> f64 {
    let Fp8Format {
        mantissa_bits,
        bias,
        largest,
        infinity,
    } = format;
    let sign = if byte < 0x80 { 1.0 } else { -1.0 };
    let code = byte & 0x7f;
    if code > largest {
        return if infinity == Some(code) {
            sign * f64::INFINITY
        } else {
            f64::NAN
        };
    }
    let exponent = i32::from(code >> mantissa_bits);
    let mantissa = f64::from(code & ((1 << mantissa_bits) - 1)) / f64::from(1 << mantissa_bits);
    if exponent == 0 {
        sign * mantissa * 2f64.powi(1 - bias)
    } else {
        sign * (1.0 + mantissa) * 2f64.powi(exponent - bias)
    }
}

/// The byte whose value is nearest to `x`, the even one at a tie; beyond the largest finite value, that one;
/// for NaN, 0x7f.
///
/// # Panics
/// If `dtype` is not one of OCP's FP8 types.
pub fn fp8_nearest(dtype: Dtype, x: f64) -> u8 {
    if x.is_nan() {
        return 0x7f;
    }
    let largest = format(dtype).largest;
    let sign = if x.is_sign_negative() { 0x80 } else { 0 };
    let magnitude = x.abs().min(fp8_value(dtype, largest));
    // Codes are in the order of their values.
    let values = &values_of_bytes(dtype)[..=usize::from(largest)];
    let above = values.partition_point(|&value| value < magnitude);
    let above = u8::try_from(above).unwrap_or(largest).min(largest);
    let below = above.saturating_sub(1);
    let to_above = fp8_value(dtype, above) - magnitude;
    let to_below = magnitude - fp8_value(dtype, below);
    let up = to_above < to_below || (to_above == to_below && above % 2 == 0);
    sign | if up || above == 0 { above } else { below }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finite_values_are_their_own_nearest() {
        let all = Dtype::ALL.iter().copied();
        for dtype in all.filter(|&dtype| Fp8Format::of(dtype).is_some()) {
            for byte in 0..=255u8 {
                let value = fp8_value(dtype, byte);
                if value.is_finite() {
                    assert_eq!(fp8_nearest(dtype, value), byte, "{dtype} {byte:#x}");
                }
            }
        }
    }

    #[test]
    #[should_panic = "is no FP8 type"]
    fn other_types_have_no_table_even_after_one_was_made() {
        fp8_value(Dtype::F8E4m3, 0);
        fp8_value(Dtype::I8, 0);
    }

    #[test]
    fn ends_and_ties() {
        let e4m3 = |x| fp8_nearest(Dtype::F8E4m3, x);
        assert_eq!(fp8_value(Dtype::F8E4m3, 0x7e), 448.0);
        assert_eq!(fp8_value(Dtype::F8E5m2, 0x7b), 57344.0);
        assert_eq!(e4m3(1e9), 0x7e);
        assert_eq!(e4m3(-f64::INFINITY), 0xfe);
        assert_eq!(e4m3(2f64.powi(-10)), 0, "tie between zero and the least");
        assert_eq!(e4m3(3.0 * 2f64.powi(-10)), 2, "tie between 1 and 2");
        assert_eq!(e4m3(1.0625), e4m3(1.0), "tie, even below");
        assert_eq!(e4m3(1.1875), e4m3(1.25), "tie, even above");
    }
}
