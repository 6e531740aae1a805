//! What an attention request over a paged cache has to get right about the cache.

use gpu_kernels::kernels::check;
use gpu_kernels::kv::CacheDtype;
use gpu_kernels::params::{CheckFault, ScaleList, TokenScaleList};

use crate::error::{RequestError, Result};
use crate::ops::checks::{Named, count, named, slot_stride_fits};
use crate::ops::device_check::{scale_list, token_scale_list};
use crate::tensor::{Dtype, TensorView};

/// What stored values were divided by: real value = stored × scale. The scales are read on the device at
/// each launch, so they may change after a graph was captured.
#[derive(Clone, Copy, Debug)]
pub struct KvScales<'a> {
    /// `[1]`, f32: of an fp8_e4m3 query, and only of that.
    pub q_scale: Option<TensorView<'a>>,
    /// f32: `[1]`, `[num_kv_heads]`, or one for every token and head, `[num_blocks, block_size,
    /// num_kv_heads]` with any strides, so that scales may lie in a tensor of their own or beside the values.
    pub k_scale: TensorView<'a>,
    /// As `k_scale`, and of the same kind.
    pub v_scale: TensorView<'a>,
}

/// A paged cache whose tensors agree with each other.
#[derive(Clone, Copy, Debug)]
pub(super) struct PagedCache {
    pub(super) format: CacheDtype,
    pub(super) num_blocks: usize,
    pub(super) block_size: usize,
    pub(super) num_kv_heads: usize,
    pub(super) head_size_v: usize,
}

impl PagedCache {
    /// Checks the tensors for a query of `query_dtype` with heads of `head_size` values.
    pub(super) fn check(
        key_cache: &TensorView<'_>,
        value_cache: &TensorView<'_>,
        scales: Option<&KvScales<'_>>,
        query_dtype: Dtype,
        head_size: usize,
    ) -> Result<Self> {
        let keys = named("key_cache", key_cache);
        let dtype = match query_dtype {
            Dtype::F8E4m3 => keys.dtype(&[Dtype::F8E4m3, Dtype::F8E5m2, Dtype::I8])?,
            _ => keys.dtype(&[query_dtype, Dtype::F8E4m3, Dtype::F8E5m2, Dtype::I8])?,
        };
        let form = "[num_blocks, block_size, num_kv_heads, head_size]";
        let [num_blocks, block_size, num_kv_heads, key_size] = keys.rank(form)?;
        if block_size == 0 || block_size % 8 != 0 {
            return Err(RequestError::Value {
                name: "block_size",
                expected: "a multiple of 8, at least 8".into(),
                got: block_size.to_string(),
            }
            .into());
        }
        if key_size != head_size {
            keys.shape(form, &[num_blocks, block_size, num_kv_heads, head_size])?;
        }
        let placed = |tensor: Named<'_, '_>| -> Result<()> {
            tensor.strides(16 / dtype.size())?;
            slot_stride_fits(tensor.name(), tensor.view)?;
            Ok(tensor.aligned(16)?)
        };
        placed(keys)?;
        let values = named("value_cache", value_cache);
        values.dtype(&[dtype])?;
        let form = "[num_blocks, block_size, num_kv_heads, head_size_v]";
        let [_, _, _, head_size_v] = values.rank(form)?;
        values.shape(form, &[num_blocks, block_size, num_kv_heads, head_size_v])?;
        placed(values)?;
        let shape = [num_blocks, block_size, num_kv_heads];
        let token_scales = check_scales(scales, query_dtype, dtype, shape)?;
        Ok(Self {
            format: match dtype {
                Dtype::F8E4m3 if token_scales => CacheDtype::E4m3PerToken,
                Dtype::F8E4m3 => CacheDtype::E4m3,
                Dtype::F8E5m2 => CacheDtype::E5m2,
                Dtype::I8 => CacheDtype::I8PerToken,
                Dtype::F16 => CacheDtype::F16,
                _ => CacheDtype::Bf16,
            },
            num_blocks,
            block_size,
            num_kv_heads,
            head_size_v,
        })
    }

    /// Bytes per value.
    pub(super) fn value_bytes(&self) -> u32 {
        match self.format {
            CacheDtype::F16 | CacheDtype::Bf16 => 2,
            _ => 1,
        }
    }

    /// Whether every token and head has scales of its own.
    pub(super) fn token_scales(&self) -> bool {
        matches!(
            self.format,
            CacheDtype::E4m3PerToken | CacheDtype::I8PerToken
        )
    }
}

/// The most tokens of a sequence: what the block table can name, or the bound that the host knows.
pub(super) fn max_seq_len(
    block_table: &TensorView<'_>,
    num_seqs: usize,
    block_size: usize,
    bound: Option<u32>,
) -> Result<u32> {
    let form = "[num_seqs, max_num_blocks_per_seq]";
    let table = named("block_table", block_table);
    let [rows, blocks] = table.indices(Dtype::I32, form)?;
    if rows != num_seqs {
        table.shape(form, &[num_seqs, blocks])?;
    }
    let nameable = blocks.saturating_mul(block_size);
    match bound {
        Some(bound) if bound as usize > nameable => {
            let blocks = (bound as usize).div_ceil(block_size);
            Err(table
                .wrong_shape(format!(
                    "{form} with at least {blocks} blocks of {block_size} tokens for max_seq_len {bound}"
                ))
                .into())
        }
        Some(bound) => Ok(bound),
        None => Ok(count("max_num_blocks_per_seq * block_size", nameable)?),
    }
}

/// Thread blocks that share out the check of a sequence: several where every token has scales to look at.
pub(super) fn check_parts(max_seq_len: u32, block_size: u32, token_scales: bool) -> u32 {
    const MOST: u32 = 64;
    if !token_scales {
        return 1;
    }
    let blocks = max_seq_len.div_ceil(block_size.max(1));
    blocks.div_ceil(check::THREADS).clamp(1, MOST)
}

/// What a check looks at of scales: those that all tokens share, of queries, keys and values, and those of tokens.
pub(super) fn scales_to_check(
    scales: Option<&KvScales<'_>>,
    token_scales: bool,
) -> ([ScaleList; 3], [TokenScaleList; 2]) {
    let Some(scales) = scales else {
        return ([ScaleList::NONE; 3], [TokenScaleList::NONE; 2]);
    };
    let (k_scale, v_scale) = (&scales.k_scale, &scales.v_scale);
    let queries = scale_list(CheckFault::Q_SCALE, scales.q_scale.as_ref());
    if token_scales {
        (
            [queries, ScaleList::NONE, ScaleList::NONE],
            [k_scale, v_scale].map(token_scale_list),
        )
    } else {
        (
            [
                queries,
                scale_list(CheckFault::K_SCALE, Some(k_scale)),
                scale_list(CheckFault::V_SCALE, Some(v_scale)),
            ],
            [TokenScaleList::NONE; 2],
        )
    }
}

/// Scales are there if and only if the cache is of bytes, and have its heads. Whether every token has its
/// own.
pub(super) fn check_scales(
    scales: Option<&KvScales<'_>>,
    query: Dtype,
    cache: Dtype,
    shape: [usize; 3],
) -> Result<bool> {
    let is_scaled = cache.size() == 1;
    let Some(scales) = scales else {
        return match is_scaled {
            true => wrong("scales", "given for a cache of bytes", "missing"),
            false => Ok(false),
        };
    };
    if !is_scaled {
        return wrong("scales", "absent for a cache of 16-bit values", "given");
    }
    let (one, heads, tokens): (&[usize], &[usize], &[usize]) = (&[1], &shape[2..], &shape);
    let allowed: &[&[usize]] = match cache {
        Dtype::F8E4m3 => &[one, heads, tokens],
        Dtype::I8 => &[tokens],
        _ => &[one, heads],
    };
    let form = || {
        let heads = format!("[num_kv_heads] = {heads:?}");
        let tokens = format!("[num_blocks, block_size, num_kv_heads] = {tokens:?}");
        match cache {
            Dtype::F8E4m3 => format!("[1], {heads}, or {tokens}"),
            Dtype::I8 => tokens,
            _ => format!("[1] or {heads}"),
        }
    };
    floats(named("k_scale", &scales.k_scale), allowed, form)?;
    let token_scales = scales.k_scale.shape().len() == 3;
    let allowed: &[&[usize]] = if token_scales {
        &[tokens]
    } else {
        &[one, heads]
    };
    floats(named("v_scale", &scales.v_scale), allowed, form)?;
    match (&scales.q_scale, query == Dtype::F8E4m3) {
        (Some(q_scale), true) => floats(named("q_scale", q_scale), &[one], || "[1]".into())?,
        (None, false) => {}
        (None, true) => return wrong("q_scale", "given for an fp8_e4m3 query", "missing"),
        (Some(_), false) => {
            return wrong("q_scale", "absent for a query of 16-bit values", "given");
        }
    }
    Ok(token_scales)
}

/// An f32 tensor of one of the shapes `allowed`, which `form` names.
pub(super) fn floats(
    tensor: Named<'_, '_>,
    allowed: &[&[usize]],
    form: impl FnOnce() -> String,
) -> Result<()> {
    tensor.dtype(&[Dtype::F32])?;
    if !allowed.contains(&tensor.view.shape()) {
        return Err(tensor.wrong_shape(form()).into());
    }
    tensor.no_negative_strides()?;
    Ok(tensor.aligned(4)?)
}

fn wrong<T>(name: &'static str, expected: &str, got: &str) -> Result<T> {
    Err(RequestError::Value {
        name,
        expected: expected.into(),
        got: got.into(),
    }
    .into())
}
