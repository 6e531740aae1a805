//! Tensors of more than 2^32 elements, of which the emulator holds only the blocks that are named.

use ferroattn::emulator::Emulator;
use ferroattn::reference::HostTensor;
use ferroattn::runtime::{Buffer, DeviceMemory};
use ferroattn::tensor::Dtype;

/// A tensor whose blocks are the last of a buffer: each lies beyond 2^32 elements.
pub(crate) struct Far<'m> {
    pub(crate) buffer: Buffer<'m>,
    pub(crate) first_block: usize,
    /// Bytes before it.
    offset: u64,
    emulator: &'m Emulator,
}

impl<'m> Far<'m> {
    pub(crate) fn new(emulator: &'m Emulator, tensor: &HostTensor) -> Self {
        let first_block = (1usize << 32).div_ceil(tensor.strides[0]) + 3;
        let mut shape = tensor.shape.clone();
        shape[0] += first_block;
        let buffer = Buffer::uninit(emulator, "far", tensor.dtype, &shape).expect("sparse");
        let offset = (first_block * tensor.strides[0] * tensor.dtype.size()) as u64;
        let far = Self {
            buffer,
            first_block,
            offset,
            emulator,
        };
        // SAFETY: the last blocks of the buffer.
        unsafe { emulator.copy_in(far.address(), &tensor.storage.bytes) }.expect("copied");
        far
    }

    pub(crate) fn address(&self) -> u64 {
        self.buffer.view().address() + self.offset
    }

    /// The bytes of the last blocks now.
    pub(crate) fn bytes(&self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        // SAFETY: the last blocks of the buffer.
        unsafe { self.emulator.copy_out(self.address(), &mut bytes) }.expect("copied");
        bytes
    }
}

pub(crate) fn upload<'m>(emulator: &'m Emulator, tensor: &HostTensor) -> Buffer<'m> {
    let bytes = &tensor.storage.bytes;
    Buffer::new(emulator, "input", tensor.dtype, &tensor.shape, bytes).expect("uploaded")
}

pub(crate) fn workspace(emulator: &Emulator, bytes: usize) -> Buffer<'_> {
    Buffer::uninit(emulator, "workspace", Dtype::U8, &[bytes.max(256)]).expect("a workspace")
}
