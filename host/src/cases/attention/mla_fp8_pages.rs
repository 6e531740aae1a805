//! Caches of FP8 entries: blocks of random tokens, the rest of them poison.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::mla_fp8::EntryCase;
use crate::cases::base::fill::{Painter, Role, power_of_two};
use crate::cases::base::tensors::{POISON, SPREAD, fill_row, pattern_blocks};
use crate::ops::EntryForm;
use crate::reference::{HostTensor, Storage};
use crate::tensor::Dtype;

/// Pages whose block `id` holds `valid[id]` tokens, the rest poison; or a repeated pattern of full ones.
pub(crate) fn pages(
    case: &EntryCase,
    valid: &[usize],
    seed: u64,
    pattern_bytes: usize,
    name: &'static str,
) -> HostTensor {
    let slots = case.block_size;
    let (bytes, stride) = (case.entry_bytes(), case.layout().block_stride(slots));
    let pattern = pattern_blocks(valid.len(), stride, pattern_bytes);
    let mut pages = vec![POISON; pattern * stride];
    pages
        .par_chunks_mut(stride)
        .enumerate()
        .for_each(|(id, block)| {
            let tokens = if pattern == valid.len() {
                valid[id]
            } else {
                slots
            };
            let mut random = ChaCha8Rng::seed_from_u64(seed);
            random.set_stream(2 + id as u64);
            let mut painter = Painter::new(case.fill, seed, 2 + id as u64);
            for slot in 0..tokens {
                fill_entry(case, block, slot, &mut random);
                if !painter.leaves_rows() {
                    paint_entry(case, block, slot, &mut painter);
                }
            }
        });
    let (shape, strides) = match case.form {
        EntryForm::Fp8Ds => (vec![valid.len(), slots, bytes], vec![stride, bytes, 1]),
        EntryForm::V4 => (vec![valid.len(), slots * bytes], vec![stride, 1]),
    };
    HostTensor {
        storage: Storage::repeating(name, pages, valid.len() * stride),
        offset: 0,
        dtype: Dtype::U8,
        shape,
        strides,
    }
}

/// The cache with NaN in every entry but these.
pub(crate) fn poisoned(case: &EntryCase, cache: &HostTensor, seen: &[i64]) -> HostTensor {
    if cache.storage.bytes.len() != cache.storage.len {
        return cache.clone();
    }
    let mut bytes = vec![POISON; cache.storage.len];
    for slot in seen.iter().filter_map(|&slot| usize::try_from(slot).ok()) {
        let (block, slot) = (slot / case.block_size, slot % case.block_size);
        if block >= cache.shape[0] {
            continue;
        }
        let start = block * cache.strides[0];
        for run in case.layout().runs(slot, case.block_size) {
            let run = start + run.start..start + run.end;
            bytes[run.clone()].copy_from_slice(&cache.storage.bytes[run]);
        }
    }
    cache.with_bytes(bytes)
}

/// The latents and the RoPE values of an entry as the fill wants them.
fn paint_entry(case: &EntryCase, block: &mut [u8], slot: usize, painter: &mut Painter) {
    let place = case.layout().place(slot, case.block_size);
    painter.paint(Role::Key, Dtype::F8E4m3, &mut block[place.latents], 0);
    painter.paint(Role::Key, Dtype::Bf16, &mut block[place.rope], 0);
}

/// A random entry whose values spread as keys do; no two neighbouring groups have the same scale.
fn fill_entry(case: &EntryCase, block: &mut [u8], slot: usize, random: &mut ChaCha8Rng) {
    let layout = case.layout();
    let place = layout.place(slot, case.block_size);
    fill_row(Dtype::F8E4m3, &mut block[place.latents], 1.0, random);
    fill_row(Dtype::Bf16, &mut block[place.rope], SPREAD[1], random);
    let scales = &mut block[place.scales];
    // Where numbers are of any size, so are scales.
    let powers = case.fill.scale_powers();
    let powers: Vec<i32> = (0..layout.groups)
        .map(|_| power_of_two(&powers, random))
        .collect();
    match case.form {
        EntryForm::Fp8Ds => {
            for group in 0..layout.groups {
                let scale = if case.round_scales {
                    2f32.powi(-7 + random.random_range(0..3))
                } else {
                    (0.6 + 0.8 * random.random::<f32>()) / 60.0
                };
                let scale = scale * 2f32.powi(powers[group]);
                scales[4 * group..4 * group + 4].copy_from_slice(&scale.to_le_bytes());
            }
        }
        EntryForm::V4 => {
            for (scale, power) in scales[..layout.groups].iter_mut().zip(powers) {
                let exponent = 127 - 7 + random.random_range(0..3) + power;
                *scale = u8::try_from(exponent).expect("within f32");
            }
            scales[layout.groups] = 0;
        }
    }
}
