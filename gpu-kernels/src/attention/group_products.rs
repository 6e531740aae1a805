//! A warp group's products, of whichever 16-bit type it multiplies.

use crate::dtype::{Half, HalfDtype};
use crate::gpu::{Gpu, Pending};

/// Begins scores; see [`crate::gpu::WarpGroup::group_scores_bf16`].
///
/// # Safety
/// As there, whatever the type.
#[track_caller]
#[inline(always)]
pub(crate) unsafe fn group_scores<G: Gpu, H: Half, const STEPS: usize>(
    gpu: G,
    queries: u32,
    keys: u32,
) -> Pending<4> {
    // SAFETY: the contract of `group_scores` is that of both.
    unsafe {
        match H::HALF {
            HalfDtype::Bf16 => gpu.group_scores_bf16::<STEPS>(queries, keys),
            HalfDtype::F16 => gpu.group_scores_f16::<STEPS>(queries, keys),
        }
    }
}

/// Goes on with scores; see [`crate::gpu::WarpGroup::group_more_scores_bf16`].
///
/// # Safety
/// As there, whatever the type.
#[track_caller]
#[inline(always)]
pub(crate) unsafe fn group_more_scores<G: Gpu, H: Half, const STEPS: usize>(
    gpu: G,
    pending: Pending<4>,
    queries: u32,
    keys: u32,
) -> Pending<4> {
    // SAFETY: the contract of `group_more_scores` is that of both.
    unsafe {
        match H::HALF {
            HalfDtype::Bf16 => gpu.group_more_scores_bf16::<STEPS>(pending, queries, keys),
            HalfDtype::F16 => gpu.group_more_scores_f16::<STEPS>(pending, queries, keys),
        }
    }
}

/// Begins sums of values; see [`crate::gpu::WarpGroup::group_values_bf16`].
///
/// # Safety
/// As there, whatever the type.
#[track_caller]
#[inline(always)]
pub(crate) unsafe fn group_values<G: Gpu, H: Half, const STEPS: usize>(
    gpu: G,
    acc: [[[f32; 4]; 2]; STEPS],
    probs: [[u32; 4]; 4],
    values: u32,
) -> Pending<STEPS> {
    // SAFETY: the contract of `group_values` is that of both.
    unsafe {
        match H::HALF {
            HalfDtype::Bf16 => gpu.group_values_bf16(acc, probs, values),
            HalfDtype::F16 => gpu.group_values_f16(acc, probs, values),
        }
    }
}
