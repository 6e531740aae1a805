//! The fingerprint of the kernels' source, by which PTX is known to be of it. The build script of `ferroattn` and the
//! builder both compile this file.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// The kernels' source files, relative to `kernels_dir`, sorted.
///
/// # Errors
/// A folder cannot be read.
pub fn source_files(kernels_dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut dirs = vec![PathBuf::from("src")];
    while let Some(dir) = dirs.pop() {
        let full = kernels_dir.join(&dir);
        for entry in fs::read_dir(&full).map_err(|error| named(error, &full))? {
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

/// SHA-256 over path, length and contents of every file of the kernels' source. Line ends count as `\n`, however they
/// were checked out.
///
/// # Errors
/// A file cannot be read.
pub fn fingerprint(kernels_dir: &Path) -> io::Result<String> {
    let mut hash = Sha256::new();
    for path in source_files(kernels_dir)? {
        let full = kernels_dir.join(&path);
        let text = fs::read_to_string(&full).map_err(|error| named(error, &full))?;
        let text = text.replace("\r\n", "\n");
        let name: Vec<_> = path.iter().map(|part| part.to_string_lossy()).collect();
        hash.update(format!("{} {}\n", name.join("/"), text.len()));
        hash.update(text);
    }
    Ok(hex(&hash.finalize()))
}

/// Bytes as hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn named(error: io::Error, path: &Path) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}
