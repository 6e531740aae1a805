//! One operation's tensors on a machine: those of a file, and those that it writes.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt::{Debug, Display};

use anyhow::{Context, bail, ensure};

use super::run_file::{File, span_bytes};
use super::run_names::{Key, Operation};
use crate::cases::{Uploads, fill::POISON};
use crate::error::Result;
use crate::ops::{CHECK_BYTES, CacheTable, CheckMode, check_result};
use crate::plan::MOST_CTAS_YZ;
use crate::reference::HostTensor;
use crate::runtime::{Buffer, Launcher, Runtime};
use crate::tensor::{Dtype, TensorView, TensorViewMut};

/// Most bytes of all that an operation makes, and of its workspace: `run --help` says so.
pub(super) const MOST_BYTES: usize = 1 << 30;
/// Most bytes of an output of which the request cannot need all, as where rows are padded to a round number.
const MOST_SPARE_BYTES: usize = 1 << 24;
/// Most caches of one tensor: a launch has a layer of its grid for each.
const MAX_CACHES: usize = MOST_CTAS_YZ as usize;

/// What a file has for an operation.
pub(super) struct Inputs<'f> {
    op: &'static Operation,
    file: &'f File<'f>,
    tensors: Vec<HostTensor>,
    /// Names that the operation has asked for.
    asked: RefCell<BTreeSet<&'static str>>,
}

impl<'f> Inputs<'f> {
    pub(super) fn read(op: &'static Operation, file: &'f File<'f>) -> anyhow::Result<Self> {
        let mut tensors = Vec::new();
        for name in op.tensors.needed {
            tensors.push(file.tensor(name)?);
        }
        for name in op.tensors.optional {
            tensors.extend(file.optional_tensor(name)?);
        }
        for entry in op.metadata.needed {
            let name = entry.name();
            ensure!(file.text(name).is_some(), "the metadata must have {name}");
        }
        Ok(Self {
            op,
            file,
            tensors,
            asked: RefCell::default(),
        })
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.tensors
            .iter()
            .any(|tensor| tensor.storage.name == name)
    }

    pub(super) fn get(&self, name: &str) -> anyhow::Result<&HostTensor> {
        let found = self
            .tensors
            .iter()
            .find(|tensor| tensor.storage.name == name);
        found.with_context(|| format!("there is no tensor `{name}`"))
    }

    /// The tensor's extents, as many as outputs are made from. Requests check them against each other.
    pub(super) fn shape<const RANK: usize>(&self, name: &str) -> anyhow::Result<[usize; RANK]> {
        let shape = &self.get(name)?.shape;
        shape
            .as_slice()
            .try_into()
            .ok()
            .with_context(|| format!("`{name}` must have {RANK} dimensions, not {shape:?}"))
    }

    /// What an entry of the metadata says, if it is there.
    pub(super) fn entry<T: Copy + Debug + Sync>(&self, key: &Key<T>) -> anyhow::Result<Option<T>> {
        let name = key.name();
        assert!(self.op.takes_entry(name), "{name} is in no list of names");
        self.asked.borrow_mut().insert(name);
        self.file.text(name).map(|text| key.read(text)).transpose()
    }

    /// The same, where there must be one.
    pub(super) fn needed<T: Copy + Debug + Sync>(&self, key: &Key<T>) -> anyhow::Result<T> {
        let name = key.name();
        self.entry(key)?
            .with_context(|| format!("the metadata must have {name}"))
    }

    /// `block_size` of a cache: what `key` says, or its second dimension.
    pub(super) fn block_size(&self, cache: &str, key: &Key<u32>) -> anyhow::Result<usize> {
        match (self.entry(key)?, &self.get(cache)?.shape[..]) {
            (Some(tokens), _) => Ok(tokens as usize),
            (None, &[_, tokens, _, ..]) => Ok(tokens),
            (None, _) => bail!("the metadata must have {}", key.name()),
        }
    }

    /// Names that are in the file, that the operation takes, and that it did not ask for: they would have no effect.
    fn refuse_unasked(&self) -> anyhow::Result<()> {
        let asked = self.asked.borrow();
        let tensors = self.tensors.iter().map(|tensor| tensor.storage.name);
        let entries = self.op.metadata.all().map(|entry| entry.name());
        let entries = entries.filter(|name| self.file.text(name).is_some());
        if let Some(name) = tensors.chain(entries).find(|name| !asked.contains(name)) {
            let op = self.op.name;
            bail!("{op} takes `{name}`, but not together with what else is in this file");
        }
        Ok(())
    }
}

/// A number of the file's by which an output is as large as it is, `part_bytes` for each. More than the request can
/// need is refused before it is allocated, unless it is little.
pub(super) fn extent(
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

/// The same on a machine, with the tensors that are made for the operation to write.
pub(super) struct Job<'m> {
    machine: &'m dyn Runtime,
    inputs: &'m Inputs<'m>,
    tensors: Vec<HostTensor>,
    /// Names of tensors that somebody has a view to write of.
    written: RefCell<Vec<String>>,
    uploads: Uploads<'m>,
}

impl<'m> Job<'m> {
    /// Outputs are poisoned.
    pub(super) fn new(
        machine: &'m dyn Runtime,
        inputs: &'m Inputs<'_>,
        outputs: &[(&'static str, Dtype, &[usize])],
    ) -> anyhow::Result<Self> {
        let mut tensors = inputs.tensors.clone();
        let mut left = MOST_BYTES;
        for &(name, dtype, shape) in outputs {
            let output = poisoned(name, dtype, shape, left)?;
            left -= output.storage.len;
            tensors.push(output);
        }
        Ok(Self {
            machine,
            inputs,
            uploads: Uploads::new(machine, &tensors)?,
            tensors,
            written: RefCell::default(),
        })
    }

    fn find(&self, name: &str) -> Option<&HostTensor> {
        let mut tensors = self.tensors.iter();
        let found = tensors.find(|tensor| tensor.storage.name == name)?;
        self.inputs.asked.borrow_mut().insert(found.storage.name);
        Some(found)
    }

    /// A tensor to read, if there is one.
    pub(super) fn optional(&self, name: &str) -> Result<Option<TensorView<'_>>> {
        let is_written = self.written.borrow().iter().any(|other| other == name);
        assert!(!is_written, "`{name}` is written by this operation");
        let view = |tensor| self.uploads.view(tensor);
        Ok(self.find(name).map(view).transpose()?)
    }

    /// A tensor to read.
    pub(super) fn view(&self, name: &str) -> anyhow::Result<TensorView<'_>> {
        let view = self.optional(name)?;
        view.with_context(|| format!("there is no tensor `{name}`"))
    }

    /// A tensor to write, if there is one; once each.
    pub(super) fn optional_mut(&self, name: &str) -> Result<Option<TensorViewMut<'_>>> {
        let Some(tensor) = self.find(name) else {
            return Ok(None);
        };
        let mut written = self.written.borrow_mut();
        assert!(!written.iter().any(|other| other == name), "`{name}` twice");
        written.push(name.to_owned());
        // SAFETY: tensors do not share storages, and this is the only view of this one from here on; `view`
        // comes before, in an operation that works in place.
        Ok(Some(unsafe { self.uploads.view_mut(tensor)? }))
    }

    /// A tensor to write; once each.
    pub(super) fn view_mut(&self, name: &str) -> anyhow::Result<TensorViewMut<'_>> {
        let view = self.optional_mut(name)?;
        view.with_context(|| format!("there is no tensor `{name}`"))
    }

    /// The caches of a tensor `[num_caches, ..]` to read, if there is one.
    pub(super) fn optional_caches(&self, name: &str) -> anyhow::Result<Option<Caches<'_>>> {
        let all = self.optional(name)?;
        all.map(|all| Caches::new(self.machine, all, name))
            .transpose()
    }

    /// The caches of a tensor `[num_caches, ..]` to write; once each.
    pub(super) fn caches_mut(&self, name: &str) -> anyhow::Result<Caches<'_>> {
        Caches::new(self.machine, *self.view_mut(name)?.view(), name)
    }

    /// Prints the plan, launches it, and says what the check on the device has found, if it was asked for one; else
    /// returns what was written, in the order of the views.
    pub(super) fn run(
        &self,
        plan: &impl Display,
        workspace_bytes: usize,
        check: CheckMode,
        launch: impl FnOnce(&mut TensorViewMut<'_>, &dyn Launcher) -> Result<()>,
    ) -> anyhow::Result<Vec<HostTensor>> {
        self.inputs.refuse_unasked()?;
        ensure!(
            workspace_bytes <= MOST_BYTES,
            "this needs a workspace of {workspace_bytes} bytes, which is more than {MOST_BYTES}"
        );
        eprintln!("{plan}");
        // Zeros: a check record that says that nothing was found, even if nothing is launched.
        let bytes = workspace_bytes.max(CHECK_BYTES);
        let mut workspace = Buffer::uninit(self.machine, "workspace", Dtype::U8, &[bytes])?;
        workspace.write(&vec![0; bytes])?;
        launch(&mut workspace.view_mut(), self.machine)?;
        self.machine.synchronize()?;
        if check == CheckMode::Device {
            check_result(&workspace.read()?[..CHECK_BYTES])?;
        }
        let written = self.written.borrow();
        let tensors = written.iter().filter_map(|name| self.find(name));
        Ok(tensors
            .map(|tensor| self.uploads.read(tensor))
            .collect::<Result<_>>()?)
    }
}

/// Runs a checked request by its plan: requests and plans of all operations have the same methods.
macro_rules! run {
    ($job:expr, $checked:expr, $plan:expr, $check:expr) => {{
        let plan = $plan;
        $job.run(
            &plan,
            plan.workspace_bytes(),
            $check,
            |workspace, launcher| $checked.launch(&plan, workspace, launcher),
        )
    }};
}
pub(super) use run;

/// Caches that lie one after the other in a tensor, and their addresses on the machine: operations that take many
/// caches find them by a table of these.
pub(super) struct Caches<'j> {
    all: TensorView<'j>,
    addresses: Buffer<'j>,
}

impl<'j> Caches<'j> {
    fn new(machine: &'j dyn Runtime, all: TensorView<'j>, name: &str) -> anyhow::Result<Self> {
        let num_caches = all.shape().first().copied().unwrap_or(0);
        ensure!(
            (1..=MAX_CACHES).contains(&num_caches),
            "`{name}` must be [num_caches, ..] with 1 to {MAX_CACHES} caches, not {:?}",
            all.shape()
        );
        let cache_bytes = all.strides()[0].cast_unsigned() * all.dtype().size() as u64;
        ensure!(
            cache_bytes.is_multiple_of(16),
            "a cache of `{name}` has {cache_bytes} bytes, which is no multiple of 16"
        );
        let addresses: Vec<u8> = (0..num_caches as u64)
            .flat_map(|cache| (all.address() + cache * cache_bytes).to_le_bytes())
            .collect();
        let addresses = Buffer::new(machine, "addresses", Dtype::I64, &[num_caches], &addresses)?;
        Ok(Self { all, addresses })
    }

    /// The table. To be written into only if they are from [`Job::caches_mut`].
    pub(super) fn table(&self) -> Result<CacheTable<'_>> {
        let all = &self.all;
        // SAFETY: each address is that of a part of the tensor, at a multiple of 16 as the tensor itself; of one that is
        // written, `caches_mut` has the only view.
        let table = unsafe {
            CacheTable::from_raw(
                self.addresses.view(),
                all.dtype(),
                &all.shape()[1..],
                &all.strides()[1..],
            )
        };
        Ok(table?)
    }
}

/// A tensor of at most `most_bytes` bytes that nobody has written.
fn poisoned(
    name: &'static str,
    dtype: Dtype,
    shape: &[usize],
    most_bytes: usize,
) -> anyhow::Result<HostTensor> {
    let span = span_bytes(dtype, shape).filter(|&bytes| bytes <= most_bytes);
    span.with_context(|| {
        format!("`{name}` would have shape {shape:?}: all that is made may have {MOST_BYTES} bytes")
    })?;
    let bytes = shape.iter().product::<usize>() * dtype.size();
    Ok(HostTensor::contiguous(
        name,
        dtype,
        shape,
        vec![POISON; bytes],
    ))
}
