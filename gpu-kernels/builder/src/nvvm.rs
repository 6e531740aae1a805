//! Driving rust-cuda: finding what it needs, running `gpu-kernels/nvvm-builder`, and saying what is missing.
//!
//! `cuda_builder` and `rustc_codegen_nvvm` come from git, so they belong to a crate outside this workspace,
//! which is built here on demand. Nobody who takes the PTX as it is in the repository needs any of it.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

use crate::compile::{clear_environment, output};
use crate::fingerprint::hex;

/// The revision of rust-cuda that gpu-kernels/nvvm-builder asks for.
pub const RUST_CUDA: &str = "946c91f";
/// The compiler that this revision was written for.
pub const TOOLCHAIN: &str = "nightly-2026-04-02";

/// What the kernels are compiled with, besides the architecture; for the manifest.
pub const FLAGS: &[&str] = &[
    "--cfg=gpu_route=\"nvvm\"",
    "-Cpanic=immediate-abort",
    "-Zsaturating_float_casts=false",
    "-Cllvm-args=-fma=0 --override-libm",
];

/// rust-cuda, ready to run.
#[derive(Clone, Debug)]
pub struct RustCuda {
    /// A name that rustup knows.
    toolchain: OsString,
    /// `librustc_codegen_nvvm.so`, if it is not to be built.
    backend: Option<PathBuf>,
    /// The CUDA toolkit.
    cuda: PathBuf,
    /// What the manifest calls the compiler; libNVVM's version is read off its output.
    pub version: String,
}

impl RustCuda {
    /// Looks for everything that a build needs.
    ///
    /// `FERROATTN_NVVM_TOOLCHAIN` names another of rustup's toolchains than [`TOOLCHAIN`], and
    /// `FERROATTN_NVVM_BACKEND` a back end that was built already, which then has to belong to it.
    ///
    /// # Errors
    /// Everything that is missing, and how to get it.
    pub fn find() -> Result<Self> {
        let toolchain = env::var_os("FERROATTN_NVVM_TOOLCHAIN").unwrap_or_else(|| TOOLCHAIN.into());
        let backend = env::var_os("FERROATTN_NVVM_BACKEND").map(PathBuf::from);
        let mut missing = Vec::new();
        let rustc = find_rustc(&toolchain, backend.is_none()).unwrap_or_else(|error| {
            missing.push(format!("{error:#}"));
            String::new()
        });
        let cuda = find_cuda().unwrap_or_else(|error| {
            missing.push(format!("{error:#}"));
            PathBuf::new()
        });
        let origin = match &backend {
            None => {
                if let Err(error) = find_llvm() {
                    missing.push(format!("{error:#}"));
                }
                format!("rustc_codegen_nvvm (rust-cuda {RUST_CUDA})")
            }
            // Whoever built it may have changed it: its hash tells one from another.
            Some(path) => match fs::read(path) {
                Ok(bytes) => {
                    let hash = hex(&Sha256::digest(bytes));
                    format!(
                        "rustc_codegen_nvvm (rust-cuda {RUST_CUDA}, own build {})",
                        &hash[..12]
                    )
                }
                Err(error) => {
                    missing.push(format!(
                        "FERROATTN_NVVM_BACKEND is {}, which cannot be read: {error}",
                        path.display()
                    ));
                    String::new()
                }
            },
        };
        ensure!(
            missing.is_empty(),
            "rust-cuda cannot run here:\n  - {}",
            missing.join("\n  - ")
        );
        Ok(Self {
            toolchain,
            backend,
            cuda,
            version: format!("{origin}, {rustc}"),
        })
    }

    /// Compiles the kernels in `kernels_dir` for `archs` and returns the PTX as the compiler wrote it. What
    /// is built on the way stays under `target_dir`.
    ///
    /// # Errors
    /// The compiler failed; its messages went to stderr.
    pub fn compile(
        &self,
        kernels_dir: &Path,
        target_dir: &Path,
        archs: &[String],
    ) -> Result<Vec<String>> {
        let out = target_dir.join("out");
        if out.exists() {
            // What a failed run leaves must not pass for this one's.
            fs::remove_dir_all(&out).with_context(|| format!("cannot empty {}", out.display()))?;
        }
        let mut command = Command::new("cargo");
        clear_environment(&mut command);
        let mut libraries = vec![self.cuda.join("nvvm/lib64")];
        command
            .current_dir(kernels_dir.join("nvvm-builder"))
            .args(["run", "--release", "--locked", "--target-dir"])
            .arg(target_dir.join("builder"));
        match &self.backend {
            None => {
                // The back end is part of the compiler: one toolchain builds it and runs it.
                command
                    .args(["--features", "backend"])
                    .env("RUSTUP_TOOLCHAIN", &self.toolchain);
            }
            Some(backend) => {
                let dir = backend.parent().unwrap_or(Path::new(""));
                libraries.push(dir.to_owned());
            }
        }
        libraries.extend(
            env::var_os("LD_LIBRARY_PATH")
                .iter()
                .flat_map(env::split_paths),
        );
        let status = command
            .arg("--")
            .arg(&self.toolchain)
            .args([&out, &target_dir.to_owned()])
            .args(archs)
            .env("CUDA_PATH", &self.cuda)
            // cuda_builder looks here for the back end that was just built.
            .env("CARGO_TARGET_DIR", target_dir.join("builder"))
            .env("LD_LIBRARY_PATH", env::join_paths(libraries)?)
            // cuda_builder speaks to cargo on stdout, where build.rs would pass it on.
            .stdout(std::process::Stdio::null())
            .status()
            .context("cannot run cargo")?;
        ensure!(status.success(), "rust-cuda failed; its messages are above");
        archs
            .iter()
            .map(|arch| {
                let path = out.join(format!("{arch}.ptx"));
                fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
            })
            .collect()
    }
}

/// The version of the toolchain's rustc.
fn find_rustc(toolchain: &OsString, builds_backend: bool) -> Result<String> {
    let components = if builds_backend {
        "rust-src,rustc-dev,llvm-tools"
    } else {
        "rust-src"
    };
    let name = toolchain.display();
    let install = format!(
        "install it with `rustup toolchain install {name} --profile minimal --component {components}`"
    );
    let run = |arguments: &[&str]| {
        output(
            Command::new("rustup")
                .arg("run")
                .arg(toolchain)
                .args(arguments),
        )
    };
    let version = run(&["rustc", "--version"])
        .with_context(|| format!("there is no Rust toolchain `{name}`; {install}"))?;
    let sysroot = PathBuf::from(run(&["rustc", "--print", "sysroot"])?);
    ensure!(
        sysroot
            .join("lib/rustlib/src/rust/library/core/src/lib.rs")
            .exists(),
        "the Rust toolchain `{name}` has no source of `core`; {install}"
    );
    if builds_backend {
        let has_driver = fs::read_dir(sysroot.join("lib/rustlib"))?
            .flatten()
            .any(|target| {
                fs::read_dir(target.path().join("lib")).is_ok_and(|files| {
                    files.flatten().any(|file| {
                        file.file_name()
                            .to_string_lossy()
                            .starts_with("librustc_driver")
                    })
                })
            });
        ensure!(
            has_driver,
            "the Rust toolchain `{name}` has no libraries of the compiler; {install}"
        );
    }
    Ok(version)
}

/// The CUDA toolkit, with libNVVM in it.
fn find_cuda() -> Result<PathBuf> {
    const NEEDED: &str = "install a CUDA 12 toolkit and set CUDA_PATH to its folder";
    let Some(cuda) = env::var_os("CUDA_PATH").map(PathBuf::from).or_else(|| {
        let usual = PathBuf::from("/usr/local/cuda");
        usual.exists().then_some(usual)
    }) else {
        bail!("CUDA_PATH is not set; {NEEDED}");
    };
    for file in [
        "nvvm/lib64",
        "nvvm/libdevice/libdevice.10.bc",
        "include/cuda.h",
    ] {
        ensure!(
            cuda.join(file).exists(),
            "the CUDA toolkit in {} has no {file}; {NEEDED}",
            cuda.display()
        );
    }
    Ok(cuda)
}

/// LLVM 7, which the back end is linked with.
fn find_llvm() -> Result<()> {
    const NEEDED: &str = "install LLVM 7 (where the system has none: from source, with \
        -DLLVM_TARGETS_TO_BUILD=NVPTX) and set LLVM_CONFIG to its llvm-config";
    let config = env::var_os("LLVM_CONFIG").unwrap_or_else(|| "llvm-config".into());
    let version = output(Command::new(&config).arg("--version"))
        .with_context(|| format!("LLVM_CONFIG names no LLVM; {NEEDED}"))?;
    ensure!(
        version.starts_with("7."),
        "{} is of LLVM {version}; {NEEDED}",
        config.display()
    );
    Ok(())
}
