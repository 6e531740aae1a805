//! `ferroattn run` and names: those of its help are those that it reads, and it reads every name that a file has or says
//! that it does not.
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

use std::collections::{BTreeMap, BTreeSet};

use common::files::run;
use common::program::{assert_refused, ferroattn, text};
use ferroattn::emulator::Emulator;
use ferroattn::tensor::Dtype::{Bf16, F8E4m3};
use run_input::*;
use tensors::ints;

/// What is said of an input that is refused.
#[track_caller]
fn refusal(input: &Input) -> String {
    let results = input.run(&Emulator::new());
    results.expect_err("it had to be refused")
}

#[track_caller]
fn accepted(input: &Input) -> Results {
    let results = input.run(&Emulator::new());
    results.unwrap_or_else(|error| panic!("{}: {error}", input.op))
}

/// Words of a text that could be names.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|word| !word.is_empty())
}

/// What the help says of operations: each one's lines, by what stands before the colon.
fn help() -> BTreeMap<String, Vec<(String, String)>> {
    let output = ferroattn(&["run", "--help"]);
    assert!(output.status.success(), "{output:?}");
    let help = text(&output.stdout).replace("\n    ", " ");
    let mut operations: BTreeMap<_, Vec<_>> = BTreeMap::new();
    let mut op = String::new();
    let (_, lists) = help.split_once("\n\ndecode: ").expect("operations");
    for line in format!("decode: {lists}").lines() {
        let Some((head, rest)) = line.split_once(": ") else {
            op = line.trim_end_matches(':').to_owned();
            continue;
        };
        match head.strip_prefix("  ") {
            None => op = head.to_owned(),
            Some(head) => {
                let lines = operations.entry(op.clone()).or_default();
                lines.push((head.to_owned(), rest.to_owned()));
            }
        }
    }
    operations
}

#[test]
fn the_help_names_what_is_read() {
    let mut used: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for input in inputs() {
        accepted(&input);
        let tensors = input.tensors.iter().map(|tensor| tensor.storage.name);
        let names = tensors.chain(input.metadata.iter().map(|(name, _)| *name));
        let used = used.entry(input.op).or_default();
        used.extend(names.map(str::to_owned));
    }
    let mut help = help();
    let entries: Vec<_> = help.remove("metadata").expect("what entries may be");
    assert_eq!(help.len(), used.len());
    for (op, lines) in help {
        let named = |heads: &[&str]| -> BTreeSet<String> {
            let lines = lines.iter().filter(|(head, _)| heads.contains(&&**head));
            lines
                .flat_map(|(_, names)| words(names).map(str::to_owned))
                .collect()
        };
        assert_eq!(named(&["tensors", "metadata"]), used[&*op], "{op}");
        assert!(!named(&["writes"]).is_empty(), "{op}");
        for (head, names) in lines.iter().filter(|(head, _)| head.starts_with("for ")) {
            for name in words(names) {
                assert!(used[&*op].contains(name), "{op}, {head}: {name}");
            }
        }
        for name in named(&["metadata"]) {
            assert!(entries.iter().any(|(entry, _)| *entry == name), "{name}");
        }
    }
}

#[test]
fn run_names_its_operations() {
    let mut names: Vec<_> = inputs().iter().map(|input| input.op).collect();
    names.dedup();
    // Whatever the inputs are, none of these is lost.
    for name in [
        "decode",
        "unified",
        "decode_mla",
        "decode_mla_entry",
        "reshape_and_cache_flash",
        "rope_and_cache",
        "concat_and_cache_mla",
        "concat_and_cache_mla_grouped",
        "gather",
        "copy_blocks",
        "compact",
    ] {
        assert!(names.contains(&name), "{name}");
    }
    let folder = tempfile::tempdir().expect("a folder");
    let output = run("attention", folder.path(), b"");
    assert_refused(&output);
    let names = format!("[possible values: {}]\n", names.join(", "));
    let stderr = text(&output.stderr);
    assert!(stderr.contains(&names), "{stderr}");
}

#[test]
fn what_is_needed_is_asked_for() {
    for (input, name) in [
        (decode(Bf16), "softmax_scale"),
        (decode(Bf16), "seq_lens"),
        (decode(F8E4m3), "v_scale"),
        (unified(&[5], &[2]), "query_start_loc"),
        (decode_mla(Bf16), "kv_lora_rank"),
        (cache_write(Bf16), "slot_mapping"),
        (rope(cache_write(Bf16)), "cos_sin"),
    ] {
        let refusal = refusal(&input.without(name));
        assert!(refusal.contains(name), "{name}: {refusal}");
    }
}

#[test]
fn unknown_names_are_refused_with_the_nearest_known_one() {
    for (name, nearest) in [
        ("window_size", "sliding_window"),
        ("slidng_window", "sliding_window"),
        ("Sliding_Window", "sliding_window"),
        ("soft_cap", "softcap"),
        ("sm_scale", "softmax_scale"),
        ("max_sequence_len", "max_seq_len"),
    ] {
        let refusal = refusal(&decode(Bf16).entry(name, 1));
        let expected =
            format!("decode takes no metadata `{name}`; the nearest that it takes is `{nearest}`");
        assert_eq!(refusal, expected);
    }
    for (name, nearest) in [
        ("sink", "sinks"),
        ("block_tables", "block_table"),
        ("kscale", "k_scale"),
        ("alibi", "alibi_slopes"),
    ] {
        let refusal = refusal(&decode(Bf16).with(ones(name, 1)));
        let expected =
            format!("decode takes no tensor `{name}`; the nearest that it takes is `{nearest}`");
        assert_eq!(refusal, expected);
    }
}

#[test]
fn a_misspelt_name_that_is_needed_is_refused_as_unknown() {
    let input = decode(Bf16).without("seq_lens");
    let refusal = refusal(&input.with(ints("seqlens", &[1], &[8])));
    assert!(
        refusal.ends_with("`seqlens`; the nearest that it takes is `seq_lens`"),
        "{refusal}"
    );
}

#[test]
fn names_that_other_operations_take_are_refused() {
    let causal = refusal(&decode(Bf16).entry("causal", "true"));
    assert!(
        causal.starts_with("decode takes no metadata `causal` (unified has it); "),
        "{causal}"
    );
    let length = refusal(&decode_mla(Bf16).with(ones("topk_length", 1)));
    assert!(
        length.starts_with("decode_mla takes no tensor `topk_length` (decode_mla_entry has it); "),
        "{length}"
    );
    let copy = inputs().into_iter().find(|input| input.op == "copy_blocks");
    let size = refusal(&copy.expect("a copy").entry("block_size", 8));
    assert!(
        size.starts_with("copy_blocks takes no metadata, but the file's has `block_size`"),
        "{size}"
    );
}

#[test]
fn tensors_are_no_metadata() {
    assert_eq!(
        refusal(&decode(Bf16).with(ones("softcap", 1))),
        "decode takes `softcap` from the metadata, not as a tensor"
    );
    assert_eq!(
        refusal(&decode(Bf16).entry("sinks", 1)),
        "decode takes `sinks` as a tensor, not from the metadata"
    );
}

#[test]
fn names_without_effect_beside_others_are_refused() {
    let inputs = inputs();
    let find = |op: &str, name: &str| -> Input {
        let has = |input: &&Input| {
            let mut tensors = input.tensors.iter();
            input.op == op && tensors.any(|tensor| tensor.storage.name == name)
        };
        inputs.iter().find(has).expect("such an input").clone()
    };
    let table = ints("block_table", &[1, 1], &[0]);
    for (input, name) in [
        (find("gather", "slots").with(table.clone()), "block_table"),
        (
            find("gather", "slots").entry("out_dtype", "bf16"),
            "out_dtype",
        ),
        (
            find("gather", "row_starts").entry("rows_per_seq", 1),
            "rows_per_seq",
        ),
        (find("compact", "slots").with(table), "block_table"),
        (
            find("copy_blocks", "targets")
                .with(renamed(&find("copy_blocks", "target").tensors[1], "target")),
            "target",
        ),
        (
            find("decode_mla_entry", "seq_lens").with(ints("topk_length", &[1], &[1])),
            "topk_length",
        ),
        (
            find("concat_and_cache_mla", "scale").entry("scale_rule", "exact"),
            "scale_rule",
        ),
        (decode_mla(Bf16).with(ones("q_scale", 1)), "q_scale"),
        (cache_write(Bf16).with(ones("v_scale", 1)), "v_scale"),
        (rope(cache_write(Bf16)).with(ones("q_scale", 1)), "q_scale"),
    ] {
        let op = input.op;
        let expected =
            format!("{op} takes `{name}`, but not together with what else is in this file");
        assert_eq!(refusal(&input), expected);
    }
}

#[test]
fn what_writers_of_files_add_is_no_matter() {
    assert_eq!(accepted(&decode(Bf16).entry("format", "pt"))["out"][0], 3.5);
}

#[test]
fn long_and_odd_names_are_shown_in_one_short_line() {
    let name: &'static str = "x\u{1b}\n".repeat(100_000).leak();
    let refusal = refusal(&decode(Bf16).with(ones(name, 1)));
    assert!(
        refusal.len() < 1000 && !refusal.contains(['\n', '\u{1b}']),
        "{refusal:?}"
    );
}

#[test]
fn truths_as_people_write_them() {
    // Of eight keys, the first query token sees seven.
    let input = || unified(&[8], &[2]);
    for (value, first) in [
        ("true", 3.0),
        ("True", 3.0),
        ("1", 3.0),
        ("false", 3.5),
        ("False", 3.5),
        ("0", 3.5),
    ] {
        let out = &accepted(&input().entry("causal", value))["out"];
        assert_eq!((out[0], out[64]), (first, 3.5), "{value}");
    }
    for value in ["yes", "2", "None"] {
        let expected = format!("the metadata's causal is `{value}`; it may be true or false");
        assert_eq!(refusal(&input().entry("causal", value)), expected);
    }
}

#[test]
fn other_entries_are_read_whole() {
    for (name, value, may_be) in [
        ("sliding_window", "-1", "a whole number below 2^32"),
        ("sliding_window", "1.5", "a whole number below 2^32"),
        ("sliding_window", "4294967296", "a whole number below 2^32"),
        ("softcap", "big", "a number"),
        (
            "split_policy",
            "-1",
            "auto, invariant, scheduled or tokens per split",
        ),
        ("out_dtype", "bfloat16", "bf16, f16, f32 or fp8_e4m3"),
    ] {
        let expected = format!("the metadata's {name} is `{value}`; it may be {may_be}");
        assert_eq!(refusal(&decode(Bf16).entry(name, value)), expected);
    }
}
