//! Attention on tensors from a file.

use anyhow::bail;

use crate::cases::named::{BLOCK_SIZE, Inputs, Job, Key, Names, Operation, Output, extent, launch};
use crate::ops::{
    AlibiForm, AlibiSlopes, CheckMode, DecodeMlaEntryRequest, DecodeMlaRequest, DecodeOptions,
    DecodeRequest, EntryForm, EntryTokens, KvScales, MlaScales, ScoreMods, UnifiedOptions,
    UnifiedRequest, WindowTokens,
};
use crate::plan::SplitPolicy;
use crate::tensor::Dtype;

static SOFTMAX_SCALE: Key<f32> = Key::number("softmax_scale");
pub(super) static OUT_DTYPE: Key<Dtype> = Key::words(
    "out_dtype",
    &[
        ("bf16", Dtype::Bf16),
        ("f16", Dtype::F16),
        ("f32", Dtype::F32),
        ("fp8_e4m3", Dtype::F8E4m3),
    ],
);
static MAX_SEQ_LEN: Key<u32> = Key::count("max_seq_len");
static SPLIT_POLICY: Key<SplitPolicy> = Key::words(
    "split_policy",
    &[
        ("auto", SplitPolicy::Auto),
        ("invariant", SplitPolicy::BatchInvariant),
        ("scheduled", SplitPolicy::Scheduled),
    ],
)
.or("tokens per split", |text| {
    text.parse().ok().map(SplitPolicy::Fixed)
});
static SLIDING_WINDOW: Key<u32> = Key::count("sliding_window");
static SOFTCAP: Key<f32> = Key::number("softcap");
static CAUSAL: Key<bool> = Key::truth("causal");
static NUM_DECODES: Key<u32> = Key::count("num_decodes");
static MAX_QUERY_LEN: Key<u32> = Key::count("max_query_len");
static F32_SCORES: Key<bool> = Key::truth("f32_scores");
static KV_LORA_RANK: Key<u32> = Key::count("kv_lora_rank");
pub(super) static FORM: Key<EntryForm> = Key::words(
    "form",
    &[("fp8_ds_mla", EntryForm::Fp8Ds), ("v4", EntryForm::V4)],
);
static WINDOW_BLOCK_SIZE: Key<u32> = Key::count("window_block_size");

/// What `run` runs, in the order of its help.
pub(super) static OPERATIONS: &[&Operation] = &[&DECODE, &UNIFIED, &DECODE_MLA, &DECODE_MLA_ENTRY];

static DECODE: Operation = Operation {
    name: "decode",
    about: "one query token a sequence attends to a paged cache",
    tensors: Names {
        needed: &[
            "query",
            "key_cache",
            "value_cache",
            "block_table",
            "seq_lens",
        ],
        optional: &["q_scale", "k_scale", "v_scale", "alibi_slopes", "sinks"],
    },
    metadata: Names {
        needed: &[&SOFTMAX_SCALE],
        optional: &[
            &OUT_DTYPE,
            &MAX_SEQ_LEN,
            &SPLIT_POLICY,
            &SLIDING_WINDOW,
            &SOFTCAP,
        ],
    },
    choices: &[],
    writes: "out, lse",
    outputs: head_rows,
    launch: decode,
};

fn decode(job: &Job<'_>) -> anyhow::Result<()> {
    let inputs = job.inputs();
    let softmax_scale = inputs.needed(&SOFTMAX_SCALE)?;
    let checked = DecodeRequest {
        query: job.view("query")?,
        key_cache: job.view("key_cache")?,
        value_cache: job.view("value_cache")?,
        block_table: job.view("block_table")?,
        seq_lens: job.view("seq_lens")?,
        out: job.view_mut("out")?,
        lse: Some(job.view_mut("lse")?),
        softmax_scale,
        scales: scales(job)?,
        options: DecodeOptions {
            score_mods: score_mods(inputs, job)?,
            ..options(inputs, job.check())?
        },
    }
    .check()?;
    launch!(
        job,
        checked,
        checked.plan(&job.machine().device())?,
        job.check()
    )
}

static UNIFIED: Operation = Operation {
    name: "unified",
    about: "any number of query tokens a sequence attend to a paged cache",
    tensors: Names {
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
    },
    metadata: Names {
        needed: &[&SOFTMAX_SCALE],
        optional: &[
            &OUT_DTYPE,
            &MAX_SEQ_LEN,
            &SPLIT_POLICY,
            &SLIDING_WINDOW,
            &SOFTCAP,
            &CAUSAL,
            &NUM_DECODES,
            &MAX_QUERY_LEN,
            &F32_SCORES,
        ],
    },
    choices: &[],
    writes: "out, lse",
    outputs: head_rows,
    launch: unified,
};

fn unified(job: &Job<'_>) -> anyhow::Result<()> {
    let inputs = job.inputs();
    let softmax_scale = inputs.needed(&SOFTMAX_SCALE)?;
    let options = UnifiedOptions {
        causal: inputs.entry(&CAUSAL)?.unwrap_or(true),
        causal_flags: job.optional("causal_flags")?,
        score_mods: score_mods(inputs, job)?,
        output_scale: job.optional("output_scale")?,
        num_decodes: inputs.entry(&NUM_DECODES)?.unwrap_or(0),
        max_query_len: inputs.entry(&MAX_QUERY_LEN)?,
        max_seq_len: inputs.entry(&MAX_SEQ_LEN)?,
        f32_scores: inputs.entry(&F32_SCORES)?.unwrap_or(false),
        split_policy: split_policy(inputs)?,
        check: job.check(),
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
        scales: scales(job)?,
        options,
    }
    .check()?;
    launch!(
        job,
        checked,
        checked.plan(&job.machine().device())?,
        job.check()
    )
}

static DECODE_MLA: Operation = Operation {
    name: "decode_mla",
    about: "query tokens attend to a paged latent (MLA) cache",
    tensors: Names {
        needed: &["query", "cache", "block_table", "seq_lens"],
        optional: &["q_scale", "k_scale"],
    },
    metadata: Names {
        needed: &[&KV_LORA_RANK, &SOFTMAX_SCALE],
        optional: &[&OUT_DTYPE, &MAX_SEQ_LEN, &SPLIT_POLICY],
    },
    choices: &[],
    writes: "out, lse",
    outputs: latent_rows,
    launch: decode_mla,
};

fn decode_mla(job: &Job<'_>) -> anyhow::Result<()> {
    let inputs = job.inputs();
    let softmax_scale = inputs.needed(&SOFTMAX_SCALE)?;
    let scales = match job.optional("k_scale")? {
        Some(k_scale) => Some(MlaScales {
            q_scale: job.optional("q_scale")?,
            k_scale,
        }),
        None => None,
    };
    let checked = DecodeMlaRequest {
        query: job.view("query")?,
        cache: job.view("cache")?,
        block_table: job.view("block_table")?,
        seq_lens: job.view("seq_lens")?,
        out: job.view_mut("out")?,
        lse: Some(job.view_mut("lse")?),
        softmax_scale,
        scales,
        options: options(inputs, job.check())?,
    }
    .check()?;
    launch!(
        job,
        checked,
        checked.plan(&job.machine().device())?,
        job.check()
    )
}

static DECODE_MLA_ENTRY: Operation = Operation {
    name: "decode_mla_entry",
    about: "query tokens attend to a paged latent cache of FP8 entries",
    tensors: Names {
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
    },
    metadata: Names {
        needed: &[&FORM, &SOFTMAX_SCALE],
        optional: &[&MAX_SEQ_LEN, &SPLIT_POLICY, &BLOCK_SIZE, &WINDOW_BLOCK_SIZE],
    },
    choices: &[
        "all tokens: block_table, seq_lens, [max_seq_len]",
        "listed tokens: topk_indices, [topk_length, block_table]",
        "listed tokens of a second cache, too: window_cache, window_indices, [window_length, window_block_size]",
    ],
    writes: "out, lse",
    outputs: |inputs| rows::<4>(inputs, Dtype::Bf16, 512),
    launch: decode_mla_entry,
};

fn decode_mla_entry(job: &Job<'_>) -> anyhow::Result<()> {
    let inputs = job.inputs();
    let softmax_scale = inputs.needed(&SOFTMAX_SCALE)?;
    let form = inputs.needed(&FORM)?;
    let tokens = if inputs.has("topk_indices") {
        let window = if inputs.has("window_cache") {
            Some(WindowTokens {
                cache: job.view("window_cache")?,
                block_size: inputs.block_size("window_cache", &WINDOW_BLOCK_SIZE)?,
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
    let checked = DecodeMlaEntryRequest {
        query: job.view("query")?,
        form,
        cache: job.view("cache")?,
        block_size: inputs.block_size("cache", &BLOCK_SIZE)?,
        tokens,
        sinks: job.optional("sinks")?,
        out: job.view_mut("out")?,
        lse: Some(job.view_mut("lse")?),
        softmax_scale,
        options: options(inputs, job.check())?,
    }
    .check()?;
    launch!(
        job,
        checked,
        checked.plan(&job.machine().device())?,
        job.check()
    )
}

/// An output and an lse for each row of queries `[num_tokens, num_query_heads, head_size]`.
fn head_rows(inputs: &Inputs) -> anyhow::Result<Vec<Output>> {
    let [_, _, _, head_size_v] = inputs.shape("value_cache")?;
    rows::<3>(inputs, out_dtype(inputs)?, head_size_v)
}

/// The same of queries over latents.
fn latent_rows(inputs: &Inputs) -> anyhow::Result<Vec<Output>> {
    let head_size_v = inputs.needed(&KV_LORA_RANK)? as usize;
    let [num_seqs, query_len, num_query_heads, _] = inputs.shape("query")?;
    let [_, _, head_size] = inputs.shape("cache")?;
    let num_rows = num_seqs * query_len * num_query_heads;
    let head_size_v = extent("kv_lora_rank", head_size_v, head_size, 2 * num_rows)?;
    rows::<4>(inputs, out_dtype(inputs)?, head_size_v)
}

/// An output and an lse for each row of a query of `RANK` dimensions.
fn rows<const RANK: usize>(
    inputs: &Inputs,
    out_dtype: Dtype,
    head_size_v: usize,
) -> anyhow::Result<Vec<Output>> {
    let mut out: [usize; RANK] = inputs.shape("query")?;
    let rows = out;
    out[RANK - 1] = head_size_v;
    Ok(vec![
        Output::new("out", out_dtype, &out),
        Output::new("lse", Dtype::F32, &rows[..RANK - 1]),
    ])
}

fn score_mods<'j>(inputs: &Inputs, job: &'j Job<'_>) -> anyhow::Result<ScoreMods<'j>> {
    let form = AlibiForm::Linear;
    let slopes = job.optional("alibi_slopes")?;
    Ok(ScoreMods {
        sliding_window: inputs.entry(&SLIDING_WINDOW)?,
        softcap: inputs.entry(&SOFTCAP)?,
        alibi: slopes.map(|slopes| AlibiSlopes { slopes, form }),
        sinks: job.optional("sinks")?,
    })
}

fn options(inputs: &Inputs, check: CheckMode) -> anyhow::Result<DecodeOptions<'static>> {
    Ok(DecodeOptions {
        max_seq_len: inputs.entry(&MAX_SEQ_LEN)?,
        split_policy: split_policy(inputs)?,
        check,
        ..DecodeOptions::default()
    })
}

/// The output's dtype: the query's, unless the metadata says another.
fn out_dtype(inputs: &Inputs) -> anyhow::Result<Dtype> {
    Ok(
        match (inputs.entry(&OUT_DTYPE)?, inputs.get("query")?.dtype) {
            (Some(dtype), _) => dtype,
            (None, query) if query.size() > 1 => query,
            (None, query) => bail!("for a query of {query} the metadata must have out_dtype"),
        },
    )
}

fn split_policy(inputs: &Inputs) -> anyhow::Result<SplitPolicy> {
    Ok(inputs.entry(&SPLIT_POLICY)?.unwrap_or_default())
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
