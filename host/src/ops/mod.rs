//! The operations: request → check → plan → launch, one file each, read top to bottom.
//!
//! A request says what is wanted; checking turns it into a type that cannot be built otherwise; a plan is
//! what was decided, printable; launching turns views into parameter blocks and enqueues kernels. Nothing
//! below this folder checks a request again.

mod cache_side;
mod cache_write;
mod checks;
mod concat_and_cache_mla;
mod concat_and_cache_mla_grouped;
mod decode;
mod decode_launch;
mod device_check;
mod gather;
mod gather_launch;
mod row_write;

pub use cache_write::{CacheScales, CacheWritePlan, CacheWriteRequest, CheckedCacheWrite};
pub use concat_and_cache_mla::{
    CheckedConcatAndCacheMla, ConcatAndCacheMlaRequest, MlaCacheForm, ScaleRule,
};
pub use concat_and_cache_mla_grouped::{
    CacheTable, CheckedConcatAndCacheMlaGrouped, ConcatAndCacheMlaGroupedRequest,
};
pub use decode::{CheckedDecode, DecodeOptions, DecodeRequest, KvScales};
pub use decode_launch::DecodePlan;
pub use device_check::{CHECK_BYTES, CheckMode, check_result};
pub use gather::{CheckedGather, GatherForm, GatherRequest, GatherRows};
pub use gather_launch::GatherPlan;
