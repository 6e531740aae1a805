//! Arithmetic, and conversion.

/// What Rust has no operator for, or another rounding.
///
/// # Safety
/// An implementation keeps the contract in the [module documentation](crate::gpu).
pub unsafe trait Numbers: Copy {
    /// `a * b + c`, rounded once.
    fn fma(self, a: f32, b: f32, c: f32) -> f32;
    /// `a * b`, rounded towards minus infinity.
    fn mul_down(self, a: f32, b: f32) -> f32;
    /// The larger; the other one if one is NaN.
    fn max(self, a: f32, b: f32) -> f32;
    /// The smaller; NaN if one is NaN.
    fn min_or_nan(self, a: f32, b: f32) -> f32;
    /// `2^x`, relative error below 2^-22, subnormal results flushed to zero; `exp2(-inf)` is 0.
    fn exp2(self, x: f32) -> f32;
    /// Base-2 logarithm, absolute error below 2^-22 on (0.5, 2), relative 2^-22 elsewhere.
    fn log2(self, x: f32) -> f32;
    /// `1 / x`, relative error below 2^-23.
    fn recip(self, x: f32) -> f32;
    /// Two f32 rounded to nearest even bf16, `low` in bits 0..16.
    fn pack_bf16(self, low: f32, high: f32) -> u32;
    /// Two f32 rounded to nearest even f16, `low` in bits 0..16.
    fn pack_f16(self, low: f32, high: f32) -> u32;
    /// The f16 in bits 0..16, widened.
    fn widen_f16(self, bits: u16) -> f32;
    /// Products of two f16 each, rounded to nearest even f16; beyond 65,504 they become infinite.
    fn mul_f16x2(self, a: u32, b: u32) -> u32;
    /// Two f32 rounded to nearest even e4m3, `low` in bits 0..8; beyond ±448 they become ±448, NaN 0x7f.
    fn pack_e4m3(self, low: f32, high: f32) -> u16;
    /// Two f32 rounded to nearest even e5m2, `low` in bits 0..8; beyond ±57344 they become ±57344, NaN 0x7f.
    fn pack_e5m2(self, low: f32, high: f32) -> u16;
    /// Four e4m3 as f16, exactly: bytes 0 and 1, then bytes 2 and 3. NaN stays NaN.
    fn widen_e4m3x4(self, word: u32) -> [u32; 2];
    /// Four signed bytes as f16, exactly: bytes 0 and 1, then bytes 2 and 3.
    fn widen_i8x4(self, word: u32) -> [u32; 2];
    /// Picks four of the eight bytes of `low` (0..=3) and `high` (4..=7): nibble `i` of `selector` says
    /// which becomes byte `i` (PTX `prmt`).
    fn permute_bytes(self, low: u32, high: u32, selector: u32) -> u32;
}
