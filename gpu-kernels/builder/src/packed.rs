//! How PTX lies in the crate of a set: a compressed file per kernel, in which its modules follow one another, one for
//! each architecture. They say nearly the same, so that the second costs little; and a change of one kernel is a
//! change of one file.
//!
//! ```text
//! ptx/<route>/manifest.json
//! ptx/<route>/kernels/<kernel>.ptx.xz
//! ptx/<route>/src/kernels.rs            what the manifest says, for rustc
//! ```

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use lzma_rust2::{CheckType, XzOptions, XzReader, XzWriter};

/// The folder of the kernels in a set's.
const FOLDER: &str = "kernels";
const SUFFIX: &str = ".ptx.xz";
/// The manifest's twin.
pub const RUST_FILE: &str = "src/kernels.rs";

/// Where a kernel lies in the folder of a set.
pub fn path(dir: &Path, kernel: &str) -> PathBuf {
    dir.join(FOLDER).join(format!("{kernel}{SUFFIX}"))
}

/// The kernels that lie in the folder of a set, in alphabetical order.
///
/// # Errors
/// The folder cannot be read.
pub fn names(dir: &Path) -> Result<Vec<String>> {
    let folder = dir.join(FOLDER);
    let mut names = Vec::new();
    for entry in
        fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?
    {
        let name = entry?.file_name();
        let name = name.to_string_lossy();
        names.push(name.strip_suffix(SUFFIX).unwrap_or(&name).to_owned());
    }
    names.sort();
    Ok(names)
}

/// The modules of a kernel.
///
/// # Errors
/// The file is missing or damaged.
pub fn read(dir: &Path, kernel: &str) -> Result<String> {
    let path = path(dir, kernel);
    let cannot = || format!("cannot read {}", path.display());
    let bytes = fs::read(&path).with_context(cannot)?;
    let mut text = String::new();
    XzReader::new(&bytes[..], false)
        .read_to_string(&mut text)
        .with_context(cannot)?;
    Ok(text)
}

/// Writes the modules of a kernel, unless just these are there already.
///
/// # Errors
/// The folder cannot be written.
pub fn write(dir: &Path, kernel: &str, text: &str) -> Result<()> {
    if read(dir, kernel).is_ok_and(|there| there == text) {
        return Ok(());
    }
    let path = path(dir, kernel);
    let cannot = || format!("cannot write {}", path.display());
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(cannot)?;
    }
    fs::write(&path, pack(text)?).with_context(cannot)
}

/// Removes what is no kernel of `kernels`.
///
/// # Errors
/// The folder cannot be read or written.
pub fn remove_others(dir: &Path, kernels: &[&str]) -> Result<()> {
    for name in names(dir)? {
        if !kernels.contains(&&*name) {
            fs::remove_file(path(dir, &name))
                .with_context(|| format!("cannot remove {}", path(dir, &name).display()))?;
        }
    }
    Ok(())
}

/// Compresses a text. The same text gives the same bytes.
fn pack(text: &str) -> Result<Vec<u8>> {
    let mut options = XzOptions::with_preset(9);
    // Far more than a kernel's modules, and all that whoever unpacks them has to have.
    options.lzma_options.dict_size = 2 << 20;
    // For text: what a byte is depends on the one before, not on where it stands.
    options.lzma_options.lc = 4;
    options.lzma_options.pb = 0;
    options.lzma_options.nice_len = 273;
    options.set_check_sum_type(CheckType::Crc64);
    let mut writer = XzWriter::new(Vec::new(), options)?;
    writer.write_all(text.as_bytes())?;
    Ok(writer.finish()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("ferroattn-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        dir
    }

    #[test]
    fn what_is_written_is_read_and_the_same_bytes_each_time() {
        let text: String = (0..20_000)
            .map(|line| format!("mov.b32 %r{line}, 0;\n"))
            .collect();
        let dir = folder("packed");
        write(&dir, "a", &text).unwrap();
        assert_eq!(read(&dir, "a").unwrap(), text);
        let bytes = fs::read(path(&dir, "a")).unwrap();
        assert!(bytes.len() * 10 < text.len(), "{} bytes", bytes.len());
        assert_eq!(pack(&text).unwrap(), bytes);
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_damaged_file_is_an_error_and_others_go() {
        let dir = folder("damaged");
        for name in ["a", "b"] {
            write(&dir, name, "text").unwrap();
        }
        assert_eq!(names(&dir).unwrap(), ["a", "b"]);
        let mut bytes = fs::read(path(&dir, "a")).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(path(&dir, "a"), bytes).unwrap();
        let error = read(&dir, "a").unwrap_err();
        assert!(error.to_string().contains("a.ptx.xz"), "{error}");
        remove_others(&dir, &["a"]).unwrap();
        assert_eq!(names(&dir).unwrap(), ["a"]);
        fs::remove_dir_all(&dir).unwrap();
    }
}
