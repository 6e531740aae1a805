//! The kernels. Each file opens with its grid, what a thread block owns, and the loop as pseudo-code.

mod careful;
pub mod check;
pub mod compact;
pub mod concat_and_cache_mla;
pub mod copy_blocks;
pub mod decode_gqa;
pub mod decode_mla;
pub mod decode_mla_entry;
pub mod gather;
mod gather_rows;
mod mend_rows;
pub mod merge_rows;
pub mod merge_splits;
pub mod prefill_gqa;
pub mod prefill_gqa_group;
pub mod read_ceiling;
pub mod reshape_and_cache_flash;
pub mod reshape_and_cache_per_token_head;
pub mod rope_and_cache;
mod row_out;
mod row_work;
mod slots;
mod warp_merge;
