//! `ferroattn run` in corners: special values, and what is right.
#![allow(missing_docs, reason = "a test crate has no readers of its docs")]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "small test data"
)]

mod common;
mod run_corner;
mod run_input;
mod tensors;

use ferroattn::tensor::Dtype::{Bf16, F8E4m3, F8E5m2, F16, F32, I8};
use run_corner::*;
use run_input::*;
use tensors::{ints, tensor};

#[test]
fn zero_queries_see_the_mean_of_8_bit_values() {
    for dtype in [F8E4m3, F8E5m2] {
        for num_keys in [1, 5, 8, 31, 64, 100] {
            for head_size in [64, 128] {
                let decode = uniform([Bf16, dtype], head_size, num_keys, [0.0, 1.0, 1.0]);
                let what = format!("{dtype}, {num_keys} keys of {head_size}");
                both(&decode, &what, |what, out, lse| {
                    assert_all(out, 1.0, what);
                    assert_counts(lse, num_keys, what);
                });
            }
        }
    }
}

#[test]
fn zero_queries_see_the_mean_of_integers() {
    for num_keys in [1, 5, 8, 31] {
        let num_blocks = usize::div_ceil(num_keys, BLOCK_SIZE);
        let caches = |name| {
            let shape = [num_blocks, BLOCK_SIZE, 1, 64];
            tensor(name, I8, &shape, vec![1; shape.iter().product()])
        };
        let scales = [num_blocks, BLOCK_SIZE, 1];
        let decode = uniform([Bf16, F8E4m3], 64, num_keys, [0.0, 1.0, 1.0])
            .with(caches("key_cache"))
            .with(caches("value_cache"))
            .with(filled("k_scale", F32, &scales, |_| 1.0))
            .with(filled("v_scale", F32, &scales, |_| 1.0));
        both(&decode, &format!("{num_keys} keys"), |what, out, lse| {
            assert_all(out, 1.0, what);
            assert_counts(lse, num_keys, what);
        });
    }
}

#[test]
fn zero_queries_see_the_mean_of_an_fp8_latent_cache() {
    for num_keys in [2, 5, 8] {
        let input = decode_mla(F8E4m3).with(ones("k_scale", 1)).with(ints(
            "seq_lens",
            &[1],
            &[num_keys as i32],
        ));
        let what = format!("{num_keys} keys");
        everywhere(&input, &what, |results| {
            assert_all(&results["out"], 1.0, &what);
            for token in [0, 1] {
                assert_counts(results["lse"][token], num_keys - 1 + token, &what);
            }
        });
    }
}

/// A scale that makes all products vanish is as good as a query of zeros.
#[test]
fn the_smallest_scale_of_keys() {
    let decode = uniform([Bf16, F8E4m3], 64, 5, [1.0, 1.0, 1.0]);
    let decode = decode.with(filled("k_scale", F32, &[1], |_| 1e-45));
    both(&decode, "a scale of 1e-45", |what, out, lse| {
        assert_all(out, 1.0, what);
        assert_counts(lse, 5, what);
    });
}

#[test]
fn values_that_a_query_may_not_see() {
    for poison in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for split_policy in ["auto", "invariant"] {
            let shape = [1, BLOCK_SIZE, 1, 64];
            let later = |token| (token == 1).then_some(poison);
            let input = unified(&[2], &[2])
                .with(rows("value_cache", &shape, 2.0, later))
                .entry("split_policy", split_policy);
            let what = format!("{poison}, {split_policy}");
            everywhere(&input, &what, |results| {
                let (first, second) = results["out"].split_at(64);
                assert_all(first, 2.0, &what);
                assert_all(second, poison, &what);
            });
        }
    }
}

#[test]
fn keys_that_a_query_may_not_see() {
    let later = |token| (token == 1).then_some(f32::NAN);
    let input = unified(&[2], &[2])
        .with(rows("key_cache", &[1, BLOCK_SIZE, 1, 64], 0.0, later))
        .with(rows("value_cache", &[1, BLOCK_SIZE, 1, 64], 2.0, |_| None));
    everywhere(&input, "a key of NaN", |results| {
        assert_all(&results["out"][..64], 2.0, "the first token");
        assert_all(&results["lse"][..1], 0.0, "the first token");
        assert_all(&results["out"][64..], f32::NAN, "the second token");
        assert_all(&results["lse"][1..], f32::NAN, "the second token");
    });
}

#[test]
fn keys_and_values_left_of_a_window() {
    // Three of eight tokens are seen.
    let left = |token| (token < 5).then_some(f32::NAN);
    let shape = [1, BLOCK_SIZE, 1, 64];
    let decode = decode(Bf16)
        .with(rows("key_cache", &shape, 0.0, left))
        .with(rows("value_cache", &shape, 2.0, left))
        .entry("sliding_window", 3);
    both(&decode, "a window", |what, out, lse| {
        assert_all(out, 2.0, what);
        assert_counts(lse, 3, what);
    });
}

#[test]
fn a_bad_draft_leaves_the_tokens_before_it_alone() {
    for poison in [f32::NAN, f32::INFINITY] {
        let last = |token| (token == 4).then_some(poison);
        let shape = [1, BLOCK_SIZE, 576];
        let input = decode_mla(Bf16).with(rows("cache", &shape, 1.0, last));
        everywhere(&input, "a bad draft", |results| {
            assert_all(&results["out"][..512], 1.0, "the accepted token");
        });
    }
}

#[test]
fn large_finite_scores() {
    for head_size in [64, 128, 256] {
        for (dtypes, operand, scale) in [
            // 1.2e7 and more.
            ([F16, F16], 1.0, 1.2e7 / head_size as f32),
            ([Bf16, F8E4m3], 1.0, 1.2e7 / head_size as f32),
            ([Bf16, Bf16], 1.0, 2e38 / head_size as f32),
            ([F16, F16], 1e4, 0.088_388_346),
            ([Bf16, Bf16], 3e4, 0.088_388_346),
            ([Bf16, F8E4m3], 1.0, 1e30),
        ] {
            for sign in [1.0, -1.0] {
                let numbers = [sign * operand, operand, 2.0];
                let decode = uniform(dtypes, head_size, 1, numbers);
                let [query, keys] = dtypes;
                let what = format!("{query}, {keys}, heads of {head_size}, {numbers:?}");
                let score = sign * operand * operand * scale * head_size as f32;
                let decode = decode.entry("softmax_scale", scale);
                both(&decode, &what, |what, out, lse| {
                    assert_all(out, 2.0, what);
                    assert_all(&[lse], score, what);
                });
            }
        }
    }
}

#[test]
fn a_large_cap_is_no_cap() {
    let ones_at = |row| (row == 1).then_some(1.0);
    let shape = [1, BLOCK_SIZE, 1, 64];
    let uncapped = decode(Bf16)
        .with(filled("query", Bf16, &[1, 1, 64], |_| 1.0))
        .with(rows("key_cache", &shape, 0.0, ones_at))
        .with(rows("value_cache", &shape, 0.0, ones_at))
        .with(ints("seq_lens", &[1], &[2]))
        .entry("softmax_scale", 0.03125);
    // Scores of 0 and 2: the second value's weight is 1 / (1 + e^-2), and with a cap of 2, of e^-(2 tanh 1).
    for (softcap, weight) in [
        (1e18, 0.880_8),
        (1e8, 0.880_8),
        (1e7, 0.880_8),
        (1e6, 0.880_8),
        (1e5, 0.880_8),
        (2.0, 0.821_0),
        (1e-30, 0.5),
    ] {
        let decode = uncapped.clone().entry("softcap", softcap);
        both(&decode, &format!("a cap of {softcap}"), |what, out, lse| {
            let first = out[0];
            assert!(
                (first - weight).abs() < 0.003,
                "{what}: {first}, not {weight}"
            );
            let off = lse + (1.0 - weight).ln();
            assert!(off.abs() < 0.001, "{what}: lse is off by {off}");
        });
    }
    for softcap in [0.0, -1.0, f32::NAN, f32::INFINITY, f32::MAX] {
        let input = uncapped.clone().entry("softcap", softcap);
        for input in [as_unified(&input), input] {
            refused_everywhere(&input, input.op, &["`softcap` must be"]);
        }
    }
}

#[test]
fn lse_is_nan_if_a_score_is() {
    for dtypes in [[Bf16, Bf16], [F16, F16], [Bf16, F8E4m3]] {
        let decode = uniform(dtypes, 64, 2, [f32::NAN, 1.0, 1.0]);
        both(&decode, &format!("{dtypes:?}"), |what, out, lse| {
            assert_all(out, f32::NAN, what);
            assert_all(&[lse], f32::NAN, what);
        });
    }
}

#[test]
fn lse_says_that_no_key_counts() {
    for dtypes in [[Bf16, Bf16], [F16, F16]] {
        let decode = uniform(dtypes, 64, 2, [f32::NEG_INFINITY, 1.0, 1.0]);
        both(&decode, &format!("{dtypes:?}"), |what, _, lse| {
            assert_all(&[lse], f32::NEG_INFINITY, what);
        });
    }
}
