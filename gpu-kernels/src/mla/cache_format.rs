//! The two FP8 forms of a token in an MLA cache, byte by byte.

use crate::dtype::{Bf16, E4m3, Element};
use crate::gpu::Gpu;

/// The forms by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EntryForm {
    /// See [`fp8_ds`].
    Fp8Ds,
    /// See [`v4`].
    V4,
}

/// Eight e4m3 times a scale, rounded to bf16: exact if the scale is a power of two.
#[inline(always)]
pub(crate) fn dequantise8<G: Gpu>(gpu: G, bytes: [u32; 2], scale: f32) -> [u32; 4] {
    Bf16::narrow8(gpu, E4m3::widen8(gpu, bytes).map(|x| x * scale))
}

/// The value of a UE8M0: 2^(byte - 127), NaN for 255.
#[inline(always)]
pub(crate) fn power_of_two(byte: u8) -> f32 {
    // 2^-127 is a subnormal: both ends have the upper bit of the mantissa.
    let end = if byte == 0 || byte == 255 {
        0x0040_0000
    } else {
        0
    };
    f32::from_bits((byte as u32) << 23 | end)
}

/// 656 bytes a token (vLLM's `fp8_ds_mla`): `[0, 512)` e4m3 latents | `[512, 528)` four f32 scales, one per
/// 128 latents | `[528, 656)` 64 bf16 RoPE values.
pub mod fp8_ds {
    /// Latents of a token.
    pub const LATENTS: u32 = 512;
    /// Latents that share a scale.
    pub const GROUP: u32 = 128;
    /// RoPE values of a token.
    pub const ROPE: u32 = 64;
    /// Where the scales begin.
    pub const SCALES_AT: u32 = LATENTS;
    /// Where the RoPE values begin.
    pub const ROPE_AT: u32 = SCALES_AT + LATENTS / GROUP * 4;
    /// Bytes of a token.
    pub const BYTES: u32 = ROPE_AT + ROPE * 2;

    const _: () = assert!(BYTES == 656 && BYTES.is_multiple_of(16) && ROPE_AT.is_multiple_of(16));
}

/// 584 bytes a token, not interleaved. A page begins with 576 bytes for each token: 448 e4m3 values | 64
/// bf16 RoPE values; then come 8 bytes for each token: 7 scales, one per 64 values, and a zero. A scale is
/// one byte, the biased exponent of a power of two (UE8M0).
pub mod v4 {
    /// FP8 values of a token.
    pub const VALUES: u32 = 448;
    /// Values that share a scale.
    pub const GROUP: u32 = 64;
    /// RoPE values of a token.
    pub const ROPE: u32 = 64;
    /// Bytes of a token's values, RoPE included.
    pub const VALUE_BYTES: u32 = VALUES + ROPE * 2;
    /// Bytes of a token's scales, with padding.
    pub const SCALE_BYTES: u32 = 8;
    /// Bytes of a token.
    pub const BYTES: u32 = VALUE_BYTES + SCALE_BYTES;

    const _: () = assert!(BYTES == 584 && VALUE_BYTES.is_multiple_of(16));
    const _: () = assert!(VALUES / GROUP < SCALE_BYTES);
}
