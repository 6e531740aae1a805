//! The two FP8 forms of a token in an MLA cache, byte by byte.

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
