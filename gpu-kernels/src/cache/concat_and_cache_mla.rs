//! Writes MLA tokens into caches whose entries carry their own scales. (Caches of plain values are written
//! by `reshape_and_cache_flash`, latents as its keys and RoPE keys as its values.)
//!
//! Grid: x = warps over tokens. A warp owns a token, and a lane two units of eight neighbouring values of it,
//! 256 values apart: every load and store of a warp is one piece of memory. Sixteen lanes share a scale of the
//! 656-byte form and eight lanes one of the 584-byte form:
//!
//! ```text
//! slot = slot_mapping[token]
//! values = kv_c[token, 8 lane ..] and [token, 256 + 8 lane ..]; rope = k_pe[token]
//! done if slot is negative: nothing is read or written through it
//! amax over the lanes of a group; scale
//! entry = e4m3(values / scale), scales, rope
//! ```

use crate::attention::check::found_fault;
use crate::cache::slots::Slot;
use crate::dtype::quant::{Divisor, amax_over_lanes, amax8, exponent_up, over_qmax};
use crate::dtype::{Bf16, E4m3, Element};
use crate::entry::Variant;
use crate::gpu::unroll::unroll;
use crate::gpu::{Gpu, WARP};
use crate::kernel::Kernel;
use crate::mla::cache_format::{fp8_ds, v4};
use crate::params::MlaEntryParams;

/// Threads per thread block.
pub const THREADS: u32 = 4 * WARP;
/// The largest e4m3.
const QMAX: f32 = 448.0;
/// The least magnitude of a group in V4's form, and the least scale of the 656-byte form with powers of two.
const LEAST: f32 = 1e-4;
/// Lanes that read RoPE values in the 656-byte form, 8 each.
const ROPE_LANES: u32 = fp8_ds::ROPE / 8;
/// Units of a lane.
const UNITS: usize = 2;

const _: () = assert!(fp8_ds::LATENTS == UNITS as u32 * 8 * WARP);
const _: () = assert!(v4::VALUES + v4::ROPE == UNITS as u32 * 8 * WARP);

/// Thread blocks for a number of tokens.
pub const fn grid(num_tokens: u32) -> [u32; 3] {
    let ctas = num_tokens.div_ceil(THREADS / WARP);
    [if ctas == 0 { 1 } else { ctas }, 1, 1]
}

/// The token of this warp, if there is one. Waits for the kernels before: what follows reads what they wrote.
#[inline(always)]
fn token<G: Gpu>(gpu: G, params: &MlaEntryParams) -> Option<u64> {
    let token = gpu.cta_idx_x() * (THREADS / WARP) + gpu.warp();
    gpu.wait_for_previous_kernels();
    gpu.let_next_kernel_start();
    (token < params.num_tokens).then_some(token as u64)
}

/// The 656-byte form.
///
/// # Safety
/// Launched on [`grid`] with [`THREADS`] threads; `params` names tensors of the shapes it documents, at addresses and
/// strides that are multiples of 16; slots that are not negative are distinct and inside the cache.
#[inline(always)]
pub unsafe fn fp8_ds<G: Gpu>(gpu: G, params: &MlaEntryParams) {
    const LANES: u32 = fp8_ds::GROUP / 8;
    let lane = gpu.lane();
    let Some(token) = token(gpu, params) else {
        return;
    };
    let has_rope = lane < ROPE_LANES;
    let latents = params.kv_c + token * params.stride_kv_c_token as u64 + 16 * lane as u64;
    // SAFETY: slot and latents of a token, 16-byte aligned: the host's `ConcatAndCacheMlaRequest::entries`; `check` is
    // 0 or a finished check's record: the host's `launch`.
    let (slot, data, is_refused) = unsafe {
        (
            gpu.ld_global_b64(params.slot_mapping + 8 * token),
            [
                gpu.ld_global_b128(latents),
                gpu.ld_global_b128(latents + 512),
            ],
            found_fault(gpu, params.check),
        )
    };
    let mut rope = [0; 4];
    if has_rope && params.k_pe != 0 {
        let at = params.k_pe + token * params.stride_k_pe_token as u64 + 16 * lane as u64;
        // SAFETY: 64 values of the token, 16-byte aligned: the host's `ConcatAndCacheMlaRequest::entries`.
        rope = unsafe { gpu.ld_global_b128(at) };
    }
    let Some(slot) = Slot::new(slot, &params.block_size).filter(|_| !is_refused) else {
        return;
    };
    let entry = params.kv_cache + slot.at(params.stride_cache_block, params.stride_cache_slot);
    let amax = data.map(|unit| amax8(gpu, 0.0, Bf16::widen8(gpu, unit)));
    // SAFETY: converged: token, slot and refusal are the whole warp's.
    let amax = unsafe { amax_over_lanes(gpu, amax, LANES) };
    unroll!([2] i in 0..UNITS {
        let scale = over_qmax(gpu, amax[i], QMAX);
        let scale = if params.power_of_two_scales != 0 {
            f32::from_bits(exponent_up(gpu.max(scale, LEAST)) << 23)
        } else {
            gpu.max(scale, f32::MIN_POSITIVE)
        };
        let quotients = Divisor::new(gpu, scale).divide8::<G, Bf16>(gpu, data[i]);
        let unit = i as u32 * WARP + lane;
        // SAFETY: the slot is in the cache and this warp's alone: this function's contract; each lane writes its own
        // bytes.
        unsafe {
            E4m3::store8(gpu, entry + 8 * unit as u64, E4m3::narrow8(gpu, quotients));
            if lane.is_multiple_of(LANES) {
                let at = entry + (fp8_ds::SCALES_AT + 4 * (unit / LANES)) as u64;
                gpu.st_global_b32(at, scale.to_bits());
            }
        }
    });
    if has_rope {
        // SAFETY: as above.
        unsafe { gpu.st_global_b128(entry + (fp8_ds::ROPE_AT + 16 * lane) as u64, rope) };
    }
}

/// V4's form.
///
/// # Safety
/// As [`fp8_ds`].
#[inline(always)]
pub unsafe fn v4<G: Gpu>(gpu: G, params: &MlaEntryParams) {
    const LANES: u32 = v4::GROUP / 8;
    const ROPE_UNIT: u32 = v4::VALUES / 8;
    let lane = gpu.lane();
    let Some(token) = token(gpu, params) else {
        return;
    };
    let values = params.kv_c + token * params.stride_kv_c_token as u64;
    let rope = params.k_pe + token * params.stride_k_pe_token as u64;
    let mut data = [[0; 4]; UNITS];
    // SAFETY: the token's slot: this function's contract; `check` is 0 or a finished check's record: the host's
    // `launch`.
    let (slot, is_refused) = unsafe {
        (
            gpu.ld_global_b64(params.slot_mapping + 8 * token),
            found_fault(gpu, params.check),
        )
    };
    unroll!([2] i in 0..UNITS {
        let unit = i as u32 * WARP + lane;
        let at = if unit < ROPE_UNIT {
            values + 16 * unit as u64
        } else {
            rope + 16 * (unit - ROPE_UNIT) as u64
        };
        // SAFETY: 8 of the token's 448 or 64 values, 16-byte aligned: the host's `ConcatAndCacheMlaRequest::entries`.
        data[i] = unsafe { gpu.ld_global_b128(at) };
    });
    let Some(slot) = Slot::new(slot, &params.block_size).filter(|_| !is_refused) else {
        return;
    };
    let page = params.kv_cache + slot.block * params.stride_cache_block as u64;
    let entry = page + slot.offset * v4::VALUE_BYTES as u64;
    let scales = page
        + params.block_size.divisor() as u64 * v4::VALUE_BYTES as u64
        + slot.offset * v4::SCALE_BYTES as u64;
    // RoPE values are a group of their own.
    let amax = data.map(|unit| amax8(gpu, LEAST, Bf16::widen8(gpu, unit)));
    // SAFETY: converged: token, slot and refusal are the whole warp's.
    let amax = unsafe { amax_over_lanes(gpu, amax, LANES) };
    unroll!([2] i in 0..UNITS {
        let unit = i as u32 * WARP + lane;
        let exponent = exponent_up(over_qmax(gpu, amax[i], QMAX));
        // The scale is a power of two, and so is its reciprocal; that of infinity is zero.
        let reciprocal = f32::from_bits((254 - exponent.min(254)) << 23);
        let bytes = E4m3::narrow8(gpu, Bf16::widen8(gpu, data[i]).map(|x| x * reciprocal));
        // SAFETY: the slot is in the cache and this warp's alone: this function's contract; each lane writes its own
        // bytes.
        unsafe {
            if unit < ROPE_UNIT {
                E4m3::store8(gpu, entry + 8 * unit as u64, bytes);
            } else {
                let at = entry + (v4::VALUES + 16 * (unit - ROPE_UNIT)) as u64;
                gpu.st_global_b128(at, data[i]);
            }
            if lane.is_multiple_of(LANES) {
                // The RoPE values' place among the scales is padding.
                let byte = if unit < ROPE_UNIT { exponent as u8 } else { 0 };
                gpu.st_global_b8(scales + (unit / LANES) as u64, byte);
            }
        }
    });
}

/// [`fp8_ds()`].
#[derive(Debug)]
pub enum ConcatAndCacheMlaFp8Ds {}

impl Kernel for ConcatAndCacheMlaFp8Ds {
    type Params = MlaEntryParams;
    const VARIANT: Variant = Variant::ConcatAndCacheMlaFp8Ds;
    const THREADS: u32 = THREADS;

    #[inline(always)]
    unsafe fn run<G: Gpu>(gpu: G, params: &MlaEntryParams) {
        // SAFETY: launched as `fp8_ds` asks, on tensors of its shapes: the contract of `Kernel::run`.
        unsafe { fp8_ds(gpu, params) }
    }
}

/// [`v4()`].
#[derive(Debug)]
pub enum ConcatAndCacheMlaV4 {}

impl Kernel for ConcatAndCacheMlaV4 {
    type Params = MlaEntryParams;
    const VARIANT: Variant = Variant::ConcatAndCacheMlaV4;
    const THREADS: u32 = THREADS;

    #[inline(always)]
    unsafe fn run<G: Gpu>(gpu: G, params: &MlaEntryParams) {
        // SAFETY: launched as `v4` asks, on tensors of its shapes: the contract of `Kernel::run`.
        unsafe { v4(gpu, params) }
    }
}
