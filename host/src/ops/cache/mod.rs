//! What moves tokens into, out of and between caches, and computes nothing of attention.

mod compact;
mod compact_launch;
mod concat_and_cache_mla;
mod concat_and_cache_mla_grouped;
mod copy_blocks;
mod gather;
mod gather_check;
mod gather_launch;
mod places;
mod reshape_and_cache;
mod rope_and_cache;
mod row_layout;
mod row_write;
mod slots;
mod write_plan;

pub use compact::{CheckedCompact, CompactReferences, CompactRequest};
pub use compact_launch::CompactPlan;
pub use concat_and_cache_mla::{
    CheckedConcatAndCacheMla, ConcatAndCacheMlaRequest, MlaCacheForm, ScaleRule,
};
pub use concat_and_cache_mla_grouped::{
    CacheTable, CheckedConcatAndCacheMlaGrouped, ConcatAndCacheMlaGroupedRequest,
};
pub use copy_blocks::{BlockCaches, CheckedCopyBlocks, CopyBlocksPlan, CopyBlocksRequest};
pub use gather::{CheckedGather, GatherForm, GatherRequest, GatherRows};
pub use gather_launch::GatherPlan;
pub use reshape_and_cache::{CacheScales, CacheWriteRequest, CheckedCacheWrite};
pub use rope_and_cache::{
    CheckedRopeAndCache, RopeAndCacheRequest, RopeQuery, RopeStyle, RopeTable,
};
pub use write_plan::CacheWritePlan;
