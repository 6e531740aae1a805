//! Attention where numbers are at their ends, on the emulator: queries of zeros, very large scores and softcaps, and what
//! an lse says.
#![allow(missing_docs, reason = "a test crate has no readers of its docs")]

mod attention_step;
mod common;
mod tensors;

use attention_step::{Operation, Step, gpus, near};
use ferroattn::plan::SplitPolicy;
use ferroattn::tensor::Dtype;
use tensors::encode;

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
