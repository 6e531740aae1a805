//! `ferroattn run`, from outside: what is wrong is said in words. What operations make of good files is tested in
//! `cli_run_attention.rs`, `cli_run_cache.rs` and `cli_run_blocks.rs`; what names files may have, in `cli_run_names.rs`;
//! what becomes of files that no program would write, in `cli_run_mutations.rs`.
#![allow(missing_docs, reason = "a test crate has no readers of its docs")]

mod common;

use common::files::{decode_inputs, file, run};
use common::program::{assert_refused, text};
use ferroattn::cases::Case;
use ferroattn::cases::fill::{self, Amount, DecodeTensors};

/// The tensors of a small decode step as a file.
fn decode_file(metadata: &str) -> (Vec<u8>, DecodeTensors) {
    let line = "decode bf16 heads=4/2 d=64 page=16 layout=nhd lens=20,0,33";
    let Case::Decode(case) = common::case(line) else {
        panic!("{line} is no decode")
    };
    let tensors = fill::decode(&case, 5, Amount::WHOLE);
    (file(&decode_inputs(&tensors), metadata), tensors)
}

#[test]
fn run_says_what_is_wrong_with_a_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let (input, mut tensors) = decode_file("softmax_scale=0.125");
    let refusal = |input: &[u8]| {
        let output = run("decode", folder.path(), input);
        assert_refused(&output);
        assert!(
            !folder.path().join("out.safetensors").exists(),
            "nothing is written"
        );
        text(&output.stderr)
    };
    let (no_scale, _) = decode_file("");
    assert!(refusal(&no_scale).contains("the metadata must have softmax_scale"));
    let (bad_scale, _) = decode_file("softmax_scale=wide");
    assert!(refusal(&bad_scale).contains("softmax_scale is `wide`"));
    let (long, _) = decode_file("softmax_scale=0.125 max_seq_len=1000");
    assert!(refusal(&long).contains("for max_seq_len 1000"));
    let missing = file(&[("query", &tensors.query)], "");
    assert!(refusal(&missing).contains("there is no tensor `key_cache`, only [\"query\"]"));
    assert!(refusal(b"").contains("error: "));
    assert!(refusal(&input[..input.len() - 1]).contains("error: "));

    let ids = 1_000_000i32
        .to_le_bytes()
        .repeat(tensors.block_table.num_elements());
    tensors.block_table = tensors.block_table.with_bytes(ids);
    let bad = file(&decode_inputs(&tensors), "softmax_scale=1");
    assert!(refusal(&bad).contains("is 1000000, outside 0.."));
}
