//! The names that operations take: what is read, what is refused and what `run --help` says come from one list.

use anyhow::bail;

use super::run::MOST_BYTES;
use crate::cases::named::{Entry, MOST_CHARS, Operation, listed, shortened};

/// An entry that some writers of safetensors files add, and nobody reads.
const WRITERS_ENTRY: &str = "format";

impl Operation {
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
