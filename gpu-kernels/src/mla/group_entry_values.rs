//! Bytes of entries become f16 in the panels that they were copied over.
//!
//! A value is `e4m3 * scale`, rounded to bf16, as everywhere. Of a scale that is a power of two, as writers make them, and
//! neither tiny nor huge, the f16 is exact without that rounding, and made at a third of the price. What an f16 has no room
//! for becomes infinite or NaN, so that the rows of the query that see it are computed again, from memory: values beyond
//! 65,504, and groups whose largest values would lose bits, if they have any but zeros.

use crate::dtype::{CacheFormat, E4m3};
use crate::gpu::unroll::unroll;
use crate::gpu::{Gpu, PANEL_BYTES, store_sixteen};
use crate::mla::cache_format::dequantise8;
use crate::mla::group_entry_rows::{OWN, Rows};
use crate::mla::group_loader::GROUP;
use crate::mla::group_loader_fp8::widen_lines;

/// Of smaller scales the products with the smallest bytes are no f16: 2^-14.
const LEAST_PLAIN: f32 = 1.0 / 16_384.0;
/// The largest values of groups with smaller scales lose bits that a bf16 has: 2^-22.
const LEAST: f32 = 1.0 / 4_194_304.0;
/// Two f16 that are NaN.
const NAN: u32 = 0x7e00_7e00;

impl Rows {
    /// Whether all scales of the warp's rows are powers of two with which an f16 is exact.
    ///
    /// # Safety
    /// Converged.
    #[inline(always)]
    pub(super) unsafe fn are_plain<G: Gpu>(&self, gpu: G) -> bool {
        let mut are_plain = true;
        unroll!([2] i in 0..OWN {
            unroll!([2] go in 0..2 {
                let scale = f32::from_bits(self.scales[i][go]);
                // No way of its own for any of the three.
                are_plain &= (self.at[i] == 0) | (scale >= LEAST_PLAIN) & is_power_of_two(scale);
            });
        });
        // SAFETY: converged.
        unsafe { !gpu.any(!are_plain) }
    }

    /// The scale in go `go` of this lane's row of group `group` of half `half` of the tile.
    ///
    /// # Safety
    /// Converged.
    #[inline(always)]
    unsafe fn scale<G: Gpu>(&self, gpu: G, go: u32, half: u32, group: usize) -> f32 {
        // As in `Rows::at`.
        let [first, second] = self
            .scales
            .map(|[first, second]| if go == 0 { first } else { second });
        let own = if half == 0 { first } else { second };
        // SAFETY: converged.
        f32::from_bits(unsafe { gpu.shfl(own, group as u32 * GROUP + gpu.lane() / 4) })
    }

    /// Makes f16 of go `go`, whose lines lie over the panel at `panels`; `are_plain` says what [`Rows::are_plain`] does.
    ///
    /// # Safety
    /// As [`widen_lines`].
    #[inline(always)]
    pub(super) unsafe fn widen_go<G: Gpu>(&self, gpu: G, go: u32, panels: u32, are_plain: bool) {
        // SAFETY: this function's contract.
        unsafe {
            if are_plain {
                self.widen_panels::<G, true>(gpu, go, panels);
            } else {
                self.widen_panels::<G, false>(gpu, go, panels);
            }
        }
    }

    /// See [`Rows::widen_go`]; with `PLAIN`, scales are.
    ///
    /// # Safety
    /// As there.
    #[inline(always)]
    unsafe fn widen_panels<G: Gpu, const PLAIN: bool>(&self, gpu: G, go: u32, panels: u32) {
        // SAFETY: this function's contract; the lane's parts of both panels, of which it has taken what lay there.
        unsafe {
            widen_lines(
                gpu,
                panels,
                |half, group| self.scale(gpu, go, half, group),
                |scale, at, [first, second]| {
                    store_scaled::<G, PLAIN>(gpu, at, first, scale);
                    store_scaled::<G, PLAIN>(gpu, at + PANEL_BYTES, second, scale);
                },
            );
        }
    }
}

/// Whether a positive number is one, and not a subnormal.
#[inline(always)]
fn is_power_of_two(x: f32) -> bool {
    x.to_bits().trailing_zeros() >= 23
}

/// Stores sixteen bytes times their scale, as f16: the second eight are beside the first ones.
///
/// # Safety
/// `at` is where 8 values of an even chunk of a panel's row go, this lane's, and what lay there has been taken.
#[inline(always)]
unsafe fn store_scaled<G: Gpu, const PLAIN: bool>(gpu: G, at: u32, bytes: [u32; 4], scale: f32) {
    // By words: rust-cuda makes bytes of arrays that are mapped.
    let (mut low, mut high);
    if PLAIN {
        [low, high] = E4m3::widen16(gpu, bytes);
        let scale = gpu.pack_f16(scale, scale);
        unroll!([4] i in 0..4 {
            low[i] = gpu.mul_f16x2(low[i], scale);
            high[i] = gpu.mul_f16x2(high[i], scale);
        });
    } else {
        low = dequantise8(gpu, [bytes[0], bytes[1]], scale);
        high = dequantise8(gpu, [bytes[2], bytes[3]], scale);
        unroll!([4] i in 0..4 {
            low[i] = narrow(gpu, low[i], scale < LEAST);
            high[i] = narrow(gpu, high[i], scale < LEAST);
        });
    }
    // SAFETY: this function's contract.
    unsafe { store_sixteen(gpu, at, [low, high]) };
}

/// Two bf16 as f16; NaN if they are `lost` and not both zero.
#[inline(always)]
fn narrow<G: Gpu>(gpu: G, pair: u32, lost: bool) -> u32 {
    // A choice of constants, not of ways: whatever has these bits, too, is NaN.
    let nan = if lost && pair & 0x7fff_7fff != 0 {
        NAN
    } else {
        0
    };
    let [low, high] = self::pair(pair);
    gpu.pack_f16(low, high) | nan
}

/// Two bf16 as f32.
#[inline(always)]
fn pair(pair: u32) -> [f32; 2] {
    [
        f32::from_bits(pair << 16),
        f32::from_bits(pair & 0xffff_0000),
    ]
}
