//! A case's tensors on a machine, and the requests over them.

use std::sync::Arc;

use super::fill::{CacheWriteTensors, DecodeTensors, HostScales};
use crate::error::{RequestError, Result};
use crate::ops::{
    CacheScales, CacheWriteRequest, CheckMode, DecodeOptions, DecodeRequest, KvScales,
};
use crate::reference::{HostTensor, Storage};
use crate::runtime::{Buffer, DeviceMemory, Runtime};
use crate::tensor::{Dtype, TensorView, TensorViewMut};

/// Storages on a machine, each once however many tensors lie in it.
pub(crate) struct Uploads<'m> {
    memory: &'m dyn DeviceMemory,
    storages: Vec<(Arc<Storage>, Buffer<'m>)>,
}

impl<'m> Uploads<'m> {
    /// The storages of `tensors`, copied to the machine.
    pub(crate) fn new<'t>(
        memory: &'m dyn DeviceMemory,
        tensors: impl IntoIterator<Item = &'t HostTensor>,
    ) -> Result<Self> {
        let mut uploads = Self {
            memory,
            storages: Vec::new(),
        };
        for tensor in tensors {
            uploads.add(&tensor.storage)?;
        }
        Ok(uploads)
    }

    fn add(&mut self, storage: &Arc<Storage>) -> Result<()> {
        if self.find(storage).is_some() {
            return Ok(());
        }
        // An empty tensor has an address too.
        let len = storage.len.max(16);
        let buffer = Buffer::uninit(self.memory, storage.name, Dtype::U8, &[len])?;
        let base = buffer.view().address();
        let mut at = 0;
        while at < storage.len {
            let bytes = &storage.bytes[..storage.bytes.len().min(storage.len - at)];
            // SAFETY: `at + bytes.len() <= storage.len`, which the buffer holds.
            unsafe { self.memory.copy_in(base + at as u64, bytes)? };
            at += bytes.len();
        }
        self.storages.push((storage.clone(), buffer));
        Ok(())
    }

    fn find(&self, storage: &Arc<Storage>) -> Option<&Buffer<'m>> {
        let same = |(other, _): &&(Arc<Storage>, Buffer<'m>)| Arc::ptr_eq(other, storage);
        self.storages.iter().find(same).map(|(_, buffer)| buffer)
    }

    fn buffer(&self, tensor: &HostTensor) -> &Buffer<'m> {
        self.find(&tensor.storage)
            .expect("a tensor whose storage was uploaded")
    }

    /// Address, shape and strides of a tensor on the machine.
    fn place(&self, tensor: &HostTensor) -> (u64, Vec<i64>) {
        let offset = (tensor.offset * tensor.dtype.size()) as u64;
        let strides = tensor.strides.iter().map(|&stride| stride as i64).collect();
        (self.buffer(tensor).view().address() + offset, strides)
    }

    /// The tensor, to read.
    pub(crate) fn view(&self, tensor: &HostTensor) -> Result<TensorView<'_>, RequestError> {
        let (address, strides) = self.place(tensor);
        // SAFETY: the tensor lies within its storage, whose buffer lives as long as `self`.
        unsafe { TensorView::from_raw(address, tensor.dtype, &tensor.shape, &strides) }
    }

    /// The tensor, to write.
    ///
    /// # Safety
    /// Until the launches that use the view have finished, nothing else reads or writes its elements.
    pub(crate) unsafe fn view_mut(
        &self,
        tensor: &HostTensor,
    ) -> Result<TensorViewMut<'_>, RequestError> {
        let (address, strides) = self.place(tensor);
        // SAFETY: as in `view`, and the caller promises to be alone.
        unsafe { TensorViewMut::from_raw(address, tensor.dtype, &tensor.shape, &strides) }
    }

    /// The tensor with the bytes that its storage has on the machine now.
    pub(crate) fn read(&self, tensor: &HostTensor) -> Result<HostTensor> {
        let mut bytes = self.buffer(tensor).read()?;
        bytes.truncate(tensor.storage.len);
        Ok(tensor.with_bytes(bytes))
    }
}

/// A decode case on a machine.
pub struct DeviceDecode<'m> {
    tensors: DecodeTensors,
    uploads: Uploads<'m>,
}

impl<'m> DeviceDecode<'m> {
    /// Copies the tensors to the machine.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new(runtime: &'m dyn Runtime, tensors: DecodeTensors) -> Result<Self> {
        let all = [
            &tensors.query,
            &tensors.key_cache,
            &tensors.value_cache,
            &tensors.block_table,
            &tensors.seq_lens,
            &tensors.out,
        ];
        let uploads = Uploads::new(
            runtime,
            all.into_iter()
                .chain(&tensors.lse)
                .chain(tensors.scales.iter().flat_map(HostScales::tensors)),
        )?;
        Ok(Self { tensors, uploads })
    }

    /// The tensors as they were before any launch.
    pub fn tensors(&self) -> &DecodeTensors {
        &self.tensors
    }

    /// The request over copy `set` of the batch.
    ///
    /// # Errors
    /// None: the views fit.
    pub fn request(
        &mut self,
        set: usize,
        softmax_scale: f32,
        options: DecodeOptions,
    ) -> Result<DecodeRequest<'_>, RequestError> {
        let (tensors, uploads) = (&self.tensors, &self.uploads);
        let num_seqs = tensors.num_seqs;
        let part = |tensor: &HostTensor| tensor.slice(set * num_seqs, num_seqs);
        Ok(DecodeRequest {
            scales: match &tensors.scales {
                Some(scales) => Some(KvScales {
                    q_scale: scales
                        .q_scale
                        .as_ref()
                        .map(|scale| uploads.view(scale))
                        .transpose()?,
                    k_scale: uploads.view(&scales.k_scale)?,
                    v_scale: uploads.view(&scales.v_scale)?,
                }),
                None => None,
            },
            query: uploads.view(&part(&tensors.query))?,
            key_cache: uploads.view(&tensors.key_cache)?,
            value_cache: uploads.view(&tensors.value_cache)?,
            block_table: uploads.view(&part(&tensors.block_table))?,
            seq_lens: uploads.view(&part(&tensors.seq_lens))?,
            // SAFETY: `self` is borrowed exclusively, and launches of one stream run in order.
            out: unsafe { uploads.view_mut(&part(&tensors.out))? },
            lse: match &tensors.lse {
                // SAFETY: as above.
                Some(lse) => Some(unsafe { uploads.view_mut(&part(lse))? }),
                None => None,
            },
            softmax_scale,
            options,
        })
    }

    /// Waits, and reads output and lse.
    ///
    /// # Errors
    /// Something enqueued failed.
    pub fn results(&self) -> Result<(HostTensor, Option<HostTensor>)> {
        let lse = self.tensors.lse.as_ref();
        Ok((
            self.uploads.read(&self.tensors.out)?,
            lse.map(|lse| self.uploads.read(lse)).transpose()?,
        ))
    }
}

/// A cache-write case on a machine.
pub struct DeviceCacheWrite<'m> {
    tensors: CacheWriteTensors,
    uploads: Uploads<'m>,
}

impl<'m> DeviceCacheWrite<'m> {
    /// Copies the tensors to the machine.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new(runtime: &'m dyn Runtime, tensors: CacheWriteTensors) -> Result<Self> {
        let all = [
            &tensors.key,
            &tensors.value,
            &tensors.key_cache,
            &tensors.value_cache,
            &tensors.slot_mapping,
        ];
        let uploads = Uploads::new(runtime, all)?;
        Ok(Self { tensors, uploads })
    }

    /// The tensors as they were before any launch.
    pub fn tensors(&self) -> &CacheWriteTensors {
        &self.tensors
    }

    /// The request that writes copy `set` of `num_tokens` tokens.
    ///
    /// # Errors
    /// None: the views fit.
    pub fn request(
        &mut self,
        set: usize,
        num_tokens: usize,
        check: CheckMode,
    ) -> Result<CacheWriteRequest<'_>, RequestError> {
        let (tensors, uploads) = (&self.tensors, &self.uploads);
        let start = set * num_tokens;
        let rows = tensors.key.shape[0] - start;
        Ok(CacheWriteRequest {
            key: uploads.view(&tensors.key.slice(start, rows))?,
            value: uploads.view(&tensors.value.slice(start, rows))?,
            // SAFETY: `self` is borrowed exclusively, and launches of one stream run in order; keys and
            // values of a packed cache share no element.
            key_cache: unsafe { uploads.view_mut(&tensors.key_cache)? },
            // SAFETY: as above.
            value_cache: unsafe { uploads.view_mut(&tensors.value_cache)? },
            slot_mapping: uploads.view(&tensors.slot_mapping.slice(start, num_tokens))?,
            block_size: tensors.key_cache.shape[1],
            scales: CacheScales::None,
            check,
        })
    }

    /// Waits, and reads both caches.
    ///
    /// # Errors
    /// Something enqueued failed.
    pub fn results(&self) -> Result<(HostTensor, HostTensor)> {
        Ok((
            self.uploads.read(&self.tensors.key_cache)?,
            self.uploads.read(&self.tensors.value_cache)?,
        ))
    }
}
