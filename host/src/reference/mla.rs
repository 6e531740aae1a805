//! The FP8 forms of a token in an MLA cache, by definition: values to bytes and back.

use half::bf16;

use super::{fp8_nearest, fp8_value};
use crate::tensor::Dtype;

/// The 656 bytes of a token: 512 latents in four groups, and the bytes of 64 bf16 RoPE values.
///
/// # Panics
/// If there are not 512 latents and 128 bytes.
pub fn mla_fp8_ds_entry(latents: &[f32], rope: &[u8], power_of_two_scales: bool) -> Vec<u8> {
    assert_eq!((latents.len(), rope.len()), (512, 128));
    let mut values = Vec::new();
    let mut scales = Vec::new();
    for group in latents.chunks(128) {
        let amax = group.iter().fold(0.0f32, |amax, x| amax.max(x.abs()));
        let scale = if power_of_two_scales {
            power_of_two_up((amax / 448.0).max(1e-4))
        } else {
            (amax / 448.0).max(f32::MIN_POSITIVE)
        };
        scales.extend(scale.to_le_bytes());
        values.extend(group.iter().map(|x| e4m3(x / scale)));
    }
    [&values, &scales, rope].concat()
}

/// The 576 values of such an entry.
///
/// # Panics
/// If the entry is shorter.
pub fn mla_fp8_ds_values(entry: &[u8]) -> Vec<bf16> {
    let mut values = Vec::new();
    for group in 0..4 {
        let at = 512 + 4 * group;
        let scale = f32::from_le_bytes(entry[at..at + 4].try_into().expect("four bytes"));
        let bytes = &entry[128 * group..128 * (group + 1)];
        values.extend(bytes.iter().map(|&byte| dequantised(byte, scale)));
    }
    values.extend(bf16_values(&entry[528..656]));
    values
}

/// V4's 576 bytes and 8 bytes of a token: 448 values in seven groups, and the bytes of 64 bf16 RoPE values.
///
/// # Panics
/// If there are not 448 values and 128 bytes.
pub fn mla_v4_entry(values: &[f32], rope: &[u8]) -> (Vec<u8>, Vec<u8>) {
    assert_eq!((values.len(), rope.len()), (448, 128));
    let mut bytes = Vec::new();
    let mut scales = Vec::new();
    for group in values.chunks(64) {
        let amax = group.iter().fold(1e-4f32, |amax, x| amax.max(x.abs()));
        let scale = power_of_two_up(amax / 448.0);
        // The biased exponent is the byte.
        scales.push(u8::try_from(scale.to_bits() >> 23).expect("eight bits of a positive number"));
        bytes.extend(group.iter().map(|x| e4m3(x / scale)));
    }
    bytes.extend(rope);
    scales.push(0);
    (bytes, scales)
}

/// The 512 values of such an entry.
///
/// # Panics
/// If bytes or scales are fewer.
pub fn mla_v4_values(bytes: &[u8], scales: &[u8]) -> Vec<bf16> {
    let mut values = Vec::new();
    for (at, &byte) in bytes[..448].iter().enumerate() {
        let scale = match scales[at / 64] {
            255 => f64::NAN,
            exponent => 2f64.powi(i32::from(exponent) - 127),
        };
        values.push(bf16::from_f64(fp8_value(Dtype::F8E4m3, byte) * scale));
    }
    values.extend(bf16_values(&bytes[448..576]));
    values
}

/// The least power of two that is not below `x`; infinity is one.
fn power_of_two_up(x: f32) -> f32 {
    let mut power = f32::MIN_POSITIVE;
    while power < x {
        power *= 2.0;
    }
    power
}

fn e4m3(x: f32) -> u8 {
    fp8_nearest(Dtype::F8E4m3, f64::from(x))
}

/// `stored * scale` in f32, then rounded.
fn dequantised(byte: u8, scale: f32) -> bf16 {
    let value = super::cache::narrow(fp8_value(Dtype::F8E4m3, byte));
    bf16::from_f32(value * scale)
}

fn bf16_values(bytes: &[u8]) -> impl Iterator<Item = bf16> {
    bytes
        .chunks(2)
        .map(|pair| bf16::from_le_bytes([pair[0], pair[1]]))
}
