//! Many caches in one tensor, and the table of their addresses.

use anyhow::ensure;

use crate::error::Result;
use crate::ops::CacheTable;
use crate::plan::MOST_CTAS_YZ;
use crate::runtime::{Buffer, Runtime};
use crate::tensor::{Dtype, TensorView};

/// Most caches of one tensor: a launch has a layer of its grid for each.
const MAX_CACHES: usize = MOST_CTAS_YZ as usize;

/// Caches that lie one after the other in a tensor, and their addresses on the machine: operations that take many
/// caches find them by a table of these.
pub(crate) struct Caches<'j> {
    all: TensorView<'j>,
    addresses: Buffer<'j>,
}

impl<'j> Caches<'j> {
    pub(super) fn new(
        machine: &'j dyn Runtime,
        all: TensorView<'j>,
        name: &str,
    ) -> anyhow::Result<Self> {
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

    /// The table. To be written into only if they are from [`super::Job::caches_mut`].
    pub(crate) fn table(&self) -> Result<CacheTable<'_>> {
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
