//! rust-cuda's route: what `cuda_std` has.

use core::arch::asm;

use cuda_std::{thread, warp};

pub(super) use cuda_std::thread::sync_threads;

use crate::gpu::WARP;

/// `index`, of which the compiler no longer knows where it came from, nor how large it can be. Otherwise it would read the
/// register again for each use, and compute addresses in more steps; `prefill_gqa_bf16_d128` would spill.
#[inline(always)]
fn pinned(mut index: u32) -> u32 {
    // SAFETY: does nothing.
    unsafe { asm!("// {0}", inout(reg32) index, options(pure, nomem, nostack, preserves_flags)) };
    index
}

macro_rules! indices {
    ($($name:ident)*) => {$(
        #[inline(always)]
        pub(super) fn $name() -> u32 {
            pinned(thread::$name())
        }
    )*};
}
indices!(thread_idx_x block_idx_x block_idx_y block_idx_z grid_dim_x);

/// Waits for the lanes of this warp.
///
/// # Safety
/// All of them come.
#[inline(always)]
pub(super) unsafe fn sync_warp() {
    // SAFETY: as the caller promises.
    unsafe { warp::sync_warp(u32::MAX) };
}

/// `bits` of the lane whose index differs in `lane_mask`.
///
/// # Safety
/// Converged.
#[inline(always)]
pub(super) unsafe fn shfl_xor(bits: u32, lane_mask: u32) -> u32 {
    // SAFETY: as the caller promises.
    unsafe { warp::warp_shuffle_xor(u32::MAX, bits, lane_mask, WARP) }.0
}

/// `bits` of lane `source`.
///
/// # Safety
/// Converged.
#[inline(always)]
pub(super) unsafe fn shfl_idx(bits: u32, source: u32) -> u32 {
    // SAFETY: as the caller promises.
    unsafe { warp::warp_shuffle_idx(u32::MAX, bits, source, WARP) }.0
}
