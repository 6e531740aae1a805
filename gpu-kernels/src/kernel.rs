//! What the table of kernels knows of each: a kernel is a type, and its shape is a part of that type.

use crate::entry::Variant;
use crate::gpu::Gpu;
use crate::params::KernelParams;

/// A kernel for one shape and one set of dtypes. Implemented beside each kernel, for all its generics.
pub trait Kernel {
    /// Its parameter block.
    type Params: KernelParams;
    /// What it computes, and for which shapes.
    const VARIANT: Variant;
    /// Threads per thread block.
    const THREADS: u32;
    /// Thread blocks that have to fit on a multiprocessor: what the compiler holds registers down for.
    const MIN_CTAS: u32 = 1;

    /// What each lane does.
    ///
    /// # Safety
    /// Launched as the kernel's documentation says; `params` names tensors of the shapes it documents, valid for the
    /// launch.
    unsafe fn run<G: Gpu>(gpu: G, params: &Self::Params);
}

/// Head sizes, of queries and keys and of values, in steps of 16.
#[derive(Debug)]
pub enum Dims<const K_STEPS: usize, const V_STEPS: usize> {}
/// Head sizes of 64.
pub type D64 = Dims<4, 4>;
/// Head sizes of 96.
pub type D96 = Dims<6, 6>;
/// Head sizes of 128.
pub type D128 = Dims<8, 8>;
/// Head sizes of 192.
pub type D192 = Dims<12, 12>;
/// Queries and keys of 192, values of 128.
pub type D192V128 = Dims<12, 8>;
/// Head sizes of 256.
pub type D256 = Dims<16, 16>;
/// Rows of 288 of a latent cache, 256 of them values.
pub type D288V256 = Dims<18, 16>;
/// Rows of 576 of a latent cache, 512 of them values.
pub type D576V512 = Dims<36, 32>;

/// Query heads of a KV head that a thread block takes, in tiles of 8.
#[derive(Debug)]
pub enum Heads<const TILES: usize> {}
/// Up to 8.
pub type H8 = Heads<1>;
/// Up to 16.
pub type H16 = Heads<2>;
