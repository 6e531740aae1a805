//! `manifest.json`: what a set of PTX was made from, and how to tell that it is stale.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use gpu_kernels::entry::ENTRIES;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::fingerprint::{fingerprint, hex};
use crate::{mend, packed};

/// Name of the file.
pub const FILE_NAME: &str = "manifest.json";
/// Grows when the meaning of a field changes.
pub const SCHEMA: u32 = 2;

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
    /// PTX ISA version of the kernels.
    pub ptx_version: String,
    /// The architectures that were compiled for, in ascending order.
    pub archs: Vec<String>,
    /// In alphabetical order.
    pub kernels: Vec<ManifestKernel>,
}

/// One kernel, compiled for its architectures. It lies beside the manifest as [`packed`] says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestKernel {
    /// The PTX symbol.
    pub name: String,
    /// The architectures it is for, in the order of its modules.
    pub archs: Vec<String>,
    /// Size of its parameter block.
    pub params_bytes: usize,
    /// Threads per thread block.
    pub threads: u32,
    /// Length of its modules, one after the other.
    pub bytes: usize,
    /// SHA-256 of the same.
    pub sha256: String,
}

impl ManifestKernel {
    /// The row of a kernel with this text.
    ///
    /// # Errors
    /// The kernels' table has no such kernel.
    pub fn of(name: &str, archs: Vec<String>, text: &str) -> Result<Self> {
        let entry = ENTRIES
            .iter()
            .find(|entry| entry.name == name)
            .with_context(|| format!("ENTRIES has no kernel `{name}`"))?;
        Ok(Self {
            name: name.to_owned(),
            archs,
            params_bytes: entry.params_bytes,
            threads: entry.threads,
            bytes: text.len(),
            sha256: hex(&Sha256::digest(text)),
        })
    }

    /// Whether this is the row of `text`.
    pub fn describes(&self, text: &str) -> bool {
        self.bytes == text.len() && self.sha256 == hex(&Sha256::digest(text))
    }
}

impl Manifest {
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

    /// The text of `manifest.json`: a line per kernel, so that a change of one is a change of a line.
    pub fn to_json(&self) -> String {
        const PLAIN: &str = "a manifest is plain data";
        let head = Self {
            kernels: Vec::new(),
            ..self.clone()
        };
        let json = serde_json::to_string_pretty(&head).expect(PLAIN);
        let head = json.strip_suffix("[]\n}").expect("kernels come last");
        let rows: Vec<String> = self
            .kernels
            .iter()
            .map(|kernel| format!("    {}", serde_json::to_string(kernel).expect(PLAIN)))
            .collect();
        format!("{head}[\n{}\n  ]\n}}\n", rows.join(",\n"))
    }

    /// What a set's crate says of it in Rust: `src/kernels.rs`.
    pub fn to_rust(&self) -> String {
        let names: Vec<String> = self
            .kernels
            .iter()
            .map(|kernel| format!("    {:?},\n", kernel.name))
            .collect();
        format!(
            "// Written by ferroattn-ptx-builder, as manifest.json.\n\
             set! {{\n    route: {:?};\n    compiler: {:?};\n    ptx_version: {:?};\n    source_sha256: {:?};\n    \
             archs: {:?};\n{}}}\n",
            self.route,
            self.compiler,
            self.ptx_version,
            self.source_sha256,
            self.archs,
            names.concat()
        )
    }

    /// The modules of all kernels in `dir`, in order; they are the ones this manifest speaks of, and there are no others.
    ///
    /// # Errors
    /// The first file that is missing or differs, or is one too many.
    pub fn read_files(&self, dir: &Path) -> Result<Vec<String>> {
        let mend = mend(&self.route);
        let read = |kernel: &ManifestKernel| {
            let text = packed::read(dir, &kernel.name)?;
            ensure!(
                kernel.describes(&text),
                "{} is not the file its manifest describes; mend it with `{mend}`",
                packed::path(dir, &kernel.name).display()
            );
            Ok(text)
        };
        let texts = self.kernels.iter().map(read).collect::<Result<_>>()?;
        for name in packed::names(dir)? {
            ensure!(
                self.kernels.iter().any(|kernel| kernel.name == name),
                "{} is not in the manifest; mend it with `{mend}`",
                packed::path(dir, &name).display()
            );
        }
        let rust = dir.join(packed::RUST_FILE);
        let there =
            fs::read_to_string(&rust).with_context(|| format!("cannot read {}", rust.display()))?;
        ensure!(
            there.replace("\r\n", "\n") == self.to_rust(),
            "{} does not say what its manifest says; mend it with `{mend}`",
            rust.display()
        );
        Ok(texts)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        let kernel = |name: &str| {
            ManifestKernel::of(name, vec!["sm_80".into()], &format!("text of {name}")).unwrap()
        };
        Manifest {
            schema: SCHEMA,
            route: "nvptx".into(),
            source_sha256: "0".repeat(64),
            compiler: "rustc".into(),
            flags: vec!["-x".into()],
            ptx_version: "8.1".into(),
            archs: vec!["sm_80".into()],
            kernels: vec![kernel(ENTRIES[0].name), kernel(ENTRIES[1].name)],
        }
    }

    #[test]
    fn a_kernel_is_a_line_and_is_read_again() {
        let manifest = manifest();
        let json = manifest.to_json();
        assert_eq!(
            serde_json::from_str::<Manifest>(&json).unwrap(),
            manifest,
            "{json}"
        );
        for kernel in &manifest.kernels {
            let line = json.lines().find(|line| line.contains(&kernel.name));
            assert!(line.unwrap().contains(&kernel.sha256), "{json}");
        }
    }

    #[test]
    fn a_row_describes_its_text_alone() {
        let kernel = &manifest().kernels[0];
        let text = format!("text of {}", kernel.name);
        assert!(kernel.describes(&text));
        assert!(!kernel.describes(&text.replace('t', "T")));
        assert!(!kernel.describes(&(text + " ")));
    }

    #[test]
    fn a_kernel_that_the_table_lacks_has_no_row() {
        let error = ManifestKernel::of("nothing", Vec::new(), "").unwrap_err();
        assert!(error.to_string().contains("nothing"), "{error}");
    }
}
