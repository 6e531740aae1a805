//! Arguments of `read_ceiling`.

use crate::params::KernelParams;

/// Arguments of `read_ceiling`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ReadCeilingParams {
    /// `bytes` bytes, 16-byte aligned; read in whole strides of the grid, 8 at a time.
    pub source: u64,
    /// One u32 per thread of the grid.
    pub sink: u64,
    /// Bytes to read.
    pub bytes: u64,
}

const _: () = assert!(size_of::<ReadCeilingParams>() == 3 * 8);
// SAFETY: repr(C), Copy; the size above is the sum of the fields, so there is no padding.
unsafe impl KernelParams for ReadCeilingParams {}
