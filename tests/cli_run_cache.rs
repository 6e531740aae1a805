//! `ferroattn run` of cache writes: every byte of the caches in the file, against the reference.
#![allow(missing_docs, reason = "a test crate has no readers of its docs")]
#![allow(
    clippy::cast_possible_truncation,
    reason = "scales came from f32, and test data is small"
)]

mod common;
mod tensors;

use common::files::results;
use ferroattn::cases::fill::{self, Amount};
use ferroattn::cases::{Case, ScaleForm};
use ferroattn::ops::RopeStyle;
use ferroattn::reference::{
    HostTensor, mla_fp8_ds_entry, mla_v4_entry, reshape_and_cache_flash,
    reshape_and_cache_per_token_head, reshape_and_cache_scaled, rotate,
};
use ferroattn::tensor::Dtype;
use tensors::*;

/// Writes rows into a cache whose storage's bytes are `bytes`: as they are, or divided by scales.
fn write(
    new: &HostTensor,
    slots: &HostTensor,
    scales: Option<&HostTensor>,
    cache: &HostTensor,
    bytes: &mut [u8],
) {
    let Some(scales) = scales else {
        return reshape_and_cache_flash(new, slots, cache, bytes);
    };
    let scales: Vec<f32> = (0..scales.shape[0])
        .map(|head| scales.float(&[head]) as f32)
        .collect();
    reshape_and_cache_scaled(new, slots, &scales, cache, bytes);
}

/// Runs a cache write, maybe of rotated keys, on a file; compares caches, scales and queries.
fn judge(line: &str) {
    let Case::CacheWrite(case) = common::case(line) else {
        panic!("{line} is no cache write")
    };
    let tensors = fill::cache_write(&case, 5, Amount::WHOLE);
    let slots = &tensors.slot_mapping;
    let per_token = case.scales == ScaleForm::Token;
    let scale_names = if per_token {
        ["k_scale_cache", "v_scale_cache"]
    } else {
        ["k_scale", "v_scale"]
    };
    let mut inputs = vec![
        ("key", &tensors.key),
        ("value", &tensors.value),
        ("key_cache", &tensors.key_cache),
        ("value_cache", &tensors.value_cache),
        ("slot_mapping", slots),
    ];
    let scales = tensors.scales.iter().flatten();
    inputs.extend(scale_names.into_iter().zip(scales));

    let mut key = tensors.key.clone();
    let mut expected = Vec::new();
    let got = if let (Some(rope), Some(tables)) = (case.rope, &tensors.rope) {
        let is_interleaved = rope.style == RopeStyle::GptJ;
        let turned =
            |new: &HostTensor| rotate(new, &tables.positions, &tables.cos_sin, is_interleaved);
        inputs.extend([
            ("positions", &tables.positions),
            ("cos_sin", &tables.cos_sin),
        ]);
        if rope.num_query_heads > 0 {
            inputs.push(("query", &tables.query));
            let q_scale = rope.fp8_query.then_some(&tables.q_scale);
            inputs.extend(q_scale.map(|scale| ("q_scale", scale)));
            // Every token's: as a cache of one block.
            let rows: Vec<i64> = (0..).take(case.num_tokens).collect();
            let mut as_cache = tables.query_out.clone();
            as_cache.shape.insert(0, 1);
            as_cache.strides.insert(0, 0);
            let mut bytes = as_cache.storage.bytes.clone();
            let query = turned(&tables.query);
            write(
                &query,
                &longs("rows", &rows),
                q_scale,
                &as_cache,
                &mut bytes,
            );
            expected.push(("query_out", bytes));
        }
        key = turned(&key);
        let style = if is_interleaved { "gptj" } else { "neox" };
        results("rope_and_cache", &inputs, &format!("style={style}"))
    } else {
        results("reshape_and_cache_flash", &inputs, "")
    };

    let sides = [
        ("key_cache", &key, &tensors.key_cache),
        ("value_cache", &tensors.value, &tensors.value_cache),
    ];
    for (side, (name, new, cache)) in sides.into_iter().enumerate() {
        let scales = tensors.scales.as_ref().map(|scales| &scales[side]);
        let mut bytes = cache.storage.bytes.clone();
        if let Some(scales) = scales.filter(|_| per_token) {
            let mut scale_bytes = scales.storage.bytes.clone();
            let stored = reshape_and_cache_per_token_head(new, slots, cache, &mut bytes, scales);
            for (at, scale) in stored {
                scale_bytes[4 * at..4 * at + 4].copy_from_slice(&scale.to_le_bytes());
            }
            expected.push((scale_names[side], scale_bytes));
        } else {
            write(new, slots, scales, cache, &mut bytes);
        }
        expected.push((name, bytes));
    }
    assert_eq!(got.len(), expected.len(), "{line}: {:?}", got.keys());
    for (name, bytes) in expected {
        assert_same_bytes(&got[name], &bytes, &format!("{name} of {line}"));
    }
}

#[test]
fn keys_and_values() {
    for fields in [
        "bf16 heads=2 d=6 page=5 tokens=7 skip=3",
        "f16 heads=3 d=64 dv=32 page=16 tokens=20 skip=6 extra_rows=2",
        "bf16 heads=3 kv=fp8_e4m3 d=64 page=16 tokens=20 skip=6",
        "f16 heads=3 kv=fp8_e5m2 scales=head d=64 page=16 tokens=20 skip=6",
        "bf16 heads=3 kv=i8 scales=token d=64 page=16 tokens=20 skip=6",
        "bf16 heads=3 kv=fp8_e4m3 scales=token d=64 page=16 tokens=20 skip=6",
    ] {
        judge(&format!("reshape_and_cache_flash {fields} layout=nhd"));
    }
}

#[test]
fn rotated_keys_and_queries() {
    for fields in [
        "bf16 heads=8/2 rope=neox:64 d=64 page=16 tokens=20 skip=6",
        "f16 heads=4/2 rope=gptj:24 d=64 dv=32 page=16 tokens=20 skip=6",
        "bf16 heads=0/2 rope=neox:64 d=64 page=16 tokens=20 skip=6",
        "bf16 heads=4/2 rope=gptj:64 kv=fp8_e5m2 scales=head d=64 page=16 tokens=20 skip=6",
        "bf16 heads=4/2 rope=neox:64 q=fp8_e4m3 kv=fp8_e4m3 d=64 page=16 tokens=20 skip=6",
    ] {
        judge(&format!("rope_and_cache {fields} layout=nhd"));
    }
}

const NUM_BLOCKS: usize = 3;
const BLOCK_SIZE: usize = 16;
const NUM_TOKENS: usize = 20;

/// New tokens of an MLA cache.
fn rows(name: &'static str, size: usize, random: &mut Random) -> HostTensor {
    let data = values(Dtype::Bf16, NUM_TOKENS * size, random);
    tensor(name, Dtype::Bf16, &[NUM_TOKENS, size], data)
}

fn slot_mapping(random: &mut Random) -> HostTensor {
    let slots = slots(NUM_TOKENS, NUM_BLOCKS * BLOCK_SIZE, 6, random);
    longs("slot_mapping", &slots)
}

/// Writes latents and RoPE keys, of one dtype or divided by one scale.
fn write_mla(
    parts: [&HostTensor; 2],
    slots: &HostTensor,
    scale: Option<&HostTensor>,
    cache: &HostTensor,
) -> Vec<u8> {
    let mut bytes = cache.storage.bytes.clone();
    for (new, first) in [(parts[0], 0), (parts[1], parts[0].shape[1])] {
        let (new, part) = one_head(new, cache, first);
        write(&new, slots, scale, &part, &mut bytes);
    }
    bytes
}

#[test]
fn latents_and_rope_keys() {
    let random = &mut Random::new(1);
    let (kv_c, k_pe) = (rows("kv_c", 128, random), rows("k_pe", 32, random));
    let (slots, scale) = (slot_mapping(random), floats("scale", &[1], &[0.37]));
    for (dtype, scale) in [
        (Dtype::Bf16, None),
        (Dtype::F8E4m3, Some(&scale)),
        (Dtype::F8E5m2, Some(&scale)),
    ] {
        let cache = poisoned_tensor("kv_cache", dtype, &[NUM_BLOCKS, BLOCK_SIZE, 160]);
        let mut inputs = vec![
            ("kv_c", &kv_c),
            ("k_pe", &k_pe),
            ("kv_cache", &cache),
            ("slot_mapping", &slots),
        ];
        inputs.extend(scale.map(|scale| ("scale", scale)));
        let got = results("concat_and_cache_mla", &inputs, "");
        let expected = write_mla([&kv_c, &k_pe], &slots, scale, &cache);
        assert_same_bytes(&got["kv_cache"], &expected, &dtype.to_string());
    }
}

#[test]
fn latents_and_rope_keys_of_many_layers() {
    const LAYERS: usize = 3;
    let random = &mut Random::new(4);
    let layers: Vec<[HostTensor; 3]> = (0..LAYERS)
        .map(|_| {
            let (kv_c, k_pe) = (rows("kv_c", 128, random), rows("k_pe", 32, random));
            [kv_c, k_pe, slot_mapping(random)]
        })
        .collect();
    let stacked = |part: usize| {
        let first = &layers[0][part];
        let bytes = layers.iter().flat_map(|layer| &layer[part].storage.bytes);
        let shape = [&[LAYERS][..], &first.shape].concat();
        let name = first.storage.name;
        tensor(name, first.dtype, &shape, bytes.copied().collect())
    };
    let (kv_c, k_pe, slots) = (stacked(0), stacked(1), stacked(2));
    let list = [0.37, 0.21, 0.53];
    let scales = floats("scales", &[LAYERS], &list);
    for dtype in [Dtype::Bf16, Dtype::F8E4m3] {
        let is_scaled = dtype == Dtype::F8E4m3;
        let shape = [LAYERS, NUM_BLOCKS, BLOCK_SIZE, 160];
        let caches = poisoned_tensor("kv_caches", dtype, &shape);
        let mut inputs = vec![
            ("kv_c", &kv_c),
            ("k_pe", &k_pe),
            ("kv_caches", &caches),
            ("slot_mapping", &slots),
        ];
        inputs.extend(is_scaled.then_some(("scales", &scales)));
        let got = results("concat_and_cache_mla_grouped", &inputs, "");
        let cache = poisoned_tensor("kv_cache", dtype, &shape[1..]);
        let expected: Vec<u8> = layers
            .iter()
            .zip(list)
            .flat_map(|([kv_c, k_pe, slots], scale)| {
                let scale = is_scaled.then(|| floats("scale", &[1], &[scale]));
                write_mla([kv_c, k_pe], slots, scale.as_ref(), &cache)
            })
            .collect();
        assert_same_bytes(&got["kv_caches"], &expected, &dtype.to_string());
    }
}

#[test]
fn entries_of_656_bytes() {
    let random = &mut Random::new(2);
    let (kv_c, k_pe) = (rows("kv_c", 512, random), rows("k_pe", 64, random));
    let slots = slot_mapping(random);
    let cache = poisoned_tensor("kv_cache", Dtype::U8, &[NUM_BLOCKS, BLOCK_SIZE, 656]);
    for (rule, has_rope) in [("", true), ("scale_rule=power_of_two", false)] {
        let mut inputs = vec![
            ("kv_c", &kv_c),
            ("kv_cache", &cache),
            ("slot_mapping", &slots),
        ];
        inputs.extend(has_rope.then_some(("k_pe", &k_pe)));
        let got = results(
            "concat_and_cache_mla",
            &inputs,
            &format!("form=fp8_ds_mla {rule}"),
        );
        let mut expected = cache.storage.bytes.clone();
        for (token, slot) in slots_of(&slots) {
            let rope = if has_rope {
                row(&k_pe, token).1
            } else {
                vec![0; 128]
            };
            let entry = mla_fp8_ds_entry(&row(&kv_c, token).0, &rope, !rule.is_empty());
            expected[656 * slot..656 * (slot + 1)].copy_from_slice(&entry);
        }
        assert_same_bytes(&got["kv_cache"], &expected, rule);
    }
}

#[test]
fn pages_of_v4() {
    let random = &mut Random::new(3);
    let (kv_c, k_pe) = (rows("kv_c", 448, random), rows("k_pe", 64, random));
    let slots = slot_mapping(random);
    let page = (584 * BLOCK_SIZE).next_multiple_of(576);
    let cache = poisoned_tensor("kv_cache", Dtype::U8, &[NUM_BLOCKS, page]);
    let inputs = [
        ("kv_c", &kv_c),
        ("k_pe", &k_pe),
        ("kv_cache", &cache),
        ("slot_mapping", &slots),
    ];
    let metadata = format!("form=v4 block_size={BLOCK_SIZE}");
    let got = results("concat_and_cache_mla", &inputs, &metadata);
    let mut expected = cache.storage.bytes.clone();
    for (token, slot) in slots_of(&slots) {
        let (entry, scales) = mla_v4_entry(&row(&kv_c, token).0, &row(&k_pe, token).1);
        let (start, offset) = (slot / BLOCK_SIZE * page, slot % BLOCK_SIZE);
        let at = start + 576 * offset;
        expected[at..at + 576].copy_from_slice(&entry);
        let at = start + 576 * BLOCK_SIZE + 8 * offset;
        expected[at..at + 8].copy_from_slice(&scales);
    }
    assert_same_bytes(&got["kv_cache"], &expected, "pages");
}
