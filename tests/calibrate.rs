//! `ferroattn calibrate` from outside.
#![allow(missing_docs, reason = "a test crate has no readers of its docs")]

use std::fs;
use std::process::{Command, Output};

use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

fn calibrate(tensors: &[(&str, Dtype, Vec<usize>, Vec<u8>)], flags: &[&str]) -> Output {
    let views = tensors.iter().map(|(name, dtype, shape, bytes)| {
        let view = TensorView::new(*dtype, shape.clone(), bytes).expect("a tensor");
        (*name, view)
    });
    run(&safetensors::serialize(views, None).expect("a file"), flags)
}

fn run(file: &[u8], flags: &[&str]) -> Output {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("dump.safetensors");
    fs::write(&path, file).expect("written");
    Command::new(env!("CARGO_BIN_EXE_ferroattn"))
        .arg("calibrate")
        .arg(path)
        .args(flags)
        .output()
        .expect("the program runs")
}

fn f32s(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

fn good() -> Vec<(&'static str, Dtype, Vec<usize>, Vec<u8>)> {
    // Two tokens, two KV heads of two values; four query heads.
    let key = [1.0, -7.0, 0.5, 0.25, -3.5, 2.0, 28.0, 0.0];
    let key = key.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes());
    let value = [0.0, 0.0, 1.75, -0.5, 0.0, 0.0, 1.0, 1.0];
    let value = value.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes());
    let query = [1.0, 0.5, -4.48, 2.0, 8.96, 1.0, 0.0, 3.0];
    vec![
        ("query", Dtype::F32, vec![1, 4, 2], f32s(&query)),
        ("key", Dtype::BF16, vec![2, 2, 2], key.collect()),
        ("value", Dtype::F16, vec![2, 2, 2], value.collect()),
        ("positions", Dtype::I64, vec![1], vec![0; 8]),
    ]
}

#[test]
fn scales_map_the_largest_magnitude_to_the_largest_value() {
    let output = calibrate(&good(), &["--json"]);
    assert!(output.status.success(), "{output:?}");
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let number = |value: &serde_json::Value, field: &str| value[field].as_f64().expect("a number");
    let near = |got: f64, expected: f64| assert!((got / expected - 1.0).abs() < 1e-6, "{got}");
    let names = ["q_scale", "k_scale", "v_scale"];
    let amax = [[8.96, 4.48, 8.96], [28.0, 7.0, 28.0], [1.75, 0.0, 1.75]];
    for (at, (name, [whole, heads @ ..])) in names.into_iter().zip(amax).enumerate() {
        let tensor = &json[at];
        assert_eq!(tensor["scale"], name);
        near(number(tensor, "amax"), whole);
        near(number(tensor, "fp8_e4m3"), whole / 448.0);
        near(number(tensor, "fp8_e5m2"), whole / 57_344.0);
        for (head, amax) in heads.into_iter().enumerate() {
            let head = &tensor["per_kv_head"][head];
            let scale = if amax == 0.0 { 1.0 } else { amax / 448.0 };
            near(number(head, "fp8_e4m3"), scale);
        }
        assert_eq!(tensor["per_kv_head"].as_array().map(Vec::len), Some(2));
    }
}

#[test]
fn a_table_for_people() {
    let output = calibrate(&good(), &[]);
    assert!(output.status.success(), "{output:?}");
    let stdout = String::from_utf8(output.stdout).expect("UTF-8");
    assert_eq!(stdout.lines().count(), 10, "{stdout}");
    let line = stdout
        .lines()
        .find(|line| line.starts_with("k_scale      all"));
    assert!(
        line.is_some_and(|line| line.contains("6.250000e-2")),
        "{stdout}"
    );
}

#[test]
fn the_help_names_what_is_read() {
    let output = Command::new(env!("CARGO_BIN_EXE_ferroattn"))
        .args(["calibrate", "--help"])
        .output()
        .expect("the program runs");
    let help = String::from_utf8(output.stdout).expect("UTF-8");
    for words in [
        [
            "query",
            "[num_tokens, num_query_heads, head_size]",
            "q_scale",
        ],
        ["key", "[num_tokens, num_kv_heads, head_size]", "k_scale"],
        [
            "value",
            "[num_tokens, num_kv_heads, head_size_v]",
            "v_scale",
        ],
        ["largest value", "448 (fp8_e4m3)", "57344 (fp8_e5m2)"],
    ] {
        let has_all = |line: &&str| words.iter().all(|word| line.contains(word));
        assert!(help.lines().any(|line| has_all(&line)), "{words:?}: {help}");
    }
}

#[test]
fn bad_files_are_refused_with_a_reason() {
    let refused = |output: Output, message: &str| {
        assert!(!output.status.success(), "{output:?}");
        assert!(output.stdout.is_empty());
        let stderr = String::from_utf8(output.stderr).expect("UTF-8");
        assert!(stderr.contains(message), "{stderr}");
        assert!(!stderr.contains("panicked"), "{stderr}");
    };
    refused(run(b"not tensors", &[]), "dump.safetensors");
    refused(calibrate(&good()[3..], &[]), "none of the tensors `query`");
    let key = |dtype, shape: &[usize], bytes: Vec<u8>| vec![("key", dtype, shape.to_vec(), bytes)];
    refused(
        calibrate(&key(Dtype::F32, &[1, 1, 2], f32s(&[1.0, f32::NAN])), &[]),
        "`key[0, 0, 1]` is NaN",
    );
    refused(
        calibrate(&key(Dtype::F32, &[2], f32s(&[1.0, 2.0])), &["--json"]),
        "`key` must be [num_tokens, num_kv_heads, head_size], but its shape is [2]",
    );
    refused(
        calibrate(&key(Dtype::F32, &[0, 1, 2], Vec::new()), &[]),
        "`key` is empty",
    );
    refused(
        calibrate(&key(Dtype::I64, &[1, 1, 1], vec![0; 8]), &[]),
        "`key` must be f32, f16 or bf16",
    );
    let mut tensors = good();
    tensors[2].2 = vec![4, 1, 2];
    refused(
        calibrate(&tensors, &[]),
        "`key` has 2 heads and `value` has 1",
    );
    let mut tensors = good();
    tensors[0] = ("query", Dtype::F32, vec![1, 3, 1], f32s(&[1.0; 3]));
    refused(calibrate(&tensors, &[]), "no multiple of 2 KV heads");
}
