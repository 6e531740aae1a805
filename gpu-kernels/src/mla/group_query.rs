//! The rows of a thread block whose warp groups multiply, as panels.

use crate::attention::query::{query_bytes, score_scale, to_f16};
use crate::dtype::{Bf16, CacheFormat, E4m3, Half};
use crate::gpu::unroll::unroll;
use crate::gpu::{Gpu, Line, WARP, in_panels};
use crate::mla::MlaTile;
use crate::mla::cta::Cta;
use crate::mla::group_tile::{GROUP_WARPS, GROUPS, ROWS, TOGETHER};
use crate::params::DecodeMlaParams;

/// Warps that bring rows: those that multiply.
const WARPS: u32 = GROUPS * GROUP_WARPS;
/// Rows of each.
const WARP_ROWS: usize = (ROWS / WARPS) as usize;
/// Chunks of 8 values that a lane has of a row, at most.
const CHUNKS: usize = 3;

/// Brings the thread block's rows of the query into panels; rows past the end become zero. Over a cache of bytes they become
/// f16, and what turns a row's products into scores, of which `qk_scale_log2` is the part that all rows share, is written
/// beside them.
///
/// # Safety
/// Both groups that multiply come here; the rows exist.
#[inline(always)]
pub(super) unsafe fn load_queries<G: Gpu, C: CacheFormat, const K_STEPS: usize>(
    gpu: G,
    cut: MlaTile,
    params: &DecodeMlaParams,
    cta: Cta,
    qk_scale_log2: f32,
) {
    // SAFETY: this function's contract.
    unsafe {
        if C::BYTES == 2 {
            copy::<G, K_STEPS>(gpu, params, cta);
        } else {
            convert::<G, C, K_STEPS>(gpu, cut, params, cta, qk_scale_log2, false);
        }
    }
    // SAFETY: both groups come here.
    unsafe { show(gpu) };
}

/// The same over entries, with queries of bf16: they become f16, but for what stands behind their values.
///
/// # Safety
/// As [`load_queries`].
#[inline(always)]
pub(super) unsafe fn load_entry_queries<G: Gpu, const K_STEPS: usize>(
    gpu: G,
    cut: MlaTile,
    params: &DecodeMlaParams,
    cta: Cta,
) {
    // SAFETY: this function's contract.
    unsafe {
        convert::<G, E4m3, K_STEPS>(gpu, cut, params, cta, params.qk_scale_log2, true);
        show(gpu);
    }
}

/// Shows both groups, and the tensor cores, the rows.
///
/// # Safety
/// Both groups come here.
#[inline(always)]
unsafe fn show<G: Gpu>(gpu: G) {
    gpu.fence_warpgroup();
    let (barrier, threads) = TOGETHER;
    // SAFETY: both groups come here.
    unsafe { gpu.barrier_sync(barrier, threads) };
}

/// What turns the products of row `row` into scores, base 2, over a cache of bytes.
///
/// # Safety
/// The row is one of the thread block's 64, behind [`load_queries`].
#[inline(always)]
pub(super) unsafe fn row_scale<G: Gpu>(gpu: G, cut: MlaTile, row: u32) -> f32 {
    // SAFETY: written before the barrier.
    f32::from_bits(unsafe { gpu.ld_shared_b32(factor_at(gpu, cut, row)) })
}

#[inline(always)]
fn factor_at<G: Gpu>(gpu: G, cut: MlaTile, row: u32) -> u32 {
    gpu.shared_base() + cut.group_factors() + 4 * row
}

/// Whether rows, of 16 bits, begin at multiples of 16 bytes.
#[inline(always)]
fn are_aligned(params: &DecodeMlaParams) -> bool {
    let places = params.query
        | params.stride_query_seq as u64
        | params.stride_query_token as u64
        | params.stride_query_head as u64;
    places.is_multiple_of(16)
}

/// Copies rows of the cache's type.
///
/// # Safety
/// As [`load_queries`].
#[inline(always)]
unsafe fn copy<G: Gpu, const K_STEPS: usize>(gpu: G, params: &DecodeMlaParams, cta: Cta) {
    let chunks = K_STEPS as u32 * 2;
    let is_aligned = are_aligned(params);
    let mut row = gpu.warp() - GROUP_WARPS;
    while row < ROWS {
        let is_valid = row < cta.num_rows;
        let source = if is_valid {
            cta.query_row(params, row)
        } else {
            params.query
        };
        if is_aligned {
            let mut chunk = gpu.lane();
            while chunk < chunks {
                let target = gpu.shared_base() + in_panels(row, chunk);
                // SAFETY: 16 bytes of a row that is read only if it exists; this lane's part of the panels.
                unsafe {
                    gpu.cp_async_b128(target, source + 16 * chunk as u64, is_valid, Line::ONCE);
                }
                chunk += WARP;
            }
        } else {
            let mut word = gpu.lane();
            while word < chunks * 4 {
                let target = gpu.shared_base() + in_panels(row, word / 4) + word % 4 * 4;
                // SAFETY: as above; values are aligned two by two: the host's check.
                unsafe { gpu.cp_async_b32(target, source + 4 * word as u64, is_valid) };
                word += WARP;
            }
        }
        row += WARPS;
    }
    gpu.cp_async_commit();
    gpu.cp_async_wait::<0>();
}

/// Makes f16 of rows of any type: all that a warp has are under way together. If the rest stays, what is behind the values
/// keeps its type, which is bf16, and is multiplied as the others are.
///
/// # Safety
/// As [`load_queries`].
#[inline(always)]
unsafe fn convert<G: Gpu, C: CacheFormat, const K_STEPS: usize>(
    gpu: G,
    cut: MlaTile,
    params: &DecodeMlaParams,
    cta: Cta,
    qk_scale_log2: f32,
    rest_stays: bool,
) {
    const { assert!(K_STEPS as u32 * 2 <= CHUNKS as u32 * WARP) };
    let chunk_of = |i: usize| i as u32 * WARP + gpu.lane();
    let has = |i: usize| chunk_of(i) < K_STEPS as u32 * 2;
    let row_of = |i: usize| gpu.warp() - GROUP_WARPS + i as u32 * WARPS;
    let bytes = query_bytes::<C>(params.query_dtype);
    let is_aligned = bytes == 2 && are_aligned(params);
    let mut rows = [[[0u32; 2]; 2 * CHUNKS]; WARP_ROWS];
    unroll!([8] i in 0..WARP_ROWS {
        if row_of(i) < cta.num_rows {
            let row = cta.query_row(params, row_of(i));
            unroll!([4] chunk in 0..CHUNKS {
                if has(chunk) && is_aligned {
                    // SAFETY: 16 bytes of a row that exists, aligned to them.
                    let [a, b, c, d] = unsafe { gpu.ld_global_b128(row + 16 * chunk_of(chunk) as u64) };
                    (rows[i][2 * chunk], rows[i][2 * chunk + 1]) = ([a, b], [c, d]);
                } else if has(chunk) {
                    unroll!([4] pair in 0..4 {
                        let at = row + bytes * (chunk_of(chunk) as u64 * 8 + pair as u64 * 2);
                        // SAFETY: two values of a row that exists, aligned to both: the host's check.
                        rows[i][2 * chunk + pair / 2][pair % 2] = unsafe {
                            if bytes == 1 {
                                gpu.ld_global_b16(at) as u32
                            } else {
                                gpu.ld_global_b32(at)
                            }
                        };
                    });
                }
            });
        }
    });
    unroll!([8] i in 0..WARP_ROWS {
        let stored = rows[i];
        // SAFETY: converged: a warp's rows are all its lanes'.
        let unscale = unsafe { to_f16::<G, { 2 * CHUNKS }, 5>(gpu, &mut rows[i], params.query_dtype) };
        unroll!([4] chunk in 0..CHUNKS {
            if has(chunk) {
                let mut words = [rows[i][2 * chunk], rows[i][2 * chunk + 1]];
                if rest_stays && chunk_of(chunk) * 8 >= cut.head_size_v {
                    // A power of two: its inverse has the other exponent.
                    let scale = f32::from_bits((254 << 23) - unscale.to_bits());
                    words = [stored[2 * chunk], stored[2 * chunk + 1]]
                        .map(|pairs| pairs.map(|pair| times(gpu, pair, scale)));
                }
                let [[a, b], [c, d]] = words;
                let at = gpu.shared_base() + in_panels(row_of(i), chunk_of(chunk));
                // SAFETY: this lane's part of the panels.
                unsafe { gpu.st_shared_b128(at, [a, b, c, d]) };
            }
        });
        if gpu.lane() == 0 {
            let scale = score_scale(qk_scale_log2 * unscale);
            // SAFETY: one lane for each row.
            unsafe { gpu.st_shared_b32(factor_at(gpu, cut, row_of(i)), scale.to_bits()) };
        }
    });
}

/// Two bf16 times a power of two.
#[inline(always)]
fn times<G: Gpu>(gpu: G, pair: u32, scale: f32) -> u32 {
    let [low, high] = [pair as u16, (pair >> 16) as u16].map(|bits| Bf16::widen(gpu, bits) * scale);
    gpu.pack_bf16(low, high)
}
