//! The element types of queries, caches and outputs, as types.
//!
//! A kernel that multiplies matrices is generic over [`Half`], one that moves and converts values over
//! [`Element`]; no `if bf16` is left in a loop.

mod cache_format;
pub mod quant;
mod set;
pub mod stored;

pub use cache_format::{CacheDtype, CacheFormat, E4m3, E4m3PerToken, E5m2, I8PerToken};
pub use set::{Dtype, HalfDtype, NotInSubset, QueryDtype, UnknownDtype};

use crate::gpu::Gpu;
#[cfg(doc)]
use crate::gpu::{Matrices, Memory};

mod sealed {
    pub trait Sealed {}
}

/// A 16-bit float that the tensor cores multiply.
pub trait Half: sealed::Sealed + Copy {
    /// This type's name at run time.
    const HALF: HalfDtype;
    /// Probabilities are multiplied by two to this power before they are rounded to this type, so that
    /// small ones do not drop below its smallest number.
    const PROB_SHIFT: f32;
    /// Two to minus that power: what takes it back.
    const PROB_UNIT: f32;
    /// `acc + a b`; see [`Matrices::mma_bf16`].
    ///
    /// # Safety
    /// Converged.
    #[track_caller]
    unsafe fn mma<G: Gpu>(gpu: G, acc: [f32; 4], a: [u32; 4], b: [u32; 2]) -> [f32; 4];
    /// Two values rounded to nearest even, `low` in bits 0..16.
    fn pack<G: Gpu>(gpu: G, low: f32, high: f32) -> u32;
    /// The value in bits 0..16.
    fn widen<G: Gpu>(gpu: G, bits: u16) -> f32;
}

/// bfloat16.
#[derive(Clone, Copy, Debug)]
pub struct Bf16;
/// IEEE binary16.
#[derive(Clone, Copy, Debug)]
pub struct F16;

/// IEEE binary32.
#[derive(Clone, Copy, Debug)]
pub struct F32;
/// Signed byte.
#[derive(Clone, Copy, Debug)]
pub struct I8;

impl sealed::Sealed for Bf16 {}
impl sealed::Sealed for F16 {}
impl sealed::Sealed for F32 {}
impl sealed::Sealed for E4m3 {}
impl sealed::Sealed for E5m2 {}
impl sealed::Sealed for I8 {}

impl Half for Bf16 {
    const HALF: HalfDtype = HalfDtype::Bf16;
    const PROB_SHIFT: f32 = 0.0;
    const PROB_UNIT: f32 = 1.0;
    #[inline(always)]
    #[track_caller]
    unsafe fn mma<G: Gpu>(gpu: G, acc: [f32; 4], a: [u32; 4], b: [u32; 2]) -> [f32; 4] {
        // SAFETY: converged: the contract of `Half::mma`.
        unsafe { gpu.mma_bf16(acc, a, b) }
    }
    #[inline(always)]
    fn pack<G: Gpu>(gpu: G, low: f32, high: f32) -> u32 {
        gpu.pack_bf16(low, high)
    }
    #[inline(always)]
    fn widen<G: Gpu>(_gpu: G, bits: u16) -> f32 {
        f32::from_bits((bits as u32) << 16)
    }
}

impl Half for F16 {
    const HALF: HalfDtype = HalfDtype::F16;
    const PROB_SHIFT: f32 = 15.0;
    const PROB_UNIT: f32 = 1.0 / 32_768.0;
    #[inline(always)]
    #[track_caller]
    unsafe fn mma<G: Gpu>(gpu: G, acc: [f32; 4], a: [u32; 4], b: [u32; 2]) -> [f32; 4] {
        // SAFETY: converged: the contract of `Half::mma`.
        unsafe { gpu.mma_f16(acc, a, b) }
    }
    #[inline(always)]
    fn pack<G: Gpu>(gpu: G, low: f32, high: f32) -> u32 {
        gpu.pack_f16(low, high)
    }
    #[inline(always)]
    fn widen<G: Gpu>(gpu: G, bits: u16) -> f32 {
        gpu.widen_f16(bits)
    }
}

/// An element of a tensor in memory: how one value, and eight that lie side by side, are read and written.
///
/// Loading and widening are two steps, so that a kernel can have several loads in flight before it needs
/// the first value.
pub trait Element: sealed::Sealed + Copy {
    /// This type's name at run time.
    const DTYPE: Dtype;
    /// Bytes per value.
    const BYTES: u32 = Self::DTYPE.size() as u32;
    /// Eight values as they lie in memory.
    type Eight: Copy;
    /// Eight zeros.
    const ZEROS: Self::Eight;

    /// Loads eight values.
    ///
    /// # Safety
    /// The eight values are as in [`Memory::ld_global_b8`], at an address aligned to 16 bytes, or to all eight if they
    /// are fewer bytes.
    #[track_caller]
    unsafe fn load8<G: Gpu>(gpu: G, address: u64) -> Self::Eight;
    /// Stores eight values.
    ///
    /// # Safety
    /// The eight values are as in [`Memory::st_global_b8`], aligned as for [`Element::load8`].
    #[track_caller]
    unsafe fn store8<G: Gpu>(gpu: G, address: u64, values: Self::Eight);
    /// The values; exact.
    fn widen8<G: Gpu>(gpu: G, values: Self::Eight) -> [f32; 8];
    /// The nearest values: ties to even and saturating in FP8, away from zero and saturating in [`I8`].
    fn narrow8<G: Gpu>(gpu: G, values: [f32; 8]) -> Self::Eight;
    /// Loads one value; exact.
    ///
    /// # Safety
    /// The value is as in [`Memory::ld_global_b8`], and aligned.
    #[track_caller]
    unsafe fn load1<G: Gpu>(gpu: G, address: u64) -> f32;
    /// Stores the value nearest to `value`, as [`Element::narrow8`].
    ///
    /// # Safety
    /// The value is as in [`Memory::st_global_b8`], and aligned.
    #[track_caller]
    unsafe fn store1<G: Gpu>(gpu: G, address: u64, value: f32);
}

macro_rules! element_of_two_bytes {
    ($type:ident) => {
        impl Element for $type {
            const DTYPE: Dtype = Dtype::$type;
            type Eight = [u32; 4];
            const ZEROS: [u32; 4] = [0; 4];

            #[inline(always)]
            #[track_caller]
            unsafe fn load8<G: Gpu>(gpu: G, address: u64) -> [u32; 4] {
                // SAFETY: eight values in bounds, 16-byte aligned: the contract of `Element::load8`.
                unsafe { gpu.ld_global_b128(address) }
            }
            #[inline(always)]
            #[track_caller]
            unsafe fn store8<G: Gpu>(gpu: G, address: u64, values: [u32; 4]) {
                // SAFETY: eight values in bounds, 16-byte aligned, no other lane's: the contract of `Element::store8`.
                unsafe { gpu.st_global_b128(address, values) }
            }
            #[inline(always)]
            fn widen8<G: Gpu>(gpu: G, [a, b, c, d]: [u32; 4]) -> [f32; 8] {
                let low = |pair: u32| Self::widen(gpu, pair as u16);
                let high = |pair: u32| Self::widen(gpu, (pair >> 16) as u16);
                [
                    low(a),
                    high(a),
                    low(b),
                    high(b),
                    low(c),
                    high(c),
                    low(d),
                    high(d),
                ]
            }
            #[inline(always)]
            fn narrow8<G: Gpu>(gpu: G, [a, b, c, d, e, f, g, h]: [f32; 8]) -> [u32; 4] {
                let pack = |low, high| Self::pack(gpu, low, high);
                [pack(a, b), pack(c, d), pack(e, f), pack(g, h)]
            }
            #[inline(always)]
            #[track_caller]
            unsafe fn load1<G: Gpu>(gpu: G, address: u64) -> f32 {
                // SAFETY: in bounds and aligned: the contract of `Element::load1`.
                Self::widen(gpu, unsafe { gpu.ld_global_b16(address) })
            }
            #[inline(always)]
            #[track_caller]
            unsafe fn store1<G: Gpu>(gpu: G, address: u64, value: f32) {
                // SAFETY: in bounds, aligned, and no other lane's: the contract of `Element::store1`.
                unsafe { gpu.st_global_b16(address, Self::pack(gpu, value, 0.0) as u16) }
            }
        }
    };
}
element_of_two_bytes!(Bf16);
element_of_two_bytes!(F16);

impl Element for F32 {
    const DTYPE: Dtype = Dtype::F32;
    type Eight = [[u32; 4]; 2];
    const ZEROS: [[u32; 4]; 2] = [[0; 4]; 2];

    #[inline(always)]
    #[track_caller]
    unsafe fn load8<G: Gpu>(gpu: G, address: u64) -> [[u32; 4]; 2] {
        // SAFETY: eight values in bounds: the contract of `Element::load8`; both halves are aligned to 16 bytes.
        unsafe {
            [
                gpu.ld_global_b128(address),
                gpu.ld_global_b128(address + 16),
            ]
        }
    }
    #[inline(always)]
    #[track_caller]
    unsafe fn store8<G: Gpu>(gpu: G, address: u64, [low, high]: [[u32; 4]; 2]) {
        // SAFETY: eight values in bounds, no other lane's: the contract of `Element::store8`; both halves are aligned.
        unsafe {
            gpu.st_global_b128(address, low);
            gpu.st_global_b128(address + 16, high);
        }
    }
    #[inline(always)]
    fn widen8<G: Gpu>(_gpu: G, [[a, b, c, d], [e, f, g, h]]: [[u32; 4]; 2]) -> [f32; 8] {
        [a, b, c, d, e, f, g, h].map(f32::from_bits)
    }
    #[inline(always)]
    fn narrow8<G: Gpu>(_gpu: G, values: [f32; 8]) -> [[u32; 4]; 2] {
        let [a, b, c, d, e, f, g, h] = values.map(f32::to_bits);
        [[a, b, c, d], [e, f, g, h]]
    }
    #[inline(always)]
    #[track_caller]
    unsafe fn load1<G: Gpu>(gpu: G, address: u64) -> f32 {
        // SAFETY: in bounds and aligned: the contract of `Element::load1`.
        f32::from_bits(unsafe { gpu.ld_global_b32(address) })
    }
    #[inline(always)]
    #[track_caller]
    unsafe fn store1<G: Gpu>(gpu: G, address: u64, value: f32) {
        // SAFETY: in bounds, aligned, and no other lane's: the contract of `Element::store1`.
        unsafe { gpu.st_global_b32(address, value.to_bits()) }
    }
}

/// An element of one byte, eight of which are two words.
pub trait Byte: Element<Eight = [u32; 2]> {
    /// The largest finite value.
    const LARGEST: f32;
    /// Two values as bytes, rounded as [`Element::narrow8`] says, `low` in bits 0..8.
    fn pack<G: Gpu>(gpu: G, low: f32, high: f32) -> u16;
    /// The four values of a word; exact.
    fn unpack<G: Gpu>(gpu: G, word: u32) -> [f32; 4];
}

macro_rules! element_of_one_byte {
    ($type:ident = $dtype:ident) => {
        impl Element for $type {
            const DTYPE: Dtype = Dtype::$dtype;
            type Eight = [u32; 2];
            const ZEROS: [u32; 2] = [0; 2];

            #[inline(always)]
            #[track_caller]
            unsafe fn load8<G: Gpu>(gpu: G, address: u64) -> [u32; 2] {
                // SAFETY: eight values in bounds, 8-byte aligned: the contract of `Element::load8`.
                let both = unsafe { gpu.ld_global_b64(address) };
                [both as u32, (both >> 32) as u32]
            }
            #[inline(always)]
            #[track_caller]
            unsafe fn store8<G: Gpu>(gpu: G, address: u64, [low, high]: [u32; 2]) {
                // SAFETY: eight values in bounds, 8-byte aligned, no other lane's: the contract of `Element::store8`.
                unsafe { gpu.st_global_b64(address, low as u64 | (high as u64) << 32) }
            }
            #[inline(always)]
            fn widen8<G: Gpu>(gpu: G, [low, high]: [u32; 2]) -> [f32; 8] {
                let [a, b, c, d] = Self::unpack(gpu, low);
                let [e, f, g, h] = Self::unpack(gpu, high);
                [a, b, c, d, e, f, g, h]
            }
            #[inline(always)]
            fn narrow8<G: Gpu>(gpu: G, [a, b, c, d, e, f, g, h]: [f32; 8]) -> [u32; 2] {
                let pack = |low, high| <Self as Byte>::pack(gpu, low, high) as u32;
                [pack(a, b) | pack(c, d) << 16, pack(e, f) | pack(g, h) << 16]
            }
            #[inline(always)]
            #[track_caller]
            unsafe fn load1<G: Gpu>(gpu: G, address: u64) -> f32 {
                // SAFETY: in bounds: the contract of `Element::load1`.
                let byte = unsafe { gpu.ld_global_b8(address) };
                Self::unpack(gpu, byte as u32)[0]
            }
            #[inline(always)]
            #[track_caller]
            unsafe fn store1<G: Gpu>(gpu: G, address: u64, value: f32) {
                let pair = <Self as Byte>::pack(gpu, value, 0.0);
                // SAFETY: in bounds, and no other lane's: the contract of `Element::store1`.
                unsafe { gpu.st_global_b8(address, pair as u8) }
            }
        }
    };
}
element_of_one_byte!(E4m3 = F8E4m3);
element_of_one_byte!(E5m2 = F8E5m2);
element_of_one_byte!(I8 = I8);

/// The values of two pairs of f16.
#[inline(always)]
fn widen_halves<G: Gpu>(gpu: G, [low, high]: [u32; 2]) -> [f32; 4] {
    let widen = |half: u32| gpu.widen_f16(half as u16);
    [widen(low), widen(low >> 16), widen(high), widen(high >> 16)]
}

impl Byte for E4m3 {
    const LARGEST: f32 = 448.0;
    #[inline(always)]
    fn pack<G: Gpu>(gpu: G, low: f32, high: f32) -> u16 {
        gpu.pack_e4m3(low, high)
    }
    #[inline(always)]
    fn unpack<G: Gpu>(gpu: G, word: u32) -> [f32; 4] {
        widen_halves(gpu, gpu.widen_e4m3x4(word))
    }
}

impl Byte for E5m2 {
    const LARGEST: f32 = 57_344.0;
    #[inline(always)]
    fn pack<G: Gpu>(gpu: G, low: f32, high: f32) -> u16 {
        gpu.pack_e5m2(low, high)
    }
    #[inline(always)]
    fn unpack<G: Gpu>(gpu: G, word: u32) -> [f32; 4] {
        // An e5m2 is the upper half of an f16.
        let halves = [0x1404, 0x3424].map(|bytes| gpu.permute_bytes(word, 0, bytes));
        widen_halves(gpu, halves)
    }
}

/// `magnitude` with the sign of `sign`, by its bits: libNVVM refuses the intrinsic behind `f32::copysign`.
#[inline(always)]
fn with_sign_of(magnitude: f32, sign: f32) -> f32 {
    const SIGN: u32 = 1 << 31;
    f32::from_bits(magnitude.to_bits() & !SIGN | sign.to_bits() & SIGN)
}

impl Byte for I8 {
    const LARGEST: f32 = 127.0;
    #[inline(always)]
    fn pack<G: Gpu>(gpu: G, low: f32, high: f32) -> u16 {
        let byte = |x: f32| {
            // Just below one half: adding it and cutting rounds ties away from zero, and nothing else up.
            let rounded = x + with_sign_of(f32::from_bits(0x3eff_ffff), x);
            let clamped = gpu.max(rounded, -128.0);
            let clamped = if clamped > 127.0 { 127.0 } else { clamped };
            // SAFETY: from -128 to 127, also if `x` is a NaN, of which `max` takes the other. A cast would see to
            // that again.
            let integer = unsafe { clamped.to_int_unchecked::<i32>() };
            // A NaN has no place among integers.
            if x.is_nan() { 0 } else { integer as u8 }
        };
        byte(low) as u16 | (byte(high) as u16) << 8
    }
    #[inline(always)]
    fn unpack<G: Gpu>(_gpu: G, word: u32) -> [f32; 4] {
        word.to_le_bytes().map(|byte| byte as i8 as f32)
    }
}
