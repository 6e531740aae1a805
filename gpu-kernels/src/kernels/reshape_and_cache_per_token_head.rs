//! Writes new tokens' keys and values in 8 bits, each head of each token with a scale of its own.
//!
//! A row is one head of one token, keys or values: `scale = max(amax / QMAX, 1e-6)`, stored beside the row;
//! the row is stored as `x * (1 / scale)`, rounded. Grid: x = warps over rows. A group of lanes owns a row,
//! and two rows follow each other, all loads of both in flight together:
//!
//! ```text
//! for each of the group's two rows:
//!     slot = slot_mapping[token]; skip if negative, before anything else is read
//!     data = key or value[token, head]           two units of eight values a lane
//! for each of the two rows:
//!     amax over the group's lanes; scale
//!     cache[slot, head] = round(data / scale); the first lane stores the scale
//! ```

use core::marker::PhantomData;

use super::check::found_fault;
use super::slots::Slot;
use crate::dtype::{Byte, Element, ElementDtype};
use crate::gpu::{Gpu, WARP, div};
use crate::params::{CacheSide, PerTokenHeadParams};
use crate::quant::{amax_over_lanes, amax8};
use crate::unroll::unroll;

/// Threads per thread block.
pub const THREADS: u32 = 4 * WARP;
/// Rows that a group of lanes has in flight.
const ROWS: usize = 2;
/// Units of eight values that a lane holds of a row.
const UNITS: usize = 2;
/// Values per head that a warp can hold.
pub const MAX_HEAD_SIZE: u32 = WARP * UNITS as u32 * 8;
/// Scales are not smaller: rows of zeros stay zeros.
const MIN_SCALE: f32 = 1e-6;

/// Lanes that share a row of `units` units of eight values.
pub const fn lanes_per_row(units: u32) -> u32 {
    units.div_ceil(UNITS as u32).next_power_of_two()
}

/// Thread blocks for `rows` rows; `None` if they are too many for the kernel's 32-bit counters. Values that
/// go one by one take a warp a row.
pub fn grid(rows: u64, lanes_per_row: u32) -> Option<[u32; 3]> {
    let rows = u32::try_from(rows).ok().filter(|&n| n <= i32::MAX as u32)?;
    let ctas = rows.div_ceil(rows_per_warp(lanes_per_row) * (THREADS / WARP));
    Some([if ctas == 0 { 1 } else { ctas }, 1, 1])
}

const fn rows_per_warp(lanes_per_row: u32) -> u32 {
    WARP / lanes_per_row * ROWS as u32
}

/// The largest magnitude that a type stores.
const fn qmax(dtype: ElementDtype) -> f32 {
    match dtype {
        ElementDtype::I8 => 127.0,
        _ => 448.0,
    }
}

/// A row's addresses.
#[derive(Clone, Copy)]
struct Row {
    source: u64,
    target: u64,
    scale: u64,
    units: u32,
}

impl Row {
    /// No row: nothing is read or written.
    const NONE: Self = Self {
        source: 0,
        target: 0,
        scale: 0,
        units: 0,
    };

    /// Row `row` of the launch; [`Row::NONE`] past the last one and for padding.
    #[inline(always)]
    unsafe fn find<G: Gpu>(gpu: G, params: &PerTokenHeadParams, row: u32) -> Self {
        let rows_per_token = params.key.num_heads + params.value.num_heads;
        // SAFETY: the host launches nothing without heads.
        let token = unsafe { div(row, rows_per_token) };
        if token >= params.num_tokens {
            return Self::NONE;
        }
        let address = params.slot_mapping + 8 * token as u64;
        // SAFETY: one slot per token; the host refuses empty blocks.
        let Some(slot) = (unsafe { Slot::load(gpu, address, params.block_size) }) else {
            return Self::NONE;
        };
        let head = row - token * rows_per_token;
        if head < params.key.num_heads {
            Self::of(&params.key, token, head, slot)
        } else {
            Self::of(&params.value, token, head - params.key.num_heads, slot)
        }
    }

    #[inline(always)]
    fn of(side: &CacheSide, token: u32, head: u32, slot: Slot) -> Self {
        let (token, head) = (token as u64, head as u64);
        Self {
            source: side.source
                + token * side.stride_source_token as u64
                + head * side.stride_source_head as u64,
            target: side.target
                + slot.at(side.stride_target_block, side.stride_target_slot)
                + head * side.stride_target_head as u64,
            scale: side.scale
                + slot.at(side.stride_scale_block, side.stride_scale_slot)
                + head * side.stride_scale_head as u64,
            units: side.head_units,
        }
    }
}

/// The kernel.
///
/// # Safety
/// Launched on [`grid`] with [`THREADS`] threads; `params` names tensors of the shapes it documents; slots
/// are distinct and inside the cache.
#[inline(always)]
pub unsafe fn per_token_head<G: Gpu, In: Element, Out: Byte>(gpu: G, params: &PerTokenHeadParams) {
    // SAFETY: a valid check record, or none.
    if unsafe { found_fault(gpu, params.check) } {
        return;
    }
    let lanes = params.lanes_per_row;
    // SAFETY: a power of two.
    let (groups, group_idx) = unsafe { (div(WARP, lanes), div(gpu.lane(), lanes)) };
    let group = Group::<G, In, Out> {
        gpu,
        lane: gpu.lane() - group_idx * lanes,
        lanes,
        store_bytes: params.store_bytes,
        types: PhantomData,
    };
    let warp = gpu.cta_idx_x() * (THREADS / WARP) + gpu.warp();
    let first_row = warp * groups * ROWS as u32 + group_idx;
    let mut rows = [Row::NONE; ROWS];
    unroll!([2] i in 0..ROWS {
        // SAFETY: as the caller promises.
        rows[i] = unsafe { Row::find(gpu, params, first_row + i as u32 * groups) };
    });
    // SAFETY: whole warps come here; the rows exist and are this group's.
    unsafe {
        if params.store_bytes == 0 {
            unroll!([2] i in 0..ROWS { group.write_ones(rows[i]) });
        } else {
            group.write_eights(rows);
        }
    }
}

/// The lanes that share a row.
#[derive(Clone, Copy)]
struct Group<G, In, Out> {
    gpu: G,
    /// Index of this lane in the group.
    lane: u32,
    lanes: u32,
    store_bytes: u32,
    types: PhantomData<(In, Out)>,
}

impl<G: Gpu, In: Element, Out: Byte> Group<G, In, Out> {
    /// From the largest magnitude to the scale and its reciprocal; the first lane stores the scale.
    #[inline(always)]
    unsafe fn scale(self, row: Row, amax: f32) -> f32 {
        let scale = self.gpu.max(amax / qmax(Out::DTYPE), MIN_SCALE);
        if self.lane == 0 && row.units > 0 {
            // SAFETY: the row's scale, which is this lane's.
            unsafe { self.gpu.st_global_b32(row.scale, scale.to_bits()) };
        }
        1.0 / scale
    }

    #[inline(always)]
    unsafe fn write_eights(self, rows: [Row; ROWS]) {
        let gpu = self.gpu;
        let mut data = [[In::ZEROS; UNITS]; ROWS];
        unroll!([2] i in 0..ROWS {
            unroll!([2] j in 0..UNITS {
                let unit = self.lane + j as u32 * self.lanes;
                if unit < rows[i].units {
                    let at = rows[i].source + (unit * 8 * In::BYTES) as u64;
                    // SAFETY: a unit of the row, aligned as the host found.
                    data[i][j] = unsafe { In::load8(gpu, at) };
                }
            });
        });
        unroll!([2] i in 0..ROWS {
            let row = rows[i];
            let values = data[i].map(|eight| In::widen8(gpu, eight));
            let amax = amax8(gpu, amax8(gpu, 0.0, values[0]), values[1]);
            // SAFETY: converged.
            let amax = unsafe { amax_over_lanes(gpu, amax, self.lanes) };
            // SAFETY: the row is this group's.
            let inverse = unsafe { self.scale(row, amax) };
            unroll!([2] j in 0..UNITS {
                let unit = self.lane + j as u32 * self.lanes;
                if unit < row.units {
                    let eight = Out::narrow8(gpu, values[j].map(|x| x * inverse));
                    let at = row.target + 8 * unit as u64;
                    // SAFETY: the unit's place in the slot, aligned as the host found.
                    unsafe {
                        if self.store_bytes == 8 {
                            Out::store8(gpu, at, eight);
                        } else {
                            gpu.st_global_b32(at, eight[0]);
                            gpu.st_global_b32(at + 4, eight[1]);
                        }
                    }
                }
            });
        });
    }

    /// Any head size, any alignment: the row is read twice, value by value.
    #[inline(always)]
    unsafe fn write_ones(self, row: Row) {
        let gpu = self.gpu;
        let mut amax = 0.0;
        let mut unit = self.lane;
        while unit < row.units {
            // SAFETY: a value of the row.
            let x = unsafe { In::load1(gpu, row.source + (unit * In::BYTES) as u64) };
            amax = gpu.max(amax, x.abs());
            unit += self.lanes;
        }
        // SAFETY: converged again after the loop.
        let amax = unsafe { amax_over_lanes(gpu, amax, self.lanes) };
        // SAFETY: the row is this group's.
        let inverse = unsafe { self.scale(row, amax) };
        let mut unit = self.lane;
        while unit < row.units {
            // SAFETY: a value of the row and its place in the slot.
            unsafe {
                let x = In::load1(gpu, row.source + (unit * In::BYTES) as u64);
                Out::store1(gpu, row.target + unit as u64, x * inverse);
            }
            unit += self.lanes;
        }
    }
}
