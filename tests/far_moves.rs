//! What else reads or writes caches of more than 2^32 elements: rotated keys, caches of many layers, gathers, compaction.
#![allow(missing_docs, reason = "a test crate has no readers of its docs")]

mod far;

use far::{Far, upload, workspace};
use ferroattn::emulator::Emulator;
use ferroattn::ops::{
    CacheScales, CacheTable, CacheWriteRequest, CheckMode, CompactReferences, CompactRequest,
    ConcatAndCacheMlaGroupedRequest, GatherForm, GatherRequest, GatherRows, RopeAndCacheRequest,
    RopeStyle, RopeTable,
};
use ferroattn::reference::{HostTensor, reshape_and_cache_flash};
use ferroattn::runtime::Buffer;
use ferroattn::tensor::{Dtype, contiguous_strides};

/// Checks a request, and runs it.
macro_rules! launch {
    ($request:expr, $emulator:expr) => {{
        let checked = $request.check().expect("a good request");
        let plan = checked.plan();
        let mut workspace = workspace($emulator, plan.workspace_bytes());
        let launched = checked.launch(&plan, &mut workspace.view_mut(), $emulator);
        launched.unwrap_or_else(|error| panic!("{error}"));
    }};
}

fn longs(name: &'static str, shape: &[usize], values: &[i64]) -> HostTensor {
    let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    HostTensor::contiguous(name, Dtype::I64, shape, bytes)
}

fn ints(name: &'static str, shape: &[usize], values: &[i32]) -> HostTensor {
    let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    HostTensor::contiguous(name, Dtype::I32, shape, bytes)
}

/// Small whole numbers in bf16, each different from its neighbours.
fn rows(name: &'static str, shape: &[usize], first: u8) -> HostTensor {
    let numbers = (first..first + 100).cycle().take(shape.iter().product());
    let bytes = numbers.flat_map(|x| half::bf16::from_f32(f32::from(x)).to_le_bytes());
    HostTensor::contiguous(name, Dtype::Bf16, shape, bytes.collect())
}

#[test]
fn rotated_keys_reach_far_blocks() {
    let emulator = Emulator::new();
    let [key, value] = [rows("key", &[2, 1, 16], 1), rows("value", &[2, 1, 16], 9)];
    let cache = HostTensor::contiguous("cache", Dtype::Bf16, &[4, 16, 1, 16], vec![7; 2048]);
    let [mut keys, mut values] = [(); 2].map(|()| Far::new(&emulator, &cache));
    let near = [3, 50];
    let first = i64::try_from(16 * keys.first_block).expect("fits");
    let slots = upload(
        &emulator,
        &longs("slots", &[2], &near.map(|slot| slot + first)),
    );
    let positions = upload(&emulator, &longs("positions", &[2], &[1, 0]));
    // Cosines of 1 and sines of 0: nothing is turned.
    let table = [[1.0f32; 8], [0.0; 8]].concat().repeat(2);
    let table = table.iter().flat_map(|x| x.to_le_bytes()).collect();
    let table = HostTensor::contiguous("cos_sin", Dtype::F32, &[2, 16], table);
    let [new_keys, new_values, table] = [&key, &value, &table].map(|t| upload(&emulator, t));
    let request = RopeAndCacheRequest {
        write: CacheWriteRequest {
            key: new_keys.view(),
            value: new_values.view(),
            key_cache: keys.buffer.view_mut(),
            value_cache: values.buffer.view_mut(),
            slot_mapping: slots.view(),
            block_size: 16,
            scales: CacheScales::None,
            check: CheckMode::Off,
        },
        table: RopeTable {
            positions: positions.view(),
            cos_sin: table.view(),
            style: RopeStyle::Neox,
        },
        query: None,
    };
    launch!(request, &emulator);
    for (new, far) in [(&key, &keys), (&value, &values)] {
        let mut expected = cache.storage.bytes.clone();
        let slots = longs("slots", &[2], &near);
        reshape_and_cache_flash(new, &slots, &cache, &mut expected);
        assert!(
            far.bytes(expected.len()) == expected,
            "{}",
            new.storage.name
        );
    }
}

#[test]
fn many_layers_reach_far_blocks() {
    let emulator = Emulator::new();
    let [kv_c, k_pe] = [rows("kv_c", &[2, 1, 512], 1), rows("k_pe", &[2, 1, 64], 9)];
    let cache = HostTensor::contiguous("cache", Dtype::Bf16, &[2, 16, 576], vec![7; 2 * 16 * 1152]);
    let caches = [(); 2].map(|()| Far::new(&emulator, &cache));
    let first_block = caches[0].first_block;
    let first = i64::try_from(16 * first_block).expect("fits");
    // Each layer writes to another slot.
    let near = [5, 30];
    let slots = longs("slots", &[2, 1], &near.map(|slot| slot + first));
    let addresses = caches
        .each_ref()
        .map(|far| far.buffer.view().address().cast_signed());
    let addresses = longs("addresses", &[2], &addresses);
    let [new, rope, slots, addresses] =
        [&kv_c, &k_pe, &slots, &addresses].map(|tensor| upload(&emulator, tensor));
    let shape = [first_block + 2, 16, 576];
    let strides = contiguous_strides(&shape);
    let request = ConcatAndCacheMlaGroupedRequest {
        kv_c: new.view(),
        k_pe: rope.view(),
        // SAFETY: the addresses are caches of this shape, which nobody else uses meanwhile.
        kv_caches: unsafe { CacheTable::from_raw(addresses.view(), Dtype::Bf16, &shape, &strides) }
            .expect("three strides"),
        slot_mapping: slots.view(),
        block_size: 16,
        scales: None,
        check: CheckMode::Off,
    };
    launch!(request, &emulator);
    for (layer, far) in caches.iter().enumerate() {
        let mut expected = cache.storage.bytes.clone();
        let at = usize::try_from(near[layer]).expect("a slot") * 1152;
        expected[at..at + 1024].copy_from_slice(&kv_c.storage.bytes[layer * 1024..][..1024]);
        expected[at + 1024..at + 1152].copy_from_slice(&k_pe.storage.bytes[layer * 128..][..128]);
        assert!(far.bytes(expected.len()) == expected, "layer {layer}");
    }
}

#[test]
fn gathers_reach_far_blocks() {
    let emulator = Emulator::new();
    let bytes: Vec<u8> = (0..=250).cycle().take(4 * 8 * 48).collect();
    let cache = HostTensor::contiguous("cache", Dtype::U8, &[4, 8, 48], bytes.clone());
    let far = Far::new(&emulator, &cache);
    let first = i32::try_from(far.first_block).expect("fits");
    let slots = [9, -1, 31, 0];
    let numbers = slots.map(|slot| if slot < 0 { slot } else { slot + 8 * first });
    let named = upload(&emulator, &ints("slots", &[4], &numbers));
    let table = upload(
        &emulator,
        &ints("block_table", &[1, 2], &[first + 3, first]),
    );
    let starts = upload(&emulator, &ints("row_starts", &[2], &[0, 4]));
    let firsts = upload(&emulator, &ints("first_tokens", &[1], &[6]));
    // Tokens 6 to 9 of the sequence are the last two of block 3 and the first two of block 0.
    let by_table = [30, 31, 0, 1];
    for (rows, slots) in [
        (
            GatherRows::Slots {
                slots: named.view(),
            },
            slots,
        ),
        (
            GatherRows::Ragged {
                block_table: table.view(),
                row_starts: starts.view(),
                first_tokens: Some(firsts.view()),
            },
            by_table,
        ),
    ] {
        let mut out = Buffer::uninit(&emulator, "out", Dtype::U8, &[4, 48]).expect("small");
        let request = GatherRequest {
            cache: far.buffer.view(),
            block_size: 8,
            form: GatherForm::Raw,
            out: out.view_mut(),
            rows,
            zero_missing: true,
            check: CheckMode::Device,
        };
        launch!(request, &emulator);
        let row = |slot: i32| match usize::try_from(slot) {
            Ok(slot) => bytes[48 * slot..48 * (slot + 1)].to_vec(),
            Err(_) => vec![0; 48],
        };
        assert_eq!(out.read().expect("read"), slots.map(row).concat());
    }
}

#[test]
fn compaction_reaches_far_blocks() {
    let emulator = Emulator::new();
    // Few and large, since the workspace has a number for each.
    let block = 16 * 8192;
    let bytes = (1u8..5).flat_map(|id| vec![id; block]).collect();
    let pool = HostTensor::contiguous("pool", Dtype::U8, &[4, 16, 8192], bytes);
    let far = Far::new(&emulator, &pool);
    let first = i32::try_from(far.first_block).expect("fits");
    let table = ints(
        "block_table",
        &[2, 2],
        &[first + 3, -1, first + 1, first + 3],
    );
    let lens = ints("seq_lens", &[2], &[32, 17]);
    let [table, lens] = [&table, &lens].map(|tensor| upload(&emulator, tensor));
    let buffer = |name, dtype, shape: &[usize]| {
        Buffer::uninit(&emulator, name, dtype, shape).expect("small")
    };
    let mut compact = buffer("compact", Dtype::U8, &[2, 16, 8192]);
    let mut renamed = buffer("renamed", Dtype::I32, &[2, 2]);
    let mut num_wanted = buffer("num_wanted", Dtype::I32, &[1]);
    let request = CompactRequest {
        caches: vec![(far.buffer.view(), compact.view_mut())],
        block_size: 16,
        references: CompactReferences::Tables {
            block_table: table.view(),
            seq_lens: lens.view(),
            renamed: renamed.view_mut(),
        },
        num_wanted: num_wanted.view_mut(),
        check: CheckMode::Device,
    };
    launch!(request, &emulator);
    let expected = [vec![2; block], vec![4; block]].concat();
    assert!(compact.read().expect("read") == expected);
    let renamed = renamed.read().expect("read");
    assert_eq!(renamed, [1, -1, 0, 1].map(i32::to_le_bytes).concat());
    assert_eq!(num_wanted.read().expect("read"), 2i32.to_le_bytes());
}
