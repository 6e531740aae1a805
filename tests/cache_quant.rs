//! `reshape_and_cache_flash` in every form: copied, scaled to FP8, a scale per token and head; caches in every
//! order in memory; each compared byte by byte with the reference, poison around the slots included.
#![allow(missing_docs, reason = "a test crate has no readers of its docs")]
#![allow(clippy::cast_possible_truncation, reason = "small test data")]

mod tensors;

use std::sync::Arc;

use ferroattn::Error;
use ferroattn::error::{CheckError, RequestError};
use ferroattn::ops::{CacheScales, CacheWriteRequest, CheckMode, check_result};
use ferroattn::reference::{
    HostTensor, Storage, reshape_and_cache_flash, reshape_and_cache_per_token_head,
    reshape_and_cache_scaled,
};
use ferroattn::tensor::Dtype;
use tensors::*;

/// How a cache lies in memory.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Layout {
    /// `[block, slot, head, dim]`.
    Nhd,
    /// `[block, head, slot, dim]`.
    Hnd,
    /// `[block, slot, head, key and value dims]` in one storage.
    PackedNhd,
    /// `[block, head, slot, key and value dims]` in one storage.
    PackedHnd,
    /// As `Nhd`, three layers between blocks.
    CrossLayer,
}

#[derive(Clone, Debug)]
struct Case {
    dtype: Dtype,
    cache: Dtype,
    num_tokens: usize,
    heads: usize,
    head_size: usize,
    head_size_v: usize,
    block_size: usize,
    num_blocks: usize,
    layout: Layout,
    /// Key and value are parts of a fused query-key-value tensor.
    fused: bool,
}

impl Default for Case {
    fn default() -> Self {
        Self {
            dtype: Dtype::Bf16,
            cache: Dtype::Bf16,
            num_tokens: 42,
            heads: 8,
            head_size: 64,
            head_size_v: 64,
            block_size: 16,
            num_blocks: 6,
            layout: Layout::Nhd,
            fused: true,
        }
    }
}

struct Inputs {
    key: HostTensor,
    value: HostTensor,
    key_cache: HostTensor,
    value_cache: HostTensor,
    slots: HostTensor,
}

impl Case {
    fn inputs(&self, random: &mut Random) -> Inputs {
        let Self { dtype, heads, .. } = *self;
        let (dk, dv) = (self.head_size, self.head_size_v);
        // Two rows more than slots, as captured graphs have.
        let rows = self.num_tokens + 2;
        let (key, value) = if self.fused {
            // The query has as many heads as the key.
            let row = heads * (2 * dk + dv);
            let storage = Storage::new("qkv", values(dtype, rows * row, random));
            let part = |offset, size: usize| {
                view_of(
                    &storage,
                    dtype,
                    offset,
                    &[rows, heads, size],
                    &[row, size, 1],
                )
            };
            (part(heads * dk, dk), part(2 * heads * dk, dv))
        } else {
            let mut own = |name, size| {
                let data = values(dtype, rows * heads * size, random);
                tensor(name, dtype, &[rows, heads, size], data)
            };
            (own("key", dk), own("value", dv))
        };
        let (key_cache, value_cache) = self.caches();
        let num_slots = self.num_blocks * self.block_size;
        let slots = longs(
            "slot_mapping",
            &slots(self.num_tokens, num_slots, 5, random),
        );
        Inputs {
            key,
            value,
            key_cache,
            value_cache,
            slots,
        }
    }

    fn caches(&self) -> (HostTensor, HostTensor) {
        let (dk, dv) = (self.head_size, self.head_size_v);
        let (heads, block, blocks) = (self.heads, self.block_size, self.num_blocks);
        let bytes = self.cache.size();
        let (packed, hnd) = match self.layout {
            Layout::Nhd | Layout::CrossLayer => (false, false),
            Layout::Hnd => (false, true),
            Layout::PackedNhd => (true, false),
            Layout::PackedHnd => (true, true),
        };
        let layers = if self.layout == Layout::CrossLayer {
            3
        } else {
            1
        };
        let make = |storage: &Arc<Storage>, offset, size: usize, row: usize| {
            let (slot, head) = if hnd {
                (row, block * row)
            } else {
                (heads * row, row)
            };
            let strides = [layers * heads * block * row, slot, head, 1];
            view_of(
                storage,
                self.cache,
                offset,
                &[blocks, block, heads, size],
                &strides,
            )
        };
        let elements = |row: usize| layers * blocks * block * heads * row;
        if packed {
            let storage = poisoned("kv_cache", elements(dk + dv) * bytes);
            (
                make(&storage, 0, dk, dk + dv),
                make(&storage, dk, dv, dk + dv),
            )
        } else {
            let keys = poisoned("key_cache", elements(dk) * bytes);
            let values = poisoned("value_cache", elements(dv) * bytes);
            (make(&keys, 0, dk, dk), make(&values, 0, dv, dv))
        }
    }
}

/// Runs a write and returns the storages' bytes: of the key cache and of the value cache.
fn run(
    machine: &Machine,
    inputs: &Inputs,
    scales: CacheScales<'static>,
    check: CheckMode,
) -> Result<(Vec<u8>, Vec<u8>), Error> {
    let request = CacheWriteRequest {
        key: machine.view(&inputs.key),
        value: machine.view(&inputs.value),
        key_cache: machine.view_mut(&inputs.key_cache),
        value_cache: machine.view_mut(&inputs.value_cache),
        slot_mapping: machine.view(&inputs.slots),
        block_size: inputs.key_cache.shape[1],
        scales,
        check,
    };
    let checked = request.check()?;
    let plan = checked.plan();
    let mut workspace = machine.workspace(plan.workspace_bytes());
    checked.launch(&plan, &mut workspace, &machine.emulator)?;
    if check == CheckMode::Device {
        check_result(&machine.read_workspace(&workspace))?;
    }
    Ok((
        machine.read(&inputs.key_cache),
        machine.read(&inputs.value_cache),
    ))
}

/// What both storages had to become; they are one if the cache is packed.
fn expected(
    inputs: &Inputs,
    mut write: impl FnMut(&HostTensor, &HostTensor, &mut [u8]),
) -> (Vec<u8>, Vec<u8>) {
    let mut keys = inputs.key_cache.storage.bytes.clone();
    write(&inputs.key, &inputs.key_cache, &mut keys);
    if Arc::ptr_eq(&inputs.key_cache.storage, &inputs.value_cache.storage) {
        write(&inputs.value, &inputs.value_cache, &mut keys);
        return (keys.clone(), keys);
    }
    let mut values = inputs.value_cache.storage.bytes.clone();
    write(&inputs.value, &inputs.value_cache, &mut values);
    (keys, values)
}

#[track_caller]
fn assert_both(got: &(Vec<u8>, Vec<u8>), expected: &(Vec<u8>, Vec<u8>), case: &Case) {
    assert_same_bytes(&got.0, &expected.0, &format!("keys of {case:?}"));
    assert_same_bytes(&got.1, &expected.1, &format!("values of {case:?}"));
}

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
