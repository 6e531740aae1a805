//! What an attention request over a paged cache has to get right about the cache.

use gpu_kernels::attention::check;
use gpu_kernels::dtype::{CacheDtype, QueryDtype};

use crate::error::RequestError;
use crate::ops::checks::{Named, named, slot_stride_fits};
use crate::plan::dtypes;
use crate::tensor::{Dtype, TensorView};

/// A paged cache whose tensors agree with each other.
#[derive(Clone, Copy, Debug)]
pub(super) struct PagedCache {
    pub(super) dtype: Dtype,
    pub(super) num_blocks: usize,
    pub(super) block_size: usize,
    pub(super) num_kv_heads: usize,
    /// If the cache says it: where values are a part of the keys, the output does.
    pub(super) head_size_v: Option<usize>,
}

impl PagedCache {
    /// Checks keys and values for a query of `query` with heads of `head_size` values.
    pub(super) fn check(
        key_cache: &TensorView<'_>,
        value_cache: &TensorView<'_>,
        query: QueryDtype,
        head_size: usize,
    ) -> Result<Self, RequestError> {
        let keys = named("key_cache", key_cache);
        let dtype = stored(keys, query, dtypes::attention_caches())?;
        let form = "[num_blocks, block_size, num_kv_heads, head_size]";
        let [num_blocks, block_size, num_kv_heads, _] = keys.rank(form)?;
        check_block_size(block_size)?;
        keys.shape(form, &[num_blocks, block_size, num_kv_heads, head_size])?;
        check_rows(keys, dtype)?;
        let values = named("value_cache", value_cache);
        values.dtype(&[dtype])?;
        let form = "[num_blocks, block_size, num_kv_heads, head_size_v]";
        let [_, _, _, head_size_v] = values.rank(form)?;
        values.shape(form, &[num_blocks, block_size, num_kv_heads, head_size_v])?;
        check_rows(values, dtype)?;
        Ok(Self {
            dtype,
            num_blocks,
            block_size,
            num_kv_heads,
            head_size_v: Some(head_size_v),
        })
    }

    /// The same of latent rows, which are keys and values of all heads.
    pub(super) fn check_latent(
        cache: &TensorView<'_>,
        query: QueryDtype,
        head_size: usize,
    ) -> Result<Self, RequestError> {
        let cache = named("cache", cache);
        let dtype = stored(cache, query, dtypes::latent_caches())?;
        let form = "[num_blocks, block_size, head_size]";
        let [num_blocks, block_size, _] = cache.rank(form)?;
        check_block_size(block_size)?;
        cache.shape(form, &[num_blocks, block_size, head_size])?;
        check_rows(cache, dtype)?;
        Ok(Self {
            dtype,
            num_blocks,
            block_size,
            num_kv_heads: 1,
            head_size_v: None,
        })
    }

    /// How it stores a value.
    pub(super) fn format(&self, token_scales: bool) -> CacheDtype {
        CacheDtype {
            dtype: self.dtype,
            token_scales,
        }
    }
}

/// Any of the caches' dtypes of bytes, or values of 16 bits that are the query's.
fn stored(
    cache: Named<'_, '_>,
    query: QueryDtype,
    caches: &[CacheDtype],
) -> Result<Dtype, RequestError> {
    cache.dtype_that(|dtype| {
        caches.iter().any(|cache| cache.dtype == dtype)
            && (dtype.size() == 1 || dtype == query.dtype())
    })
}

fn check_block_size(block_size: usize) -> Result<(), RequestError> {
    if block_size > 0 && block_size.is_multiple_of(8) {
        return Ok(());
    }
    Err(RequestError::Value {
        name: "block_size",
        expected: "a multiple of 8, at least 8".into(),
        got: block_size.to_string(),
    })
}

/// Rows can be loaded 16 bytes at a time, with offsets of 32 bits within a block.
fn check_rows(cache: Named<'_, '_>, dtype: Dtype) -> Result<(), RequestError> {
    cache.strides(16 / dtype.size())?;
    slot_stride_fits(cache.name(), cache.view)?;
    cache.aligned(16)
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
