//! Tensors on a machine, and views of them.

use std::sync::Arc;

use super::view_mistake::{Parts, ViewBreakerCell};
use crate::error::{RequestError, Result};
use crate::reference::{HostTensor, Storage};
use crate::runtime::{Buffer, DeviceMemory};
use crate::tensor::{Dtype, TensorView, TensorViewMut};

/// Storages on a machine, each once however many tensors lie in it.
pub(crate) struct Uploads<'m> {
    memory: &'m dyn DeviceMemory,
    storages: Vec<(Arc<Storage>, Buffer<'m>)>,
    breaker: ViewBreakerCell,
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
            breaker: ViewBreakerCell::default(),
        };
        for tensor in tensors {
            uploads.add(&tensor.storage)?;
        }
        Ok(uploads)
    }

    /// Copies a storage to the machine, unless it is there.
    ///
    /// # Errors
    /// Out of memory.
    pub(crate) fn add(&mut self, storage: &Arc<Storage>) -> Result<()> {
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
        let strides = tensor.strides.iter().map(|&stride| stride as i64);
        let mut parts = Parts {
            address: self.address(tensor),
            dtype: tensor.dtype,
            shape: tensor.shape.clone(),
            strides: strides.collect(),
        };
        if let Some(breaker) = self.breaker.borrow_mut().as_mut() {
            breaker.see(tensor.storage.name, &mut parts);
        }
        parts
    }

    /// What makes a mistake in a view, if anything does.
    pub(crate) fn breaker(&self) -> &ViewBreakerCell {
        &self.breaker
    }

    /// The tensor, to read.
    pub(crate) fn view(&self, tensor: &HostTensor) -> Result<TensorView<'_>, RequestError> {
        let view = self.place(tensor);
        // SAFETY: the tensor lies within its storage, whose buffer lives as long as `self`. Whoever breaks a view has
        // an emulator look at every access.
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
        // SAFETY: the tensor lies within its storage, whose buffer lives as long as `self`; by this function's contract
        // nobody else has its elements. Whoever breaks a view has an emulator look at every access.
        unsafe { TensorViewMut::from_raw(view.address, view.dtype, &view.shape, &view.strides) }
    }

    /// Where the tensor's first element is.
    pub(crate) fn address(&self, tensor: &HostTensor) -> u64 {
        let offset = (tensor.offset * tensor.dtype.size()) as u64;
        self.buffer(tensor).view().address() + offset
    }

    /// Overwrites the element at `index`. Nothing that is enqueued may use it.
    ///
    /// # Errors
    /// The machine failed.
    pub(crate) fn plant(&self, tensor: &HostTensor, index: &[usize], bytes: &[u8]) -> Result<()> {
        let size = tensor.dtype.size();
        assert_eq!(bytes.len(), size, "an element");
        let at = tensor.position(index) * size;
        assert!(at + size <= tensor.storage.len, "within the storage");
        let address = self.buffer(tensor).view().address() + at as u64;
        // SAFETY: `at + size <= storage.len`, which the storage's buffer holds (`Uploads::add`).
        unsafe { self.memory.copy_in(address, bytes) }
    }

    /// Waits, and reads all storages, with their names.
    ///
    /// # Errors
    /// Something enqueued failed.
    pub(crate) fn snapshot(&self) -> Result<Vec<(&'static str, Vec<u8>)>> {
        let read = |(storage, buffer): &(Arc<Storage>, Buffer<'m>)| {
            buffer.read().map(|bytes| (storage.name, bytes))
        };
        self.storages.iter().map(read).collect()
    }

    /// The tensor with the bytes that its storage has on the machine now.
    pub(crate) fn read(&self, tensor: &HostTensor) -> Result<HostTensor> {
        let mut bytes = self.buffer(tensor).read()?;
        bytes.truncate(tensor.storage.len);
        Ok(tensor.with_bytes(bytes))
    }
}
