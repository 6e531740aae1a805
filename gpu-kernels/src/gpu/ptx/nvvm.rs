//! rust-cuda's route: what `cuda_std` has.

pub(super) use cuda_std::thread::{
    block_idx_x, block_idx_y, block_idx_z, grid_dim_x, sync_threads, thread_idx_x,
};

/// Waits for the lanes of this warp.
///
/// # Safety
/// All of them come.
#[inline(always)]
pub(super) unsafe fn sync_warp() {
    // SAFETY: as the caller promises.
    unsafe { cuda_std::warp::sync_warp(u32::MAX) };
}
