//! Gathers tokens of a paged cache into rows that lie side by side: byte for byte, or dequantised.
//!
//! Grid: x = warps over (row, slab). A warp owns one row of the output (of long rows, a slab of 128 units):
//!
//! ```text
//! token of this row: from row starts, lengths or indices   (see `GatherParams`)
//! slot of the token: block_table -> block, offset; none if -1, past the table or outside the cache
//! out[row] = cache[slot], widened and scaled               (without a slot: untouched, or zeros if asked for)
//! ```
//!
//! The shape of the launch depends on the number of rows alone, never on what indices say, so it can be
//! captured in a graph; and a row depends on its own index alone, so every order of rows gives the same bytes.

use super::check::report;
use super::reshape_and_cache_flash::{load, store};
use super::slots::Slot;
use crate::dtype::{Bf16, E4m3, Element};
use crate::gpu::{Gpu, WARP, div};
use crate::mla_entry::{fp8_ds, v4};
use crate::params::{CheckFault, GatherParams};
use crate::unroll::unroll;

/// Threads per thread block.
pub const THREADS: u32 = 4 * WARP;
/// Units of a lane.
const UNITS: usize = 4;
/// Units of a warp.
pub const SLAB: u32 = UNITS as u32 * WARP;
/// The first lane with RoPE values in V4's form.
const V4_ROPE_LANE: u32 = v4::VALUES / 16;

/// Thread blocks for `num_rows` rows of `slabs` slabs each; `None` if they are too many for the kernel's
/// 32-bit counters.
pub fn grid(num_rows: u32, slabs: u32) -> Option<[u32; 3]> {
    let warps = num_rows.checked_mul(slabs)?;
    (warps <= i32::MAX as u32).then_some([warps.div_ceil(THREADS / WARP).max(1), 1, 1])
}

/// A row of the output.
#[derive(Clone, Copy)]
struct Row {
    out: u64,
    /// The lane's first unit; the others follow at distances of 32.
    first_unit: u32,
    /// Where the token is; `None` for zeros.
    slot: Option<Slot>,
}

/// Copies bytes.
///
/// # Safety
/// Launched on [`grid`] with [`THREADS`] threads; `params` names tensors of the shapes it documents.
#[inline(always)]
pub unsafe fn copy<G: Gpu>(gpu: G, params: &GatherParams) {
    // SAFETY: as the caller promises.
    let Some(row) = (unsafe { Row::find(gpu, params) }) else {
        return;
    };
    // SAFETY: as the caller promises; the unit is the alignment.
    unsafe {
        match params.unit {
            16 => row.copy::<G, 16>(gpu, params),
            8 => row.copy::<G, 8>(gpu, params),
            4 => row.copy::<G, 4>(gpu, params),
            2 => row.copy::<G, 2>(gpu, params),
            _ => row.copy::<G, 1>(gpu, params),
        }
    }
}

/// Widens FP8 values of one scale.
///
/// # Safety
/// As [`copy`].
#[inline(always)]
pub unsafe fn scaled<G: Gpu, In: Element, Out: Element>(gpu: G, params: &GatherParams) {
    // SAFETY: as the caller promises.
    let Some(row) = (unsafe { Row::find(gpu, params) }) else {
        return;
    };
    // SAFETY: a scale was given.
    let scale = f32::from_bits(unsafe { gpu.ld_global_b32(params.scale) });
    // SAFETY: as the caller promises; units of eight only where they are aligned.
    unsafe {
        if params.unit == 8 {
            row.scale_eights::<G, In, Out>(gpu, params, scale);
        } else {
            row.scale_ones::<G, In, Out>(gpu, params, scale);
        }
    }
}

/// Dequantises the 656-byte form to `[512 latents, 64 RoPE values]` in bf16. A lane takes 16 latents.
///
/// # Safety
/// As [`copy`], everything aligned to 16 bytes.
#[inline(always)]
pub unsafe fn mla_fp8_ds<G: Gpu>(gpu: G, params: &GatherParams) {
    // SAFETY: as the caller promises.
    let Some(row) = (unsafe { Row::find(gpu, params) }) else {
        return;
    };
    let lane = gpu.lane();
    let mut latents = [[0; 4]; 2];
    let mut rope = [0; 4];
    if let Some(slot) = row.slot {
        let entry = params.cache + slot.at(params.stride_cache_block, params.stride_cache_slot);
        // SAFETY: a slot of the cache; the lane's part of its entry.
        let (bytes, scale) = unsafe {
            if lane < fp8_ds::ROPE / 8 {
                rope = gpu.ld_global_b128(entry + (fp8_ds::ROPE_AT + 16 * lane) as u64);
            }
            let group = 16 * lane / fp8_ds::GROUP;
            (
                gpu.ld_global_b128(entry + 16 * lane as u64),
                gpu.ld_global_b32(entry + (fp8_ds::SCALES_AT + 4 * group) as u64),
            )
        };
        latents = dequantise16(gpu, bytes, f32::from_bits(scale));
    }
    // SAFETY: the row is this warp's; each lane writes its own bytes.
    unsafe {
        gpu.st_global_b128(row.out + 32 * lane as u64, latents[0]);
        gpu.st_global_b128(row.out + 32 * lane as u64 + 16, latents[1]);
        if lane < fp8_ds::ROPE / 8 {
            let at = row.out + (2 * fp8_ds::LATENTS + 16 * lane) as u64;
            gpu.st_global_b128(at, rope);
        }
    }
}

/// Dequantises V4's form to `[448 values, 64 RoPE values]` in bf16. A lane takes 16 values.
///
/// # Safety
/// As [`mla_fp8_ds`].
#[inline(always)]
pub unsafe fn mla_v4<G: Gpu>(gpu: G, params: &GatherParams) {
    // SAFETY: as the caller promises.
    let Some(row) = (unsafe { Row::find(gpu, params) }) else {
        return;
    };
    let lane = gpu.lane();
    let mut values = [[0; 4]; 2];
    if let Some(slot) = row.slot {
        let page = params.cache + slot.block * params.stride_cache_block as u64;
        let entry = page + slot.offset * v4::VALUE_BYTES as u64;
        let scales = page
            + params.block_size as u64 * v4::VALUE_BYTES as u64
            + slot.offset * v4::SCALE_BYTES as u64;
        if lane < V4_ROPE_LANE {
            // SAFETY: a slot of the cache; the lane's values and their scale.
            let (bytes, exponent) = unsafe {
                (
                    gpu.ld_global_b128(entry + 16 * lane as u64),
                    gpu.ld_global_b8(scales + (16 * lane / v4::GROUP) as u64),
                )
            };
            values = dequantise16(gpu, bytes, power_of_two(exponent));
        } else {
            let at = entry + (v4::VALUES + 32 * (lane - V4_ROPE_LANE)) as u64;
            // SAFETY: 16 RoPE values of the slot.
            values = unsafe { [gpu.ld_global_b128(at), gpu.ld_global_b128(at + 16)] };
        }
    }
    // SAFETY: the row is this warp's; each lane writes its own bytes.
    unsafe {
        gpu.st_global_b128(row.out + 32 * lane as u64, values[0]);
        gpu.st_global_b128(row.out + 32 * lane as u64 + 16, values[1]);
    }
}

/// The value of a UE8M0: 2^(byte - 127), NaN for 255.
#[inline(always)]
fn power_of_two(byte: u8) -> f32 {
    match byte {
        0 => f32::from_bits(0x0040_0000),
        255 => f32::NAN,
        _ => f32::from_bits((byte as u32) << 23),
    }
}

/// Sixteen e4m3 times a scale, rounded to bf16.
#[inline(always)]
fn dequantise16<G: Gpu>(gpu: G, [a, b, c, d]: [u32; 4], scale: f32) -> [[u32; 4]; 2] {
    let eight = |words| Bf16::narrow8(gpu, E4m3::widen8(gpu, words).map(|x| x * scale));
    [eight([a, b]), eight([c, d])]
}

impl Row {
    /// This warp's row, unless it stays untouched.
    #[inline(always)]
    unsafe fn find<G: Gpu>(gpu: G, params: &GatherParams) -> Option<Self> {
        let warp = gpu.cta_idx_x() * (THREADS / WARP) + gpu.warp();
        // SAFETY: every row has a slab at least.
        let row = unsafe { div(warp, params.slabs) };
        if row >= params.num_rows {
            return None;
        }
        let mut out = params.out + row as u64 * params.stride_out_row as u64;
        // SAFETY: as the kernels' callers promise; the whole warp is here.
        let slot = unsafe {
            match params.mode {
                GatherParams::RAGGED => Self::ragged(gpu, params, row),
                GatherParams::PADDED => {
                    let seq = div(row, params.rows_per_seq);
                    let i = row - seq * params.rows_per_seq;
                    out = params.out
                        + seq as u64 * params.stride_out_seq as u64
                        + i as u64 * params.stride_out_row as u64;
                    Self::padded(gpu, params, seq, i)
                }
                _ => Self::indexed(gpu, params, row),
            }
        };
        if slot.is_none() && params.zero_missing == 0 {
            return None;
        }
        Some(Self {
            out,
            first_unit: (warp - row * params.slabs) * SLAB + gpu.lane(),
            slot,
        })
    }

    /// The lanes count together how many sequences end at or before the row.
    #[inline(always)]
    unsafe fn ragged<G: Gpu>(gpu: G, params: &GatherParams, row: u32) -> Option<Slot> {
        let mut seq = 0;
        let mut other = gpu.lane();
        while other < params.num_seqs {
            // SAFETY: `num_seqs + 1` row starts.
            let end = unsafe { gpu.ld_global_b32(params.rows + 4 * (other as u64 + 1)) } as i32;
            seq += (end <= row as i32) as u32;
            other += WARP;
        }
        let mut mask = WARP / 2;
        while mask > 0 {
            // SAFETY: the whole warp is here.
            seq += unsafe { gpu.shfl_xor(seq, mask) };
            mask /= 2;
        }
        if seq >= params.num_seqs {
            return None;
        }
        // SAFETY: a row start per sequence, and a first token if there are any.
        let (start, first_token) = unsafe {
            (
                gpu.ld_global_b32(params.rows + 4 * seq as u64) as i32,
                if params.seqs == 0 {
                    0
                } else {
                    gpu.ld_global_b32(params.seqs + 4 * seq as u64) as i32
                },
            )
        };
        if (row as i32) < start || first_token < 0 {
            return None;
        }
        // SAFETY: the sequence has a row in the block table.
        unsafe { Self::look_up(gpu, params, seq, row - start as u32 + first_token as u32) }
    }

    #[inline(always)]
    unsafe fn padded<G: Gpu>(gpu: G, params: &GatherParams, seq: u32, i: u32) -> Option<Slot> {
        // SAFETY: a length per sequence, and a number of tokens to gather if it differs.
        let (seq_len, len) = unsafe {
            let seq_len = gpu.ld_global_b32(params.seqs + 4 * seq as u64) as i32;
            if params.rows == 0 {
                (seq_len, seq_len)
            } else {
                let len = gpu.ld_global_b32(params.rows + 4 * seq as u64) as i32;
                (seq_len, if len < seq_len { len } else { seq_len })
            }
        };
        if i as i32 >= len {
            return None;
        }
        // SAFETY: the sequence has a row in the block table.
        unsafe { Self::look_up(gpu, params, seq, (seq_len - len) as u32 + i) }
    }

    #[inline(always)]
    unsafe fn indexed<G: Gpu>(gpu: G, params: &GatherParams, row: u32) -> Option<Slot> {
        // SAFETY: one index per row.
        let index = unsafe { gpu.ld_global_b32(params.rows + 4 * row as u64) };
        if (index as i32) < 0 {
            return None;
        }
        if params.block_table == 0 {
            // SAFETY: the host refuses empty blocks.
            let slot = unsafe { Slot::new(index as u64, params.block_size) };
            if slot.block < params.num_blocks as u64 {
                return Some(slot);
            }
            let limit = params.num_blocks as i64 * params.block_size as i64;
            // SAFETY: a valid record, or none.
            unsafe {
                complain(
                    gpu,
                    params,
                    CheckFault::INDEX,
                    [row, 0],
                    [index as i64, limit],
                )
            };
            return None;
        }
        // SAFETY: the host refuses requests without rows per sequence.
        let token = unsafe { div(row, params.rows_per_seq) };
        let seq = if params.seqs == 0 {
            token
        } else {
            // SAFETY: a sequence for each token.
            unsafe { gpu.ld_global_b32(params.seqs + 4 * token as u64) }
        };
        if seq >= params.num_seqs {
            return None;
        }
        // SAFETY: the sequence has a row in the block table.
        unsafe { Self::look_up(gpu, params, seq, index) }
    }

    /// Where the block table says that a token is.
    #[inline(always)]
    unsafe fn look_up<G: Gpu>(gpu: G, params: &GatherParams, seq: u32, token: u32) -> Option<Slot> {
        // SAFETY: the host refuses empty blocks.
        let position = unsafe { div(token, params.block_size) };
        if position >= params.max_num_blocks_per_seq {
            return None;
        }
        let row = params.block_table + seq as u64 * params.stride_block_table as u64;
        // SAFETY: an entry of the sequence's row.
        let block = unsafe { gpu.ld_global_b32(row + 4 * position as u64) };
        if block >= params.num_blocks {
            let found = [block as i32 as i64, params.num_blocks as i64];
            // SAFETY: a valid record, or none.
            unsafe { complain(gpu, params, CheckFault::BLOCK_ID, [seq, position], found) };
            return None;
        }
        Some(Slot {
            block: block as u64,
            offset: (token - position * params.block_size) as u64,
        })
    }

    /// Where unit `i` of the lane is in the row, in units; `None` past the end.
    #[inline(always)]
    fn unit(self, params: &GatherParams, i: usize) -> Option<u64> {
        let unit = self.first_unit + i as u32 * WARP;
        (unit < params.row_units).then_some(unit as u64)
    }

    #[inline(always)]
    fn source(self, params: &GatherParams) -> Option<u64> {
        let at = |slot: Slot| slot.at(params.stride_cache_block, params.stride_cache_slot);
        self.slot.map(|slot| params.cache + at(slot))
    }

    #[inline(always)]
    unsafe fn copy<G: Gpu, const BYTES: u32>(self, gpu: G, params: &GatherParams) {
        let mut data = [[0u32; 4]; UNITS];
        if let Some(source) = self.source(params) {
            unroll!([4] i in 0..UNITS {
                if let Some(unit) = self.unit(params, i) {
                    // SAFETY: a unit of the slot's row, aligned as the host found.
                    data[i] = unsafe { load::<G, BYTES>(gpu, source + unit * BYTES as u64) };
                }
            });
        }
        unroll!([4] i in 0..UNITS {
            if let Some(unit) = self.unit(params, i) {
                // SAFETY: a unit of the row, which is this warp's.
                unsafe { store::<G, BYTES>(gpu, self.out + unit * BYTES as u64, data[i]) };
            }
        });
    }

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
                if let Some(unit) = self.unit(params, i) {
                    let at = source + unit * 8 * In::BYTES as u64;
                    // SAFETY: a unit of the slot's row, aligned as the host found.
                    data[i] = unsafe { In::load8(gpu, at) };
                }
            });
        }
        unroll!([4] i in 0..UNITS {
            if let Some(unit) = self.unit(params, i) {
                let values = In::widen8(gpu, data[i]).map(|x| x * scale);
                let at = self.out + unit * 8 * Out::BYTES as u64;
                // SAFETY: a unit of the row, which is this warp's.
                unsafe { Out::store8(gpu, at, Out::narrow8(gpu, values)) };
            }
        });
    }

    #[inline(always)]
    unsafe fn scale_ones<G: Gpu, In: Element, Out: Element>(
        self,
        gpu: G,
        params: &GatherParams,
        scale: f32,
    ) {
        unroll!([4] i in 0..UNITS {
            if let Some(unit) = self.unit(params, i) {
                let mut value = 0.0;
                if let Some(source) = self.source(params) {
                    // SAFETY: a value of the slot's row.
                    value = unsafe { In::load1(gpu, source + unit * In::BYTES as u64) } * scale;
                }
                // SAFETY: a value of the row, which is this warp's.
                unsafe { Out::store1(gpu, self.out + unit * Out::BYTES as u64, value) };
            }
        });
    }
}

/// Reports an index that is skipped, if somebody wants to know.
///
/// # Safety
/// `params.check` is a valid record, or 0.
#[inline(always)]
unsafe fn complain<G: Gpu>(
    gpu: G,
    params: &GatherParams,
    kind: u32,
    [row, position]: [u32; 2],
    [value, limit]: [i64; 2],
) {
    if params.check != 0 && gpu.lane() == 0 {
        // SAFETY: a valid record.
        unsafe { report(gpu, params.check, kind, row, position, value, limit) };
    }
}
