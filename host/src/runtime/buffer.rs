//! Device memory that we own: safe buffers over any runtime, freed when dropped.

use super::MachineId;
use crate::error::{Error, RequestError, Result};
use crate::tensor::{Dtype, MAX_RANK, TensorView, TensorViewMut, contiguous_strides};

/// Raw memory of a machine. [`Buffer`] is the safe face, and trusts it.
///
/// # Safety
/// What [`DeviceMemory::allocate`] returns is aligned and as large as it says, overlaps nothing else that is allocated,
/// and is readable and writable by kernels of the machine [`DeviceMemory::owner`], until it is freed.
pub unsafe trait DeviceMemory {
    /// Whose kernels can reach it: the same as the [`super::Launcher::machine`] they are launched on.
    fn owner(&self) -> MachineId;
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
    /// to the last element, gaps included. In each dimension an index has to step over all that the dimensions of
    /// smaller strides hold, so that no two elements are the same memory.
    ///
    /// # Errors
    /// More than [`MAX_RANK`] dimensions; `data` does not fit shape and strides; strides under which elements could
    /// overlap; or no memory.
    pub fn with_strides(
        memory: &'m dyn DeviceMemory,
        name: &'static str,
        dtype: Dtype,
        shape: &[usize],
        strides: &[i64],
        data: &[u8],
    ) -> Result<Self> {
        check_rank(name, shape)?;
        if shape.len() != strides.len() || !are_distinct(shape, strides) {
            return Err(Error::Request(RequestError::Stride {
                tensor: name,
                expected: format!("a stride for each dimension of {shape:?}, and no element twice"),
                got: strides.to_vec(),
            }));
        }
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
        // SAFETY: `allocate` gave exactly this many bytes.
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
    /// More than [`MAX_RANK`] dimensions; or no memory.
    pub fn uninit(
        memory: &'m dyn DeviceMemory,
        name: &'static str,
        dtype: Dtype,
        shape: &[usize],
    ) -> Result<Self> {
        check_rank(name, shape)?;
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
        // SAFETY: `self.bytes` were allocated when the buffer was made, and `data` is as long, as checked above.
        unsafe { self.memory.copy_in(self.address, data) }
    }

    /// Waits for everything enqueued and returns the contents.
    ///
    /// # Errors
    /// The driver refused, or something enqueued before failed.
    pub fn read(&self) -> Result<Vec<u8>> {
        let mut data = vec![0; self.bytes];
        // SAFETY: `self.bytes` were allocated when the buffer was made.
        unsafe { self.memory.copy_out(self.address, &mut data)? };
        Ok(data)
    }

    /// Bytes allocated.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The tensor, to read.
    ///
    /// The view answers for its own memory, not for what the contents lead to. Of indices (slots, block tables, lengths,
    /// starts, lists, schedules) a kernel makes addresses in other tensors, and with [`CheckMode::Off`] nobody looks at
    /// them first: that they are right is then the caller's responsibility, though no call is `unsafe`.
    /// [`CheckMode::Device`] takes it over, as far as it says it looks.
    ///
    /// [`CheckMode::Off`]: crate::ops::CheckMode::Off
    /// [`CheckMode::Device`]: crate::ops::CheckMode::Device
    pub fn view(&self) -> TensorView<'_> {
        // SAFETY: `with_strides` and `uninit` allocated the whole span; the borrow keeps it alive. The contents, where they
        // are indices, are the caller's responsibility as long as checks are off: documented above.
        unsafe { TensorView::from_raw(self.address, self.dtype, &self.shape, &self.strides) }
            .expect("a buffer has few dimensions, each with a stride")
            .of_machine(self.memory.owner())
    }

    /// The tensor, to write. What [`Buffer::view`] says of indices holds here, too.
    pub fn view_mut(&mut self) -> TensorViewMut<'_> {
        // SAFETY: `with_strides` and `uninit` allocated the whole span, and let no two elements be the same memory; the
        // borrow is exclusive and keeps it alive.
        unsafe { TensorViewMut::from_raw(self.address, self.dtype, &self.shape, &self.strides) }
            .expect("a buffer has few dimensions, each with a stride")
            .of_machine(self.memory.owner())
    }
}

impl Drop for Buffer<'_> {
    fn drop(&mut self) {
        // SAFETY: allocated by us, freed once; launches that use it were enqueued before on the same
        // machine, whose `free` waits for them.
        unsafe { self.memory.free(self.address, self.bytes) };
    }
}

/// What a view can have.
fn check_rank(name: &'static str, shape: &[usize]) -> Result<()> {
    if shape.len() <= MAX_RANK {
        return Ok(());
    }
    Err(Error::Request(RequestError::Shape {
        tensor: name,
        expected: format!("at most {MAX_RANK} dimensions"),
        got: shape.to_vec(),
    }))
}

/// Whether each stride steps over all that the smaller ones span: then distinct indices are distinct elements.
fn are_distinct(shape: &[usize], strides: &[i64]) -> bool {
    let mut dims: Vec<(u64, u64)> = (shape.iter().zip(strides))
        .filter(|&(&extent, _)| extent > 1)
        .map(|(&extent, &stride)| (stride.unsigned_abs(), extent as u64 - 1))
        .collect();
    dims.sort_unstable();
    let mut span = 0u64;
    shape.contains(&0)
        || dims.into_iter().all(|(stride, steps)| {
            let is_beyond = stride > span;
            span = span.saturating_add(stride.saturating_mul(steps));
            is_beyond
        })
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
