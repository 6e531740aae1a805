//! Writes new tokens' keys and values in 8 bits, each head of each token with a scale of its own.
//!
//! A row is one head of one token, keys or values: `scale = max(amax / QMAX, 1e-6)`, stored beside the row;
//! the row is stored as `x * (1 / scale)`, rounded. Grid: x = warps over rows. A group of lanes owns a row, or two
//! if there are many rows, all loads of both in flight together:
//!
//! ```text
//! for each of the group's two rows:
//!     slot = slot_mapping[token]
//!     data = key or value[token, head]           two units of eight values a lane
//! for each of the two rows:
//!     amax over the group's lanes; scale
//!     skip if slot is negative: nothing is read or written through it
//!     cache[slot, head] = round(data / scale); the first lane stores the scale
//! ```

use core::marker::PhantomData;

use crate::attention::check::found_fault;
use crate::cache::slots::Slot;
use crate::dtype::quant::{amax_over_lanes, amax8, over_qmax};
use crate::dtype::{Byte, Element};
use crate::entry::Variant;
use crate::gpu::unroll::unroll;
use crate::gpu::{Gpu, WARP, div};
use crate::kernel::Kernel;
use crate::params::{CacheSide, PerTokenHeadParams};

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

/// Thread blocks for `rows` rows, and the rows of a group of lanes; `None` if they are too many for the kernel's
/// 32-bit counters. Values that go one by one take a warp a row.
pub fn grid(rows: u64, lanes_per_row: u32) -> Option<([u32; 3], u32)> {
    let rows = u32::try_from(rows)
        .ok()
        .filter(|&n| n <= i32::MAX as u32 - THREADS)?;
    let groups = THREADS / lanes_per_row;
    let rows_per_group = if rows.div_ceil(groups) <= FEW_CTAS {
        1
    } else {
        ROWS as u32
    };
    let ctas = rows.div_ceil(groups * rows_per_group);
    Some(([if ctas == 0 { 1 } else { ctas }, 1, 1], rows_per_group))
}

/// Thread blocks that leave most multiprocessors with one or none: then each group has one row.
const FEW_CTAS: u32 = 128;

/// A row of the launch.
#[derive(Clone, Copy)]
struct Row {
    token: u32,
    head: u32,
    is_key: bool,
    /// 0 past the last row: nothing is read or written.
    units: u32,
}

/// Where a row is stored.
#[derive(Clone, Copy)]
struct Target {
    row: u64,
    scale: u64,
}

impl Row {
    /// Row `row`, number `i` of its group: keys' heads, then values', of each token.
    #[inline(always)]
    fn find(params: &PerTokenHeadParams, row: u32, i: u32) -> Self {
        let token = params.rows_per_token.divide(row);
        let head = row - token * params.rows_per_token.divisor();
        let is_key = head < params.key.num_heads;
        let pick = |key: u32, value: u32| if is_key { key } else { value };
        let units = pick(
            params.key.head_units.divisor(),
            params.value.head_units.divisor(),
        );
        let exists = i < params.rows_per_group
            && token < params.num_tokens
            && pick(params.key.units, params.value.units) > 0;
        Self {
            token,
            head: if is_key {
                head
            } else {
                head - params.key.num_heads
            },
            is_key,
            units: if exists { units } else { 0 },
        }
    }

    /// A field of the row's side. Both are read: a pointer that may point to either would move the
    /// parameters to the stack.
    #[inline(always)]
    fn side(self, params: &PerTokenHeadParams, field: impl Fn(&CacheSide) -> i64) -> u64 {
        let (key, value) = (field(&params.key), field(&params.value));
        (if self.is_key { key } else { value }) as u64
    }

    #[inline(always)]
    fn source(self, params: &PerTokenHeadParams) -> u64 {
        self.side(params, |side| side.source as i64)
            + self.token as u64 * self.side(params, |side| side.stride_source_token)
            + self.head as u64 * self.side(params, |side| side.stride_source_head)
    }

    /// The bits of the row's slot; of a negative one past the last row.
    ///
    /// # Safety
    /// `slot_mapping` has a slot for each token.
    #[inline(always)]
    unsafe fn slot<G: Gpu>(self, gpu: G, params: &PerTokenHeadParams) -> u64 {
        if self.units == 0 {
            return u64::MAX;
        }
        // SAFETY: a row that exists is of a token, which has a slot: this function's contract.
        unsafe { gpu.ld_global_b64(params.slot_mapping + 8 * self.token as u64) }
    }

    /// `None` for padding.
    #[inline(always)]
    fn target(self, params: &PerTokenHeadParams, slot: u64) -> Option<Target> {
        let slot = Slot::new(slot, &params.block_size)?;
        let head = self.head as u64;
        Some(Target {
            row: self.side(params, |side| side.target as i64)
                + slot.block * self.side(params, |side| side.stride_target_block)
                + slot.offset * self.side(params, |side| side.stride_target_slot)
                + head * self.side(params, |side| side.stride_target_head),
            scale: self.side(params, |side| side.scale as i64)
                + slot.block * self.side(params, |side| side.stride_scale_block)
                + slot.offset * self.side(params, |side| side.stride_scale_slot)
                + head * self.side(params, |side| side.stride_scale_head),
        })
    }
}

/// Eight values at a time.
///
/// # Safety
/// Launched on [`grid`] with [`THREADS`] threads; `params` names tensors of the shapes it documents, with sources
/// aligned to 16 bytes and targets to `store_bytes`; slots that are not negative are distinct and inside the cache.
#[inline(always)]
pub unsafe fn vec8<G: Gpu, In: Element, Out: Byte>(gpu: G, params: &PerTokenHeadParams) {
    let (group, rows) = Group::<G, In, Out>::of(gpu, params);
    // SAFETY: whole warps come here; tokens have slots, each its own, so that rows are this group's: this function's
    // contract.
    unsafe {
        let slots = rows.map(|row| row.slot(gpu, params));
        group.write_eights(params, rows, slots);
    }
}

/// One value at a time, at any address.
///
/// # Safety
/// Launched on [`grid`] with [`THREADS`] threads; `params` names tensors of the shapes it documents; slots that are not
/// negative are distinct and inside the cache.
#[inline(always)]
pub unsafe fn scalar<G: Gpu, In: Element, Out: Byte>(gpu: G, params: &PerTokenHeadParams) {
    let (group, rows) = Group::<G, In, Out>::of(gpu, params);
    // SAFETY: whole warps come here; tokens have slots, each its own, so that rows are this group's: this function's
    // contract; `check` is 0 or a finished check's record: the host's `launch`.
    unsafe {
        let slots = rows.map(|row| row.slot(gpu, params));
        if !found_fault(gpu, params.check) {
            unroll!([2] i in 0..ROWS {
                group.write_ones(params, rows[i], rows[i].target(params, slots[i]));
            });
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
    /// The group of this lane, and its rows, once the kernels before are done.
    #[inline(always)]
    fn of(gpu: G, params: &PerTokenHeadParams) -> (Self, [Row; ROWS]) {
        let lanes = params.lanes_per_row;
        // SAFETY: a power of two up to 32: the host's `Rows::per_token_head`.
        let (groups, group_idx) = unsafe { (div(WARP, lanes), div(gpu.lane(), lanes)) };
        let group = Self {
            gpu,
            lane: gpu.lane() - group_idx * lanes,
            lanes,
            store_bytes: params.store_bytes,
            types: PhantomData,
        };
        let warp = gpu.cta_idx_x() * (THREADS / WARP) + gpu.warp();
        let first_row = warp * groups * params.rows_per_group + group_idx;
        let rows = [0, 1].map(|i| Row::find(params, first_row + i * groups, i));
        gpu.wait_for_previous_kernels();
        gpu.let_next_kernel_start();
        (group, rows)
    }

    /// From the largest magnitude to the scale and its reciprocal; the first lane stores the scale.
    ///
    /// # Safety
    /// The row at `target`, if there is one, is this group's alone.
    #[inline(always)]
    unsafe fn scale(self, target: Option<Target>, amax: f32) -> f32 {
        let scale = self
            .gpu
            .max(over_qmax(self.gpu, amax, Out::LARGEST), MIN_SCALE);
        if self.lane == 0
            && let Some(target) = target
        {
            // SAFETY: the scale of the group's row: this function's contract; one lane writes it.
            unsafe { self.gpu.st_global_b32(target.scale, scale.to_bits()) };
        }
        1.0 / scale
    }

    /// # Safety
    /// Converged. Rows that exist are this group's alone, in their slots `slots`, and aligned as [`vec8`] asks.
    #[inline(always)]
    unsafe fn write_eights(
        self,
        params: &PerTokenHeadParams,
        rows: [Row; ROWS],
        slots: [u64; ROWS],
    ) {
        let gpu = self.gpu;
        let mut data = [[In::ZEROS; UNITS]; ROWS];
        unroll!([2] i in 0..ROWS {
            let source = rows[i].source(params);
            unroll!([2] j in 0..UNITS {
                let unit = self.lane + j as u32 * self.lanes;
                if unit < rows[i].units {
                    let at = source + (unit * 8 * In::BYTES) as u64;
                    // SAFETY: a unit of a row, 16-byte aligned: this function's contract.
                    data[i][j] = unsafe { In::load8(gpu, at) };
                }
            });
        });
        // SAFETY: `check` is 0 or a finished check's record: the host's `launch`.
        if unsafe { found_fault(gpu, params.check) } {
            return;
        }
        unroll!([2] i in 0..ROWS {
            // The same in all lanes.
            if (i as u32) < params.rows_per_group {
                // SAFETY: converged, and the row is this group's: this function's contract.
                unsafe { self.store_eights(params, rows[i], slots[i], data[i]) };
            }
        });
    }

    /// Stores a row, of which a lane has `data`, and its scale.
    ///
    /// # Safety
    /// Converged. If the row exists, it is this group's alone, in `slot`, whose rows are aligned to `store_bytes`.
    #[inline(always)]
    unsafe fn store_eights(
        self,
        params: &PerTokenHeadParams,
        row: Row,
        slot: u64,
        data: [In::Eight; UNITS],
    ) {
        let gpu = self.gpu;
        let target = row.target(params, slot);
        let values = data.map(|eight| In::widen8(gpu, eight));
        let amax = amax8(gpu, amax8(gpu, 0.0, values[0]), values[1]);
        // SAFETY: converged: this function's contract; `lanes` is the same for all.
        let [amax] = unsafe { amax_over_lanes(gpu, [amax], self.lanes) };
        // SAFETY: the row is this group's: this function's contract.
        let inverse = unsafe { self.scale(target, amax) };
        unroll!([2] j in 0..UNITS {
            let unit = self.lane + j as u32 * self.lanes;
            if let Some(target) = target && unit < row.units {
                let eight = Out::narrow8(gpu, values[j].map(|x| x * inverse));
                let at = target.row + 8 * unit as u64;
                // SAFETY: this lane's unit of the group's row, aligned to `store_bytes`: this function's contract.
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
    }

    /// Any head size, any alignment: the row is read twice, value by value.
    ///
    /// # Safety
    /// Converged. If the row exists, it is this group's alone, and goes to `target`, or nowhere.
    #[inline(always)]
    unsafe fn write_ones(self, params: &PerTokenHeadParams, row: Row, target: Option<Target>) {
        let gpu = self.gpu;
        let units = if target.is_some() { row.units } else { 0 };
        let source = row.source(params);
        let mut amax = 0.0;
        let mut unit = self.lane;
        while unit < units {
            // SAFETY: a value of a row that exists: this function's contract.
            let x = unsafe { In::load1(gpu, source + (unit * In::BYTES) as u64) };
            amax = gpu.max(amax, x.abs());
            unit += self.lanes;
        }
        // SAFETY: converged again after the loop; `lanes` is the same for all.
        let [amax] = unsafe { amax_over_lanes(gpu, [amax], self.lanes) };
        // SAFETY: the row is this group's: this function's contract.
        let inverse = unsafe { self.scale(target, amax) };
        let mut unit = self.lane;
        while let Some(target) = target
            && unit < units
        {
            // SAFETY: this lane's value of the group's row, and its place: this function's contract.
            unsafe {
                let x = In::load1(gpu, source + (unit * In::BYTES) as u64);
                Out::store1(gpu, target.row + unit as u64, x * inverse);
            }
            unit += self.lanes;
        }
    }
}

/// [`vec8`], or with `VEC8` false [`scalar`].
#[derive(Debug)]
pub struct CachePerTokenHead<In, Out, const VEC8: bool = true>(PhantomData<(In, Out)>);

impl<In: Element, Out: Byte, const VEC8: bool> Kernel for CachePerTokenHead<In, Out, VEC8> {
    type Params = PerTokenHeadParams;
    const VARIANT: Variant = Variant::CachePerTokenHead {
        source: In::DTYPE,
        cache: Out::DTYPE,
        vec8: VEC8,
    };
    const THREADS: u32 = THREADS;

    #[inline(always)]
    unsafe fn run<G: Gpu>(gpu: G, params: &PerTokenHeadParams) {
        // SAFETY: launched as `vec8` or `scalar` asks, on tensors of its shapes: the contract of `Kernel::run`.
        unsafe {
            if VEC8 {
                vec8::<G, In, Out>(gpu, params);
            } else {
                scalar::<G, In, Out>(gpu, params);
            }
        }
    }
}
