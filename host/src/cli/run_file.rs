//! Tensors in `.safetensors` files.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::str::FromStr;

use anyhow::{Context, bail, ensure};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView as FileView;

use crate::reference::HostTensor;
use crate::tensor::Dtype;

/// Our element types and the files'.
const DTYPES: [(Dtype, safetensors::Dtype); 11] = [
    (Dtype::F32, safetensors::Dtype::F32),
    (Dtype::F16, safetensors::Dtype::F16),
    (Dtype::Bf16, safetensors::Dtype::BF16),
    (Dtype::F8E4m3, safetensors::Dtype::F8_E4M3),
    (Dtype::F8E5m2, safetensors::Dtype::F8_E5M2),
    (Dtype::F8E4m3Fnuz, safetensors::Dtype::F8_E4M3FNUZ),
    (Dtype::F8E5m2Fnuz, safetensors::Dtype::F8_E5M2FNUZ),
    (Dtype::I8, safetensors::Dtype::I8),
    (Dtype::U8, safetensors::Dtype::U8),
    (Dtype::I32, safetensors::Dtype::I32),
    (Dtype::I64, safetensors::Dtype::I64),
];

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

    pub(super) fn optional_tensor(&self, name: &'static str) -> anyhow::Result<Option<HostTensor>> {
        let there = self.tensors.names().contains(&name);
        there.then(|| self.tensor(name)).transpose()
    }

    pub(super) fn tensor(&self, name: &'static str) -> anyhow::Result<HostTensor> {
        let Ok(view) = self.tensors.tensor(name) else {
            let mut names = self.tensors.names();
            names.sort_unstable();
            bail!("there is no tensor `{name}`, only {names:?}");
        };
        let known = DTYPES.iter().find(|(_, in_file)| *in_file == view.dtype());
        let Some(&(dtype, _)) = known else {
            let dtype = view.dtype();
            bail!("`{name}` has dtype {dtype}, which no operation takes");
        };
        let shape = view.shape();
        // An empty tensor may claim any other extents; strides are made from their product.
        let extent = |product: usize, &extent: &usize| product.checked_mul(extent.max(1));
        ensure!(
            shape
                .iter()
                .try_fold(dtype.size(), extent)
                .is_some_and(|bytes| bytes <= 1 << 60),
            "`{name}` has shape {shape:?}: too large"
        );
        Ok(HostTensor::contiguous(
            name,
            dtype,
            shape,
            view.data().to_vec(),
        ))
    }

    /// An entry of the metadata.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.metadata.get(name).map(String::as_str)
    }

    /// An entry that is a number, or another thing that is written in one word.
    pub(super) fn scalar<T: FromStr>(&self, name: &str) -> anyhow::Result<Option<T>> {
        self.metadata
            .get(name)
            .map(|text| {
                text.trim().parse().ok().with_context(|| {
                    format!("the metadata's {name} is `{text}`, which is not such a number")
                })
            })
            .transpose()
    }

    /// The same, where there must be one.
    pub(super) fn needed<T: FromStr>(&self, name: &str) -> anyhow::Result<T> {
        self.scalar(name)?
            .with_context(|| format!("the metadata must have {name}"))
    }
}

/// Writes tensors to a file.
pub(super) fn write(tensors: &[HostTensor], path: &Path) -> anyhow::Result<()> {
    let views = tensors
        .iter()
        .map(|tensor| {
            let known = DTYPES.iter().find(|(dtype, _)| *dtype == tensor.dtype);
            let &(_, dtype) = known.context("a dtype that files have")?;
            let view = FileView::new(dtype, tensor.shape.clone(), &tensor.storage.bytes)?;
            Ok((tensor.storage.name, view))
        })
        .collect::<anyhow::Result<Vec<_>>>()?;
    fs::write(path, safetensors::serialize(views, None)?)?;
    Ok(())
}
