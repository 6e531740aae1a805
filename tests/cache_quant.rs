//! `reshape_and_cache_flash`, copied or scaled to FP8; caches in every order in memory; each compared byte by
//! byte with the reference, poison around the slots included.
#![allow(missing_docs, reason = "a test crate has no readers of its docs")]
#![allow(clippy::cast_possible_truncation, reason = "small test data")]

mod cache_case;
mod tensors;

use std::sync::Arc;

use cache_case::*;
use ferroattn::Error;
use ferroattn::error::{CheckError, RequestError};
use ferroattn::ops::{CacheScales, CheckMode};
use ferroattn::reference::{Storage, reshape_and_cache_flash, reshape_and_cache_scaled};
use ferroattn::tensor::Dtype;
use tensors::*;

fn copies(case: &Case) {
    let mut random = Random::new(1);
    let inputs = case.inputs(&mut random);
    let got = run(&Machine::new(), &inputs, CacheScales::None, CheckMode::Off)
        .unwrap_or_else(|error| panic!("{case:?}: {error}"));
    let slots = &inputs.slots;
    let expected = expected(&inputs, |new, cache, bytes| {
        reshape_and_cache_flash(new, slots, cache, bytes);
    });
    assert_both(&got, &expected, case);
}

/// Per tensor with one scale for keys and one for values, then with one per head.
fn scales(case: &Case) {
    let mut random = Random::new(2);
    let inputs = case.inputs(&mut random);
    for count in [1, case.heads] {
        let machine = Machine::new();
        let mut some = |name| {
            // Ordinary ones, powers of two, and some at the ends of the range.
            let odd = [0.013, 0.25, 1.0, 3.7, 1e-20, 1e25, 0.5, 0.1];
            let list: Vec<f32> = (0..count).map(|_| odd[random.below(8)]).collect();
            (floats(name, &[count], &list), list)
        };
        let ((k_scale, k), (v_scale, v)) = (some("k_scale"), some("v_scale"));
        let given = CacheScales::Given {
            k_scale: machine.view(&k_scale),
            v_scale: machine.view(&v_scale),
        };
        let got = run(&machine, &inputs, given, CheckMode::Off)
            .unwrap_or_else(|error| panic!("{case:?}: {error}"));
        let mut lists = [k, v].into_iter();
        let expected = expected(&inputs, |new, cache, bytes| {
            let list = lists.next().expect("keys, then values");
            reshape_and_cache_scaled(new, &inputs.slots, &list, cache, bytes);
        });
        assert_both(&got, &expected, case);
    }
}

#[test]
fn copies_every_layout() {
    for layout in [
        Layout::Nhd,
        Layout::Hnd,
        Layout::PackedNhd,
        Layout::PackedHnd,
        Layout::CrossLayer,
    ] {
        copies(&Case {
            layout,
            ..Case::default()
        });
    }
}

#[test]
fn copies_every_dtype_and_head_size() {
    for dtype in [
        Dtype::Bf16,
        Dtype::F16,
        Dtype::F32,
        Dtype::F8E4m3,
        Dtype::F8E5m2,
    ] {
        let case = Case {
            dtype,
            cache: dtype,
            ..Case::default()
        };
        copies(&Case {
            head_size: 80,
            head_size_v: 80,
            block_size: 8,
            ..case.clone()
        });
        copies(&Case {
            heads: 2,
            head_size: 256,
            head_size_v: 128,
            block_size: 32,
            num_blocks: 3,
            ..case
        });
    }
}

#[test]
fn copies_rows_of_odd_sizes() {
    for dtype in [Dtype::Bf16, Dtype::F32, Dtype::F8E4m3] {
        for layout in [Layout::Nhd, Layout::Hnd, Layout::PackedNhd] {
            let case = Case {
                dtype,
                cache: dtype,
                layout,
                heads: 13,
                ..Case::default()
            };
            copies(&Case {
                head_size: 46,
                head_size_v: 46,
                ..case.clone()
            });
            copies(&Case {
                head_size: 7,
                head_size_v: 33,
                fused: false,
                ..case
            });
        }
    }
}

#[test]
fn scales_to_fp8() {
    for cache in [Dtype::F8E4m3, Dtype::F8E5m2] {
        for dtype in [Dtype::Bf16, Dtype::F16, Dtype::F32] {
            for layout in [Layout::Nhd, Layout::Hnd, Layout::PackedNhd] {
                scales(&Case {
                    dtype,
                    cache,
                    layout,
                    num_tokens: 11,
                    ..Case::default()
                });
            }
        }
        let case = Case {
            cache,
            num_tokens: 9,
            ..Case::default()
        };
        scales(&Case {
            head_size: 80,
            head_size_v: 256,
            ..case.clone()
        });
        scales(&Case {
            heads: 13,
            head_size: 46,
            head_size_v: 46,
            ..case
        });
    }
}

#[test]
fn quotients_are_correctly_rounded() {
    // Ties of the quotient, and values one step beside: where a quotient that is off by one bit changes the
    // byte. All scales that have few bits, so that ties exist.
    let mut data = Vec::new();
    let mut scales = Vec::new();
    for scale in [1.0f32, 3.0, 0.7, 5.5, 0.013_671_875, 1.1] {
        for code in 0..=0x7e_u8 {
            let low = ferroattn::reference::fp8_value(Dtype::F8E4m3, code);
            let high = ferroattn::reference::fp8_value(Dtype::F8E4m3, (code + 1).min(0x7e));
            let tie = ((low + high) / 2.0 * f64::from(scale)) as f32;
            for steps in -3i32..=3 {
                data.push(f32::from_bits(tie.to_bits().saturating_add_signed(steps)));
                scales.push(scale);
            }
        }
    }
    // One token per scale: 127 * 7 = 889 values each, padded to a multiple of eight.
    let per_scale = 127 * 7;
    for (chunk, &scale) in data.chunks(per_scale).zip(scales.iter().step_by(per_scale)) {
        let mut row = chunk.to_vec();
        row.resize(896, 0.0);
        let inputs = Inputs {
            key: floats("key", &[1, 1, 896], &row),
            value: floats("value", &[1, 1, 896], &row),
            key_cache: poisoned_tensor("key_cache", Dtype::F8E4m3, &[1, 1, 1, 896]),
            value_cache: poisoned_tensor("value_cache", Dtype::F8E4m3, &[1, 1, 1, 896]),
            slots: longs("slot_mapping", &[0]),
        };
        let machine = Machine::new();
        let one = floats("scale", &[1], &[scale]);
        let given = CacheScales::Given {
            k_scale: machine.view(&one),
            v_scale: machine.view(&one),
        };
        let got = run(&machine, &inputs, given, CheckMode::Off).expect("runs");
        let expected = expected(&inputs, |new, cache, bytes| {
            reshape_and_cache_scaled(new, &inputs.slots, &[scale], cache, bytes);
        });
        assert_same_bytes(&got.0, &expected.0, &format!("scale {scale}"));
    }
}

/// Values of 16 bits are divided by a product and one fma. These are the scales near which that is hardest: a
/// quotient of few bits is then next to a point halfway between two f32.
#[test]
fn quotients_of_16_bit_values_are_correctly_rounded() {
    let mut scales: Vec<f32> = (8..=16u32)
        .flat_map(|n| [-40, -2, -1, 0, 1, 3].map(|k| (n << 20).saturating_add_signed(k)))
        .filter(|significand| (1 << 23..1 << 24).contains(significand))
        .map(|significand| significand as f32 / (1u32 << 30) as f32)
        .collect();
    scales.extend([
        1.0,
        3.0,
        448.0 / 17.0,
        1e-19,
        1e19,
        f32::MIN_POSITIVE,
        f32::MAX,
    ]);
    let heads = scales.len();
    for dtype in [Dtype::Bf16, Dtype::F16] {
        // All significands of a bf16, from far below the least e4m3 to far above the largest.
        let mut row: Vec<f32> = (0..22)
            .flat_map(|power| (128..256u16).map(move |x| f32::from(x) * 2f32.powi(power - 26)))
            .collect();
        row.extend([
            0.0,
            -0.0,
            f32::INFINITY,
            f32::NEG_INFINITY,
            f32::NAN,
            -1.0,
            5e4,
            -5e4,
        ]);
        let bytes: Vec<u8> = row
            .iter()
            .flat_map(|&x| match dtype {
                Dtype::Bf16 => ((x.to_bits() >> 16) as u16).to_le_bytes(),
                _ => half::f16::from_f32(x).to_le_bytes(),
            })
            .collect();
        let new = |name| tensor(name, dtype, &[1, heads, row.len()], bytes.repeat(heads));
        for cache in [Dtype::F8E4m3, Dtype::F8E5m2] {
            let shape = [1, 1, heads, row.len()];
            let inputs = Inputs {
                key: new("key"),
                value: new("value"),
                key_cache: poisoned_tensor("key_cache", cache, &shape),
                value_cache: poisoned_tensor("value_cache", cache, &shape),
                slots: longs("slot_mapping", &[0]),
            };
            let machine = Machine::new();
            let given = floats("scale", &[heads], &scales);
            let given = CacheScales::Given {
                k_scale: machine.view(&given),
                v_scale: machine.view(&given),
            };
            let got = run(&machine, &inputs, given, CheckMode::Off).expect("runs");
            let expected = expected(&inputs, |new, cache, bytes| {
                reshape_and_cache_scaled(new, &inputs.slots, &scales, cache, bytes);
            });
            assert_same_bytes(&got.0, &expected.0, &format!("{dtype} to {cache}"));
        }
    }
}

#[test]
fn slots_are_checked_on_the_device() {
    let case = Case {
        num_tokens: 3,
        ..Case::default()
    };
    let mut inputs = case.inputs(&mut Random::new(4));
    let end = i64::try_from(case.num_blocks * case.block_size).expect("small");
    inputs.slots = longs("slot_mapping", &[0, -7, end]);
    let machine = Machine::new();
    let result = run(&machine, &inputs, CacheScales::None, CheckMode::Device);
    let Err(Error::Check(CheckError::Slot {
        token: 2, value, ..
    })) = result
    else {
        panic!("{result:?}");
    };
    assert_eq!(value, end);
    let untouched = machine.read(&inputs.key_cache);
    assert!(
        untouched.iter().all(|&byte| byte == POISON),
        "nothing is written"
    );
}

#[test]
fn rows_past_the_slot_mapping_are_not_read() {
    // The emulator faults on reads of bytes that nobody wrote: rows 3.. of key and value are such.
    let machine = Machine::new();
    let case = Case {
        num_tokens: 3,
        fused: false,
        ..Case::default()
    };
    let mut inputs = case.inputs(&mut Random::new(5));
    let row = inputs.key.storage.len / inputs.key.shape[0];
    for side in [&mut inputs.key, &mut inputs.value] {
        side.storage = Arc::new(Storage {
            name: side.storage.name,
            bytes: side.storage.bytes[..3 * row].to_vec(),
            len: side.storage.len,
        });
    }
    inputs.slots = longs("slot_mapping", &[5, -1, i64::MIN]);
    run(&machine, &inputs, CacheScales::None, CheckMode::Off).expect("reads rows 0 to 2 alone");
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let machine = Machine::new();
    let case = Case {
        cache: Dtype::F8E4m3Fnuz,
        ..Case::default()
    };
    let one = floats("scale", &[1], &[1.0]);
    let given = || CacheScales::Given {
        k_scale: machine.view(&one),
        v_scale: machine.view(&one),
    };
    let refuse = |case: &Case, scales| {
        let inputs = case.inputs(&mut Random::new(6));
        let result = run(&machine, &inputs, scales, CheckMode::Off);
        match result {
            Err(Error::Request(error)) => error,
            other => panic!("{case:?} gave {other:?}"),
        }
    };
    let error = refuse(&case, given());
    assert!(
        matches!(
            error,
            RequestError::Fnuz {
                tensor: "key_cache",
                ..
            }
        ),
        "{error}"
    );
    assert!(error.to_string().contains("half"), "{error} says why");
    let error = refuse(
        &Case {
            cache: Dtype::F8E4m3,
            ..Case::default()
        },
        CacheScales::None,
    );
    assert!(
        matches!(
            error,
            RequestError::Dtype {
                tensor: "key_cache",
                ..
            }
        ),
        "{error}"
    );
    let error = refuse(&Case::default(), given());
    assert!(
        matches!(
            error,
            RequestError::Dtype {
                tensor: "key_cache",
                ..
            }
        ),
        "{error}"
    );
}
