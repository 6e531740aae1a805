//! Writes MLA tokens into caches whose entries carry their own scales. (Caches of plain values are written
//! by `reshape_and_cache_flash`, latents as its keys and RoPE keys as its values.)
//!
//! Grid: x = warps over tokens. A warp owns two tokens, and a lane two units of eight neighbouring values of
//! each, 256 values apart: every load and store of a warp is one piece of memory. Sixteen lanes share a scale
//! of the 656-byte form and eight lanes one of the 584-byte form:
//!
//! ```text
//! for each of the two tokens:
//!     slot = slot_mapping[token]
//!     values = kv_c[token, 8 lane ..] and [token, 256 + 8 lane ..]; rope = k_pe[token]
//! for each of the two tokens:
//!     amax over the lanes of a group; scale
//!     skip if slot is negative: nothing is read or written through it
//!     entry = e4m3(values / scale), scales, rope
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
/// Units of a lane.
const UNITS: usize = 2;

const _: () = assert!(fp8_ds::LATENTS == UNITS as u32 * 8 * WARP);
const _: () = assert!(v4::VALUES + v4::ROPE == UNITS as u32 * 8 * WARP);

/// Thread blocks for a number of tokens.
pub const fn grid(num_tokens: u32) -> [u32; 3] {
    let ctas = num_tokens.div_ceil(TOKENS as u32 * (THREADS / WARP));
    [if ctas == 0 { 1 } else { ctas }, 1, 1]
}

/// The tokens of this warp.
#[derive(Clone, Copy)]
struct Tokens {
    first: u32,
    /// The bits of the slots; of a negative one past the last token.
    slots: [u64; TOKENS],
}

impl Tokens {
    /// Waits for the kernels before: what follows reads what they wrote.
    #[inline(always)]
    unsafe fn load<G: Gpu>(gpu: G, params: &MlaEntryParams) -> Self {
        let first = (gpu.cta_idx_x() * (THREADS / WARP) + gpu.warp()) * TOKENS as u32;
        gpu.wait_for_previous_kernels();
        gpu.let_next_kernel_start();
        let mut slots = [u64::MAX; TOKENS];
        unroll!([2] i in 0..TOKENS {
            let token = first + i as u32;
            if token < params.num_tokens {
                // SAFETY: one slot per token.
                slots[i] = unsafe { gpu.ld_global_b64(params.slot_mapping + 8 * token as u64) };
            }
        });
        Self { first, slots }
    }

    /// Token `i`, if there is one.
    #[inline(always)]
    fn token(self, params: &MlaEntryParams, i: usize) -> Option<u64> {
        let token = self.first + i as u32;
        (token < params.num_tokens).then_some(token as u64)
    }
}

/// Eight e4m3 of `values / scale`.
#[inline(always)]
fn quantise8<G: Gpu>(gpu: G, values: [f32; 8], scale: f32) -> [u32; 2] {
    E4m3::narrow8(gpu, Divisor::new(scale).divide8(gpu, values))
}

/// The 656-byte form.
///
/// # Safety
/// Launched on [`grid`] with [`THREADS`] threads; `params` names tensors of the shapes it documents; slots
/// are distinct and inside the cache.
#[inline(always)]
pub unsafe fn fp8_ds<G: Gpu>(gpu: G, params: &MlaEntryParams) {
    const LANES: u32 = fp8_ds::GROUP / 8;
    let lane = gpu.lane();
    // SAFETY: as the caller promises.
    let tokens = unsafe { Tokens::load(gpu, params) };
    let mut latents = [[[0; 4]; UNITS]; TOKENS];
    let mut rope = [[0; 4]; TOKENS];
    unroll!([2] i in 0..TOKENS {
        if let Some(token) = tokens.token(params, i) {
            let at = params.kv_c + token * params.stride_kv_c_token as u64 + 16 * lane as u64;
            // SAFETY: 8 latents of a token that exists, and 8 more.
            latents[i] = unsafe { [gpu.ld_global_b128(at), gpu.ld_global_b128(at + 512)] };
            if lane < ROPE_LANES && params.k_pe != 0 {
                let at = params.k_pe + token * params.stride_k_pe_token as u64 + 16 * lane as u64;
                // SAFETY: 8 RoPE values of the token.
                rope[i] = unsafe { gpu.ld_global_b128(at) };
            }
        }
    });
    // SAFETY: a valid check record, or none.
    if unsafe { found_fault(gpu, params.check) } {
        return;
    }
    unroll!([2] i in 0..TOKENS {
        let slot = Slot::new(tokens.slots[i], &params.block_size);
        let entry = slot.map(|slot| {
            params.kv_cache + slot.at(params.stride_cache_block, params.stride_cache_slot)
        });
        unroll!([2] j in 0..UNITS {
            let values = Bf16::widen8(gpu, latents[i][j]);
            // SAFETY: whole warps come here.
            let amax = unsafe { amax_over_lanes(gpu, amax8(gpu, 0.0, values), LANES) };
            let scale = if params.power_of_two_scales != 0 {
                f32::from_bits(exponent_up(gpu.max(amax / QMAX, LEAST)) << 23)
            } else {
                gpu.max(amax / QMAX, f32::MIN_POSITIVE)
            };
            if let Some(entry) = entry {
                let unit = j as u32 * WARP + lane;
                // SAFETY: the entry is this warp's; each lane writes its own bytes.
                unsafe {
                    E4m3::store8(gpu, entry + 8 * unit as u64, quantise8(gpu, values, scale));
                    if lane.is_multiple_of(LANES) {
                        let at = entry + (fp8_ds::SCALES_AT + 4 * (unit / LANES)) as u64;
                        gpu.st_global_b32(at, scale.to_bits());
                    }
                }
            }
        });
        if let Some(entry) = entry
            && lane < ROPE_LANES
        {
            let at = entry + (fp8_ds::ROPE_AT + 16 * lane) as u64;
            // SAFETY: as above.
            unsafe { gpu.st_global_b128(at, rope[i]) };
        }
    });
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
    // SAFETY: as the caller promises.
    let tokens = unsafe { Tokens::load(gpu, params) };
    let mut data = [[[0; 4]; UNITS]; TOKENS];
    unroll!([2] i in 0..TOKENS {
        if let Some(token) = tokens.token(params, i) {
            let values = params.kv_c + token * params.stride_kv_c_token as u64;
            let rope = params.k_pe + token * params.stride_k_pe_token as u64;
            unroll!([2] j in 0..UNITS {
                let unit = j as u32 * WARP + lane;
                let at = if unit < ROPE_UNIT {
                    values + 16 * unit as u64
                } else {
                    rope + 16 * (unit - ROPE_UNIT) as u64
                };
                // SAFETY: 8 values of a token that exists.
                data[i][j] = unsafe { gpu.ld_global_b128(at) };
            });
        }
    });
    // SAFETY: a valid check record, or none.
    if unsafe { found_fault(gpu, params.check) } {
        return;
    }
    unroll!([2] i in 0..TOKENS {
        let slot = Slot::new(tokens.slots[i], &params.block_size);
        unroll!([2] j in 0..UNITS {
            let unit = j as u32 * WARP + lane;
            let values = Bf16::widen8(gpu, data[i][j]);
            // SAFETY: whole warps come here. RoPE values are a group of their own.
            let amax = unsafe { amax_over_lanes(gpu, amax8(gpu, LEAST, values), LANES) };
            let exponent = exponent_up(amax / QMAX);
            if let Some(slot) = slot {
                let page = params.kv_cache + slot.block * params.stride_cache_block as u64;
                let entry = page + slot.offset * v4::VALUE_BYTES as u64;
                let scales = page
                    + params.block_size.divisor() as u64 * v4::VALUE_BYTES as u64
                    + slot.offset * v4::SCALE_BYTES as u64;
                // SAFETY: the entry is this warp's; each lane writes its own bytes.
                unsafe {
                    if unit < ROPE_UNIT {
                        let bytes = quantise8(gpu, values, f32::from_bits(exponent << 23));
                        E4m3::store8(gpu, entry + 8 * unit as u64, bytes);
                    } else {
                        let at = entry + (v4::VALUES + 16 * (unit - ROPE_UNIT)) as u64;
                        gpu.st_global_b128(at, data[i][j]);
                    }
                    if lane.is_multiple_of(LANES) {
                        // The RoPE values' place among the scales is padding.
                        let byte = if unit < ROPE_UNIT { exponent as u8 } else { 0 };
                        gpu.st_global_b8(scales + (unit / LANES) as u64, byte);
                    }
                }
            }
        });
    });
}
