//! What a measurement depends on besides the code.

#[cfg(feature = "cust")]
use std::process::Command;
#[cfg(feature = "cust")]
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

#[cfg(feature = "cust")]
use crate::runtime::Cuda;

/// Where and with what something was measured.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Environment {
    /// The GPU's name.
    pub gpu: String,
    /// Its compute capability, such as "9.0".
    pub compute_capability: String,
    /// Its multiprocessors.
    pub num_sms: u32,
    /// Highest clock of the multiprocessors.
    pub sm_clock_mhz: u32,
    /// Highest clock of the memory.
    pub memory_clock_mhz: u32,
    /// Version of the driver's CUDA.
    pub driver: String,
    /// Which compiler's PTX: "nvvm" or "nvptx"; or both, separated by commas.
    pub ptx_route: String,
    /// That compiler's version, or both in the same order, separated by semicolons.
    pub ptx_compiler: String,
    /// The PTX file that the GPU ran.
    pub ptx_arch: String,
    /// SHA-256 of the kernels' source.
    pub kernels_sha256: String,
    /// This crate's version.
    pub version: String,
    /// The commit of the working folder, with "-dirty" if it was changed, if it is a checkout. A machine that
    /// holds only the program is told by `FERROATTN_COMMIT`.
    pub commit: Option<String>,
    /// Seeds of the inputs.
    pub seed: u64,
    /// When, in seconds since 1970.
    pub unix_time: u64,
}

#[cfg(feature = "cust")]
impl Environment {
    /// Looks around.
    pub fn of(cuda: &Cuda, seed: u64) -> Self {
        let properties = cuda.properties();
        let set = cuda.kernels().set();
        let (major, minor) = properties.info.compute_capability;
        Self {
            gpu: properties.name.clone(),
            compute_capability: format!("{major}.{minor}"),
            num_sms: properties.info.num_sms,
            sm_clock_mhz: properties.sm_clock_khz / 1000,
            memory_clock_mhz: properties.memory_clock_khz / 1000,
            driver: properties.driver.to_string(),
            ptx_route: set.route.name().into(),
            ptx_compiler: set.compiler.into(),
            ptx_arch: cuda.kernels().archs(),
            kernels_sha256: set.source_sha256.into(),
            version: env!("CARGO_PKG_VERSION").into(),
            commit: commit(),
            seed,
            unix_time: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |time| time.as_secs()),
        }
    }
}

impl Environment {
    /// The environment of measurements with this one's PTX and that of `other`.
    #[must_use]
    pub fn and(mut self, other: &Self) -> Self {
        self.ptx_route = format!("{}, {}", self.ptx_route, other.ptx_route);
        self.ptx_compiler = format!("{}; {}", self.ptx_compiler, other.ptx_compiler);
        self
    }
}

#[cfg(feature = "cust")]
fn commit() -> Option<String> {
    if let Ok(commit) = std::env::var("FERROATTN_COMMIT") {
        return Some(commit);
    }
    let output = Command::new("git")
        .args([
            "describe",
            "--always",
            "--abbrev=40",
            "--dirty",
            "--exclude=*",
        ])
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    (output.status.success() && !text.trim().is_empty()).then(|| text.trim().to_owned())
}
