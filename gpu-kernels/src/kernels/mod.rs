//! The kernels. Each file opens with its grid, what a thread block owns, and the loop as pseudo-code.

pub mod check;
pub mod concat_and_cache_mla;
pub mod decode_gqa;
pub mod gather;
pub mod merge_splits;
pub mod read_ceiling;
pub mod reshape_and_cache_flash;
pub mod reshape_and_cache_per_token_head;
mod slots;
