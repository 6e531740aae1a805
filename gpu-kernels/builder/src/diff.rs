//! What changed between two sets of one route, kernel by kernel and architecture by architecture. Names do not count: a
//! kernel that is called otherwise but says the same was renamed. This is how a change of the source that should change
//! nothing for a GPU is held to it.

use std::collections::BTreeMap;
use std::fmt;

use crate::ptx;
use crate::ptx_set::PtxSet;

/// What became of the kernels of an older set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Diff {
    /// Modules that are the same.
    pub same: usize,
    /// Kernels that are the same by another name: the old, the new.
    pub renamed: Vec<(String, String)>,
    /// Modules that say something else.
    pub changed: Vec<Changed>,
    /// Kernels that are gone.
    pub gone: Vec<String>,
    /// Kernels that were not there.
    pub new: Vec<String>,
}

/// A module before and after.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changed {
    /// The PTX symbol.
    pub kernel: String,
    /// The architecture.
    pub arch: String,
    /// Lines of PTX before, and after.
    pub lines: [usize; 2],
    /// Whether it is the same instructions, in another order or in registers with other numbers.
    pub same_instructions: bool,
}

/// Kernels by name, each with its modules.
type Kernels<'s> = BTreeMap<&'s str, &'s str>;

fn kernels(set: &PtxSet) -> Kernels<'_> {
    let names = set.manifest.kernels.iter().map(|kernel| &*kernel.name);
    names.zip(set.texts.iter().map(String::as_str)).collect()
}

/// A text without the name of its kernel.
fn nameless(name: &str, text: &str) -> String {
    text.replace(&format!(" {name}("), " @(")
        .replace(&format!("{name}_param_"), "@_param_")
}

/// The instructions of a module, sorted, without the numbers of registers and labels.
fn instructions(module: &str) -> Vec<String> {
    let mut lines: Vec<String> = module
        .lines()
        .map(|line| {
            let mut words = line.split('%');
            let mut bare = words.next().unwrap_or_default().to_owned();
            for word in words {
                bare.push('%');
                // A register is its kind and a number; special ones such as %tid.x have none.
                let kind = word.trim_start_matches(|c: char| c.is_ascii_lowercase());
                bare.push_str(&word[..word.len() - kind.len()]);
                bare.push_str(kind.trim_start_matches(|c: char| c.is_ascii_digit()));
            }
            match bare.find("BB") {
                Some(label) => bare[..label].to_owned(),
                None => bare,
            }
        })
        .collect();
    lines.sort_unstable();
    lines
}

impl Diff {
    /// Compares two sets.
    pub fn of(old: &PtxSet, new: &PtxSet) -> Self {
        let (before, mut after) = (kernels(old), kernels(new));
        let mut diff = Self::default();
        let mut missing: Kernels<'_> = BTreeMap::new();
        for (name, text) in before {
            match after.remove(name) {
                Some(now) => diff.modules(old, new, name, [text, now]),
                None => {
                    missing.insert(name, text);
                }
            }
        }
        for (name, text) in missing {
            let says = nameless(name, text);
            let twin = after
                .iter()
                .find(|&(other, now)| nameless(other, now) == says)
                .map(|(&other, _)| other);
            match twin {
                Some(other) => {
                    after.remove(other);
                    diff.renamed.push((name.to_owned(), other.to_owned()));
                }
                None => diff.gone.push(name.to_owned()),
            }
        }
        diff.new = after.into_keys().map(str::to_owned).collect();
        diff
    }

    /// Compares the modules of the kernel `name`.
    fn modules(&mut self, old: &PtxSet, new: &PtxSet, name: &str, [before, after]: [&str; 2]) {
        let mut archs: Vec<&String> = [old, new]
            .iter()
            .flat_map(|set| &set.manifest.archs)
            .collect();
        archs.sort();
        archs.dedup();
        for arch in archs {
            let sides = [before, after].map(|text| ptx::module(text, arch).unwrap_or_default());
            if sides == ["", ""] {
                continue;
            }
            if sides[0] == sides[1] {
                self.same += 1;
            } else {
                self.changed.push(Changed {
                    kernel: name.to_owned(),
                    arch: arch.clone(),
                    lines: sides.map(|side| side.lines().count()),
                    same_instructions: instructions(sides[0]) == instructions(sides[1]),
                });
            }
        }
    }

    /// Whether a GPU would run the same, by whatever name.
    pub fn is_the_same_work(&self) -> bool {
        self.changed.is_empty() && self.gone.is_empty() && self.new.is_empty()
    }
}

impl fmt::Display for Diff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Changed {
            kernel,
            arch,
            lines: [before, after],
            same_instructions,
        } in &self.changed
        {
            write!(f, "changed  {kernel} {arch}: {before} lines, now {after}")?;
            writeln!(
                f,
                "{}",
                if *same_instructions {
                    ", the same instructions in another order or other registers"
                } else {
                    ""
                }
            )?;
        }
        for (old, new) in &self.renamed {
            writeln!(f, "renamed  {old}, now {new}")?;
        }
        for name in &self.gone {
            writeln!(f, "gone     {name}")?;
        }
        for name in &self.new {
            writeln!(f, "new      {name}")?;
        }
        write!(
            f,
            "{} modules are the same, {} changed; {} kernels renamed, {} gone, {} new",
            self.same,
            self.changed.len(),
            self.renamed.len(),
            self.gone.len(),
            self.new.len()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::{Manifest, ManifestKernel, SCHEMA};

    fn set(kernels: &[(&str, &str)]) -> PtxSet {
        let text = |name: &str, body: &str| {
            format!(".version 8.1\n.target sm_80\n.visible .entry {name}(\n)\n{{\n{body}\n}}\n")
        };
        PtxSet {
            manifest: Manifest {
                schema: SCHEMA,
                route: "nvptx".into(),
                source_sha256: String::new(),
                compiler: String::new(),
                flags: Vec::new(),
                ptx_version: "8.1".into(),
                archs: vec!["sm_80".into()],
                kernels: kernels
                    .iter()
                    .map(|(name, _)| ManifestKernel {
                        name: (*name).to_owned(),
                        archs: vec!["sm_80".into()],
                        params_bytes: 0,
                        threads: 0,
                        bytes: 0,
                        sha256: String::new(),
                    })
                    .collect(),
            },
            texts: kernels
                .iter()
                .map(|(name, body)| text(name, body))
                .collect(),
        }
    }

    #[test]
    fn another_name_is_no_change_and_another_body_is() {
        let old = set(&[("a", "ret;"), ("b", "trap;")]);
        let renamed = Diff::of(&old, &set(&[("a", "ret;"), ("c", "trap;")]));
        assert_eq!(renamed.renamed, [("b".to_owned(), "c".to_owned())]);
        assert!(renamed.is_the_same_work() && renamed.same == 1, "{renamed}");

        let changed = Diff::of(&old, &set(&[("a", "bar.sync 0;\nret;"), ("b", "trap;")]));
        assert_eq!(changed.changed[0].lines, [7, 8]);
        assert!(!changed.changed[0].same_instructions);
        assert!(!changed.is_the_same_work());
        assert!(
            changed
                .to_string()
                .contains("changed  a sm_80: 7 lines, now 8")
        );
    }

    #[test]
    fn other_registers_and_another_order_are_told_from_other_instructions() {
        let of = |body| set(&[("a", body)]);
        let old = of("mov.b32 %r1, %tid.x;\n$L__BB0_1:\nadd.s32 %r2, %r1, 1;");
        let same = of("mov.b32 %r7, %tid.x;\nadd.s32 %r3, %r7, 1;\n$L__BB0_4:");
        let other = of("mov.b32 %r1, %tid.x;\n$L__BB0_1:\nadd.s32 %r2, %r1, 2;");
        let same_instructions = |new| Diff::of(&old, &new).changed[0].same_instructions;
        assert!(same_instructions(same));
        assert!(!same_instructions(other));
    }

    #[test]
    fn what_comes_and_goes_is_named() {
        let diff = Diff::of(&set(&[("a", "ret;")]), &set(&[("b", "trap;")]));
        assert_eq!(
            (&diff.gone[..], &diff.new[..]),
            (&["a".to_owned()][..], &["b".to_owned()][..])
        );
        assert!(!diff.is_the_same_work());
    }
}
