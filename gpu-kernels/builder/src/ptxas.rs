//! Assembling the PTX for real GPUs, to see before any of them does whether it fits.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{fs, thread};

use anyhow::{Context, Result, bail};
use gpu_kernels::entry::arch::GpuModel;
use gpu_kernels::entry::{Arch, ENTRIES, Entry};
use serde::Serialize;

use crate::compile::output;
use crate::ptx_set::PtxSet;
use crate::routes::dynamic_shared_bytes;

/// What one entry needs on one GPU.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// The PTX symbol.
    pub entry: String,
    /// Architecture of the PTX.
    pub ptx: String,
    /// Architecture it was assembled for.
    pub target: String,
    /// Registers per thread.
    pub registers: u32,
    /// Bytes of stack per thread.
    pub stack_bytes: u32,
    /// Bytes of registers stored to memory for want of registers.
    pub spill_store_bytes: u32,
    /// Bytes loaded back.
    pub spill_load_bytes: u32,
    /// Bytes of static shared memory.
    pub shared_bytes: u32,
}

impl Usage {
    /// Whether registers live in memory.
    pub fn spills(&self) -> bool {
        self.stack_bytes + self.spill_store_bytes + self.spill_load_bytes > 0
    }

    /// Whether it matters here that registers stay registers: the kernel is hot, this GPU's thread blocks have the
    /// shared memory without which it is never launched, and it is a GPU that PTX is compiled for. Others take an
    /// older one's, and a few words in memory are no reason to change that.
    pub fn is_hot(&self) -> bool {
        let is_compiled_for = Arch::named(&self.target).is_some();
        self.row().is_none_or(|row| {
            row.hot && is_compiled_for && dynamic_shared_bytes(row) <= shared_limit(&self.target)
        })
    }

    /// The row of the kernels' table.
    pub fn row(&self) -> Option<&'static Entry> {
        ENTRIES.iter().find(|entry| entry.name == self.entry)
    }
}

/// Most shared memory of a thread block; of a GPU that nothing is said of, none.
fn shared_limit(target: &str) -> u32 {
    let mut gpus = Arch::ALL.iter().flat_map(|arch| arch.gpus());
    gpus.find(|gpu| gpu.name == target)
        .map_or(0, |gpu: &GpuModel| gpu.shared_bytes_per_cta)
}

/// The assembler of CUDA's toolkit.
#[derive(Clone, Debug)]
pub struct Ptxas {
    path: PathBuf,
    /// The line of its banner that names the release.
    pub version: String,
}

impl Ptxas {
    /// The assembler at `path`, or the one in `FERROATTN_PTXAS`, in `PATH`, or where PyPI's package lies.
    ///
    /// # Errors
    /// There is none; the message says how to install it.
    pub fn find(path: Option<PathBuf>) -> Result<Self> {
        let path = path
            .or_else(|| std::env::var_os("FERROATTN_PTXAS").map(PathBuf::from))
            .unwrap_or_else(|| "ptxas".into());
        let banner = output(Command::new(&path).arg("--version")).with_context(|| {
            format!(
                "no ptxas at `{}`; install one with `pip install --target DIR nvidia-cuda-nvcc` and name \
                 DIR/nvidia/cu13/bin/ptxas with --ptxas PATH or FERROATTN_PTXAS",
                path.display()
            )
        })?;
        let version = banner
            .lines()
            .find(|line| line.contains("release"))
            .unwrap_or(&banner)
            .to_owned();
        Ok(Self { path, version })
    }

    /// Assembles a set's kernels of every architecture for its GPUs and lists what each entry needs.
    ///
    /// # Errors
    /// The assembler's messages.
    pub fn assemble_all(&self, set: &PtxSet) -> Result<Vec<Usage>> {
        let archs = &set.manifest.archs;
        let jobs: Vec<(&str, &str)> = Arch::ALL
            .iter()
            .filter(|arch| archs.iter().any(|name| name == arch.name()))
            .flat_map(|arch| arch.gpus().iter().map(|gpu| (arch.name(), gpu.name)))
            .collect();
        let results = thread::scope(|scope| {
            let running: Vec<_> = jobs
                .iter()
                .map(|&(ptx, target)| scope.spawn(move || self.try_assemble(set, ptx, target)))
                .collect();
            running
                .into_iter()
                .map(|job| job.join().expect("assembling does not panic"))
                .collect::<Result<Vec<_>>>()
        })?;
        Ok(results.into_iter().flatten().collect())
    }

    fn try_assemble(&self, set: &PtxSet, ptx: &str, target: &str) -> Result<Vec<Usage>> {
        let cubin = std::env::temp_dir().join(format!(
            "ferroattn-{}-{ptx}-{target}.cubin",
            std::process::id()
        ));
        let usage = self.assemble(set, ptx, target, &cubin);
        // It only mattered that it could be written.
        let _ = fs::remove_file(&cubin);
        usage
    }

    /// Assembles a set's kernels of architecture `ptx` for one GPU into `cubin` and lists what each entry needs.
    ///
    /// # Errors
    /// The assembler's messages.
    pub fn assemble(
        &self,
        set: &PtxSet,
        ptx: &str,
        target: &str,
        cubin: &Path,
    ) -> Result<Vec<Usage>> {
        let text = set.file(ptx)?;
        let file = cubin.with_extension("ptx");
        fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
        let result = Command::new(&self.path)
            .args(["-v", "-arch", target, "-o"])
            .arg(cubin)
            .arg(&file)
            .output()
            .with_context(|| format!("cannot run {}", self.path.display()));
        // It only mattered while the assembler read it.
        let _ = fs::remove_file(&file);
        let result = result?;
        let report = String::from_utf8_lossy(&result.stderr).into_owned()
            + &String::from_utf8_lossy(&result.stdout);
        if !result.status.success() {
            bail!(
                "PTX of {} for {ptx} does not assemble for {target}:\n{report}",
                set.manifest.route
            );
        }
        Ok(parse(&report, ptx, target))
    }
}

/// Reads the report of `ptxas -v`.
fn parse(report: &str, ptx: &str, target: &str) -> Vec<Usage> {
    let mut all: Vec<Usage> = Vec::new();
    for line in report.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            all.push(Usage {
                entry: rest.split('\'').next().unwrap_or_default().to_owned(),
                ptx: ptx.to_owned(),
                target: target.to_owned(),
                ..Usage::default()
            });
        }
        let Some(usage) = all.last_mut() else {
            continue;
        };
        for (field, unit) in [
            (&mut usage.stack_bytes, " bytes stack frame"),
            (&mut usage.spill_store_bytes, " bytes spill stores"),
            (&mut usage.spill_load_bytes, " bytes spill loads"),
            (&mut usage.registers, " registers"),
            (&mut usage.shared_bytes, " bytes smem"),
        ] {
            if let Some(number) = number_before(line, unit) {
                *field = number;
            }
        }
    }
    all
}

fn number_before(line: &str, unit: &str) -> Option<u32> {
    let (before, _) = line.split_once(unit)?;
    before.rsplit([' ', ',']).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_report() {
        let report = "\
ptxas info    : Compiling entry function 'decode_gqa_bf16_d64_h8' for 'sm_90'
ptxas info    : Function properties for decode_gqa_bf16_d64_h8
    512 bytes stack frame, 16 bytes spill stores, 32 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 512 bytes cumulative stack size, 48 bytes smem
ptxas info    : Compiling entry function 'check_slots' for 'sm_90'
ptxas info    : Function properties for check_slots
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 4 registers, used 0 barriers
";
        let usage = parse(report, "sm_90", "sm_90");
        assert_eq!(usage.len(), 2);
        assert_eq!(usage[0].registers, 40);
        assert_eq!(usage[0].stack_bytes, 512);
        assert_eq!(usage[0].spill_store_bytes, 16);
        assert_eq!(usage[0].spill_load_bytes, 32);
        assert_eq!(usage[0].shared_bytes, 48);
        assert!(usage[0].spills() && usage[0].is_hot());
        assert_eq!(usage[1].registers, 4);
        assert!(!usage[1].spills() && !usage[1].is_hot());
    }

    #[test]
    fn a_kernel_is_not_held_to_its_registers_where_it_is_not_launched_or_not_compiled_for() {
        let row = ENTRIES
            .iter()
            .find(|row| row.hot && dynamic_shared_bytes(row) > shared_limit("sm_89"))
            .expect("a hot kernel asks for more shared memory than sm_89 has");
        let on = |target: &str| Usage {
            entry: row.name.into(),
            target: target.into(),
            ..Usage::default()
        };
        assert!(on("sm_90").is_hot());
        assert!(!on("sm_89").is_hot());
        assert!(!on("sm_100").is_hot());
    }
}
