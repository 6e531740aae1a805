//! Compiles the kernels of ferroattn to PTX with rust-cuda: `ferroattn-nvvm-builder TOOLCHAIN OUT_DIR TARGET_DIR
//! ARCH...` writes `OUT_DIR/<arch>.ptx` for every architecture (`sm_80`, `sm_89`, `sm_90`, `sm_90a`), with
//! the compiler that rustup knows as `TOOLCHAIN`.
//!
//! `ferroattn-ptx-builder --route nvvm` runs this with the environment that it needs, and brings what it
//! wrote into the form in which PTX is kept.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;

use anyhow::{Context, Result, anyhow, bail};
use cuda_builder::{CudaBuilder, NvvmArch};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String]) -> Result<()> {
    let [toolchain, out, target, archs @ ..] = arguments else {
        bail!("usage: ferroattn-nvvm-builder TOOLCHAIN OUT_DIR TARGET_DIR ARCH...");
    };
    // cuda_builder runs `cargo` with the environment that it finds. The second is for toolchains that do not
    // call themselves nightly.
    for (name, value) in [("RUSTUP_TOOLCHAIN", &**toolchain), ("RUSTC_BOOTSTRAP", "1")] {
        // SAFETY: no other thread runs yet.
        unsafe { std::env::set_var(name, value) };
    }
    let (out, target) = (PathBuf::from(out), PathBuf::from(target));
    fs::create_dir_all(&out).with_context(|| format!("cannot create {}", out.display()))?;
    thread::scope(|scope| {
        let running: Vec<_> = archs
            .iter()
            .map(|arch| scope.spawn(|| compile(&out, &target, arch)))
            .collect();
        running.into_iter().try_for_each(|job| {
            job.join()
                .unwrap_or_else(|_| Err(anyhow!("cuda_builder panicked")))
        })
    })
}

fn compile(out: &Path, target: &Path, arch: &str) -> Result<()> {
    let virtual_arch = match arch {
        "sm_80" => NvvmArch::Compute80,
        "sm_89" => NvvmArch::Compute89,
        "sm_90" => NvvmArch::Compute90,
        "sm_90a" => NvvmArch::Compute90a,
        other => bail!("there is no PTX for `{other}`"),
    };
    // One target directory each: the file has the same name for every architecture.
    let target = target.join(arch);
    let target = target
        .to_str()
        .context("the target directory is no UTF-8")?;
    CudaBuilder::new(concat!(env!("CARGO_MANIFEST_DIR"), "/kernels"))
        .arch(virtual_arch)
        // The kernels write `fma` where they mean it, and promise the same bits on every route.
        .fma_contraction(false)
        // cuda_builder has no option for flags of rustc, and overrides RUSTFLAGS; a profile carries them.
        .build_args(&[
            "--locked",
            "-Zprofile-rustflags",
            "--config",
            "profile.release.rustflags=['--cfg','gpu_route=\"nvvm\"']",
            "--target-dir",
            target,
        ])
        .copy_to(out.join(format!("{arch}.ptx")))
        .build()
        .map_err(|error| anyhow!("{error}"))
        .with_context(|| format!("compiling the kernels for {arch}"))?;
    Ok(())
}
