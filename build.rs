//! Refuses PTX that is not of the kernels' source, where both are at hand: in the repository. A published crate has PTX
//! of its own version, whose source lies elsewhere. `FERROATTN_SKIP_FINGERPRINT=1` accepts stale PTX with a warning, for
//! work on kernels.

use std::env;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

#[path = "host/build/fingerprint.rs"]
#[allow(dead_code, unreachable_pub, reason = "the builder uses it as well")]
mod fingerprint;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-env-changed=FERROATTN_SKIP_FINGERPRINT");
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let kernels = root.join("gpu-kernels");
    if kernels.join("src").exists() {
        println!("cargo::rerun-if-changed={}", kernels.join("src").display());
        let source = fingerprint::fingerprint(&kernels)?;
        for route in ["nvvm", "nvptx"] {
            check(&kernels.join("ptx").join(route), route, &source)?;
        }
    } else {
        println!("cargo::rerun-if-changed=build.rs");
    }
    // `cust` asks the linker for libcuda; an empty one keeps it content in every program that uses this
    // crate (see host/src/runtime/cuda_symbols.rs).
    if env::var_os("CARGO_FEATURE_CUST").is_some() {
        let stub = root.join("host/cuda-stub/lib64");
        println!("cargo::rustc-link-search=native={}", stub.display());
    }
    Ok(())
}

/// Checks that the set in `dir` is of the source with this fingerprint.
fn check(dir: &Path, route: &str, source: &str) -> Result<(), Box<dyn Error>> {
    let path = dir.join("manifest.json");
    println!("cargo::rerun-if-changed={}", path.display());
    let manifest =
        fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    if manifest.contains(&format!("\"source_sha256\": \"{source}\"")) {
        return Ok(());
    }
    let stale = format!(
        "the PTX of route {route} was compiled from another version of gpu-kernels; mend it with \
         `cargo run --release -p ferroattn-ptx-builder -- --route {route}`"
    );
    if env::var("FERROATTN_SKIP_FINGERPRINT").is_ok_and(|value| value == "1") {
        println!("cargo::warning=EMBEDDING STALE KERNELS: {stale}");
        return Ok(());
    }
    Err(stale.into())
}
