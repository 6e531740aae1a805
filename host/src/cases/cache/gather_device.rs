//! Gathers from MLA caches on a machine: tensors, and what they have to become.

use half::bf16;
use rand_chacha::ChaCha8Rng;

use super::gather::{GatherBy, GatherCase, MISSING_EVERY};
use super::mistakes::gather_mistakes;
use super::mla_form::MlaForm;
use super::slots::given_scales;
use crate::cases::base::compare::Accuracy;
use crate::cases::base::device_case::{DeviceCase, Runnable, Workspaces, all_same};
use crate::cases::base::fill::Fill;
use crate::cases::base::memory_mistake::MemoryMistake;
use crate::cases::base::mismatch::Mismatch;
use crate::cases::base::tensors::{
    Amount, POISON, integers, noise, pattern_blocks, shuffled, whole,
};
use crate::cases::base::uploads::Uploads;
use crate::error::Result;
use crate::ops::{CheckMode, GatherForm, GatherRequest, GatherRows};
use crate::reference::{HostTensor, Pages, fp8_value, mla_fp8_ds_values, mla_v4_values};
use crate::runtime::{Launcher, Runtime};
use crate::tensor::Dtype;

/// A gather on a machine.
struct GatherRun<'m> {
    case: GatherCase,
    sets: usize,
    cache: HostTensor,
    num_blocks: usize,
    out: HostTensor,
    block_table: HostTensor,
    /// Row starts, lengths, or indices.
    rows: HostTensor,
    scale: HostTensor,
    uploads: Uploads<'m>,
    workspaces: Workspaces<'m>,
}

impl Runnable for GatherCase {
    fn check(&self) -> CheckMode {
        self.check
    }

    fn on<'m>(
        &self,
        runtime: &'m dyn Runtime,
        seed: u64,
        amount: Amount,
    ) -> Result<Box<dyn DeviceCase<'m> + 'm>> {
        let (form, page) = (self.form, self.block_size);
        let seqs = self.num_seqs * amount.sets;
        let width = self.rows_per_seq.div_ceil(page);
        let num_blocks = seqs * width + 3;
        let cache = form.cache(self.dtype, num_blocks, page, |block_bytes| {
            let pattern = pattern_blocks(num_blocks, block_bytes, amount.pattern_bytes);
            (0..pattern as u64)
                .flat_map(|id| form.block(page, block_bytes, seed ^ (id + 1) << 20, self.fill))
                .collect()
        });
        let ids = shuffled(num_blocks, seed);
        let table = ids[..seqs * width].iter().map(|&id| id as i64);
        let block_table = integers("block_table", &[seqs, width], table);
        let rows = match self.by {
            GatherBy::Ragged => {
                // Each set counts from 0.
                let starts = (0..amount.sets)
                    .flat_map(|_| (0..=self.num_seqs).map(|seq| (seq * self.rows_per_seq) as i64));
                integers("row_starts", &[amount.sets * (self.num_seqs + 1)], starts)
            }
            GatherBy::Padded => {
                let lens = (0..seqs).map(|_| self.rows_per_seq as i64);
                integers("seq_lens", &[seqs], lens)
            }
            GatherBy::TopK => {
                let order = shuffled(self.rows_per_seq, seed ^ 3);
                let indices = (0..seqs).flat_map(|_| order.iter().enumerate().map(chosen));
                integers("indices", &[seqs, self.rows_per_seq], indices)
            }
            GatherBy::Slots => {
                let order = shuffled(num_blocks * page, seed ^ 3);
                let slots = order[..seqs * self.rows_per_seq].iter().enumerate();
                integers("slots", &[seqs, self.rows_per_seq], slots.map(chosen))
            }
        };
        let shape = [seqs * self.rows_per_seq, form.values()];
        let out_bytes = noise(2 * shape[0] * shape[1], seed, "out");
        let out = HostTensor::contiguous("out", self.dtype, &shape, out_bytes);
        let scale = given_scales("scale", 1, 0.037);
        let cache = if self.fill == Fill::Poison {
            let named = named_slots(self, &block_table, &rows, num_blocks, amount.sets);
            poisoned(self, &cache, &named)
        } else {
            cache
        };
        let uploads = Uploads::new(runtime, [&cache, &out, &block_table, &rows, &scale])?;
        Ok(Box::new(GatherRun {
            case: self.clone(),
            sets: amount.sets,
            uploads,
            workspaces: Workspaces::new(runtime, self.check),
            cache,
            num_blocks,
            out,
            block_table,
            rows,
            scale,
        }))
    }
}

impl<'m> DeviceCase<'m> for GatherRun<'m> {
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
            check: case.check,
        }
        .check()?;
        let plan = checked.plan();
        let workspace = self.workspaces.of(set, plan.workspace_bytes())?;
        checked.launch(&plan, &mut workspace.view_mut(), launcher)?;
        Ok(plan.to_string())
    }

    fn uploads(&self) -> &Uploads<'m> {
        &self.uploads
    }

    fn find_fault(&self) -> Result<()> {
        self.workspaces.find_fault()
    }

    fn outputs(&self) -> Result<Vec<HostTensor>> {
        Ok(vec![self.uploads.read(&self.out)?])
    }

    fn judge(&self, outputs: &[HostTensor], _budget: u64) -> Result<Accuracy, Mismatch> {
        let mut bytes = whole(&self.out);
        let row_bytes = 2 * self.case.form.values();
        let (table, rows) = (&self.block_table, &self.rows);
        let slots = named_slots(&self.case, table, rows, self.num_blocks, self.sets);
        for (row, slot) in slots.into_iter().enumerate() {
            if let Some(slot) = slot {
                let at = row * row_bytes;
                bytes[at..at + row_bytes].copy_from_slice(&self.row(slot));
            }
        }
        all_same(outputs, &[bytes])
    }

    fn mistakes(&self, random: &mut ChaCha8Rng) -> Vec<MemoryMistake> {
        let (table, rows) = (&self.block_table, &self.rows);
        let mut mistakes = gather_mistakes(&self.case, table, rows, self.num_blocks, random);
        if self.case.form == MlaForm::Fp8 {
            mistakes.push(MemoryMistake::one_scale(&self.scale, random));
        }
        mistakes
    }
}

impl GatherRun<'_> {
    /// The row that a slot becomes.
    fn row(&self, slot: usize) -> Vec<u8> {
        let (form, page) = (self.case.form, self.case.block_size);
        let block = slot / page * self.cache.strides[0] * self.cache.dtype.size();
        let runs = form.runs(slot % page, page);
        let [token, scales] = runs.map(|run| {
            let storage = &self.cache.storage;
            storage.bytes_at(block + run.start, run.len())
        });
        #[allow(
            clippy::cast_possible_truncation,
            reason = "they came from an f32 or less"
        )]
        let values: Vec<bf16> = match form {
            MlaForm::Plain => return token,
            MlaForm::Fp8 => {
                let scale = self.scale.float(&[0]) as f32;
                token
                    .into_iter()
                    .map(|byte| bf16::from_f32(fp8_value(Dtype::F8E4m3, byte) as f32 * scale))
                    .collect()
            }
            MlaForm::Ds656 => mla_fp8_ds_values(&token),
            MlaForm::V4 => mla_v4_values(&token, &scales),
        };
        values.into_iter().flat_map(bf16::to_le_bytes).collect()
    }
}

/// The slot of each row of every set.
fn named_slots(
    case: &GatherCase,
    block_table: &HostTensor,
    rows: &HostTensor,
    num_blocks: usize,
    sets: usize,
) -> Vec<Option<usize>> {
    let seqs = case.num_seqs;
    let of_set = |set: usize| {
        let table = block_table.slice(set * seqs, seqs);
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
                pages.topk(&rows.slice(set * seqs, seqs), &seq_of)
            }
            GatherBy::Slots => {
                let first = set * seqs;
                let places = (0..case.rows())
                    .map(|row| [first + row / case.rows_per_seq, row % case.rows_per_seq]);
                let slots = places.map(|at| usize::try_from(rows.integer(&at)).ok());
                slots.collect()
            }
        }
    };
    (0..sets).flat_map(of_set).collect()
}

/// The cache with NaN in every token but these.
fn poisoned(case: &GatherCase, cache: &HostTensor, named: &[Option<usize>]) -> HostTensor {
    let (form, page) = (case.form, case.block_size);
    let block_bytes = cache.strides[0] * cache.dtype.size();
    let given = whole(cache);
    let mut bytes = vec![POISON; given.len()];
    for slot in named.iter().flatten() {
        let block = slot / page * block_bytes;
        for run in form.runs(slot % page, page) {
            let run = block + run.start..block + run.end;
            bytes[run.clone()].copy_from_slice(&given[run]);
        }
    }
    cache.with_bytes(bytes)
}

/// Token or slot `name`, unless it is one of those that are −1.
fn chosen((at, &name): (usize, &usize)) -> i64 {
    if at % MISSING_EVERY == MISSING_EVERY - 1 {
        -1
    } else {
        name as i64
    }
}
