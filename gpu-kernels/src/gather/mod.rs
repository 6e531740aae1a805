//! Gathers: rows of a cache, one after the other, dequantised if they are to be.

pub mod check;
pub mod grid;
pub mod kernel;
mod rows;
