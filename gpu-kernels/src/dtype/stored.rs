//! What becomes of a 16-bit value where it is stored: itself, or FP8 after division by a scale.

use crate::dtype::quant::Divisor;
use crate::dtype::{Bf16, E4m3, E5m2, Element, F16, Half};
use crate::gpu::Gpu;

/// A 16-bit type whose values are stored as `Out`.
pub trait StoredAs<Out>: Half + Element<Eight = [u32; 4]> {
    /// Bytes per stored value.
    const BYTES: u32;
    /// Whether values are divided by a scale.
    const IS_SCALED: bool;

    /// Stores eight values.
    ///
    /// # Safety
    /// As [`Element::store8`] of `Out`.
    #[track_caller]
    unsafe fn store8_as<G: Gpu>(gpu: G, address: u64, values: [u32; 4], scale: f32);
    /// Stores one value, given by its bits.
    ///
    /// # Safety
    /// As [`Element::store1`] of `Out`.
    #[track_caller]
    unsafe fn store1_as<G: Gpu>(gpu: G, address: u64, bits: u16, scale: f32);
}

macro_rules! stored_as_itself {
    ($($type:ident)*) => {$(
        impl StoredAs<$type> for $type {
            const BYTES: u32 = 2;
            const IS_SCALED: bool = false;

            #[inline(always)]
            #[track_caller]
            unsafe fn store8_as<G: Gpu>(gpu: G, address: u64, values: [u32; 4], _scale: f32) {
                // SAFETY: eight values in bounds, aligned, no other lane's: the contract of `StoredAs::store8_as`.
                unsafe { gpu.st_global_b128(address, values) };
            }
            #[inline(always)]
            #[track_caller]
            unsafe fn store1_as<G: Gpu>(gpu: G, address: u64, bits: u16, _scale: f32) {
                // SAFETY: in bounds, aligned, and no other lane's: the contract of `StoredAs::store1_as`.
                unsafe { gpu.st_global_b16(address, bits) };
            }
        }
    )*};
}
stored_as_itself!(Bf16 F16);

macro_rules! stored_as_quotient {
    ($($type:ident)*) => {$(
        impl<In: Half + Element<Eight = [u32; 4]>> StoredAs<$type> for In {
            const BYTES: u32 = 1;
            const IS_SCALED: bool = true;

            #[inline(always)]
            #[track_caller]
            unsafe fn store8_as<G: Gpu>(gpu: G, address: u64, values: [u32; 4], scale: f32) {
                let quotients = Divisor::new(gpu, scale).divide8::<G, In>(gpu, values);
                // SAFETY: what `store8` asks: the contract of `StoredAs::store8_as`.
                unsafe { $type::store8(gpu, address, $type::narrow8(gpu, quotients)) };
            }
            #[inline(always)]
            #[track_caller]
            unsafe fn store1_as<G: Gpu>(gpu: G, address: u64, bits: u16, scale: f32) {
                // SAFETY: what `store1` asks: the contract of `StoredAs::store1_as`.
                unsafe { $type::store1(gpu, address, In::widen(gpu, bits) / scale) };
            }
        }
    )*};
}
stored_as_quotient!(E4m3 E5m2);
