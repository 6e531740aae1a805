//! Gathers on tensors from a file.

use anyhow::ensure;

use super::run_attention::{FORM, OUT_DTYPE};
use crate::cases::named::{BLOCK_SIZE, Inputs, Job, Key, Names, Operation, Output, extent, launch};
use crate::ops::{EntryForm, GatherForm, GatherRequest, GatherRows};
use crate::tensor::Dtype;

static ROWS_PER_SEQ: Key<u32> = Key::count("rows_per_seq");

pub(super) static GATHER: Operation = Operation {
    name: "gather",
    about: "tokens of a paged cache as rows side by side; rows without a token are zeros",
    tensors: Names {
        needed: &["cache"],
        optional: &[
            "scale",
            "block_table",
            "row_starts",
            "first_tokens",
            "seq_lens",
            "lens",
            "topk_indices",
            "seqs",
            "slots",
        ],
    },
    metadata: Names {
        needed: &[],
        optional: &[&FORM, &OUT_DTYPE, &BLOCK_SIZE, &ROWS_PER_SEQ],
    },
    choices: &[
        "whole sequences: block_table, row_starts, [first_tokens]",
        "the last tokens of sequences: block_table, seq_lens, rows_per_seq, [lens]",
        "chosen tokens: block_table, topk_indices, [seqs]",
        "named slots: slots",
        "an FP8 cache with one scale: scale, [out_dtype]",
        "entries with scales of their own: form",
    ],
    writes: "out",
    outputs: rows,
    launch: gather,
};

/// The dtype and the width of a row of the output.
fn row(inputs: &Inputs) -> anyhow::Result<(Dtype, usize)> {
    Ok(match inputs.entry(&FORM)? {
        None => {
            let [_, _, row] = inputs.shape("cache")?;
            let dtype = if inputs.has("scale") {
                inputs.entry(&OUT_DTYPE)?.unwrap_or(Dtype::Bf16)
            } else {
                inputs.get("cache")?.dtype
            };
            (dtype, row)
        }
        Some(EntryForm::Fp8Ds) => (Dtype::Bf16, 576),
        Some(EntryForm::V4) => (Dtype::Bf16, 512),
    })
}

/// As many rows as what chooses them says.
fn rows(inputs: &Inputs) -> anyhow::Result<Vec<Output>> {
    let (dtype, row) = row(inputs)?;
    let block_size = inputs.block_size("cache", &BLOCK_SIZE)?;
    let shape = gather_shape(inputs, block_size, row, dtype)?;
    Ok(vec![Output::new("out", dtype, &shape)])
}

fn gather(job: &Job<'_>) -> anyhow::Result<()> {
    let inputs = job.inputs();
    let checked = GatherRequest {
        cache: job.view("cache")?,
        block_size: inputs.block_size("cache", &BLOCK_SIZE)?,
        form: match inputs.entry(&FORM)? {
            Some(EntryForm::Fp8Ds) => GatherForm::Fp8Ds,
            Some(EntryForm::V4) => GatherForm::V4,
            None => match job.optional("scale")? {
                Some(scale) => GatherForm::Fp8 { scale },
                None => GatherForm::Raw,
            },
        },
        out: job.view_mut("out")?,
        rows: if inputs.has("slots") {
            GatherRows::Slots {
                slots: job.view("slots")?,
            }
        } else if inputs.has("topk_indices") {
            GatherRows::TopK {
                block_table: job.view("block_table")?,
                indices: job.view("topk_indices")?,
                seqs: job.optional("seqs")?,
            }
        } else if inputs.has("seq_lens") {
            GatherRows::Padded {
                block_table: job.view("block_table")?,
                seq_lens: job.view("seq_lens")?,
                lens: job.optional("lens")?,
            }
        } else {
            GatherRows::Ragged {
                block_table: job.view("block_table")?,
                row_starts: job.view("row_starts")?,
                first_tokens: job.optional("first_tokens")?,
            }
        },
        zero_missing: true,
        check: job.check(),
    }
    .check()?;
    launch!(job, checked, checked.plan(), job.check())
}

/// Shape of the output.
fn gather_shape(
    inputs: &Inputs,
    block_size: usize,
    row: usize,
    dtype: Dtype,
) -> anyhow::Result<Vec<usize>> {
    if inputs.has("slots") {
        let [num_rows] = inputs.shape("slots")?;
        return Ok(vec![num_rows, row]);
    }
    let [num_seqs, width] = inputs.shape("block_table")?;
    if inputs.has("topk_indices") {
        let [num_tokens, topk] = inputs.shape("topk_indices")?;
        return Ok(vec![num_tokens * topk, row]);
    }
    let row_bytes = row.saturating_mul(dtype.size());
    let most_tokens = width.saturating_mul(block_size);
    if inputs.has("seq_lens") {
        let rows = inputs.needed(&ROWS_PER_SEQ)? as usize;
        let bytes = num_seqs.saturating_mul(row_bytes);
        let rows = extent("rows_per_seq", rows, most_tokens, bytes)?;
        return Ok(vec![num_seqs, rows, row]);
    }
    let starts = inputs.get("row_starts")?;
    let [num_starts] = inputs.shape("row_starts")?;
    if starts.dtype != Dtype::I32 || num_starts == 0 {
        // The request will say what it had to be.
        return Ok(vec![0, row]);
    }
    let last = num_starts - 1;
    let (end, name) = (starts.integer(&[last]), format!("`row_starts[{last}]`"));
    ensure!(end >= 0, "{name} is {end}, but it is a number of rows");
    let end = usize::try_from(end)?;
    let end = extent(&name, end, num_seqs.saturating_mul(most_tokens), row_bytes)?;
    Ok(vec![end, row])
}
