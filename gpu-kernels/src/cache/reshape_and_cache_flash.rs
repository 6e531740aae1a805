//! Writes new tokens' keys and values into a paged cache: copied, or divided by a scale and stored in FP8.
//!
//! Grid: x = tokens, several a thread block if they are short; y = layer; z = slab of 128 units, of tokens
//! that are longer, and, if the tokens are few, keys or values. A unit is 16 bytes, or eight values to convert. A
//! thread owns one unit of a token's keys, the same unit of its values, or both, and has all its loads in flight
//! before it waits for the first:
//!
//! ```text
//! slot = slot_mapping[layer, token]
//! data = key[layer, token, unit], value[layer, token, unit]
//! done if slot is negative: nothing is read or written through it
//! key_cache[slot, unit], value_cache[slot, unit] = data              (or fp8(data / scale[head]))
//! ```
//!
//! No loop, and no division: a write of few tokens takes as long as one load and one store.

use core::marker::PhantomData;

use crate::attention::check::found_fault;
use crate::cache::slots::Slot;
use crate::dtype::quant::Divisor;
use crate::dtype::{Byte, Element};
use crate::entry::Variant;
use crate::gpu::Gpu;
use crate::kernel::Kernel;
use crate::params::{CacheSide, ReshapeAndCacheParams};

/// Threads per thread block. Few, so that a write of few tokens is spread over many multiprocessors.
pub const THREADS: u32 = 128;
pub(crate) const THREADS_LOG2: u32 = THREADS.ilog2();

/// How a write is spread over threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spread {
    /// Thread blocks along x, y, z.
    pub grid: [u32; 3],
    /// See [`ReshapeAndCacheParams::lanes_log2`].
    pub lanes_log2: u32,
}

impl Spread {
    /// The same with thread blocks of their own for keys and for values, if both together are few. See
    /// [`ReshapeAndCacheParams::sides_log2`].
    pub fn by_side(self) -> (Self, u32) {
        let [x, y, z] = self.grid;
        if x as u64 * y as u64 * z as u64 > FEW_CTAS {
            return (self, 0);
        }
        let grid = [x, y, 2 * z];
        (Self { grid, ..self }, 1)
    }
}

/// Thread blocks that leave most multiprocessors with one or none.
const FEW_CTAS: u64 = 128;

/// The spread of `num_tokens` tokens of `units` units (of keys or of values, whichever are more) in
/// `num_layers` layers; `None` if they are too many for a grid.
pub fn spread(num_layers: u32, num_tokens: u32, units: u32) -> Option<Spread> {
    let lanes_log2 = match units {
        0 | 1 => 0,
        _ => ((units - 1).ilog2() + 1).min(THREADS_LOG2),
    };
    let tokens_per_cta = THREADS >> lanes_log2;
    let slabs = units.div_ceil(THREADS).max(1);
    let fits = num_layers <= 0xffff && slabs <= 0xffff && num_tokens <= i32::MAX as u32;
    fits.then(|| Spread {
        grid: [
            num_tokens.div_ceil(tokens_per_cta).max(1),
            num_layers.max(1),
            slabs,
        ],
        lanes_log2,
    })
}

/// Copies units of [`ReshapeAndCacheParams::unit`] bytes.
///
/// # Safety
/// Launched on [`spread`]'s grid with [`THREADS`] threads; `params` names tensors of the shapes and the alignment it
/// documents; slots that are not negative are distinct and inside the cache.
#[inline(always)]
pub unsafe fn copy<G: Gpu>(gpu: G, params: &ReshapeAndCacheParams) {
    // Comparisons, not a `match`, which would become a table of jumps: slower than everything before it.
    // SAFETY: as `write` asks: this function's contract; units are aligned to their bytes: the host's `Rows::copied`.
    unsafe {
        if params.unit >= 16 {
            write::<G, Copied<16>>(gpu, params);
        } else if params.unit >= 8 {
            write::<G, Copied<8>>(gpu, params);
        } else if params.unit >= 4 {
            write::<G, Copied<4>>(gpu, params);
        } else if params.unit >= 2 {
            write::<G, Copied<2>>(gpu, params);
        } else {
            write::<G, Copied<1>>(gpu, params);
        }
    }
}

/// Divides by scales and rounds to FP8, eight values at a time.
///
/// # Safety
/// As [`copy`]; each side has scales, and units of eight values, the source's 16-byte and the target's 8-byte aligned.
#[inline(always)]
pub unsafe fn scaled<G: Gpu, In: Element, Out: Byte>(gpu: G, params: &ReshapeAndCacheParams) {
    // SAFETY: as `write` asks: this function's contract.
    unsafe { write::<G, Eights<In, Out>>(gpu, params) }
}

/// Divides by scales and rounds to FP8, one value at a time. A kernel of its own: of two ways in one, the second's
/// instructions would have to be fetched from afar, and a write of few tokens takes hardly longer than that.
///
/// # Safety
/// As [`copy`]; each side has scales, and units of one value.
#[inline(always)]
pub unsafe fn scaled_ones<G: Gpu, In: Element, Out: Byte>(gpu: G, params: &ReshapeAndCacheParams) {
    // SAFETY: as `write` asks: this function's contract.
    unsafe { write::<G, Ones<In, Out>>(gpu, params) }
}

/// # Safety
/// As [`copy`], with units that `C` can load and store; where `C` has scales, each side has them.
#[inline(always)]
unsafe fn write<G: Gpu, C: Conversion>(gpu: G, params: &ReshapeAndCacheParams) {
    let lanes = 1 << params.lanes_log2;
    let token = (gpu.cta_idx_x() << (THREADS_LOG2 - params.lanes_log2))
        + (gpu.thread_idx() >> params.lanes_log2);
    let slab = gpu.cta_idx_z() >> params.sides_log2;
    let unit = slab * THREADS + (gpu.thread_idx() & (lanes - 1));
    let is_for = |side: u32| params.sides_log2 == 0 || gpu.cta_idx_z() & 1 == side;
    let place = Place {
        layer: gpu.cta_idx_y() as u64,
        token: token as u64,
        unit,
    };
    let key = place.of::<C>(&params.key, is_for(0));
    let value = place.of::<C>(&params.value, is_for(1));
    let slot = params.slot_mapping
        + place.layer * params.stride_slot_mapping_layer as u64
        + 8 * place.token;
    gpu.wait_for_previous_kernels();
    gpu.let_next_kernel_start();
    if token >= params.num_tokens {
        return;
    }
    // SAFETY: slot, units, scales and cache of a token and a layer that exist: this function's contract; `check` is 0
    // or a finished check's record: the host's `launch`.
    let (slot, key_data, value_data, cache) = unsafe {
        let slot = gpu.ld_global_b64(slot);
        let key_data = key.load::<G, C>(gpu);
        let value_data = value.load::<G, C>(gpu);
        let cache = if params.cache_table == 0 {
            0
        } else {
            gpu.ld_global_b64(params.cache_table + 8 * place.layer)
        };
        if found_fault(gpu, params.check) {
            return;
        }
        (slot, key_data, value_data, cache)
    };
    let Some(slot) = Slot::new(slot, &params.block_size) else {
        return;
    };
    // SAFETY: the slot is in the cache and no other token's, so its unit is this thread's: this function's contract.
    unsafe {
        key.store::<G, C>(gpu, cache, slot, key_data);
        value.store::<G, C>(gpu, cache, slot, value_data);
    }
}

/// What a thread works on.
#[derive(Clone, Copy)]
struct Place {
    layer: u64,
    token: u64,
    unit: u32,
}

/// The same on one side.
#[derive(Clone, Copy)]
struct SidePlace<'p> {
    side: &'p CacheSide,
    /// Whether the side has such a unit, and this thread block does that side.
    exists: bool,
    source: u64,
    scale: u64,
    /// From the slot's first byte.
    in_slot: u64,
}

impl Place {
    #[inline(always)]
    fn of<C: Conversion>(self, side: &CacheSide, is_wanted: bool) -> SidePlace<'_> {
        let head = if side.num_heads <= 1 {
            0
        } else {
            side.head_units.divide(self.unit)
        };
        let in_head = (self.unit - head * side.head_units.divisor()) as u64;
        let head = head as u64;
        SidePlace {
            side,
            exists: is_wanted && self.unit < side.units,
            source: side.source
                + self.layer * side.stride_source_layer as u64
                + self.token * side.stride_source_token as u64
                + head * side.stride_source_head as u64
                + in_head * C::SOURCE_BYTES as u64,
            scale: side.scale
                + self.layer * side.stride_scale_layer as u64
                + head * side.stride_scale_head as u64,
            in_slot: head * side.stride_target_head as u64 + in_head * C::TARGET_BYTES as u64,
        }
    }
}

impl SidePlace<'_> {
    /// # Safety
    /// If the unit exists, it can be loaded as `C` does, and its head's scale is readable.
    #[inline(always)]
    #[track_caller]
    unsafe fn load<G: Gpu, C: Conversion>(self, gpu: G) -> (C::Unit, f32) {
        if !self.exists {
            return (C::NOTHING, 1.0);
        }
        // SAFETY: the unit exists, and so does its head's scale: this function's contract.
        unsafe {
            let unit = C::load(gpu, self.source);
            let scale = if C::HAS_SCALE {
                f32::from_bits(gpu.ld_global_b32(self.scale))
            } else {
                1.0
            };
            (unit, scale)
        }
    }

    /// # Safety
    /// If the unit exists, its place in `slot` is this thread's alone, and aligned for `C`.
    #[inline(always)]
    #[track_caller]
    unsafe fn store<G: Gpu, C: Conversion>(
        self,
        gpu: G,
        cache: u64,
        slot: Slot,
        (unit, scale): (C::Unit, f32),
    ) {
        if self.exists {
            let side = self.side;
            let at = cache
                + side.target
                + slot.at(side.stride_target_block, side.stride_target_slot)
                + self.in_slot;
            // SAFETY: the unit exists, so its place is this thread's: this function's contract.
            unsafe { C::store(gpu, at, unit, scale) };
        }
    }
}

/// What happens to a unit on its way.
trait Conversion {
    const SOURCE_BYTES: u32;
    const TARGET_BYTES: u32;
    const HAS_SCALE: bool;
    /// As it was loaded.
    type Unit: Copy;
    const NOTHING: Self::Unit;
    /// # Safety
    /// The unit is readable, and aligned: to its bytes if these are copied, else as [`Element::load8`] or
    /// [`Element::load1`] asks.
    #[track_caller]
    unsafe fn load<G: Gpu>(gpu: G, address: u64) -> Self::Unit;
    /// # Safety
    /// The unit's place is writable and no other lane's, and aligned: to the bytes that are copied, else as
    /// [`Element::store8`] or [`Element::store1`] asks.
    #[track_caller]
    unsafe fn store<G: Gpu>(gpu: G, address: u64, unit: Self::Unit, scale: f32);
}

/// Bytes as they are.
struct Copied<const BYTES: u32>;

impl<const BYTES: u32> Conversion for Copied<BYTES> {
    const SOURCE_BYTES: u32 = BYTES;
    const TARGET_BYTES: u32 = BYTES;
    const HAS_SCALE: bool = false;
    type Unit = [u32; 4];
    const NOTHING: [u32; 4] = [0; 4];

    #[inline(always)]
    #[track_caller]
    unsafe fn load<G: Gpu>(gpu: G, address: u64) -> [u32; 4] {
        // SAFETY: readable and aligned to `BYTES`: the contract of `Conversion::load`.
        unsafe { load::<G, BYTES>(gpu, address) }
    }
    #[inline(always)]
    #[track_caller]
    unsafe fn store<G: Gpu>(gpu: G, address: u64, unit: [u32; 4], _scale: f32) {
        // SAFETY: this lane's, and aligned to `BYTES`: the contract of `Conversion::store`.
        unsafe { store::<G, BYTES>(gpu, address, unit) };
    }
}

/// Eight values divided by the scale.
struct Eights<In, Out>(PhantomData<(In, Out)>);

impl<In: Element, Out: Byte> Conversion for Eights<In, Out> {
    const SOURCE_BYTES: u32 = 8 * In::BYTES;
    const TARGET_BYTES: u32 = 8;
    const HAS_SCALE: bool = true;
    type Unit = In::Eight;
    const NOTHING: In::Eight = In::ZEROS;

    #[inline(always)]
    #[track_caller]
    unsafe fn load<G: Gpu>(gpu: G, address: u64) -> In::Eight {
        // SAFETY: readable and aligned for eight values: the contract of `Conversion::load`.
        unsafe { In::load8(gpu, address) }
    }
    #[inline(always)]
    #[track_caller]
    unsafe fn store<G: Gpu>(gpu: G, address: u64, unit: In::Eight, scale: f32) {
        let quotients = Divisor::new(gpu, scale).divide8::<G, In>(gpu, unit);
        // SAFETY: this lane's, and aligned for eight values: the contract of `Conversion::store`.
        unsafe { Out::store8(gpu, address, Out::narrow8(gpu, quotients)) };
    }
}

/// One value divided by the scale.
struct Ones<In, Out>(PhantomData<(In, Out)>);

impl<In: Element, Out: Byte> Conversion for Ones<In, Out> {
    const SOURCE_BYTES: u32 = In::BYTES;
    const TARGET_BYTES: u32 = 1;
    const HAS_SCALE: bool = true;
    type Unit = f32;
    const NOTHING: f32 = 0.0;

    #[inline(always)]
    #[track_caller]
    unsafe fn load<G: Gpu>(gpu: G, address: u64) -> f32 {
        // SAFETY: readable and aligned: the contract of `Conversion::load`.
        unsafe { In::load1(gpu, address) }
    }
    #[inline(always)]
    #[track_caller]
    unsafe fn store<G: Gpu>(gpu: G, address: u64, unit: f32, scale: f32) {
        // SAFETY: this lane's, and aligned: the contract of `Conversion::store`.
        unsafe { Out::store1(gpu, address, unit / scale) };
    }
}

/// # Safety
/// `BYTES`, a power of two up to 16, bytes at `address` are readable and aligned to as many.
#[inline(always)]
#[track_caller]
pub(crate) unsafe fn load<G: Gpu, const BYTES: u32>(gpu: G, address: u64) -> [u32; 4] {
    // SAFETY: `BYTES` readable bytes, aligned: this function's contract.
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

/// # Safety
/// `BYTES`, a power of two up to 16, bytes at `address` are writable, no other lane's, and aligned to as many.
#[inline(always)]
#[track_caller]
pub(crate) unsafe fn store<G: Gpu, const BYTES: u32>(gpu: G, address: u64, data: [u32; 4]) {
    // SAFETY: `BYTES` bytes of this lane, aligned: this function's contract.
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

/// [`copy`].
#[derive(Debug)]
pub enum CacheCopy {}

impl Kernel for CacheCopy {
    type Params = ReshapeAndCacheParams;
    const VARIANT: Variant = Variant::CacheCopy;
    const THREADS: u32 = THREADS;
    // Nothing is computed: many warps have to have their loads under way.
    const MIN_CTAS: u32 = 16;

    #[inline(always)]
    unsafe fn run<G: Gpu>(gpu: G, params: &ReshapeAndCacheParams) {
        // SAFETY: launched as `copy` asks, on tensors of its shapes: the contract of `Kernel::run`.
        unsafe { copy(gpu, params) }
    }
}

/// [`scaled`], or with `VEC8` false [`scaled_ones`].
#[derive(Debug)]
pub struct CacheScaled<In, Out, const VEC8: bool = true>(PhantomData<(In, Out)>);

impl<In: Element, Out: Byte, const VEC8: bool> Kernel for CacheScaled<In, Out, VEC8> {
    type Params = ReshapeAndCacheParams;
    const VARIANT: Variant = Variant::CacheScaled {
        source: In::DTYPE,
        cache: Out::DTYPE,
        vec8: VEC8,
    };
    const THREADS: u32 = THREADS;
    // As above, with what a conversion needs.
    const MIN_CTAS: u32 = if VEC8 && In::BYTES == 2 { 10 } else { 1 };

    #[inline(always)]
    unsafe fn run<G: Gpu>(gpu: G, params: &ReshapeAndCacheParams) {
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
