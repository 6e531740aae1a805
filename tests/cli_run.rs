//! `ferroattn run`, from outside: operations on tensors from files, and what is refused.
#![allow(missing_docs, reason = "a test crate has no readers of its docs")]
#![allow(clippy::cast_possible_truncation, reason = "small test data")]

mod common;

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use ferroattn::cases::fill::{self, Amount};
use ferroattn::cases::{Case, EntryTensors, compare_decode, compare_entries};
use ferroattn::reference::HostTensor;
use ferroattn::tensor::Dtype;
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

/// An error in words, and no panic.
fn assert_refused(output: &Output) {
    let stderr = text(&output.stderr);
    assert!(matches!(output.status.code(), Some(1 | 2)), "{output:?}");
    assert!(stderr.contains("error: "), "{stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
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
            "u8" => safetensors::Dtype::U8,
            "f32" => safetensors::Dtype::F32,
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

/// The results of an operation on a file, by name.
fn results(
    op: &str,
    tensors: &[(&str, &HostTensor)],
    metadata: &[(&str, &str)],
) -> HashMap<String, Vec<u8>> {
    let folder = tempfile::tempdir().expect("a folder");
    let metadata = metadata
        .iter()
        .map(|(key, value)| (key.to_string(), value.to_string()));
    let output = run(op, folder.path(), &file(tensors, metadata.collect()));
    assert!(output.status.success(), "{op}: {output:?}");
    let bytes = fs::read(folder.path().join("out.safetensors")).expect("an output");
    let results = SafeTensors::deserialize(&bytes).expect("a file");
    let tensors = results.tensors().into_iter();
    tensors
        .map(|(name, view)| (name, view.data().to_vec()))
        .collect()
}

/// Bytes as a tensor, each different from its neighbours.
fn bytes(name: &'static str, shape: &[usize]) -> HostTensor {
    let len: usize = shape.iter().product();
    let data = (0..len).map(|at| (at % 251) as u8).collect();
    HostTensor::contiguous(name, Dtype::U8, shape, data)
}

fn ints(name: &'static str, shape: &[usize], values: &[i32]) -> HostTensor {
    let data = values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    HostTensor::contiguous(name, Dtype::I32, shape, data)
}

fn longs(name: &'static str, shape: &[usize], values: &[i64]) -> HostTensor {
    let data = values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    HostTensor::contiguous(name, Dtype::I64, shape, data)
}

fn le_bytes(values: &[i32]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect()
}

/// Four blocks of two tokens of 16 bytes.
fn small_cache(name: &'static str) -> (HostTensor, Vec<u8>) {
    let cache = bytes(name, &[4, 2, 16]);
    let data = cache.storage.bytes.clone();
    (cache, data)
}

#[test]
fn run_gathers_rows() {
    let (cache, data) = small_cache("cache");
    let token = |slot: usize| data[16 * slot..16 * (slot + 1)].to_vec();
    let out = |tensors: &[(&str, &HostTensor)], metadata: &[(&str, &str)]| {
        let all = [&[("cache", &cache)], tensors].concat();
        results("gather", &all, metadata)["out"].clone()
    };
    let slots = ints("slots", &[3], &[5, -1, 0]);
    assert_eq!(
        out(&[("slots", &slots)], &[]),
        [token(5), vec![0; 16], token(0)].concat()
    );

    let table = ints("block_table", &[2, 2], &[3, 0, 1, -1]);
    let named = ("block_table", &table);
    let starts = ints("row_starts", &[3], &[0, 3, 4]);
    let all = [token(6), token(7), token(0), token(2)].concat();
    assert_eq!(out(&[named, ("row_starts", &starts)], &[]), all);
    let indices = ints("topk_indices", &[2, 2], &[2, 0, -1, 1]);
    let chosen = [token(0), token(6), vec![0; 16], token(3)].concat();
    assert_eq!(out(&[named, ("topk_indices", &indices)], &[]), chosen);
    let lens = ints("seq_lens", &[2], &[3, 1]);
    let padded = [token(6), token(7), token(0), token(2), vec![0; 32]].concat();
    assert_eq!(
        out(&[named, ("seq_lens", &lens)], &[("rows_per_seq", "3")]),
        padded
    );
}

#[test]
fn run_copies_and_compacts_blocks() {
    let (target, mut data) = small_cache("target");
    let pairs = longs("pairs", &[2, 2], &[0, 3, -1, 1]);
    let copied = results(
        "copy_blocks",
        &[("target", &target), ("pairs", &pairs)],
        &[],
    );
    data.copy_within(..32, 96);
    assert_eq!(copied["target"], data);

    let (cache, data) = small_cache("cache");
    let slots = ints("slots", &[3], &[6, -1, 1]);
    let named = [("cache", &cache), ("slots", &slots)];
    let compacted = results("compact", &named, &[("num_compact_blocks", "2")]);
    assert_eq!(compacted["compact"], [&data[..32], &data[96..]].concat());
    assert_eq!(compacted["renamed"], le_bytes(&[2, -1, 1]));
    assert_eq!(compacted["num_wanted"], le_bytes(&[2]));
}

#[test]
fn run_writes_tokens_of_an_mla_cache() {
    let part = |name, values: usize, first: u8| {
        let data = (0..2 * values).map(|at| first + at as u8).collect();
        HostTensor::contiguous(name, Dtype::Bf16, &[1, values], data)
    };
    let (kv_c, k_pe) = (part("kv_c", 12, 1), part("k_pe", 4, 101));
    let cache = HostTensor::contiguous("kv_cache", Dtype::Bf16, &[2, 2, 16], vec![0xff; 128]);
    let slots = longs("slot_mapping", &[1], &[3]);
    let named = [
        ("kv_c", &kv_c),
        ("k_pe", &k_pe),
        ("kv_cache", &cache),
        ("slot_mapping", &slots),
    ];
    let written = results("concat_and_cache_mla", &named, &[]);
    let entry = [&kv_c.storage.bytes[..], &k_pe.storage.bytes[..]].concat();
    assert_eq!(written["kv_cache"], [vec![0xff; 96], entry].concat());
}

/// One query token a sequence: the same tensors for decode and for unified attention.
#[test]
fn run_takes_decodes_as_unified_attention() {
    let line = "decode bf16 heads=4/2 d=64 page=16 layout=nhd lens=20,1,33";
    let Case::Decode(case) = common::case(line) else {
        unreachable!("a decode")
    };
    let tensors = fill::decode(&case, 5, Amount::WHOLE);
    let starts = ints("query_start_loc", &[4], &[0, 1, 2, 3]);
    let named = [
        ("query", &tensors.query),
        ("key_cache", &tensors.key_cache),
        ("value_cache", &tensors.value_cache),
        ("block_table", &tensors.block_table),
        ("seq_lens", &tensors.seq_lens),
        ("query_start_loc", &starts),
    ];
    let got = results("unified", &named, &[("softmax_scale", "0.125")]);
    let out = tensors.out.with_bytes(got["out"].clone());
    compare_decode(&case, &tensors, &out, None, &[0, 1, 2]).expect("as the reference says");
}

#[test]
fn run_decodes_over_entries() {
    let line = "decode_mla_entry bf16 form=656 heads=3 page=16 lens=20,5";
    let Case::DecodeEntries(case) = common::case(line) else {
        unreachable!("a decode over entries")
    };
    let tensors = EntryTensors::new(&case, 5, Amount::WHOLE);
    let mut query = tensors.query.clone();
    query.shape.insert(1, 1);
    let named = [
        ("query", &query),
        ("cache", &tensors.cache),
        ("block_table", &tensors.block_table),
        ("seq_lens", &tensors.seq_lens),
    ];
    let scale = case.scale().to_string();
    let metadata = [("softmax_scale", scale.as_str()), ("form", "fp8_ds_mla")];
    let got = results("decode_mla_entry", &named, &metadata);
    let out = tensors.out.with_bytes(got["out"].clone());
    compare_entries(&case, &tensors, &out, None, &[0, 1]).expect("as the reference says");
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
