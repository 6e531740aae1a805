//! Who runs a plan: a GPU through the CUDA driver, or the emulator.
//!
//! [`Launcher`] is what an operation needs: a place to put kernels. [`Runtime`] adds what tests, examples
//! and the command line need of a machine they own: memory, copies, waiting.
//!
//! On the CUDA side, data walks through one file after another: [`embedded`] PTX is compiled by the driver
//! ([`driver`]) into the functions of a [`module`], which a [`stream`] launches; `cuda` (feature `cust`) is the
//! [`Runtime`] around them, with memory, graphs and timing of its own.

pub mod buffer;
#[cfg(feature = "cust")]
pub mod cuda;
mod cuda_symbols;
pub mod driver;
pub mod embedded;
#[cfg(feature = "cust")]
pub mod graph;
#[cfg(feature = "cust")]
mod kept;
mod machine;
pub mod module;
#[cfg(feature = "cust")]
mod own_stream;
#[cfg(feature = "cust")]
mod pinned;
pub mod stream;

pub use buffer::{Buffer, DeviceMemory};
#[cfg(feature = "cust")]
pub use cuda::Cuda;
pub use driver::DriverError;
pub use embedded::Route;
#[cfg(feature = "cust")]
pub use graph::Graph;
pub use machine::MachineId;
pub use module::Kernels;
#[cfg(feature = "cust")]
pub use pinned::Pinned;
pub use stream::StreamLauncher;

use gpu_kernels::entry::EntryId;

use crate::error::Result;
use crate::plan::DeviceInfo;

/// One kernel launch of a plan: everything but its parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    /// The kernel.
    pub kernel: EntryId,
    /// Thread blocks along x, y, z.
    pub grid: [u32; 3],
    /// Bytes of dynamic shared memory; threads per block are the entry's.
    pub shared_bytes: u32,
    /// Whether it may be launched before the kernel ahead of it in the stream has finished; the kernel
    /// itself then waits before it reads (`Gpu::wait_for_previous_kernels`).
    pub overlaps_previous: bool,
}

/// Somewhere to put kernels, in order.
pub trait Launcher {
    /// Enqueues one kernel. `params` is the kernel's parameter block.
    ///
    /// # Errors
    /// The driver refused, or the emulator found a fault.
    ///
    /// # Safety
    /// The addresses in `params` are valid for what the kernel does with them until it has finished.
    unsafe fn launch(&self, launch: &Launch, params: &[u8]) -> Result<()>;

    /// Enqueues writing zeros to `bytes` bytes at `address`.
    ///
    /// # Errors
    /// As [`Launcher::launch`].
    ///
    /// # Safety
    /// The range is valid device memory that nobody else uses until the write has finished.
    unsafe fn zero(&self, address: u64, bytes: usize) -> Result<()>;

    /// What the planner needs to know of the machine.
    fn device(&self) -> DeviceInfo;

    /// Whose memory the kernels reach: operations refuse a [`Buffer`] of any other.
    fn machine(&self) -> MachineId;
}

/// A machine with memory of its own.
pub trait Runtime: Launcher + DeviceMemory {
    /// "cuda" or "emulator", with the device's name: how reports call it.
    fn name(&self) -> String;

    /// Whether kernels run on the CPU, where sums are f32.
    fn is_emulator(&self) -> bool;

    /// Waits for everything enqueued.
    ///
    /// # Errors
    /// What went wrong in it.
    fn synchronize(&self) -> Result<()>;
}
