//! One list of cases for tests, `sweep` and `bench`.
//!
//! A [`Case`] is flat parameters: it prints on one line and reads back, so a failure can be replayed from
//! what was printed. [`grids`] has the named lists; [`fill`] turns a case and a seed into tensors, poisoned
//! wherever nothing may read; [`run_case`] runs them on a machine and [`compare`] judges what came back.

mod cache_write;
pub mod compare;
mod decode;
mod device;
pub mod fill;
pub mod grids;
mod layout;
mod lens;
mod run;
mod scaled_grids;
mod text;

pub use cache_write::CacheWriteCase;
pub use compare::{Accuracy, Mismatch};
pub use decode::{DecodeCase, LseForm, ScaleForm};
pub(crate) use device::Uploads;
pub use device::{DeviceCacheWrite, DeviceDecode};
pub use layout::{CacheShape, Layout};
pub use lens::Lens;
pub use run::{Outcome, compare_decode, run_case, sample_seqs};
pub use text::CaseError;

use std::fmt;
use std::str::FromStr;

/// Parameters of one run of one operation.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Case {
    /// Decode attention.
    Decode(DecodeCase),
    /// A cache write.
    CacheWrite(CacheWriteCase),
}

impl Case {
    /// The name that the tables of measured peers use, which says less: shapes, dtype, batch, context.
    pub fn peer_name(&self) -> String {
        match self {
            Self::Decode(case) => case.peer_name(),
            Self::CacheWrite(case) => case.peer_name(),
        }
    }

    /// Bytes that any implementation has to move, counted from the shape: `lens` drawn with `seed`.
    pub fn unavoidable_bytes(&self, seed: u64) -> u64 {
        match self {
            Self::Decode(case) => case.unavoidable_bytes(seed),
            Self::CacheWrite(case) => case.unavoidable_bytes(),
        }
    }

    /// Floating-point operations of the two products.
    pub fn flops(&self, seed: u64) -> u64 {
        match self {
            Self::Decode(case) => case.flops(seed),
            Self::CacheWrite(_) => 0,
        }
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Decode(case) => case.fmt(f),
            Self::CacheWrite(case) => case.fmt(f),
        }
    }
}

impl FromStr for Case {
    type Err = CaseError;

    fn from_str(line: &str) -> Result<Self, CaseError> {
        let (operation, mut fields) = text::Fields::read(line)?;
        let case = match operation {
            "decode" => Self::Decode(DecodeCase::read(&mut fields)?),
            "reshape_and_cache_flash" => Self::CacheWrite(CacheWriteCase::read(&mut fields)?),
            _ => return Err(CaseError(format!("no operation is called `{operation}`"))),
        };
        fields.finish()?;
        Ok(case)
    }
}
