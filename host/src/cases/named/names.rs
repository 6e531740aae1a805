//! Names of an operation's tensors, or of its entries of metadata.

use super::key::Entry;

/// Names that a file must have, and those that it may have.
#[derive(Debug)]
pub(crate) struct Names<N: 'static> {
    pub(crate) needed: &'static [N],
    pub(crate) optional: &'static [N],
}

impl<N> Names<N> {
    pub(crate) const NONE: Self = Self {
        needed: &[],
        optional: &[],
    };

    pub(crate) fn all(&self) -> impl Iterator<Item = &N> + Clone {
        self.needed.iter().chain(self.optional)
    }

    /// All of them, those that may be left out in brackets.
    pub(crate) fn listed(&self, name: impl Fn(&N) -> &'static str) -> String {
        let join = |names: &[N]| names.iter().map(&name).collect::<Vec<_>>().join(", ");
        match (join(self.needed), join(self.optional)) {
            (needed, none) if none.is_empty() => needed,
            (none, optional) if none.is_empty() => format!("[{optional}]"),
            (needed, optional) => format!("{needed}, [{optional}]"),
        }
    }
}

impl Names<&'static dyn Entry> {
    pub(crate) fn has_entry(&self, name: &str) -> bool {
        self.all().any(|entry| entry.name() == name)
    }
}
