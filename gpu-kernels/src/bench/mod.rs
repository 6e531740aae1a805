//! What measurements are held against.

pub mod read_ceiling;
