//! Writing a paged cache by its formula. Each function is called once for keys and once for values.

use super::{Fp8Format, HostTensor, fp8_nearest, fp8_value};
use crate::tensor::Dtype;

/// Writes `new[token]` to slot `slot_mapping[token]` of `cache`, whose storage's bytes are `cache_bytes`;
/// negative slots write nothing.
///
/// # Panics
/// If a slot lies outside the cache.
pub fn reshape_and_cache_flash(
    new: &HostTensor,
    slot_mapping: &HostTensor,
    cache: &HostTensor,
    cache_bytes: &mut [u8],
) {
    for_each_row(new, slot_mapping, cache, |from, to, _| {
        // The last dimension of both is contiguous.
        let bytes = new.dtype.size();
        let head_size = new.shape[2];
        let from = new.position(&from) * bytes;
        let to = cache.position(&to) * bytes;
        let row = bytes * head_size;
        cache_bytes[to..to + row].copy_from_slice(&new.storage.bytes[from..from + row]);
    });
}

/// The same with `fp8(x / scale)`: IEEE division in f32, then the nearest FP8 value. `scales` holds one, or
/// one per head.
///
/// # Panics
/// If a slot lies outside the cache.
pub fn reshape_and_cache_scaled(
    new: &HostTensor,
    slot_mapping: &HostTensor,
    scales: &[f32],
    cache: &HostTensor,
    cache_bytes: &mut [u8],
) {
    for_each_row(new, slot_mapping, cache, |[token, head, _], to, _| {
        let scale = scales[head % scales.len()];
        let to = cache.position(&to);
        for dim in 0..new.shape[2] {
            let quotient = narrow(new.float(&[token, head, dim])) / scale;
            cache_bytes[to + dim] = fp8_nearest(cache.dtype, f64::from(quotient));
        }
    });
}

/// The same with a scale for each row: `scale = max(amax / largest, 1e-6)`, which is returned with the
/// position of its row in `scale_cache`; `stored = round(x * (1 / scale))`, all in f32.
///
/// # Panics
/// If a slot lies outside the cache.
pub fn reshape_and_cache_per_token_head(
    new: &HostTensor,
    slot_mapping: &HostTensor,
    cache: &HostTensor,
    cache_bytes: &mut [u8],
    scale_cache: &HostTensor,
) -> Vec<(usize, f32)> {
    let largest = match Fp8Format::of(cache.dtype) {
        Some(format) => narrow(fp8_value(cache.dtype, format.largest)),
        None => f32::from(i8::MAX),
    };
    let mut scales = Vec::new();
    for_each_row(new, slot_mapping, cache, |[token, head, _], to, slot| {
        let row: Vec<f32> = (0..new.shape[2])
            .map(|dim| narrow(new.float(&[token, head, dim])))
            .collect();
        let amax = row.iter().fold(0.0f32, |amax, x| amax.max(x.abs()));
        let scale = (amax / largest).max(1e-6);
        let inverse = 1.0 / scale;
        let to = cache.position(&to);
        for (dim, x) in row.iter().enumerate() {
            cache_bytes[to + dim] = if cache.dtype == Dtype::I8 {
                // `round` breaks ties away from zero; the cast saturates and turns NaN into 0.
                #[allow(clippy::cast_possible_truncation, reason = "saturates")]
                let rounded = (x * inverse).round() as i8;
                rounded.cast_unsigned()
            } else {
                fp8_nearest(cache.dtype, f64::from(x * inverse))
            };
        }
        scales.push((scale_cache.position(&[slot[0], slot[1], head]), scale));
    });
    scales
}

/// Calls `write` with the index of each row in `new`, in `cache`, and its block and offset.
fn for_each_row(
    new: &HostTensor,
    slot_mapping: &HostTensor,
    cache: &HostTensor,
    mut write: impl FnMut([usize; 3], [usize; 4], [usize; 2]),
) {
    let [_, num_heads, _] = new.shape[..] else {
        panic!("[num_tokens, num_kv_heads, head_size]")
    };
    let block_size = cache.shape[1];
    for token in 0..slot_mapping.shape[0] {
        let Ok(slot) = usize::try_from(slot_mapping.integer(&[token])) else {
            continue;
        };
        let [block, offset] = [slot / block_size, slot % block_size];
        for head in 0..num_heads {
            write([token, head, 0], [block, offset, head, 0], [block, offset]);
        }
    }
}

/// A value that came from an f32 or less.
#[allow(clippy::cast_possible_truncation, reason = "exact")]
pub(super) fn narrow(x: f64) -> f32 {
    x as f32
}
