//! [`Gpu`] for PTX: inline assembly that both compilers accept, but for what rust-cuda has in `cuda_std`.

mod matrices;
mod memory;
mod numbers;
#[cfg(gpu_route = "nvptx")]
mod nvptx;
#[cfg(gpu_route = "nvvm")]
mod nvvm;
mod threads;
#[cfg(any(target_feature = "sm_90a", target_feature = "compute_90a"))]
mod warp_group;
#[cfg(any(target_feature = "sm_90a", target_feature = "compute_90a"))]
mod wgmma;

use core::arch::asm;

#[cfg(gpu_route = "nvptx")]
use nvptx as route;
#[cfg(gpu_route = "nvvm")]
use nvvm as route;

use crate::gpu::Gpu;
#[cfg(not(any(target_feature = "sm_90a", target_feature = "compute_90a")))]
use crate::gpu::WarpGroup;

/// A lane of a real GPU.
#[derive(Clone, Copy, Debug)]
pub struct PtxLane;

// SAFETY: it adds nothing to what every machine does.
#[cfg(not(any(target_feature = "sm_90a", target_feature = "compute_90a")))]
unsafe impl WarpGroup for PtxLane {}

macro_rules! four_words {
    ($method:ident, $address:ty, $class:ident, $instruction:literal) => {
        #[inline(always)]
        unsafe fn $method(self, address: $address) -> [u32; 4] {
            let (a, b, c, d);
            // SAFETY: an aligned address in bounds, and of `ldmatrix` convergence: this method's contract.
            unsafe {
                asm!(
                    concat!($instruction, " {{{0}, {1}, {2}, {3}}}, [{4}];"),
                    out(reg32) a, out(reg32) b, out(reg32) c, out(reg32) d, in($class) address,
                    options(readonly, nostack)
                )
            };
            [a, b, c, d]
        }
    };
}
use four_words;

// SAFETY: each method is the PTX instruction whose semantics the contract restates.
unsafe impl Gpu for PtxLane {
    #[inline(always)]
    fn wait_for_previous_kernels(self) {
        // SAFETY: waits.
        #[cfg(any(target_feature = "sm_90", target_feature = "compute_90"))]
        unsafe {
            asm!("griddepcontrol.wait;", options(nostack))
        };
    }
    #[inline(always)]
    fn let_next_kernel_start(self) {
        // SAFETY: gives a hint to the scheduler.
        #[cfg(any(target_feature = "sm_90", target_feature = "compute_90"))]
        unsafe {
            asm!("griddepcontrol.launch_dependents;", options(nostack))
        };
    }
}
