//! What is written at the end of a row: sinks, the sum that outputs are divided by, packed values, the lse.

use crate::dtype::{Bf16, CacheFormat, F16, Half, QueryDtype};
use crate::gpu::Gpu;
use crate::params::ScoreParams;

/// The score of a head's sink, in powers of two; -inf if there is none.
///
/// # Safety
/// `head` is one of the query's. Sinks, if there are any, are one for each head.
#[inline(always)]
pub(crate) unsafe fn sink_log2<G: Gpu>(gpu: G, params: &ScoreParams, head: u32) -> f32 {
    if params.sinks == 0 {
        return f32::NEG_INFINITY;
    }
    // SAFETY: there are sinks, one for each query head: this function's contract.
    let sink = unsafe { gpu.ld_global_b32(params.sinks + 4 * head as u64) };
    f32::from_bits(sink) * core::f32::consts::LOG2_E
}

/// What sums are multiplied by to become means: of nothing, by zero.
#[inline(always)]
pub(crate) fn recip_of_sum<G: Gpu>(gpu: G, sum: f32) -> f32 {
    if sum == 0.0 { 0.0 } else { gpu.recip(sum) }
}

/// Four output values; `out_dtype` is only looked at if the cache is of bytes.
#[inline(always)]
pub(crate) fn pack_out<G: Gpu, C: CacheFormat>(
    gpu: G,
    [a, b, c, d]: [f32; 4],
    out_dtype: u32,
) -> u64 {
    let pack = |low, high| match (C::BYTES, out_dtype == QueryDtype::F16 as u32) {
        (2, _) => C::Math::pack(gpu, low, high),
        (_, true) => F16::pack(gpu, low, high),
        (_, false) => Bf16::pack(gpu, low, high),
    };
    pack(a, b) as u64 | (pack(c, d) as u64) << 32
}
