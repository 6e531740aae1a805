//! Device memory that we own: safe buffers over any runtime, freed when dropped.

use crate::error::{Error, RequestError, Result};
use crate::tensor::{Dtype, TensorView, TensorViewMut, contiguous_strides};

/// Raw memory of a machine. [`Buffer`] is the safe face.
pub trait DeviceMemory {
    /// Allocates `bytes` bytes, 256-byte aligned, contents undefined. `name` labels them in faults.
    ///
    /// # Errors
    /// Out of memory.
    fn allocate(&self, name: &'static str, bytes: usize) -> Result<u64>;
    /// Frees what [`DeviceMemory::allocate`] returned.
    ///
    /// # Safety
    /// `address` came from `allocate` on this machine, was not freed, and nothing enqueued uses it.
    unsafe fn free(&self, address: u64, bytes: usize);
    /// Copies to the device and waits.
    ///
    /// # Errors
    /// The driver refused.
    ///
    /// # Safety
    /// The target range lies in one allocation.
    unsafe fn copy_in(&self, address: u64, bytes: &[u8]) -> Result<()>;
    /// Waits for what was enqueued, then copies from the device.
    ///
    /// # Errors
    /// The driver refused, or something enqueued before failed.
    ///
    /// # Safety
    /// The source range lies in one allocation.
    unsafe fn copy_out(&self, address: u64, bytes: &mut [u8]) -> Result<()>;
}

/// An owned device tensor, contiguous unless strides were given.
pub struct Buffer<'m> {
    memory: &'m dyn DeviceMemory,
    address: u64,
    bytes: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    strides: Vec<i64>,
}

impl<'m> Buffer<'m> {
    /// Allocates and fills a tensor. `strides` count elements; `data` holds the whole span from the first
    /// to the last element, gaps included.
    ///
    /// # Errors
    /// `data` does not fit shape and strides; or no memory.
    pub fn with_strides(
        memory: &'m dyn DeviceMemory,
        name: &'static str,
        dtype: Dtype,
        shape: &[usize],
        strides: &[i64],
        data: &[u8],
    ) -> Result<Self> {
        let bytes = span_bytes(dtype, shape, strides);
        if bytes != Some(data.len()) {
            return Err(Error::Request(RequestError::Value {
                name,
                expected: format!("{bytes:?} bytes for shape {shape:?}, strides {strides:?}"),
                got: format!("{} bytes", data.len()),
            }));
        }
        let address = memory.allocate(name, data.len())?;
        let buffer = Self {
            memory,
            address,
            bytes: data.len(),
            dtype,
            shape: shape.to_vec(),
            strides: strides.to_vec(),
        };
        // SAFETY: the allocation is exactly this long.
        unsafe { memory.copy_in(address, data)? };
        Ok(buffer)
    }

    /// Allocates and fills a contiguous tensor.
    ///
    /// # Errors
    /// As [`Buffer::with_strides`].
    pub fn new(
        memory: &'m dyn DeviceMemory,
        name: &'static str,
        dtype: Dtype,
        shape: &[usize],
        data: &[u8],
    ) -> Result<Self> {
        Self::with_strides(memory, name, dtype, shape, &contiguous_strides(shape), data)
    }

    /// Allocates a contiguous tensor and leaves it unwritten.
    ///
    /// # Errors
    /// No memory.
    pub fn uninit(
        memory: &'m dyn DeviceMemory,
        name: &'static str,
        dtype: Dtype,
        shape: &[usize],
    ) -> Result<Self> {
        let strides = contiguous_strides(shape);
        let bytes = span_bytes(dtype, shape, &strides).ok_or_else(|| RequestError::Value {
            name,
            expected: "a shape that fits in memory".into(),
            got: format!("{shape:?}"),
        })?;
        let address = memory.allocate(name, bytes)?;
        Ok(Self {
            memory,
            address,
            bytes,
            dtype,
            shape: shape.to_vec(),
            strides,
        })
    }

    /// Replaces the contents.
    ///
    /// # Errors
    /// `data` is not as long as the buffer; the driver refused.
    pub fn write(&mut self, data: &[u8]) -> Result<()> {
        if data.len() != self.bytes {
            return Err(Error::Request(RequestError::Value {
                name: "data",
                expected: format!("{} bytes", self.bytes),
                got: format!("{} bytes", data.len()),
            }));
        }
        // SAFETY: the allocation is exactly this long.
        unsafe { self.memory.copy_in(self.address, data) }
    }

    /// Waits for everything enqueued and returns the contents.
    ///
    /// # Errors
    /// The driver refused, or something enqueued before failed.
    pub fn read(&self) -> Result<Vec<u8>> {
        let mut data = vec![0; self.bytes];
        // SAFETY: the allocation is exactly this long.
        unsafe { self.memory.copy_out(self.address, &mut data)? };
        Ok(data)
    }

    /// Bytes allocated.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The tensor, to read.
    pub fn view(&self) -> TensorView<'_> {
        // SAFETY: `with_strides` and `uninit` allocated the whole span; the borrow keeps it alive.
        unsafe { TensorView::from_raw(self.address, self.dtype, &self.shape, &self.strides) }
            .expect("a buffer has as many strides as dimensions")
    }

    /// The tensor, to write.
    pub fn view_mut(&mut self) -> TensorViewMut<'_> {
        // SAFETY: as in `view`, and the borrow is exclusive.
        unsafe { TensorViewMut::from_raw(self.address, self.dtype, &self.shape, &self.strides) }
            .expect("a buffer has as many strides as dimensions")
    }
}

impl Drop for Buffer<'_> {
    fn drop(&mut self) {
        // SAFETY: allocated by us, freed once; launches that use it were enqueued before on the same
        // machine, whose `free` waits for them.
        unsafe { self.memory.free(self.address, self.bytes) };
    }
}

/// Bytes from the first to the last element, or `None` if they overflow or a stride is negative.
pub fn span_bytes(dtype: Dtype, shape: &[usize], strides: &[i64]) -> Option<usize> {
    if shape.contains(&0) {
        return Some(0);
    }
    let mut last = 0usize;
    for (&extent, &stride) in shape.iter().zip(strides) {
        last = last.checked_add((extent - 1).checked_mul(usize::try_from(stride).ok()?)?)?;
    }
    last.checked_add(1)?.checked_mul(dtype.size())
}
