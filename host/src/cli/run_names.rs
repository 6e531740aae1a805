//! The names that operations take: what is read, what is refused and what `run --help` says come from one list.

use std::fmt::Debug;

use anyhow::{Context, bail};

use super::run_job::{Inputs, MOST_BYTES};
use crate::reference::HostTensor;
use crate::runtime::Runtime;

/// An entry that some writers of safetensors files add, and nobody reads.
const WRITERS_ENTRY: &str = "format";
/// As much of somebody's text as messages repeat, and are compared with names.
const MOST_CHARS: usize = 64;

/// One that `run` runs.
#[derive(Debug)]
pub(super) struct Operation {
    pub(super) name: &'static str,
    /// What it does, in a line.
    pub(super) about: &'static str,
    /// The tensors that it reads, or writes into.
    pub(super) tensors: Names<&'static str>,
    pub(super) metadata: Names<&'static dyn Entry>,
    /// Which of those that may be left out go together, if not all do: what for, then names.
    pub(super) choices: &'static [&'static str],
    pub(super) writes: &'static str,
    pub(super) run: fn(&Inputs<'_>, &dyn Runtime) -> anyhow::Result<Vec<HostTensor>>,
}

/// Names that a file must have, and those that it may have.
#[derive(Debug)]
pub(super) struct Names<N: 'static> {
    pub(super) needed: &'static [N],
    pub(super) optional: &'static [N],
}

/// Makes of a text what it means, if it can.
type Read<T> = fn(&str) -> Option<T>;

/// An entry of the metadata.
#[derive(Debug)]
pub(super) struct Key<T: 'static> {
    name: &'static str,
    /// What it may be, and what that means.
    words: &'static [(&'static str, T)],
    /// What else it may be, and how that is read.
    other: Option<(&'static str, Read<T>)>,
}

/// The same, whatever it means.
pub(super) trait Entry: Debug + Sync {
    fn name(&self) -> &'static str;
    /// What it may be.
    fn values(&self) -> String;
}

impl Operation {
    pub(super) fn takes_tensor(&self, name: &str) -> bool {
        self.tensors.all().any(|&other| other == name)
    }

    pub(super) fn takes_entry(&self, name: &str) -> bool {
        self.metadata.all().any(|other| other.name() == name)
    }

    /// Refuses a file with names that the operation does not take; `all` are the operations that there are.
    pub(super) fn refuse_unknown<'n>(
        &self,
        mut tensors: impl Iterator<Item = &'n str>,
        mut metadata: impl Iterator<Item = &'n str>,
        all: &[&Operation],
    ) -> anyhow::Result<()> {
        let op = self.name;
        let others = |takes: &dyn Fn(&Operation) -> bool| {
            let others = all.iter().filter(|other| takes(other));
            let others: Vec<_> = others.map(|other| other.name).collect();
            match others[..] {
                [] => String::new(),
                _ => format!(" ({} has it)", listed(&others, "and")),
            }
        };
        if let Some(name) = tensors.find(|name| !self.takes_tensor(name)) {
            let shown = shortened(name);
            if self.takes_entry(name) {
                bail!("{op} takes `{shown}` from the metadata, not as a tensor");
            }
            let others = others(&|other| other.takes_tensor(name));
            let nearest = nearest(name, self.tensors.all().copied());
            bail!(
                "{op} takes no tensor `{shown}`{others}; the nearest that it takes is `{nearest}`"
            );
        }
        let is_unknown = |name: &&str| !self.takes_entry(name) && *name != WRITERS_ENTRY;
        if let Some(name) = metadata.find(is_unknown) {
            let shown = shortened(name);
            if self.takes_tensor(name) {
                bail!("{op} takes `{shown}` as a tensor, not from the metadata");
            }
            let others = others(&|other| other.takes_entry(name));
            let mine = self.metadata.all().map(|entry| entry.name());
            if mine.clone().next().is_none() {
                bail!("{op} takes no metadata, but the file's has `{shown}`{others}");
            }
            let nearest = nearest(name, mine);
            bail!(
                "{op} takes no metadata `{shown}`{others}; the nearest that it takes is `{nearest}`"
            );
        }
        Ok(())
    }
}

impl<N> Names<N> {
    pub(super) const NONE: Self = Self {
        needed: &[],
        optional: &[],
    };

    pub(super) fn all(&self) -> impl Iterator<Item = &N> + Clone {
        self.needed.iter().chain(self.optional)
    }

    /// All of them, those that may be left out in brackets.
    fn listed(&self, name: impl Fn(&N) -> &'static str) -> String {
        let join = |names: &[N]| names.iter().map(&name).collect::<Vec<_>>().join(", ");
        match (join(self.needed), join(self.optional)) {
            (needed, none) if none.is_empty() => needed,
            (none, optional) if none.is_empty() => format!("[{optional}]"),
            (needed, optional) => format!("{needed}, [{optional}]"),
        }
    }
}

impl Key<f32> {
    pub(super) const fn number(name: &'static str) -> Self {
        Self::other(name, "a number", |text| text.parse().ok())
    }
}

impl Key<u32> {
    pub(super) const fn count(name: &'static str) -> Self {
        Self::other(name, "a whole number below 2^32", |text| text.parse().ok())
    }
}

impl Key<bool> {
    /// As Rust, C and Python write it.
    pub(super) const fn truth(name: &'static str) -> Self {
        Self::other(name, "true or false", |text| {
            match &*text.to_ascii_lowercase() {
                "true" | "1" => Some(true),
                "false" | "0" => Some(false),
                _ => None,
            }
        })
    }
}

impl<T> Key<T> {
    /// One of some words.
    pub(super) const fn words(name: &'static str, words: &'static [(&'static str, T)]) -> Self {
        Self {
            name,
            words,
            other: None,
        }
    }

    const fn other(name: &'static str, what: &'static str, read: Read<T>) -> Self {
        Self {
            name,
            words: &[],
            other: Some((what, read)),
        }
    }

    /// Or what `read` can read; `what` says what that is.
    pub(super) const fn or(self, what: &'static str, read: Read<T>) -> Self {
        let Self { name, words, .. } = self;
        Self {
            name,
            words,
            other: Some((what, read)),
        }
    }
}

impl<T: Copy + Debug + Sync> Key<T> {
    pub(super) fn name(&self) -> &'static str {
        self.name
    }

    /// What the text of the entry means.
    pub(super) fn read(&self, text: &str) -> anyhow::Result<T> {
        let word = text.trim();
        let known = self.words.iter().find(|(known, _)| *known == word);
        let value = match (known, self.other) {
            (Some(&(_, value)), _) => Some(value),
            (None, Some((_, read))) => read(word),
            (None, None) => None,
        };
        value.with_context(|| {
            let (name, shown) = (self.name, shortened(text));
            format!(
                "the metadata's {name} is `{shown}`; it may be {}",
                self.values()
            )
        })
    }
}

impl<T: Copy + Debug + Sync> Entry for Key<T> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn values(&self) -> String {
        let words = self.words.iter().map(|(word, _)| *word);
        let other = self.other.iter().map(|(what, _)| *what);
        listed(&words.chain(other).collect::<Vec<_>>(), "or")
    }
}

/// What `run --help` says after the options: the names of each operation, and what entries may be.
pub(super) fn help(operations: &[&Operation]) -> String {
    let mut text = wrapped(
        0,
        &format!(
            "An operation reads tensors, with the shapes and dtypes of the library's request, and entries of the file's \
             metadata. What stands in brackets may be left out. Names that an operation does not take, or has no use for, \
             are refused, but for the entry `{WRITERS_ENTRY}`, which some programs write into every file. Indices are \
             checked. Results may have {gibibytes} GiB in all, the workspace as many.",
            gibibytes = MOST_BYTES >> 30
        ),
    );
    let mut entries: Vec<&dyn Entry> = Vec::new();
    for op in operations {
        text += &format!("\n{}: {}\n", op.name, op.about);
        text += &wrapped(2, &format!("tensors: {}", op.tensors.listed(|name| name)));
        let metadata = op.metadata.listed(|entry| entry.name());
        if !metadata.is_empty() {
            text += &wrapped(2, &format!("metadata: {metadata}"));
        }
        for choice in op.choices {
            text += &wrapped(2, &format!("for {choice}"));
        }
        text += &wrapped(2, &format!("writes: {}", op.writes));
        for &entry in op.metadata.all() {
            if !entries.iter().any(|other| other.name() == entry.name()) {
                entries.push(entry);
            }
        }
    }
    text += "\nmetadata:\n";
    for entry in entries {
        text += &wrapped(2, &format!("{}: {}", entry.name(), entry.values()));
    }
    text
}

/// Words in lines that fit a terminal, `indent` spaces ahead of the first and twice as many ahead of others.
fn wrapped(indent: usize, words: &str) -> String {
    const MOST_COLUMNS: usize = 100;
    let mut text = " ".repeat(indent);
    let mut columns = indent;
    for (at, word) in words.split(' ').enumerate() {
        if at > 0 && columns + 1 + word.len() > MOST_COLUMNS {
            text += "\n";
            text += &" ".repeat(2 * indent);
            columns = 2 * indent;
        } else if at > 0 {
            text += " ";
            columns += 1;
        }
        text += word;
        columns += word.len();
    }
    text + "\n"
}

/// The one of `names` that looks most like `name`.
fn nearest<'n>(name: &str, names: impl Iterator<Item = &'n str>) -> &'n str {
    let name: String = name.chars().take(MOST_CHARS).collect();
    let name = name.to_lowercase();
    // Misspelt names are few edits away, others of the same words share pairs of letters.
    let likeness = |other: &str| {
        strsim::normalized_damerau_levenshtein(&name, other) + strsim::sorensen_dice(&name, other)
    };
    names
        .max_by(|a, b| likeness(a).total_cmp(&likeness(b)))
        .expect("an operation takes some name")
}

/// Names as a sentence has them.
fn listed(names: &[&str], before_last: &str) -> String {
    match names {
        [all @ .., last] if !all.is_empty() => format!("{} {before_last} {last}", all.join(", ")),
        _ => names.join(""),
    }
}

/// The beginning of a text from a file, in one line.
fn shortened(text: &str) -> String {
    let mut shown: String = text
        .chars()
        .take(MOST_CHARS)
        .flat_map(char::escape_debug)
        .collect();
    if text.chars().nth(MOST_CHARS).is_some() {
        shown += "...";
    }
    shown
}
