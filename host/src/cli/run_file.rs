//! Tensors in `.safetensors` files.

use std::collections::HashMap;

use anyhow::{bail, ensure};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView as FileView;

use crate::cases::named::{FileContents, Operation, span_bytes};
use crate::reference::HostTensor;
use crate::tensor::Dtype;

/// As files name a dtype.
fn in_files(dtype: Dtype) -> safetensors::Dtype {
    match dtype {
        Dtype::F32 => safetensors::Dtype::F32,
        Dtype::F16 => safetensors::Dtype::F16,
        Dtype::Bf16 => safetensors::Dtype::BF16,
        Dtype::F8E4m3 => safetensors::Dtype::F8_E4M3,
        Dtype::F8E5m2 => safetensors::Dtype::F8_E5M2,
        Dtype::F8E4m3Fnuz => safetensors::Dtype::F8_E4M3FNUZ,
        Dtype::F8E5m2Fnuz => safetensors::Dtype::F8_E5M2FNUZ,
        Dtype::I8 => safetensors::Dtype::I8,
        Dtype::U8 => safetensors::Dtype::U8,
        Dtype::I32 => safetensors::Dtype::I32,
        Dtype::I64 => safetensors::Dtype::I64,
    }
}

/// A file of tensors.
pub(super) struct File<'a> {
    tensors: SafeTensors<'a>,
    metadata: HashMap<String, String>,
}

impl<'a> File<'a> {
    pub(super) fn read(bytes: &'a [u8]) -> anyhow::Result<Self> {
        let (_, metadata) = SafeTensors::read_metadata(bytes)?;
        Ok(Self {
            tensors: SafeTensors::deserialize(bytes)?,
            metadata: metadata.metadata().clone().unwrap_or_default(),
        })
    }

    /// Names of the tensors, in order.
    pub(super) fn names(&self) -> Vec<&str> {
        let mut names = self.tensors.names();
        names.sort_unstable();
        names
    }

    /// Names of the metadata's entries, in order.
    pub(super) fn entries(&self) -> Vec<&str> {
        let mut names: Vec<_> = self.metadata.keys().map(String::as_str).collect();
        names.sort_unstable();
        names
    }

    /// What it has for an operation.
    pub(super) fn contents(&self, op: &Operation) -> anyhow::Result<FileContents> {
        let mut tensors = Vec::new();
        for name in op.tensors.needed {
            tensors.push(self.tensor(name)?);
        }
        for name in op.tensors.optional {
            tensors.extend(self.optional_tensor(name)?);
        }
        let needed = op.metadata.needed.iter().map(|entry| entry.name());
        for name in needed {
            let is_there = self.metadata.contains_key(name);
            ensure!(is_there, "the metadata must have {name}");
        }
        let names = op.metadata.all().map(|entry| entry.name());
        let entry = |name| Some((name, self.metadata.get(name)?.clone()));
        let metadata = names.filter_map(entry).collect();
        Ok(FileContents { tensors, metadata })
    }

    pub(super) fn optional_tensor(&self, name: &'static str) -> anyhow::Result<Option<HostTensor>> {
        let there = self.tensors.names().contains(&name);
        there.then(|| self.tensor(name)).transpose()
    }

    fn tensor(&self, name: &'static str) -> anyhow::Result<HostTensor> {
        let Ok(view) = self.tensors.tensor(name) else {
            bail!("there is no tensor `{name}`, only {:?}", self.names());
        };
        let mut all = Dtype::ALL.iter().copied();
        let Some(dtype) = all.find(|&dtype| in_files(dtype) == view.dtype()) else {
            let dtype = view.dtype();
            bail!("`{name}` has dtype {dtype}, which no operation takes");
        };
        let shape = view.shape();
        // Of an empty tensor, nothing in the file bounds the other extents.
        ensure!(
            span_bytes(dtype, shape).is_some_and(|bytes| bytes <= 1 << 60),
            "`{name}` has shape {shape:?}: too large"
        );
        Ok(HostTensor::contiguous(
            name,
            dtype,
            shape,
            view.data().to_vec(),
        ))
    }
}

/// A file of tensors.
pub(super) fn bytes(tensors: &[HostTensor]) -> anyhow::Result<Vec<u8>> {
    let views = tensors
        .iter()
        .map(|tensor| {
            let dtype = in_files(tensor.dtype);
            let view = FileView::new(dtype, tensor.shape.clone(), &tensor.storage.bytes)?;
            Ok((tensor.storage.name, view))
        })
        .collect::<anyhow::Result<Vec<_>>>()?;
    Ok(safetensors::serialize(views, None)?)
}
