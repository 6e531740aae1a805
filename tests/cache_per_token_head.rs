//! `reshape_and_cache_flash` with a scale per token and head, wherever the cache keeps the scales; compared byte by
//! byte with the reference.
#![allow(missing_docs, reason = "a test crate has no readers of its docs")]
#![allow(clippy::cast_possible_truncation, reason = "small test data")]

mod cache_case;
mod tensors;

use cache_case::*;
use ferroattn::ops::{CacheScales, CheckMode};
use ferroattn::reference::{HostTensor, reshape_and_cache_per_token_head};
use ferroattn::tensor::Dtype;
use tensors::*;

/// Where a cache keeps the scale of each row.
#[derive(Clone, Copy, Debug, PartialEq)]
enum ScalePlace {
    Separate,
    /// Four bytes after each row, rows 4 bytes further apart.
    Inline,
    /// The same, rows 16 bytes further apart.
    InlinePadded,
}

fn per_token_head(case: &Case, place: ScalePlace) {
    let mut random = Random::new(3);
    let mut inputs = case.inputs(&mut random);
    let (heads, block, blocks) = (case.heads, case.block_size, case.num_blocks);
    let shape = [blocks, block, heads];
    let scale_of = |cache: &mut HostTensor, name, size: usize| {
        let pad = match place {
            ScalePlace::Separate => {
                return poisoned_tensor(name, Dtype::F32, &shape);
            }
            ScalePlace::Inline => 4,
            ScalePlace::InlinePadded => 16,
        };
        let row = size + pad;
        let storage = poisoned("cache with scales", blocks * block * heads * row);
        let strides = [block * heads * row, heads * row, row, 1];
        *cache = view_of(
            &storage,
            case.cache,
            0,
            &[blocks, block, heads, size],
            &strides,
        );
        let strides = [block * heads * row / 4, heads * row / 4, row / 4];
        view_of(&storage, Dtype::F32, size / 4, &shape, &strides)
    };
    let k_scale = scale_of(&mut inputs.key_cache, "k_scale_cache", case.head_size);
    let v_scale = scale_of(&mut inputs.value_cache, "v_scale_cache", case.head_size_v);
    let machine = Machine::new();
    let scales = CacheScales::PerTokenHead {
        k_scale: machine.view_mut(&k_scale),
        v_scale: machine.view_mut(&v_scale),
    };
    let got = run(&machine, &inputs, scales, CheckMode::Off)
        .unwrap_or_else(|error| panic!("{case:?}: {error}"));
    for (new, cache, scale_cache, got) in [
        (&inputs.key, &inputs.key_cache, &k_scale, got.0),
        (&inputs.value, &inputs.value_cache, &v_scale, got.1),
    ] {
        let mut bytes = cache.storage.bytes.clone();
        let scales =
            reshape_and_cache_per_token_head(new, &inputs.slots, cache, &mut bytes, scale_cache);
        let separate = place == ScalePlace::Separate;
        let mut scale_bytes = if separate {
            scale_cache.storage.bytes.clone()
        } else {
            bytes.clone()
        };
        for (position, scale) in scales {
            scale_bytes[4 * position..4 * position + 4].copy_from_slice(&scale.to_le_bytes());
        }
        let what = format!("{place:?} {case:?}");
        if separate {
            assert_same_bytes(&machine.read(scale_cache), &scale_bytes, &what);
        } else {
            bytes = scale_bytes;
        }
        assert_same_bytes(&got, &bytes, &what);
    }
}

#[test]
fn a_scale_per_token_and_head() {
    for cache in [Dtype::F8E4m3, Dtype::I8] {
        for num_tokens in [1, 7, 42] {
            for (heads, head_size) in [(1, 64), (4, 128), (8, 128)] {
                let case = Case {
                    cache,
                    num_tokens,
                    heads,
                    head_size,
                    head_size_v: head_size,
                    ..Case::default()
                };
                per_token_head(&case, ScalePlace::Separate);
            }
        }
        let case = Case {
            cache,
            num_tokens: 7,
            heads: 4,
            head_size: 192,
            head_size_v: 128,
            ..Case::default()
        };
        for place in [
            ScalePlace::Separate,
            ScalePlace::Inline,
            ScalePlace::InlinePadded,
        ] {
            per_token_head(&case, place);
            per_token_head(
                &Case {
                    dtype: Dtype::F32,
                    ..case.clone()
                },
                place,
            );
            per_token_head(
                &Case {
                    dtype: Dtype::F16,
                    head_size: 80,
                    ..case.clone()
                },
                place,
            );
        }
        per_token_head(
            &Case {
                head_size: 512,
                head_size_v: 8,
                ..case.clone()
            },
            ScalePlace::Separate,
        );
        // Value by value.
        per_token_head(
            &Case {
                heads: 13,
                head_size: 46,
                head_size_v: 46,
                ..case.clone()
            },
            ScalePlace::Separate,
        );
        per_token_head(
            &Case {
                layout: Layout::Hnd,
                head_size_v: 20,
                ..case
            },
            ScalePlace::Separate,
        );
    }
}

#[test]
fn integers_round_half_away_from_zero() {
    // 127 is the largest magnitude, so the scale is 1 and the reciprocal exact.
    let row = [127.0, 0.5, -0.5, 1.5, -2.5, 0.499_999_97, -126.5, 126.49];
    let inputs = Inputs {
        key: floats("key", &[1, 1, 8], &row),
        value: floats("value", &[1, 1, 8], &row.map(|x| -x)),
        key_cache: poisoned_tensor("key_cache", Dtype::I8, &[1, 1, 1, 8]),
        value_cache: poisoned_tensor("value_cache", Dtype::I8, &[1, 1, 1, 8]),
        slots: longs("slot_mapping", &[0]),
    };
    let machine = Machine::new();
    let scale = poisoned_tensor("scales", Dtype::F32, &[1, 1, 2]);
    let part = |offset| view_of(&scale.storage, Dtype::F32, offset, &[1, 1, 1], &[2, 2, 1]);
    let scales = CacheScales::PerTokenHead {
        k_scale: machine.view_mut(&part(0)),
        v_scale: machine.view_mut(&part(1)),
    };
    let (keys, values) = run(&machine, &inputs, scales, CheckMode::Off).expect("runs");
    let signed = |bytes: Vec<u8>| bytes.into_iter().map(u8::cast_signed).collect::<Vec<_>>();
    assert_eq!(signed(keys), [127, 1, -1, 2, -3, 0, -127, 126]);
    assert_eq!(signed(values), [-127, -1, 1, -2, 3, 0, 127, -126]);
    assert_eq!(
        machine.read(&scale),
        [1.0f32.to_le_bytes(), 1.0f32.to_le_bytes()].concat()
    );
}

/// Of nothing but zeros the scale is the least that there is, and not 0, by which nothing could be divided.
#[test]
fn a_row_of_zeros_has_the_least_scale() {
    for dtype in [Dtype::I8, Dtype::F8E4m3] {
        // A row of zeros beside one that is none.
        let rows = [[0.0f32; 8], [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]];
        let inputs = Inputs {
            key: floats("key", &[1, 2, 8], rows.as_flattened()),
            value: floats("value", &[1, 2, 8], rows.as_flattened()),
            key_cache: poisoned_tensor("key_cache", dtype, &[1, 1, 2, 8]),
            value_cache: poisoned_tensor("value_cache", dtype, &[1, 1, 2, 8]),
            slots: longs("slot_mapping", &[0]),
        };
        let machine = Machine::new();
        let scales =
            ["k_scale", "v_scale"].map(|name| poisoned_tensor(name, Dtype::F32, &[1, 1, 2]));
        let given = CacheScales::PerTokenHead {
            k_scale: machine.view_mut(&scales[0]),
            v_scale: machine.view_mut(&scales[1]),
        };
        let (keys, values) = run(&machine, &inputs, given, CheckMode::Off).expect("runs");
        for bytes in [keys, values] {
            assert_eq!(bytes[..15], [0; 15], "{dtype}");
            assert_ne!(bytes[15], 0, "{dtype}");
        }
        for scale in &scales {
            let bytes = machine.read(scale);
            assert_eq!(bytes[..4], 1e-6f32.to_le_bytes(), "{dtype}");
        }
    }
}
