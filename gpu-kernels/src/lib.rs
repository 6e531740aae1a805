//! The kernels of ferroattn.
//!
//! One source, three machines: PTX by two compilers (rust-cuda's and stock rustc's nvptx back end) and the
//! CPU emulator of the host crate. Read it in this order:
//!
//! | module | holds |
//! |---|---|
//! | [`gpu`] | the trait [`Gpu`](gpu::Gpu), all that kernels know of a machine, and its PTX implementation |
//! | [`dtype`] | element types as types |
//! | [`params`] | one `#[repr(C)]` struct per kernel, shared with the host |
//! | [`kv`] | where a token's keys and values lie in a paged cache, and how they are stored |
//! | [`mla_entry`] | the FP8 forms of a token in an MLA cache, byte by byte |
//! | [`tile`] | what one warp computes: loading, scores, softmax, output |
//! | [`latent`] | what one thread block computes over an MLA cache |
//! | [`lse`] | maximum and sum of a softmax, and their logarithm |
//! | [`quant`] | 8-bit storage: scales, and division by them |
//! | [`stored`] | a 16-bit value where it is stored: itself, or FP8 |
//! | [`divider`] | division by numbers that the host knows |
//! | [`kernels`] | the kernels, one per file, each opening with its grid and its loop |
//! | [`entry`] | the table of every compiled kernel: PTX symbols, launch bounds, and the emulator's dispatch |
//!
//! There are no dependencies, not even `cuda_std`: what it offers beyond the few lines of assembly in
//! [`gpu`] would exist on rust-cuda's route alone, and both compilers would have to fetch and build it. What
//! else that route cannot do, and how these kernels get around it, is in `docs/rustc_codegen_nvvm.md`.
#![no_std]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_possible_wrap,
    reason = "kernels compute addresses: signed strides and lengths travel as bits, 64-bit where it matters"
)]
#![allow(
    clippy::needless_range_loop,
    reason = "register arrays are indexed by unrolled constants"
)]
#![cfg_attr(target_arch = "nvptx64", feature(asm_experimental_arch, abi_ptx))]
#![cfg_attr(
    target_arch = "nvptx64",
    allow(
        clippy::missing_safety_doc,
        reason = "entry points are not called from Rust"
    )
)]
#![cfg_attr(
    any(target_feature = "sm_90a", target_feature = "compute_90a"),
    allow(
        unused_imports,
        dead_code,
        reason = "of the table of kernels, only what runs on no other GPU is compiled for this one"
    )
)]

pub mod divider;
pub mod dtype;
pub mod entry;
pub mod gpu;
pub mod kernels;
pub mod kv;
pub mod latent;
pub mod lse;
pub mod mla_entry;
pub mod params;
pub mod quant;
pub mod stored;
pub mod tile;
mod unroll;

/// Without an operating system a panic can only stop the grid.
#[cfg(target_arch = "nvptx64")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    gpu::trap()
}
