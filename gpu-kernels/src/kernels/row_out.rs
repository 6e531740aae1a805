//! What becomes of a row at the end of `prefill_gqa`: its output and lse, or its part of them.

use super::row_work::{Parked, out_scale, sink_log2, store_lse};
use crate::dtype::{Bf16, F16, Half};
use crate::gpu::Gpu;
use crate::kv::CacheFormat;
use crate::params::PrefillParams;
use crate::tile::QueryDtype;
use crate::tile::rows::{RowPartial, RowView};
use crate::unroll::unroll;

/// Stores what a warp has of its rows: of one of `parked.num_splits` parts.
///
/// # Safety
/// Converged; the rows of `view` are this warp's.
#[inline(always)]
pub(super) unsafe fn store_rows<
    G: Gpu,
    C: CacheFormat,
    const V_STEPS: usize,
    const ROW_TILES: usize,
>(
    gpu: G,
    params: &PrefillParams,
    partial: &mut RowPartial<V_STEPS, ROW_TILES>,
    parked: &Parked,
    view: RowView,
) {
    // SAFETY: this head's scales.
    let (_, v_scale) = unsafe { kv_scales::<G, C>(gpu, params, parked.work.kv_head) };
    let part = (parked.num_splits > 1).then(|| gpu.cta_idx_y());
    // SAFETY: converged.
    unsafe { partial.reduce(gpu) };
    unroll!([2] tile in 0..ROW_TILES {
        unroll!([2] half in 0..2 {
            let row = view.rows.of_lane(gpu.lane(), tile, half);
            if row < view.rows.end {
                let row = Row {
                    token: parked.work.query_start + view.rows.token(row),
                    head: view.first_head + view.rows.head(row),
                };
                // SAFETY: a row of this warp, its own part of it.
                unsafe { row.store::<G, C, V_STEPS, ROW_TILES>(gpu, params, partial, (tile, half), v_scale, part) };
            }
        });
    });
}

/// What products with a KV head's keys, and sums of its values, have to be multiplied by. Both are read wherever one is
/// wanted: read apart, they made ptxas spill.
///
/// # Safety
/// The scales of a cache of bytes are readable.
#[inline(always)]
pub(super) unsafe fn kv_scales<G: Gpu, C: CacheFormat>(
    gpu: G,
    params: &PrefillParams,
    kv_head: u32,
) -> (f32, f32) {
    if C::BYTES == 2 {
        return (1.0, 1.0);
    }
    let load = |scales: u64, stride: i64| {
        let at = scales + 4 * (kv_head as u64 * stride as u64);
        // SAFETY: one value for all heads or one for each, as the caller promises.
        f32::from_bits(unsafe { gpu.ld_global_b32(at) })
    };
    let q_scale = if params.q_scale != 0 {
        load(params.q_scale, 0)
    } else {
        1.0
    };
    if C::TOKEN_SCALES {
        return (q_scale, 1.0);
    }
    let k_scale = load(params.k_scale, params.stride_k_scale);
    (
        q_scale * k_scale,
        load(params.v_scale, params.stride_v_scale),
    )
}

/// A row of the output.
#[derive(Clone, Copy)]
struct Row {
    token: u32,
    head: u32,
}

impl Row {
    /// Stores what a warp has of the row, which is `(tile, half)` of a lane: finished, or as a part.
    ///
    /// # Safety
    /// The row and the part are this warp's; the sums are complete.
    #[inline(always)]
    unsafe fn store<G: Gpu, C: CacheFormat, const V_STEPS: usize, const ROW_TILES: usize>(
        self,
        gpu: G,
        params: &PrefillParams,
        partial: &RowPartial<V_STEPS, ROW_TILES>,
        (tile, half): (usize, usize),
        v_scale: f32,
        part: Option<u32>,
    ) {
        let shift = RowPartial::<V_STEPS, ROW_TILES>::shift::<C>();
        // Sinks and the output's scale are for whoever finishes the row.
        let (mut sink, mut out) = (f32::NEG_INFINITY, 1.0);
        if part.is_none() {
            // SAFETY: one for each head, if there are any; a scale, if the output is of bytes.
            (sink, out) = unsafe {
                (
                    sink_log2(gpu, &params.score, self.head),
                    out_scale(gpu, params),
                )
            };
        }
        let max = gpu.max(partial.max[tile][half], sink);
        // A row that saw nothing, and has no sink: 0 and -inf.
        let is_empty = max == f32::NEG_INFINITY;
        let max = if is_empty { 0.0 } else { max };
        let share = gpu.exp2(partial.max[tile][half] - max);
        let sum = gpu.fma(partial.sum[tile][half], share, gpu.exp2(sink - max + shift));
        let (mut scale, mut lse_log2) = (0.0, f32::NEG_INFINITY);
        if !is_empty {
            scale = share * gpu.recip(sum) * v_scale * out;
            lse_log2 = max - shift + gpu.log2(sum);
        }
        if C::TOKEN_SCALES {
            scale *= partial.value_unit;
        }
        let element = match part {
            None => {
                self.token as u64 * params.stride_out_token as u64
                    + self.head as u64 * params.stride_out_head as u64
            }
            Some(part) => self.part(params, part) * (V_STEPS as u64 * 16),
        };
        unroll!([16] step in 0..V_STEPS {
            let [low, high] = partial.acc[tile][step];
            let values = [low[2 * half], low[2 * half + 1], high[2 * half], high[2 * half + 1]];
            let values = values.map(|value| value * scale);
            let element = element + step as u64 * 16;
            // SAFETY: this lane's dims of the row.
            unsafe { store_dims::<G, C>(gpu, params, element, values, part.is_some()) };
        });
        if gpu.lane().is_multiple_of(4) {
            // SAFETY: one lane of the row.
            unsafe {
                match part {
                    None => store_lse(gpu, params, self.token, self.head, lse_log2),
                    Some(part) => {
                        let at = params.partial_lse + 4 * self.part(params, part);
                        gpu.st_global_b32(at, lse_log2.to_bits());
                    }
                }
            }
        }
    }

    /// Index of a part of the row.
    #[inline(always)]
    fn part(self, params: &PrefillParams, part: u32) -> u64 {
        let num_heads = params.num_kv_heads * params.num_queries_per_kv;
        let row = self.token as u64 * num_heads as u64 + self.head as u64;
        row * params.num_kv_splits as u64 + part as u64
    }
}

/// Stores a lane's four dims of a step of 16 that begins at `element` of the output, or of the parts.
///
/// # Safety
/// The step is in bounds, aligned to four values, and no other lane writes this lane's dims.
#[inline(always)]
unsafe fn store_dims<G: Gpu, C: CacheFormat>(
    gpu: G,
    params: &PrefillParams,
    element: u64,
    [a, b, c, d]: [f32; 4],
    is_part: bool,
) {
    let first = element + gpu.lane() as u64 % 4 * 2;
    let second = first + 8;
    if is_part {
        let pair = |low: f32, high: f32| low.to_bits() as u64 | (high.to_bits() as u64) << 32;
        // SAFETY: as the caller promises.
        unsafe {
            gpu.st_global_b64(params.partial_out + 4 * first, pair(a, b));
            gpu.st_global_b64(params.partial_out + 4 * second, pair(c, d));
        }
        return;
    }
    if params.out_dtype == QueryDtype::E4m3 as u32 {
        let [low, high] = [gpu.pack_e4m3(a, b), gpu.pack_e4m3(c, d)];
        // SAFETY: as the caller promises.
        unsafe {
            gpu.st_global_b16(params.out + first, low);
            gpu.st_global_b16(params.out + second, high);
        }
        return;
    }
    let pack = |low, high| match (C::BYTES, params.out_dtype == QueryDtype::F16 as u32) {
        (2, _) => C::Math::pack(gpu, low, high),
        (_, true) => F16::pack(gpu, low, high),
        (_, false) => Bf16::pack(gpu, low, high),
    };
    let [low, high] = [pack(a, b), pack(c, d)];
    // SAFETY: as the caller promises.
    unsafe {
        gpu.st_global_b32(params.out + 2 * first, low);
        gpu.st_global_b32(params.out + 2 * second, high);
    }
}
