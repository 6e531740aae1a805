//! rust-cuda's route: what `cuda_std` has.

use core::arch::asm;

use cuda_std::{thread, warp};

pub(super) use cuda_std::thread::sync_threads;

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
    // SAFETY: all lanes of the warp come: this function's contract.
    unsafe { warp::sync_warp(u32::MAX) };
}
