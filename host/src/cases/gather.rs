//! Gathers from MLA caches: parameters, tensors, and what they have to become.

use std::fmt;

use half::bf16;

use super::exact::DeviceCase;
use super::fill::{Amount, POISON, noise, shuffled};
use super::fill_cache::given_scales;
use super::run::workspace;
use super::text::{CaseError, Fields, MAX_BLOCK_SIZE, MAX_SEQS, MAX_TOKENS, check_size};
use super::{Fill, MlaForm, Uploads};
use crate::error::Result;
use crate::ops::{CheckMode, GatherForm, GatherRequest, GatherRows};
use crate::reference::{HostTensor, Pages, fp8_value, mla_fp8_ds_values, mla_v4_values};
use crate::runtime::{Buffer, Launcher, Runtime};
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

const NAMES: [(GatherBy, &str); 4] = [
    (GatherBy::Ragged, "ragged"),
    (GatherBy::Padded, "padded"),
    (GatherBy::TopK, "topk"),
    (GatherBy::Slots, "slots"),
];

impl GatherCase {
    fn rows(&self) -> usize {
        self.num_seqs * self.rows_per_seq
    }

    fn names_some_nowhere(&self) -> bool {
        matches!(self.by, GatherBy::TopK | GatherBy::Slots)
    }

    /// Entries and rows, and the index of each row, or the entries of the block table.
    pub fn unavoidable_bytes(&self) -> u64 {
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

    /// See [`super::Case::peer_name`].
    pub fn peer_name(&self) -> String {
        let form = match self.form {
            MlaForm::Plain => self.dtype.to_string(),
            MlaForm::V4 => "v4_584".to_owned(),
            form => form.to_string(),
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

    pub(super) fn read(fields: &mut Fields<'_>) -> Result<Self, CaseError> {
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
            fill: fields.optional("fill")?.unwrap_or_default(),
        };
        check_size("seqs", case.rows(), MAX_TOKENS)?;
        Ok(case)
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
        self.fill.write(f)
    }
}

/// Of chosen tokens every so many one is −1.
const MISSING_EVERY: usize = 16;

/// The case on a machine.
pub(super) struct ExactGather<'m> {
    case: GatherCase,
    cache: HostTensor,
    out: HostTensor,
    block_table: HostTensor,
    /// Row starts, lengths, or indices.
    rows: HostTensor,
    scale: HostTensor,
    uploads: Uploads<'m>,
    workspace: Buffer<'m>,
}

impl<'m> ExactGather<'m> {
    pub(super) fn new(
        case: &GatherCase,
        runtime: &'m dyn Runtime,
        seed: u64,
        amount: Amount,
    ) -> Result<Self> {
        let (form, page) = (case.form, case.block_size);
        let seqs = case.num_seqs * amount.sets;
        let width = case.rows_per_seq.div_ceil(page);
        let num_blocks = seqs * width + 3;
        let cache = form.cache(case.dtype, num_blocks, page, |block_bytes| {
            let pattern =
                super::fill::pattern_blocks(num_blocks, block_bytes, amount.pattern_bytes);
            (0..pattern as u64)
                .flat_map(|id| form.block(page, block_bytes, seed ^ (id + 1) << 20, case.fill))
                .collect()
        });
        let ids = shuffled(num_blocks, seed);
        let table = ids[..seqs * width].iter().map(|&id| index(id));
        let block_table = integers("block_table", &[seqs, width], table);
        let rows = match case.by {
            GatherBy::Ragged => {
                // Each set counts from 0.
                let starts = (0..amount.sets)
                    .flat_map(|_| (0..=case.num_seqs).map(|seq| index(seq * case.rows_per_seq)));
                integers("row_starts", &[amount.sets * (case.num_seqs + 1)], starts)
            }
            GatherBy::Padded => {
                let lens = (0..seqs).map(|_| index(case.rows_per_seq));
                integers("seq_lens", &[seqs], lens)
            }
            GatherBy::TopK => {
                let order = shuffled(case.rows_per_seq, seed ^ 3);
                let indices = (0..seqs).flat_map(|_| order.iter().enumerate().map(chosen));
                integers("indices", &[seqs, case.rows_per_seq], indices)
            }
            GatherBy::Slots => {
                let order = shuffled(num_blocks * page, seed ^ 3);
                let slots = order[..seqs * case.rows_per_seq].iter().enumerate();
                integers("slots", &[seqs, case.rows_per_seq], slots.map(chosen))
            }
        };
        let shape = [seqs * case.rows_per_seq, form.values()];
        let out_bytes = noise(2 * shape[0] * shape[1], seed, "out");
        let out = HostTensor::contiguous("out", case.dtype, &shape, out_bytes);
        let scale = given_scales("scale", 1, 0.037);
        let cache = if case.fill == Fill::Poison {
            let named = slots(case, &block_table, &rows, num_blocks);
            poisoned(case, &cache, &named)
        } else {
            cache
        };
        let uploads = Uploads::new(runtime, [&cache, &out, &block_table, &rows, &scale])?;
        Ok(Self {
            case: case.clone(),
            uploads,
            workspace: workspace(runtime, 0)?,
            cache,
            out,
            block_table,
            rows,
            scale,
        })
    }

    /// The row that a slot becomes.
    fn row(&self, slot: usize) -> Vec<u8> {
        let (form, page) = (self.case.form, self.case.block_size);
        let block_bytes = self.cache.strides[0] * self.cache.dtype.size();
        let block = slot / page * block_bytes;
        // A cache larger than its pattern repeats it.
        let byte =
            |at: usize| self.cache.storage.bytes[(block + at) % self.cache.storage.bytes.len()];
        let bytes = |at: usize, len: usize| -> Vec<u8> { (at..at + len).map(byte).collect() };
        let [at, scales_at] = form.entry(slot % page, page);
        #[allow(
            clippy::cast_possible_truncation,
            reason = "they came from an f32 or less"
        )]
        let values: Vec<bf16> = match form {
            MlaForm::Plain => return bytes(at, form.stored_bytes()),
            MlaForm::Fp8 => {
                let scale = self.scale.float(&[0]) as f32;
                let stored = bytes(at, form.stored_bytes()).into_iter();
                stored
                    .map(|byte| bf16::from_f32(fp8_value(Dtype::F8E4m3, byte) as f32 * scale))
                    .collect()
            }
            MlaForm::Ds656 => mla_fp8_ds_values(&bytes(at, 656)),
            MlaForm::V4 => mla_v4_values(&bytes(at, 576), &bytes(scales_at, 8)),
        };
        values.into_iter().flat_map(bf16::to_le_bytes).collect()
    }
}

/// The slot of each row of the first set.
fn slots(
    case: &GatherCase,
    block_table: &HostTensor,
    rows: &HostTensor,
    num_blocks: usize,
) -> Vec<Option<usize>> {
    let seqs = case.num_seqs;
    let table = block_table.slice(0, seqs);
    let pages = Pages {
        block_table: &table,
        block_size: case.block_size,
        num_blocks,
    };
    let lens = vec![case.rows_per_seq; seqs];
    match case.by {
        GatherBy::Ragged => {
            let starts: Vec<usize> = (0..=seqs).map(|seq| seq * case.rows_per_seq).collect();
            pages.ragged(&starts, &vec![0; seqs], case.rows())
        }
        GatherBy::Padded => pages.padded(&lens, &lens, case.rows_per_seq),
        GatherBy::TopK => {
            let seq_of: Vec<usize> = (0..seqs).collect();
            pages.topk(&rows.slice(0, seqs), &seq_of)
        }
        GatherBy::Slots => (0..case.rows())
            .map(|row| {
                let at = [row / case.rows_per_seq, row % case.rows_per_seq];
                usize::try_from(rows.integer(&at)).ok()
            })
            .collect(),
    }
}

/// The cache with NaN in every token but these.
fn poisoned(case: &GatherCase, cache: &HostTensor, named: &[Option<usize>]) -> HostTensor {
    let (form, page) = (case.form, case.block_size);
    let block_bytes = cache.strides[0] * cache.dtype.size();
    let mut bytes = vec![POISON; cache.storage.bytes.len()];
    for slot in named.iter().flatten() {
        let block = slot / page * block_bytes;
        let [at, scales_at] = form.entry(slot % page, page);
        let (len, scales) = match form {
            MlaForm::V4 => (576, 8),
            _ => (form.stored_bytes(), 0),
        };
        for part in [
            block + at..block + at + len,
            block + scales_at..block + scales_at + scales,
        ] {
            bytes[part.clone()].copy_from_slice(&cache.storage.bytes[part]);
        }
    }
    cache.with_bytes(bytes)
}

/// Token or slot `name`, unless it is one of those that are −1.
fn chosen((at, &name): (usize, &usize)) -> i32 {
    if at % MISSING_EVERY == MISSING_EVERY - 1 {
        -1
    } else {
        index(name)
    }
}

fn index(at: usize) -> i32 {
    i32::try_from(at).expect("cases have few tokens")
}

fn integers(name: &'static str, shape: &[usize], values: impl Iterator<Item = i32>) -> HostTensor {
    let bytes = values.flat_map(i32::to_le_bytes).collect();
    HostTensor::contiguous(name, Dtype::I32, shape, bytes)
}

impl<'m> DeviceCase<'m> for ExactGather<'m> {
    fn uploads(&self) -> &Uploads<'m> {
        &self.uploads
    }

    fn launch(&mut self, set: usize, launcher: &dyn Launcher) -> Result<String> {
        let (case, uploads) = (&self.case, &self.uploads);
        let (seqs, rows) = (case.num_seqs, case.rows());
        let part = |tensor: &HostTensor, len: usize| uploads.view(&tensor.slice(set * len, len));
        let flat = |tensor: &HostTensor| HostTensor {
            shape: vec![tensor.num_elements()],
            strides: vec![1],
            ..tensor.clone()
        };
        let mut out = self.out.slice(set * rows, rows);
        if case.by == GatherBy::Padded {
            let row = out.strides[0];
            out.shape = vec![seqs, case.rows_per_seq, out.shape[1]];
            out.strides = vec![case.rows_per_seq * row, row, 1];
        }
        let checked = GatherRequest {
            cache: uploads.view(&self.cache)?,
            block_size: case.block_size,
            form: match case.form {
                MlaForm::Plain => GatherForm::Raw,
                MlaForm::Fp8 => GatherForm::Fp8 {
                    scale: uploads.view(&self.scale)?,
                },
                MlaForm::Ds656 => GatherForm::Fp8Ds,
                MlaForm::V4 => GatherForm::V4,
            },
            // SAFETY: `self` is borrowed exclusively, and launches of one stream run in order.
            out: unsafe { uploads.view_mut(&out)? },
            rows: match case.by {
                GatherBy::Ragged => GatherRows::Ragged {
                    block_table: part(&self.block_table, seqs)?,
                    row_starts: part(&self.rows, seqs + 1)?,
                    first_tokens: None,
                },
                GatherBy::Padded => GatherRows::Padded {
                    block_table: part(&self.block_table, seqs)?,
                    seq_lens: part(&self.rows, seqs)?,
                    lens: None,
                },
                GatherBy::TopK => GatherRows::TopK {
                    block_table: part(&self.block_table, seqs)?,
                    indices: part(&self.rows, seqs)?,
                    seqs: None,
                },
                GatherBy::Slots => GatherRows::Slots {
                    slots: part(&flat(&self.rows), rows)?,
                },
            },
            zero_missing: false,
            check: CheckMode::Off,
        }
        .check()?;
        let plan = checked.plan();
        checked.launch(&plan, &mut self.workspace.view_mut(), launcher)?;
        Ok(plan.to_string())
    }

    fn outputs(&self) -> Result<Vec<HostTensor>> {
        Ok(vec![self.uploads.read(&self.out)?])
    }

    fn expected(&self) -> Vec<Vec<u8>> {
        let mut bytes = self.out.storage.bytes.clone();
        let row_bytes = 2 * self.case.form.values();
        let num_blocks = self.cache.shape[0];
        let slots = slots(&self.case, &self.block_table, &self.rows, num_blocks);
        for (row, slot) in slots.into_iter().enumerate() {
            if let Some(slot) = slot {
                let at = row * row_bytes;
                bytes[at..at + row_bytes].copy_from_slice(&self.row(slot));
            }
        }
        vec![bytes]
    }
}
