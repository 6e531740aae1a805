//! Where a lane is, and how it meets others.

use crate::gpu::WARP;

/// A lane among those of its warp, its thread block and its grid.
///
/// # Safety
/// An implementation keeps the contract in the [module documentation](crate::gpu).
pub unsafe trait Threads: Copy {
    /// Index of this thread in its thread block, `0..threads`; thread blocks are one-dimensional.
    fn thread_idx(self) -> u32;
    /// Index of this thread block in the grid, x fastest.
    fn cta_idx_x(self) -> u32;
    /// See [`Threads::cta_idx_x`].
    fn cta_idx_y(self) -> u32;
    /// See [`Threads::cta_idx_x`].
    fn cta_idx_z(self) -> u32;
    /// Thread blocks along x.
    fn grid_dim_x(self) -> u32;
    /// First byte of this thread block's dynamic shared memory.
    fn shared_base(self) -> u32;

    /// Index of this lane in its warp, `0..32`.
    #[inline(always)]
    fn lane(self) -> u32 {
        self.thread_idx() % WARP
    }
    /// Index of this lane's warp in its thread block.
    #[inline(always)]
    fn warp(self) -> u32 {
        self.thread_idx() / WARP
    }

    /// `value`, of which the compiler no longer knows where it came from: what is computed from it is computed
    /// where it is needed, instead of once ahead of a loop that has no register to keep it in.
    #[inline(always)]
    fn black_box(self, value: u32) -> u32 {
        value
    }

    /// `value`, which is the same in all lanes, and which the compiler now knows to be.
    ///
    /// # Safety
    /// Converged.
    #[inline(always)]
    unsafe fn uniform(self, value: u32) -> u32 {
        value
    }

    // ---- meeting the other lanes -------------------------------------------------------------------

    /// Waits for every thread of the thread block and orders their global and shared accesses.
    ///
    /// # Safety
    /// Every thread of the thread block calls it the same number of times.
    #[track_caller]
    unsafe fn sync_cta(self);
    /// Waits at barrier `barrier`, 0 to 15, until `threads` threads have come to it, those that wait there and those
    /// that only [arrive](Threads::barrier_arrive). Orders what they did before it ahead of what those that waited do
    /// after it.
    ///
    /// # Safety
    /// Converged; whoever comes names the same number of threads, a multiple of 32, and comes once. Barrier 0 is that
    /// of [`Threads::sync_cta`] too, which nobody comes to meanwhile.
    #[track_caller]
    unsafe fn barrier_sync(self, barrier: u32, threads: u32);
    /// Comes to a barrier and goes on.
    ///
    /// # Safety
    /// As [`Threads::barrier_sync`].
    #[track_caller]
    unsafe fn barrier_arrive(self, barrier: u32, threads: u32);
    /// Waits for the lanes of this warp and orders their accesses.
    ///
    /// # Safety
    /// Converged.
    #[track_caller]
    unsafe fn sync_warp(self);
    /// `bits` of the lane whose index differs in `lane_mask`.
    ///
    /// # Safety
    /// Converged, with one `lane_mask < 32` for all.
    #[track_caller]
    unsafe fn shfl_xor(self, bits: u32, lane_mask: u32) -> u32;
    /// `bits` of lane `source`.
    ///
    /// # Safety
    /// Converged, `source < 32`.
    #[track_caller]
    unsafe fn shfl(self, bits: u32, source: u32) -> u32;
    /// Whether any lane of the warp says so.
    ///
    /// # Safety
    /// Converged.
    #[track_caller]
    unsafe fn any(self, says: bool) -> bool;
}
