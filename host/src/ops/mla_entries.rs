//! What whoever reads or writes an MLA cache of entries with scales of their own has to get right about the cache.

use gpu_kernels::mla::cache_format::{fp8_ds, v4};

use super::checks::Named;
use crate::error::RequestError;
use crate::tensor::Dtype;

/// Checks a cache of entries with scales of their own and returns its number of blocks.
pub(super) fn check_entries(
    cache: Named<'_, '_>,
    is_v4: bool,
    block_size: usize,
) -> Result<usize, RequestError> {
    cache.dtype(&[Dtype::U8])?;
    let num_blocks = if is_v4 {
        let form = "[num_blocks, page_bytes]";
        let [num_blocks, page_bytes] = cache.rank(form)?;
        let least = block_size.saturating_mul(v4::BYTES as usize);
        if page_bytes < least {
            return Err(cache.wrong_shape(format!("{form} with pages of {least} bytes at least")));
        }
        num_blocks
    } else {
        let form = "[num_blocks, block_size, 656]";
        let [num_blocks, ..] = cache.rank::<3>(form)?;
        cache.shape(form, &[num_blocks, block_size, fp8_ds::BYTES as usize])?;
        num_blocks
    };
    cache.strides(16)?;
    cache.aligned(16)?;
    Ok(num_blocks)
}
