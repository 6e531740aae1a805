//! Parameters of a gather from an MLA cache.

use std::fmt;

use super::mla_form::MlaForm;
use crate::cases::base::device_case::Described;
use crate::cases::base::fill::Fill;
use crate::cases::base::options::{read_check, write_check};
use crate::cases::base::text::{
    CaseError, Fields, MAX_BLOCK_SIZE, MAX_SEQS, MAX_TOKENS, check_size,
};
use crate::ops::CheckMode;
use crate::tensor::Dtype;

/// Parameters of a gather. Sequences are of one length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatherCase {
    /// Of the output, and of the cache if it is plain.
    pub dtype: Dtype,
    /// What the cache stores.
    pub form: MlaForm,
    /// What names tokens.
    pub by: GatherBy,
    /// Tokens per block.
    pub block_size: usize,
    /// Sequences, or tokens that chose.
    pub num_seqs: usize,
    /// Rows of each.
    pub rows_per_seq: usize,
    /// Whether what names tokens is checked on the device.
    pub check: CheckMode,
    /// What the cache's numbers are like, where they are not only copied.
    pub fill: Fill,
}

/// What names the tokens of a gather.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GatherBy {
    /// Whole sequences, one after the other.
    Ragged,
    /// The last tokens of each sequence.
    Padded,
    /// Positions in a sequence, some of them −1.
    TopK,
    /// Slots, some of them −1.
    Slots,
}

/// Of chosen tokens every so many one is −1.
pub(crate) const MISSING_EVERY: usize = 16;

const NAMES: [(GatherBy, &str); 4] = [
    (GatherBy::Ragged, "ragged"),
    (GatherBy::Padded, "padded"),
    (GatherBy::TopK, "topk"),
    (GatherBy::Slots, "slots"),
];

impl GatherCase {
    /// Rows of the output.
    pub(crate) fn rows(&self) -> usize {
        self.num_seqs * self.rows_per_seq
    }

    fn names_some_nowhere(&self) -> bool {
        matches!(self.by, GatherBy::TopK | GatherBy::Slots)
    }

    pub(crate) fn read(fields: &mut Fields<'_>) -> Result<Self, CaseError> {
        let by: String = fields.required("by")?;
        let case = Self {
            dtype: fields.dtype(),
            form: fields.required("form")?,
            by: NAMES
                .iter()
                .find(|(_, name)| *name == by)
                .map(|&(by, _)| by)
                .ok_or_else(|| CaseError(format!("`by={by}`: ragged, padded, topk or slots")))?,
            block_size: fields.size("page", MAX_BLOCK_SIZE)?,
            num_seqs: fields.size("seqs", MAX_SEQS)?,
            rows_per_seq: fields.size("rows", MAX_TOKENS)?,
            check: read_check(fields)?,
            fill: fields.optional("fill")?.unwrap_or_default(),
        };
        check_size("seqs", case.rows(), MAX_TOKENS)?;
        Ok(case)
    }
}

impl Described for GatherCase {
    fn peer_name(&self) -> String {
        let form = match self.form {
            MlaForm::Plain => self.dtype.to_string(),
            MlaForm::V4 => "v4_584".to_owned(),
            MlaForm::Fp8 | MlaForm::Ds656 => self.form.to_string(),
        };
        let (seqs, rows) = (self.num_seqs, self.rows());
        match (self.by, self.form) {
            (GatherBy::Ragged, _) => format!("mla gather {form} req={seqs} tok={rows}"),
            (GatherBy::Padded, _) => format!("dsv4 gather {form} req={seqs} len={}", rows / seqs),
            (GatherBy::Slots, MlaForm::V4) => format!("dsv4 slot gather n={rows}"),
            (GatherBy::Slots, _) => format!("slot gather {form} n={rows}"),
            (GatherBy::TopK, _) => format!("topk gather {form} n={rows}"),
        }
    }

    /// Entries and rows, and the index of each row, or the entries of the block table.
    fn unavoidable_bytes(&self, _seed: u64) -> u64 {
        let index = match self.by {
            GatherBy::Ragged | GatherBy::Padded => 4 * self.rows().div_ceil(self.block_size),
            GatherBy::TopK | GatherBy::Slots => 4 * self.rows(),
        };
        let row = self.form.stored_bytes() + 2 * self.form.values();
        let rows = if self.names_some_nowhere() {
            self.rows() - self.rows() / MISSING_EVERY
        } else {
            self.rows()
        };
        (rows * row + index) as u64
    }
}

impl fmt::Display for GatherCase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let by = NAMES
            .iter()
            .find(|(by, _)| *by == self.by)
            .map_or("", |&(_, name)| name);
        let Self {
            dtype,
            form,
            block_size,
            num_seqs,
            rows_per_seq,
            ..
        } = self;
        write!(
            f,
            "gather {dtype} form={form} by={by} page={block_size} seqs={num_seqs} rows={rows_per_seq}"
        )?;
        write_check(self.check, f)?;
        self.fill.write(f)
    }
}
