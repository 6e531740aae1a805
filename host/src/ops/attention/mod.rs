//! Attention over paged caches.

mod decode;
mod decode_launch;
mod decode_plan;
mod kv_scales;
mod merge_plan;
mod mla;
mod mla_fp8;
mod mla_fp8_launch;
mod mla_launch;
mod mla_rows;
mod options;
mod paged;
mod partials;
mod score_mods;
mod shape;
mod split_plan;
mod unified;
mod unified_check;
mod unified_decodes;
mod unified_launch;
mod unified_plan;

pub use decode::{CheckedDecode, DecodeRequest};
pub use kv_scales::{KvScales, MlaScales};
pub use mla::{CheckedDecodeMla, DecodeMlaRequest};
pub use mla_fp8::{CheckedDecodeMlaEntry, DecodeMlaEntryRequest, EntryTokens, WindowTokens};
pub use options::{DecodeOptions, UnifiedOptions};
pub(super) use score_mods::mask_difference;
pub use score_mods::{AlibiForm, AlibiSlopes, ScoreMods};
pub use split_plan::DecodePlan;
pub use unified::{CheckedUnified, UnifiedRequest};
pub use unified_plan::UnifiedPlan;
