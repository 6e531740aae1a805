//! A case of any operation, and its line.

use std::fmt;
use std::str::FromStr;

use super::attention::decode::DecodeCase;
use super::attention::mla_fp8::EntryCase;
use super::attention::unified::UnifiedCase;
use super::base::device_case::{DeviceCase, Runnable};
use super::base::tensors::Amount;
use super::base::text::{CaseError, Fields};
use super::cache::blocks::{BlocksCase, BlocksOperation};
use super::cache::gather::GatherCase;
use super::cache::mla_write::MlaWriteCase;
use super::cache::mla_write_grouped::MlaWriteGroupedCase;
use super::cache::write::CacheWriteCase;
use crate::error::Result;
use crate::ops::CheckMode;
use crate::runtime::Runtime;

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
    /// A write into the MLA caches of many layers.
    MlaWriteGrouped(MlaWriteGroupedCase),
    /// A gather from an MLA cache.
    Gather(GatherCase),
    /// A copy or a compaction of blocks.
    Blocks(BlocksCase),
}

impl Case {
    /// The case as what every operation's can do.
    fn any(&self) -> &dyn Runnable {
        match self {
            Self::Decode(case) => case,
            Self::DecodeEntries(case) => case,
            Self::CacheWrite(case) => case,
            Self::Unified(case) => case,
            Self::MlaWrite(case) => case,
            Self::MlaWriteGrouped(case) => case,
            Self::Gather(case) => case,
            Self::Blocks(case) => case,
        }
    }

    /// The name that the tables of measured peers use, which says less: shapes, dtype, batch, context.
    pub fn peer_name(&self) -> String {
        self.any().peer_name()
    }

    /// Bytes that any implementation has to move, counted from the shape: `lens` drawn with `seed`.
    pub fn unavoidable_bytes(&self, seed: u64) -> u64 {
        self.any().unavoidable_bytes(seed)
    }

    /// Floating-point operations of the two products of attention.
    pub fn flops(&self, seed: u64) -> u64 {
        self.any().flops(seed)
    }

    /// Whether what lies in device memory is checked there.
    pub(crate) fn check(&self) -> CheckMode {
        self.any().check()
    }

    /// The case on a machine.
    ///
    /// # Errors
    /// There is no such case, or no memory for it.
    pub(crate) fn on<'m>(
        &self,
        runtime: &'m dyn Runtime,
        seed: u64,
        amount: Amount,
    ) -> Result<Box<dyn DeviceCase<'m> + 'm>> {
        self.any().on(runtime, seed, amount)
    }

    /// The case to be compared with the reference in place of this one, on no more tokens than the reference has
    /// done in a moment; none for attention, of whose output a sample is compared.
    #[must_use]
    pub fn sample(&self) -> Option<Self> {
        const TOKENS: usize = 4096;
        let mut case = self.clone();
        match &mut case {
            Self::Decode(_) | Self::DecodeEntries(_) | Self::Unified(_) => return None,
            Self::Blocks(_) => {}
            Self::CacheWrite(case) => case.num_tokens = case.num_tokens.min(TOKENS),
            Self::MlaWrite(case) => case.num_tokens = case.num_tokens.min(TOKENS),
            Self::MlaWriteGrouped(case) => {
                case.num_tokens = case.num_tokens.min((TOKENS / case.num_layers).max(1));
            }
            Self::Gather(case) => {
                case.rows_per_seq = case.rows_per_seq.min((TOKENS / case.num_seqs).max(1));
            }
        }
        Some(case)
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.any().fmt(f)
    }
}

impl FromStr for Case {
    type Err = CaseError;

    fn from_str(line: &str) -> Result<Self, CaseError> {
        let (operation, mut fields) = Fields::read(line)?;
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
            "concat_and_cache_mla_grouped" => {
                Self::MlaWriteGrouped(MlaWriteGroupedCase::read(&mut fields)?)
            }
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
