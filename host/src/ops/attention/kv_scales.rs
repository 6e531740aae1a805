//! What the values of a cache, and of an FP8 query, were divided by.

use gpu_kernels::dtype::{CacheDtype, QueryDtype};
use gpu_kernels::params::{CheckFault, ScaleList, TokenScaleList};

use super::paged::PagedCache;
use crate::error::RequestError;
use crate::ops::checks::named;
use crate::ops::device_check::{scale_list, token_scale_list};
use crate::ops::layout::{byte_stride, byte_strides};
use crate::ops::tensors::{Given, given};
use crate::plan::dtypes;
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
    /// As `k_scale`, and of the same kind. If every token has one, decode attention multiplies probabilities by them in 16
    /// bits: a token whose probability times scale is below 2^-29 of the largest probability times the largest scale loses
    /// bits, and below 2^-39 counts as nothing. Of unified attention's own kernels, rows for which that may matter are
    /// computed again, key by key.
    pub v_scale: TensorView<'a>,
}

/// The same of a latent cache.
#[derive(Clone, Copy, Debug)]
pub struct MlaScales<'a> {
    /// `[1]`, f32: of an fp8_e4m3 query, and only of that.
    pub q_scale: Option<TensorView<'a>>,
    /// `[1]`, f32: of the rows, latent and rotary part alike.
    pub k_scale: TensorView<'a>,
}

/// Whether every token has scales of its own. There are scales if and only if the cache is of bytes, and they have its
/// heads.
pub(super) fn check_scales(
    scales: Option<&KvScales<'_>>,
    query: QueryDtype,
    cache: &PagedCache,
) -> Result<bool, RequestError> {
    let Some(scales) = given_for_bytes(scales, cache.dtype)? else {
        return Ok(false);
    };
    let shape = [cache.num_blocks, cache.block_size, cache.num_kv_heads];
    let (one, heads, tokens): (&[usize], &[usize], &[usize]) = (&[1], &shape[2..], &shape);
    // Shared ones, and those of tokens: which the dtype has.
    let kinds = [
        CacheDtype::of(cache.dtype),
        CacheDtype::per_token(cache.dtype),
    ]
    .map(|format| dtypes::attention_caches().contains(&format));
    let allowed: &[&[usize]] = match kinds {
        [true, true] => &[one, heads, tokens],
        [true, false] => &[one, heads],
        [false, _] => &[tokens],
    };
    let form = || {
        let heads = format!("[num_kv_heads] = {heads:?}");
        let tokens = format!("[num_blocks, block_size, num_kv_heads] = {tokens:?}");
        match kinds {
            [true, true] => format!("[1], {heads}, or {tokens}"),
            [true, false] => format!("[1] or {heads}"),
            [false, _] => tokens,
        }
    };
    named("k_scale", &scales.k_scale).floats(allowed, form)?;
    let token_scales = scales.k_scale.shape().len() == 3;
    let allowed: &[&[usize]] = if token_scales {
        &[tokens]
    } else {
        &[one, heads]
    };
    named("v_scale", &scales.v_scale).floats(allowed, form)?;
    check_q_scale(scales.q_scale.as_ref(), query)?;
    Ok(token_scales)
}

/// The same of a latent cache, whose rows have one scale.
pub(super) fn check_latent_scales(
    scales: Option<&MlaScales<'_>>,
    query: QueryDtype,
    cache: &PagedCache,
) -> Result<(), RequestError> {
    let Some(scales) = given_for_bytes(scales, cache.dtype)? else {
        return Ok(());
    };
    named("k_scale", &scales.k_scale).floats(&[&[1]], || "[1]".into())?;
    check_q_scale(scales.q_scale.as_ref(), query)
}

/// Scales are there if and only if the cache is of bytes.
fn given_for_bytes<S>(scales: Option<S>, cache: Dtype) -> Result<Option<S>, RequestError> {
    match (&scales, cache.size() == 1) {
        (None, true) => wrong("scales", "given for a cache of bytes", "missing"),
        (Some(_), false) => wrong("scales", "absent for a cache of 16-bit values", "given"),
        (Some(_), true) | (None, false) => Ok(scales),
    }
}

/// A query's scale is there if and only if it is FP8.
fn check_q_scale(q_scale: Option<&TensorView<'_>>, query: QueryDtype) -> Result<(), RequestError> {
    match (q_scale, query == QueryDtype::F8E4m3) {
        (Some(q_scale), true) => named("q_scale", q_scale).floats(&[&[1]], || "[1]".into()),
        (None, false) => Ok(()),
        (None, true) => wrong("q_scale", "given for an fp8_e4m3 query", "missing"),
        (Some(_), false) => wrong("q_scale", "absent for a query of 16-bit values", "given"),
    }
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

/// The tensors that may be given.
pub(super) fn given_scales<'v, 'a>(scales: Option<&'v KvScales<'a>>) -> [Given<'v, 'a>; 3] {
    [
        given("q_scale", scales.and_then(|scales| scales.q_scale.as_ref())),
        given("k_scale", scales.map(|scales| &scales.k_scale)),
        given("v_scale", scales.map(|scales| &scales.v_scale)),
    ]
}

/// Scales as attention kernels want them; 0 for what is not there.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ScaleParams {
    pub(super) q_scale: u64,
    pub(super) k_scale: u64,
    pub(super) v_scale: u64,
    /// Bytes from block to block, slot to slot and head to head of keys' scales, and of values'.
    pub(super) k_strides: [i64; 3],
    pub(super) v_strides: [i64; 3],
}

impl ScaleParams {
    pub(super) fn of(scales: Option<&KvScales<'_>>) -> Self {
        let Some(scales) = scales else {
            return Self::default();
        };
        Self {
            q_scale: scales.q_scale.map_or(0, |scale| scale.address()),
            k_scale: scales.k_scale.address(),
            v_scale: scales.v_scale.address(),
            k_strides: strides(&scales.k_scale),
            v_strides: strides(&scales.v_scale),
        }
    }
}

/// Of blocks, slots and heads: none where one scale is for all.
fn strides(scale: &TensorView<'_>) -> [i64; 3] {
    match scale.shape() {
        [_] => [0, 0, byte_stride(scale, 0)],
        _ => byte_strides(scale),
    }
}

fn wrong<T>(name: &'static str, expected: &str, got: &str) -> Result<T, RequestError> {
    Err(RequestError::Value {
        name,
        expected: expected.into(),
        got: got.into(),
    })
}
