//! What the lanes of a warp find out together.

use core::ops::Add;

use crate::gpu::{Gpu, WARP};

/// What lanes tell one another.
pub(crate) trait Word: Copy + Add<Output = Self> {
    /// Nothing.
    const ZERO: Self;

    /// What lane `source` has.
    ///
    /// # Safety
    /// Converged, and there is such a lane.
    unsafe fn of_lane<G: Gpu>(self, gpu: G, source: u32) -> Self;
}

impl Word for u32 {
    const ZERO: Self = 0;

    #[inline(always)]
    unsafe fn of_lane<G: Gpu>(self, gpu: G, source: u32) -> Self {
        // SAFETY: this function's contract.
        unsafe { gpu.shfl(self, source) }
    }
}

impl Word for u64 {
    const ZERO: Self = 0;

    #[inline(always)]
    unsafe fn of_lane<G: Gpu>(self, gpu: G, source: u32) -> Self {
        // SAFETY: this function's contract.
        let [low, high] =
            [self as u32, (self >> 32) as u32].map(|half| unsafe { gpu.shfl(half, source) });
        low as u64 | (high as u64) << 32
    }
}

/// The sum over the lanes up to this one.
///
/// # Safety
/// Converged.
#[inline(always)]
pub(crate) unsafe fn sum_up_to_lane<G: Gpu, W: Word>(gpu: G, own: W) -> W {
    let mut sum = own;
    let mut distance = 1;
    while distance < WARP {
        let lane = gpu.lane();
        let has = lane >= distance;
        let source = if has { lane - distance } else { lane };
        // SAFETY: converged: this function's contract; `source` is a lane up to this one.
        let other = unsafe { sum.of_lane(gpu, source) };
        sum = sum + if has { other } else { W::ZERO };
        distance *= 2;
    }
    sum
}
