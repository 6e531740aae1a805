//! The operations: request → check → plan → launch, one file each, read top to bottom.
//!
//! A request says what is wanted; checking turns it into a type that cannot be built otherwise; a plan is
//! what was decided, printable; launching turns views into parameter blocks and enqueues kernels. Nothing
//! below this folder checks a request again.
//!
//! # Once, and many times
//!
//! Whoever serves makes a plan for each size of batch, and launches it for every layer and step. A plan fits each
//! request of the same operation, kernel, heads, dtypes and options that has at most as many sequences, tokens and
//! rows, and no longer ones, than the one it was made from; the plans' types say it in full. Any other request is
//! refused with [`crate::error::RequestError::Plan`]. `rebind` turns a checked request to other tensors of the same
//! shapes, the next layer's, and looks at no more than that.

mod cache_side;
mod cache_write;
mod checks;
mod compact;
mod concat_and_cache_mla;
mod concat_and_cache_mla_grouped;
mod copy_blocks;
mod decode;
mod decode_launch;
mod decode_mla;
mod decode_mla_entry;
mod decode_mla_entry_launch;
mod device_check;
mod gather;
mod gather_launch;
mod made_for;
mod mla_launch;
mod paged;
mod rope_and_cache;
mod row_write;
mod score;
mod tensors;
mod unified;
mod unified_launch;

pub use cache_write::{CacheScales, CacheWritePlan, CacheWriteRequest, CheckedCacheWrite};
pub use compact::{CheckedCompact, CompactPlan, CompactReferences, CompactRequest};
pub use concat_and_cache_mla::{
    CheckedConcatAndCacheMla, ConcatAndCacheMlaRequest, MlaCacheForm, ScaleRule,
};
pub use concat_and_cache_mla_grouped::{
    CacheTable, CheckedConcatAndCacheMlaGrouped, ConcatAndCacheMlaGroupedRequest,
};
pub use copy_blocks::{BlockCaches, CheckedCopyBlocks, CopyBlocksPlan, CopyBlocksRequest};
pub use decode::{CheckedDecode, DecodeOptions, DecodeRequest, KvScales};
pub use decode_launch::DecodePlan;
pub use decode_mla::{CheckedDecodeMla, DecodeMlaRequest, MlaScales};
pub use decode_mla_entry::{
    CheckedDecodeMlaEntry, DecodeMlaEntryRequest, EntryTokens, WindowTokens,
};
pub use device_check::{CHECK_BYTES, CheckMode, check_result};
pub use gather::{CheckedGather, GatherForm, GatherRequest, GatherRows};
pub use gather_launch::GatherPlan;
pub use gpu_kernels::mla_entry::EntryForm;
pub use rope_and_cache::{
    CheckedRopeAndCache, RopeAndCacheRequest, RopeQuery, RopeStyle, RopeTable,
};
pub use score::{AlibiForm, AlibiSlopes};
pub use unified::{CheckedUnified, UnifiedOptions, UnifiedRequest};
pub use unified_launch::UnifiedPlan;
