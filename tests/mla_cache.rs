//! `concat_and_cache_mla` in every form, byte by byte against the reference, poison around the slots included.
#![allow(missing_docs, reason = "a test crate has no readers of its docs")]

mod tensors;

use std::sync::Arc;

use ferroattn::Error;
use ferroattn::error::{CheckError, RequestError};
use ferroattn::ops::{
    CacheTable, CheckMode, ConcatAndCacheMlaGroupedRequest, ConcatAndCacheMlaRequest, MlaCacheForm,
    ScaleRule, check_result,
};
use ferroattn::reference::{
    HostTensor, mla_fp8_ds_entry, mla_v4_entry, reshape_and_cache_flash, reshape_and_cache_scaled,
};
use ferroattn::tensor::{Dtype, TensorView};
use half::bf16;
use tensors::*;

const NUM_TOKENS: usize = 42;
const BLOCK_SIZE: usize = 16;
const NUM_BLOCKS: usize = 8;

/// Latents and RoPE keys as parts of one tensor, as a projection leaves them, and slots with padding.
fn inputs(dtype: Dtype, sizes: [usize; 2], random: &mut Random) -> [HostTensor; 3] {
    let row = sizes[0] + sizes[1];
    let data = values(dtype, NUM_TOKENS * row, random);
    let fused = tensor("kv_c and k_pe", dtype, &[NUM_TOKENS, row], data);
    let part = |offset, size| {
        view_of(
            &fused.storage,
            dtype,
            offset,
            &[NUM_TOKENS, size],
            &[row, 1],
        )
    };
    let slots = slots(NUM_TOKENS, NUM_BLOCKS * BLOCK_SIZE, 7, random);
    [
        part(0, sizes[0]),
        part(sizes[0], sizes[1]),
        longs("slot_mapping", &slots),
    ]
}

fn write(
    machine: &Machine,
    kv_c: &HostTensor,
    k_pe: Option<&HostTensor>,
    kv_cache: &HostTensor,
    slots: &HostTensor,
    form: MlaCacheForm<'static>,
) -> Result<Vec<u8>, Error> {
    let request = ConcatAndCacheMlaRequest {
        kv_c: machine.view(kv_c),
        k_pe: k_pe.map(|k_pe| machine.view(k_pe)),
        kv_cache: machine.view_mut(kv_cache),
        slot_mapping: machine.view(slots),
        block_size: BLOCK_SIZE,
        form,
        check: CheckMode::Device,
    };
    let checked = request.check()?;
    let plan = checked.plan();
    let mut workspace = machine.workspace(plan.workspace_bytes());
    checked.launch(&plan, &mut workspace, &machine.emulator)?;
    Ok(machine.read(kv_cache))
}

#[test]
fn plain_and_fp8() {
    for (rank, rope) in [(512, 64), (256, 64), (512, 3)] {
        for dtype in [Dtype::Bf16, Dtype::F16, Dtype::F32] {
            for form in [dtype, Dtype::F8E4m3, Dtype::F8E5m2] {
                let mut random = Random::new(1);
                let [kv_c, k_pe, slots] = inputs(dtype, [rank, rope], &mut random);
                let shape = [NUM_BLOCKS, BLOCK_SIZE, rank + rope];
                let cache = poisoned_tensor("kv_cache", form, &shape);
                let machine = Machine::new();
                let scale = floats("scale", &[1], &[0.1]);
                let mla_form = if form == dtype {
                    MlaCacheForm::Plain
                } else {
                    MlaCacheForm::Fp8 {
                        scale: machine.view(&scale),
                    }
                };
                let got = write(&machine, &kv_c, Some(&k_pe), &cache, &slots, mla_form)
                    .unwrap_or_else(|error| panic!("{dtype} to {form}: {error}"));
                let mut bytes = cache.storage.bytes.clone();
                for (new, first) in [(&kv_c, 0), (&k_pe, rank)] {
                    let (new, part) = one_head(new, &cache, first);
                    if form == dtype {
                        reshape_and_cache_flash(&new, &slots, &part, &mut bytes);
                    } else {
                        reshape_and_cache_scaled(&new, &slots, &[0.1], &part, &mut bytes);
                    }
                }
                assert_same_bytes(&got, &bytes, &format!("{dtype} to {form}, {rank} + {rope}"));
            }
        }
    }
}

#[test]
fn entries_of_656_bytes() {
    for rule in [ScaleRule::Exact, ScaleRule::PowerOfTwo] {
        for has_rope in [true, false] {
            let mut random = Random::new(2);
            let [kv_c, k_pe, slots] = inputs(Dtype::Bf16, [512, 64], &mut random);
            // Blocks further apart than they are long, as a cache of several layers has them.
            let block = BLOCK_SIZE * 656 * 2;
            let storage = poisoned("kv_cache", NUM_BLOCKS * block);
            let shape = [NUM_BLOCKS, BLOCK_SIZE, 656];
            let cache = view_of(&storage, Dtype::U8, 0, &shape, &[block, 656, 1]);
            let k_pe = has_rope.then_some(&k_pe);
            let form = MlaCacheForm::Fp8Ds { rule };
            let got = write(&Machine::new(), &kv_c, k_pe, &cache, &slots, form).expect("runs");
            let mut bytes = storage.bytes.clone();
            for (token, slot) in slots_of(&slots) {
                let rope = k_pe.map_or_else(|| vec![0; 128], |k_pe| row(k_pe, token).1);
                let entry =
                    mla_fp8_ds_entry(&row(&kv_c, token).0, &rope, rule == ScaleRule::PowerOfTwo);
                let at = slot / BLOCK_SIZE * block + slot % BLOCK_SIZE * 656;
                bytes[at..at + 656].copy_from_slice(&entry);
            }
            assert_same_bytes(&got, &bytes, &format!("{rule:?}, RoPE {has_rope}"));
        }
    }
}

#[test]
fn scales_that_flashmla_expects() {
    // Tile 0: 336 -> .75 -> 1; tile 1: zeros -> 2^-13; tiles 2 and 3: one step above and at a power of two.
    let mut latents = vec![bf16::ZERO; 512];
    latents[5] = bf16::from_f32(-336.0);
    latents[300] = bf16::from_f32(450.0);
    latents[400] = bf16::from_f32(448.0);
    let bytes = latents.iter().flat_map(|x| x.to_le_bytes()).collect();
    let kv_c = tensor("kv_c", Dtype::Bf16, &[1, 512], bytes);
    let cache = poisoned_tensor("kv_cache", Dtype::U8, &[1, BLOCK_SIZE, 656]);
    let slots = longs("slot_mapping", &[3]);
    let form = MlaCacheForm::Fp8Ds {
        rule: ScaleRule::PowerOfTwo,
    };
    let got = write(&Machine::new(), &kv_c, None, &cache, &slots, form).expect("runs");
    let entry = &got[3 * 656..4 * 656];
    let scales: Vec<f32> = entry[512..528]
        .chunks(4)
        .map(|word| f32::from_le_bytes(word.try_into().expect("four bytes")))
        .collect();
    assert_eq!(scales, [1.0, 2f32.powi(-13), 2.0, 1.0]);
    assert_eq!(
        entry[5], 0xfa,
        "-336, one of 16 steps below -448 and above -320"
    );
}

#[test]
fn pages_of_v4() {
    for block_size in [16, 64] {
        for num_tokens in [1, 4, 8, 17] {
            let mut random = Random::new(3);
            let data = values(Dtype::Bf16, num_tokens * 512, &mut random);
            let k = tensor("k", Dtype::Bf16, &[num_tokens, 512], data);
            let part = |offset, size| {
                view_of(
                    &k.storage,
                    Dtype::Bf16,
                    offset,
                    &[num_tokens, size],
                    &[512, 1],
                )
            };
            let (nope, rope) = (part(0, 448), part(448, 64));
            // Pages are padded to multiples of 576 bytes.
            let page = (block_size * 584usize).next_multiple_of(576);
            let cache = poisoned_tensor("kv_cache", Dtype::U8, &[4, page]);
            let list = slots(num_tokens, 4 * block_size, 5, &mut random);
            let slots = longs("slot_mapping", &list);
            let machine = Machine::new();
            let request = ConcatAndCacheMlaRequest {
                kv_c: machine.view(&nope),
                k_pe: Some(machine.view(&rope)),
                kv_cache: machine.view_mut(&cache),
                slot_mapping: machine.view(&slots),
                block_size,
                form: MlaCacheForm::V4,
                check: CheckMode::Off,
            };
            let checked = request.check().expect("fits");
            let mut workspace = machine.workspace(0);
            checked
                .launch(&checked.plan(), &mut workspace, &machine.emulator)
                .expect("runs");
            let mut bytes = cache.storage.bytes.clone();
            for (token, slot) in slots_of(&slots) {
                let (entry, scales) = mla_v4_entry(&row(&nope, token).0, &row(&rope, token).1);
                let (start, offset) = (slot / block_size * page, slot % block_size);
                let at = start + offset * 576;
                bytes[at..at + 576].copy_from_slice(&entry);
                let at = start + block_size * 576 + offset * 8;
                bytes[at..at + 8].copy_from_slice(&scales);
            }
            let what = format!("{num_tokens} tokens in blocks of {block_size}");
            assert_same_bytes(&machine.read(&cache), &bytes, &what);
        }
    }
}

#[test]
fn many_layers_in_one_launch() {
    const LAYERS: usize = 5;
    let sizes = [512, 64];
    for form in [Dtype::Bf16, Dtype::F8E4m3, Dtype::F8E5m2] {
        for shared_slots in [false, true] {
            let mut random = Random::new(4);
            let layers: Vec<[HostTensor; 3]> = (0..LAYERS)
                .map(|_| inputs(Dtype::Bf16, sizes, &mut random))
                .collect();
            let scales = [0.05f32, 0.1, 0.15, 0.2, 0.25];
            let shape = [NUM_BLOCKS, BLOCK_SIZE, 576];
            let machine = Machine::new();
            // One tensor of all layers' tokens, and a table of caches.
            let bytes = layers
                .iter()
                .flat_map(|[kv_c, ..]| kv_c.storage.bytes.clone())
                .collect();
            let all = tensor(
                "kv_c and k_pe",
                Dtype::Bf16,
                &[LAYERS, NUM_TOKENS, 576],
                bytes,
            );
            let part = |offset, size| {
                let strides = [NUM_TOKENS * 576, 576, 1];
                view_of(
                    &all.storage,
                    Dtype::Bf16,
                    offset,
                    &[LAYERS, NUM_TOKENS, size],
                    &strides,
                )
            };
            let mut slot_lists: Vec<i64> = Vec::new();
            for [.., slots] in &layers {
                slot_lists.extend((0..NUM_TOKENS).map(|token| slots.integer(&[token])));
            }
            let last = slot_lists.len() - 1;
            slot_lists[last] = -1;
            let slot_storage = longs("slot_mapping", &slot_lists).storage;
            let layer_stride = if shared_slots { 0 } else { NUM_TOKENS };
            let slots = view_of(
                &slot_storage,
                Dtype::I64,
                0,
                &[LAYERS, NUM_TOKENS],
                &[layer_stride, 1],
            );
            let caches: Vec<HostTensor> = (0..LAYERS)
                .map(|_| poisoned_tensor("kv_cache", form, &shape))
                .collect();
            let addresses: Vec<i64> = caches
                .iter()
                .map(|cache| machine.address(cache).cast_signed())
                .collect();
            let table = longs("cache addresses", &addresses);
            let scale_tensor = floats("scales", &[LAYERS], &scales);
            let strides: Vec<i64> = ferroattn::tensor::contiguous_strides(&shape);
            let request = ConcatAndCacheMlaGroupedRequest {
                kv_c: machine.view(&part(0, 512)),
                k_pe: machine.view(&part(512, 64)),
                // SAFETY: the addresses are caches of this shape.
                kv_caches: unsafe {
                    CacheTable::from_raw(machine.view(&table), form, &shape, &strides)
                }
                .expect("three strides"),
                slot_mapping: machine.view(&slots),
                block_size: BLOCK_SIZE,
                scales: (form != Dtype::Bf16)
                    .then(|| -> TensorView<'static> { machine.view(&scale_tensor) }),
                check: CheckMode::Device,
            };
            let checked = request.check().expect("fits");
            let plan = checked.plan();
            let mut workspace = machine.workspace(plan.workspace_bytes());
            checked
                .launch(&plan, &mut workspace, &machine.emulator)
                .expect("runs");
            check_result(&machine.read_workspace(&workspace)).expect("good slots");
            for (layer, cache) in caches.iter().enumerate() {
                let start = layer * layer_stride;
                let slots = longs("slots", &slot_lists[start..start + NUM_TOKENS]);
                let [kv_c, k_pe, _] = &layers[layer];
                let mut bytes = cache.storage.bytes.clone();
                for (new, first) in [(kv_c, 0), (k_pe, 512)] {
                    let (new, part) = one_head(new, cache, first);
                    if form == Dtype::Bf16 {
                        reshape_and_cache_flash(&new, &slots, &part, &mut bytes);
                    } else {
                        let scale = [scales[layer]];
                        reshape_and_cache_scaled(&new, &slots, &scale, &part, &mut bytes);
                    }
                }
                assert_same_bytes(
                    &machine.read(cache),
                    &bytes,
                    &format!("layer {layer}, {form}"),
                );
            }
        }
    }
}

#[test]
fn a_bad_slot_of_one_layer_keeps_all_layers_from_being_written() {
    let machine = Machine::new();
    let [kv_c, k_pe] = [("kv_c", 512), ("k_pe", 64)]
        .map(|(name, size)| poisoned_tensor(name, Dtype::Bf16, &[2, 3, size]));
    let shape = [NUM_BLOCKS, BLOCK_SIZE, 576];
    let caches = [(); 2].map(|()| poisoned_tensor("kv_cache", Dtype::Bf16, &shape));
    let addresses = caches
        .each_ref()
        .map(|cache| machine.address(cache).cast_signed());
    let strides = ferroattn::tensor::contiguous_strides(&shape);
    let end = i64::try_from(NUM_BLOCKS * BLOCK_SIZE).expect("small");
    // The layers' slots lie five apart; the two between are nobody's.
    let storage = longs("slot_mapping", &[0, 1, -1, end, end, 2, 3, end]).storage;
    let request = ConcatAndCacheMlaGroupedRequest {
        kv_c: machine.view(&kv_c),
        k_pe: machine.view(&k_pe),
        // SAFETY: the addresses are caches of this shape.
        kv_caches: unsafe {
            let table = machine.view(&longs("cache addresses", &addresses));
            CacheTable::from_raw(table, Dtype::Bf16, &shape, &strides)
        }
        .expect("three strides"),
        slot_mapping: machine.view(&view_of(&storage, Dtype::I64, 0, &[2, 3], &[5, 1])),
        block_size: BLOCK_SIZE,
        scales: None,
        check: CheckMode::Device,
    };
    let checked = request.check().expect("fits");
    let mut workspace = machine.workspace(checked.plan().workspace_bytes());
    checked
        .launch(&checked.plan(), &mut workspace, &machine.emulator)
        .expect("runs");
    let fault = CheckError::Slot {
        layer: Some(1),
        token: 2,
        value: end,
        num_slots: end,
    };
    assert_eq!(
        check_result(&machine.read_workspace(&workspace)),
        Err(fault)
    );
    for cache in &caches {
        assert_same_bytes(&machine.read(cache), &cache.storage.bytes, "untouched");
    }
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let machine = Machine::new();
    let [kv_c, k_pe, slots] = inputs(Dtype::Bf16, [512, 64], &mut Random::new(5));
    let refuse = |kv_c: &HostTensor, cache: &HostTensor, form| match write(
        &machine,
        kv_c,
        Some(&k_pe),
        cache,
        &slots,
        form,
    ) {
        Err(Error::Request(error)) => error,
        other => panic!("{other:?}"),
    };
    let ds = MlaCacheForm::Fp8Ds {
        rule: ScaleRule::Exact,
    };
    let cache = poisoned_tensor("kv_cache", Dtype::U8, &[NUM_BLOCKS, BLOCK_SIZE, 656]);
    let short = view_of(&kv_c.storage, Dtype::Bf16, 0, &[NUM_TOKENS, 256], &[576, 1]);
    let error = refuse(&short, &cache, ds);
    assert!(
        matches!(error, RequestError::Shape { tensor: "kv_c", .. }),
        "{error}"
    );
    let cache = poisoned_tensor("kv_cache", Dtype::U8, &[NUM_BLOCKS, BLOCK_SIZE, 584]);
    let error = refuse(&kv_c, &cache, ds);
    assert!(
        matches!(
            error,
            RequestError::Shape {
                tensor: "kv_cache",
                ..
            }
        ),
        "{error}"
    );
    let cache = poisoned_tensor(
        "kv_cache",
        Dtype::F8E4m3Fnuz,
        &[NUM_BLOCKS, BLOCK_SIZE, 576],
    );
    let error = refuse(&kv_c, &cache, MlaCacheForm::Plain);
    assert!(matches!(error, RequestError::Fnuz { .. }), "{error}");
    assert_eq!(
        Arc::strong_count(&cache.storage),
        2,
        "the machine keeps one"
    );
}
