//! What an operation on named tensors is: its names, the tensors that it makes, the request over all of them.

use std::fmt::Debug;

use super::inputs::Inputs;
use super::job::Job;
use super::key::Entry;
use crate::tensor::Dtype;

/// One that `ferroattn run` runs.
#[derive(Debug)]
pub(crate) struct Operation {
    pub(crate) name: &'static str,
    /// What it does, in a line.
    pub(crate) about: &'static str,
    /// The tensors that it reads, or writes into.
    pub(crate) tensors: Names<&'static str>,
    pub(crate) metadata: Names<&'static dyn Entry>,
    /// Which of those that may be left out go together, if not all do: what for, then names.
    pub(crate) choices: &'static [&'static str],
    pub(crate) writes: &'static str,
    /// The tensors that are made for it to write, beside those that it is given.
    pub(crate) outputs: fn(&Inputs) -> anyhow::Result<Vec<Output>>,
    /// Makes the request, checks it, and launches it once.
    pub(crate) launch: fn(&Job<'_>) -> anyhow::Result<()>,
}

/// A tensor to be made.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) name: &'static str,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
}

/// Names that a file must have, and those that it may have.
#[derive(Debug)]
pub(crate) struct Names<N: 'static> {
    pub(crate) needed: &'static [N],
    pub(crate) optional: &'static [N],
}

impl Operation {
    pub(crate) fn takes_tensor(&self, name: &str) -> bool {
        self.tensors.all().any(|&other| other == name)
    }

    pub(crate) fn takes_entry(&self, name: &str) -> bool {
        self.metadata.all().any(|other| other.name() == name)
    }
}

impl Output {
    /// Of an operation that writes nothing but into what it is given.
    pub(crate) fn none(_: &Inputs) -> anyhow::Result<Vec<Self>> {
        Ok(Vec::new())
    }

    pub(crate) fn new(name: &'static str, dtype: Dtype, shape: &[usize]) -> Self {
        Self {
            name,
            dtype,
            shape: shape.to_vec(),
        }
    }
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
