//! Views with made-up addresses, to be changed and refused; and a launcher that nothing may reach.

use ferroattn::Result;
use ferroattn::plan::DeviceInfo;
use ferroattn::runtime::{Launch, Launcher};
use ferroattn::tensor::{Dtype, TensorView, TensorViewMut, contiguous_strides};

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
}
