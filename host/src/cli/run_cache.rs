//! Cache writes on tensors from a file.

use super::run_attention::FORM;
use crate::cases::named::{BLOCK_SIZE, Inputs, Job, Key, Names, Operation, Output, launch};
use crate::ops::{
    CacheScales, CacheWriteRequest, ConcatAndCacheMlaGroupedRequest, ConcatAndCacheMlaRequest,
    EntryForm, MlaCacheForm, RopeAndCacheRequest, RopeQuery, RopeStyle, RopeTable, ScaleRule,
};
use crate::tensor::Dtype;

static STYLE: Key<RopeStyle> = Key::words(
    "style",
    &[("neox", RopeStyle::Neox), ("gptj", RopeStyle::GptJ)],
);
static SCALE_RULE: Key<ScaleRule> = Key::words(
    "scale_rule",
    &[
        ("exact", ScaleRule::Exact),
        ("power_of_two", ScaleRule::PowerOfTwo),
    ],
);

/// What `run` runs, in the order of its help.
pub(super) static OPERATIONS: &[&Operation] = &[&WRITE, &ROPE, &MLA_WRITE, &MLA_WRITE_GROUPED];

static WRITE: Operation = Operation {
    name: "reshape_and_cache_flash",
    about: "new keys and values into a paged cache",
    tensors: Names {
        needed: &["key", "value", "key_cache", "value_cache", "slot_mapping"],
        optional: &["k_scale", "v_scale", "k_scale_cache", "v_scale_cache"],
    },
    metadata: Names {
        needed: &[],
        optional: &[&BLOCK_SIZE],
    },
    choices: &[
        "given scales: k_scale, v_scale",
        "a scale per token and head, which are written: k_scale_cache, v_scale_cache",
    ],
    writes: "key_cache, value_cache, [k_scale_cache, v_scale_cache]",
    outputs: Output::none,
    launch: write,
};

fn write(job: &Job<'_>) -> anyhow::Result<()> {
    let checked = write_request(job)?.check()?;
    launch!(job, checked, checked.plan(), job.check())
}

static ROPE: Operation = Operation {
    name: "rope_and_cache",
    about: "the same, after keys and queries are rotated",
    tensors: Names {
        needed: &[
            "key",
            "value",
            "key_cache",
            "value_cache",
            "slot_mapping",
            "positions",
            "cos_sin",
        ],
        optional: &["k_scale", "v_scale", "query", "q_scale"],
    },
    metadata: Names {
        needed: &[],
        optional: &[&STYLE, &BLOCK_SIZE],
    },
    choices: &["queries, which become fp8_e4m3 if they have a scale: query, [q_scale]"],
    writes: "key_cache, value_cache, [query_out]",
    outputs: rotated_queries,
    launch: rope,
};

/// Rotated queries, if there are queries.
fn rotated_queries(inputs: &Inputs) -> anyhow::Result<Vec<Output>> {
    let Ok(query) = inputs.get("query") else {
        return Ok(Vec::new());
    };
    let dtype = if inputs.has("q_scale") {
        Dtype::F8E4m3
    } else {
        query.dtype
    };
    Ok(vec![Output::new("query_out", dtype, &query.shape)])
}

fn rope(job: &Job<'_>) -> anyhow::Result<()> {
    let inputs = job.inputs();
    let style = inputs.entry(&STYLE)?.unwrap_or(RopeStyle::Neox);
    let query = match (job.optional("query")?, job.optional_mut("query_out")?) {
        (Some(query), Some(out)) => Some(RopeQuery {
            query,
            out,
            q_scale: job.optional("q_scale")?,
        }),
        _ => None,
    };
    let checked = RopeAndCacheRequest {
        write: write_request(job)?,
        table: RopeTable {
            positions: job.view("positions")?,
            cos_sin: job.view("cos_sin")?,
            style,
        },
        query,
    }
    .check()?;
    launch!(job, checked, checked.plan(), job.check())
}

fn write_request<'j>(job: &'j Job<'_>) -> anyhow::Result<CacheWriteRequest<'j>> {
    let inputs = job.inputs();
    let scales = if inputs.has("k_scale_cache") {
        CacheScales::PerTokenHead {
            k_scale: job.view_mut("k_scale_cache")?,
            v_scale: job.view_mut("v_scale_cache")?,
        }
    } else if inputs.has("k_scale") {
        CacheScales::Given {
            k_scale: job.view("k_scale")?,
            v_scale: job.view("v_scale")?,
        }
    } else {
        CacheScales::None
    };
    Ok(CacheWriteRequest {
        key: job.view("key")?,
        value: job.view("value")?,
        key_cache: job.view_mut("key_cache")?,
        value_cache: job.view_mut("value_cache")?,
        slot_mapping: job.view("slot_mapping")?,
        block_size: inputs.block_size("key_cache", &BLOCK_SIZE)?,
        scales,
        check: job.check(),
    })
}

static MLA_WRITE: Operation = Operation {
    name: "concat_and_cache_mla",
    about: "new latents and rotary parts into a paged MLA cache",
    tensors: Names {
        needed: &["kv_c", "kv_cache", "slot_mapping"],
        optional: &["k_pe", "scale"],
    },
    metadata: Names {
        needed: &[],
        optional: &[&FORM, &SCALE_RULE, &BLOCK_SIZE],
    },
    choices: &[
        "an FP8 cache with one scale: scale",
        "entries with scales of their own: form, [scale_rule]",
    ],
    writes: "kv_cache",
    outputs: Output::none,
    launch: mla_write,
};

fn mla_write(job: &Job<'_>) -> anyhow::Result<()> {
    let inputs = job.inputs();
    let form = match inputs.entry(&FORM)? {
        None => match job.optional("scale")? {
            None => MlaCacheForm::Plain,
            Some(scale) => MlaCacheForm::Fp8 { scale },
        },
        Some(EntryForm::Fp8Ds) => MlaCacheForm::Fp8Ds {
            rule: inputs.entry(&SCALE_RULE)?.unwrap_or(ScaleRule::Exact),
        },
        Some(EntryForm::V4) => MlaCacheForm::V4,
    };
    let checked = ConcatAndCacheMlaRequest {
        kv_c: job.view("kv_c")?,
        k_pe: job.optional("k_pe")?,
        kv_cache: job.view_mut("kv_cache")?,
        slot_mapping: job.view("slot_mapping")?,
        block_size: inputs.block_size("kv_cache", &BLOCK_SIZE)?,
        form,
        check: job.check(),
    }
    .check()?;
    launch!(job, checked, checked.plan(), job.check())
}

static MLA_WRITE_GROUPED: Operation = Operation {
    name: "concat_and_cache_mla_grouped",
    about: "the same for many layers, with caches [num_layers, num_blocks, block_size, entry]",
    tensors: Names {
        needed: &["kv_c", "k_pe", "kv_caches", "slot_mapping"],
        optional: &["scales"],
    },
    metadata: Names::NONE,
    choices: &[],
    writes: "kv_caches",
    outputs: Output::none,
    launch: mla_write_grouped,
};

fn mla_write_grouped(job: &Job<'_>) -> anyhow::Result<()> {
    let inputs = job.inputs();
    let [_, _, block_size, _] = inputs.shape("kv_caches")?;
    let kv_caches = job.caches_mut("kv_caches")?;
    let checked = ConcatAndCacheMlaGroupedRequest {
        kv_c: job.view("kv_c")?,
        k_pe: job.view("k_pe")?,
        kv_caches: kv_caches.table()?,
        slot_mapping: job.view("slot_mapping")?,
        block_size,
        scales: job.optional("scales")?,
        check: job.check(),
    }
    .check()?;
    launch!(job, checked, checked.plan(), job.check())
}
