//! `calibrate`: FP8 scales from a dump of what a model computed.

use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail, ensure};
use clap::Args;
use serde::Serialize;

use super::run_file::File;
use crate::reference::HostTensor;
use crate::tensor::Dtype;

#[derive(Debug, Args)]
pub(super) struct CalibrateArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Tensors to read
    #[arg(value_name = "DUMP.safetensors")]
    input: PathBuf,
}

/// The tensors, what their dimensions are, and what requests call their scales.
static TENSORS: [(&str, &str, &str); 3] = [
    (
        "query",
        "[num_tokens, num_query_heads, head_size]",
        "q_scale",
    ),
    ("key", "[num_tokens, num_kv_heads, head_size]", "k_scale"),
    (
        "value",
        "[num_tokens, num_kv_heads, head_size_v]",
        "v_scale",
    ),
];

/// Largest values of the formats.
const E4M3_MAX: f64 = 448.0;
const E5M2_MAX: f64 = 57_344.0;

/// The largest magnitude, and the scales by which it is stored as the largest value.
#[derive(Clone, Copy, Debug, Serialize)]
struct Scales {
    amax: f32,
    fp8_e4m3: f32,
    fp8_e5m2: f32,
}

/// Those of a tensor.
#[derive(Debug, Serialize)]
struct Calibration {
    tensor: &'static str,
    /// What requests call it.
    scale: &'static str,
    #[serde(flatten)]
    whole: Scales,
    /// One for each KV head.
    per_kv_head: Vec<Scales>,
}

/// What `calibrate --help` says after the options.
pub(super) fn help() -> String {
    let mut text =
        "Tensors that are read, f32, f16 or bf16; as many of them as the file has, others are left alone:\n"
            .to_owned();
    for (tensor, form, scale) in TENSORS {
        text += &format!("  {tensor:<6} {form:<42} gives {scale}\n");
    }
    text += &format!(
        "\nA scale is the largest magnitude divided by the format's largest value: {E4M3_MAX} (fp8_e4m3) or {E5M2_MAX} \
         (fp8_e5m2).\nThere is one for the whole tensor and one for each KV head, with which its query heads are taken \
         together.\nWhat is all zero gets the scale 1.\n"
    );
    text
}

pub(super) fn run(args: &CalibrateArgs) -> anyhow::Result<ExitCode> {
    let bytes =
        fs::read(&args.input).with_context(|| format!("reading {}", args.input.display()))?;
    let calibrations = calibrate(&bytes).with_context(|| format!("in {}", args.input.display()))?;
    let mut stdout = io::stdout().lock();
    if args.json {
        serde_json::to_writer_pretty(&mut stdout, &calibrations).map_err(io::Error::from)?;
        writeln!(stdout)?;
        return Ok(ExitCode::SUCCESS);
    }
    writeln!(
        stdout,
        "{:<8} {:>7} {:>14} {:>14} {:>14}",
        "scale", "kv head", "amax", "fp8_e4m3", "fp8_e5m2"
    )?;
    for calibration in &calibrations {
        let heads = calibration.per_kv_head.iter().enumerate();
        let heads = heads.map(|(head, scales)| (head.to_string(), scales));
        for (head, scales) in [("all".to_owned(), &calibration.whole)]
            .into_iter()
            .chain(heads)
        {
            writeln!(
                stdout,
                "{:<8} {head:>7} {:>14.6e} {:>14.6e} {:>14.6e}",
                calibration.scale, scales.amax, scales.fp8_e4m3, scales.fp8_e5m2
            )?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn calibrate(bytes: &[u8]) -> anyhow::Result<Vec<Calibration>> {
    let file = File::read(bytes)?;
    let mut tensors = Vec::new();
    for (name, form, scale) in TENSORS {
        if let Some(tensor) = file.optional_tensor(name)? {
            let amax = amax_of_heads(name, form, &tensor)?;
            tensors.push((name, scale, amax));
        }
    }
    ensure!(
        !tensors.is_empty(),
        "there is none of the tensors `query`, `key` and `value`"
    );
    let kv_heads = |name: &str| {
        let found = tensors.iter().find(|(other, ..)| *other == name);
        found.map(|(.., amax)| amax.len())
    };
    let (keys, values) = (kv_heads("key"), kv_heads("value"));
    if let (Some(keys), Some(values)) = (keys, values) {
        ensure!(
            keys == values,
            "`key` has {keys} heads and `value` has {values}"
        );
    }
    let num_kv_heads = keys.or(values);
    tensors
        .into_iter()
        .map(|(tensor, scale, amax)| {
            let groups = num_kv_heads.unwrap_or(amax.len());
            ensure!(
                amax.len().is_multiple_of(groups),
                "`{tensor}` has {} heads, which is no multiple of {groups} KV heads",
                amax.len()
            );
            let largest = |amax: &[f32]| Scales::of(amax.iter().copied().fold(0.0, f32::max));
            Ok(Calibration {
                tensor,
                scale,
                whole: largest(&amax),
                per_kv_head: amax.chunks(amax.len() / groups).map(largest).collect(),
            })
        })
        .collect()
}

impl Scales {
    #[allow(
        clippy::cast_possible_truncation,
        reason = "scales are f32, rounded once"
    )]
    fn of(amax: f32) -> Self {
        let scale = |largest: f64| match (f64::from(amax) / largest) as f32 {
            0.0 if amax == 0.0 => 1.0,
            // Of a number too small to be divided.
            scale => scale.max(f32::MIN_POSITIVE),
        };
        Self {
            amax,
            fp8_e4m3: scale(E4M3_MAX),
            fp8_e5m2: scale(E5M2_MAX),
        }
    }
}

/// The largest magnitude of each head.
#[allow(
    clippy::cast_possible_truncation,
    reason = "the numbers were 32 bits wide at most"
)]
fn amax_of_heads(name: &str, form: &str, tensor: &HostTensor) -> anyhow::Result<Vec<f32>> {
    if !matches!(tensor.dtype, Dtype::F32 | Dtype::F16 | Dtype::Bf16) {
        bail!(
            "`{name}` must be f32, f16 or bf16, but its dtype is {}",
            tensor.dtype
        );
    }
    let [_, heads, head_size] = tensor.shape[..] else {
        bail!(
            "`{name}` must be {form}, but its shape is {:?}",
            tensor.shape
        );
    };
    ensure!(
        tensor.num_elements() > 0,
        "`{name}` is empty: its shape is {:?}",
        tensor.shape
    );
    let mut amax = vec![0.0f32; heads];
    for at in 0..tensor.num_elements() {
        let (row, dim) = (at / head_size, at % head_size);
        let (token, head) = (row / heads, row % heads);
        let magnitude = tensor.float_at(at).abs() as f32;
        ensure!(
            magnitude.is_finite(),
            "`{name}[{token}, {head}, {dim}]` is {}",
            tensor.float_at(at)
        );
        amax[head] = amax[head].max(magnitude);
    }
    Ok(amax)
}
