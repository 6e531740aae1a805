//! Names that compilers number through a module: each kernel's begin with its place there, so that a kernel more would
//! rename those of all behind it. They are numbered as if each kernel were alone. And memory that a compiler declares, and
//! nothing uses.

use anyhow::{Result, ensure};

/// What such names begin with, ahead of the number: labels, and the memory in which registers are kept.
const COUNTED: [&str; 2] = ["$L__BB", "__local_depot"];

/// The text of one kernel, with the number of the first in all such names.
///
/// # Errors
/// Names have several numbers, so that two of them could become one.
pub(crate) fn numbered_by_itself(text: &str) -> Result<String> {
    let mut all = text.to_owned();
    for mark in COUNTED {
        let mut parts = all.split(mark);
        let mut renamed = parts.next().unwrap_or_default().to_owned();
        let mut own: Option<&str> = None;
        for part in parts {
            let rest = part.trim_start_matches(|c: char| c.is_ascii_digit());
            let number = &part[..part.len() - rest.len()];
            let own = *own.get_or_insert(number);
            ensure!(
                number == own,
                "names of {mark} are numbered {own} and {number}, as if of several kernels"
            );
            renamed += mark;
            if !number.is_empty() {
                renamed.push('0');
            }
            renamed += rest;
        }
        all = renamed;
    }
    Ok(all)
}

/// What a compiler declares for registers that it keeps in memory, and what the pointers to it begin with.
const LOCAL_MEMORY: [&str; 2] = ["__local_depot", "%SP"];

/// The text of one kernel, without local memory that nothing uses: rust-cuda's back end may leave the room of a value that it
/// moved to registers, and the assembler would set it aside.
pub(crate) fn without_unused_memory(text: &str) -> String {
    let declares = |line: &str| {
        let line = line.trim_start();
        (line.starts_with(".local ") || line.starts_with(".reg "))
            && LOCAL_MEMORY.iter().any(|name| line.contains(name))
    };
    let uses = |line: &str| !declares(line) && LOCAL_MEMORY.iter().any(|name| line.contains(name));
    if text.lines().any(uses) {
        return text.to_owned();
    }
    let used = text.lines().filter(|line| !declares(line));
    used.flat_map(|line| [line, "\n"]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_is_numbered_as_if_it_were_alone() {
        let of = |number: &str| {
            format!(
                "\t.local .align 4 .b8 __local_depot{number}[24];\n\
                 \tmov.b64 %SPL, __local_depot{number};\n\
                 $L__BB{number}_217:\n\
                 \t@%p217 bra $L__BB{number}_21;\n\
                 \tadd.s32 %r217, %r2, 217;\n\
                 $L__BB{number}_21:\n"
            )
        };
        assert_eq!(numbered_by_itself(&of("217")).unwrap(), of("0"));
        assert_eq!(numbered_by_itself(&of("0")).unwrap(), of("0"));
        let none = "\tret;\n";
        assert_eq!(numbered_by_itself(none).unwrap(), none);
    }

    #[test]
    fn memory_that_nothing_uses_is_left_out() {
        let of = |memory: &str, body: &str| {
            format!("{{\n{memory}\t.reg .b32 \t%r<3>;\n{body}\tret;\n}}\n")
        };
        let memory = "\t.local .align 8 .b8 \t__local_depot0[16];\n\t.reg .b64 \t%SP;\n\t.reg .b64 \t%SPL;\n";
        assert_eq!(without_unused_memory(&of(memory, "")), of("", ""));
        for body in [
            "\tmov.u64 \t%SPL, __local_depot0;\n",
            "\tst.local.u32 \t[%SP+4], %r1;\n",
        ] {
            let used = of(memory, body);
            assert_eq!(without_unused_memory(&used), used);
        }
        let none = of("", "");
        assert_eq!(without_unused_memory(&none), none);
    }

    #[test]
    fn two_names_do_not_become_one() {
        let error = numbered_by_itself("bra $L__BB2_1;\nbra $L__BB12_1;\n").unwrap_err();
        assert!(error.to_string().contains("2 and 12"), "{error}");
    }
}
