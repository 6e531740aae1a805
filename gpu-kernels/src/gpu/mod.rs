//! The machine: everything a kernel may ask of the hardware that runs it.
//!
//! [`Gpu`] is one lane's view of a CUDA-like machine. A kernel is a generic function over it, so the very
//! same source runs on three machines: two compilers' PTX (a zero-sized type, with rust-cuda's `cuda_std` behind
//! it or assembly) and the emulator's `Lane`, which lives on the host because it needs `std`. Only what differs between
//! machines is here; tiles, softmax and kernels are written once above it. What a lane can do is told in parts:
//! [`Threads`], [`Memory`], [`Matrices`], [`WarpGroup`] and [`Numbers`].
//!
//! # The contract every implementation keeps
//!
//! - Global addresses are 64-bit byte addresses; shared addresses are 32-bit byte offsets into the shared
//!   memory of the thread block (`cta`), beginning at [`Threads::shared_base`], which is 128-byte aligned, and
//!   1,024-byte aligned for a warp group.
//! - An access of `N` bytes is aligned to `N`.
//! - "Converged" means that all 32 lanes of the warp make the call together. Every operation marked so
//!   also orders nothing but what it says: plain memory is ordered by [`Threads::sync_warp`] within a warp and
//!   by [`Threads::sync_cta`], and between some of its warps [`Threads::barrier_sync`], within a thread block.
//! - Asynchronous copies are visible to the lane that issued them after [`Memory::cp_async_wait`], and to
//!   other lanes after a `sync_warp` or `sync_cta` that follows it.
//! - Arithmetic written with [`Numbers::fma`] is fused on every machine; other arithmetic never is.

pub mod fast_divmod;
pub mod fp8;
mod group;
pub(crate) mod lanes;
mod matrices;
mod memory;
mod numbers;
#[cfg(target_arch = "nvptx64")]
mod ptx;
mod threads;
pub(crate) mod unroll;
mod warp_group;

pub use group::{PANEL_BYTES, PANEL_ROW_BYTES, Pending, bytes_in_panel, in_panels, store_sixteen};
pub use matrices::Matrices;
pub use memory::{Line, Memory};
pub use numbers::Numbers;
#[cfg(target_arch = "nvptx64")]
pub use ptx::PtxLane;
pub use threads::Threads;
pub use warp_group::WarpGroup;

/// Lanes in a warp.
pub const WARP: u32 = 32;

/// `a / b` without the branch to a panic that a kernel could not report.
///
/// # Safety
/// `b` is not 0.
#[inline(always)]
pub unsafe fn div(a: u32, b: u32) -> u32 {
    // SAFETY: `b` is not 0: this function's contract.
    unsafe { core::hint::assert_unchecked(b != 0) };
    a / b
}

/// One lane's view of the machine.
///
/// # Safety
/// An implementation keeps the contract in the [module documentation](self).
pub unsafe trait Gpu: Threads + Memory + Matrices + WarpGroup + Numbers {
    /// Waits until the kernels this one depends on have finished and their writes are visible. A no-op
    /// where launches never overlap. Every thread calls it before it reads what those kernels wrote.
    fn wait_for_previous_kernels(self);
    /// Lets the next kernel of the stream be launched early, up to its own wait.
    fn let_next_kernel_start(self);
}
