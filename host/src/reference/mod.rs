//! What the operations mean, in f64: slow, obvious, and owing nothing to the kernels.
//!
//! Nested loops in the order of the formulas; no tiles, no splits, no tricks. The inputs are what a kernel
//! reads, already rounded to the tensors' dtypes, so a difference measures the kernel and not the format.

mod attention;
mod cache;
mod entries;
mod fp8;
mod gather;
mod mla;
mod rope;
mod score_mods;
mod softmax;
mod tensor;
mod unified;

pub use attention::{DecodeInputs, Rows, Scales, decode};
pub use cache::{
    reshape_and_cache_flash, reshape_and_cache_per_token_head, reshape_and_cache_scaled,
};
pub use entries::{EntryCache, decode_entries};
pub use fp8::{Fp8Format, fp8_nearest, fp8_value};
pub use gather::Pages;
pub use mla::{mla_fp8_ds_entry, mla_fp8_ds_values, mla_v4_entry, mla_v4_values};
pub use rope::rotate;
pub use score_mods::ScoreMods;
pub use tensor::{HostTensor, Storage};
pub use unified::{UnifiedInputs, unified};
