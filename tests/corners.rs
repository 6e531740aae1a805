//! Attention where numbers are at their ends, on the emulator: queries of zeros, very large scores and softcaps, values
//! that a row does not see, and what an lse says.
#![allow(missing_docs, reason = "a test crate has no readers of its docs")]

mod common;
mod tensors;

use common::emulated;
use ferroattn::emulator::Emulator;
use ferroattn::ops::{
    DecodeMlaRequest, DecodeOptions, DecodeRequest, KvScales, MlaScales, UnifiedOptions,
    UnifiedRequest,
};
use ferroattn::plan::SplitPolicy;
use ferroattn::runtime::{Buffer, Launcher, Runtime};
use ferroattn::tensor::Dtype;
use tensors::encode;

const BLOCK: usize = 16;

/// Plans a good request of any operation and runs it.
macro_rules! launch {
    ($request:expr, $machine:expr) => {{
        let checked = $request.check().expect("a good request");
        let plan = checked.plan(&$machine.device()).expect("a plan");
        let bytes = plan.workspace_bytes();
        let mut workspace =
            Buffer::uninit($machine, "workspace", Dtype::U8, &[bytes]).expect("memory");
        checked
            .launch(&plan, &mut workspace.view_mut(), $machine)
            .expect("no fault");
    }};
}

/// Who attends.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Operation {
    Decode,
    Unified,
    /// Rows of 288, of which 256 are values.
    Mla,
}

/// One sequence, one KV head, the same number in all dims of a row.
#[derive(Clone, Debug)]
struct Step {
    operation: Operation,
    query_dtype: Dtype,
    cache_dtype: Dtype,
    head_size: usize,
    num_heads: usize,
    softmax_scale: f32,
    k_scale: f32,
    /// A number for each query token, key and value.
    queries: Vec<f32>,
    keys: Vec<f32>,
    values: Vec<f32>,
    window: Option<u32>,
    softcap: Option<f32>,
    policy: SplitPolicy,
}

impl Step {
    fn new(operation: Operation, cache_dtype: Dtype, keys: Vec<f32>, values: Vec<f32>) -> Self {
        Self {
            operation,
            query_dtype: match cache_dtype {
                Dtype::F16 => Dtype::F16,
                _ => Dtype::Bf16,
            },
            cache_dtype,
            head_size: if operation == Operation::Mla { 288 } else { 64 },
            num_heads: 2,
            softmax_scale: 0.125,
            k_scale: 1.0,
            queries: vec![1.0],
            keys,
            values,
            window: None,
            softcap: None,
            policy: SplitPolicy::Auto,
        }
    }

    /// One number for each row of the output, which has to be the same in all its dims, and the lse.
    fn run(&self, machine: &Emulator) -> Vec<(f32, f32)> {
        let (tokens, seq_len) = (self.queries.len(), self.keys.len());
        let (heads, size) = (self.num_heads, self.head_size);
        let blocks = seq_len.div_ceil(BLOCK);
        let is_mla = self.operation == Operation::Mla;
        let size_v = if is_mla { 256 } else { size };
        let rows = |dtype, numbers: &[f32], repeats: usize| -> Vec<u8> {
            let row = |&x| encode(dtype, x).repeat(repeats);
            numbers.iter().flat_map(row).collect()
        };
        let buffer = |name, dtype: Dtype, shape: &[usize], mut bytes: Vec<u8>| {
            bytes.resize(shape.iter().product::<usize>() * dtype.size(), 0xff);
            Buffer::new(machine, name, dtype, shape, &bytes).expect("memory")
        };
        let ints = |name, shape: &[usize], numbers: &[i32]| {
            let bytes = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
            buffer(name, Dtype::I32, shape, bytes)
        };
        let query = rows(self.query_dtype, &self.queries, heads * size);
        let keys = if is_mla {
            // Keys and values are one: a key is the rotary part, of which the latents are the value.
            let row = |(&key, &value): (&f32, &f32)| {
                let mut row = encode(self.cache_dtype, value).repeat(size_v);
                row.extend(encode(self.cache_dtype, key).repeat(size - size_v));
                row
            };
            self.keys.iter().zip(&self.values).flat_map(row).collect()
        } else {
            rows(self.cache_dtype, &self.keys, size)
        };
        let scale = |x: f32| buffer("k_scale", Dtype::F32, &[1], x.to_le_bytes().to_vec());
        let (k_scale, v_scale) = (scale(self.k_scale), scale(1.0));
        let is_bytes = self.cache_dtype.size() == 1;
        let table: Vec<i32> = (0..).take(blocks).collect();
        let table = ints("block_table", &[1, blocks], &table);
        let lens = ints("seq_lens", &[1], &[i32::try_from(seq_len).expect("few")]);
        let starts = ints(
            "query_start_loc",
            &[2],
            &[0, i32::try_from(tokens).expect("few")],
        );
        let mut options = DecodeOptions::default().split_policy(self.policy);
        options.score_mods.sliding_window = self.window;
        options.score_mods.softcap = self.softcap;
        let (out, lse);
        if is_mla {
            let query_shape = [1, tokens, heads, size];
            let queries = {
                // Only the rotary part is multiplied.
                let row = |&x: &f32| {
                    let mut row = encode(self.query_dtype, 0.0).repeat(size_v);
                    row.extend(encode(self.query_dtype, x).repeat(size - size_v));
                    row.repeat(heads)
                };
                self.queries.iter().flat_map(row).collect()
            };
            let query = buffer("query", self.query_dtype, &query_shape, queries);
            let cache = buffer("cache", self.cache_dtype, &[blocks, BLOCK, size], keys);
            let shape = [1, tokens, heads, size_v];
            let mut out_buffer = buffer("out", self.query_dtype, &shape, Vec::new());
            let mut lse_buffer = buffer("lse", Dtype::F32, &shape[..3], Vec::new());
            let request = DecodeMlaRequest {
                query: query.view(),
                cache: cache.view(),
                block_table: table.view(),
                seq_lens: lens.view(),
                out: out_buffer.view_mut(),
                lse: Some(lse_buffer.view_mut()),
                softmax_scale: self.softmax_scale,
                scales: is_bytes.then(|| MlaScales {
                    q_scale: None,
                    k_scale: k_scale.view(),
                }),
                options,
            };
            launch!(request, machine);
            (out, lse) = (out_buffer.read(), lse_buffer.read());
        } else {
            let shape = [tokens, heads, size];
            let query = buffer("query", self.query_dtype, &shape, query);
            let cache_shape = [blocks, BLOCK, 1, size];
            let values = rows(self.cache_dtype, &self.values, size);
            let key_cache = buffer("key_cache", self.cache_dtype, &cache_shape, keys);
            let value_cache = buffer("value_cache", self.cache_dtype, &cache_shape, values);
            let mut out_buffer = buffer("out", self.query_dtype, &shape, Vec::new());
            let mut lse_buffer = buffer("lse", Dtype::F32, &shape[..2], Vec::new());
            let scales = is_bytes.then(|| KvScales {
                q_scale: None,
                k_scale: k_scale.view(),
                v_scale: v_scale.view(),
            });
            if self.operation == Operation::Decode {
                let request = DecodeRequest {
                    query: query.view(),
                    key_cache: key_cache.view(),
                    value_cache: value_cache.view(),
                    block_table: table.view(),
                    seq_lens: lens.view(),
                    out: out_buffer.view_mut(),
                    lse: Some(lse_buffer.view_mut()),
                    softmax_scale: self.softmax_scale,
                    scales,
                    options,
                };
                launch!(request, machine);
            } else {
                let mut options = UnifiedOptions::default();
                options.score_mods.sliding_window = self.window;
                options.score_mods.softcap = self.softcap;
                options.split_policy = self.policy;
                let request = UnifiedRequest {
                    query: query.view(),
                    key_cache: key_cache.view(),
                    value_cache: value_cache.view(),
                    block_table: table.view(),
                    query_start_loc: starts.view(),
                    seq_lens: lens.view(),
                    out: out_buffer.view_mut(),
                    lse: Some(lse_buffer.view_mut()),
                    softmax_scale: self.softmax_scale,
                    scales,
                    options,
                };
                launch!(request, machine);
            }
            (out, lse) = (out_buffer.read(), lse_buffer.read());
        }
        machine.synchronize().expect("no fault");
        let (out, lse) = (out.expect("written"), lse.expect("written"));
        let out: Vec<f32> = out
            .chunks_exact(2)
            .map(|bytes| match (self.query_dtype, [bytes[0], bytes[1]]) {
                (Dtype::F16, bytes) => half::f16::from_le_bytes(bytes).to_f32(),
                (_, bytes) => half::bf16::from_le_bytes(bytes).to_f32(),
            })
            .collect();
        let lse = lse
            .chunks_exact(4)
            .map(|bytes| f32::from_le_bytes(bytes.try_into().expect("four")));
        out.chunks_exact(size_v)
            .map(|row| {
                let same = |x: &f32| *x == row[0] || (x.is_nan() && row[0].is_nan());
                assert!(row.iter().all(same), "{self:?}: {row:?}");
                row[0]
            })
            .zip(lse)
            .collect()
    }
}

/// What stands for a GPU without and with products of warp groups.
fn gpus() -> [Emulator; 2] {
    [emulated((8, 0)), emulated((9, 0))]
}

/// Within what a bf16 is rounded to.
fn near(got: f32, expected: f32) -> bool {
    (got - expected).abs() <= expected.abs() / 128.0 || got == expected
}

#[test]
fn a_query_of_zeros_sees_the_mean() {
    for operation in [Operation::Decode, Operation::Unified, Operation::Mla] {
        for cache in [Dtype::F8E4m3, Dtype::F8E5m2, Dtype::Bf16, Dtype::F16] {
            for len in [1, 13, 40, 77] {
                for zero in [0.0, -0.0, 1e-38] {
                    let mut step = Step::new(
                        operation,
                        cache,
                        vec![1.0; len],
                        (0..len).map(|i| [1.0, 3.0][i % 2]).collect(),
                    );
                    step.queries = match operation {
                        Operation::Decode => vec![zero],
                        _ => vec![zero; len.min(3)],
                    };
                    // Of MLA the scale is that of values, too.
                    if operation != Operation::Mla {
                        step.k_scale = 1e-45;
                    }
                    for machine in gpus() {
                        let first = len + 1 - step.queries.len();
                        for (at, (out, lse)) in step.run(&machine).into_iter().enumerate() {
                            let seen = first + at / step.num_heads;
                            let odd = (seen / 2) as f32;
                            let mean = 1.0 + 2.0 * odd / seen as f32;
                            let ln = (seen as f32).ln();
                            assert!(near(out, mean), "{step:?}: {out}, not {mean}");
                            assert!(
                                (lse - ln).abs() <= 1e-6 * ln + 1e-30,
                                "{step:?}: {lse}, not {ln}"
                            );
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn scores_as_large_as_f32_holds_them() {
    // Of `q * k * dims * scale`, up to 1e30; more than one split, unequally long, and values that differ.
    for operation in [Operation::Decode, Operation::Unified, Operation::Mla] {
        for (cache, x) in [
            (Dtype::F16, 1e4),
            (Dtype::F16, 6e4),
            (Dtype::Bf16, 3e4),
            (Dtype::Bf16, -1e15),
            (Dtype::F8E4m3, 448.0),
        ] {
            for (scale, key) in [(0.125, x), (1e4, x), (1e4, -x)] {
                let len = 150;
                let mut step = Step::new(
                    operation,
                    cache,
                    vec![key; len],
                    (0..len).map(|i| if i < 100 { 1.0 } else { 4.0 }).collect(),
                );
                step.softmax_scale = scale;
                step.queries = vec![if cache == Dtype::F8E4m3 { 1e4 } else { x }];
                let dims = if operation == Operation::Mla {
                    32.0
                } else {
                    64.0
                };
                for policy in [SplitPolicy::Auto, SplitPolicy::Fixed(128)] {
                    step.policy = policy;
                    for machine in gpus() {
                        for (out, lse) in step.run(&machine) {
                            let score = f64::from(encoded(step.query_dtype, step.queries[0]))
                                * f64::from(encoded(cache, key))
                                * dims
                                * f64::from(scale);
                            assert!(near(out, 2.0), "{step:?}: {out}, not 2");
                            let off = (f64::from(lse) / score - 1.0).abs();
                            assert!(off < 1e-6, "{step:?}: {lse}, not {score}");
                        }
                    }
                }
            }
        }
    }
}

/// A number as a type holds it.
fn encoded(dtype: Dtype, x: f32) -> f32 {
    let bytes = encode(dtype, x);
    match dtype {
        Dtype::F16 => half::f16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
        Dtype::Bf16 => half::bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
        _ => x,
    }
}

#[test]
fn values_that_a_row_does_not_see_do_not_reach_it() {
    let (nan, inf) = (f32::NAN, f32::INFINITY);
    for operation in [Operation::Unified, Operation::Mla] {
        for cache in [Dtype::Bf16, Dtype::F16, Dtype::F8E4m3, Dtype::F8E5m2] {
            for (len, tokens) in [(4, 4), (70, 5), (150, 40)] {
                for poison in [nan, inf, -inf] {
                    // What is too large for a byte is cut to its largest.
                    if cache.size() == 1 && !poison.is_nan() {
                        continue;
                    }
                    if operation == Operation::Mla && tokens > 8 {
                        continue;
                    }
                    // The last token but one.
                    let at = len - 2;
                    let mut step = Step::new(operation, cache, vec![0.5; len], vec![2.0; len]);
                    step.values[at] = poison;
                    step.queries = vec![1.0; tokens];
                    for policy in [SplitPolicy::Auto, SplitPolicy::Fixed(64)] {
                        step.policy = policy;
                        for machine in gpus() {
                            let rows = step.run(&machine);
                            for (row, (out, lse)) in rows.into_iter().enumerate() {
                                let position = len - tokens + row / step.num_heads;
                                if position < at {
                                    assert_eq!(out, 2.0, "{step:?}, row {row}");
                                    assert!(lse.is_finite(), "{step:?}, row {row}: {lse}");
                                } else if operation == Operation::Mla || poison.is_nan() {
                                    // A latent is a part of its key, too.
                                    assert!(out.is_nan(), "{step:?}, row {row}: {out}");
                                } else {
                                    assert_eq!(out, poison, "{step:?}, row {row}");
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn values_left_of_a_window_do_not_reach_a_row() {
    for cache in [Dtype::Bf16, Dtype::F8E4m3] {
        let len = 90;
        let mut step = Step::new(Operation::Unified, cache, vec![0.5; len], vec![2.0; len]);
        step.values[60] = f32::NAN;
        step.queries = vec![1.0; 50];
        step.window = Some(7);
        step.softcap = Some(20.0);
        for machine in gpus() {
            for (row, (out, _)) in step.run(&machine).into_iter().enumerate() {
                let position = 40 + row / step.num_heads;
                let sees = (60..67).contains(&position);
                assert_eq!(out.is_nan(), sees, "{step:?}, position {position}: {out}");
                assert!(sees || out == 2.0, "{step:?}, position {position}: {out}");
            }
        }
    }
}

#[test]
fn an_lse_says_what_was_seen() {
    for operation in [Operation::Decode, Operation::Unified, Operation::Mla] {
        for cache in [Dtype::Bf16, Dtype::F16, Dtype::F8E4m3] {
            for len in [1, 4, 64, 128, 100] {
                for (query, key) in [
                    (0.0, 1.0),
                    (f32::NAN, 1.0),
                    (1.0, f32::NAN),
                    (1.0, f32::NEG_INFINITY),
                ] {
                    if cache == Dtype::F8E4m3 && key == f32::NEG_INFINITY {
                        continue;
                    }
                    let mut step = Step::new(operation, cache, vec![key; len], vec![1.0; len]);
                    step.queries = vec![query];
                    for policy in [SplitPolicy::Auto, SplitPolicy::Fixed(64)] {
                        step.policy = policy;
                        for machine in gpus() {
                            for (out, lse) in step.run(&machine) {
                                if query.is_nan() || key.is_nan() {
                                    assert!(out.is_nan() && lse.is_nan(), "{step:?}: {out} {lse}");
                                } else if key == f32::NEG_INFINITY {
                                    assert_eq!((out, lse), (0.0, key), "{step:?}");
                                } else if len.is_power_of_two() {
                                    let power = len.trailing_zeros() as f32;
                                    assert_eq!(lse, power * core::f32::consts::LN_2, "{step:?}");
                                } else {
                                    let ln = (len as f32).ln();
                                    assert!((lse - ln).abs() < 1e-6, "{step:?}: {lse}, not {ln}");
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn a_softcap_of_any_size() {
    for operation in [Operation::Decode, Operation::Unified] {
        for cap in [
            0.01, 1.0, 50.0, 170.0, 180.0, 1e3, 1e5, 1e6, 1e7, 1e8, 1e12, 1e17,
        ] {
            for score in [0.01f64, 1.0, 2.0, 30.0, 1e4] {
                // A key with that score beside one with none.
                let mut step = Step::new(operation, Dtype::Bf16, vec![1.0, 0.0], vec![1.0, 0.0]);
                #[allow(clippy::cast_possible_truncation, reason = "rounded, as a caller does")]
                let scale = (score / 64.0) as f32;
                step.softmax_scale = scale;
                step.softcap = Some(cap);
                let cap = f64::from(cap);
                let capped = cap * (64.0 * f64::from(scale) / cap).tanh();
                let (out, lse) = (
                    1.0 / (1.0 + (-capped).exp()),
                    capped + (-capped).exp().ln_1p(),
                );
                for machine in gpus() {
                    for (got, got_lse) in step.run(&machine) {
                        let (got, got_lse) = (f64::from(got), f64::from(got_lse));
                        assert!((got - out).abs() < 4e-3, "{step:?}: {got}, not {out}");
                        let off = (got_lse - lse).abs();
                        assert!(
                            off < 4e-6 * lse.abs().max(10.0),
                            "{step:?}: {got_lse}, not {lse}"
                        );
                    }
                }
            }
        }
    }
}
