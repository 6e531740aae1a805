//! One list of cases for tests, `sweep` and `bench`.
//!
//! A [`Case`] is flat parameters: it prints on one line and reads back, so a failure can be replayed from
//! what was printed. [`grid`] has the named lists; [`fill`] turns a case and a seed into tensors, poisoned
//! wherever nothing may read; [`run_case`] runs them on a machine and [`compare`] judges what came back.
//!
//! An operation is a few files of `attention` or `cache`: its parameters and their text, what fills its tensors, the
//! request over them on a machine, its part of the lists. They stand on `base`, which knows no operation, and what moves
//! blocks on `named`, where tensors have the names that files give them; [`Case`], [`grid`] and [`fuzz`] stand on them.

mod attention;
mod base;
mod break_request;
mod cache;
mod case;
mod corrupt_memory;
mod draw;
pub mod fuzz;
pub mod grid;
#[cfg_attr(
    not(feature = "cli"),
    allow(
        dead_code,
        reason = "files, their metadata and the help are the program's"
    )
)]
pub(crate) mod named;
mod run;

pub use attention::decode::DecodeCase;
pub use attention::decode_compare::{compare_decode, sample_seqs};
pub use attention::decode_device::DeviceDecode;
pub use attention::mla_fp8::{EntryCase, TopK};
pub use attention::mla_fp8_device::{DeviceEntries, compare_entries, sample_rows};
pub use attention::mla_fp8_fill::{EntryTensors, HostList};
pub use attention::score_mods::{ScoreCase, ScoreTensors};
pub use attention::unified::{Causal, QueryLens, UnifiedCase};
pub use attention::unified_device::{DeviceUnified, compare_unified, score_sums};
pub use attention::unified_fill::UnifiedTensors;
pub use base::compare::{self, Accuracy, ScoreSums};
pub use base::fill::Fill;
pub use base::layout::{CacheShape, Layout};
pub use base::lens::Lens;
pub use base::mismatch::Mismatch;
pub use base::options::{LseForm, ScaleForm};
pub use base::text::CaseError;
#[cfg(feature = "cli")]
pub(crate) use base::uploads::Uploads;
pub use cache::blocks::{BlocksCase, BlocksOperation};
pub use cache::gather::{GatherBy, GatherCase};
pub use cache::mla_form::MlaForm;
pub use cache::mla_write::MlaWriteCase;
pub use cache::mla_write_grouped::MlaWriteGroupedCase;
pub use cache::write::{CacheWriteCase, RopeCase};
pub use cache::write_device::DeviceCacheWrite;
pub use case::Case;
pub use named::FileContents;
pub use run::{Outcome, run_case, run_case_again};

/// From a case and a seed to tensors.
///
/// Whatever a kernel must not read is poison: NaN in caches (slots past a sequence's end, blocks that nobody
/// owns) and in the padding between strides, an absurd block id past a row's last block. Outputs start as
/// NaN, so that what was not written shows.
pub mod fill {
    pub use super::attention::decode_fill::{DecodeTensors, HostScales};
    pub use super::attention::decode_special::decode;
    pub use super::base::tensors::{Amount, NO_BLOCK, POISON};
    #[cfg(feature = "cli")]
    pub(crate) use super::base::tensors::{random, shuffled};
    pub use super::cache::write_fill::{CacheWriteTensors, RopeTensors, cache_write};
}
