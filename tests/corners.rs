//! Attention where numbers are at their ends, on the emulator: queries of zeros, very large scores and softcaps, and what
//! an lse says.
#![allow(missing_docs, reason = "a test crate has no readers of its docs")]

mod attention_step;
mod common;
mod tensors;

use std::f32::consts::LOG2_E;

use attention_step::{Operation, Step, gpus, near};
use common::case;
use ferroattn::Error;
use ferroattn::cases::fill::Amount;
use ferroattn::cases::{Case, DeviceEntries, EntryTensors, run_case};
use ferroattn::emulator::Emulator;
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
    for (operation, head_size, dims) in [
        (Operation::Decode, 64, 64.0),
        (Operation::Unified, 64, 64.0),
        (Operation::Unified, 256, 256.0),
        (Operation::Mla, 288, 32.0),
    ] {
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
                step.head_size = head_size;
                step.softmax_scale = scale;
                step.queries = vec![if cache == Dtype::F8E4m3 { 1e4 } else { x }];
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
                            // More dims are added up with more rounding.
                            let most = 1e-6 * f64::max(1.0, dims / 64.0);
                            assert!(off < most, "{step:?}: {lse}, not {score}");
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

/// What a scale or a cap of a request is refused with, if it is; by every operation that takes it.
fn refusals(keys: &str) -> Vec<String> {
    let mut lines = vec![
        format!("decode bf16 heads=4/2 d=64 page=16 layout=nhd lens=20 {keys}"),
        format!("unified bf16 heads=4/2 d=64 page=16 layout=nhd lens=20 q_lens=3 {keys}"),
    ];
    if !keys.contains("softcap") {
        let line = "decode_mla bf16 heads=4/1 d=576 dv=512 page=16 layout=nhd lens=20";
        lines.push(format!("{line} {keys}"));
    }
    let machine = Emulator::new();
    let refusal = |line: String| match run_case(&case(&line), &machine, 1) {
        Err(Error::Request(error)) => error.to_string(),
        other => panic!("{line}: {other:?}"),
    };
    lines.into_iter().map(refusal).collect()
}

#[test]
fn a_softcap_is_as_small_as_what_is_divided_by_it_allows() {
    for keys in ["softcap=1e-40", "scale=3 softcap=1e-38"] {
        for message in refusals(keys) {
            assert!(
                message.starts_with("`softcap` must be at least about"),
                "{message}"
            );
        }
    }
    // The scale is what cannot be had with any cap.
    for message in refusals("scale=1.2e38 softcap=1") {
        assert!(
            message.starts_with("`softmax_scale` must be at most 1.17"),
            "{message}"
        );
    }
    let scale = 1.0 / 64.0;
    let is_good = |cap: f32| (2.0 * LOG2_E * scale / cap).is_finite();
    let bits = (1..).find(|&bits| is_good(f32::from_bits(bits)));
    let bits = bits.expect("a large one is good");
    let below = f32::from_bits(bits - 1);
    assert!(below > 1e-40);
    for message in refusals(&format!("scale={scale} softcap={below}")) {
        assert!(
            message.starts_with("`softcap` must be at least about"),
            "{message}"
        );
    }
    for operation in [Operation::Decode, Operation::Unified] {
        // Scores of 1, 0 and -1 are all capped to next to nothing.
        let (keys, values) = (vec![1.0, 0.0, -1.0, 0.0], vec![1.0, 2.0, 3.0, 4.0]);
        let mut step = Step::new(operation, Dtype::Bf16, keys, values);
        (step.softmax_scale, step.softcap) = (scale, Some(f32::from_bits(bits)));
        for machine in gpus() {
            for (out, lse) in step.run(&machine) {
                assert!(near(out, 2.5), "{step:?}: {out}");
                assert!((lse - 4f32.ln()).abs() < 1e-6, "{step:?}: {lse}");
            }
        }
    }
}

#[test]
fn a_softmax_scale_is_as_large_as_base_2_allows() {
    for scale in ["2.36e38", "3.4e38"] {
        for message in refusals(&format!("scale={scale}")) {
            assert!(
                message.starts_with("`softmax_scale` must be at most 2.35"),
                "{message}"
            );
        }
    }
    let Case::DecodeEntries(entries) =
        case("decode_mla_entry bf16 form=656 heads=4 page=16 lens=20")
    else {
        panic!("entries")
    };
    let machine = Emulator::new();
    let tensors = EntryTensors::new(&entries, 1, Amount::WHOLE);
    let mut device = DeviceEntries::new(&machine, tensors).expect("memory");
    let mut request = device.request(&entries, 0).expect("views");
    request.softmax_scale = 2.36e38;
    let message = request.check().expect_err("too large").to_string();
    assert!(
        message.starts_with("`softmax_scale` must be at most 2.35"),
        "{message}"
    );
    for operation in [Operation::Decode, Operation::Unified, Operation::Mla] {
        let mut step = Step::new(operation, Dtype::Bf16, vec![0.0; 2], vec![1.0, 3.0]);
        step.softmax_scale = 2.35e38;
        for machine in gpus() {
            for (out, lse) in step.run(&machine) {
                assert!(
                    near(out, 2.0) && near(lse, 2f32.ln()),
                    "{step:?}: {out}, {lse}"
                );
            }
        }
    }
}

#[test]
fn what_f32_cannot_hold_as_a_score_is_an_infinity() {
    for operation in [Operation::Decode, Operation::Unified, Operation::Mla] {
        for (key, is_finite) in [(1e38, false), (-1e38, true)] {
            let mut step = Step::new(operation, Dtype::Bf16, vec![key, 0.0], vec![1.0, 2.0]);
            step.softmax_scale = 1.0;
            for machine in gpus() {
                for (out, lse) in step.run(&machine) {
                    let is_right = match is_finite {
                        true => out == 2.0 && lse == 0.0,
                        false => !out.is_finite() && !lse.is_finite(),
                    };
                    assert!(is_right, "{step:?}: {out}, {lse}");
                }
            }
        }
    }
}
