//! Launching into a CUDA stream, ours or somebody else's.

use std::ffi::{c_uint, c_void};

use super::cuda_symbols::{self as sys, Handle, LaunchAttribute, LaunchConfig};
use super::driver::{DriverError, DriverVersion};
use super::{Kernels, Launch, Launcher, MachineId};
use crate::error::Result;
use crate::plan::DeviceInfo;

/// The first driver that captures overlapping launches into graphs.
const OVERLAP_IN_GRAPHS: DriverVersion = DriverVersion(12_030);

/// Puts kernels into one stream. Launching allocates nothing and waits for nothing, and may be captured
/// into a graph once the kernels are loaded ([`Kernels::prepare`]); the first launch of a kernel that is
/// not loaded compiles it.
#[derive(Clone, Copy, Debug)]
pub struct StreamLauncher<'k> {
    kernels: &'k Kernels,
    stream: Handle,
    overlap: bool,
}

impl<'k> StreamLauncher<'k> {
    /// A launcher into `stream`, a `CUstream` or `cudaStream_t`; null means the default stream.
    ///
    /// # Errors
    /// The stream belongs to another context than the kernels.
    ///
    /// # Safety
    /// `stream` is a valid stream, and stays so as long as the launcher is used.
    pub unsafe fn new(
        kernels: &'k Kernels,
        stream: *mut c_void,
    ) -> std::result::Result<Self, DriverError> {
        let mut context: Handle = std::ptr::null_mut();
        // SAFETY: this function's contract has the stream be valid; the driver writes one pointer.
        unsafe { sys::cuStreamGetCtx(stream, &mut context)? };
        if context as usize != kernels.context() {
            return Err(DriverError::WrongContext { what: "the stream" });
        }
        Ok(Self {
            kernels,
            stream,
            overlap: kernels.device().overlaps_launches() && kernels.driver() >= OVERLAP_IN_GRAPHS,
        })
    }

    /// The kernels it launches.
    pub fn kernels(&self) -> &'k Kernels {
        self.kernels
    }

    /// Whether the stream is being captured into a graph.
    ///
    /// # Errors
    /// The driver refused.
    pub fn is_capturing(&self) -> std::result::Result<bool, DriverError> {
        let mut status: c_uint = 0;
        // SAFETY: the contract of `new` has the stream stay valid; the driver writes one int.
        unsafe { sys::cuStreamIsCapturing(self.stream, &mut status)? };
        Ok(status != 0)
    }
}

impl Launcher for StreamLauncher<'_> {
    unsafe fn launch(&self, launch: &Launch, params: &[u8]) -> Result<()> {
        let entry = launch.kernel.entry();
        assert_eq!(
            params.len(),
            entry.params_bytes,
            "parameter block of {}",
            entry.name
        );
        let function = match self.kernels.function(launch.kernel) {
            Some(function) => function,
            None if self.is_capturing()? => {
                return Err(DriverError::NotPrepared { entry: entry.name }.into());
            }
            None => self.kernels.function_or_load(launch.kernel)?,
        };
        let attributes = [LaunchAttribute::OVERLAPS_PREVIOUS];
        let config = LaunchConfig {
            grid: launch.grid,
            block: [entry.threads, 1, 1],
            shared_bytes: launch.shared_bytes,
            stream: self.stream,
            attributes: attributes.as_ptr(),
            num_attributes: (self.overlap && launch.overlaps_previous).into(),
        };
        // The driver copies the block during the call and only reads it.
        let mut pointers = [params.as_ptr().cast_mut().cast::<c_void>()];
        // SAFETY: `new` checked that the kernels are loaded in the stream's context; the assertion, that the function
        // takes one block of this size; the contract of `Launcher::launch` has the addresses in it be good.
        unsafe {
            sys::cuLaunchKernelEx(
                &config,
                function,
                pointers.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        }
        .map_err(DriverError::from)?;
        Ok(())
    }

    unsafe fn zero(&self, address: u64, bytes: usize) -> Result<()> {
        if bytes > 0 {
            // SAFETY: the contract of `Launcher::zero` has the range be good, that of `new` the stream.
            unsafe { sys::cuMemsetD8Async(address, 0, bytes, self.stream) }
                .map_err(DriverError::from)?;
        }
        Ok(())
    }

    fn device(&self) -> DeviceInfo {
        self.kernels.device()
    }

    fn machine(&self) -> MachineId {
        MachineId::of_stream(self.stream)
    }
}
