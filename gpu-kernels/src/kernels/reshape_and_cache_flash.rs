//! Writes new tokens' keys and values into a paged cache: copied, or divided by a scale and stored in FP8.
//!
//! Grid: x = warps over (token, slab), y = layer. The keys and values of a token are one list of units (16
//! bytes, or eight values to convert); a warp owns one slab of 128 units, four a lane, and has all its loads
//! in flight before the first store:
//!
//! ```text
//! slot = slot_mapping[layer, token]; done if negative, before anything else is read
//! for i in 0..4:  data[i] = key or value[layer, token, unit i]
//! for i in 0..4:  key_cache or value_cache[slot, unit i] = data[i]           (or fp8(data[i] / scale[head]))
//! ```
//!
//! No loop: a token with more units has more warps, so that few tokens spread over the machine as well.

use super::check::found_fault;
use super::slots::Slot;
use crate::dtype::{Byte, Element};
use crate::gpu::{Gpu, WARP, div};
use crate::params::{CacheSide, ReshapeAndCacheParams};
use crate::quant::Divisor;
use crate::unroll::unroll;

/// Threads per thread block.
pub const THREADS: u32 = 4 * WARP;
/// Units of a lane.
const UNITS: usize = 4;
/// Units of a warp.
pub const SLAB: u32 = UNITS as u32 * WARP;

/// Thread blocks for `num_tokens` tokens of `units` units each in `num_layers` layers; `None` if they are
/// too many for the kernel's 32-bit counters.
pub fn grid(num_layers: u32, num_tokens: u32, units: u32) -> Option<[u32; 3]> {
    let warps = num_tokens.checked_mul(units.div_ceil(SLAB))?;
    let ctas = warps.div_ceil(THREADS / WARP).max(1);
    (num_layers <= 0xffff && warps <= i32::MAX as u32).then_some([ctas, num_layers.max(1), 1])
}

/// What a warp works on.
#[derive(Clone, Copy)]
struct Work {
    layer: u32,
    token: u32,
    /// The lane's first unit; the others follow at distances of 32.
    first_unit: u32,
    slot: Slot,
    /// Added to [`CacheSide::target`].
    cache: u64,
}

/// Where a unit is read and written, and its scale.
#[derive(Clone, Copy)]
struct Place {
    source: u64,
    target: u64,
    scale: u64,
}

/// Copies units of [`ReshapeAndCacheParams::unit`] bytes.
///
/// # Safety
/// Launched on [`grid`] with [`THREADS`] threads; `params` names tensors of the shapes it documents; slots
/// are distinct and inside the cache.
#[inline(always)]
pub unsafe fn copy<G: Gpu>(gpu: G, params: &ReshapeAndCacheParams) {
    // SAFETY: as the caller promises.
    let Some(work) = (unsafe { Work::find(gpu, params) }) else {
        return;
    };
    // SAFETY: as the caller promises; the unit is the alignment.
    unsafe {
        match params.unit {
            16 => work.copy::<G, 16>(gpu, params),
            8 => work.copy::<G, 8>(gpu, params),
            4 => work.copy::<G, 4>(gpu, params),
            2 => work.copy::<G, 2>(gpu, params),
            _ => work.copy::<G, 1>(gpu, params),
        }
    }
}

/// Divides by scales and rounds to FP8.
///
/// # Safety
/// As [`copy`]; each side has a scale.
#[inline(always)]
pub unsafe fn scaled<G: Gpu, In: Element, Out: Byte>(gpu: G, params: &ReshapeAndCacheParams) {
    // SAFETY: as the caller promises.
    let Some(work) = (unsafe { Work::find(gpu, params) }) else {
        return;
    };
    // SAFETY: as the caller promises; units of eight only where they are aligned.
    unsafe {
        if params.unit == 8 {
            work.scale_eights::<G, In, Out>(gpu, params);
        } else {
            work.scale_ones::<G, In, Out>(gpu, params);
        }
    }
}

impl Work {
    /// This warp's share, unless there is none.
    #[inline(always)]
    unsafe fn find<G: Gpu>(gpu: G, params: &ReshapeAndCacheParams) -> Option<Self> {
        // SAFETY: a valid check record, or none.
        if unsafe { found_fault(gpu, params.check) } {
            return None;
        }
        let warp = gpu.cta_idx_x() * (THREADS / WARP) + gpu.warp();
        // SAFETY: every token has a slab at least.
        let token = unsafe { div(warp, params.slabs) };
        if token >= params.num_tokens {
            return None;
        }
        let layer = gpu.cta_idx_y();
        let slots = params.slot_mapping + layer as u64 * params.stride_slot_mapping_layer as u64;
        // SAFETY: one slot per token; the host refuses empty blocks.
        let slot = unsafe { Slot::load(gpu, slots + 8 * token as u64, params.block_size) }?;
        let cache = if params.cache_table == 0 {
            0
        } else {
            // SAFETY: one address per layer.
            unsafe { gpu.ld_global_b64(params.cache_table + 8 * layer as u64) }
        };
        Some(Self {
            layer,
            token,
            first_unit: (warp - token * params.slabs) * SLAB + gpu.lane(),
            slot,
            cache,
        })
    }

    /// Where unit `unit` of the token is; `None` past the last one.
    #[inline(always)]
    fn place(self, params: &ReshapeAndCacheParams, unit: u32, units: Units) -> Option<Place> {
        let key_units = params.key.num_heads * params.key.head_units;
        if unit < key_units {
            return Some(self.place_in(&params.key, unit, units));
        }
        let unit = unit - key_units;
        let value_units = params.value.num_heads * params.value.head_units;
        (unit < value_units).then(|| self.place_in(&params.value, unit, units))
    }

    #[inline(always)]
    fn place_in(self, side: &CacheSide, unit: u32, units: Units) -> Place {
        let head = if side.num_heads == 1 {
            0
        } else {
            // SAFETY: a side with a unit has heads of at least one.
            unsafe { div(unit, side.head_units) }
        };
        let in_head = (unit - head * side.head_units) as u64;
        let (layer, head) = (self.layer as u64, head as u64);
        Place {
            source: side.source
                + layer * side.stride_source_layer as u64
                + self.token as u64 * side.stride_source_token as u64
                + head * side.stride_source_head as u64
                + in_head * units.source_bytes as u64,
            target: self.cache
                + side.target
                + self
                    .slot
                    .at(side.stride_target_block, side.stride_target_slot)
                + head * side.stride_target_head as u64
                + in_head * units.target_bytes as u64,
            scale: side.scale
                + layer * side.stride_scale_layer as u64
                + head * side.stride_scale_head as u64,
        }
    }

    #[inline(always)]
    unsafe fn copy<G: Gpu, const BYTES: u32>(self, gpu: G, params: &ReshapeAndCacheParams) {
        let units = Units {
            source_bytes: BYTES,
            target_bytes: BYTES,
        };
        let mut data = [[0u32; 4]; UNITS];
        let mut targets = [None; UNITS];
        unroll!([4] i in 0..UNITS {
            if let Some(place) = self.place(params, self.first_unit + i as u32 * WARP, units) {
                // SAFETY: a unit of the token's row, aligned as the host found.
                data[i] = unsafe { load::<G, BYTES>(gpu, place.source) };
                targets[i] = Some(place.target);
            }
        });
        unroll!([4] i in 0..UNITS {
            if let Some(target) = targets[i] {
                // SAFETY: the unit's place in the slot, which is this warp's.
                unsafe { store::<G, BYTES>(gpu, target, data[i]) };
            }
        });
    }

    #[inline(always)]
    unsafe fn scale_eights<G: Gpu, In: Element, Out: Byte>(
        self,
        gpu: G,
        params: &ReshapeAndCacheParams,
    ) {
        let units = Units {
            source_bytes: 8 * In::BYTES,
            target_bytes: 8,
        };
        let mut data = [In::ZEROS; UNITS];
        let mut scales = [1.0f32; UNITS];
        let mut targets = [None; UNITS];
        unroll!([4] i in 0..UNITS {
            if let Some(place) = self.place(params, self.first_unit + i as u32 * WARP, units) {
                // SAFETY: a unit of the token's row, aligned as the host found.
                data[i] = unsafe { In::load8(gpu, place.source) };
                // SAFETY: the scale of the unit's head.
                scales[i] = f32::from_bits(unsafe { gpu.ld_global_b32(place.scale) });
                targets[i] = Some(place.target);
            }
        });
        unroll!([4] i in 0..UNITS {
            if let Some(target) = targets[i] {
                let values = In::widen8(gpu, data[i]);
                let quotients = Divisor::new(scales[i]).divide8(gpu, values);
                // SAFETY: the unit's place in the slot, which is this warp's.
                unsafe { Out::store8(gpu, target, Out::narrow8(gpu, quotients)) };
            }
        });
    }

    #[inline(always)]
    unsafe fn scale_ones<G: Gpu, In: Element, Out: Byte>(
        self,
        gpu: G,
        params: &ReshapeAndCacheParams,
    ) {
        let units = Units {
            source_bytes: In::BYTES,
            target_bytes: 1,
        };
        unroll!([4] i in 0..UNITS {
            if let Some(place) = self.place(params, self.first_unit + i as u32 * WARP, units) {
                // SAFETY: a value of the token's row, its scale, and its place in the slot.
                unsafe {
                    let scale = f32::from_bits(gpu.ld_global_b32(place.scale));
                    let value = In::load1(gpu, place.source);
                    Out::store1(gpu, place.target, value / scale);
                }
            }
        });
    }
}

/// Bytes of a unit on both sides.
#[derive(Clone, Copy)]
struct Units {
    source_bytes: u32,
    target_bytes: u32,
}

#[inline(always)]
#[track_caller]
pub(super) unsafe fn load<G: Gpu, const BYTES: u32>(gpu: G, address: u64) -> [u32; 4] {
    // SAFETY: as the caller promises.
    unsafe {
        match BYTES {
            16 => gpu.ld_global_b128(address),
            8 => {
                let word = gpu.ld_global_b64(address);
                [word as u32, (word >> 32) as u32, 0, 0]
            }
            4 => [gpu.ld_global_b32(address), 0, 0, 0],
            2 => [gpu.ld_global_b16(address) as u32, 0, 0, 0],
            _ => [gpu.ld_global_b8(address) as u32, 0, 0, 0],
        }
    }
}

#[inline(always)]
#[track_caller]
pub(super) unsafe fn store<G: Gpu, const BYTES: u32>(gpu: G, address: u64, data: [u32; 4]) {
    // SAFETY: as the caller promises.
    unsafe {
        match BYTES {
            16 => gpu.st_global_b128(address, data),
            8 => gpu.st_global_b64(address, data[0] as u64 | (data[1] as u64) << 32),
            4 => gpu.st_global_b32(address, data[0]),
            2 => gpu.st_global_b16(address, data[0] as u16),
            _ => gpu.st_global_b8(address, data[0] as u8),
        }
    }
}
