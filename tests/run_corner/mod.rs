//! Small inputs of `ferroattn run` in corners, on every machine.
#![allow(dead_code, reason = "each test crate uses a part")]

use ferroattn::reference::HostTensor;
use ferroattn::tensor::Dtype::{self, Bf16};

use crate::common::machines;
use crate::run_input::*;
use crate::tensors::{ints, tensor};

/// Runs an input on every machine and looks at what it gives.
#[track_caller]
pub(crate) fn everywhere(input: &Input, what: &str, look: impl Fn(&Results)) {
    for machine in machines() {
        let results = input.run(machine.as_ref());
        let results =
            results.unwrap_or_else(|error| panic!("{what} on {}: {error}", machine.name()));
        look(&results);
    }
}

/// Every machine refuses the input, and says all of `words`.
#[track_caller]
pub(crate) fn refused_everywhere(input: &Input, what: &str, words: &[&str]) {
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
pub(crate) fn assert_all(numbers: &[f32], expected: f32, what: &str) {
    assert!(!numbers.is_empty(), "{what}");
    for &x in numbers {
        let same = x == expected || (x.is_nan() && expected.is_nan());
        let near = (x - expected).abs() <= 0.01 * expected.abs();
        assert!(same || near, "{what}: {x}, and had to be {expected}");
    }
}

/// A decode step of one query token over `num_keys` keys: all queries, keys and values are the same number of their
/// kind, one block after the other.
pub(crate) fn uniform(
    dtypes: [Dtype; 2],
    head_size: usize,
    num_keys: usize,
    numbers: [f32; 3],
) -> Input {
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
pub(crate) fn as_unified(decode: &Input) -> Input {
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
pub(crate) fn both(decode: &Input, what: &str, look: impl Fn(&str, &[f32], f32)) {
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
pub(crate) fn assert_counts(lse: f32, num_keys: usize, what: &str) {
    let off = lse - (num_keys as f32).ln();
    assert!(off.abs() < 1e-5, "{what}: lse is off by {off}");
}

/// Rows of `row` numbers, those of some tokens another number than the rest.
pub(crate) fn rows(
    name: &'static str,
    shape: &[usize],
    rest: f32,
    special: impl Fn(usize) -> Option<f32>,
) -> HostTensor {
    let row = shape[shape.len() - 1];
    filled(name, Bf16, shape, |at| special(at / row).unwrap_or(rest))
}
