//! Gathers: rows of a cache, one after the other, dequantised if they are to be.

pub mod kernel;
mod rows;
