//! Entries of a file's metadata: what they may be, and what that means.

use std::fmt::Debug;

use anyhow::Context;

use super::words::{listed, shortened};

/// Makes of a text what it means, if it can.
type Read<T> = fn(&str) -> Option<T>;

/// An entry of the metadata.
#[derive(Debug)]
pub(crate) struct Key<T: 'static> {
    name: &'static str,
    /// What it may be, and what that means.
    words: &'static [(&'static str, T)],
    /// What else it may be, and how that is read.
    other: Option<(&'static str, Read<T>)>,
}

/// The same, whatever it means.
pub(crate) trait Entry: Debug + Sync {
    fn name(&self) -> &'static str;
    /// What it may be.
    fn values(&self) -> String;
}

/// Tokens per block, of caches whose shape does not say it.
pub(crate) static BLOCK_SIZE: Key<u32> = Key::count("block_size");

impl Key<f32> {
    pub(crate) const fn number(name: &'static str) -> Self {
        Self::other(name, "a number", |text| text.parse().ok())
    }
}

impl Key<u32> {
    pub(crate) const fn count(name: &'static str) -> Self {
        Self::other(name, "a whole number below 2^32", |text| text.parse().ok())
    }
}

impl Key<bool> {
    /// As Rust, C and Python write it.
    pub(crate) const fn truth(name: &'static str) -> Self {
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
    pub(crate) const fn words(name: &'static str, words: &'static [(&'static str, T)]) -> Self {
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
    pub(crate) const fn or(self, what: &'static str, read: Read<T>) -> Self {
        let Self { name, words, .. } = self;
        Self {
            name,
            words,
            other: Some((what, read)),
        }
    }
}

impl<T: Copy + Debug + Sync> Key<T> {
    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    /// What the text of the entry means.
    pub(crate) fn read(&self, text: &str) -> anyhow::Result<T> {
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
