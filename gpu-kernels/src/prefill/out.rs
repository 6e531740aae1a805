//! What is done to every row of the output, whoever finishes it.

use crate::attention::lse::Lse;
use crate::gpu::Gpu;
use crate::params::PrefillParams;

/// What the output is multiplied by before it is stored as bytes, or 1.
///
/// # Safety
/// `params.output_scale` is 0 or one f32.
#[inline(always)]
pub(crate) unsafe fn out_scale<G: Gpu>(gpu: G, params: &PrefillParams) -> f32 {
    if params.output_scale == 0 {
        return 1.0;
    }
    // SAFETY: one f32: the contract of `out_scale`, and the host's `check_options`.
    gpu.recip(f32::from_bits(unsafe {
        gpu.ld_global_b32(params.output_scale)
    }))
}

/// Stores the lse of a row, turned from base 2 to base e, if one is wanted.
///
/// # Safety
/// The row exists; one lane stores it.
#[inline(always)]
pub(crate) unsafe fn store_lse<G: Gpu>(
    gpu: G,
    params: &PrefillParams,
    token: u32,
    head: u32,
    lse: Lse,
) {
    if params.lse != 0 {
        let at = params.lse
            + token as u64 * params.stride_lse_token as u64
            + head as u64 * params.stride_lse_head as u64;
        // SAFETY: a row of the query: the contract of `store_lse`; the lse has as many: the host's `Query::outputs`.
        unsafe { gpu.st_global_b32(at, lse.natural(gpu).to_bits()) };
    }
}
