//! Indices, barriers and shuffles.

use core::arch::asm;

use crate::gpu::Threads;
use crate::gpu::ptx::PtxLane;
use crate::gpu::ptx::route::{
    block_idx_x, block_idx_y, block_idx_z, grid_dim_x, sync_threads, sync_warp, thread_idx_x,
};

// Not `cuda_std`'s on either route: its array is aligned to 16 bytes, and its address a generic one.
#[cfg(not(any(target_feature = "sm_90a", target_feature = "compute_90a")))]
core::arch::global_asm!(".extern .shared .align 128 .b8 ferroattn_shared[];");
#[cfg(any(target_feature = "sm_90a", target_feature = "compute_90a"))]
core::arch::global_asm!(".extern .shared .align 1024 .b8 ferroattn_shared[];");

// SAFETY: each method is the PTX instruction whose semantics the contract restates.
unsafe impl Threads for PtxLane {
    #[inline(always)]
    fn thread_idx(self) -> u32 {
        thread_idx_x()
    }
    #[inline(always)]
    fn cta_idx_x(self) -> u32 {
        block_idx_x()
    }
    #[inline(always)]
    fn cta_idx_y(self) -> u32 {
        block_idx_y()
    }
    #[inline(always)]
    fn cta_idx_z(self) -> u32 {
        block_idx_z()
    }
    #[inline(always)]
    fn grid_dim_x(self) -> u32 {
        grid_dim_x()
    }
    #[inline(always)]
    fn shared_base(self) -> u32 {
        let value: u32;
        // SAFETY: an address.
        unsafe {
            asm!("mov.u32 {0}, ferroattn_shared;", out(reg32) value, options(pure, nomem, nostack))
        };
        value
    }

    #[inline(always)]
    fn black_box(self, mut value: u32) -> u32 {
        // SAFETY: does nothing; not `pure`, so that it stays where it is.
        unsafe { asm!("// {0}", inout(reg32) value, options(nomem, nostack, preserves_flags)) };
        value
    }
    #[inline(always)]
    unsafe fn sync_cta(self) {
        sync_threads();
    }
    #[inline(always)]
    unsafe fn barrier_sync(self, barrier: u32, threads: u32) {
        // SAFETY: converged, and `threads` threads come to the barrier: this method's contract.
        unsafe {
            asm!("bar.sync {0}, {1};", in(reg32) barrier, in(reg32) threads, options(nostack))
        };
    }
    #[inline(always)]
    unsafe fn barrier_arrive(self, barrier: u32, threads: u32) {
        // SAFETY: converged, and `threads` threads come to the barrier: this method's contract.
        unsafe {
            asm!("bar.arrive {0}, {1};", in(reg32) barrier, in(reg32) threads, options(nostack))
        };
    }
    #[inline(always)]
    unsafe fn sync_warp(self) {
        // SAFETY: converged: this method's contract.
        unsafe { sync_warp() };
    }
    #[inline(always)]
    unsafe fn shfl_xor(self, bits: u32, lane_mask: u32) -> u32 {
        let value: u32;
        // SAFETY: converged: this method's contract.
        unsafe {
            asm!("shfl.sync.bfly.b32 {0}, {1}, {2}, 0x1f, 0xffffffff;", out(reg32) value, in(reg32) bits, in(reg32) lane_mask, options(nomem, nostack))
        };
        value
    }
    #[inline(always)]
    unsafe fn shfl(self, bits: u32, source: u32) -> u32 {
        let value: u32;
        // SAFETY: converged: this method's contract.
        unsafe {
            asm!("shfl.sync.idx.b32 {0}, {1}, {2}, 0x1f, 0xffffffff;", out(reg32) value, in(reg32) bits, in(reg32) source, options(nomem, nostack))
        };
        value
    }
    #[inline(always)]
    unsafe fn any(self, says: bool) -> bool {
        let value: u32;
        // SAFETY: converged: this method's contract.
        unsafe {
            asm!(
                "{{ .reg .pred p, q; setp.ne.u32 p, {1}, 0; vote.sync.any.pred q, p, 0xffffffff; selp.u32 {0}, 1, 0, q; }}",
                out(reg32) value, in(reg32) says as u32, options(nomem, nostack)
            )
        };
        value != 0
    }

    #[cfg(any(target_feature = "sm_90a", target_feature = "compute_90a"))]
    #[inline(always)]
    unsafe fn uniform(self, value: u32) -> u32 {
        // SAFETY: converged: this method's contract.
        unsafe { self.shfl(value, 0) }
    }
}
