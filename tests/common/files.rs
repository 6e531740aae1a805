//! Tensors in files, and `ferroattn run` on them.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::process::Output;

use ferroattn::cases::fill::DecodeTensors;
use ferroattn::reference::HostTensor;
use ferroattn::tensor::Dtype;
use safetensors::SafeTensors;
use safetensors::tensor::TensorView as FileView;

use super::program::ferroattn;

/// A file of tensors; `metadata` is words of the form `name=value`.
pub fn file(tensors: &[(&str, &HostTensor)], metadata: &str) -> Vec<u8> {
    let views = tensors.iter().map(|(name, tensor)| {
        let dtype = match tensor.dtype {
            Dtype::F32 => safetensors::Dtype::F32,
            Dtype::F16 => safetensors::Dtype::F16,
            Dtype::Bf16 => safetensors::Dtype::BF16,
            Dtype::F8E4m3 => safetensors::Dtype::F8_E4M3,
            Dtype::F8E5m2 => safetensors::Dtype::F8_E5M2,
            Dtype::I8 => safetensors::Dtype::I8,
            Dtype::U8 => safetensors::Dtype::U8,
            Dtype::I32 => safetensors::Dtype::I32,
            Dtype::I64 => safetensors::Dtype::I64,
            other => panic!("{other} in these tests"),
        };
        let view = FileView::new(dtype, tensor.shape.clone(), &tensor.storage.bytes);
        (*name, view.expect("contiguous"))
    });
    let entries = metadata.split_whitespace().map(|entry| {
        let (name, value) = entry.split_once('=').expect("name=value");
        (name.to_owned(), value.to_owned())
    });
    safetensors::serialize(views, Some(entries.collect())).expect("a file")
}

/// Runs an operation on the emulator: from a file in `folder` to `out.safetensors` there.
pub fn run(op: &str, folder: &Path, input: &[u8]) -> Output {
    let [from, to] = ["in.safetensors", "out.safetensors"].map(|name| folder.join(name));
    fs::write(&from, input).expect("written");
    let _ = fs::remove_file(&to);
    let [from, to] = [&from, &to].map(|path| path.to_str().expect("UTF-8"));
    ferroattn(&["run", "--op", op, "--runtime", "emulator", from, to])
}

/// What an operation makes of tensors, by name; `metadata` as for [`file`].
#[track_caller]
pub fn results(
    op: &str,
    tensors: &[(&str, &HostTensor)],
    metadata: &str,
) -> HashMap<String, Vec<u8>> {
    let folder = tempfile::tempdir().expect("a folder");
    let output = run(op, folder.path(), &file(tensors, metadata));
    assert!(output.status.success(), "{op} {metadata}: {output:?}");
    let bytes = fs::read(folder.path().join("out.safetensors")).expect("an output");
    let results = SafeTensors::deserialize(&bytes).expect("a file");
    let tensors = results.tensors().into_iter();
    tensors
        .map(|(name, view)| (name, view.data().to_vec()))
        .collect()
}

/// What a decode step reads, by the names in files.
pub fn decode_inputs(tensors: &DecodeTensors) -> Vec<(&'static str, &HostTensor)> {
    let mut inputs = vec![
        ("query", &tensors.query),
        ("key_cache", &tensors.key_cache),
        ("value_cache", &tensors.value_cache),
        ("block_table", &tensors.block_table),
        ("seq_lens", &tensors.seq_lens),
    ];
    if let Some(scales) = &tensors.scales {
        inputs.extend([("k_scale", &scales.k_scale), ("v_scale", &scales.v_scale)]);
        inputs.extend(scales.q_scale.iter().map(|scale| ("q_scale", scale)));
    }
    let scores = &tensors.scores;
    inputs.extend(
        scores
            .alibi_slopes
            .iter()
            .map(|slopes| ("alibi_slopes", slopes)),
    );
    inputs.extend(scores.sinks.iter().map(|sinks| ("sinks", sinks)));
    inputs
}
