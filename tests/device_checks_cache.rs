//! What a check on the device finds in the tensors of cache writes: the message names tensor, index and value, and
//! nothing is written.
#![allow(missing_docs, reason = "a test crate has no readers of its docs")]

mod found;
mod tensors;

use ferroattn::error::CheckError;
use ferroattn::ops::{
    CacheScales, CacheTable, CacheWriteRequest, CheckMode, ConcatAndCacheMlaGroupedRequest,
    ConcatAndCacheMlaRequest, MlaCacheForm, RopeAndCacheRequest, RopeQuery, RopeStyle, RopeTable,
    ScaleRule,
};
use ferroattn::reference::HostTensor;
use ferroattn::tensor::{Dtype, contiguous_strides};
use found::{assert_refused, found};
use tensors::*;

const BAD_SCALES: [f32; 5] = [0.0, -0.0, -1.0, f32::NAN, f32::INFINITY];

/// A write of 3 tokens of 2 heads of 16 values into 4 blocks of 8 slots.
struct Write {
    source: Dtype,
    cache: Dtype,
    slots: [i64; 3],
    /// Of keys and of values; or places for those of each token.
    scales: Option<[HostTensor; 2]>,
    per_token: bool,
    /// Positions in a table of 4, and whether there are queries.
    rope: Option<([i64; 3], bool)>,
    q_scale: Option<f32>,
}

impl Write {
    fn copied() -> Self {
        Self {
            source: Dtype::Bf16,
            cache: Dtype::Bf16,
            slots: [5, -1, 31],
            scales: None,
            per_token: false,
            rope: None,
            q_scale: None,
        }
    }

    fn scaled(k: [f32; 2], v: [f32; 2]) -> Self {
        Self {
            cache: Dtype::F8E4m3,
            scales: Some([floats("k_scale", &[2], &k), floats("v_scale", &[2], &v)]),
            ..Self::copied()
        }
    }

    fn per_token(cache: Dtype) -> Self {
        let scales =
            ["k_scale", "v_scale"].map(|name| poisoned_tensor(name, Dtype::F32, &[4, 8, 2]));
        Self {
            cache,
            scales: Some(scales),
            per_token: true,
            ..Self::copied()
        }
    }

    /// The finding, after looking that no output was written if it is a fault.
    fn run(&self) -> Result<(), CheckError> {
        let machine = Machine::new();
        let random = &mut Random::new(3);
        let mut source = |name| {
            let bytes = finite_values(self.source, 3 * 32, random);
            tensor(name, self.source, &[3, 2, 16], bytes)
        };
        let [key, value, query] = ["key", "value", "query"].map(&mut source);
        let [keys, values] = ["key_cache", "value_cache"]
            .map(|name| poisoned_tensor(name, self.cache, &[4, 8, 2, 16]));
        let query_dtype = self.q_scale.map_or(self.source, |_| Dtype::F8E4m3);
        let query_out = poisoned_tensor("query_out", query_dtype, &[3, 2, 16]);
        let scales = match &self.scales {
            None => CacheScales::None,
            Some([k, v]) if self.per_token => CacheScales::PerTokenHead {
                k_scale: machine.view_mut(k),
                v_scale: machine.view_mut(v),
            },
            Some([k, v]) => CacheScales::Given {
                k_scale: machine.view(k),
                v_scale: machine.view(v),
            },
        };
        let write = CacheWriteRequest {
            key: machine.view(&key),
            value: machine.view(&value),
            key_cache: machine.view_mut(&keys),
            value_cache: machine.view_mut(&values),
            slot_mapping: machine.view(&longs("slot_mapping", &self.slots)),
            block_size: 8,
            scales,
            check: CheckMode::Device,
        };
        let found = match self.rope {
            None => found!(machine, write),
            Some((positions, has_query)) => {
                let q_scale = self.q_scale.map(|scale| floats("q_scale", &[1], &[scale]));
                let request = RopeAndCacheRequest {
                    write,
                    table: RopeTable {
                        positions: machine.view(&longs("positions", &positions)),
                        cos_sin: machine.view(&floats("cos_sin", &[4, 16], &[0.5; 64])),
                        style: RopeStyle::Neox,
                    },
                    query: has_query.then(|| RopeQuery {
                        query: machine.view(&query),
                        out: machine.view_mut(&query_out),
                        q_scale: q_scale.as_ref().map(|scale| machine.view(scale)),
                    }),
                };
                found!(machine, request)
            }
        };
        if found.is_err() {
            let mut outputs = vec![&keys, &values];
            outputs.extend(self.scales.iter().flatten());
            outputs.extend(
                self.rope
                    .filter(|&(_, has_query)| has_query)
                    .map(|_| &query_out),
            );
            for output in outputs {
                let name = output.storage.name;
                assert_same_bytes(&machine.read(output), &output.storage.bytes, name);
            }
        }
        found
    }

    #[track_caller]
    fn assert_refused(&self, expected: &str) {
        assert_eq!(self.run().expect_err(expected).to_string(), expected);
    }
}

/// One of each kernel.
fn writes() -> [(&'static str, Write); 6] {
    let rope = Some(([0, 3, 1], true));
    [
        ("copied", Write::copied()),
        ("scaled", Write::scaled([1.0, 0.5], [2.0, 4.0])),
        ("e4m3 per token", Write::per_token(Dtype::F8E4m3)),
        ("i8 per token", Write::per_token(Dtype::I8)),
        (
            "rope",
            Write {
                rope,
                ..Write::copied()
            },
        ),
        (
            "rope to fp8",
            Write {
                rope,
                q_scale: Some(0.5),
                ..Write::scaled([1.0, 0.5], [2.0, 4.0])
            },
        ),
    ]
}

#[test]
fn no_write_follows_bad_slots() {
    for (name, write) in writes() {
        assert_eq!(write.run(), Ok(()), "{name}");
        for (slots, expected) in [
            (
                [0, 1, 32],
                "`slot_mapping[2]` is 32, outside 0..32 (negative slots are skipped)",
            ),
            (
                [1 << 31, 0, 1],
                "`slot_mapping[0]` is 2147483648, outside 0..32 (negative slots are skipped)",
            ),
            (
                [0, (1 << 32) + 1, 1],
                "`slot_mapping[1]` is 4294967297, outside 0..32 (negative slots are skipped)",
            ),
            (
                [7, -1, 7],
                "`slot_mapping` gives slot 7 to two tokens, [0] and [2]",
            ),
        ] {
            Write {
                slots,
                ..write_of(name)
            }
            .assert_refused(expected);
        }
        // Padding is any negative number, and no two of it are alike.
        for slots in [[-1, -1, -1], [i64::MIN, -7, -(1 << 32)], [-32, 0, -32]] {
            assert_eq!(
                Write {
                    slots,
                    ..write_of(name)
                }
                .run(),
                Ok(()),
                "{name}"
            );
        }
    }
}

fn write_of(name: &str) -> Write {
    let found = writes().into_iter().find(|(other, _)| *other == name);
    found.expect("one of them").1
}

/// So many tokens that the table of those seen is full of others' places.
#[test]
fn the_two_tokens_of_a_slot_are_found_among_many() {
    let machine = Machine::new();
    let new = poisoned_tensor("key", Dtype::Bf16, &[300, 1, 8]);
    let cache = |name| poisoned_tensor(name, Dtype::Bf16, &[64, 8, 1, 8]);
    let [keys, values] = [cache("key_cache"), cache("value_cache")];
    let mut slots: Vec<i64> = (0..300).map(|token| (token * 37) % 512).collect();
    let run = |slots: &[i64]| {
        let request = CacheWriteRequest {
            key: machine.view(&new),
            value: machine.view(&new),
            key_cache: machine.view_mut(&keys),
            value_cache: machine.view_mut(&values),
            slot_mapping: machine.view(&longs("slot_mapping", slots)),
            block_size: 8,
            scales: CacheScales::None,
            check: CheckMode::Device,
        };
        found!(machine, request)
    };
    assert_eq!(run(&slots), Ok(()));
    slots[299] = slots[17];
    let fault = CheckError::SameSlot {
        layer: None,
        tokens: [17, 299],
        slot: 17 * 37 % 512,
    };
    assert_eq!(run(&slots), Err(fault));
}

#[test]
fn no_write_follows_a_bad_scale() {
    let refused = |write: Write, name: &str, index: usize, bad: f32| {
        let expected =
            format!("`{name}[{index}]` is {bad}, but a scale must be positive and finite");
        write.assert_refused(&expected);
    };
    for bad in BAD_SCALES {
        for rope in [None, Some(([0, 1, 2], false))] {
            let write = |k, v| Write {
                rope,
                ..Write::scaled(k, v)
            };
            refused(write([1.0, bad], [1.0; 2]), "k_scale", 1, bad);
            refused(write([1.0; 2], [bad, 1.0]), "v_scale", 0, bad);
        }
        let write = Write {
            rope: Some(([0, 1, 2], true)),
            q_scale: Some(bad),
            ..Write::scaled([1.0; 2], [1.0; 2])
        };
        refused(write, "q_scale", 0, bad);
    }
    // Of input that is copied no scale is read; every positive and finite one is a scale.
    let copied = Write {
        source: Dtype::F8E4m3,
        ..Write::scaled([0.0; 2], [f32::NAN; 2])
    };
    assert_eq!(copied.run(), Ok(()));
    let extremes = Write::scaled([f32::from_bits(1), f32::MAX], [f32::MIN_POSITIVE, 1e-30]);
    assert_eq!(extremes.run(), Ok(()));
}

#[test]
fn positions_are_rows_of_the_table() {
    let write = |positions, has_query| Write {
        rope: Some((positions, has_query)),
        ..Write::copied()
    };
    for (position, has_query) in [(4, false), (-1, true), (i64::MAX, false), (1 << 32, true)] {
        let expected = format!("`positions[2]` is {position}, outside 0..4, the rows of `cos_sin`");
        write([0, 3, position], has_query).assert_refused(&expected);
    }
    // Token 1 is padding: its query is rotated, if there is one, its key is not.
    assert_eq!(write([0, 4, 3], false).run(), Ok(()));
    write([0, 4, 3], true)
        .assert_refused("`positions[1]` is 4, outside 0..4, the rows of `cos_sin`");
}

#[test]
fn no_mla_write_follows_a_fault() {
    let forms = ["plain", "fp8", "fp8_ds", "v4"];
    let run = |form: &str, slots: [i64; 3], scale: f32| {
        let machine = Machine::new();
        let latents = if form == "v4" { 448 } else { 512 };
        let new = |name, size| {
            let bytes = finite_values(Dtype::Bf16, 3 * size, &mut Random::new(4));
            tensor(name, Dtype::Bf16, &[3, size], bytes)
        };
        let cache = match form {
            "plain" => poisoned_tensor("kv_cache", Dtype::Bf16, &[2, 16, 576]),
            "fp8" => poisoned_tensor("kv_cache", Dtype::F8E4m3, &[2, 16, 576]),
            "fp8_ds" => poisoned_tensor("kv_cache", Dtype::U8, &[2, 16, 656]),
            _ => poisoned_tensor("kv_cache", Dtype::U8, &[2, 16 * 584]),
        };
        let request = ConcatAndCacheMlaRequest {
            kv_c: machine.view(&new("kv_c", latents)),
            k_pe: Some(machine.view(&new("k_pe", 64))),
            kv_cache: machine.view_mut(&cache),
            slot_mapping: machine.view(&longs("slot_mapping", &slots)),
            block_size: 16,
            form: match form {
                "plain" => MlaCacheForm::Plain,
                "fp8" => MlaCacheForm::Fp8 {
                    scale: machine.view(&floats("scale", &[1], &[scale])),
                },
                "fp8_ds" => MlaCacheForm::Fp8Ds {
                    rule: ScaleRule::Exact,
                },
                _ => MlaCacheForm::V4,
            },
            check: CheckMode::Device,
        };
        let found = found!(machine, request);
        (machine, found, cache)
    };
    for form in forms {
        let (_, found, _) = run(form, [0, -9, 31], 0.5);
        assert_eq!(found, Ok(()), "{form}");
        for (slots, expected) in [
            (
                [0, 32, 1],
                "`slot_mapping[1]` is 32, outside 0..32 (negative slots are skipped)",
            ),
            (
                [3, 3, -1],
                "`slot_mapping` gives slot 3 to two tokens, [0] and [1]",
            ),
        ] {
            let (machine, found, cache) = run(form, slots, 0.5);
            assert_refused(&machine, found, expected, &[&cache]);
        }
    }
    for bad in BAD_SCALES {
        let (machine, found, cache) = run("fp8", [0, 1, 2], bad);
        let expected = format!("`scale[0]` is {bad}, but a scale must be positive and finite");
        assert_refused(&machine, found, &expected, &[&cache]);
    }
}

#[test]
fn no_layer_is_written_after_a_fault_of_one() {
    let run = |slots: [i64; 4], scales: [f32; 2]| {
        let machine = Machine::new();
        let new = |name, size| {
            let bytes = finite_values(Dtype::Bf16, 4 * size, &mut Random::new(4));
            tensor(name, Dtype::Bf16, &[2, 2, size], bytes)
        };
        let shape = [2, 16, 576];
        let caches = [(); 2].map(|()| poisoned_tensor("kv_cache", Dtype::F8E4m3, &shape));
        let addresses = caches
            .each_ref()
            .map(|cache| machine.address(cache).cast_signed());
        let slots = tensor(
            "slot_mapping",
            Dtype::I64,
            &[2, 2],
            slots.iter().flat_map(|slot| slot.to_le_bytes()).collect(),
        );
        let request = ConcatAndCacheMlaGroupedRequest {
            kv_c: machine.view(&new("kv_c", 512)),
            k_pe: machine.view(&new("k_pe", 64)),
            // SAFETY: the addresses are caches of this shape.
            kv_caches: unsafe {
                let table = machine.view(&longs("addresses", &addresses));
                CacheTable::from_raw(table, Dtype::F8E4m3, &shape, &contiguous_strides(&shape))
            }
            .expect("three strides"),
            slot_mapping: machine.view(&slots),
            block_size: 16,
            scales: Some(machine.view(&floats("scales", &[2], &scales))),
            check: CheckMode::Device,
        };
        let found = found!(machine, request);
        (machine, found, caches)
    };
    // Each layer has a cache of its own.
    assert_eq!(run([0, 1, 1, 0], [0.5, 2.0]).1, Ok(()));
    for (slots, scales, expected) in [
        (
            [0, 1, 2, 32],
            [1.0; 2],
            "`slot_mapping[1, 1]` is 32, outside 0..32 (negative slots are skipped)",
        ),
        (
            [0, 1, 2, 2],
            [1.0; 2],
            "`slot_mapping` gives slot 2 to two tokens, [1, 0] and [1, 1]",
        ),
        (
            [0, 1, 2, 3],
            [1.0, 0.0],
            "`scales[1]` is 0, but a scale must be positive and finite",
        ),
    ] {
        let (machine, found, caches) = run(slots, scales);
        assert_refused(&machine, found, expected, &caches.each_ref());
    }
}
