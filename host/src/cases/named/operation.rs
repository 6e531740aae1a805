//! What an operation on named tensors is: its names, the tensors that it makes, the request over all of them.

use std::fmt::Debug;

use super::inputs::Inputs;
use super::job::Job;
use super::key::Entry;
use super::names::Names;
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

impl Operation {
    pub(crate) fn takes_tensor(&self, name: &str) -> bool {
        self.tensors.all().any(|&other| other == name)
    }

    pub(crate) fn takes_entry(&self, name: &str) -> bool {
        self.metadata.has_entry(name)
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
