//! FP8 by definition: sign, exponent, mantissa; rounding is a search for the nearest value.

use std::sync::OnceLock;

use crate::tensor::Dtype;

/// Mantissa bits, exponent bias and largest finite code of an FP8 dtype.
fn format(dtype: Dtype) -> (u32, i32, u8) {
    match dtype {
        Dtype::F8E4m3 => (3, 7, 0x7e),
        Dtype::F8E5m2 => (2, 15, 0x7b),
        other => panic!("{other} is no FP8 type"),
    }
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
    static E4M3: OnceLock<Vec<f64>> = OnceLock::new();
    static E5M2: OnceLock<Vec<f64>> = OnceLock::new();
    let table = match dtype {
        Dtype::F8E4m3 => &E4M3,
        Dtype::F8E5m2 => &E5M2,
        other => panic!("{other} is no FP8 type"),
    };
    table.get_or_init(|| {
        (0..=255)
            .map(|byte| value_by_definition(dtype, byte))
            .collect()
    })
}

fn value_by_definition(dtype: Dtype, byte: u8) -> f64 {
    let (mantissa_bits, bias, largest) = format(dtype);
    let sign = if byte < 0x80 { 1.0 } else { -1.0 };
    let code = byte & 0x7f;
    if code > largest {
        // Only e5m2 has an infinity: all mantissa bits zero.
        let infinite = dtype == Dtype::F8E5m2 && code == 0x7c;
        return if infinite {
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
    let (.., largest) = format(dtype);
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
        for dtype in [Dtype::F8E4m3, Dtype::F8E5m2] {
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
