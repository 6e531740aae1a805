//! Tensors in device memory that somebody else owns: an address, a dtype, a shape and strides.
//!
//! Building a view is the one `unsafe` step of using this crate with raw pointers: from then on the view
//! carries its shape along, and the operations check it.

use std::fmt;
use std::marker::PhantomData;

use crate::error::RequestError;
use crate::runtime::MachineId;

pub use gpu_kernels::dtype::Dtype;

/// Most dimensions a view has.
pub const MAX_RANK: usize = 5;

/// A tensor that kernels read.
#[derive(Clone, Copy)]
pub struct TensorView<'a> {
    address: u64,
    /// Whose memory it is, if a [`crate::runtime::Buffer`] says so.
    machine: Option<MachineId>,
    dtype: Dtype,
    rank: usize,
    shape: [usize; MAX_RANK],
    strides: [i64; MAX_RANK],
    borrow: PhantomData<&'a [u8]>,
}

/// Where an empty tensor lies that has no address.
const EMPTY: u64 = 256;

/// A tensor that kernels write. It hands out its read-only face through [`TensorViewMut::view`].
pub struct TensorViewMut<'a>(TensorView<'a>, PhantomData<&'a mut [u8]>);

impl<'a> TensorView<'a> {
    /// A view of `shape` at `address`, `strides` in elements, outermost dimension first.
    ///
    /// # Errors
    /// More than [`MAX_RANK`] dimensions, or as many strides as dimensions are missing.
    ///
    /// # Safety
    /// Every element that the shape and strides name lies in memory of the device that will run the
    /// launches, is initialised where the operation's documentation says it is read, and stays allocated
    /// and unwritten by others until those launches have finished: replays too, if they are captured into a graph. Block
    /// tables, slots, starts, lengths and schedules hold what the operation's documentation says, unless the launch checks them
    /// ([`crate::ops::CheckMode::Device`]).
    pub unsafe fn from_raw(
        address: u64,
        dtype: Dtype,
        shape: &[usize],
        strides: &[i64],
    ) -> Result<Self, RequestError> {
        if shape.len() > MAX_RANK || shape.len() != strides.len() {
            return Err(RequestError::Shape {
                tensor: "view",
                expected: format!(
                    "at most {MAX_RANK} dimensions, each with a stride ({} given)",
                    strides.len()
                ),
                got: shape.to_vec(),
            });
        }
        // Kernels take an address of 0 for a tensor that is not given.
        let is_empty = shape.contains(&0);
        let mut view = Self {
            address: if is_empty && address == 0 {
                EMPTY
            } else {
                address
            },
            machine: None,
            dtype,
            rank: shape.len(),
            shape: [1; MAX_RANK],
            strides: [0; MAX_RANK],
            borrow: PhantomData,
        };
        view.shape[..shape.len()].copy_from_slice(shape);
        view.strides[..shape.len()].copy_from_slice(strides);
        Ok(view)
    }

    /// A view whose elements lie side by side, the last dimension fastest.
    ///
    /// # Errors
    /// As [`TensorView::from_raw`].
    ///
    /// # Safety
    /// As [`TensorView::from_raw`].
    pub unsafe fn contiguous(
        address: u64,
        dtype: Dtype,
        shape: &[usize],
    ) -> Result<Self, RequestError> {
        // SAFETY: `from_raw`'s contract is this function's, with the strides of a contiguous tensor.
        unsafe { Self::from_raw(address, dtype, shape, &contiguous_strides(shape)) }
    }

    /// Device address of the first element.
    pub fn address(&self) -> u64 {
        self.address
    }
    /// The machine whose memory it is; none for a view that was made from an address.
    pub fn machine(&self) -> Option<MachineId> {
        self.machine
    }
    /// Element type.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }
    /// Elements along each dimension.
    pub fn shape(&self) -> &[usize] {
        &self.shape[..self.rank]
    }
    /// Elements from one index to the next along each dimension.
    pub fn strides(&self) -> &[i64] {
        &self.strides[..self.rank]
    }

    /// The same, known to be memory of a machine.
    pub(crate) fn of_machine(mut self, machine: MachineId) -> Self {
        self.machine = Some(machine);
        self
    }

    /// Whether dtype, shape and strides are the same.
    pub(crate) fn is_like(&self, other: &TensorView<'_>) -> bool {
        // Dimensions that a view does not have are alike in all.
        (self.dtype, self.rank) == (other.dtype, other.rank)
            && self.shape == other.shape
            && self.strides == other.strides
    }

    /// Its first `count` rows along the first dimension, or none if there are fewer.
    pub(crate) fn first(mut self, count: usize) -> Option<Self> {
        let rows = self.shape.first_mut().filter(|rows| count <= **rows)?;
        *rows = count;
        Some(self)
    }
}

impl<'a> TensorViewMut<'a> {
    /// As [`TensorView::from_raw`], for a tensor that kernels write.
    ///
    /// # Errors
    /// As [`TensorView::from_raw`].
    ///
    /// # Safety
    /// As [`TensorView::from_raw`], and nobody else reads or writes the elements until the launches (and replays) have
    /// finished, but for a tensor of the same request where its documentation says that both may be the same memory;
    /// distinct indices name distinct elements.
    pub unsafe fn from_raw(
        address: u64,
        dtype: Dtype,
        shape: &[usize],
        strides: &[i64],
    ) -> Result<Self, RequestError> {
        // SAFETY: this function's contract has all of that of `TensorView::from_raw`.
        unsafe { TensorView::from_raw(address, dtype, shape, strides) }
            .map(|view| Self(view, PhantomData))
    }

    /// As [`TensorView::contiguous`], for a tensor that kernels write.
    ///
    /// # Errors
    /// As [`TensorView::from_raw`].
    ///
    /// # Safety
    /// As [`TensorViewMut::from_raw`].
    pub unsafe fn contiguous(
        address: u64,
        dtype: Dtype,
        shape: &[usize],
    ) -> Result<Self, RequestError> {
        // SAFETY: `from_raw`'s contract is this function's, with the strides of a contiguous tensor.
        unsafe { Self::from_raw(address, dtype, shape, &contiguous_strides(shape)) }
    }

    /// Shape, strides and address, to look at.
    pub fn view(&self) -> &TensorView<'a> {
        &self.0
    }

    /// As [`TensorView::of_machine`].
    pub(crate) fn of_machine(self, machine: MachineId) -> Self {
        Self(self.0.of_machine(machine), PhantomData)
    }

    /// As [`TensorView::first`].
    ///
    /// # Safety
    /// Whoever writes these rows, and whoever writes the whole, do it one after the other.
    pub(crate) unsafe fn first(&self, count: usize) -> Option<Self> {
        Some(Self(self.0.first(count)?, PhantomData))
    }
}

impl fmt::Debug for TensorView<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}{:?} at {:#x}, strides {:?}",
            self.dtype,
            self.shape(),
            self.address,
            self.strides()
        )
    }
}

impl fmt::Debug for TensorViewMut<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "mut {:?}", self.0)
    }
}

/// Strides of a tensor whose elements lie side by side.
pub fn contiguous_strides(shape: &[usize]) -> Vec<i64> {
    let mut strides = vec![1i64; shape.len()];
    for dim in (1..shape.len()).rev() {
        let extent = i64::try_from(shape[dim]).unwrap_or(i64::MAX);
        strides[dim - 1] = strides[dim].saturating_mul(extent);
    }
    strides
}
