//! What an operation is given: tensors and entries of metadata, by name.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt::Debug;

use anyhow::{Context, bail, ensure};

use super::key::{Entry, Key};
use super::names::Names;
use crate::reference::HostTensor;
use crate::tensor::Dtype;

/// Most bytes of an output of which the request cannot need all, as where rows are padded to a round number.
const MOST_SPARE_BYTES: usize = 1 << 24;

/// What a file for `ferroattn run` has: names are its tensors' own.
#[derive(Clone, Debug)]
pub struct FileContents {
    /// The tensors.
    pub tensors: Vec<HostTensor>,
    /// The entries of the metadata.
    pub metadata: Vec<(&'static str, String)>,
}

/// The same for an operation.
pub(crate) struct Inputs {
    /// The operation's name.
    op: &'static str,
    /// Entries that it takes.
    entries: &'static Names<&'static dyn Entry>,
    given: FileContents,
    /// Names that the operation has asked for.
    asked: RefCell<BTreeSet<&'static str>>,
}

impl Inputs {
    pub(super) fn new(
        op: &'static str,
        entries: &'static Names<&'static dyn Entry>,
        given: FileContents,
    ) -> Self {
        Self {
            op,
            entries,
            given,
            asked: RefCell::default(),
        }
    }

    pub(super) fn tensors(&self) -> &[HostTensor] {
        &self.given.tensors
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.get(name).is_ok()
    }

    pub(crate) fn get(&self, name: &str) -> anyhow::Result<&HostTensor> {
        let mut tensors = self.given.tensors.iter();
        let found = tensors.find(|tensor| tensor.storage.name == name);
        found.with_context(|| format!("there is no tensor `{name}`"))
    }

    /// The tensor's extents, as many as outputs are made from. Requests check them against each other.
    pub(crate) fn shape<const RANK: usize>(&self, name: &str) -> anyhow::Result<[usize; RANK]> {
        let shape = &self.get(name)?.shape;
        shape
            .as_slice()
            .try_into()
            .ok()
            .with_context(|| format!("`{name}` must have {RANK} dimensions, not {shape:?}"))
    }

    /// What an entry of the metadata says, if it is there.
    pub(crate) fn entry<T: Copy + Debug + Sync>(&self, key: &Key<T>) -> anyhow::Result<Option<T>> {
        let name = key.name();
        assert!(
            self.entries.has_entry(name),
            "{name} is in no list of names"
        );
        self.ask(name);
        self.text(name).map(|text| key.read(text)).transpose()
    }

    /// The same, where there must be one.
    pub(crate) fn needed<T: Copy + Debug + Sync>(&self, key: &Key<T>) -> anyhow::Result<T> {
        let name = key.name();
        self.entry(key)?
            .with_context(|| format!("the metadata must have {name}"))
    }

    /// `block_size` of a cache: what `key` says, or its second dimension.
    pub(crate) fn block_size(&self, cache: &str, key: &Key<u32>) -> anyhow::Result<usize> {
        match (self.entry(key)?, &self.get(cache)?.shape[..]) {
            (Some(tokens), _) => Ok(tokens as usize),
            (None, &[_, tokens, _, ..]) => Ok(tokens),
            (None, _) => bail!("the metadata must have {}", key.name()),
        }
    }

    fn text(&self, name: &str) -> Option<&str> {
        let mut entries = self.given.metadata.iter();
        let found = entries.find(|(other, _)| *other == name);
        found.map(|(_, text)| &**text)
    }

    /// Notes that the operation has asked for this name.
    pub(super) fn ask(&self, name: &'static str) {
        self.asked.borrow_mut().insert(name);
    }

    /// Refuses names that are given, that the operation takes, and that it did not ask for: they would have no effect.
    pub(super) fn refuse_unasked(&self) -> anyhow::Result<()> {
        let asked = self.asked.borrow();
        let tensors = self.given.tensors.iter().map(|it| it.storage.name);
        let entries = self.given.metadata.iter().map(|&(name, _)| name);
        if let Some(name) = tensors.chain(entries).find(|name| !asked.contains(name)) {
            let op = self.op;
            bail!("{op} takes `{name}`, but not together with what else is in this file");
        }
        Ok(())
    }
}

/// A number of the file's by which an output is as large as it is, `part_bytes` for each. More than the request can
/// need is refused before it is allocated, unless it is little.
pub(crate) fn extent(
    name: &str,
    asked: usize,
    needed: usize,
    part_bytes: usize,
) -> anyhow::Result<usize> {
    let bytes = asked.checked_mul(part_bytes.max(1));
    ensure!(
        asked <= needed || bytes.is_some_and(|bytes| bytes <= MOST_SPARE_BYTES),
        "{name} is {asked}, but these tensors have no use for more than {needed}"
    );
    Ok(asked)
}

/// Bytes of a tensor if those of its extents that are 0 were 1: strides are made from products like it.
pub(crate) fn span_bytes(dtype: Dtype, shape: &[usize]) -> Option<usize> {
    let extent = |product: usize, &extent: &usize| product.checked_mul(extent.max(1));
    shape.iter().try_fold(dtype.size(), extent)
}
