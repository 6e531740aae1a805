//! What a write into an MLA cache without scales of its own has to leave behind.

use crate::reference::{HostTensor, reshape_and_cache_flash, reshape_and_cache_scaled};

/// Writes new tokens into the bytes of a cache, `[num_blocks, block_size, latents + RoPE values]`: copies, or values
/// divided by `scale`. Latents and RoPE keys are `[num_tokens or more, size]`.
pub(crate) fn write_rows(
    [kv_c, k_pe]: [&HostTensor; 2],
    slots: &HostTensor,
    scale: Option<f32>,
    cache: &HostTensor,
    bytes: &mut [u8],
) {
    // A token is a head of latents and a head of RoPE values.
    for (new, first) in [(kv_c, 0), (k_pe, kv_c.shape[1])] {
        let (rows, size) = (new.shape[0], new.shape[1]);
        let as_heads = |tensor: &HostTensor, shape: Vec<usize>| HostTensor {
            strides: [&tensor.strides[..shape.len() - 2], &[size, 1]].concat(),
            shape,
            ..tensor.clone()
        };
        let rows = as_heads(new, vec![rows, 1, size]);
        let [blocks, block_size, _] = cache.shape[..] else {
            unreachable!("blocks, slots, values")
        };
        let mut side = as_heads(cache, vec![blocks, block_size, 1, size]);
        side.offset += first;
        match scale {
            None => reshape_and_cache_flash(&rows, slots, &side, bytes),
            Some(scale) => reshape_and_cache_scaled(&rows, slots, &[scale], &side, bytes),
        }
    }
}
