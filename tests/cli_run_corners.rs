//! `ferroattn run` in corners: special values, freed blocks, numbers that are not true. Small inputs, and what is right.
#![allow(missing_docs, reason = "a test crate has no readers of its docs")]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "small test data"
)]

mod common;
mod run_input;
mod tensors;

use common::machines;
use ferroattn::reference::HostTensor;
use ferroattn::tensor::Dtype::{self, Bf16, F8E4m3, F8E5m2, F16, F32, I8, I64};
use run_input::*;
use tensors::{ints, tensor};

const NOT_A_SCALE: [f32; 5] = [0.0, -0.0, -1.0, f32::NAN, f32::INFINITY];

/// Runs an input on every machine and looks at what it gives.
#[track_caller]
fn everywhere(input: &Input, what: &str, look: impl Fn(&Results)) {
    for machine in machines() {
        let results = input.run(machine.as_ref());
        let results =
            results.unwrap_or_else(|error| panic!("{what} on {}: {error}", machine.name()));
        look(&results);
    }
}

/// Every machine refuses the input, and says all of `words`.
#[track_caller]
fn refused_everywhere(input: &Input, what: &str, words: &[&str]) {
    for machine in machines() {
        match input.run(machine.as_ref()) {
            Ok(results) => panic!("{what} on {}: {results:?}", machine.name()),
            Err(error) => {
                for word in words {
                    assert!(error.contains(word), "{what}: no {word} in: {error}");
                }
            }
        }
    }
}

/// All numbers are near this one, or NaN or infinite as it is.
#[track_caller]
fn assert_all(numbers: &[f32], expected: f32, what: &str) {
    assert!(!numbers.is_empty(), "{what}");
    for &x in numbers {
        let same = x == expected || (x.is_nan() && expected.is_nan());
        let near = (x - expected).abs() <= 0.01 * expected.abs();
        assert!(same || near, "{what}: {x}, and had to be {expected}");
    }
}

/// A decode step of one query token over `num_keys` keys: all queries, keys and values are the same number of their
/// kind, one block after the other.
fn uniform(dtypes: [Dtype; 2], head_size: usize, num_keys: usize, numbers: [f32; 3]) -> Input {
    let [query, key, value] = numbers;
    let num_blocks = num_keys.div_ceil(BLOCK_SIZE);
    let caches = [num_blocks, BLOCK_SIZE, 1, head_size];
    let ids: Vec<i32> = (0..).take(num_blocks).collect();
    decode(dtypes[1])
        .with(filled("query", dtypes[0], &[1, 1, head_size], |_| query))
        .with(filled("key_cache", dtypes[1], &caches, |_| key))
        .with(filled("value_cache", dtypes[1], &caches, |_| value))
        .with(ints("block_table", &[1, num_blocks], &ids))
        .with(ints("seq_lens", &[1], &[num_keys as i32]))
}

/// The same as unified attention, with room for a second token so that it takes a kernel for many.
fn as_unified(decode: &Input) -> Input {
    let mut unified = decode.clone().with(ints("query_start_loc", &[2], &[0, 1]));
    unified.op = "unified";
    let mut tensors = unified.tensors.iter();
    let query = tensors.find(|tensor| tensor.storage.name == "query");
    let query = query.expect("a query");
    let shape = [2, query.shape[1], query.shape[2]];
    let bytes = query.storage.bytes.repeat(2);
    unified
        .clone()
        .with(tensor("query", query.dtype, &shape, bytes))
}

/// Runs a decode step of one token, and the same as unified attention; looks at output and lse of the token.
#[track_caller]
fn both(decode: &Input, what: &str, look: impl Fn(&str, &[f32], f32)) {
    everywhere(decode, what, |results| {
        look(
            &format!("decode, {what}"),
            &results["out"],
            results["lse"][0],
        );
    });
    everywhere(&as_unified(decode), what, |results| {
        let out = &results["out"];
        let first = &out[..out.len() / 2];
        look(&format!("unified, {what}"), first, results["lse"][0]);
    });
}

/// The lse of keys that all have a score of 0.
#[track_caller]
fn assert_counts(lse: f32, num_keys: usize, what: &str) {
    let off = lse - (num_keys as f32).ln();
    assert!(off.abs() < 1e-5, "{what}: lse is off by {off}");
}

/// Rows of `row` numbers, those of some tokens another number than the rest.
fn rows(
    name: &'static str,
    shape: &[usize],
    rest: f32,
    special: impl Fn(usize) -> Option<f32>,
) -> HostTensor {
    let row = shape[shape.len() - 1];
    filled(name, Bf16, shape, |at| special(at / row).unwrap_or(rest))
}

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

#[test]
fn blocks_left_of_a_window_may_be_freed() {
    // The second and the third block have the fifteen tokens that are seen.
    let decode = uniform([Bf16, Bf16], 64, 24, [0.0, 0.0, 1.0])
        .with(ints("block_table", &[1, 3], &[-1, 1, 2]))
        .entry("sliding_window", 15);
    both(&decode, "a freed block", |what, out, _| {
        assert_all(out, 1.0, what);
    });
    for input in [decode.clone(), as_unified(&decode)] {
        let seen = input.with(ints("block_table", &[1, 3], &[-1, -1, 2]));
        let op = seen.op;
        refused_everywhere(&seen, op, &["`block_table[0, 1]` is -1"]);
    }
}

#[test]
fn rows_of_sequences_without_queries_are_not_read() {
    let input = unified(&[8, 8], &[1, 0])
        .with(ints("block_table", &[2, 1], &[0, -1]))
        .with(ints("seq_lens", &[2], &[8, 1_000_000]));
    everywhere(&input, "a stale row", |results| {
        assert_all(&results["out"], 3.5, "the other row");
    });
}

#[test]
fn sequences_counted_as_decodes_have_one_query() {
    let input = unified(&[2, 2], &[2, 1]).entry("num_decodes", 1);
    let words = ["`num_decodes` is 1", "sequence 0"];
    refused_everywhere(&input, "two query tokens", &words);
}

#[test]
fn scales_are_positive_and_finite_wherever_they_are_read() {
    let quantised = || {
        let write = cache_write(F8E4m3);
        write.with(ones("k_scale", 1)).with(ones("v_scale", 1))
    };
    let queries = filled("query", Bf16, &[2, 1, 16], |_| 1.0);
    let fp8_queries = filled("query", F8E4m3, &[1, 1, 64], |_| 1.0);
    let wide = |name| filled(name, F8E4m3, &[1, BLOCK_SIZE, 2, 16], |_| 0.0);
    let two_heads = quantised()
        .with(filled("key", Bf16, &[2, 2, 16], |_| 1.0))
        .with(filled("value", Bf16, &[2, 2, 16], |_| 1.0))
        .with(wide("key_cache"))
        .with(wide("value_cache"))
        .with(ones("k_scale", 2))
        .with(ones("v_scale", 2));
    let mut targets = vec![
        (decode(F8E4m3), "k_scale", 1),
        (decode(F8E4m3), "v_scale", 1),
        (as_unified(&decode(F8E4m3)), "k_scale", 1),
        (as_unified(&decode(F8E4m3)), "v_scale", 1),
        (
            decode(F8E4m3).with(fp8_queries).entry("out_dtype", "bf16"),
            "q_scale",
            1,
        ),
        (
            unified(&[5], &[2]).entry("out_dtype", "fp8_e4m3"),
            "output_scale",
            1,
        ),
        (decode_mla(F8E4m3), "k_scale", 1),
        (quantised(), "k_scale", 1),
        (quantised(), "v_scale", 1),
        (two_heads.clone(), "k_scale", 2),
        (two_heads, "v_scale", 2),
        (rope(quantised()), "k_scale", 1),
        (rope(quantised()).with(queries), "q_scale", 1),
    ];
    let of = |op: &str, name: &'static str| {
        let has = |input: &Input| {
            let mut tensors = input.tensors.iter();
            let found = tensors.find(|tensor| tensor.storage.name == name);
            found.map(|tensor| (input.clone(), name, tensor.num_elements()))
        };
        let mut inputs = inputs().into_iter().filter(|input| input.op == op);
        inputs.find_map(|input| has(&input)).expect("a scale")
    };
    targets.extend([
        of("gather", "scale"),
        of("concat_and_cache_mla", "scale"),
        of("concat_and_cache_mla_grouped", "scales"),
    ]);
    for (input, name, count) in targets {
        for bad in NOT_A_SCALE {
            // The last one of several.
            let scale = |at| if at + 1 == count { bad } else { 1.0 };
            let input = input.clone().with(filled(name, F32, &[count], scale));
            let what = format!("{} with a {name} of {bad}", input.op);
            refused_everywhere(&input, &what, &[name]);
        }
    }
}

#[test]
fn positions_lie_in_the_table() {
    for (position, shown) in [(4, "4"), (-1, "-1"), (1 << 40, "1099511627776")] {
        let bytes = [0i64, position].map(i64::to_le_bytes).concat();
        let input = rope(cache_write(Bf16)).with(tensor("positions", I64, &[2], bytes));
        let words = ["`positions[1]`", shown, "0..4"];
        refused_everywhere(&input, "a position", &words);
    }
}

#[test]
fn two_tokens_for_one_slot() {
    for (input, op) in [
        (cache_write(Bf16), "reshape_and_cache_flash"),
        (rope(cache_write(Bf16)), "rope_and_cache"),
    ] {
        let input = input.with(slot_mapping(&[5, 5]));
        refused_everywhere(&input, op, &["`slot_mapping`", "slot 5", "[0]", "[1]"]);
    }
}
