//! Whether there is a usable CUDA driver, and every way in which there is not.
//!
//! # After an error
//!
//! - Most errors say that one call was refused: [`DriverError::OutOfMemory`] and [`DriverError::OutOfMemoryIn`],
//!   [`DriverError::Jit`], [`DriverError::NotPrepared`], [`DriverError::WrongContext`] and [`DriverError::Call`].
//!   What was begun is undone, and the machine works on: the same call may be made again. A graph whose capture
//!   failed does not exist, and the stream is not captured any more. Of an operation that launches several kernels,
//!   those before the one that was refused do run.
//! - After [`DriverError::ContextLost`] every call in that context fails, with this error, and what tensors hold is
//!   undefined. Drop what is in it, in any order. If it is a kernel that broke it, the driver gives the device back
//!   to a new process only; if somebody destroyed it, to [`Cuda::open`](super::Cuda::open). Other devices go on.
//! - Of a context that was destroyed nothing is freed: the driver has freed it, and the addresses and handles may
//!   be somebody else's by now.

use std::ffi::c_int;

use super::cuda_symbols::{self as sys, Failure};

/// The oldest driver that loads our PTX (8.1) and knows all the functions we call: CUDA 12.1.
pub const OLDEST_DRIVER: DriverVersion = DriverVersion(12_010);

/// A CUDA version as drivers count it: `1000 * major + 10 * minor`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DriverVersion(pub i32);

impl std::fmt::Display for DriverVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.0 / 1000, self.0 % 1000 / 10)
    }
}

/// The driver is missing, too old, or refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DriverError {
    /// The driver's library cannot be opened.
    #[error("there is no CUDA driver: {reason}")]
    NoDriver {
        /// The system's words.
        reason: String,
    },
    /// The driver is there but has no such function.
    #[error("the CUDA driver has no function `{symbol}`; CUDA {OLDEST_DRIVER} or later is needed")]
    MissingSymbol {
        /// Its name.
        symbol: &'static str,
    },
    /// The driver is too old.
    #[error("the CUDA driver supports CUDA {got}; {OLDEST_DRIVER} or later is needed")]
    TooOld {
        /// What it supports.
        got: DriverVersion,
    },
    /// There is a driver but no such GPU.
    #[error("there is no CUDA device {ordinal}; devices found: {count}")]
    NoDevice {
        /// The device asked for.
        ordinal: u32,
        /// Devices there are.
        count: u32,
    },
    /// The GPU is older than any PTX we have.
    #[error(
        "no kernels were compiled for compute capability {major}.{minor}; compiled for: {compiled}"
    )]
    ComputeCapability {
        /// Of the GPU.
        major: u32,
        /// Of the GPU.
        minor: u32,
        /// Architectures that PTX was compiled for, or what is the matter with it.
        compiled: String,
    },
    /// This library does not carry the PTX that was asked for.
    #[error("there is no PTX of route `{asked}` in this library, only: {there}")]
    Route {
        /// The route asked for.
        asked: String,
        /// The routes there are.
        there: String,
    },
    /// No context is current on the calling thread.
    #[error("no CUDA context is current on this thread")]
    NoContext,
    /// Two things that must belong to one context do not.
    #[error("{what} belongs to another CUDA context than the kernels were loaded in")]
    WrongContext {
        /// The stream, or the calling thread.
        what: &'static str,
    },
    /// A kernel was launched into a stream capture without having been loaded before.
    #[error(
        "`{entry}` must be loaded with `Kernels::prepare` before a stream that uses it is captured"
    )]
    NotPrepared {
        /// The kernel.
        entry: &'static str,
    },
    /// The driver could not compile the PTX of a kernel.
    #[error(
        "the driver (CUDA {driver}) cannot compile the PTX of `{entry}` (PTX {ptx_version}, {arch}): \
         {reason}\n{log}"
    )]
    Jit {
        /// The kernel.
        entry: &'static str,
        /// Architecture of the PTX.
        arch: String,
        /// Version of the PTX.
        ptx_version: String,
        /// What the driver supports.
        driver: DriverVersion,
        /// Its error.
        reason: String,
        /// Its log.
        log: String,
    },
    /// Not enough device memory.
    #[error("out of device memory: {bytes} bytes were asked for")]
    OutOfMemory {
        /// Size of the allocation that failed.
        bytes: usize,
    },
    /// Not enough memory, on the device or on the host, for something other than a tensor: a kernel that was about
    /// to be loaded, a graph, a stream. Nothing was done.
    #[error("out of memory in `{function}`{}", .entry.map_or(String::new(), |entry| format!(", loading `{entry}`")))]
    OutOfMemoryIn {
        /// The driver's function.
        function: &'static str,
        /// The kernel, if it was one.
        entry: Option<&'static str>,
    },
    /// The context cannot be used any more, because of what a kernel did in it, because the GPU failed, or because
    /// somebody destroyed it. Every later call in it fails.
    #[error("the CUDA context is lost: `{function}` failed with code {code}: {description}")]
    ContextLost {
        /// The driver's function that reported it first; it need not be the cause.
        function: &'static str,
        /// Its error code.
        code: u32,
        /// Name and meaning of the code.
        description: String,
    },
    /// The host's memory has another address on the GPU.
    #[error("pinned memory has no unified address: the GPU or its driver is too old")]
    NotUnified,
    /// Another call failed, or reports a failure of earlier work.
    #[error("`{function}` failed with code {code}: {description}")]
    Call {
        /// The driver's function.
        function: &'static str,
        /// Its error code.
        code: u32,
        /// Name and meaning of the code.
        description: String,
    },
}

impl From<Failure> for DriverError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::NoDriver => Self::NoDriver {
                reason: sys::library().err().unwrap_or("it vanished").to_owned(),
            },
            Failure::Missing(symbol) => Self::MissingSymbol { symbol },
            Failure::Code(function, OUT_OF_MEMORY) => Self::OutOfMemoryIn {
                function,
                entry: None,
            },
            Failure::Code(function, code) if loses_context(code) => Self::ContextLost {
                function,
                code,
                description: sys::describe(code),
            },
            Failure::Code(function, code) => Self::Call {
                function,
                code,
                description: sys::describe(code),
            },
        }
    }
}

/// `CUDA_ERROR_OUT_OF_MEMORY`.
pub(super) const OUT_OF_MEMORY: u32 = 2;

/// Whether cuda.h says of an error that the context, or the process, is of no use after it.
fn loses_context(code: u32) -> bool {
    match code {
        // The driver shuts down; no valid context; an ECC or NVLink error that cannot be corrected.
        4 | 201 | 214 | 220 => true,
        // A kernel read or wrote where it must not, or ran too long; the context was destroyed.
        700 | 702 | 709 => true,
        // A kernel's assertion, stack, instruction, alignment, address space, program counter; or something else.
        710 | 714..=719 => true,
        _ => false,
    }
}

/// Makes sure that there is a driver, new enough and initialised.
///
/// # Errors
/// [`DriverError::NoDriver`], [`DriverError::MissingSymbol`], [`DriverError::TooOld`], or what
/// initialising it returned.
pub fn require_driver() -> Result<DriverVersion, DriverError> {
    let mut version: c_int = 0;
    // SAFETY: writes one int.
    unsafe { sys::cuDriverGetVersion(&mut version)? };
    let version = DriverVersion(version);
    if version < OLDEST_DRIVER {
        return Err(DriverError::TooOld { got: version });
    }
    // SAFETY: may be called any number of times.
    match unsafe { sys::cuInit(0) } {
        // CUDA_ERROR_NO_DEVICE: a fact about the machine, which `device_count` reports as 0.
        Ok(()) | Err(Failure::Code(_, 100)) => Ok(version),
        Err(failure) => Err(failure.into()),
    }
}

/// GPUs that the driver sees.
///
/// # Errors
/// As [`require_driver`].
pub fn device_count() -> Result<u32, DriverError> {
    require_driver()?;
    let mut count: c_int = 0;
    // SAFETY: writes one int.
    match unsafe { sys::cuDeviceGetCount(&mut count) } {
        // Not initialised, because there was no device to initialise; or no device.
        Err(Failure::Code(_, 3 | 100)) => Ok(0),
        result => {
            result?;
            Ok(count.try_into().unwrap_or(0))
        }
    }
}

/// An integer property of a device (`CUdevice_attribute`).
pub(super) fn attribute(device: c_int, attribute: u32) -> Result<u32, DriverError> {
    let mut value: c_int = 0;
    // SAFETY: writes one int.
    unsafe { sys::cuDeviceGetAttribute(&mut value, attribute, device)? };
    Ok(value.try_into().unwrap_or(0))
}
