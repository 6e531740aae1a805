//! The kernels of ferroattn.
//!
//! One source, three machines: PTX by two compilers (rust-cuda's and stock rustc's nvptx back end) and the
//! CPU emulator of the host crate. Read it in this order:
//!
//! | module | holds |
//! |---|---|
//! | [`gpu`] | the trait [`Gpu`](gpu::Gpu), all that kernels know of a machine, and its PTX implementation |
//! | [`dtype`] | element types and cache formats as types; 8-bit storage and its scales |
//! | [`params`] | one `#[repr(C)]` struct per kernel, shared with the host |
//! | [`attention`] | what all attention shares: paged keys and values, masks, scores, checks, lse |
//! | [`decode`] | split-KV decode attention: a warp has a tile of 16 tokens for itself |
//! | [`prefill`] | attention of many query tokens: rows that share tiles of keys and values |
//! | [`mla`] | attention over a latent cache, and the forms of its FP8 entries, byte by byte |
//! | [`cache`] | cache writes, copies of blocks |
//! | [`gather`] | gathers, dequantised if they are to be |
//! | [`bench`] | what measurements are held against |
//! | [`kernel`] | the trait of kernels, and the shapes that are types |
//! | [`entry`] | the table of every compiled kernel: PTX symbols, launch bounds, and the emulator's dispatch |
//!
//! There are no dependencies, but on rust-cuda's route `cuda_std`, which `nvvm-builder/kernels` adds: entries are its
//! `#[kernel]`s, and indices and barriers come from it. Stock rustc has a few lines of assembly in their
//! place. What of `cuda_std` is not used, what else that route cannot do, and how these kernels get around it, is in
//! `docs/rustc_codegen_nvvm.md`.
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
#![cfg_attr(target_arch = "nvptx64", feature(asm_experimental_arch))]
#![cfg_attr(gpu_route = "nvptx", feature(abi_ptx))]
#![cfg_attr(
    target_arch = "nvptx64",
    allow(
        clippy::missing_safety_doc,
        reason = "entry points are not called from Rust"
    )
)]
#![cfg_attr(
    target_arch = "nvptx64",
    allow(
        unused_imports,
        dead_code,
        reason = "of the table of kernels, an architecture's PTX holds its own sections alone"
    )
)]

pub mod attention;
pub mod bench;
pub mod cache;
pub mod decode;
pub mod dtype;
pub mod entry;
pub mod gather;
pub mod gpu;
pub mod kernel;
pub mod mla;
pub mod params;
pub mod prefill;
