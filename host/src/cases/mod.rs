//! One list of cases for tests, `sweep` and `bench`.
//!
//! A [`Case`] is flat parameters: it prints on one line and reads back, so a failure can be replayed from
//! what was printed. [`grids`] has the named lists; [`fill`] turns a case and a seed into tensors, poisoned
//! wherever nothing may read; [`run_case`] runs them on a machine and [`compare`] judges what came back.

mod blocks;
mod break_one;
mod cache_grids;
mod cache_write;
pub mod compare;
mod decode;
mod device;
mod device_write;
mod draw;
mod entries;
mod entries_device;
mod entries_fill;
mod entry_grids;
mod exact;
pub mod fill;
mod fill_cache;
pub mod fuzz;
mod gather;
pub mod grids;
mod layout;
mod lens;
mod mismatch;
mod mla_form;
mod mla_grids;
mod mla_write;
mod run;
mod scaled_grids;
mod scored_grids;
mod scores;
mod special;
mod special_fill;
mod special_grids;
mod text;
mod unified;
mod unified_device;
mod unified_grids;

pub use blocks::{BlocksCase, BlocksOperation};
use break_one::break_one;
pub use cache_write::{CacheWriteCase, RopeCase};
pub use compare::{Accuracy, ScoreSums};
pub use decode::{DecodeCase, LseForm, ScaleForm};
pub use device::DeviceDecode;
pub(crate) use device::Uploads;
pub use device_write::DeviceCacheWrite;
pub use entries::{EntryCase, TopK};
pub use entries_device::{DeviceEntries, compare_entries, sample_rows};
pub use entries_fill::{EntryTensors, HostList};
pub use gather::{GatherBy, GatherCase};
pub use layout::{CacheShape, Layout};
pub use lens::Lens;
pub use mismatch::Mismatch;
pub use mla_form::MlaForm;
pub use mla_write::MlaWriteCase;
pub use run::{
    Outcome, compare_decode, compare_unified, run_case, run_case_again, sample_seqs, score_sums,
};
pub use scores::{ScoreCase, ScoreTensors};
pub use special::Fill;
pub use text::CaseError;
pub use unified::{Causal, QueryLens, UnifiedCase};
pub use unified_device::{DeviceUnified, UnifiedTensors};

use std::fmt;
use std::str::FromStr;

/// Parameters of one run of one operation.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Case {
    /// Decode attention.
    Decode(DecodeCase),
    /// Decode attention over FP8 entries.
    DecodeEntries(EntryCase),
    /// A cache write, maybe of rotated keys.
    CacheWrite(CacheWriteCase),
    /// Unified attention.
    Unified(UnifiedCase),
    /// A write into an MLA cache.
    MlaWrite(MlaWriteCase),
    /// A gather from an MLA cache.
    Gather(GatherCase),
    /// A copy or a compaction of blocks.
    Blocks(BlocksCase),
}

impl Case {
    /// The name that the tables of measured peers use, which says less: shapes, dtype, batch, context.
    pub fn peer_name(&self) -> String {
        match self {
            Self::Decode(case) => case.peer_name(),
            Self::DecodeEntries(case) => case.peer_name(),
            Self::CacheWrite(case) => case.peer_name(),
            Self::Unified(case) => case.peer_name(),
            Self::MlaWrite(case) => case.peer_name(),
            Self::Gather(case) => case.peer_name(),
            Self::Blocks(case) => case.peer_name(),
        }
    }

    /// Bytes that any implementation has to move, counted from the shape: `lens` drawn with `seed`.
    pub fn unavoidable_bytes(&self, seed: u64) -> u64 {
        match self {
            Self::Decode(case) => case.unavoidable_bytes(seed),
            Self::DecodeEntries(case) => case.unavoidable_bytes(seed),
            Self::CacheWrite(case) => case.unavoidable_bytes(),
            Self::Unified(case) => case.unavoidable_bytes(seed),
            Self::MlaWrite(case) => case.unavoidable_bytes(),
            Self::Gather(case) => case.unavoidable_bytes(),
            Self::Blocks(case) => case.unavoidable_bytes(),
        }
    }

    /// The same operation on no more tokens than a reference has done in a moment.
    #[must_use]
    pub fn sample(&self) -> Self {
        const TOKENS: usize = 4096;
        let mut case = self.clone();
        match &mut case {
            Self::Decode(_) | Self::DecodeEntries(_) | Self::Unified(_) | Self::Blocks(_) => {}
            Self::CacheWrite(case) => case.num_tokens = case.num_tokens.min(TOKENS),
            Self::MlaWrite(case) => case.num_tokens = case.num_tokens.min(TOKENS),
            Self::Gather(case) => {
                case.rows_per_seq = case.rows_per_seq.min((TOKENS / case.num_seqs).max(1));
            }
        }
        case
    }

    /// Floating-point operations of the two products.
    pub fn flops(&self, seed: u64) -> u64 {
        match self {
            Self::Decode(case) => case.flops(seed),
            Self::DecodeEntries(case) => case.flops(seed),
            Self::Unified(case) => case.flops(seed),
            _ => 0,
        }
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Decode(case) => case.fmt(f),
            Self::DecodeEntries(case) => case.fmt(f),
            Self::CacheWrite(case) => case.fmt(f),
            Self::Unified(case) => case.fmt(f),
            Self::MlaWrite(case) => case.fmt(f),
            Self::Gather(case) => case.fmt(f),
            Self::Blocks(case) => case.fmt(f),
        }
    }
}

impl FromStr for Case {
    type Err = CaseError;

    fn from_str(line: &str) -> Result<Self, CaseError> {
        let (operation, mut fields) = text::Fields::read(line)?;
        let case = match operation {
            "decode" => Self::Decode(DecodeCase::read(&mut fields, false)?),
            "decode_mla_entry" => Self::DecodeEntries(EntryCase::read(&mut fields)?),
            "decode_mla" => Self::Decode(DecodeCase::read(&mut fields, true)?),
            "unified" => Self::Unified(UnifiedCase::read(&mut fields)?),
            "reshape_and_cache_flash" => {
                Self::CacheWrite(CacheWriteCase::read(&mut fields, false)?)
            }
            "rope_and_cache" => Self::CacheWrite(CacheWriteCase::read(&mut fields, true)?),
            "concat_and_cache_mla" => Self::MlaWrite(MlaWriteCase::read(&mut fields)?),
            "gather" => Self::Gather(GatherCase::read(&mut fields)?),
            other => match BlocksOperation::named(other) {
                Some(operation) => Self::Blocks(BlocksCase::read(operation, &mut fields)?),
                None => return Err(CaseError(format!("no operation is called `{other}`"))),
            },
        };
        fields.finish()?;
        Ok(case)
    }
}
