//! Views with made-up addresses, to be changed and refused; and a launcher that nothing may reach.

use std::cell::RefCell;

use ferroattn::error::RequestError;
use ferroattn::ops::CacheTable;
use ferroattn::plan::DeviceInfo;
use ferroattn::runtime::{Launch, Launcher, MachineId};
use ferroattn::tensor::{Dtype, TensorView, TensorViewMut, contiguous_strides};
use ferroattn::{Error, Result};

/// A change to a good request, and the message that it is refused with.
pub type Refusal<T> = (fn(&mut T), &'static str);

/// What a view is made of.
#[derive(Clone, Debug)]
pub struct Parts {
    pub address: u64,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub strides: Vec<i64>,
}

/// A contiguous view at a made-up address.
pub fn parts(dtype: Dtype, shape: &[usize]) -> Parts {
    Parts {
        address: 0x1000,
        dtype,
        shape: shape.to_vec(),
        strides: contiguous_strides(shape),
    }
}

impl Parts {
    /// Another shape, contiguous.
    pub fn shaped(&mut self, shape: &[usize]) {
        *self = Self {
            address: self.address,
            ..parts(self.dtype, shape)
        };
    }

    /// The view.
    pub fn view(&self) -> TensorView<'static> {
        // SAFETY: the view is checked and never handed to a kernel.
        unsafe { TensorView::from_raw(self.address, self.dtype, &self.shape, &self.strides) }
            .expect("a view")
    }

    /// The view, to write.
    pub fn view_mut(&self) -> TensorViewMut<'static> {
        // SAFETY: as in `view`.
        unsafe { TensorViewMut::from_raw(self.address, self.dtype, &self.shape, &self.strides) }
            .expect("a view")
    }
}

/// Caches of a shape, contiguous, whose addresses are in a tensor.
pub fn cache_table(
    addresses: TensorView<'static>,
    dtype: Dtype,
    shape: &[usize],
) -> CacheTable<'static> {
    // SAFETY: the caches are never handed to a kernel.
    unsafe { CacheTable::from_raw(addresses, dtype, shape, &contiguous_strides(shape)) }
        .expect("strides for each dimension")
}

/// Runs nothing, and writes launches down with their parameters.
#[derive(Default)]
struct Recorder(RefCell<Vec<(Launch, Vec<u8>)>>);

impl Launcher for Recorder {
    unsafe fn launch(&self, launch: &Launch, params: &[u8]) -> Result<()> {
        self.0.borrow_mut().push((*launch, params.to_vec()));
        Ok(())
    }
    unsafe fn zero(&self, _address: u64, _bytes: usize) -> Result<()> {
        Ok(())
    }
    fn device(&self) -> DeviceInfo {
        DeviceInfo::H200
    }
    fn machine(&self) -> MachineId {
        MachineId::unique()
    }
}

/// A launcher that nothing may reach.
pub struct Untouched;

impl Launcher for Untouched {
    unsafe fn launch(&self, launch: &Launch, _params: &[u8]) -> Result<()> {
        panic!("launched {launch:?}")
    }
    unsafe fn zero(&self, address: u64, _bytes: usize) -> Result<()> {
        panic!("zeroed {address:#x}")
    }
    fn device(&self) -> DeviceInfo {
        DeviceInfo::H200
    }
    fn machine(&self) -> MachineId {
        MachineId::unique()
    }
}

/// What a launch puts on the machine.
pub fn launched(
    launch: impl FnOnce(&mut TensorViewMut<'_>, &dyn Launcher) -> Result<()>,
) -> Vec<(Launch, Vec<u8>)> {
    let recorder = Recorder::default();
    let mut workspace = parts(Dtype::U8, &[1 << 40]).view_mut();
    launch(&mut workspace, &recorder).expect("the plan fits");
    recorder.0.into_inner()
}

/// The message with which a launch is refused, having put nothing on the machine.
pub fn refused_launch(
    launch: impl FnOnce(&mut TensorViewMut<'_>, &dyn Launcher) -> Result<()>,
) -> String {
    let mut workspace = parts(Dtype::U8, &[1 << 40]).view_mut();
    match launch(&mut workspace, &Untouched) {
        Err(Error::Request(error)) => error.to_string(),
        other => panic!("expected a refused launch, got {other:?}"),
    }
}

/// The message with which a launch refuses its plan, having put nothing on the machine.
pub fn refused_plan(
    launch: impl FnOnce(&mut TensorViewMut<'_>, &dyn Launcher) -> Result<()>,
) -> String {
    let mut workspace = parts(Dtype::U8, &[1 << 40]).view_mut();
    match launch(&mut workspace, &Untouched) {
        Err(Error::Request(error @ RequestError::Plan { .. })) => error.to_string(),
        other => panic!("expected a refused plan, got {other:?}"),
    }
}
