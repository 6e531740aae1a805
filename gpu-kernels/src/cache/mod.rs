//! Writes into caches, and copies within them. Each file opens with its grid, what a thread block owns, and the loop as
//! pseudo-code.

pub mod compact;
pub mod compact_check;
pub mod concat_and_cache_mla;
pub mod copy_blocks;
pub mod reshape_and_cache_flash;
pub mod reshape_and_cache_per_token_head;
pub mod rope_and_cache;
pub(crate) mod slots;
