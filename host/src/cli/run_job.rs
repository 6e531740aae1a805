//! One operation's tensors on a machine: those of a file, and those that it writes.

use std::cell::RefCell;
use std::fmt::Display;

use anyhow::{Context, bail, ensure};

use super::run_file::File;
use crate::cases::{Uploads, fill::POISON};
use crate::error::Result;
use crate::ops::{CHECK_BYTES, CacheTable, CheckMode, check_result};
use crate::plan::{MOST_CTAS_YZ, SplitPolicy};
use crate::reference::HostTensor;
use crate::runtime::{Buffer, Launcher, Runtime};
use crate::tensor::{Dtype, TensorView, TensorViewMut};

/// Most bytes of an output: far more than machines have.
const MAX_OUT_BYTES: usize = 1 << 36;
/// Most caches of one tensor: a launch has a layer of its grid for each.
const MAX_CACHES: usize = MOST_CTAS_YZ as usize;

/// The tensors that an operation knows, by their names in files.
#[derive(Clone, Copy, Debug)]
pub(super) struct Names {
    /// It reads these, or writes into them.
    pub(super) needed: &'static [&'static str],
    /// If they are in the file, these too.
    pub(super) optional: &'static [&'static str],
}

/// The tensors of a file that an operation knows.
pub(super) struct Inputs<'f> {
    pub(super) file: &'f File<'f>,
    tensors: Vec<HostTensor>,
}

impl<'f> Inputs<'f> {
    pub(super) fn read(file: &'f File<'f>, names: Names) -> anyhow::Result<Self> {
        let mut tensors = Vec::new();
        for name in names.needed {
            tensors.push(file.tensor(name)?);
        }
        for name in names.optional {
            tensors.extend(file.optional_tensor(name)?);
        }
        Ok(Self { file, tensors })
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

    /// The dtype that the metadata calls `out_dtype`, or else `usual`.
    pub(super) fn out_dtype(&self, usual: Option<Dtype>) -> anyhow::Result<Dtype> {
        Ok(match (self.file.text("out_dtype"), usual) {
            (None, None) => bail!("for this query the metadata must have out_dtype"),
            (None, Some(usual)) => usual,
            (Some("bf16"), _) => Dtype::Bf16,
            (Some("f16"), _) => Dtype::F16,
            (Some("f32"), _) => Dtype::F32,
            (Some("fp8_e4m3"), _) => Dtype::F8E4m3,
            (Some(other), _) => {
                bail!("the metadata's out_dtype is `{other}`, none of bf16, f16, f32 and fp8_e4m3")
            }
        })
    }

    pub(super) fn split_policy(&self) -> anyhow::Result<SplitPolicy> {
        Ok(match self.file.text("split_policy") {
            None | Some("auto") => SplitPolicy::Auto,
            Some("invariant") => SplitPolicy::BatchInvariant,
            Some(_) => SplitPolicy::Fixed(self.file.needed("split_policy")?),
        })
    }

    /// `block_size` of a cache that has it as its second dimension, or in the metadata.
    pub(super) fn block_size(&self, cache: &str) -> anyhow::Result<usize> {
        match (self.file.scalar("block_size")?, &self.get(cache)?.shape[..]) {
            (Some(tokens), _) => Ok(tokens),
            (None, &[_, tokens, _, ..]) => Ok(tokens),
            (None, _) => bail!("the metadata must have block_size"),
        }
    }
}

/// The same on a machine, with the tensors that are made for the operation to write.
pub(super) struct Job<'m> {
    machine: &'m dyn Runtime,
    tensors: Vec<HostTensor>,
    /// Names of tensors that somebody has a view to write of.
    written: RefCell<Vec<String>>,
    uploads: Uploads<'m>,
}

impl<'m> Job<'m> {
    /// Outputs are poisoned.
    pub(super) fn new(
        machine: &'m dyn Runtime,
        inputs: &Inputs<'_>,
        outputs: &[(&'static str, Dtype, &[usize])],
    ) -> anyhow::Result<Self> {
        let mut tensors = inputs.tensors.clone();
        for &(name, dtype, shape) in outputs {
            tensors.push(poisoned(name, dtype, shape)?);
        }
        Ok(Self {
            machine,
            uploads: Uploads::new(machine, &tensors)?,
            tensors,
            written: RefCell::default(),
        })
    }

    fn find(&self, name: &str) -> Option<&HostTensor> {
        self.tensors
            .iter()
            .find(|tensor| tensor.storage.name == name)
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

fn poisoned(name: &'static str, dtype: Dtype, shape: &[usize]) -> anyhow::Result<HostTensor> {
    let bytes = shape
        .iter()
        .try_fold(dtype.size(), |bytes, &extent| bytes.checked_mul(extent))
        .filter(|&bytes| bytes <= MAX_OUT_BYTES)
        .with_context(|| format!("`{name}` would have shape {shape:?}: too large"))?;
    Ok(HostTensor::contiguous(
        name,
        dtype,
        shape,
        vec![POISON; bytes],
    ))
}
