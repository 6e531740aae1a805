//! Attention on tensors from a file.

use anyhow::bail;

use super::run_job::{Inputs, Job, Names, run};
use crate::ops::{
    AlibiForm, AlibiSlopes, CheckMode, DecodeMlaEntryRequest, DecodeMlaRequest, DecodeOptions,
    DecodeRequest, EntryForm, EntryTokens, KvScales, MlaScales, UnifiedOptions, UnifiedRequest,
    WindowTokens,
};
use crate::reference::HostTensor;
use crate::runtime::Runtime;
use crate::tensor::Dtype;

pub(super) const DECODE: Names = Names {
    needed: &[
        "query",
        "key_cache",
        "value_cache",
        "block_table",
        "seq_lens",
    ],
    optional: &["q_scale", "k_scale", "v_scale", "alibi_slopes", "sinks"],
};

pub(super) fn decode(
    inputs: &Inputs<'_>,
    machine: &dyn Runtime,
) -> anyhow::Result<Vec<HostTensor>> {
    let softmax_scale = inputs.file.needed("softmax_scale")?;
    let [_, _, _, head_size_v] = inputs.shape("value_cache")?;
    let job = job::<3>(inputs, machine, out_dtype(inputs)?, head_size_v)?;
    let checked = DecodeRequest {
        query: job.view("query")?,
        key_cache: job.view("key_cache")?,
        value_cache: job.view("value_cache")?,
        block_table: job.view("block_table")?,
        seq_lens: job.view("seq_lens")?,
        out: job.view_mut("out")?,
        lse: Some(job.view_mut("lse")?),
        softmax_scale,
        scales: scales(&job)?,
        options: DecodeOptions {
            sliding_window: inputs.file.scalar("sliding_window")?,
            softcap: inputs.file.scalar("softcap")?,
            alibi: alibi(&job)?,
            sinks: job.optional("sinks")?,
            ..options(inputs, CheckMode::Device)?
        },
    }
    .check()?;
    run!(
        job,
        checked,
        checked.plan(&machine.device())?,
        CheckMode::Device
    )
}

pub(super) const UNIFIED: Names = Names {
    needed: &[
        "query",
        "key_cache",
        "value_cache",
        "block_table",
        "query_start_loc",
        "seq_lens",
    ],
    optional: &[
        "q_scale",
        "k_scale",
        "v_scale",
        "alibi_slopes",
        "sinks",
        "causal_flags",
        "output_scale",
    ],
};

pub(super) fn unified(
    inputs: &Inputs<'_>,
    machine: &dyn Runtime,
) -> anyhow::Result<Vec<HostTensor>> {
    let file = inputs.file;
    let softmax_scale = file.needed("softmax_scale")?;
    let [_, _, _, head_size_v] = inputs.shape("value_cache")?;
    let job = job::<3>(inputs, machine, out_dtype(inputs)?, head_size_v)?;
    let options = UnifiedOptions {
        causal: file.scalar("causal")?.unwrap_or(true),
        causal_flags: job.optional("causal_flags")?,
        sliding_window: file.scalar("sliding_window")?,
        softcap: file.scalar("softcap")?,
        alibi: alibi(&job)?,
        sinks: job.optional("sinks")?,
        output_scale: job.optional("output_scale")?,
        num_decodes: file.scalar("num_decodes")?.unwrap_or(0),
        max_query_len: file.scalar("max_query_len")?,
        max_seq_len: file.scalar("max_seq_len")?,
        f32_scores: file.scalar("f32_scores")?.unwrap_or(false),
        split_policy: inputs.split_policy()?,
        check: CheckMode::Device,
    };
    let checked = UnifiedRequest {
        query: job.view("query")?,
        key_cache: job.view("key_cache")?,
        value_cache: job.view("value_cache")?,
        block_table: job.view("block_table")?,
        query_start_loc: job.view("query_start_loc")?,
        seq_lens: job.view("seq_lens")?,
        out: job.view_mut("out")?,
        lse: Some(job.view_mut("lse")?),
        softmax_scale,
        scales: scales(&job)?,
        options,
    }
    .check()?;
    run!(
        job,
        checked,
        checked.plan(&machine.device())?,
        CheckMode::Device
    )
}

pub(super) const DECODE_MLA: Names = Names {
    needed: &["query", "cache", "block_table", "seq_lens"],
    optional: &["q_scale", "k_scale"],
};

pub(super) fn decode_mla(
    inputs: &Inputs<'_>,
    machine: &dyn Runtime,
) -> anyhow::Result<Vec<HostTensor>> {
    let softmax_scale = inputs.file.needed("softmax_scale")?;
    let head_size_v = inputs.file.needed("kv_lora_rank")?;
    let job = job::<4>(inputs, machine, out_dtype(inputs)?, head_size_v)?;
    let q_scale = job.optional("q_scale")?;
    let checked = DecodeMlaRequest {
        query: job.view("query")?,
        cache: job.view("cache")?,
        block_table: job.view("block_table")?,
        seq_lens: job.view("seq_lens")?,
        out: job.view_mut("out")?,
        lse: Some(job.view_mut("lse")?),
        softmax_scale,
        scales: job
            .optional("k_scale")?
            .map(|k_scale| MlaScales { q_scale, k_scale }),
        options: options(inputs, CheckMode::Device)?,
    }
    .check()?;
    run!(
        job,
        checked,
        checked.plan(&machine.device())?,
        CheckMode::Device
    )
}

pub(super) const DECODE_MLA_ENTRY: Names = Names {
    needed: &["query", "cache"],
    optional: &[
        "sinks",
        "block_table",
        "seq_lens",
        "topk_indices",
        "topk_length",
        "window_cache",
        "window_indices",
        "window_length",
    ],
};

pub(super) fn decode_mla_entry(
    inputs: &Inputs<'_>,
    machine: &dyn Runtime,
) -> anyhow::Result<Vec<HostTensor>> {
    let file = inputs.file;
    let softmax_scale = file.needed("softmax_scale")?;
    let form = match file.text("form") {
        Some("fp8_ds_mla") => EntryForm::Fp8Ds,
        Some("v4") => EntryForm::V4,
        _ => bail!("the metadata must have form, fp8_ds_mla or v4"),
    };
    let job = job::<4>(inputs, machine, Dtype::Bf16, 512)?;
    let by_list = inputs.has("topk_indices");
    let tokens = if by_list {
        let window = if inputs.has("window_cache") {
            Some(WindowTokens {
                cache: job.view("window_cache")?,
                block_size: match file.scalar("window_block_size")? {
                    Some(tokens) => tokens,
                    None => inputs.block_size("window_cache")?,
                },
                indices: job.view("window_indices")?,
                length: job.optional("window_length")?,
            })
        } else {
            None
        };
        EntryTokens::TopK {
            topk_indices: job.view("topk_indices")?,
            topk_length: job.optional("topk_length")?,
            block_table: job.optional("block_table")?,
            window,
        }
    } else {
        EntryTokens::All {
            block_table: job.view("block_table")?,
            seq_lens: job.view("seq_lens")?,
        }
    };
    // Bad indices of lists are skipped.
    let check = if by_list {
        CheckMode::Off
    } else {
        CheckMode::Device
    };
    let checked = DecodeMlaEntryRequest {
        query: job.view("query")?,
        form,
        cache: job.view("cache")?,
        block_size: inputs.block_size("cache")?,
        tokens,
        sinks: job.optional("sinks")?,
        out: job.view_mut("out")?,
        lse: Some(job.view_mut("lse")?),
        softmax_scale,
        options: options(inputs, check)?,
    }
    .check()?;
    run!(job, checked, checked.plan(&machine.device())?, check)
}

/// The file's tensors, and an output and an lse for each row of a query of `RANK` dimensions.
fn job<'m, const RANK: usize>(
    inputs: &Inputs<'_>,
    machine: &'m dyn Runtime,
    out_dtype: Dtype,
    head_size_v: usize,
) -> anyhow::Result<Job<'m>> {
    let mut out: [usize; RANK] = inputs.shape("query")?;
    let rows = out;
    out[RANK - 1] = head_size_v;
    let outputs = [
        ("out", out_dtype, &out[..]),
        ("lse", Dtype::F32, &rows[..RANK - 1]),
    ];
    Job::new(machine, inputs, &outputs)
}

fn alibi<'j>(job: &'j Job<'_>) -> anyhow::Result<Option<AlibiSlopes<'j>>> {
    let form = AlibiForm::Linear;
    let slopes = job.optional("alibi_slopes")?;
    Ok(slopes.map(|slopes| AlibiSlopes { slopes, form }))
}

fn options(inputs: &Inputs<'_>, check: CheckMode) -> anyhow::Result<DecodeOptions<'static>> {
    Ok(DecodeOptions {
        max_seq_len: inputs.file.scalar("max_seq_len")?,
        split_policy: inputs.split_policy()?,
        check,
        ..DecodeOptions::default()
    })
}

/// The output's dtype: the query's, unless the metadata says another.
fn out_dtype(inputs: &Inputs<'_>) -> anyhow::Result<Dtype> {
    let dtype = inputs.get("query")?.dtype;
    inputs.out_dtype(Some(dtype).filter(|dtype| dtype.size() > 1))
}

fn scales<'j>(job: &'j Job<'_>) -> anyhow::Result<Option<KvScales<'j>>> {
    let names = ["q_scale", "k_scale", "v_scale"].map(|name| job.optional(name));
    let [q_scale, k_scale, v_scale] = names;
    Ok(match (q_scale?, k_scale?, v_scale?) {
        (q_scale, Some(k_scale), Some(v_scale)) => Some(KvScales {
            q_scale,
            k_scale,
            v_scale,
        }),
        (None, None, None) => None,
        _ => bail!("scales come together: k_scale, v_scale, and q_scale for an FP8 query"),
    })
}
