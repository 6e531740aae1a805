//! Arithmetic that both compilers leave as it is written.

use core::arch::asm;

use crate::gpu::ptx::PtxLane;
use crate::gpu::{Numbers, fp8};

macro_rules! unary_f32 {
    ($method:ident, $instruction:literal) => {
        #[inline(always)]
        fn $method(self, x: f32) -> f32 {
            let y: f32;
            // SAFETY: registers only.
            unsafe { asm!(concat!($instruction, " {0}, {1};"), out(reg32) y, in(reg32) x, options(pure, nomem, nostack)) };
            y
        }
    };
}

macro_rules! pack {
    ($method:ident, $instruction:literal) => {
        #[inline(always)]
        fn $method(self, low: f32, high: f32) -> u32 {
            let packed: u32;
            // The first source of the PTX instruction is the upper half.
            // SAFETY: registers only.
            unsafe {
                asm!(concat!($instruction, " {0}, {1}, {2};"), out(reg32) packed, in(reg32) high, in(reg32) low, options(pure, nomem, nostack))
            };
            packed
        }
    };
}

/// Whether the architecture converts FP8 by instruction; those after sm_89 have its features too.
const HAS_FP8: bool = cfg!(any(target_feature = "sm_89", target_feature = "compute_89"));

macro_rules! pack_fp8 {
    ($method:ident, $instruction:literal, $software:path) => {
        #[inline(always)]
        fn $method(self, low: f32, high: f32) -> u16 {
            if !HAS_FP8 {
                return $software(low) as u16 | ($software(high) as u16) << 8;
            }
            let packed: u16;
            // The first source of the PTX instruction is the upper half.
            // SAFETY: registers only.
            unsafe {
                asm!(concat!($instruction, " {0}, {1}, {2};"), out(reg16) packed, in(reg32) high, in(reg32) low, options(pure, nomem, nostack))
            };
            packed
        }
    };
}

// SAFETY: each method is the PTX instruction whose semantics the contract restates.
unsafe impl Numbers for PtxLane {
    #[inline(always)]
    fn fma(self, a: f32, b: f32, c: f32) -> f32 {
        let value: f32;
        // SAFETY: registers only.
        unsafe {
            asm!("fma.rn.f32 {0}, {1}, {2}, {3};", out(reg32) value, in(reg32) a, in(reg32) b, in(reg32) c, options(pure, nomem, nostack))
        };
        value
    }
    #[inline(always)]
    fn max(self, a: f32, b: f32) -> f32 {
        let value: f32;
        // SAFETY: registers only.
        unsafe {
            asm!("max.f32 {0}, {1}, {2};", out(reg32) value, in(reg32) a, in(reg32) b, options(pure, nomem, nostack))
        };
        value
    }
    #[inline(always)]
    fn mul_down(self, a: f32, b: f32) -> f32 {
        let value: f32;
        // SAFETY: registers only.
        unsafe {
            asm!("mul.rm.f32 {0}, {1}, {2};", out(reg32) value, in(reg32) a, in(reg32) b, options(pure, nomem, nostack))
        };
        value
    }
    #[inline(always)]
    fn min_or_nan(self, a: f32, b: f32) -> f32 {
        let value: f32;
        // SAFETY: registers only.
        unsafe {
            asm!("min.NaN.f32 {0}, {1}, {2};", out(reg32) value, in(reg32) a, in(reg32) b, options(pure, nomem, nostack))
        };
        value
    }
    unary_f32!(exp2, "ex2.approx.ftz.f32");
    unary_f32!(log2, "lg2.approx.f32");
    unary_f32!(recip, "rcp.approx.ftz.f32");
    pack!(pack_bf16, "cvt.rn.bf16x2.f32");
    pack!(pack_f16, "cvt.rn.f16x2.f32");
    #[inline(always)]
    fn widen_f16(self, bits: u16) -> f32 {
        let value: f32;
        // SAFETY: registers only.
        unsafe {
            asm!("cvt.f32.f16 {0}, {1};", out(reg32) value, in(reg16) bits, options(pure, nomem, nostack))
        };
        value
    }
    #[inline(always)]
    fn mul_f16x2(self, a: u32, b: u32) -> u32 {
        let value: u32;
        // SAFETY: registers only.
        unsafe {
            asm!("mul.rn.f16x2 {0}, {1}, {2};", out(reg32) value, in(reg32) a, in(reg32) b, options(pure, nomem, nostack))
        };
        value
    }

    pack_fp8!(pack_e4m3, "cvt.rn.satfinite.e4m3x2.f32", fp8::to_e4m3);
    pack_fp8!(pack_e5m2, "cvt.rn.satfinite.e5m2x2.f32", fp8::to_e5m2);
    #[inline(always)]
    fn widen_e4m3x4(self, word: u32) -> [u32; 2] {
        widen_e4m3x4(self, word)
    }
    #[inline(always)]
    fn widen_i8x4(self, word: u32) -> [u32; 2] {
        // 0x6400 + u is the f16 1024 + u; with the sign bit flipped, u is the value plus 128.
        let flipped = word ^ 0x8080_8080;
        let widen = |selector| {
            let biased = self.permute_bytes(flipped, 0x6464_6464, selector);
            let value: u32;
            // SAFETY: registers only; the difference is exact.
            unsafe {
                asm!("sub.rn.f16x2 {0}, {1}, {2};", out(reg32) value, in(reg32) biased, in(reg32) 0x6480_6480u32, options(pure, nomem, nostack))
            };
            value
        };
        [widen(0x4140), widen(0x4342)]
    }
    #[inline(always)]
    fn permute_bytes(self, low: u32, high: u32, selector: u32) -> u32 {
        let value: u32;
        // SAFETY: registers only.
        unsafe {
            asm!(
                "prmt.b32 {0}, {1}, {2}, {3};",
                out(reg32) value, in(reg32) low, in(reg32) high, in(reg32) selector,
                options(pure, nomem, nostack)
            )
        };
        value
    }
}

/// From compute capability 8.9 on the hardware widens two values at a time.
#[cfg(any(target_feature = "sm_89", target_feature = "compute_89"))]
#[inline(always)]
fn widen_e4m3x4(_gpu: PtxLane, word: u32) -> [u32; 2] {
    let (low, high);
    // SAFETY: registers only.
    unsafe {
        asm!(
            "{{ .reg .b16 l, h; mov.b32 {{l, h}}, {2}; cvt.rn.f16x2.e4m3x2 {0}, l; cvt.rn.f16x2.e4m3x2 {1}, h; }}",
            out(reg32) low, out(reg32) high, in(reg32) word,
            options(pure, nomem, nostack)
        )
    };
    [low, high]
}

/// Before, the bits are moved into place: an e4m3 is an f16 whose exponent is 8 too small.
#[cfg(not(any(target_feature = "sm_89", target_feature = "compute_89")))]
#[inline(always)]
fn widen_e4m3x4(gpu: PtxLane, word: u32) -> [u32; 2] {
    let widen = |bytes: u32| {
        let bits = (bytes & 0x8000_8000) | ((bytes & 0x7f00_7f00) >> 1);
        let value: u32;
        // Exact: a product with 2^8 only moves the exponent, subnormals included.
        // SAFETY: registers only.
        unsafe {
            asm!("mul.rn.f16x2 {0}, {1}, {2};", out(reg32) value, in(reg32) bits, in(reg32) 0x5c00_5c00u32, options(pure, nomem, nostack))
        };
        // 0x7f alone carries into bit 7: NaN, whose exponent becomes all ones.
        let nan = ((bytes & 0x7f00_7f00) + 0x0100_0100) & 0x8000_8000;
        value | (nan - (nan >> 5))
    };
    [
        widen(gpu.permute_bytes(word, 0, 0x1404)),
        widen(gpu.permute_bytes(word, 0, 0x3424)),
    ]
}
