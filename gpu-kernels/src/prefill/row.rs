//! Where a row of the output is, or a part of it, and how two of its values are stored.

use crate::attention::lse::Lse;
use crate::dtype::QueryDtype;
use crate::dtype::{Bf16, CacheFormat, F16, Half};
use crate::gpu::Gpu;
use crate::params::PrefillParams;
use crate::prefill::out::store_lse;

/// A row of the output, or one of its parts.
#[derive(Clone, Copy)]
pub(crate) struct Row {
    pub(crate) token: u32,
    pub(crate) head: u32,
    pub(crate) part: Option<u32>,
}

impl Row {
    /// Stores its lse.
    ///
    /// # Safety
    /// The row exists; one lane stores it.
    #[inline(always)]
    pub(crate) unsafe fn store_lse<G: Gpu>(self, gpu: G, params: &PrefillParams, lse: Lse) {
        // SAFETY: a row that exists, by one lane: the contract of `store_lse`; parts have room: the host's `Partials`.
        unsafe {
            match self.part {
                None => store_lse(gpu, params, self.token, self.head, lse),
                Some(part) => {
                    let at = params.partial_lse + Lse::BYTES * self.index(params, part);
                    gpu.st_global_b64(at, lse.to_bits());
                }
            }
        }
    }

    /// Where its value `dim` is, in the output or among the parts. Distances to others of a lane are constants, and are
    /// added last: so they become a part of the instruction.
    #[inline(always)]
    pub(crate) fn address<const V_STEPS: usize>(self, params: &PrefillParams, dim: u32) -> u64 {
        let dim = dim as u64;
        match self.part {
            None => {
                let is_byte = params.out_dtype == QueryDtype::F8E4m3 as u32;
                params.out
                    + self.token as u64 * params.stride_out_token as u64
                    + self.head as u64 * params.stride_out_head as u64
                    + if is_byte { dim } else { 2 * dim }
            }
            Some(part) => {
                params.partial_out + self.index(params, part) * (V_STEPS as u64 * 64) + 4 * dim
            }
        }
    }

    /// Index of a part of the row.
    #[inline(always)]
    fn index(self, params: &PrefillParams, part: u32) -> u64 {
        let num_heads = params.num_kv_heads * params.num_queries_per_kv;
        let row = self.token as u64 * num_heads as u64 + self.head as u64;
        row * params.num_kv_splits as u64 + part as u64
    }
}

/// Stores two values, `offset` values behind the one at `at`, of the output or among the parts.
///
/// # Safety
/// The row has them, they begin at an even dim, and no other lane writes them.
#[inline(always)]
pub(crate) unsafe fn store_pair<G: Gpu, C: CacheFormat>(
    gpu: G,
    params: &PrefillParams,
    (at, offset): (u64, u64),
    [a, b]: [f32; 2],
    is_part: bool,
) {
    // SAFETY: dims of the row, this lane's: the contract of `store_pair`; aligned: the host's `Query::outputs`.
    unsafe {
        if is_part {
            let pair = a.to_bits() as u64 | (b.to_bits() as u64) << 32;
            gpu.st_global_b64(at + 4 * offset, pair);
        } else if params.out_dtype == QueryDtype::F8E4m3 as u32 {
            gpu.st_global_b16(at + offset, gpu.pack_e4m3(a, b));
        } else {
            gpu.st_global_b32(at + 2 * offset, pack::<G, C>(gpu, params, a, b));
        }
    }
}

/// Two values of an output of 16-bit values.
#[inline(always)]
pub(crate) fn pack<G: Gpu, C: CacheFormat>(
    gpu: G,
    params: &PrefillParams,
    low: f32,
    high: f32,
) -> u32 {
    match (C::BYTES, params.out_dtype == QueryDtype::F16 as u32) {
        (2, _) => C::Math::pack(gpu, low, high),
        (_, true) => F16::pack(gpu, low, high),
        (_, false) => Bf16::pack(gpu, low, high),
    }
}
