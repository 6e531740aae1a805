//! The PTX of all architectures and the manifest that goes with it: made, written, compared.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::thread;

use anyhow::{Context, Result, bail, ensure};

use crate::compile::{self, Compiler};
use crate::fingerprint::fingerprint;
use crate::manifest::{FILE_NAME, Manifest, ManifestKernel, SCHEMA};
use crate::nvvm::{self, RustCuda};
use crate::{mend, packed, ptx};

/// PTX in normal form, one text per kernel of the manifest.
#[derive(Clone, Debug)]
pub struct PtxSet {
    /// What the texts are.
    pub manifest: Manifest,
    /// The texts.
    pub texts: Vec<String>,
}

impl PtxSet {
    /// Compiles the kernels in `kernels_dir` for `archs`, side by side.
    ///
    /// # Errors
    /// The compiler's messages; or the PTX is not what the kernels' table says.
    pub fn compile(
        compiler: &Compiler,
        kernels_dir: &Path,
        target_dir: &Path,
        archs: &[String],
    ) -> Result<Self> {
        let source = fingerprint(kernels_dir)?;
        let raw = thread::scope(|scope| {
            let running: Vec<_> = archs
                .iter()
                .map(|arch| scope.spawn(|| compiler.compile(kernels_dir, target_dir, arch)))
                .collect();
            running
                .into_iter()
                .map(|job| job.join().expect("compiling does not panic"))
                .collect::<Result<Vec<_>>>()
        })?;
        ensure!(
            source == fingerprint(kernels_dir)?,
            "the source changed while it was being compiled; run the command again"
        );
        let flags = compile::flags();
        Self::new("nvptx", source, &compiler.version, flags, archs, &raw)
    }

    /// Compiles the kernels in `kernels_dir` for `archs` with rust-cuda.
    ///
    /// # Errors
    /// The compiler failed; or the PTX is not what the kernels' table says.
    pub fn compile_nvvm(
        rust_cuda: &RustCuda,
        kernels_dir: &Path,
        target_dir: &Path,
        archs: &[String],
    ) -> Result<Self> {
        let source = fingerprint(kernels_dir)?;
        let raw = rust_cuda.compile(kernels_dir, target_dir, archs)?;
        ensure!(
            source == fingerprint(kernels_dir)?,
            "the source changed while it was being compiled; run the command again"
        );
        Self::nvvm(&rust_cuda.version, source, archs, &raw)
    }

    /// Takes in what rust-cuda compiled elsewhere from the source in `kernels_dir`: `<arch>.ptx` in `from`.
    ///
    /// # Errors
    /// A file is missing; or the PTX is not what the kernels' table says.
    pub fn from_rust_cuda(kernels_dir: &Path, from: &Path, archs: &[String]) -> Result<Self> {
        let raw = archs
            .iter()
            .map(|arch| {
                let path = from.join(format!("{arch}.ptx"));
                fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
            })
            .collect::<Result<Vec<_>>>()?;
        let source = fingerprint(kernels_dir)?;
        Self::nvvm("rustc_codegen_nvvm", source, archs, &raw)
    }

    /// What libNVVM wrote, and which libNVVM.
    fn nvvm(compiler: &str, source: String, archs: &[String], raw: &[String]) -> Result<Self> {
        let libnvvm = raw
            .iter()
            .find_map(|text| ptx::libnvvm_version(text))
            .context("the PTX does not begin with libNVVM's signature")?;
        let compiler = format!("{compiler}, libNVVM {libnvvm}");
        let flags = nvvm::FLAGS.iter().map(|&flag| flag.to_owned()).collect();
        Self::new("nvvm", source, &compiler, flags, archs, raw)
    }

    fn new(
        route: &str,
        source_sha256: String,
        compiler: &str,
        flags: Vec<String>,
        archs: &[String],
        raw: &[String],
    ) -> Result<Self> {
        let mut kernels: BTreeMap<&str, (Vec<String>, String)> = BTreeMap::new();
        for (arch, raw) in archs.iter().zip(raw) {
            for module in ptx::normalise(raw, arch).with_context(|| format!("for {arch}"))? {
                let (archs, text) = kernels.entry(module.name).or_default();
                archs.push(arch.clone());
                text.push_str(&module.text);
            }
        }
        let rows = kernels
            .iter()
            .map(|(name, (archs, text))| ManifestKernel::of(name, archs.clone(), text))
            .collect::<Result<Vec<_>>>()?;
        let texts: Vec<String> = kernels.into_values().map(|(_, text)| text).collect();
        let manifest = Manifest {
            schema: SCHEMA,
            route: route.to_owned(),
            source_sha256,
            compiler: compiler.to_owned(),
            flags,
            ptx_version: ptx::version(texts.first().context("no kernel")?)?.to_owned(),
            archs: archs.to_vec(),
            kernels: rows,
        };
        Ok(Self { manifest, texts })
    }

    /// The set that lies in `dir`.
    ///
    /// # Errors
    /// It is none, or not the one that its manifest describes.
    pub fn read(dir: &Path) -> Result<Self> {
        let manifest = Manifest::read(dir)?;
        let texts = manifest.read_files(dir)?;
        Ok(Self { manifest, texts })
    }

    /// One file with all kernels for `arch`.
    ///
    /// # Errors
    /// Kernels of one architecture do not begin alike.
    pub fn file(&self, arch: &str) -> Result<String> {
        ptx::join(self.texts.iter().filter_map(|text| ptx::module(text, arch)))
            .with_context(|| format!("for {arch}"))
    }

    /// Writes kernels and manifest into `dir`, and removes kernels that this set lacks. What is there already stays
    /// untouched.
    ///
    /// # Errors
    /// `dir` cannot be written.
    pub fn write(&self, dir: &Path) -> Result<()> {
        for (kernel, text) in self.manifest.kernels.iter().zip(&self.texts) {
            packed::write(dir, &kernel.name, text)?;
        }
        let names: Vec<&str> = self
            .manifest
            .kernels
            .iter()
            .map(|kernel| &*kernel.name)
            .collect();
        packed::remove_others(dir, &names)?;
        for (name, text) in [
            (packed::RUST_FILE, self.manifest.to_rust()),
            (FILE_NAME, self.manifest.to_json()),
        ] {
            let path = dir.join(name);
            if let Some(folder) = path.parent() {
                fs::create_dir_all(folder)?;
            }
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }

    /// Checks that `dir` holds exactly this set.
    ///
    /// # Errors
    /// The kernels that differ, and what may be the reason.
    pub fn compare(&self, dir: &Path) -> Result<()> {
        let there = Manifest::read(dir)
            .with_context(|| format!("mend it with `{}`", mend(&self.manifest.route)))?;
        there.read_files(dir)?;
        if there == self.manifest {
            return Ok(());
        }
        let differs = |kernel: &&ManifestKernel| !there.kernels.contains(kernel);
        let mut different: Vec<&str> = self
            .manifest
            .kernels
            .iter()
            .filter(differs)
            .map(|kernel| &*kernel.name)
            .collect();
        if different.is_empty() {
            different.push(FILE_NAME);
        }
        let other_compiler = if there.compiler == self.manifest.compiler {
            String::new()
        } else {
            format!(
                " (written by {}, this is {})",
                there.compiler, self.manifest.compiler
            )
        };
        bail!(
            "not what the source compiles to: {}{other_compiler}; mend it with `{}`",
            different.join(", "),
            mend(&self.manifest.route)
        )
    }
}
