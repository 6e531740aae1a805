//! The PTX of all architectures and the manifest that goes with it: made, written, compared.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context, Result, bail, ensure};

use crate::compile::{ARCHS, Compiler, FLAGS};
use crate::manifest::{FILE_NAME, Manifest, PtxFile, SCHEMA, fingerprint, path_of};
use crate::nvvm::{self, RustCuda};
use crate::{mend, ptx};

/// PTX in normal form, one text per file of the manifest.
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
        let flags = FLAGS.iter().map(|&flag| flag.to_owned()).collect();
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
        let texts = archs
            .iter()
            .zip(raw)
            .map(|(arch, text)| ptx::normalise(text, arch).with_context(|| format!("for {arch}")))
            .collect::<Result<Vec<_>>>()?;
        let manifest = Manifest {
            schema: SCHEMA,
            route: route.to_owned(),
            source_sha256,
            compiler: compiler.to_owned(),
            flags,
            ptx_version: ptx::version(texts.first().context("no architecture")?)?.to_owned(),
            files: archs
                .iter()
                .zip(&texts)
                .map(|(arch, text)| PtxFile::of(arch, text))
                .collect(),
            entries: Manifest::all_entries(),
        };
        Ok(Self { manifest, texts })
    }

    /// Writes files and manifest into `dir`. Files of architectures that this set lacks are removed: the
    /// manifest would not speak of them.
    ///
    /// # Errors
    /// `dir` cannot be written.
    pub fn write(&self, dir: &Path) -> Result<()> {
        fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        for arch in ARCHS {
            let path = path_of(dir, arch);
            if path.exists() && !self.manifest.files.iter().any(|file| file.arch == arch) {
                fs::remove_file(&path)?;
            }
        }
        for (file, text) in self.manifest.files.iter().zip(&self.texts) {
            file.write(dir, text)?;
        }
        let path = dir.join(FILE_NAME);
        fs::write(&path, self.manifest.to_json())
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// Checks that `dir` holds exactly this set.
    ///
    /// # Errors
    /// The files that differ, and what may be the reason.
    pub fn compare(&self, dir: &Path) -> Result<()> {
        let there = Manifest::read(dir)
            .with_context(|| format!("mend it with `{}`", mend(&self.manifest.route)))?;
        let mut different: Vec<PathBuf> = Vec::new();
        for (file, text) in self.manifest.files.iter().zip(&self.texts) {
            if file.read(dir).ok().as_ref() != Some(text) {
                different.push(file.path(dir));
            }
        }
        if there != self.manifest {
            different.push(dir.join(FILE_NAME));
        }
        if different.is_empty() {
            return Ok(());
        }
        let names: Vec<_> = different
            .iter()
            .map(|path| path.display().to_string())
            .collect();
        let other_compiler = if there.compiler == self.manifest.compiler {
            String::new()
        } else {
            format!(
                " (they were written by {}, this is {})",
                there.compiler, self.manifest.compiler
            )
        };
        bail!(
            "not what the source compiles to: {}{other_compiler}; mend it with `{}`",
            names.join(", "),
            mend(&self.manifest.route)
        )
    }
}
