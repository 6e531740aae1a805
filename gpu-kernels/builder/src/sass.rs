//! What the assembler made of each entry: machine instructions, counted in NVIDIA's disassembly.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use gpu_kernels::entry::ENTRIES;

use crate::compile::output;

/// Counts over the code of one entry, as it stands: a loop's body counts once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sass {
    /// Instructions, without the padding after the last.
    pub instructions: u32,
    /// Loads of 16 bytes per lane from global memory, into registers (`LDG.128`) or shared memory
    /// (`LDGSTS.128`).
    pub wide_loads: u32,
}

/// NVIDIA's disassembler.
#[derive(Clone, Debug)]
pub struct Nvdisasm(PathBuf);

impl Nvdisasm {
    /// The one at `path`, the one that `FERROATTN_NVDISASM` names, or the one in PATH; none if it does not
    /// run.
    pub fn find(path: Option<PathBuf>) -> Option<Self> {
        let path = path
            .or_else(|| std::env::var_os("FERROATTN_NVDISASM").map(PathBuf::from))
            .unwrap_or_else(|| "nvdisasm".into());
        output(Command::new(&path).arg("--version"))
            .is_ok()
            .then_some(Self(path))
    }

    /// Counts of every entry in a file that the assembler wrote.
    ///
    /// # Errors
    /// The disassembler's messages.
    pub fn count(&self, cubin: &Path) -> Result<BTreeMap<String, Sass>> {
        let text = output(Command::new(&self.0).arg("-c").arg(cubin))
            .with_context(|| format!("disassembling {}", cubin.display()))?;
        Ok(parse(&text))
    }
}

/// Counts instructions by the section they lie in: `.text.<entry>`.
fn parse(text: &str) -> BTreeMap<String, Sass> {
    let mut all: BTreeMap<String, Sass> = BTreeMap::new();
    let mut current = None;
    for line in text.lines() {
        let line = line.trim_start();
        if let Some(section) = line.strip_prefix(".section") {
            let name = section.trim_start().split([',', ' ', '\t']).next();
            current = name
                .and_then(|name| name.trim_matches('"').strip_prefix(".text."))
                .filter(|name| ENTRIES.iter().any(|entry| entry.name == *name))
                .map(|name| all.entry(name.to_owned()).or_default());
        }
        let (Some(counts), Some(opcode)) = (current.as_deref_mut(), opcode(line)) else {
            continue;
        };
        if opcode == "NOP" {
            continue;
        }
        counts.instructions += 1;
        let mut parts = opcode.split('.');
        let loads = matches!(parts.next(), Some("LDG" | "LDGSTS"));
        counts.wide_loads += u32::from(loads && parts.any(|part| part == "128"));
    }
    all
}

/// The opcode of a line such as `/*0040*/  @!P0 LDG.E.128 R4, [R2] ;`.
fn opcode(line: &str) -> Option<&str> {
    let (_, instruction) = line.strip_prefix("/*")?.split_once("*/")?;
    instruction
        .split_whitespace()
        .find(|word| !word.starts_with('@'))
        .map(|word| word.trim_end_matches([';', ',']))
        .filter(|word| word.starts_with(|first: char| first.is_ascii_uppercase()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_are_counted_per_entry() {
        let text = "\
\t.section\t.text.merge_splits_bf16,\"ax\",@progbits
merge_splits_bf16:
.text.merge_splits_bf16:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/              @!P0 LDG.E.128.CONSTANT R4, desc[UR4][R2.64] ;
        /*0020*/                   LDGSTS.E.BYPASS.128 [R9], desc[UR4][R2.64] ;
        /*0030*/                   LDG.E.64 R4, desc[UR4][R2.64] ;
        /*0040*/                   STG.E.128 desc[UR4][R2.64], R4 ;
.L_x_0:
        /*0050*/                   EXIT ;
        /*0060*/                   NOP;
\t.section\t.text.unknown,\"ax\",@progbits
        /*0000*/                   EXIT ;
\t.section\t.text.check_slots,\"ax\",@progbits
        /*0000*/                   EXIT ;
";
        let counts = parse(text);
        assert_eq!(counts.len(), 2);
        assert_eq!(
            counts["merge_splits_bf16"],
            Sass {
                instructions: 6,
                wide_loads: 2
            }
        );
        assert_eq!(counts["check_slots"].instructions, 1);
    }
}
