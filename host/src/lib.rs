//! Paged attention for LLM inference, with kernels written in Rust.
//!
//! A request ([`ops`]) is checked, planned ([`plan`]) and launched on a machine ([`runtime`]): a GPU through the
//! CUDA driver, or the [`emulator`]. [`reference`](mod@reference) says in f64 what the operations mean, [`cases`] lists
//! what is compared with it, [`cli`] and [`report`] are the command line.
#![doc = ""]
#![doc = include_str!("../../README.md")]

pub mod cases;
pub mod cli;
pub mod emulator;
pub mod error;
pub mod ops;
pub mod plan;
pub mod reference;
pub mod report;
pub mod runtime;
pub mod tensor;

pub use error::{Error, Result};
