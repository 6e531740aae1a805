//! `rope_and_cache` against the reference: rotating first and writing after, byte by byte, in every style and
//! form; queries in place, elsewhere, and as FP8.
#![allow(missing_docs, reason = "a test crate has no readers of its docs")]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "small test data"
)]

mod tensors;

use ferroattn::ops::{
    CacheScales, CacheWriteRequest, CheckMode, RopeAndCacheRequest, RopeQuery, RopeStyle,
    RopeTable, check_result,
};
use ferroattn::reference::{
    HostTensor, Storage, reshape_and_cache_flash, reshape_and_cache_scaled, rotate,
};
use ferroattn::tensor::Dtype;
use tensors::*;

/// What becomes of the queries.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Query {
    None,
    InPlace,
    Elsewhere,
    Fp8,
}

#[derive(Clone, Debug)]
struct Case {
    dtype: Dtype,
    cache: Dtype,
    table: Dtype,
    style: RopeStyle,
    /// Query heads, KV heads.
    heads: [usize; 2],
    /// Head size, head size of values, rotated values.
    sizes: [usize; 3],
    query: Query,
    /// Scales of the cache: one, or one per head.
    per_head: bool,
}

const CASE: Case = Case {
    dtype: Dtype::Bf16,
    cache: Dtype::Bf16,
    table: Dtype::F32,
    style: RopeStyle::Neox,
    heads: [8, 2],
    sizes: [64, 64, 64],
    query: Query::InPlace,
    per_head: false,
};

const TOKENS: usize = 42;
const POSITIONS: usize = 300;
const BLOCKS: usize = 6;
const BLOCK_SIZE: usize = 16;

/// A table of angles as models have it.
fn table(case: &Case) -> HostTensor {
    let half = case.sizes[2] / 2;
    let angle =
        |row: usize, pair: usize| row as f32 * 10_000f32.powf(-(pair as f32) / half.max(1) as f32);
    let bytes = (0..POSITIONS)
        .flat_map(|row| {
            let cosines = (0..half).map(move |pair| angle(row, pair).cos());
            cosines.chain((0..half).map(move |pair| angle(row, pair).sin()))
        })
        .flat_map(|x| encode(case.table, x))
        .collect();
    tensor("cos_sin", case.table, &[POSITIONS, 2 * half], bytes)
}

fn judge(case: &Case, seed: u64) {
    let random = &mut Random::new(seed);
    let Case { dtype, cache, .. } = *case;
    let [num_query_heads, num_kv_heads] = case.heads;
    let [head_size, head_size_v, _] = case.sizes;

    // Query, key and value of one projection; two rows more than slots.
    let rows = TOKENS + 2;
    let row = num_query_heads * head_size + num_kv_heads * (head_size + head_size_v);
    // Values may be NaN; of a NaN that was turned, no two machines have the same bits.
    let turned_values = (num_query_heads + num_kv_heads) * head_size;
    let qkv = (0..rows).flat_map(|_| {
        let turned = finite_values(dtype, turned_values, random);
        [turned, values(dtype, num_kv_heads * head_size_v, random)].concat()
    });
    let qkv = Storage::new("qkv", qkv.collect());
    let part =
        |offset, heads, size| view_of(&qkv, dtype, offset, &[rows, heads, size], &[row, size, 1]);
    let query = part(0, num_query_heads, head_size);
    let key = part(num_query_heads * head_size, num_kv_heads, head_size);
    let value = part(turned_values, num_kv_heads, head_size_v);

    let cos_sin = table(case);
    // Positions past the table and below 0 turn nothing.
    let positions: Vec<i64> = (0..rows).map(|_| random.below(POSITIONS) as i64).collect();
    let positions = longs("positions", &positions);
    let slots = longs(
        "slot_mapping",
        &slots(TOKENS, BLOCKS * BLOCK_SIZE, 5, random),
    );
    let caches = [("key_cache", head_size), ("value_cache", head_size_v)];
    let [key_cache, value_cache] = caches.map(|(name, size)| {
        poisoned_tensor(name, cache, &[BLOCKS, BLOCK_SIZE, num_kv_heads, size])
    });
    let scales = |name, first: f32| {
        let count = if case.per_head { num_kv_heads } else { 1 };
        let scales: Vec<f32> = (0..count).map(|head| first + 0.07 * head as f32).collect();
        (floats(name, &[count], &scales), scales)
    };
    let (k_scale, k_scales) = scales("k_scale", 0.031);
    let (v_scale, v_scales) = scales("v_scale", 0.017);
    let q_scale = floats("q_scale", &[1], &[0.023]);

    let machine = Machine::new();
    let out = match case.query {
        Query::InPlace => query.clone(),
        Query::Fp8 => poisoned_tensor("out", Dtype::F8E4m3, &query.shape),
        _ => poisoned_tensor("out", dtype, &query.shape),
    };
    let request = RopeAndCacheRequest {
        write: CacheWriteRequest {
            key: machine.view(&key),
            value: machine.view(&value),
            key_cache: machine.view_mut(&key_cache),
            value_cache: machine.view_mut(&value_cache),
            slot_mapping: machine.view(&slots),
            block_size: BLOCK_SIZE,
            scales: if cache == dtype {
                CacheScales::None
            } else {
                CacheScales::Given {
                    k_scale: machine.view(&k_scale),
                    v_scale: machine.view(&v_scale),
                }
            },
            check: CheckMode::Device,
        },
        table: RopeTable {
            positions: machine.view(&positions),
            cos_sin: machine.view(&cos_sin),
            style: case.style,
        },
        query: (case.query != Query::None).then(|| RopeQuery {
            query: machine.view(&query),
            out: machine.view_mut(&out),
            q_scale: (case.query == Query::Fp8).then(|| machine.view(&q_scale)),
        }),
    };
    let checked = request.check().expect("a good request");
    let plan = checked.plan();
    let mut workspace = machine.workspace(plan.workspace_bytes());
    checked
        .launch(&plan, &mut workspace, &machine.emulator)
        .expect("it runs");
    check_result(&machine.read_workspace(&workspace)).expect("good slots");

    let is_interleaved = case.style == RopeStyle::GptJ;
    let turned = |new: &HostTensor| rotate(new, &positions, &cos_sin, is_interleaved);
    for (new, cache_tensor, scales) in [
        (&turned(&key), &key_cache, &k_scales),
        (&value, &value_cache, &v_scales),
    ] {
        let mut expected = cache_tensor.storage.bytes.clone();
        if cache == dtype {
            reshape_and_cache_flash(new, &slots, cache_tensor, &mut expected);
        } else {
            reshape_and_cache_scaled(new, &slots, scales, cache_tensor, &mut expected);
        }
        let name = cache_tensor.storage.name;
        assert_same_bytes(
            &machine.read(cache_tensor),
            &expected,
            &format!("{name} {case:?}"),
        );
    }
    // Queries: as many rows as slots, padding included; nothing beside them.
    let query_rows: Vec<i64> = (0..TOKENS as i64).collect();
    let query_rows = longs("rows", &query_rows);
    let as_cache = HostTensor {
        shape: [&[1][..], &out.shape].concat(),
        strides: [&[0][..], &out.strides].concat(),
        ..out.clone()
    };
    let mut expected = out.storage.bytes.clone();
    match case.query {
        Query::None => {}
        Query::Fp8 => {
            reshape_and_cache_scaled(
                &turned(&query),
                &query_rows,
                &[0.023],
                &as_cache,
                &mut expected,
            );
        }
        _ => reshape_and_cache_flash(&turned(&query), &query_rows, &as_cache, &mut expected),
    }
    assert_same_bytes(
        &machine.read(&out),
        &expected,
        &format!("queries of {case:?}"),
    );
}

#[test]
fn styles_and_sizes() {
    let mut seed = 1;
    for style in [RopeStyle::Neox, RopeStyle::GptJ] {
        // Whole heads, a part of them, sizes that no vector fits, values of another size.
        for sizes in [
            [64, 64, 64],
            [128, 128, 64],
            [96, 64, 24],
            [80, 80, 32],
            [46, 30, 20],
            [64, 64, 0],
        ] {
            for dtype in [Dtype::Bf16, Dtype::F16] {
                seed += 1;
                let case = Case {
                    style,
                    sizes,
                    dtype,
                    cache: dtype,
                    ..CASE
                };
                judge(&case, seed);
                judge(
                    &Case {
                        table: dtype,
                        query: Query::Elsewhere,
                        ..case
                    },
                    seed,
                );
            }
        }
    }
}

#[test]
fn fp8_caches_and_queries() {
    for style in [RopeStyle::Neox, RopeStyle::GptJ] {
        for cache in [Dtype::F8E4m3, Dtype::F8E5m2] {
            for (query, sizes) in [
                (Query::Fp8, [128, 128, 128]),
                (Query::Fp8, [46, 46, 46]),
                (Query::InPlace, [80, 48, 32]),
                (Query::None, [64, 64, 32]),
            ] {
                for per_head in [false, true] {
                    let case = Case {
                        cache,
                        style,
                        query,
                        sizes,
                        per_head,
                        ..CASE
                    };
                    judge(&case, 7);
                }
            }
        }
    }
}

#[test]
fn many_heads_take_several_thread_blocks_a_token() {
    judge(
        &Case {
            heads: [64, 8],
            sizes: [128, 128, 128],
            ..CASE
        },
        3,
    );
    judge(
        &Case {
            heads: [13, 13],
            sizes: [46, 46, 46],
            query: Query::None,
            ..CASE
        },
        4,
    );
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let refused = |table: [usize; 2], positions: usize, scaled_query: bool| {
        let machine = Machine::new();
        let rows = |name, dtype| poisoned_tensor(name, dtype, &[4, 2, 64]);
        let (key, out) = (rows("key", Dtype::Bf16), rows("out", Dtype::F8E4m3));
        let cache = poisoned_tensor("cache", Dtype::Bf16, &[1, 16, 2, 64]);
        let scale = floats("q_scale", &[1], &[0.5]);
        RopeAndCacheRequest {
            write: CacheWriteRequest {
                key: machine.view(&key),
                value: machine.view(&key),
                key_cache: machine.view_mut(&cache),
                value_cache: machine.view_mut(&cache),
                slot_mapping: machine.view(&longs("slot_mapping", &[0, 1, 2, 3])),
                block_size: 16,
                scales: CacheScales::None,
                check: CheckMode::Off,
            },
            table: RopeTable {
                positions: machine.view(&longs("positions", &vec![0; positions])),
                cos_sin: machine.view(&poisoned_tensor("cos_sin", Dtype::F32, &table)),
                style: RopeStyle::Neox,
            },
            query: scaled_query.then(|| RopeQuery {
                query: machine.view(&key),
                out: machine.view_mut(&out),
                q_scale: Some(machine.view(&scale)),
            }),
        }
        .check()
        .expect_err("refused")
        .to_string()
    };
    for (message, name) in [
        (refused([9, 63], 4, false), "`cos_sin`"),
        (refused([9, 66], 4, false), "`cos_sin`"),
        (refused([9, 64], 3, false), "`positions`"),
        (refused([9, 64], 4, true), "`q_scale`"),
    ] {
        assert!(message.contains(name), "{message}");
    }
}
