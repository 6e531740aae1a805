//! `manifest.json`: what a folder of PTX files was made from, and how to tell that it is stale.

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use gpu_kernels::entry::ENTRIES;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::mend;

/// Name of the file.
pub const FILE_NAME: &str = "manifest.json";
/// Grows when the meaning of a field changes.
pub const SCHEMA: u32 = 1;

/// The whole file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Which compiler wrote the PTX: "nvptx" or "nvvm".
    pub route: String,
    /// [`fingerprint`] of the source.
    pub source_sha256: String,
    /// The compiler's version line.
    pub compiler: String,
    /// Its flags, without the architecture.
    pub flags: Vec<String>,
    /// PTX ISA version of the files.
    pub ptx_version: String,
    /// The files, in ascending order of architecture.
    pub files: Vec<PtxFile>,
    /// What they hold, each file those of its architecture.
    pub entries: Vec<ManifestEntry>,
}

/// One PTX file. It lies compressed (gzip) beside its manifest: the text is long and says much the same for every
/// kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PtxFile {
    /// Its architecture, such as "sm_90"; the file is `<arch>.ptx.gz`.
    pub arch: String,
    /// SHA-256 of the text.
    pub sha256: String,
    /// Its length.
    pub bytes: usize,
}

/// One kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestEntry {
    /// The PTX symbol.
    pub name: String,
    /// Size of its parameter block.
    pub params_bytes: usize,
    /// Threads per thread block.
    pub threads: u32,
}

impl PtxFile {
    /// The row of a file with this text.
    pub fn of(arch: &str, ptx: &str) -> Self {
        Self {
            arch: arch.to_owned(),
            sha256: hex(&Sha256::digest(ptx)),
            bytes: ptx.len(),
        }
    }

    /// Where the file lies in the folder of its manifest.
    pub fn path(&self, dir: &Path) -> PathBuf {
        path_of(dir, &self.arch)
    }

    /// The text of the file in `dir`.
    ///
    /// # Errors
    /// It is missing or no compressed text.
    pub fn read(&self, dir: &Path) -> Result<String> {
        read_text(&self.path(dir))
    }

    /// Writes the file with this text into `dir`.
    ///
    /// # Errors
    /// `dir` cannot be written.
    pub fn write(&self, dir: &Path, text: &str) -> Result<()> {
        let path = self.path(dir);
        let mut gz = GzEncoder::new(Vec::new(), Compression::best());
        gz.write_all(text.as_bytes())?;
        fs::write(&path, gz.finish()?).with_context(|| format!("cannot write {}", path.display()))
    }
}

impl Manifest {
    /// The rows of all compiled kernels.
    pub fn all_entries() -> Vec<ManifestEntry> {
        ENTRIES
            .iter()
            .map(|entry| ManifestEntry {
                name: entry.name.to_owned(),
                params_bytes: entry.params_bytes,
                threads: entry.threads,
            })
            .collect()
    }

    /// Reads the manifest in `dir`.
    ///
    /// # Errors
    /// It is missing or not a manifest of this schema.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(FILE_NAME);
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let manifest: Self = serde_json::from_str(&text)
            .with_context(|| format!("{} is not a manifest", path.display()))?;
        ensure!(
            manifest.schema == SCHEMA,
            "{} has schema {}, expected {SCHEMA}",
            path.display(),
            manifest.schema
        );
        Ok(manifest)
    }

    /// The text of `manifest.json`.
    pub fn to_json(&self) -> String {
        let mut json = serde_json::to_string_pretty(self).expect("a manifest is plain data");
        json.push('\n');
        json
    }

    /// Checks that the files in `dir` are the ones this manifest speaks of.
    ///
    /// # Errors
    /// The first file that is missing or differs.
    pub fn verify_files(&self, dir: &Path) -> Result<()> {
        for file in &self.files {
            let path = file.path(dir);
            if PtxFile::of(&file.arch, &file.read(dir)?) != *file {
                bail!(
                    "{} is not the file its manifest describes; mend it with `{}`",
                    path.display(),
                    mend(&self.route)
                );
            }
        }
        Ok(())
    }

    /// Checks that this manifest speaks of the source in `kernels_dir`.
    ///
    /// # Errors
    /// The source has changed since.
    pub fn verify_source(&self, kernels_dir: &Path) -> Result<()> {
        let source = fingerprint(kernels_dir)?;
        ensure!(
            source == self.source_sha256,
            "the PTX of route {} was compiled from another version of gpu-kernels (source {}, PTX of {}); \
             mend it with `{}`",
            self.route,
            &source[..12],
            self.source_sha256.get(..12).unwrap_or("nothing"),
            mend(&self.route)
        );
        Ok(())
    }
}

/// Where the file of an architecture lies in the folder of its manifest.
pub(crate) fn path_of(dir: &Path, arch: &str) -> PathBuf {
    dir.join(format!("{arch}.ptx.gz"))
}

/// The text of a compressed file.
pub(crate) fn read_text(path: &Path) -> Result<String> {
    let cannot = || format!("cannot read {}", path.display());
    let bytes = fs::read(path).with_context(cannot)?;
    let mut text = String::new();
    GzDecoder::new(&bytes[..])
        .read_to_string(&mut text)
        .with_context(cannot)?;
    Ok(text)
}

/// Files that decide what the kernels are, relative to `kernels_dir`, sorted.
///
/// # Errors
/// A folder cannot be read.
pub fn source_files(kernels_dir: &Path) -> Result<Vec<PathBuf>> {
    let mut files = vec![PathBuf::from("Cargo.toml")];
    let mut dirs = vec![PathBuf::from("src")];
    while let Some(dir) = dirs.pop() {
        let full = kernels_dir.join(&dir);
        for entry in
            fs::read_dir(&full).with_context(|| format!("cannot read {}", full.display()))?
        {
            let entry = entry?;
            let path = dir.join(entry.file_name());
            if entry.file_type()?.is_dir() {
                dirs.push(path);
            } else if path.extension().is_some_and(|ext| ext == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

/// SHA-256 over path, length and contents of every file of the kernels' source. Line ends count as `\n`,
/// however they were checked out.
///
/// # Errors
/// A file cannot be read.
pub fn fingerprint(kernels_dir: &Path) -> Result<String> {
    let mut hash = Sha256::new();
    for path in source_files(kernels_dir)? {
        let full = kernels_dir.join(&path);
        let text =
            fs::read_to_string(&full).with_context(|| format!("cannot read {}", full.display()))?;
        let text = text.replace("\r\n", "\n");
        let name: Vec<_> = path.iter().map(|part| part.to_string_lossy()).collect();
        hash.update(format!("{} {}\n", name.join("/"), text.len()));
        hash.update(text);
    }
    Ok(hex(&hash.finalize()))
}

/// Bytes as hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
