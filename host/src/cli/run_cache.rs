//! Cache writes, gathers and copies of blocks on tensors from a file.

use anyhow::{Context, bail};

use super::run_job::{Inputs, Job, Names, run};
use crate::ops::{
    BlockCaches, CacheScales, CacheWriteRequest, CheckMode, CompactReferences, CompactRequest,
    ConcatAndCacheMlaGroupedRequest, ConcatAndCacheMlaRequest, CopyBlocksRequest, GatherForm,
    GatherRequest, GatherRows, MlaCacheForm, RopeAndCacheRequest, RopeQuery, RopeStyle, RopeTable,
    ScaleRule,
};
use crate::reference::HostTensor;
use crate::runtime::Runtime;
use crate::tensor::Dtype;

pub(super) const WRITE: Names = Names {
    needed: &["key", "value", "key_cache", "value_cache", "slot_mapping"],
    optional: &["k_scale", "v_scale", "k_scale_cache", "v_scale_cache"],
};

pub(super) fn write(inputs: &Inputs<'_>, machine: &dyn Runtime) -> anyhow::Result<Vec<HostTensor>> {
    let job = Job::new(machine, inputs, &[])?;
    let checked = write_request(inputs, &job)?.check()?;
    run!(job, checked, checked.plan(), CheckMode::Device)
}

pub(super) const ROPE: Names = Names {
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
};

pub(super) fn rope(inputs: &Inputs<'_>, machine: &dyn Runtime) -> anyhow::Result<Vec<HostTensor>> {
    let style = match inputs.file.text("style") {
        None | Some("neox") => RopeStyle::Neox,
        Some("gptj") => RopeStyle::GptJ,
        Some(other) => bail!("the metadata's style is `{other}`, neither neox nor gptj"),
    };
    let mut outputs = Vec::new();
    if let Ok(query) = inputs.get("query") {
        let dtype = if inputs.has("q_scale") {
            Dtype::F8E4m3
        } else {
            query.dtype
        };
        outputs.push(("query_out", dtype, &query.shape[..]));
    }
    let job = Job::new(machine, inputs, &outputs)?;
    let query = match (job.optional("query")?, job.optional_mut("query_out")?) {
        (Some(query), Some(out)) => Some(RopeQuery {
            query,
            out,
            q_scale: job.optional("q_scale")?,
        }),
        _ => None,
    };
    let checked = RopeAndCacheRequest {
        write: write_request(inputs, &job)?,
        table: RopeTable {
            positions: job.view("positions")?,
            cos_sin: job.view("cos_sin")?,
            style,
        },
        query,
    }
    .check()?;
    run!(job, checked, checked.plan(), CheckMode::Device)
}

fn write_request<'j>(
    inputs: &Inputs<'_>,
    job: &'j Job<'_>,
) -> anyhow::Result<CacheWriteRequest<'j>> {
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
        block_size: inputs.block_size("key_cache")?,
        scales,
        check: CheckMode::Device,
    })
}

pub(super) const MLA_WRITE: Names = Names {
    needed: &["kv_c", "kv_cache", "slot_mapping"],
    optional: &["k_pe", "scale"],
};

pub(super) fn mla_write(
    inputs: &Inputs<'_>,
    machine: &dyn Runtime,
) -> anyhow::Result<Vec<HostTensor>> {
    let rule = match inputs.file.text("scale_rule") {
        None | Some("exact") => ScaleRule::Exact,
        Some("power_of_two") => ScaleRule::PowerOfTwo,
        Some(other) => {
            bail!("the metadata's scale_rule is `{other}`, neither exact nor power_of_two")
        }
    };
    let job = Job::new(machine, inputs, &[])?;
    let form = match (inputs.file.text("form"), job.optional("scale")?) {
        (None, None) => MlaCacheForm::Plain,
        (None, Some(scale)) => MlaCacheForm::Fp8 { scale },
        (Some("fp8_ds_mla"), _) => MlaCacheForm::Fp8Ds { rule },
        (Some("v4"), _) => MlaCacheForm::V4,
        (Some(other), _) => bail!("the metadata's form is `{other}`, neither fp8_ds_mla nor v4"),
    };
    let checked = ConcatAndCacheMlaRequest {
        kv_c: job.view("kv_c")?,
        k_pe: job.optional("k_pe")?,
        kv_cache: job.view_mut("kv_cache")?,
        slot_mapping: job.view("slot_mapping")?,
        block_size: inputs.block_size("kv_cache")?,
        form,
        check: CheckMode::Device,
    }
    .check()?;
    run!(job, checked, checked.plan(), CheckMode::Device)
}

pub(super) const MLA_WRITE_GROUPED: Names = Names {
    needed: &["kv_c", "k_pe", "kv_caches", "slot_mapping"],
    optional: &["scales"],
};

pub(super) fn mla_write_grouped(
    inputs: &Inputs<'_>,
    machine: &dyn Runtime,
) -> anyhow::Result<Vec<HostTensor>> {
    let [_, _, block_size, _] = inputs.shape("kv_caches")?;
    let job = Job::new(machine, inputs, &[])?;
    let kv_caches = job.caches_mut("kv_caches")?;
    let checked = ConcatAndCacheMlaGroupedRequest {
        kv_c: job.view("kv_c")?,
        k_pe: job.view("k_pe")?,
        kv_caches: kv_caches.table()?,
        slot_mapping: job.view("slot_mapping")?,
        block_size,
        scales: job.optional("scales")?,
        check: CheckMode::Device,
    }
    .check()?;
    run!(job, checked, checked.plan(), CheckMode::Device)
}

pub(super) const GATHER: Names = Names {
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
};

pub(super) fn gather(
    inputs: &Inputs<'_>,
    machine: &dyn Runtime,
) -> anyhow::Result<Vec<HostTensor>> {
    let form = inputs.file.text("form");
    let (dtype, row) = match form {
        None if inputs.has("scale") => {
            let [_, _, row] = inputs.shape("cache")?;
            (inputs.out_dtype(Some(Dtype::Bf16))?, row)
        }
        None => {
            let [_, _, row] = inputs.shape("cache")?;
            (inputs.get("cache")?.dtype, row)
        }
        Some("fp8_ds_mla") => (Dtype::Bf16, 576),
        Some("v4") => (Dtype::Bf16, 512),
        Some(other) => bail!("the metadata's form is `{other}`, neither fp8_ds_mla nor v4"),
    };
    let shape = gather_shape(inputs, row)?;
    let job = Job::new(machine, inputs, &[("out", dtype, &shape)])?;
    let checked = GatherRequest {
        cache: job.view("cache")?,
        block_size: inputs.block_size("cache")?,
        form: match (form, job.optional("scale")?) {
            (Some("fp8_ds_mla"), _) => GatherForm::Fp8Ds,
            (Some(_), _) => GatherForm::V4,
            (None, Some(scale)) => GatherForm::Fp8 { scale },
            (None, None) => GatherForm::Raw,
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
        check: CheckMode::Device,
    }
    .check()?;
    run!(job, checked, checked.plan(), CheckMode::Device)
}

/// Shape of a gather's output: as many rows as what chooses them says.
fn gather_shape(inputs: &Inputs<'_>, row: usize) -> anyhow::Result<Vec<usize>> {
    if inputs.has("slots") {
        let [num_rows] = inputs.shape("slots")?;
        return Ok(vec![num_rows, row]);
    }
    if inputs.has("topk_indices") {
        let [num_tokens, topk] = inputs.shape("topk_indices")?;
        let num_rows = num_tokens.checked_mul(topk).context("too many indices")?;
        return Ok(vec![num_rows, row]);
    }
    if inputs.has("seq_lens") {
        let [num_seqs] = inputs.shape("seq_lens")?;
        return Ok(vec![num_seqs, inputs.file.needed("rows_per_seq")?, row]);
    }
    let starts = inputs.get("row_starts")?;
    let [num_starts] = inputs.shape("row_starts")?;
    let is_read = starts.dtype == Dtype::I32 && num_starts > 0;
    let end = if is_read {
        starts.integer(&[num_starts - 1])
    } else {
        0
    };
    Ok(vec![usize::try_from(end).unwrap_or(0), row])
}

pub(super) const COPY_BLOCKS: Names = Names {
    needed: &["pairs"],
    optional: &["target", "source", "targets", "sources"],
};

pub(super) fn copy_blocks(
    inputs: &Inputs<'_>,
    machine: &dyn Runtime,
) -> anyhow::Result<Vec<HostTensor>> {
    let job = Job::new(machine, inputs, &[])?;
    if inputs.has("targets") {
        let sources = job.optional_caches("sources")?;
        let targets = job.caches_mut("targets")?;
        let target = targets.table()?;
        let source = match &sources {
            Some(sources) => sources.table()?,
            None => target,
        };
        return copy(&job, BlockCaches::Tables { source, target });
    }
    let source = job.optional("source")?;
    let target = job.view_mut("target")?;
    let caches = match source {
        Some(source) => BlockCaches::Between { source, target },
        None => BlockCaches::Within(target),
    };
    copy(&job, caches)
}

fn copy(job: &Job<'_>, caches: BlockCaches<'_>) -> anyhow::Result<Vec<HostTensor>> {
    let checked = CopyBlocksRequest {
        caches,
        pairs: job.view("pairs")?,
        check: CheckMode::Device,
    }
    .check()?;
    run!(job, checked, checked.plan(), CheckMode::Device)
}

pub(super) const COMPACT: Names = Names {
    needed: &["cache"],
    optional: &["block_table", "seq_lens", "slots"],
};

pub(super) fn compact(
    inputs: &Inputs<'_>,
    machine: &dyn Runtime,
) -> anyhow::Result<Vec<HostTensor>> {
    let cache = inputs.get("cache")?;
    let mut compact = cache.shape.clone();
    *compact.first_mut().context("`cache` has no dimensions")? =
        inputs.file.needed("num_compact_blocks")?;
    let by_slots = inputs.has("slots");
    let names = inputs.get(if by_slots { "slots" } else { "block_table" })?;
    let job = Job::new(
        machine,
        inputs,
        &[
            ("compact", cache.dtype, &compact),
            ("renamed", Dtype::I32, &names.shape),
            ("num_wanted", Dtype::I32, &[1]),
        ],
    )?;
    let checked = CompactRequest {
        caches: vec![(job.view("cache")?, job.view_mut("compact")?)],
        block_size: inputs.block_size("cache")?,
        references: if by_slots {
            CompactReferences::Slots {
                slots: job.view("slots")?,
                renamed: job.view_mut("renamed")?,
            }
        } else {
            CompactReferences::Tables {
                block_table: job.view("block_table")?,
                seq_lens: job.view("seq_lens")?,
                renamed: job.view_mut("renamed")?,
            }
        },
        num_wanted: job.view_mut("num_wanted")?,
    }
    .check()?;
    run!(job, checked, checked.plan(), CheckMode::Off)
}
