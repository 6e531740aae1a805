//! From the source of `gpu-kernels` to PTX files and a manifest that says what they were made from.
//!
//! | module | holds |
//! |---|---|
//! | [`compile`] | finding a compiler with an NVPTX back end, and running it |
//! | [`nvvm`] | finding rust-cuda and what it needs, and running it |
//! | [`ptx`] | PTX as text: normal form, launch bounds, entries |
//! | [`ptx_set`] | all kernels for all architectures together: made, written, compared |
//! | [`convergence`] | threads that have to meet, and may not |
//! | [`packed`] | how they lie in the crate of a set |
//! | [`manifest`] | what they are: fingerprint of the source, compiler, hashes |
//! | [`diff`] | what changed between two sets, kernel by kernel |
//! | [`sass`] | what the assembler made of an entry: instructions, wide loads |
//! | [`routes`] | a report that compares the two compilers, entry by entry |
//! | [`ptxas`] | assembling the kernels for real GPUs: registers, spills, shared memory |
//!
//! The command `ferroattn-ptx-builder` writes the crates in `gpu-kernels/ptx`, which `ferroattn` depends on. The build
//! script of `ferroattn` refuses them if they are not of the source beside it, by the same [`fingerprint`].

pub mod compile;
pub mod convergence;
pub mod diff;
#[path = "../../../host/build/fingerprint.rs"]
pub mod fingerprint;
mod labels;
pub mod manifest;
pub mod nvvm;
pub mod packed;
pub mod ptx;
pub mod ptx_set;
pub mod ptxas;
pub mod routes;
pub mod sass;

use std::path::{Path, PathBuf};

/// The routes by which PTX is made, best first: rust-cuda, then stock rustc. Each has a folder of its name in
/// `gpu-kernels/ptx`.
pub const ROUTES: [&str; 2] = ["nvvm", "nvptx"];

/// The command that mends a stale `gpu-kernels/ptx/<route>`.
pub fn mend(route: &str) -> String {
    format!("cargo run --release -p ferroattn-ptx-builder -- --route {route}")
}

/// The folder of the crate `gpu-kernels` that this builder belongs to.
pub fn kernels_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the builder lies inside gpu-kernels")
        .to_owned()
}
