//! A case's tensors on a machine, and the requests over them.

use std::sync::Arc;

use super::DecodeCase;
use super::break_one::{BenderCell, Parts};
use super::fill::{DecodeTensors, HostScales};
use crate::error::{RequestError, Result};
use crate::ops::{DecodeMlaRequest, DecodeOptions, DecodePlan, DecodeRequest, KvScales, MlaScales};
use crate::plan::DeviceInfo;
use crate::reference::{HostTensor, Storage};
use crate::runtime::{Buffer, DeviceMemory, Launcher, Runtime};
use crate::tensor::{Dtype, TensorView, TensorViewMut};

/// Storages on a machine, each once however many tensors lie in it.
pub(crate) struct Uploads<'m> {
    memory: &'m dyn DeviceMemory,
    storages: Vec<(Arc<Storage>, Buffer<'m>)>,
    bender: BenderCell,
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
            bender: BenderCell::default(),
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

    /// The tensor's view on the machine, taken apart.
    fn place(&self, tensor: &HostTensor) -> Parts {
        let offset = (tensor.offset * tensor.dtype.size()) as u64;
        let strides = tensor.strides.iter().map(|&stride| stride as i64);
        let mut parts = Parts {
            address: self.buffer(tensor).view().address() + offset,
            dtype: tensor.dtype,
            shape: tensor.shape.clone(),
            strides: strides.collect(),
        };
        if let Some(bender) = self.bender.borrow_mut().as_mut() {
            bender.see(tensor.storage.name, &mut parts);
        }
        parts
    }

    /// What makes a mistake in a view, if anything does.
    pub(super) fn bender(&self) -> &BenderCell {
        &self.bender
    }

    /// The tensor, to read.
    pub(crate) fn view(&self, tensor: &HostTensor) -> Result<TensorView<'_>, RequestError> {
        let view = self.place(tensor);
        // SAFETY: the tensor lies within its storage, whose buffer lives as long as `self`. Whoever bends a view has an
        // emulator look at every access.
        unsafe { TensorView::from_raw(view.address, view.dtype, &view.shape, &view.strides) }
    }

    /// The tensor, to write.
    ///
    /// # Safety
    /// Until the launches that use the view have finished, nothing else reads or writes its elements.
    pub(crate) unsafe fn view_mut(
        &self,
        tensor: &HostTensor,
    ) -> Result<TensorViewMut<'_>, RequestError> {
        let view = self.place(tensor);
        // SAFETY: as in `view`, and the caller promises to be alone.
        unsafe { TensorViewMut::from_raw(view.address, view.dtype, &view.shape, &view.strides) }
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
                .chain(tensors.scales.iter().flat_map(HostScales::tensors))
                .chain(tensors.scores.tensors()),
        )?;
        Ok(Self { tensors, uploads })
    }

    /// The tensors as they were before any launch.
    pub fn tensors(&self) -> &DecodeTensors {
        &self.tensors
    }

    pub(super) fn uploads(&self) -> &Uploads<'m> {
        &self.uploads
    }

    /// The plan for one copy of the batch.
    ///
    /// # Errors
    /// The request was refused.
    pub fn plan(&mut self, case: &DecodeCase, device: &DeviceInfo) -> Result<DecodePlan> {
        let (scale, options) = (case.scale(), case.options());
        match self.tensors.latent {
            None => self.request(0, scale, options)?.check()?.plan(device),
            Some(_) => self.mla_request(0, scale, options)?.check()?.plan(device),
        }
    }

    /// Enqueues the step of copy `set` of the batch.
    ///
    /// # Errors
    /// The request was refused, or the machine failed.
    pub fn launch(
        &mut self,
        case: &DecodeCase,
        set: usize,
        plan: &DecodePlan,
        workspace: &mut Buffer<'_>,
        launcher: &dyn Launcher,
    ) -> Result<()> {
        let (scale, options) = (case.scale(), case.options());
        let workspace = &mut workspace.view_mut();
        match self.tensors.latent {
            None => self
                .request(set, scale, options)?
                .check()?
                .launch(plan, workspace, launcher),
            Some(_) => self
                .mla_request(set, scale, options)?
                .check()?
                .launch(plan, workspace, launcher),
        }
    }

    /// The request over copy `set` of a batch with a latent cache.
    ///
    /// # Errors
    /// None: the views fit.
    pub fn mla_request<'s>(
        &'s mut self,
        set: usize,
        softmax_scale: f32,
        options: DecodeOptions<'s>,
    ) -> Result<DecodeMlaRequest<'s>, RequestError> {
        let (tensors, uploads) = (&self.tensors, &self.uploads);
        let query_len = tensors.latent.unwrap_or(1);
        let num_seqs = tensors.num_seqs;
        let part = |tensor: &HostTensor| tensor.slice(set * num_seqs, num_seqs);
        // A row for each query token: sequences and their tokens as two dimensions.
        let rows = |tensor: &HostTensor| {
            let mut rows = tensor.slice(set * num_seqs * query_len, num_seqs * query_len);
            rows.shape.splice(..1, [num_seqs, query_len]);
            rows.strides.insert(0, query_len * rows.strides[0]);
            rows
        };
        let mut cache = tensors.key_cache.clone();
        cache.shape.remove(2);
        cache.strides.remove(2);
        let scale = |scale: &HostTensor| uploads.view(scale);
        Ok(DecodeMlaRequest {
            query: uploads.view(&rows(&tensors.query))?,
            cache: uploads.view(&cache)?,
            block_table: uploads.view(&part(&tensors.block_table))?,
            seq_lens: uploads.view(&part(&tensors.seq_lens))?,
            // SAFETY: `self` is borrowed exclusively, and launches of one stream run in order.
            out: unsafe { uploads.view_mut(&rows(&tensors.out))? },
            lse: match &tensors.lse {
                // SAFETY: as above.
                Some(lse) => Some(unsafe { uploads.view_mut(&rows(lse))? }),
                None => None,
            },
            softmax_scale,
            scales: match &tensors.scales {
                Some(scales) => Some(MlaScales {
                    q_scale: scales.q_scale.as_ref().map(scale).transpose()?,
                    k_scale: scale(&scales.k_scale)?,
                }),
                None => None,
            },
            options,
        })
    }

    /// The request over copy `set` of the batch; slopes and sinks are those of the tensors.
    ///
    /// # Errors
    /// None: the views fit.
    pub fn request<'s>(
        &'s mut self,
        set: usize,
        softmax_scale: f32,
        mut options: DecodeOptions<'s>,
    ) -> Result<DecodeRequest<'s>, RequestError> {
        let (tensors, uploads) = (&self.tensors, &self.uploads);
        let num_seqs = tensors.num_seqs;
        let part = |tensor: &HostTensor| tensor.slice(set * num_seqs, num_seqs);
        (options.alibi, options.sinks) = tensors.scores.views(uploads)?;
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
