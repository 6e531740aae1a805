//! Caches of more than 2^32 elements, of which the emulator holds only the blocks that are named.
#![allow(missing_docs, reason = "a test crate has no readers of its docs")]

mod common;
mod far;

use common::{case, decode_case, emulated};
use far::{Far, upload, workspace};
use ferroattn::cases::fill::{self, Amount, NO_BLOCK};
use ferroattn::cases::{
    Case, DeviceDecode, DeviceEntries, DeviceUnified, EntryTensors, HostList, ScoreSums,
    UnifiedTensors, compare_decode, compare_entries, compare_unified,
};
use ferroattn::emulator::Emulator;
use ferroattn::ops::{
    BlockCaches, CacheScales, CacheWriteRequest, CheckMode, ConcatAndCacheMlaRequest,
    CopyBlocksRequest, EntryTokens, MlaCacheForm,
};
use ferroattn::reference::{
    HostTensor, mla_fp8_ds_entry, reshape_and_cache_flash, reshape_and_cache_per_token_head,
};
use ferroattn::runtime::{Buffer, Launcher};
use ferroattn::tensor::{Dtype, TensorView};

/// Slots of blocks that are `first_block` further on.
fn shifted(slots: &HostTensor, first_slot: usize) -> HostTensor {
    let slots_of = (0..slots.shape[0]).map(|token| slots.integer(&[token]));
    let first = i64::try_from(first_slot).expect("fits");
    let shift = |slot: i64| if slot < 0 { slot } else { slot + first };
    slots.with_bytes(slots_of.map(shift).flat_map(i64::to_le_bytes).collect())
}

/// A block table whose blocks are `first_block` further on.
fn shifted_table(table: &HostTensor, first_block: usize) -> HostTensor {
    let first = i32::try_from(first_block).expect("fits");
    let ids = table.storage.bytes.as_chunks::<4>().0.iter();
    let ids = ids.map(|&id| i32::from_le_bytes(id));
    let ids = ids.map(|id| if id == NO_BLOCK { id } else { id + first });
    table.with_bytes(ids.flat_map(i32::to_le_bytes).collect())
}

/// Plans and runs a good request of attention; the plan, on one line.
macro_rules! launch {
    ($request:expr, $emulator:expr) => {{
        let checked = $request.check().expect("a good request");
        let plan = checked.plan(&$emulator.device()).expect("a plan");
        let mut workspace = workspace($emulator, plan.workspace_bytes());
        checked
            .launch(&plan, &mut workspace.view_mut(), $emulator)
            .expect("launched");
        plan.to_string()
    }};
}

#[test]
fn unified_attention_finds_far_blocks_with_every_kind_of_product() {
    for (capability, form, q_lens, kernel) in [
        ((9, 0), "bf16 heads=6/2 d=64", "70,1", "bf16_d64_sm90a"),
        ((8, 0), "bf16 heads=6/2 d=64", "70,1", "bf16_d64"),
        ((9, 0), "bf16 heads=6/2 d=96", "70,1", "bf16_d96"),
        (
            (9, 0),
            "bf16 heads=6/2 d=64",
            "1,40 decodes_first=on",
            "decode_gqa_bf16_d64_h8",
        ),
        (
            (8, 0),
            "bf16 heads=6/2 kv=fp8_e4m3 d=64",
            "70,1",
            "e4m3_d64",
        ),
        (
            (9, 0),
            "bf16 heads=6/2 kv=fp8_e4m3 d=64",
            "70,1",
            "e4m3_d64_sm90a",
        ),
        (
            (9, 0),
            "bf16 heads=6/2 kv=fp8_e4m3 d=128",
            "70,1",
            "e4m3_d128_sm90a",
        ),
        (
            (9, 0),
            "bf16 heads=6/2 kv=fp8_e4m3 q=fp8_e4m3 d=64",
            "70,1",
            "e4m3_qe4m3_d64_sm90a",
        ),
        ((9, 0), "bf16 heads=6/2 d=256", "70,1", "bf16_d256_sm90a"),
        (
            (9, 0),
            "bf16 heads=6/2 kv=fp8_e4m3 d=256",
            "70,1",
            "e4m3_d256_sm90a",
        ),
    ] {
        let line = format!("unified {form} page=16 layout=nhd lens=90,40 q_lens={q_lens}");
        let Case::Unified(case) = case(&line) else {
            panic!("{line} is no unified attention")
        };
        let tensors = UnifiedTensors::new(&case, 1, Amount::WHOLE).expect("few tokens");
        let base = &tensors.base;
        let emulator = emulated(capability);
        let [keys, values] =
            [&base.key_cache, &base.value_cache].map(|cache| Far::new(&emulator, cache));
        let table = shifted_table(&base.block_table, keys.first_block);
        let table = upload(&emulator, &table);
        let mut device = DeviceUnified::new(&emulator, tensors.clone()).expect("memory");
        let mut request = device.request(&case, 1, 0).expect("views");
        request.key_cache = keys.buffer.view();
        request.value_cache = values.buffer.view();
        request.block_table = table.view();
        let plan = launch!(request, &emulator);
        assert!(plan.contains(&format!("{kernel} ")), "{kernel} of {plan}");
        let (out, lse) = device.results().expect("read");
        let tokens: Vec<usize> = (0..base.query.shape[0]).collect();
        compare_unified(&case, &tensors, &out, lse.as_ref(), &tokens, ScoreSums::F32)
            .unwrap_or_else(|error| panic!("{line} on {capability:?}: {error}"));
    }
}

#[test]
fn latent_attention_finds_far_blocks_with_every_kind_of_product() {
    for (capability, form, kernel) in [
        ((8, 0), "heads=4/1", "bf16_d576v512_h16"),
        ((9, 0), "heads=4/1", "bf16_d576v512_h16"),
        ((9, 0), "heads=40/1", "bf16_d576v512_h64_sm90a"),
        ((10, 0), "heads=40/1 kv=fp8_e4m3", "e4m3_d576v512_h64"),
        ((9, 0), "heads=40/1 kv=fp8_e4m3", "e4m3_d576v512_h64_sm90a"),
    ] {
        let line = format!("decode_mla bf16 {form} d=576 dv=512 page=16 layout=nhd lens=150,7");
        let case = decode_case(&line);
        let tensors = fill::decode(&case, 1, Amount::WHOLE);
        let emulator = emulated(capability);
        // Without the dimension of its one head.
        let mut cache = tensors.key_cache.clone();
        cache.shape.remove(2);
        cache.strides.remove(2);
        let far = Far::new(&emulator, &cache);
        let table = shifted_table(&tensors.block_table, far.first_block);
        let table = upload(&emulator, &table);
        let mut device = DeviceDecode::new(&emulator, tensors.clone()).expect("memory");
        let request = device.mla_request(0, case.scale(), case.options());
        let mut request = request.expect("views");
        request.cache = far.buffer.view();
        request.block_table = table.view();
        let plan = launch!(request, &emulator);
        assert!(plan.contains(&format!("{kernel} ")), "{kernel} of {plan}");
        let (out, lse) = device.results().expect("read");
        compare_decode(&case, &tensors, &out, lse.as_ref(), &[0, 1])
            .unwrap_or_else(|error| panic!("{line} on {capability:?}: {error}"));
    }
}

/// A cache as pages that lie side by side, what is between them included.
fn pages(cache: &HostTensor) -> HostTensor {
    HostTensor {
        shape: vec![cache.shape[0], cache.strides[0]],
        strides: vec![cache.strides[0], 1],
        ..cache.clone()
    }
}

/// The blocks of `cache` in far pages.
fn view_of_pages<'f>(far: &'f Far<'_>, cache: &HostTensor) -> TensorView<'f> {
    let mut shape = cache.shape.clone();
    shape[0] += far.first_block;
    let strides: Vec<i64> = cache
        .strides
        .iter()
        .map(|&stride| i64::try_from(stride).expect("fits"))
        .collect();
    let address = far.buffer.view().address();
    // SAFETY: the pages have room for the blocks; the view borrows them.
    let view = unsafe { TensorView::from_raw(address, cache.dtype, &shape, &strides) };
    view.expect("a stride for each dimension")
}

#[test]
fn attention_to_entries_finds_far_ones() {
    let emulator = emulated((9, 0));
    for (form, kernel) in [
        ("form=656 heads=4", "fp8_ds_h16"),
        ("form=656 heads=64", "fp8_ds_h64_sm90a"),
        ("form=656 heads=64 topk=40", "fp8_ds_h64_sm90a"),
        ("form=584 heads=4", "v4_h16"),
        ("form=656 heads=4 topk=40", "fp8_ds_h16"),
        ("form=656 heads=4 topk=40 by=table", "fp8_ds_h16"),
        ("form=584 heads=64 topk=40 swa=20", "v4_h64"),
    ] {
        let line = format!("decode_mla_entry bf16 {form} page=16 lens=150,7");
        let Case::DecodeEntries(case) = case(&line) else {
            panic!("{line} is no decode over entries")
        };
        let tensors = EntryTensors::new(&case, 1, Amount::WHOLE);
        let far = Far::new(&emulator, &pages(&tensors.cache));
        let far_window = tensors
            .window
            .as_ref()
            .map(|(cache, _)| Far::new(&emulator, &pages(cache)));
        let table = shifted_table(&tensors.block_table, far.first_block);
        let table = upload(&emulator, &table);
        // Slots of lists are counted through all blocks, those of the sequence are not.
        let is_by_table = case.topk.is_some_and(|topk| topk.by_table);
        let list = |list: &HostList, first_block: usize| {
            let first = i32::try_from(case.block_size * first_block).expect("fits");
            let slots = list.indices.storage.bytes.as_chunks::<4>().0.iter();
            let slots = slots.map(|&slot| i32::from_le_bytes(slot));
            let shift = |slot: i32| if slot < 0 { slot } else { slot + first };
            let bytes = slots.map(shift).flat_map(i32::to_le_bytes).collect();
            // A sequence has one query token.
            let mut indices = list.indices.with_bytes(bytes);
            indices.shape.insert(1, 1);
            upload(&emulator, &indices)
        };
        let lists = [
            tensors
                .topk
                .as_ref()
                .map(|it| list(it, if is_by_table { 0 } else { far.first_block })),
            tensors
                .window
                .as_ref()
                .zip(far_window.as_ref())
                .map(|((_, it), far)| list(it, far.first_block)),
        ];
        let mut device = DeviceEntries::new(&emulator, tensors.clone()).expect("memory");
        let mut request = device.request(&case, 0).expect("views");
        request.cache = view_of_pages(&far, &tensors.cache);
        match &mut request.tokens {
            EntryTokens::All { block_table, .. } => *block_table = table.view(),
            EntryTokens::TopK {
                topk_indices,
                block_table,
                window,
                ..
            } => {
                *topk_indices = lists[0].as_ref().expect("a list").view();
                *block_table = block_table.map(|_| table.view());
                if let (Some(window), Some(far), Some(list)) = (window, &far_window, &lists[1]) {
                    let (cache, _) = tensors.window.as_ref().expect("a second cache");
                    (window.cache, window.indices) = (view_of_pages(far, cache), list.view());
                }
            }
        }
        let plan = launch!(request, &emulator);
        assert!(plan.contains(&format!("{kernel} ")), "{kernel} of {plan}");
        let (out, lse) = device.results().expect("read");
        compare_entries(&case, &tensors, &out, lse.as_ref(), &[0, 1])
            .unwrap_or_else(|error| panic!("{line}: {error}"));
    }
}

#[test]
fn cache_writes_reach_far_blocks() {
    for line in [
        "reshape_and_cache_flash bf16 heads=3 d=64 page=16 layout=nhd tokens=42 skip=5",
        "reshape_and_cache_flash bf16 heads=3 d=46 page=16 layout=nhd tokens=42 skip=5",
        "reshape_and_cache_flash bf16 heads=3 kv=i8 scales=token d=64 page=16 layout=nhd tokens=42 skip=5",
    ] {
        let Case::CacheWrite(case) = case(line) else {
            panic!("{line} is no cache write")
        };
        let emulator = Emulator::new();
        let tensors = fill::cache_write(&case, 1, Amount::WHOLE);
        let caches = [&tensors.key_cache, &tensors.value_cache];
        let [mut keys, mut values] = caches.map(|cache| Far::new(&emulator, cache));
        let first_block = keys.first_block;
        // As many scales as there are slots.
        let mut scales = tensors.scales.iter().flatten().map(|scales| {
            let mut shape = scales.shape.clone();
            shape[0] += first_block;
            Buffer::uninit(&emulator, "scales", Dtype::F32, &shape).expect("sparse")
        });
        let (mut k_scale, mut v_scale) = (scales.next(), scales.next());
        let slots = shifted(&tensors.slot_mapping, 16 * first_block);
        let [key, value, slots] =
            [&tensors.key, &tensors.value, &slots].map(|tensor| upload(&emulator, tensor));
        let request = CacheWriteRequest {
            key: key.view(),
            value: value.view(),
            key_cache: keys.buffer.view_mut(),
            value_cache: values.buffer.view_mut(),
            slot_mapping: slots.view(),
            block_size: 16,
            scales: match (&mut k_scale, &mut v_scale) {
                (Some(k_scale), Some(v_scale)) => CacheScales::PerTokenHead {
                    k_scale: k_scale.view_mut(),
                    v_scale: v_scale.view_mut(),
                },
                _ => CacheScales::None,
            },
            check: CheckMode::Off,
        };
        let checked = request.check().expect("a good request");
        checked
            .launch(
                &checked.plan(),
                &mut workspace(&emulator, 0).view_mut(),
                &emulator,
            )
            .expect("launched");
        for (side, (new, far)) in [(&tensors.key, &keys), (&tensors.value, &values)]
            .into_iter()
            .enumerate()
        {
            let cache = caches[side];
            let mut expected = cache.storage.bytes.clone();
            let slots = &tensors.slot_mapping;
            match &tensors.scales {
                None => reshape_and_cache_flash(new, slots, cache, &mut expected),
                Some(scales) => {
                    reshape_and_cache_per_token_head(
                        new,
                        slots,
                        cache,
                        &mut expected,
                        &scales[side],
                    );
                }
            }
            assert!(far.bytes(expected.len()) == expected, "{line}");
        }
    }
}

#[test]
fn mla_writes_reach_far_blocks() {
    let emulator = Emulator::new();
    let latents: Vec<f32> = (0u8..=255).cycle().map(f32::from).take(512).collect();
    let bf16 = |x: f32| half::bf16::from_f32(x).to_le_bytes();
    let rope: Vec<u8> = (0u8..128).collect();
    let kv_c = latents.iter().copied().flat_map(bf16).collect();
    let kv_c = HostTensor::contiguous("kv_c", Dtype::Bf16, &[1, 512], kv_c);
    let k_pe = HostTensor::contiguous("k_pe", Dtype::Bf16, &[1, 64], rope.clone());
    let cache = HostTensor::contiguous("kv_cache", Dtype::U8, &[2, 64, 656], vec![7; 2 * 64 * 656]);
    let mut far = Far::new(&emulator, &cache);
    let slot = i64::try_from((far.first_block + 1) * 64 + 5).expect("fits");
    let slots = slot.to_le_bytes().to_vec();
    let slots = HostTensor::contiguous("slots", Dtype::I64, &[1], slots);
    let [kv_c, k_pe, slots] = [&kv_c, &k_pe, &slots].map(|tensor| upload(&emulator, tensor));
    let checked = ConcatAndCacheMlaRequest {
        kv_c: kv_c.view(),
        k_pe: Some(k_pe.view()),
        kv_cache: far.buffer.view_mut(),
        slot_mapping: slots.view(),
        block_size: 64,
        form: MlaCacheForm::Fp8Ds {
            rule: ferroattn::ops::ScaleRule::Exact,
        },
        check: CheckMode::Off,
    }
    .check()
    .expect("a good request");
    checked
        .launch(
            &checked.plan(),
            &mut workspace(&emulator, 0).view_mut(),
            &emulator,
        )
        .expect("launched");
    let mut expected = cache.storage.bytes.clone();
    let at = (64 + 5) * 656;
    expected[at..at + 656].copy_from_slice(&mla_fp8_ds_entry(&latents, &rope, false));
    assert!(far.bytes(expected.len()) == expected);
}

#[test]
fn copies_reach_far_blocks() {
    let emulator = Emulator::new();
    let bytes: Vec<u8> = (0..4u8)
        .flat_map(|block| [block + 1; 16 * 64 * 2])
        .collect();
    let cache = HostTensor::contiguous("cache", Dtype::Bf16, &[4, 16, 64], bytes);
    let mut far = Far::new(&emulator, &cache);
    let first = i64::try_from(far.first_block).expect("fits");
    let pairs = [first, first + 2, first + 3, first + 1];
    let pairs = pairs.into_iter().flat_map(i64::to_le_bytes).collect();
    let pairs = HostTensor::contiguous("pairs", Dtype::I64, &[2, 2], pairs);
    let pairs = upload(&emulator, &pairs);
    let checked = CopyBlocksRequest {
        caches: BlockCaches::Within(far.buffer.view_mut()),
        pairs: pairs.view(),
        check: CheckMode::Off,
    }
    .check()
    .expect("a good request");
    checked
        .launch(
            &checked.plan(),
            &mut workspace(&emulator, 0).view_mut(),
            &emulator,
        )
        .expect("launched");
    let blocks = far.bytes(cache.storage.len);
    let firsts: Vec<u8> = blocks.chunks(16 * 64 * 2).map(|block| block[0]).collect();
    assert_eq!(firsts, [1, 4, 1, 4]);
    assert!(
        blocks
            .chunks(16 * 64 * 2)
            .all(|block| block.iter().all(|&b| b == block[0]))
    );
}
