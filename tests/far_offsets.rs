//! Caches of more than 2^32 elements, of which the emulator holds only the blocks that are named.
#![allow(missing_docs, reason = "a test crate has no readers of its docs")]

mod common;
mod far;

use common::{case, emulated};
use far::{Far, upload, workspace};
use ferroattn::cases::fill::{self, Amount, NO_BLOCK};
use ferroattn::cases::{Case, ScoreSums, UnifiedTensors, compare_unified};
use ferroattn::emulator::Emulator;
use ferroattn::ops::{
    BlockCaches, CacheScales, CacheWriteRequest, CheckMode, ConcatAndCacheMlaRequest,
    CopyBlocksRequest, MlaCacheForm, UnifiedOptions, UnifiedRequest,
};
use ferroattn::reference::{
    HostTensor, mla_fp8_ds_entry, reshape_and_cache_flash, reshape_and_cache_per_token_head,
};
use ferroattn::runtime::{Buffer, Launcher};
use ferroattn::tensor::Dtype;

/// Slots of blocks that are `first_block` further on.
fn shifted(slots: &HostTensor, first_slot: usize) -> HostTensor {
    let slots_of = (0..slots.shape[0]).map(|token| slots.integer(&[token]));
    let first = i64::try_from(first_slot).expect("fits");
    let shift = |slot: i64| if slot < 0 { slot } else { slot + first };
    slots.with_bytes(slots_of.map(shift).flat_map(i64::to_le_bytes).collect())
}

#[test]
fn unified_attention_finds_far_blocks_with_every_kind_of_product() {
    for (capability, form, q_lens, num_decodes) in [
        ((9, 0), "bf16 heads=6/2 d=64", "70,1", 0),
        ((8, 0), "bf16 heads=6/2 d=64", "70,1", 0),
        ((9, 0), "bf16 heads=6/2 d=96", "70,1", 0),
        ((9, 0), "bf16 heads=6/2 d=64", "1,40", 1),
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
        let first = i32::try_from(keys.first_block).expect("fits");
        let ids = base.block_table.storage.bytes.as_chunks::<4>().0.iter();
        let ids = ids.map(|&id| i32::from_le_bytes(id));
        let ids = ids.map(|id| if id == NO_BLOCK { id } else { id + first });
        let table = base
            .block_table
            .with_bytes(ids.flat_map(i32::to_le_bytes).collect());
        let [query, block_table, seq_lens, starts] = [
            &base.query,
            &table,
            &base.seq_lens,
            &tensors.query_start_loc,
        ]
        .map(|tensor| upload(&emulator, tensor));
        let mut out = upload(&emulator, &base.out);
        let request = UnifiedRequest {
            query: query.view(),
            key_cache: keys.buffer.view(),
            value_cache: values.buffer.view(),
            block_table: block_table.view(),
            query_start_loc: starts.view(),
            seq_lens: seq_lens.view(),
            out: out.view_mut(),
            lse: None,
            softmax_scale: case.base.scale(),
            scales: None,
            options: UnifiedOptions::default().num_decodes(num_decodes),
        };
        let checked = request.check().expect("a good request");
        let plan = checked.plan(&emulator.device()).expect("a plan");
        let mut workspace = workspace(&emulator, plan.workspace_bytes());
        checked
            .launch(&plan, &mut workspace.view_mut(), &emulator)
            .expect("launched");
        let got = base.out.with_bytes(out.read().expect("read"));
        let tokens: Vec<usize> = (0..base.query.shape[0]).collect();
        compare_unified(&case, &tensors, &got, None, &tokens, ScoreSums::F32)
            .unwrap_or_else(|error| panic!("{line} on {capability:?}: {error}"));
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
