//! PTX as text: the normal form in which kernels are kept, and what can be read off them.
//!
//! In normal form a kernel is a module of its own for each architecture: a preamble (version, target, shared memory,
//! functions), which all kernels of an architecture share, and the entry, from `.visible .entry` to a `}` in the first
//! column. A module begins with `.version`; where several follow one another, that is where they are told apart.

use anyhow::{Context, Result, bail, ensure};
use gpu_kernels::entry::{Arch, ENTRIES, Entry};

use crate::labels;

/// How an entry begins.
pub const ENTRY_MARK: &str = ".visible .entry ";
/// How a module begins.
const VERSION_MARK: &str = ".version ";

/// PTX ISA version that all files say. Compilers write the newest they know, which asks for a driver as new;
/// the kernels use nothing that came later, or the assembler would refuse the files.
pub const VERSION: &str = gpu_kernels::entry::arch::PTX_VERSION;

/// A kernel for one architecture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// The PTX symbol.
    pub name: &'static str,
    /// Preamble and entry.
    pub text: String,
}

/// Brings a compiler's PTX into normal form: a module per kernel, in alphabetical order, with no comments or debug
/// lines, of [`VERSION`], launch bounds written after the entry's parameters, labels numbered as if there were no other.
///
/// # Errors
/// The entries in the text are not the ones that [`ENTRIES`] has for `arch`, or a parameter block has another size.
pub fn normalise(raw: &str, arch: &str) -> Result<Vec<Module>> {
    let mut preamble = String::new();
    let mut entries: Vec<(&'static Entry, String)> = Vec::new();
    let mut lines = raw.lines().filter_map(clean);
    while let Some(line) = lines.next() {
        if let Some(written) = line.strip_prefix(VERSION_MARK) {
            ensure!(
                number(written)? >= number(VERSION)?,
                "the PTX is of version {written}, too old for the kernels: {VERSION} is needed"
            );
            push(&mut preamble, &format!("{VERSION_MARK}{VERSION}"));
            continue;
        }
        let Some(rest) = line.strip_prefix(ENTRY_MARK) else {
            push(&mut preamble, line);
            continue;
        };
        let name = rest.trim_end_matches(['(', ')', ' ']);
        let entry = ENTRIES
            .iter()
            .find(|entry| entry.name == name && is_in(entry, arch))
            .with_context(|| {
                format!("the PTX has an entry `{name}` that ENTRIES does not have for {arch}")
            })?;
        let mut text = String::new();
        push(&mut text, line);
        for line in lines.by_ref() {
            if line == "{" {
                push(&mut text, &format!(".maxntid {}, 1, 1", entry.threads));
                push(&mut text, &format!(".minnctapersm {}", entry.min_ctas));
            }
            push(&mut text, line);
            if line == "}" {
                break;
            }
        }
        check_params(entry, &text)?;
        let text = labels::numbered_by_itself(&labels::without_unused_memory(&text))
            .with_context(|| format!("in `{name}`"))?;
        entries.push((entry, text));
    }
    for entry in ENTRIES.iter().filter(|entry| is_in(entry, arch)) {
        ensure!(
            entries.iter().any(|(found, _)| found.name == entry.name),
            "the PTX lacks the entry `{}`",
            entry.name
        );
    }
    entries.sort_by_key(|(entry, _)| entry.name);
    Ok(entries
        .into_iter()
        .map(|(entry, text)| Module {
            name: entry.name,
            text: format!("{preamble}{text}"),
        })
        .collect())
}

/// Whether PTX of an architecture holds a kernel.
fn is_in(entry: &Entry, arch: &str) -> bool {
    Arch::named(arch).is_some_and(|arch| entry.archs.contains(arch))
}

/// The module for `arch` among those of a kernel, which follow one another.
pub fn module<'m>(modules: &'m str, arch: &str) -> Option<&'m str> {
    let starts: Vec<usize> = modules
        .match_indices(VERSION_MARK)
        .map(|(at, _)| at)
        .collect();
    let ends = starts.iter().copied().skip(1).chain([modules.len()]);
    starts
        .iter()
        .zip(ends)
        .map(|(&start, end)| &modules[start..end])
        .find(|module| {
            module
                .lines()
                .any(|line| line.strip_prefix(".target ") == Some(arch))
        })
}

/// One file of several kernels' modules for the same architecture, for the assembler.
///
/// # Errors
/// One is no module, or has another preamble.
pub fn join<'m>(modules: impl IntoIterator<Item = &'m str>) -> Result<String> {
    let mut file = String::new();
    let mut shared: Option<&str> = None;
    for module in modules {
        let at = module.find(ENTRY_MARK).context("a module has no entry")?;
        let (preamble, entry) = module.split_at(at);
        match shared {
            None => {
                shared = Some(preamble);
                file += preamble;
            }
            Some(shared) => ensure!(
                shared == preamble,
                "kernels of one architecture begin differently:\n{shared}\n{preamble}"
            ),
        }
        file += entry;
    }
    Ok(file)
}

/// `.version` of a module, such as "7.8".
///
/// # Errors
/// It has none.
pub fn version(ptx: &str) -> Result<&str> {
    ptx.lines()
        .find_map(|line| line.strip_prefix(VERSION_MARK))
        .map(str::trim)
        .context("the PTX has no .version line")
}

/// The version of libNVVM in the comment with which its PTX begins, such as "12.9.86".
pub fn libnvvm_version(raw: &str) -> Option<&str> {
    raw.lines()
        .take_while(|line| line.is_empty() || line.starts_with("//"))
        .find_map(|line| {
            line.split_once("Cuda compilation tools")?
                .1
                .split_once(", V")
        })
        .map(|(_, version)| version.trim())
}

/// A version as numbers that compare.
fn number(version: &str) -> Result<(u32, u32)> {
    version
        .trim()
        .split_once('.')
        .and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)))
        .with_context(|| format!("`{version}` is no version of PTX"))
}

fn push(text: &mut String, line: &str) {
    text.push_str(line);
    text.push('\n');
}

/// A line without comment and trailing blanks, or `None` if nothing is left that a GPU needs.
fn clean(line: &str) -> Option<&str> {
    let line = line.split("//").next().unwrap_or_default().trim_end();
    // Whole words: `.local` is no `.loc`.
    let word = line.split_whitespace().next()?;
    (![".file", ".loc", ".section"].contains(&word)).then_some(line)
}

/// Both sides of a launch must mean the same number of bytes.
fn check_params(entry: &Entry, text: &str) -> Result<()> {
    let params: Vec<&str> = text
        .lines()
        .map(str::trim)
        .filter(|line| line.starts_with(".param") && line.contains("_param_"))
        .take_while(|line| !line.contains(';'))
        .collect();
    let [param] = params[..] else {
        bail!(
            "`{}` has {} parameters in PTX instead of one block",
            entry.name,
            params.len()
        );
    };
    let bytes = param
        .rsplit_once('[')
        .and_then(|(_, rest)| rest.trim_end_matches([']', ',']).parse().ok());
    ensure!(
        bytes == Some(entry.params_bytes),
        "`{}` takes {} bytes of parameters on the host, but in PTX `{param}`",
        entry.name,
        entry.params_bytes
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use gpu_kernels::entry::Arch;

    use super::*;

    const ARCH: &str = Arch::Sm90.name();
    const HOPPER: &str = Arch::Sm90a.name();

    fn of(arch: &str) -> impl DoubleEndedIterator<Item = &'static Entry> {
        ENTRIES.iter().filter(move |entry| is_in(entry, arch))
    }

    fn raw(names: impl Iterator<Item = &'static Entry>) -> String {
        let mut text =
            String::from("//\n// banner\n//\n.version 8.8\n.target sm_90 // x\n\n.file 1 \"/x\"\n");
        for entry in names {
            text += &format!(
                "\t// .globl\t{0}\n.visible .entry {0}(\n\t.param .align 8 .b8 {0}_param_0[{1}]\n)\n{{\n\tret;\n\n}}\n",
                entry.name, entry.params_bytes
            );
        }
        text
    }

    #[test]
    fn order_and_comments_do_not_matter() {
        let forward = normalise(&raw(of(ARCH)), ARCH).unwrap();
        let backward = normalise(&raw(of(ARCH).rev()), ARCH).unwrap();
        assert_eq!(forward, backward);
        assert!(forward.is_sorted_by_key(|module| module.name));
        for Module { text, .. } in &forward {
            assert!(!text.contains("//") && !text.contains(".file"));
            assert!(text.contains(")\n.maxntid "));
            assert_eq!(text.matches(ENTRY_MARK).count(), 1);
            assert_eq!(version(text).unwrap(), VERSION);
        }
    }

    #[test]
    fn debug_lines_go_and_local_memory_stays() {
        for line in [
            "\t.loc 1 2 3",
            "\t.loc\t1 2 3",
            ".file 1 \"/x\"",
            "  // a",
            "",
            "\t",
        ] {
            assert_eq!(clean(line), None, "{line:?}");
        }
        let local = "\t.local .align 4 .b8 __local_depot0[512];";
        assert_eq!(clean(local), Some(local));
        assert_eq!(clean("\tret; // done"), Some("\tret;"));
    }

    #[test]
    fn a_version_is_lowered_but_never_raised() {
        let new = raw(of(ARCH)).replace(".version 8.8", ".version 10.0");
        let modules = normalise(&new, ARCH).unwrap();
        assert_eq!(version(&modules[0].text).unwrap(), VERSION);
        let old = raw(of(ARCH)).replace(".version 8.8", ".version 7.8");
        let error = normalise(&old, ARCH).unwrap_err();
        assert!(error.to_string().contains("7.8"), "{error}");
    }

    #[test]
    fn libnvvm_signs_its_output() {
        let signed = "//\n// Generated by NVIDIA NVVM Compiler\n//\n// Cuda compilation tools, release 12.9, V12.9.86\n//\n\n.version 8.8\n";
        assert_eq!(libnvvm_version(signed), Some("12.9.86"));
        assert_eq!(libnvvm_version(".version 8.8\n"), None);
    }

    #[test]
    fn a_kernel_does_not_depend_on_those_ahead() {
        let label = |raw: &str| {
            let mut number = 0..;
            raw.split_inclusive("\tret;")
                .map(|entry| {
                    let n = number.next().unwrap();
                    entry.replace(
                        "\tret;",
                        &format!("$L__BB{n}_1:\n\tbra $L__BB{n}_1;\n\tret;"),
                    )
                })
                .collect::<String>()
        };
        let forward = normalise(&label(&raw(of(ARCH))), ARCH).unwrap();
        let backward = normalise(&label(&raw(of(ARCH).rev())), ARCH).unwrap();
        assert_eq!(forward, backward);
        assert!(forward[1].text.contains("bra $L__BB0_1;"));
    }

    #[test]
    fn a_missing_entry_is_named() {
        let error = normalise(&raw(of(ARCH).skip(1)), ARCH).unwrap_err();
        assert!(error.to_string().contains(ENTRIES[0].name), "{error}");
    }

    #[test]
    fn a_file_holds_what_is_for_its_architecture_alone() {
        for (entries, arch) in [(HOPPER, ARCH), (ARCH, HOPPER)] {
            assert!(normalise(&raw(of(arch)), arch).is_ok());
            let name = of(entries).next().unwrap().name;
            let error = normalise(&raw(of(arch).chain(of(entries))), arch).unwrap_err();
            assert!(error.to_string().contains(name), "{error}");
        }
    }

    #[test]
    fn modules_are_told_apart_and_joined() {
        let a = |arch| format!(".version 8.1\n.target {arch}\n{ENTRY_MARK}a(\n)\n{{\nret;\n}}\n");
        let both = a("sm_90") + &a("sm_90a");
        assert_eq!(module(&both, "sm_90"), Some(&*a("sm_90")));
        assert_eq!(module(&both, "sm_90a"), Some(&*a("sm_90a")));
        assert_eq!(module(&both, "sm_80"), None);
        let b = a("sm_90").replace(" a(", " b(");
        let file = join([&*a("sm_90"), &*b]).unwrap();
        assert_eq!(file.matches(".version").count(), 1);
        assert_eq!(file.matches(ENTRY_MARK).count(), 2);
        assert!(join([&*a("sm_90"), &*a("sm_80")]).is_err());
        assert!(join(["nothing"]).is_err());
    }

    #[test]
    fn another_parameter_size_is_refused() {
        let text = raw(of(ARCH)).replacen(
            &format!("_param_0[{}]", ENTRIES[0].params_bytes),
            "_param_0[4]",
            1,
        );
        let error = normalise(&text, ARCH).unwrap_err();
        assert!(error.to_string().contains("bytes of parameters"), "{error}");
    }
}
