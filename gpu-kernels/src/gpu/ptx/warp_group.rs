//! Four warps together, on the architecture that has `wgmma`.

use core::arch::asm;

use crate::gpu::ptx::{PtxLane, wgmma};
use crate::gpu::{Pending, WarpGroup};

// SAFETY: each method is the PTX instruction whose semantics the contract restates.
unsafe impl WarpGroup for PtxLane {
    #[inline(always)]
    unsafe fn take_registers<const REGISTERS: u32>(self) {
        // SAFETY: the four warps come here together: this method's contract.
        unsafe { asm!("setmaxnreg.inc.sync.aligned.u32 {0};", const REGISTERS, options(nostack)) };
    }
    #[inline(always)]
    unsafe fn leave_registers<const REGISTERS: u32>(self) {
        // SAFETY: the four warps come here together: this method's contract.
        unsafe { asm!("setmaxnreg.dec.sync.aligned.u32 {0};", const REGISTERS, options(nostack)) };
    }
    #[inline(always)]
    fn fence_warpgroup(self) {
        // SAFETY: orders.
        unsafe { asm!("fence.proxy.async.shared::cta;", options(nostack)) };
    }
    #[inline(always)]
    unsafe fn group_scores_bf16<const STEPS: usize>(self, queries: u32, keys: u32) -> Pending<4> {
        // SAFETY: the four warps, panels and steps that `wgmma` asks for: this method's contract.
        Pending(unsafe { wgmma::scores_bf16::<STEPS>(queries, keys) })
    }
    #[inline(always)]
    unsafe fn group_scores_f16<const STEPS: usize>(self, queries: u32, keys: u32) -> Pending<4> {
        // SAFETY: the four warps, panels and steps that `wgmma` asks for: this method's contract.
        Pending(unsafe { wgmma::scores_f16::<STEPS>(queries, keys) })
    }
    #[inline(always)]
    unsafe fn group_more_scores_bf16<const STEPS: usize>(
        self,
        Pending(acc): Pending<4>,
        queries: u32,
        keys: u32,
    ) -> Pending<4> {
        // SAFETY: the four warps, panels and steps that `wgmma` asks for: this method's contract.
        Pending(unsafe { wgmma::more_scores_bf16::<STEPS>(acc, queries, keys) })
    }
    #[inline(always)]
    unsafe fn group_more_scores_f16<const STEPS: usize>(
        self,
        Pending(acc): Pending<4>,
        queries: u32,
        keys: u32,
    ) -> Pending<4> {
        // SAFETY: the four warps, panels and steps that `wgmma` asks for: this method's contract.
        Pending(unsafe { wgmma::more_scores_f16::<STEPS>(acc, queries, keys) })
    }
    #[inline(always)]
    unsafe fn group_scores_e4m3<const STEPS: usize>(self, queries: u32, keys: u32) -> Pending<4> {
        // SAFETY: the four warps, panels and steps that `wgmma` asks for: this method's contract.
        Pending(unsafe { wgmma::scores_of_bytes::<STEPS>(queries, keys) })
    }
    #[inline(always)]
    unsafe fn group_values_bf16<const STEPS: usize>(
        self,
        acc: [[[f32; 4]; 2]; STEPS],
        probs: [[u32; 4]; 4],
        values: u32,
    ) -> Pending<STEPS> {
        // SAFETY: the four warps, panels and steps that `wgmma` asks for: this method's contract.
        Pending(unsafe { wgmma::values_bf16(acc, probs, values) })
    }
    #[inline(always)]
    unsafe fn group_values_f16<const STEPS: usize>(
        self,
        acc: [[[f32; 4]; 2]; STEPS],
        probs: [[u32; 4]; 4],
        values: u32,
    ) -> Pending<STEPS> {
        // SAFETY: the four warps, panels and steps that `wgmma` asks for: this method's contract.
        Pending(unsafe { wgmma::values_f16(acc, probs, values) })
    }
    #[inline(always)]
    unsafe fn group_wait<const STEPS: usize, const YOUNGER: u32>(
        self,
        Pending(acc): Pending<STEPS>,
    ) -> [[[f32; 4]; 2]; STEPS] {
        // SAFETY: the four warps and steps that `wgmma` asks for: this method's contract.
        unsafe { wgmma::wait::<STEPS, YOUNGER>(acc) }
    }
}
