//! Writes MLA tokens into caches whose entries carry their own scales. (Caches of plain values are written
//! by `reshape_and_cache_flash`, latents as its keys and RoPE keys as its values.)
//!
//! Grid: x = warps over tokens. A warp owns two tokens; a lane takes 16 neighbouring latents of each, so
//! that 8 lanes share a scale of the 656-byte form and 4 lanes one of the 584-byte form:
//!
//! ```text
//! for each of the two tokens:
//!     slot = slot_mapping[token]; skip if negative, before anything else is read
//!     latents = kv_c[token, 16 lane ..]; rope = k_pe[token]
//! for each of the two tokens:
//!     amax over the lanes of a group; scale
//!     entry = e4m3(latents / scale), scales, rope
//! ```

use super::check::found_fault;
use super::slots::Slot;
use crate::dtype::{Bf16, E4m3, Element};
use crate::gpu::{Gpu, WARP};
use crate::mla_entry::{fp8_ds, v4};
use crate::params::MlaEntryParams;
use crate::quant::{Divisor, amax_over_lanes, amax8, exponent_up};
use crate::unroll::unroll;

/// Threads per thread block.
pub const THREADS: u32 = 4 * WARP;
/// Tokens that a warp has in flight.
const TOKENS: usize = 2;
/// The largest e4m3.
const QMAX: f32 = 448.0;
/// The least magnitude of a group in V4's form, and the least scale of the 656-byte form with powers of two.
const LEAST: f32 = 1e-4;
/// Lanes that read RoPE values in the 656-byte form, 8 each.
const ROPE_LANES: u32 = fp8_ds::ROPE / 8;
/// The first lane with RoPE values in V4's form.
const V4_ROPE_LANE: u32 = v4::VALUES / 16;

const _: () = assert!(fp8_ds::LATENTS == 16 * WARP && v4::VALUES + v4::ROPE == 16 * WARP);

/// Thread blocks for a number of tokens.
pub const fn grid(num_tokens: u32) -> [u32; 3] {
    let ctas = num_tokens.div_ceil(TOKENS as u32 * (THREADS / WARP));
    [if ctas == 0 { 1 } else { ctas }, 1, 1]
}

/// Sixteen neighbouring bf16.
type Sixteen = [[u32; 4]; 2];

/// The slots of this warp's tokens.
#[inline(always)]
unsafe fn slots<G: Gpu>(gpu: G, params: &MlaEntryParams) -> (u32, [Option<Slot>; TOKENS]) {
    let first = (gpu.cta_idx_x() * (THREADS / WARP) + gpu.warp()) * TOKENS as u32;
    let mut slots = [None; TOKENS];
    unroll!([2] i in 0..TOKENS {
        let token = first + i as u32;
        if token < params.num_tokens {
            let address = params.slot_mapping + 8 * token as u64;
            // SAFETY: one slot per token; the host refuses empty blocks.
            slots[i] = unsafe { Slot::load(gpu, address, params.block_size) };
        }
    });
    (first, slots)
}

/// # Safety
/// 32 bytes in bounds, aligned to 16.
#[inline(always)]
unsafe fn load16<G: Gpu>(gpu: G, address: u64) -> Sixteen {
    // SAFETY: as the caller promises.
    unsafe { [Bf16::load8(gpu, address), Bf16::load8(gpu, address + 16)] }
}

#[inline(always)]
fn widen16<G: Gpu>(gpu: G, [low, high]: Sixteen) -> [[f32; 8]; 2] {
    [Bf16::widen8(gpu, low), Bf16::widen8(gpu, high)]
}

/// Sixteen e4m3 of `values / scale`.
#[inline(always)]
fn quantise16<G: Gpu>(gpu: G, values: [[f32; 8]; 2], scale: f32) -> [u32; 4] {
    let divisor = Divisor::new(scale);
    let [a, b] = E4m3::narrow8(gpu, divisor.divide8(gpu, values[0]));
    let [c, d] = E4m3::narrow8(gpu, divisor.divide8(gpu, values[1]));
    [a, b, c, d]
}

/// The 656-byte form.
///
/// # Safety
/// Launched on [`grid`] with [`THREADS`] threads; `params` names tensors of the shapes it documents; slots
/// are distinct and inside the cache.
#[inline(always)]
pub unsafe fn fp8_ds<G: Gpu>(gpu: G, params: &MlaEntryParams) {
    // SAFETY: a valid check record, or none.
    if unsafe { found_fault(gpu, params.check) } {
        return;
    }
    let lane = gpu.lane();
    // SAFETY: as the caller promises.
    let (first, slots) = unsafe { slots(gpu, params) };
    let mut latents = [[[0; 4]; 2]; TOKENS];
    let mut rope = [[0; 4]; TOKENS];
    unroll!([2] i in 0..TOKENS {
        if slots[i].is_some() {
            let token = (first + i as u32) as u64;
            let at = params.kv_c + token * params.stride_kv_c_token as u64 + 32 * lane as u64;
            // SAFETY: 16 latents of a token that exists.
            latents[i] = unsafe { load16(gpu, at) };
            if lane < ROPE_LANES && params.k_pe != 0 {
                let at = params.k_pe + token * params.stride_k_pe_token as u64 + 16 * lane as u64;
                // SAFETY: 8 RoPE values of the token.
                rope[i] = unsafe { gpu.ld_global_b128(at) };
            }
        }
    });
    unroll!([2] i in 0..TOKENS {
        let values = widen16(gpu, latents[i]);
        let amax = amax8(gpu, amax8(gpu, 0.0, values[0]), values[1]);
        // SAFETY: whole warps come here.
        let amax = unsafe { amax_over_lanes(gpu, amax, fp8_ds::GROUP / 16) };
        let scale = if params.power_of_two_scales != 0 {
            f32::from_bits(exponent_up(gpu.max(amax / QMAX, LEAST)) << 23)
        } else {
            gpu.max(amax / QMAX, f32::MIN_POSITIVE)
        };
        if let Some(slot) = slots[i] {
            let entry =
                params.kv_cache + slot.at(params.stride_cache_block, params.stride_cache_slot);
            let bytes = quantise16(gpu, values, scale);
            // SAFETY: the entry is this warp's; each lane writes its own bytes.
            unsafe {
                gpu.st_global_b128(entry + 16 * lane as u64, bytes);
                if lane.is_multiple_of(fp8_ds::GROUP / 16) {
                    let group = lane / (fp8_ds::GROUP / 16);
                    let at = entry + (fp8_ds::SCALES_AT + 4 * group) as u64;
                    gpu.st_global_b32(at, scale.to_bits());
                }
                if lane < ROPE_LANES {
                    let at = entry + (fp8_ds::ROPE_AT + 16 * lane) as u64;
                    gpu.st_global_b128(at, rope[i]);
                }
            }
        }
    });
}

/// V4's form.
///
/// # Safety
/// As [`fp8_ds`].
#[inline(always)]
pub unsafe fn v4<G: Gpu>(gpu: G, params: &MlaEntryParams) {
    // SAFETY: a valid check record, or none.
    if unsafe { found_fault(gpu, params.check) } {
        return;
    }
    let lane = gpu.lane();
    // SAFETY: as the caller promises.
    let (first, slots) = unsafe { slots(gpu, params) };
    let mut data = [[[0; 4]; 2]; TOKENS];
    unroll!([2] i in 0..TOKENS {
        if slots[i].is_some() {
            let token = (first + i as u32) as u64;
            let at = if lane < V4_ROPE_LANE {
                params.kv_c + token * params.stride_kv_c_token as u64 + 32 * lane as u64
            } else {
                let rope_lane = (lane - V4_ROPE_LANE) as u64;
                params.k_pe + token * params.stride_k_pe_token as u64 + 32 * rope_lane
            };
            // SAFETY: 16 values of a token that exists.
            data[i] = unsafe { load16(gpu, at) };
        }
    });
    unroll!([2] i in 0..TOKENS {
        let values = widen16(gpu, data[i]);
        let amax = amax8(gpu, amax8(gpu, LEAST, values[0]), values[1]);
        // SAFETY: whole warps come here.
        let amax = unsafe { amax_over_lanes(gpu, amax, v4::GROUP / 16) };
        let exponent = exponent_up(amax / QMAX);
        if let Some(slot) = slots[i] {
            let page = params.kv_cache + slot.block * params.stride_cache_block as u64;
            let entry = page + slot.offset * v4::VALUE_BYTES as u64;
            let scales = page
                + params.block_size as u64 * v4::VALUE_BYTES as u64
                + slot.offset * v4::SCALE_BYTES as u64;
            // SAFETY: the entry is this warp's; each lane writes its own bytes.
            unsafe {
                if lane < V4_ROPE_LANE {
                    let bytes = quantise16(gpu, values, f32::from_bits(exponent << 23));
                    gpu.st_global_b128(entry + 16 * lane as u64, bytes);
                } else {
                    let at = entry + (v4::VALUES + 32 * (lane - V4_ROPE_LANE)) as u64;
                    gpu.st_global_b128(at, data[i][0]);
                    gpu.st_global_b128(at + 16, data[i][1]);
                }
                if lane.is_multiple_of(v4::GROUP / 16) {
                    // The lane after the last group writes the padding.
                    let byte = if lane < V4_ROPE_LANE { exponent as u8 } else { 0 };
                    gpu.st_global_b8(scales + (lane / (v4::GROUP / 16)) as u64, byte);
                }
            }
        }
    });
}
