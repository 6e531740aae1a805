//! A bounded number of random requests: valid ones against the reference, and each with one mistake in it, in the
//! request or in device memory. The seed is fresh and printed; `FERROATTN_FUZZ_SEED` and `FERROATTN_FUZZ_COUNT` choose
//! others, as `ferroattn fuzz` does.
#![allow(missing_docs, reason = "a test crate has no readers of its docs")]

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, RandomState};
use std::io::Write;

use ferroattn::cases::fuzz::{Drawn, OPERATIONS, requests};
use ferroattn::emulator::Emulator;

/// Some of every operation: a minute or two of one core.
const COUNT: usize = 150 * OPERATIONS.len();

fn number<T: std::str::FromStr>(name: &str, otherwise: impl FnOnce() -> T) -> T {
    match std::env::var(name) {
        Ok(text) => text
            .parse()
            .unwrap_or_else(|_| panic!("{name}={text} is no number")),
        Err(_) => otherwise(),
    }
}

/// What is drawn in this run, and by what seed.
fn drawn() -> (u64, impl Iterator<Item = Drawn>) {
    let seed = number("FERROATTN_FUZZ_SEED", || {
        RandomState::new().hash_one(0) % 1_000_000
    });
    let count = number("FERROATTN_FUZZ_COUNT", || COUNT);
    // Past the test harness, which swallows `eprintln!` of tests that pass.
    let _ = writeln!(
        std::io::stderr(),
        "FERROATTN_FUZZ_SEED={seed} FERROATTN_FUZZ_COUNT={count}"
    );
    (seed, requests(&OPERATIONS, seed).take(count))
}

#[test]
fn random_requests_are_right() {
    let (seed, drawn) = drawn();
    let failures: Vec<String> = drawn
        .filter_map(|drawn| {
            let error = drawn.judge(&Emulator::with_seed(drawn.seed)).err()?;
            Some(format!("{error}\n  {}", drawn.replay()))
        })
        .collect();
    assert!(failures.is_empty(), "seed {seed}:\n{}", failures.join("\n"));
}

#[test]
fn one_mistake_is_a_typed_error_and_nothing_is_written() {
    let (seed, drawn) = drawn();
    let mut mistakes: BTreeMap<String, usize> = BTreeMap::new();
    let mut failures = Vec::new();
    for (at, drawn) in drawn.enumerate() {
        match drawn.judge_broken(&Emulator::new()) {
            Ok(None) => {}
            Ok(Some(mistake)) => *mistakes.entry(mistake).or_default() += 1,
            Err(error) => failures.push(format!(
                "{error}\n  {}\n  ferroattn fuzz --seed {seed} --skip {at} --count 1",
                drawn.case
            )),
        }
    }
    assert!(failures.is_empty(), "seed {seed}:\n{}", failures.join("\n"));
    assert!(!mistakes.is_empty(), "no mistake could be made");
}

#[test]
fn one_bad_value_in_device_memory_is_named_and_nothing_is_written() {
    let (seed, drawn) = drawn();
    let failures: Vec<String> = drawn
        .enumerate()
        .filter_map(|(at, drawn)| {
            let error = drawn.judge_corrupted(&Emulator::new()).err()?;
            Some(format!(
                "{error}\n  {}\n  ferroattn fuzz --seed {seed} --skip {at} --count 1",
                drawn.case
            ))
        })
        .collect();
    assert!(failures.is_empty(), "seed {seed}:\n{}", failures.join("\n"));
}

/// Of every operation every tensor that its check looks at.
#[test]
fn bad_values_are_put_wherever_a_check_looks() {
    let paged = ["block_table", "seq_lens"];
    let scales = ["k_scale", "q_scale", "v_scale"];
    for (operation, tensors) in [
        ("decode", [&paged[..], &scales].concat()),
        ("decode_mla", [&paged[..], &scales[..2]].concat()),
        (
            "decode_mla_entry",
            [
                &paged[..],
                &["topk_indices", "topk_length"],
                &["window.indices", "window.length"],
            ]
            .concat(),
        ),
        (
            "unified",
            [&paged[..], &scales, &["query_start_loc", "output_scale"]].concat(),
        ),
        (
            "reshape_and_cache_flash",
            vec!["slot_mapping", "k_scale", "v_scale"],
        ),
        (
            "rope_and_cache",
            [&scales[..], &["slot_mapping", "positions"]].concat(),
        ),
        ("concat_and_cache_mla", vec!["slot_mapping", "scale"]),
        (
            "concat_and_cache_mla_grouped",
            vec!["slot_mapping", "scales"],
        ),
        (
            "gather",
            [&paged[..1], &["row_starts", "indices", "slots", "scale"]].concat(),
        ),
        ("copy_blocks", vec!["pairs"]),
        ("compact_tables", paged.to_vec()),
        ("compact_slots", vec!["slots"]),
    ] {
        let mut found = BTreeSet::new();
        let mut expected: BTreeSet<String> = BTreeSet::new();
        expected.extend(tensors.into_iter().map(str::to_owned));
        for drawn in requests(&[operation], 11).take(1000) {
            if found == expected {
                break;
            }
            let corrupted = drawn.judge_corrupted(&Emulator::new());
            found.extend(corrupted.unwrap_or_else(|error| panic!("{error}\n  {}", drawn.case)));
        }
        assert_eq!(found, expected, "{operation}");
    }
}
