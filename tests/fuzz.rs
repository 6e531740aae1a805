//! A bounded number of random requests: valid ones against the reference, and each with one mistake in it, in the
//! request or in device memory. The seed is fresh and printed; `FERROATTN_FUZZ_SEED` and `FERROATTN_FUZZ_COUNT` choose
//! others, as `ferroattn fuzz` does.
#![allow(missing_docs, reason = "a test crate has no readers of its docs")]

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, RandomState};
use std::io::Write;

use ferroattn::cases::fill::{self, Amount};
use ferroattn::cases::fuzz::{Drawn, OPERATIONS, requests};
use ferroattn::cases::{
    Case, DeviceDecode, DeviceEntries, DeviceUnified, EntryTensors, UnifiedTensors,
};
use ferroattn::plan::DeviceInfo;
use ferroattn::runtime::Launcher;
use gpu_kernels::entry::ENTRIES;

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

/// What happened, to which request, and how to see it again.
fn report(error: &str, drawn: &Drawn, seed: u64, at: usize) -> String {
    let case = &drawn.case;
    format!("{error}\n  {case}\n  ferroattn fuzz --seed {seed} --skip {at} --count 1")
}

#[test]
fn random_requests_are_right() {
    let (seed, drawn) = drawn();
    let failures: Vec<String> = drawn
        .enumerate()
        .filter_map(|(at, drawn)| {
            let error = drawn.judge(&drawn.emulator()).err()?;
            Some(report(&error, &drawn, seed, at))
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
        match drawn.judge_broken(&drawn.emulator()) {
            Ok(None) => {}
            Ok(Some(mistake)) => *mistakes.entry(mistake).or_default() += 1,
            Err(error) => failures.push(report(&error, &drawn, seed, at)),
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
            let error = drawn.judge_corrupted(&drawn.emulator()).err()?;
            Some(report(&error, &drawn, seed, at))
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
            let corrupted = drawn.judge_corrupted(&drawn.emulator());
            found.extend(corrupted.unwrap_or_else(|error| panic!("{error}\n  {}", drawn.case)));
        }
        assert_eq!(found, expected, "{operation}");
    }
}

/// The kernels of one source, whatever dtypes and head sizes they are for: a name without those.
fn family(kernel: &str) -> String {
    let is_of_a_shape = |part: &str| {
        let dtypes = ["bf16", "f16", "e4m3", "e5m2", "i8"];
        dtypes.contains(&part) || part.starts_with('d') && part.ends_with(char::is_numeric)
    };
    let parts: Vec<&str> = kernel
        .split('_')
        .filter(|part| !is_of_a_shape(part))
        .collect();
    parts.join("_")
}

/// The plans of a request of attention: for the machine that it is drawn for, and for one that is as large as an H200, but on
/// which groups of warps do not multiply.
fn plans(drawn: &Drawn) -> Vec<String> {
    let emulator = drawn.emulator();
    let without_groups = DeviceInfo {
        compute_capability: (10, 0),
        ..DeviceInfo::H200
    };
    let devices = [emulator.device(), without_groups];
    let (seed, amount) = (drawn.seed, Amount::WHOLE);
    match &drawn.case {
        Case::Decode(case) => {
            let tensors = fill::decode(case, seed, amount);
            let mut on = DeviceDecode::new(&emulator, tensors).expect("memory");
            devices
                .map(|device| on.plan(case, &device).expect("a plan").to_string())
                .into()
        }
        Case::DecodeEntries(case) => {
            let tensors = EntryTensors::new(case, seed, amount);
            let mut on = DeviceEntries::new(&emulator, tensors).expect("memory");
            devices
                .map(|device| on.plan(case, &device).expect("a plan").to_string())
                .into()
        }
        Case::Unified(case) => {
            let tensors = UnifiedTensors::new(case, seed, amount).expect("few tokens");
            let mut on = DeviceUnified::new(&emulator, tensors).expect("memory");
            let checked = on.request(case, seed, 0).expect("views").check();
            let checked = checked.expect("a good request");
            devices
                .map(|device| checked.plan(&device).expect("a plan").to_string())
                .into()
        }
        _ => Vec::new(),
    }
}

/// Every kernel of attention is in reach, those that only an H200 has too, which few requests find.
#[test]
fn every_family_of_attention_kernels_is_drawn() {
    let is_attention = |name: &str| {
        ["decode_", "prefill_", "merge_"]
            .iter()
            .any(|of| name.starts_with(of))
    };
    let names = ENTRIES.iter().map(|entry| entry.name);
    let mut missing: BTreeSet<String> = names
        .filter(|name| is_attention(name))
        .map(family)
        .collect();
    for wanted in [
        "prefill_gqa_sm90a",
        "decode_mla_h64",
        "decode_mla_h64_sm90a",
        "decode_mla_entry_fp8_ds_h64",
        "decode_mla_entry_fp8_ds_h64_sm90a",
    ] {
        assert!(missing.contains(wanted), "{wanted} of {missing:?}");
    }
    for drawn in requests(&OPERATIONS, 11).take(4 * COUNT) {
        if missing.is_empty() {
            break;
        }
        for word in plans(&drawn).iter().flat_map(|plan| plan.split(' ')) {
            missing.remove(&family(word));
        }
    }
    assert!(missing.is_empty(), "of no plan: {missing:?}");
}
