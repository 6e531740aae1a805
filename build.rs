//! Chooses the PTX to embed, and refuses PTX that is not of this source.
//!
//! `FERROATTN_KERNELS` says where it comes from: `prebuilt` (the default) takes both sets in the repository,
//! rust-cuda's and stock rustc's; `nvvm` or `nvptx` compiles one by that route now, which needs what the
//! builder needs for it. `FERROATTN_SKIP_FINGERPRINT=1` embeds stale PTX with a warning, for work on kernels.

use std::env;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use ferroattn_ptx_builder::compile::{ARCHS, Compiler};
use ferroattn_ptx_builder::manifest::{FILE_NAME, Manifest};
use ferroattn_ptx_builder::nvvm::RustCuda;
use ferroattn_ptx_builder::ptx_set::PtxSet;
use ferroattn_ptx_builder::{ROUTES, kernels_dir, mend};

fn main() -> Result<()> {
    println!("cargo::rerun-if-env-changed=FERROATTN_KERNELS");
    println!("cargo::rerun-if-env-changed=FERROATTN_SKIP_FINGERPRINT");
    let out = PathBuf::from(env::var_os("OUT_DIR").context("run by cargo")?);
    let kernels = kernels_dir();
    let choice = env::var("FERROATTN_KERNELS").unwrap_or_else(|_| "prebuilt".into());
    let dirs = match choice.as_str() {
        "prebuilt" => ROUTES
            .iter()
            .map(|route| kernels.join("ptx").join(route))
            .filter(|dir| dir.join(FILE_NAME).exists())
            .collect(),
        "nvvm" => vec![compile_nvvm(&kernels, &out)?],
        "nvptx" => vec![compile_nvptx(&kernels, &out)?],
        other => bail!(
            "FERROATTN_KERNELS is `{other}`; it may be prebuilt, nvvm (compile with rust-cuda) or nvptx \
             (compile with stock rustc)"
        ),
    };
    // Cargo looks into folders; one that does not exist would count as changed every time.
    for name in ["src", "Cargo.toml", "ptx"] {
        let path = kernels.join(name);
        let there = if path.exists() { &path } else { &kernels };
        println!("cargo::rerun-if-changed={}", there.display());
    }
    if dirs.is_empty() {
        println!(
            "cargo::warning=no PTX in {}: nothing will run on a GPU",
            kernels.join("ptx").display()
        );
    }
    let sets = dirs
        .iter()
        .map(|dir| embed(&kernels, dir))
        .collect::<Result<String>>()?;
    fs::write(out.join("embedded_ptx.rs"), format!("&[\n{sets}]"))?;
    // `cust` asks the linker for libcuda; an empty one keeps it content in every program that uses this
    // crate (see host/src/runtime/cuda_symbols.rs).
    let stub = Path::new(env!("CARGO_MANIFEST_DIR")).join("host/cuda-stub/lib64");
    println!("cargo::rustc-link-search=native={}", stub.display());
    Ok(())
}

/// Checks the files in `dir` and writes them down as an `Embedded` (host/src/runtime/embedded.rs).
fn embed(kernels: &Path, dir: &Path) -> Result<String> {
    let manifest = Manifest::read(dir)?;
    let variant = match manifest.route.as_str() {
        "nvvm" => "Nvvm",
        "nvptx" => "Nvptx",
        other => bail!("{} is of the unknown route `{other}`", dir.display()),
    };
    ensure!(
        dir.file_name().is_some_and(|name| *name == *manifest.route),
        "{} is of route {}; mend it with `{}`",
        dir.display(),
        manifest.route,
        mend("both")
    );
    manifest.verify_files(dir)?;
    if let Err(stale) = manifest.verify_source(kernels) {
        if env::var("FERROATTN_SKIP_FINGERPRINT").is_ok_and(|value| value == "1") {
            println!("cargo::warning=EMBEDDING STALE KERNELS: {stale}");
        } else {
            return Err(stale);
        }
    }
    let mut table = format!(
        "Embedded {{ route: Route::{variant}, compiler: {:?}, ptx_version: {:?}, source_sha256: {:?}, images: &[\n",
        manifest.compiler, manifest.ptx_version, manifest.source_sha256
    );
    for file in &manifest.files {
        let path = file.path(dir);
        let number: u32 = file
            .arch
            .strip_prefix("sm_")
            .and_then(|number| number.strip_suffix('a').unwrap_or(number).parse().ok())
            .with_context(|| format!("`{}` is no architecture", file.arch))?;
        writeln!(
            table,
            "Image {{ arch: {:?}, compute_capability: ({}, {}), exact: {}, sha256: {:?}, gz: include_bytes!({path:?}) }},",
            file.arch,
            number / 10,
            number % 10,
            file.arch.ends_with('a'),
            file.sha256
        )?;
    }
    table += "] },\n";
    Ok(table)
}

/// Compiles the kernels with stock rustc into `out` and returns the folder of the files.
fn compile_nvptx(kernels: &Path, out: &Path) -> Result<PathBuf> {
    println!("cargo::rerun-if-env-changed=FERROATTN_RUSTC");
    let dir = out.join("ptx/nvptx");
    let compiler = Compiler::find(env::var_os("FERROATTN_RUSTC").map(PathBuf::from))?;
    let archs = ARCHS.map(str::to_owned);
    PtxSet::compile(&compiler, kernels, &out.join("ptx-target"), &archs)?.write(&dir)?;
    Ok(dir)
}

/// The same with rust-cuda.
fn compile_nvvm(kernels: &Path, out: &Path) -> Result<PathBuf> {
    for name in [
        "CUDA_PATH",
        "LLVM_CONFIG",
        "FERROATTN_NVVM_TOOLCHAIN",
        "FERROATTN_NVVM_BACKEND",
    ] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    let dir = out.join("ptx/nvvm");
    let archs = ARCHS.map(str::to_owned);
    let target_dir = out.join("ptx-nvvm-target");
    PtxSet::compile_nvvm(&RustCuda::find()?, kernels, &target_dir, &archs)?.write(&dir)?;
    Ok(dir)
}
