//! The program, from outside: what it prints, what it returns, and that nothing makes it panic.
#![allow(missing_docs, reason = "a test crate has no readers of its docs")]

mod common;

use std::collections::HashMap;
use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use ferroattn::cases::fill::{self, Amount};
use ferroattn::cases::{Case, compare_decode};
use ferroattn::reference::HostTensor;
use proptest::prelude::*;
use safetensors::SafeTensors;
use safetensors::tensor::TensorView as FileView;

fn ferroattn(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ferroattn"))
        .args(args)
        .output()
        .expect("the program runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

/// Every field of a `sweep --json` line, and whether it may be null.
const SWEEP_FIELDS: [(&str, bool); 10] = [
    ("case", false),
    ("seed", false),
    ("runtime", false),
    ("passed", false),
    ("error", true),
    ("rel_frobenius", true),
    ("ulps", true),
    ("lse_abs", true),
    ("plan", true),
    ("milliseconds", false),
];

#[test]
fn sweep_prints_a_json_object_per_case() {
    let output = ferroattn(&[
        "sweep",
        "--list",
        "smoke",
        "--runtime",
        "emulator",
        "--json",
    ]);
    assert!(output.status.success(), "{output:?}");
    let lines = text(&output.stdout);
    let mut count = 0;
    for line in lines.lines() {
        let object: HashMap<String, serde_json::Value> =
            serde_json::from_str(line).expect("an object");
        assert_eq!(object.len(), SWEEP_FIELDS.len(), "{line}");
        for (field, nullable) in SWEEP_FIELDS {
            assert!(nullable || !object[field].is_null(), "{field} in {line}");
        }
        assert_eq!(object["passed"], true, "{line}");
        assert_eq!(object["runtime"], "emulator");
        object["case"]
            .as_str()
            .expect("text")
            .parse::<Case>()
            .expect("a case");
        count += 1;
    }
    assert_eq!(count, common::listed("smoke", |_| true).len());
    assert_eq!(
        text(&output.stderr).lines().last(),
        Some(format!("{count} passed, 0 failed").as_str())
    );
}

#[test]
fn sweep_fails_and_says_how_to_replay() {
    let case = "decode bf16 heads=4/2 d=80 page=16 layout=nhd lens=5";
    let output = ferroattn(&[
        "sweep",
        "--case",
        case,
        "--seed",
        "7",
        "--runtime",
        "emulator",
    ]);
    assert_eq!(output.status.code(), Some(1));
    let stdout = text(&output.stdout);
    assert!(stdout.contains("does not support head sizes"), "{stdout}");
    let replay = format!("replay: ferroattn sweep --case '{case}' --seed 7\n");
    assert!(stdout.ends_with(&replay), "{stdout}");
}

#[test]
fn wrong_arguments_are_refused() {
    for args in [
        &["sweep", "--case", "decode bf16 heads=4"][..],
        &["sweep", "--filter", "no such case", "--runtime", "emulator"],
        &["sweep", "--runtime", "abacus"],
        &["bench", "--replays", "0"],
        &["decode", "--head-size", "80", "--runtime", "emulator"],
        &["decode", "--num-seqs", "0", "--runtime", "emulator"],
        &["decode", "--steps", "99999999999", "--runtime", "emulator"],
        &["frobnicate"],
    ] {
        let output = ferroattn(args);
        assert_refused(&output);
    }
}

/// An error in words, and no panic.
fn assert_refused(output: &Output) {
    let stderr = text(&output.stderr);
    assert!(matches!(output.status.code(), Some(1 | 2)), "{output:?}");
    assert!(stderr.contains("error: "), "{stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
}

#[test]
fn info_needs_no_gpu() {
    let output = ferroattn(&["info"]);
    assert!(output.status.success(), "{output:?}");
    assert!(text(&output.stdout).contains("reshape_and_cache_flash"));
    let output = ferroattn(&["info", "--json"]);
    let info: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(info["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(info["support"][0]["operation"], "decode");
}

#[test]
fn decode_demonstrates_on_the_emulator() {
    let output = ferroattn(&["decode", "--runtime", "emulator", "--steps", "2"]);
    assert!(output.status.success(), "{output:?}");
    let stdout = text(&output.stdout);
    assert!(stdout.starts_with("on emulator\n"), "{stdout}");
    assert!(
        stdout.contains("tokens/s") && stdout.contains("agrees with the reference"),
        "{stdout}"
    );
}

#[test]
fn bench_lists_its_cases_without_a_gpu() {
    let output = ferroattn(&[
        "bench",
        "--list",
        "--filter",
        "kv=bf16 pg=16 b=64 ctx=8192 ragged",
    ]);
    assert!(output.status.success(), "{output:?}");
    let stdout = text(&output.stdout);
    assert_eq!(stdout.lines().count(), 1, "{stdout}");
    let (case, name) = stdout
        .trim_end()
        .split_once("  # ")
        .expect("a case and its name");
    assert_eq!(case.parse::<Case>().expect("a case").peer_name(), name);
}

#[test]
fn completions_are_printed_for_every_shell() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let output = ferroattn(&["completions", shell]);
        assert!(output.status.success(), "{output:?}");
        assert!(text(&output.stdout).contains("sweep"), "{shell}");
    }
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    for args in [
        &["sweep", "--list", "edges", "--runtime", "emulator"][..],
        &["completions", "bash"],
        &["info", "--json"],
    ] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_ferroattn"))
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program runs");
        drop(child.stdout.take());
        let mut stderr = String::new();
        let mut pipe = child.stderr.take().expect("piped");
        pipe.read_to_string(&mut stderr).expect("UTF-8");
        let status = child.wait().expect("it ends");
        assert!(status.success(), "{args:?}: {stderr}");
        assert!(!stderr.contains("panicked"), "{stderr}");
    }
}

/// The tensors of a small decode case as a file.
fn decode_file(line: &str, metadata: &[(&str, &str)]) -> (Vec<u8>, fill::DecodeTensors) {
    let Case::Decode(case) = common::case(line) else {
        panic!("{line} is no decode")
    };
    let tensors = fill::decode(&case, 5, Amount::WHOLE);
    let named = [
        ("query", &tensors.query),
        ("key_cache", &tensors.key_cache),
        ("value_cache", &tensors.value_cache),
        ("block_table", &tensors.block_table),
        ("seq_lens", &tensors.seq_lens),
    ];
    let metadata = metadata
        .iter()
        .map(|(key, value)| (key.to_string(), value.to_string()));
    (file(&named, metadata.collect()), tensors)
}

fn file(tensors: &[(&str, &HostTensor)], metadata: HashMap<String, String>) -> Vec<u8> {
    let views = tensors.iter().map(|(name, tensor)| {
        let dtype = match tensor.dtype.to_string().as_str() {
            "bf16" => safetensors::Dtype::BF16,
            "i32" => safetensors::Dtype::I32,
            "i64" => safetensors::Dtype::I64,
            other => panic!("{other} in these tests"),
        };
        let view = FileView::new(dtype, tensor.shape.clone(), &tensor.storage.bytes);
        (*name, view.expect("contiguous"))
    });
    safetensors::serialize(views, Some(metadata)).expect("a file")
}

fn run(op: &str, folder: &Path, input: &[u8]) -> Output {
    let (from, to) = (
        folder.join("in.safetensors"),
        folder.join("out.safetensors"),
    );
    fs::write(&from, input).expect("written");
    let _ = fs::remove_file(&to);
    let paths = [from.to_str().expect("UTF-8"), to.to_str().expect("UTF-8")];
    ferroattn(&[
        "run",
        "--op",
        op,
        "--runtime",
        "emulator",
        paths[0],
        paths[1],
    ])
}

const SMALL: &str = "decode bf16 heads=4/2 d=64 page=16 layout=nhd lens=20,0,33";

#[test]
fn run_decodes_the_tensors_of_a_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let (input, tensors) =
        decode_file(SMALL, &[("softmax_scale", "0.125"), ("split_policy", "64")]);
    let output = run("decode", folder.path(), &input);
    assert!(output.status.success(), "{output:?}");
    let bytes = fs::read(folder.path().join("out.safetensors")).expect("an output");
    let results = SafeTensors::deserialize(&bytes).expect("a file");
    let bytes_of = |name: &str| results.tensor(name).expect(name).data().to_vec();
    let out = tensors.out.with_bytes(bytes_of("out"));
    let lse = tensors
        .lse
        .as_ref()
        .expect("an lse")
        .with_bytes(bytes_of("lse"));
    let Case::Decode(case) = common::case(SMALL) else {
        unreachable!("a decode")
    };
    compare_decode(&case, &tensors, &out, Some(&lse), &[0, 1, 2]).expect("as the reference says");
}

#[test]
fn run_writes_the_cache_of_a_file() {
    let Case::CacheWrite(case) =
        common::case("reshape_and_cache_flash bf16 heads=2 d=6 page=5 layout=nhd tokens=7 skip=3")
    else {
        unreachable!("a cache write")
    };
    let tensors = fill::cache_write(&case, 5, Amount::WHOLE);
    let named = [
        ("key", &tensors.key),
        ("value", &tensors.value),
        ("key_cache", &tensors.key_cache),
        ("value_cache", &tensors.value_cache),
        ("slot_mapping", &tensors.slot_mapping),
    ];
    let folder = tempfile::tempdir().expect("a folder");
    let output = run(
        "reshape_and_cache_flash",
        folder.path(),
        &file(&named, HashMap::new()),
    );
    assert!(output.status.success(), "{output:?}");
    let bytes = fs::read(folder.path().join("out.safetensors")).expect("an output");
    let results = SafeTensors::deserialize(&bytes).expect("a file");
    for (name, new, cache) in [
        ("key_cache", &tensors.key, &tensors.key_cache),
        ("value_cache", &tensors.value, &tensors.value_cache),
    ] {
        let mut expected = cache.storage.bytes.clone();
        let slots = &tensors.slot_mapping;
        ferroattn::reference::reshape_and_cache_flash(new, slots, cache, &mut expected);
        assert!(
            results.tensor(name).expect(name).data() == expected,
            "{name}"
        );
    }
}

#[test]
fn run_says_what_is_wrong_with_a_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let good = [("softmax_scale", "0.125")];
    let (input, tensors) = decode_file(SMALL, &good);
    let refusal = |input: &[u8]| {
        let output = run("decode", folder.path(), input);
        assert_refused(&output);
        assert!(
            !folder.path().join("out.safetensors").exists(),
            "nothing is written"
        );
        text(&output.stderr)
    };
    let (no_scale, _) = decode_file(SMALL, &[]);
    assert!(refusal(&no_scale).contains("the metadata must have softmax_scale"));
    let (bad_scale, _) = decode_file(SMALL, &[("softmax_scale", "wide")]);
    assert!(refusal(&bad_scale).contains("softmax_scale is `wide`"));
    let (long, _) = decode_file(SMALL, &[good[0], ("max_seq_len", "1000")]);
    assert!(refusal(&long).contains("for max_seq_len 1000"));
    let missing = file(&[("query", &tensors.query)], HashMap::new());
    assert!(refusal(&missing).contains("there is no tensor `key_cache`, only [\"query\"]"));
    assert!(refusal(b"").contains("error: "));
    assert!(refusal(&input[..input.len() - 1]).contains("error: "));

    let mut bad = tensors.clone();
    let ids = 1_000_000i32
        .to_le_bytes()
        .repeat(tensors.block_table.num_elements());
    bad.block_table = tensors.block_table.with_bytes(ids);
    let named = [
        ("query", &bad.query),
        ("key_cache", &bad.key_cache),
        ("value_cache", &bad.value_cache),
        ("block_table", &bad.block_table),
        ("seq_lens", &bad.seq_lens),
    ];
    let metadata = HashMap::from([("softmax_scale".into(), "1".into())]);
    assert!(refusal(&file(&named, metadata)).contains("is 1000000, outside 0.."));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    /// Bytes of the header flipped, or the file cut short: refused or run, never a panic.
    #[test]
    fn damaged_files_do_no_harm(
        flips in prop::collection::vec((0usize..400, any::<u8>()), 0..4),
        cut in prop::option::of(0usize..20_000),
    ) {
        let folder = tempfile::tempdir().expect("a folder");
        let (mut input, _) = decode_file(SMALL, &[("softmax_scale", "0.125"), ("max_seq_len", "33")]);
        for (at, byte) in flips {
            let len = input.len();
            input[at % len] = byte;
        }
        input.truncate(cut.unwrap_or(usize::MAX));
        let output = run("decode", folder.path(), &input);
        let stderr = String::from_utf8_lossy(&output.stderr);
        prop_assert!(matches!(output.status.code(), Some(0 | 1)), "{}", stderr);
        prop_assert!(!stderr.contains("panicked"), "{}", stderr);
    }
}
