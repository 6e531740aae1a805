//! Attention over paged caches.

mod decode;
mod decode_launch;
mod mla;
mod mla_fp8;
mod mla_fp8_launch;
mod mla_rows;
mod paged;
mod score_mods;
mod unified;
mod unified_launch;

pub use decode::{CheckedDecode, DecodeOptions, DecodeRequest};
pub use decode_launch::DecodePlan;
pub use mla::{CheckedDecodeMla, DecodeMlaRequest, MlaScales};
pub use mla_fp8::{CheckedDecodeMlaEntry, DecodeMlaEntryRequest, EntryTokens, WindowTokens};
pub use paged::KvScales;
pub use score_mods::{AlibiForm, AlibiSlopes};
pub use unified::{CheckedUnified, UnifiedOptions, UnifiedRequest};
pub use unified_launch::UnifiedPlan;
