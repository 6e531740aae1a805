//! Finding a Rust compiler that writes PTX, and running it on `gpu-kernels`.
//!
//! Any rustc with the NVPTX back end and the source of `core` will do; a stable one is told by
//! `RUSTC_BOOTSTRAP` to accept the unstable features of GPU targets. Every architecture is compiled in a
//! target directory of its own, so that all of them build side by side and rebuild fast.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use gpu_kernels::entry::arch::PTX_VERSION;

/// How the kernels are compiled, besides `-Ctarget-cpu`.
pub fn flags() -> Vec<String> {
    let version = PTX_VERSION.replace('.', "");
    let mut flags = vec![format!("-Ctarget-feature=+ptx{version}")];
    flags.extend(FLAGS.iter().map(|&flag| flag.to_owned()));
    flags
}

/// Flags that do not depend on the version of PTX.
///
/// - Nothing can be printed on panic: `immediate-abort` leaves a trap where messages and formatting were.
/// - The kernels keep tiles in register arrays, whose indices become constants only if their loops are
///   unrolled completely; LLVM's thresholds, made for CPUs, are too low for that.
const FLAGS: &[&str] = &[
    "-Clinker=true",
    "--cfg=gpu_route=\"nvptx\"",
    "-Zunstable-options",
    "-Cpanic=immediate-abort",
    "-Zlocation-detail=none",
    "-Cllvm-args=-unroll-threshold=10000 -unroll-max-percent-threshold-boost=1000 -inline-threshold=10000",
];

/// How to get a compiler, for error messages.
const INSTALL: &str = "install one with `apt-get install rustc-web rust-web-src cargo-web` (Debian) or \
    `rustup toolchain install nightly --component rust-src`, or name one with --rustc PATH";

/// A compiler that can build the kernels.
#[derive(Clone, Debug)]
pub struct Compiler {
    rustc: PathBuf,
    cargo: PathBuf,
    /// The first line of `rustc --version`.
    pub version: String,
}

impl Compiler {
    /// The compiler at `rustc`, or the first suitable one: Debian's, then rustup's nightly.
    ///
    /// # Errors
    /// None is suitable; the message says why, and how to install one.
    pub fn find(rustc: Option<PathBuf>) -> Result<Self> {
        if let Some(rustc) = rustc {
            return Self::try_new(&rustc)
                .with_context(|| format!("cannot use {}", rustc.display()));
        }
        let mut reasons = String::new();
        for candidate in [Some(PathBuf::from("/usr/bin/rustc")), rustup_nightly()]
            .into_iter()
            .flatten()
        {
            match Self::try_new(&candidate) {
                Ok(compiler) => return Ok(compiler),
                Err(error) => reasons += &format!("\n  {}: {error:#}", candidate.display()),
            }
        }
        bail!(
            "no Rust compiler with an NVPTX back end and the source of `core` found; {INSTALL}{reasons}"
        )
    }

    fn try_new(rustc: &Path) -> Result<Self> {
        let version = output(Command::new(rustc).arg("--version"))?;
        let sysroot = PathBuf::from(output(Command::new(rustc).args(["--print", "sysroot"]))?);
        let core = sysroot.join("lib/rustlib/src/rust/library/core/src/lib.rs");
        ensure!(
            core.exists(),
            "it has no source of `core` ({} is missing); {INSTALL}",
            core.display()
        );
        let targets = output(Command::new(rustc).args(["--print", "target-list"]))?;
        ensure!(
            targets
                .lines()
                .any(|target| target == "nvptx64-nvidia-cuda"),
            "it does not know the target nvptx64-nvidia-cuda; {INSTALL}"
        );
        // A cargo of the same toolchain understands that toolchain's build-std best; any recent one does.
        let sibling = rustc.with_file_name("cargo");
        let cargo = if sibling.exists() {
            sibling
        } else {
            std::env::var_os("CARGO").map_or_else(|| "cargo".into(), PathBuf::from)
        };
        Ok(Self {
            rustc: rustc.to_owned(),
            cargo,
            version,
        })
    }

    /// Compiles the kernels in `kernels_dir` for `arch` and returns the PTX as the compiler wrote it.
    /// What is built on the way stays under `target_dir`.
    ///
    /// # Errors
    /// The compiler's messages.
    pub fn compile(&self, kernels_dir: &Path, target_dir: &Path, arch: &str) -> Result<String> {
        let target_dir = target_dir.join(arch);
        fs::create_dir_all(&target_dir)?;
        let ptx = target_dir.join("gpu_kernels.s");
        let mut emit = OsString::from("--emit=asm=");
        emit.push(&ptx);

        let mut command = Command::new(&self.cargo);
        clear_environment(&mut command);
        command
            .current_dir(kernels_dir)
            .env("RUSTC", &self.rustc)
            .env("RUSTC_BOOTSTRAP", "1")
            .env("CARGO_ENCODED_RUSTFLAGS", rustflags(kernels_dir, arch))
            .args(["rustc", "--lib", "--release", "--crate-type", "cdylib"])
            .args(["-Zbuild-std=core", "--target", "nvptx64-nvidia-cuda"])
            .arg("--target-dir")
            .arg(&target_dir)
            // As an rlib LTO would be skipped, and functions of `core` would stay calls.
            .args(["--config", "profile.release.lto=true"])
            .args(["--config", "profile.release.codegen-units=1"])
            .args(["--config", "profile.release.opt-level=3"])
            .args(["--config", "profile.release.debug=false"])
            .arg("--")
            .arg(emit);
        let built = command
            .output()
            .with_context(|| format!("cannot run {}", self.cargo.display()))?;
        if !built.status.success() {
            bail!(
                "compiling the kernels for {arch} failed:\n{}",
                String::from_utf8_lossy(&built.stderr)
            );
        }
        // Nothing was linked; but Cargo compiles again what lacks its output.
        let linked = target_dir.join("nvptx64-nvidia-cuda/release/deps/gpu_kernels.ptx");
        fs::write(&linked, "").with_context(|| format!("cannot write {}", linked.display()))?;
        fs::read_to_string(&ptx).with_context(|| {
            format!(
                "the compiler wrote no {}; remove {} and try again",
                ptx.display(),
                target_dir.display()
            )
        })
    }
}

/// Nothing that surrounds a nested build (a build script, clippy, somebody's RUSTFLAGS) may reach it.
pub(crate) fn clear_environment(command: &mut Command) {
    const PREFIXES: [&str; 7] = [
        "CARGO_",
        "RUSTC",
        "RUSTFLAGS",
        "RUSTUP_TOOLCHAIN",
        "TARGET",
        "HOST",
        "OUT_DIR",
    ];
    // These say where Cargo keeps things and how it fetches them, not what it builds.
    const KEPT: [&str; 2] = ["CARGO_HOME", "CARGO_NET_"];
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        let starts = |prefixes: &[&str]| prefixes.iter().any(|prefix| text.starts_with(prefix));
        if starts(&PREFIXES) && !starts(&KEPT) {
            command.env_remove(&name);
        }
    }
}

/// Flags in Cargo's encoding, with the paths of this machine mapped away.
fn rustflags(kernels_dir: &Path, arch: &str) -> OsString {
    let mut all = OsString::from(format!("-Ctarget-cpu={arch}"));
    for flag in flags() {
        all.push("\x1f");
        all.push(flag);
    }
    all.push("\x1f--remap-path-prefix=");
    all.push(kernels_dir);
    all.push("=gpu-kernels");
    all
}

fn rustup_nightly() -> Option<PathBuf> {
    output(Command::new("rustup").args(["which", "--toolchain", "nightly", "rustc"]))
        .ok()
        .map(PathBuf::from)
}

/// What a command prints, trimmed.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let result = command
        .output()
        .with_context(|| format!("cannot run {}", command.get_program().display()))?;
    ensure!(
        result.status.success(),
        "{} failed: {}{}",
        command.get_program().display(),
        String::from_utf8_lossy(&result.stdout),
        String::from_utf8_lossy(&result.stderr)
    );
    Ok(String::from_utf8_lossy(&result.stdout).trim().to_owned())
}
