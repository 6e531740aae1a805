//! `run`: one operation on tensors from a file.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;

use anyhow::{Context, bail, ensure};
use clap::{Args, ValueEnum};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView as FileView;

use super::machines::{self, Choice};
use crate::cases::{Uploads, fill::POISON};
use crate::ops::{
    CHECK_BYTES, CacheScales, CacheWriteRequest, CheckMode, DecodeOptions, DecodeRequest, KvScales,
    check_result,
};
use crate::plan::SplitPolicy;
use crate::reference::HostTensor;
use crate::runtime::{Buffer, Route, Runtime};
use crate::tensor::Dtype;

/// Tensors, `[shape]`, and the entries of the file's metadata:
///
/// decode reads query [num_seqs, num_query_heads, head_size], key_cache [num_blocks, block_size,
/// num_kv_heads, head_size], value_cache [..., head_size_v] (all bf16 or all f16), block_table [num_seqs,
/// max_num_blocks_per_seq] and seq_lens [num_seqs] (i32); metadata softmax_scale, and if wanted max_seq_len
/// and split_policy (auto, invariant, or tokens per split). A cache of bytes (fp8_e4m3, fp8_e5m2, i8) also
/// needs k_scale and v_scale, an fp8_e4m3 query q_scale (f32) and the metadata's out_dtype (bf16 or f16). It
/// writes out [num_seqs, num_query_heads,
/// head_size_v] and lse [num_seqs, num_query_heads] (f32).
///
/// reshape_and_cache_flash reads key [num_tokens, num_kv_heads, head_size], value, key_cache, value_cache
/// (all bf16 or all f16) and slot_mapping [num_tokens] (i64). It writes key_cache and value_cache.
///
/// Indices are checked before they are used.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(super) struct RunArgs {
    /// The operation
    #[arg(long, value_enum)]
    op: Operation,
    /// Which machine; `auto` is the GPU if there is one, else the emulator
    #[arg(long, value_enum, default_value_t = Choice::Auto)]
    runtime: Choice,
    /// Whose PTX the GPU runs [env: FERROATTN_PTX] [default: rust-cuda's, if this build has it]
    #[arg(long, value_enum)]
    ptx: Option<Route>,
    /// Tensors to read
    #[arg(value_name = "IN.safetensors")]
    input: PathBuf,
    /// Where to write the results
    #[arg(value_name = "OUT.safetensors")]
    output: PathBuf,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Operation {
    /// Decode attention
    Decode,
    /// Cache write
    #[value(name = "reshape_and_cache_flash")]
    ReshapeAndCacheFlash,
}

/// Our element types and the files'.
const DTYPES: [(Dtype, safetensors::Dtype); 11] = [
    (Dtype::F32, safetensors::Dtype::F32),
    (Dtype::F16, safetensors::Dtype::F16),
    (Dtype::Bf16, safetensors::Dtype::BF16),
    (Dtype::F8E4m3, safetensors::Dtype::F8_E4M3),
    (Dtype::F8E5m2, safetensors::Dtype::F8_E5M2),
    (Dtype::F8E4m3Fnuz, safetensors::Dtype::F8_E4M3FNUZ),
    (Dtype::F8E5m2Fnuz, safetensors::Dtype::F8_E5M2FNUZ),
    (Dtype::I8, safetensors::Dtype::I8),
    (Dtype::U8, safetensors::Dtype::U8),
    (Dtype::I32, safetensors::Dtype::I32),
    (Dtype::I64, safetensors::Dtype::I64),
];

/// Most bytes of an output: far more than machines have.
const MAX_OUT_BYTES: usize = 1 << 36;

pub(super) fn run(args: &RunArgs) -> anyhow::Result<ExitCode> {
    let bytes =
        fs::read(&args.input).with_context(|| format!("reading {}", args.input.display()))?;
    let file = File::read(&bytes).with_context(|| format!("in {}", args.input.display()))?;
    let machine = machines::open_one(args.runtime, args.ptx)?;
    let results = match args.op {
        Operation::Decode => decode(&file, machine.as_ref())?,
        Operation::ReshapeAndCacheFlash => cache_write(&file, machine.as_ref())?,
    };
    write(&results, &args.output).with_context(|| format!("writing {}", args.output.display()))?;
    Ok(ExitCode::SUCCESS)
}

fn decode(file: &File<'_>, machine: &dyn Runtime) -> anyhow::Result<Vec<HostTensor>> {
    let query = file.tensor("query")?;
    let key_cache = file.tensor("key_cache")?;
    let value_cache = file.tensor("value_cache")?;
    let block_table = file.tensor("block_table")?;
    let seq_lens = file.tensor("seq_lens")?;
    let softmax_scale: f32 = file
        .scalar("softmax_scale")?
        .context("the metadata must have softmax_scale")?;
    let mut options = DecodeOptions::default()
        .check(CheckMode::Device)
        .split_policy(
            match file.metadata.get("split_policy").map(String::as_str) {
                None | Some("auto") => SplitPolicy::Auto,
                Some("invariant") => SplitPolicy::BatchInvariant,
                Some(_) => SplitPolicy::Fixed(file.scalar("split_policy")?.unwrap_or_default()),
            },
        );
    if let Some(bound) = file.scalar("max_seq_len")? {
        options = options.max_seq_len(bound);
    }

    // The request checks shapes against each other; here they only have to have as many dimensions as the
    // outputs' shapes are made from.
    let [num_seqs, num_query_heads, _] = query.shape[..] else {
        bail!("`query` must have 3 dimensions, not {:?}", query.shape);
    };
    let [_, _, _, head_size_v] = value_cache.shape[..] else {
        bail!(
            "`value_cache` must have 4 dimensions, not {:?}",
            value_cache.shape
        );
    };
    let out_dtype = match file.metadata.get("out_dtype").map(String::as_str) {
        None if query.dtype.size() == 1 => bail!("for this query the metadata must have out_dtype"),
        None => query.dtype,
        Some("bf16") => Dtype::Bf16,
        Some("f16") => Dtype::F16,
        Some(other) => bail!("the metadata's out_dtype is `{other}`, neither bf16 nor f16"),
    };
    let [q_scale, k_scale, v_scale] = [
        file.optional_tensor("q_scale")?,
        file.optional_tensor("k_scale")?,
        file.optional_tensor("v_scale")?,
    ];
    let out = poisoned("out", out_dtype, &[num_seqs, num_query_heads, head_size_v])?;
    let lse = poisoned("lse", Dtype::F32, &[num_seqs, num_query_heads])?;
    let tensors = [
        &query,
        &key_cache,
        &value_cache,
        &block_table,
        &seq_lens,
        &out,
        &lse,
    ];
    let scales = [&q_scale, &k_scale, &v_scale].into_iter().flatten();
    let uploads = Uploads::new(machine, tensors.into_iter().chain(scales))?;
    let view = |tensor: &HostTensor| uploads.view(tensor);
    let scales = match (&k_scale, &v_scale) {
        (Some(k_scale), Some(v_scale)) => Some(KvScales {
            q_scale: q_scale.as_ref().map(view).transpose()?,
            k_scale: view(k_scale)?,
            v_scale: view(v_scale)?,
        }),
        (None, None) if q_scale.is_none() => None,
        _ => bail!("scales come together: k_scale, v_scale, and q_scale for an FP8 query"),
    };
    let request = DecodeRequest {
        query: uploads.view(&query)?,
        key_cache: uploads.view(&key_cache)?,
        value_cache: uploads.view(&value_cache)?,
        block_table: uploads.view(&block_table)?,
        seq_lens: uploads.view(&seq_lens)?,
        // SAFETY: the only view of `out`.
        out: unsafe { uploads.view_mut(&out)? },
        // SAFETY: the only view of `lse`.
        lse: Some(unsafe { uploads.view_mut(&lse)? }),
        softmax_scale,
        scales,
        options,
    };
    let checked = request.check()?;
    let plan = checked.plan(&machine.device())?;
    eprintln!("{plan}");
    let mut workspace = workspace(machine, plan.workspace_bytes())?;
    checked.launch(&plan, &mut workspace.view_mut(), machine)?;
    check_result(&workspace.read()?[..CHECK_BYTES])?;
    Ok(vec![uploads.read(&out)?, uploads.read(&lse)?])
}

fn cache_write(file: &File<'_>, machine: &dyn Runtime) -> anyhow::Result<Vec<HostTensor>> {
    let key = file.tensor("key")?;
    let value = file.tensor("value")?;
    let key_cache = file.tensor("key_cache")?;
    let value_cache = file.tensor("value_cache")?;
    let slot_mapping = file.tensor("slot_mapping")?;
    let tensors = [&key, &value, &key_cache, &value_cache, &slot_mapping];
    let uploads = Uploads::new(machine, tensors)?;
    let request = CacheWriteRequest {
        key: uploads.view(&key)?,
        value: uploads.view(&value)?,
        // SAFETY: the only view of `key_cache`.
        key_cache: unsafe { uploads.view_mut(&key_cache)? },
        // SAFETY: the only view of `value_cache`.
        value_cache: unsafe { uploads.view_mut(&value_cache)? },
        slot_mapping: uploads.view(&slot_mapping)?,
        block_size: key_cache.shape.get(1).copied().unwrap_or(0),
        scales: CacheScales::None,
        check: CheckMode::Device,
    };
    let checked = request.check()?;
    let plan = checked.plan();
    eprintln!("{plan}");
    let mut workspace = workspace(machine, plan.workspace_bytes())?;
    checked.launch(&plan, &mut workspace.view_mut(), machine)?;
    check_result(&workspace.read()?[..CHECK_BYTES])?;
    Ok(vec![uploads.read(&key_cache)?, uploads.read(&value_cache)?])
}

/// A workspace whose check record says that nothing was found, even if nothing is launched.
fn workspace(machine: &dyn Runtime, bytes: usize) -> anyhow::Result<Buffer<'_>> {
    let mut workspace = Buffer::uninit(machine, "workspace", Dtype::U8, &[bytes.max(CHECK_BYTES)])?;
    let zeros = vec![0; workspace.bytes()];
    workspace.write(&zeros)?;
    Ok(workspace)
}

fn poisoned(name: &'static str, dtype: Dtype, shape: &[usize]) -> anyhow::Result<HostTensor> {
    let bytes = shape
        .iter()
        .try_fold(dtype.size(), |bytes, &extent| bytes.checked_mul(extent))
        .filter(|&bytes| bytes <= MAX_OUT_BYTES)
        .with_context(|| format!("`{name}` would have shape {shape:?}: too large"))?;
    Ok(HostTensor::contiguous(
        name,
        dtype,
        shape,
        vec![POISON; bytes],
    ))
}

/// A file of tensors.
pub(super) struct File<'a> {
    tensors: SafeTensors<'a>,
    metadata: HashMap<String, String>,
}

impl<'a> File<'a> {
    pub(super) fn read(bytes: &'a [u8]) -> anyhow::Result<Self> {
        let (_, metadata) = SafeTensors::read_metadata(bytes)?;
        Ok(Self {
            tensors: SafeTensors::deserialize(bytes)?,
            metadata: metadata.metadata().clone().unwrap_or_default(),
        })
    }

    pub(super) fn optional_tensor(&self, name: &'static str) -> anyhow::Result<Option<HostTensor>> {
        let there = self.tensors.names().contains(&name);
        there.then(|| self.tensor(name)).transpose()
    }

    fn tensor(&self, name: &'static str) -> anyhow::Result<HostTensor> {
        let Ok(view) = self.tensors.tensor(name) else {
            let mut names = self.tensors.names();
            names.sort_unstable();
            bail!("there is no tensor `{name}`, only {names:?}");
        };
        let known = DTYPES.iter().find(|(_, in_file)| *in_file == view.dtype());
        let Some(&(dtype, _)) = known else {
            let dtype = view.dtype();
            bail!("`{name}` has dtype {dtype}, which no operation takes");
        };
        let shape = view.shape();
        // An empty tensor may claim any other extents; strides are made from their product.
        let extent = |product: usize, &extent: &usize| product.checked_mul(extent.max(1));
        ensure!(
            shape
                .iter()
                .try_fold(dtype.size(), extent)
                .is_some_and(|bytes| bytes <= 1 << 60),
            "`{name}` has shape {shape:?}: too large"
        );
        Ok(HostTensor::contiguous(
            name,
            dtype,
            shape,
            view.data().to_vec(),
        ))
    }

    fn scalar<T: FromStr>(&self, name: &str) -> anyhow::Result<Option<T>> {
        self.metadata
            .get(name)
            .map(|text| {
                text.trim().parse().ok().with_context(|| {
                    format!("the metadata's {name} is `{text}`, which is not such a number")
                })
            })
            .transpose()
    }
}

fn write(tensors: &[HostTensor], path: &Path) -> anyhow::Result<()> {
    let views = tensors
        .iter()
        .map(|tensor| {
            let known = DTYPES.iter().find(|(dtype, _)| *dtype == tensor.dtype);
            let &(_, dtype) = known.context("a dtype that files have")?;
            let view = FileView::new(dtype, tensor.shape.clone(), &tensor.storage.bytes)?;
            Ok((tensor.storage.name, view))
        })
        .collect::<anyhow::Result<Vec<_>>>()?;
    fs::write(path, safetensors::serialize(views, None)?)?;
    Ok(())
}
