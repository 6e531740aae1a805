//! Paged attention for LLM inference, with kernels written in Rust.
//!
//! A request ([`ops`]) is checked, planned ([`plan`]) and launched on a machine ([`runtime`]): a GPU through the
//! CUDA driver, or the [`emulator`]. [`reference`](mod@reference) says in f64 what the operations mean, [`cases`] lists
//! what is compared with it, [`cli`] and [`report`] are the command line.
//!
//! An engine needs `ops`, `plan`, `runtime` and `tensor` alone, which are there without any feature but one for PTX.
#![doc = ""]
#![doc = include_str!("../../README.md")]

#[cfg(feature = "cases")]
pub mod cases;
#[cfg(feature = "cli")]
pub mod cli;
#[cfg(feature = "emulator")]
pub mod emulator;
pub mod error;
pub mod ops;
pub mod plan;
#[cfg(feature = "cases")]
pub mod reference;
#[cfg(feature = "cases")]
pub mod report;
pub mod runtime;
pub mod tensor;

pub use error::{Error, Result};

/// The chapters of the guide that have code: it is compiled and run as that of the README is.
#[cfg(doctest)]
mod guide {
    #[cfg(feature = "emulator")]
    #[doc = include_str!("../../docs/emulator.md")]
    mod emulator {}
    #[doc = include_str!("../../docs/plans-and-graphs.md")]
    mod plans_and_graphs {}
}
