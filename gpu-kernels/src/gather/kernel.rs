//! Gathers tokens of a paged cache into rows that lie side by side: byte for byte, or dequantised.
//!
//! Grid: x = warps over rows, y = slab of 128 units, of rows that are longer. A warp owns one row of the
//! output, or a slab of it:
//!
//! ```text
//! slot of this row's token                                 (see `gather_rows`)
//! out[row] = cache[slot], widened and scaled               (without a slot: untouched, or zeros if asked for)
//! ```
//!
//! The shape of the launch depends on the number of rows alone, never on what indices say, so it can be
//! captured in a graph; and a row depends on its own index alone, so every order of rows gives the same bytes.

use core::marker::PhantomData;

use crate::cache::reshape_and_cache_flash::{load, store};
use crate::cache::slots::Slot;
use crate::dtype::{E4m3, Element};
use crate::entry::Variant;
pub use crate::gather::check::CheckGather;
use crate::gather::grid::{SLAB, THREADS, UNITS};
use crate::gather::rows::Row;
use crate::gpu::unroll::unroll;
use crate::gpu::{Gpu, WARP};
use crate::kernel::Kernel;
use crate::mla::cache_format::{dequantise8, fp8_ds, power_of_two, v4};
use crate::params::GatherParams;

/// Units of eight values of a lane in the forms with scales of their own.
const EIGHTS: usize = 2;

const _: () = assert!(fp8_ds::LATENTS == EIGHTS as u32 * 8 * WARP);
const _: () = assert!(v4::VALUES + v4::ROPE == EIGHTS as u32 * 8 * WARP);

/// Copies bytes.
///
/// # Safety
/// Launched on [`grid`](crate::gather::grid::grid) with [`THREADS`] threads; `params` names tensors of the shapes and
/// the alignment it documents.
#[inline(always)]
pub unsafe fn copy<G: Gpu>(gpu: G, params: &GatherParams) {
    // SAFETY: as `find` asks: this function's contract.
    let Some(row) = (unsafe { Row::find::<G, false>(gpu, params) }) else {
        return;
    };
    // SAFETY: `find` gives a row of this warp's; all is aligned to `unit`: this function's contract.
    unsafe {
        // No `match`: it would become a table of jumps.
        if params.unit >= 16 {
            row.copy::<G, 16>(gpu, params);
        } else if params.unit >= 8 {
            row.copy::<G, 8>(gpu, params);
        } else if params.unit >= 4 {
            row.copy::<G, 4>(gpu, params);
        } else if params.unit >= 2 {
            row.copy::<G, 2>(gpu, params);
        } else {
            row.copy::<G, 1>(gpu, params);
        }
    }
}

/// Widens FP8 values of one scale, eight at a time.
///
/// # Safety
/// As [`copy`], with a scale, and units of eight values, aligned as [`Element::load8`] and [`Element::store8`] ask.
#[inline(always)]
pub unsafe fn scaled<G: Gpu, In: Element, Out: Element>(gpu: G, params: &GatherParams) {
    // SAFETY: as `row_and_scale` and `scale_eights` ask: this function's contract.
    unsafe {
        if let Some((row, scale)) = row_and_scale(gpu, params) {
            row.scale_eights::<G, In, Out>(gpu, params, scale);
        }
    }
}

/// Widens FP8 values of one scale, one at a time. A kernel of its own, so that neither has to fetch instructions from
/// behind the other's.
///
/// # Safety
/// As [`copy`], with a scale, and units of one value.
#[inline(always)]
pub unsafe fn scaled_ones<G: Gpu, In: Element, Out: Element>(gpu: G, params: &GatherParams) {
    // SAFETY: as `row_and_scale` and `scale_ones` ask: this function's contract.
    unsafe {
        if let Some((row, scale)) = row_and_scale(gpu, params) {
            row.scale_ones::<G, In, Out>(gpu, params, scale);
        }
    }
}

/// # Safety
/// As [`copy`]; `params.scale` is the address of a scale.
#[inline(always)]
unsafe fn row_and_scale<G: Gpu>(gpu: G, params: &GatherParams) -> Option<(Row, f32)> {
    // SAFETY: as `find` asks, and the scale is readable: this function's contract.
    unsafe {
        let row = Row::find::<G, false>(gpu, params)?;
        Some((row, f32::from_bits(gpu.ld_global_b32(params.scale))))
    }
}

/// Dequantises the 656-byte form to `[512 latents, 64 RoPE values]` in bf16. A lane takes two units of eight
/// latents, 256 apart.
///
/// # Safety
/// As [`copy`], everything aligned to 16 bytes.
#[inline(always)]
pub unsafe fn mla_fp8_ds<G: Gpu>(gpu: G, params: &GatherParams) {
    // SAFETY: as `find` asks: this function's contract.
    let Some(row) = (unsafe { Row::find::<G, false>(gpu, params) }) else {
        return;
    };
    let lane = gpu.lane();
    let mut bytes = [[0; 2]; EIGHTS];
    let mut scales = [0; EIGHTS];
    let mut rope = [0; 4];
    if let Some(slot) = row.slot {
        let entry = params.cache + slot.at(params.stride_cache_block, params.stride_cache_slot);
        unroll!([2] i in 0..EIGHTS {
            let unit = i as u32 * WARP + lane;
            let scale = entry + (fp8_ds::SCALES_AT + 4 * (8 * unit / fp8_ds::GROUP)) as u64;
            // SAFETY: this lane's part of the entry of a slot that `find` found in the cache; aligned: this function's
            // contract.
            unsafe {
                bytes[i] = E4m3::load8(gpu, entry + 8 * unit as u64);
                scales[i] = gpu.ld_global_b32(scale);
            }
        });
        if lane < fp8_ds::ROPE / 8 {
            // SAFETY: as above.
            rope = unsafe { gpu.ld_global_b128(entry + (fp8_ds::ROPE_AT + 16 * lane) as u64) };
        }
    }
    // SAFETY: `find` gives a row of this warp's, of 576 values, aligned: the host's `entry_rows`; each lane writes its
    // own bytes.
    unsafe {
        unroll!([2] i in 0..EIGHTS {
            let at = row.out + 16 * (i as u32 * WARP + lane) as u64;
            gpu.st_global_b128(at, dequantise8(gpu, bytes[i], f32::from_bits(scales[i])));
        });
        if lane < fp8_ds::ROPE / 8 {
            let at = row.out + (2 * fp8_ds::LATENTS + 16 * lane) as u64;
            gpu.st_global_b128(at, rope);
        }
    }
}

/// Dequantises V4's form to `[448 values, 64 RoPE values]` in bf16. A lane takes two units of eight values.
///
/// # Safety
/// As [`mla_fp8_ds`].
#[inline(always)]
pub unsafe fn mla_v4<G: Gpu>(gpu: G, params: &GatherParams) {
    const ROPE_UNIT: u32 = v4::VALUES / 8;
    // SAFETY: as `find` asks: this function's contract.
    let Some(row) = (unsafe { Row::find::<G, false>(gpu, params) }) else {
        return;
    };
    let lane = gpu.lane();
    // In the second unit, the last lanes hold RoPE values instead: twice the bytes. All lanes load them, so
    // that these lanes wait together with the others and not after them.
    let is_rope = WARP + lane >= ROPE_UNIT;
    let mut bytes = [[0; 2]; EIGHTS];
    let mut scales = [0; EIGHTS];
    let mut rest = [0; 2];
    if let Some(slot) = row.slot {
        let page = params.cache + slot.block * params.stride_cache_block as u64;
        let entry = page + slot.offset * v4::VALUE_BYTES as u64;
        let scale = page
            + params.block_size.divisor() as u64 * v4::VALUE_BYTES as u64
            + slot.offset * v4::SCALE_BYTES as u64
            + (8 * lane / v4::GROUP) as u64;
        let (second, second_scale, after) = if is_rope {
            let at = v4::VALUES + 16 * (WARP + lane - ROPE_UNIT);
            (at, 0, 8)
        } else {
            (8 * (WARP + lane), 8 * WARP / v4::GROUP, 0)
        };
        // SAFETY: this lane's values and scales of a slot that `find` found in a page of the cache; aligned: this
        // function's contract.
        unsafe {
            scales[0] = gpu.ld_global_b8(scale);
            scales[1] = gpu.ld_global_b8(scale + second_scale as u64);
            bytes[0] = E4m3::load8(gpu, entry + 8 * lane as u64);
            bytes[1] = E4m3::load8(gpu, entry + second as u64);
            rest = E4m3::load8(gpu, entry + (second + after) as u64);
        }
    }
    let first = dequantise8(gpu, bytes[0], power_of_two(scales[0]));
    let second = dequantise8(gpu, bytes[1], power_of_two(scales[1]));
    let second = if is_rope {
        [bytes[1][0], bytes[1][1], rest[0], rest[1]]
    } else {
        second
    };
    // SAFETY: `find` gives a row of this warp's, of 512 values, aligned: the host's `entry_rows`; each lane writes its
    // own bytes.
    unsafe {
        gpu.st_global_b128(row.out + 16 * lane as u64, first);
        gpu.st_global_b128(row.out + 16 * (WARP + lane) as u64, second);
    }
}

impl Row {
    /// Where unit `i` of the lane is in the row, in units; `None` past the end.
    #[inline(always)]
    fn unit<G: Gpu>(self, gpu: G, params: &GatherParams, i: usize) -> Option<u64> {
        let unit = gpu.cta_idx_y() * SLAB + i as u32 * WARP + gpu.lane();
        (unit < params.row_units).then_some(unit as u64)
    }

    #[inline(always)]
    fn source(self, params: &GatherParams) -> Option<u64> {
        let at = |slot: Slot| slot.at(params.stride_cache_block, params.stride_cache_slot);
        self.slot.map(|slot| params.cache + at(slot))
    }

    /// # Safety
    /// The slot is in the cache, and the row this warp's; rows are `params.row_units` units of `BYTES` bytes, aligned
    /// to them.
    #[inline(always)]
    unsafe fn copy<G: Gpu, const BYTES: u32>(self, gpu: G, params: &GatherParams) {
        let mut data = [[0u32; 4]; UNITS];
        if let Some(source) = self.source(params) {
            unroll!([4] i in 0..UNITS {
                if let Some(unit) = self.unit(gpu, params, i) {
                    // SAFETY: `unit` is below the units of the slot's row, which are aligned: this function's contract.
                    data[i] = unsafe { load::<G, BYTES>(gpu, source + unit * BYTES as u64) };
                }
            });
        }
        unroll!([4] i in 0..UNITS {
            if let Some(unit) = self.unit(gpu, params, i) {
                // SAFETY: this lane's unit of this warp's row, aligned: this function's contract.
                unsafe { store::<G, BYTES>(gpu, self.out + unit * BYTES as u64, data[i]) };
            }
        });
    }

    /// # Safety
    /// The slot is in the cache, and the row this warp's; rows are `params.row_units` units of eight values, aligned to
    /// them.
    #[inline(always)]
    unsafe fn scale_eights<G: Gpu, In: Element, Out: Element>(
        self,
        gpu: G,
        params: &GatherParams,
        scale: f32,
    ) {
        let mut data = [In::ZEROS; UNITS];
        if let Some(source) = self.source(params) {
            unroll!([4] i in 0..UNITS {
                if let Some(unit) = self.unit(gpu, params, i) {
                    let at = source + unit * 8 * In::BYTES as u64;
                    // SAFETY: `unit` is below the units of the slot's row, which are aligned: this function's contract.
                    data[i] = unsafe { In::load8(gpu, at) };
                }
            });
        }
        unroll!([4] i in 0..UNITS {
            if let Some(unit) = self.unit(gpu, params, i) {
                let values = In::widen8(gpu, data[i]).map(|x| x * scale);
                let at = self.out + unit * 8 * Out::BYTES as u64;
                // SAFETY: this lane's unit of this warp's row, aligned: this function's contract.
                unsafe { Out::store8(gpu, at, Out::narrow8(gpu, values)) };
            }
        });
    }

    /// # Safety
    /// The slot is in the cache, and the row this warp's; rows are `params.row_units` values.
    #[inline(always)]
    unsafe fn scale_ones<G: Gpu, In: Element, Out: Element>(
        self,
        gpu: G,
        params: &GatherParams,
        scale: f32,
    ) {
        unroll!([4] i in 0..UNITS {
            if let Some(unit) = self.unit(gpu, params, i) {
                let mut value = 0.0;
                if let Some(source) = self.source(params) {
                    // SAFETY: `unit` is below the values of the slot's row: this function's contract.
                    value = unsafe { In::load1(gpu, source + unit * In::BYTES as u64) } * scale;
                }
                // SAFETY: this lane's value of this warp's row: this function's contract.
                unsafe { Out::store1(gpu, self.out + unit * Out::BYTES as u64, value) };
            }
        });
    }
}

/// [`copy`].
#[derive(Debug)]
pub enum GatherCopy {}

impl Kernel for GatherCopy {
    type Params = GatherParams;
    const VARIANT: Variant = Variant::GatherCopy;
    const THREADS: u32 = THREADS;

    #[inline(always)]
    unsafe fn run<G: Gpu>(gpu: G, params: &GatherParams) {
        // SAFETY: launched as `copy` asks, on tensors of its shapes: the contract of `Kernel::run`.
        unsafe { copy(gpu, params) }
    }
}

/// [`mla_fp8_ds`].
#[derive(Debug)]
pub enum GatherMlaFp8Ds {}

impl Kernel for GatherMlaFp8Ds {
    type Params = GatherParams;
    const VARIANT: Variant = Variant::GatherMlaFp8Ds;
    const THREADS: u32 = THREADS;

    #[inline(always)]
    unsafe fn run<G: Gpu>(gpu: G, params: &GatherParams) {
        // SAFETY: launched as `mla_fp8_ds` asks, on tensors of its shapes: the contract of `Kernel::run`.
        unsafe { mla_fp8_ds(gpu, params) }
    }
}

/// [`mla_v4`].
#[derive(Debug)]
pub enum GatherMlaV4 {}

impl Kernel for GatherMlaV4 {
    type Params = GatherParams;
    const VARIANT: Variant = Variant::GatherMlaV4;
    const THREADS: u32 = THREADS;

    #[inline(always)]
    unsafe fn run<G: Gpu>(gpu: G, params: &GatherParams) {
        // SAFETY: launched as `mla_v4` asks, on tensors of its shapes: the contract of `Kernel::run`.
        unsafe { mla_v4(gpu, params) }
    }
}

/// [`scaled`], or with `VEC8` false [`scaled_ones`].
#[derive(Debug)]
pub struct GatherScaled<In, Out, const VEC8: bool = true>(PhantomData<(In, Out)>);

impl<In: Element, Out: Element, const VEC8: bool> Kernel for GatherScaled<In, Out, VEC8> {
    type Params = GatherParams;
    const VARIANT: Variant = Variant::GatherScaled {
        cache: In::DTYPE,
        out: Out::DTYPE,
        vec8: VEC8,
    };
    const THREADS: u32 = THREADS;

    #[inline(always)]
    unsafe fn run<G: Gpu>(gpu: G, params: &GatherParams) {
        // SAFETY: launched as `scaled` or `scaled_ones` asks, on tensors of its shapes: the contract of `Kernel::run`.
        unsafe {
            if VEC8 {
                scaled::<G, In, Out>(gpu, params);
            } else {
                scaled_ones::<G, In, Out>(gpu, params);
            }
        }
    }
}
