//! The `cu*` functions of the CUDA driver, forwarded to the `libcuda.so.1` of the machine we run on.
//!
//! `cust` expects to be linked with libcuda. A program that is would not even start on a machine without a
//! driver, so the functions that `cust` calls are defined here under their C names and look the real ones
//! up when they are first called. Functions that only this crate calls are looked up in the same way, but
//! keep Rust names.
//!
//! Without the feature `cust` nothing is exported, and nothing here has a C name.
//!
//! Every call leaves a note of how it failed, per thread: which function, and which code, or that the
//! driver lacks it. [`take_failure`] reads it. `cust` itself knows only the codes of its time; receiving
//! another one would be undefined behaviour, so the exported functions turn those into 999 ("unknown").
//!
//! # In a program that also uses CUDA in another way
//!
//! - A library that is linked with the real libcuda is bound to the functions of this module at most if
//!   the executable exports them, and then still reaches the driver through them.
//! - Rust code that calls `cust`, `cust_raw` or another binding of these names shares them.
//! - Two copies of this crate in one program (two versions) define them twice: the linker refuses.

#![cfg_attr(
    not(feature = "cust"),
    allow(dead_code, reason = "`Cuda` calls the rest")
)]

use std::cell::Cell;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::OnceLock;

use libloading::Library;

/// What the driver's functions return: 0, or an error code.
pub(super) type Code = c_uint;
/// Contexts, streams, modules, functions, events, graphs: all opaque pointers.
pub(super) type Handle = *mut c_void;

/// `CUDA_ERROR_NOT_FOUND`: what a missing function returns to `cust`.
#[cfg(feature = "cust")]
const NOT_FOUND: Code = 500;
/// `CUDA_ERROR_UNKNOWN`.
#[cfg(feature = "cust")]
const UNKNOWN: Code = 999;

/// How a call of the driver failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// There is no driver.
    NoDriver,
    /// The driver does not have this function.
    Missing(&'static str),
    /// The function returned an error.
    Code(&'static str, Code),
}

thread_local! {
    static LAST_FAILURE: Cell<Option<Failure>> = const { Cell::new(None) };
}

/// How the last failing call of this thread failed; forgets it.
pub(super) fn take_failure() -> Option<Failure> {
    LAST_FAILURE.take()
}

/// Where the driver is looked for.
pub(super) fn library_name() -> String {
    std::env::var("FERROATTN_LIBCUDA").unwrap_or_else(|_| {
        if cfg!(windows) {
            "nvcuda.dll".into()
        } else {
            "libcuda.so.1".into()
        }
    })
}

/// The driver, opened once and never closed; or why it cannot be opened.
pub(super) fn library() -> Result<&'static Library, &'static str> {
    static LIBRARY: OnceLock<Result<Library, String>> = OnceLock::new();
    LIBRARY
        .get_or_init(|| {
            // SAFETY: the initialisers of NVIDIA's driver are made to be run by any program; whoever sets
            // FERROATTN_LIBCUDA answers for the library named there.
            unsafe { Library::new(library_name()) }.map_err(|error| {
                let cause = std::error::Error::source(&error);
                cause.map_or_else(|| error.to_string(), ToString::to_string)
            })
        })
        .as_ref()
        .map_err(String::as_str)
}

/// Address of a function of the driver.
fn lookup(name: &'static str) -> Result<usize, Failure> {
    let library = library().map_err(|_| Failure::NoDriver)?;
    // SAFETY: only the address is taken; `table!` gives it the type that cuda.h does.
    let symbol = unsafe { library.get::<unsafe extern "C" fn()>(name) };
    symbol
        .map(|symbol| *symbol as usize)
        .map_err(|_| Failure::Missing(name))
}

macro_rules! table {
    (
        exported { $($exported:ident($($e_arg:ident: $e_type:ty),*);)* }
        internal { $($internal:ident($($i_arg:ident: $i_type:ty),*);)* }
    ) => {
        $(table!(@call $exported($($e_arg: $e_type),*));)*
        $(table!(@call $internal($($i_arg: $i_type),*));)*

        /// The C names.
        #[cfg(feature = "cust")]
        mod exported {
            use super::*;
            $(
                #[unsafe(no_mangle)]
                unsafe extern "C" fn $exported($($e_arg: $e_type),*) -> Code {
                    // SAFETY: this function's contract is that of the driver's, whose name it has.
                    match unsafe { super::$exported($($e_arg),*) } {
                        Ok(()) => 0,
                        Err(Failure::Code(_, code)) if cust_knows(code) => code,
                        Err(Failure::Code(..)) => UNKNOWN,
                        Err(Failure::Missing(_) | Failure::NoDriver) => NOT_FOUND,
                    }
                }
            )*
        }
    };
    (@call $name:ident($($arg:ident: $type:ty),*)) => {
        #[doc = concat!("`", stringify!($name), "` of the CUDA driver API.")]
        ///
        /// # Safety
        /// As the driver's documentation says of it.
        #[allow(non_snake_case, reason = "the driver's name")]
        pub(super) unsafe fn $name($($arg: $type),*) -> Result<(), Failure> {
            static ADDRESS: OnceLock<Result<usize, Failure>> = OnceLock::new();
            let result = ADDRESS
                .get_or_init(|| lookup(stringify!($name)))
                .and_then(|address| {
                    // SAFETY: cuda.h declares the function with this type.
                    let function = unsafe {
                        std::mem::transmute::<usize, unsafe extern "C" fn($($type),*) -> Code>(address)
                    };
                    // SAFETY: this function's contract is that of the driver's, whose name it has.
                    match unsafe { function($($arg),*) } {
                        0 => Ok(()),
                        code => Err(Failure::Code(stringify!($name), code)),
                    }
                });
            if let Err(failure) = result {
                LAST_FAILURE.set(Some(failure));
            }
            result
        }
    };
}

// Which functions `cust` needs follows from what cuda.rs uses of it: the linker names what is missing here.
table! {
    exported {
        cuInit(flags: c_uint);
        cuDriverGetVersion(version: *mut c_int);
        cuGetErrorString(code: Code, text: *mut *const c_char);
        cuDeviceGetCount(count: *mut c_int);
        cuDeviceGet(device: *mut c_int, ordinal: c_int);
        cuDeviceGetName(name: *mut c_char, len: c_int, device: c_int);
        cuDeviceGetAttribute(value: *mut c_int, attribute: c_uint, device: c_int);
        cuDeviceTotalMem_v2(bytes: *mut usize, device: c_int);
        cuDevicePrimaryCtxRetain(context: *mut Handle, device: c_int);
        cuDevicePrimaryCtxRelease_v2(device: c_int);
        cuCtxSetCurrent(context: Handle);
        cuMemAlloc_v2(address: *mut u64, bytes: usize);
        cuMemFree_v2(address: u64);
    }
    internal {
        cuGetErrorName(code: Code, text: *mut *const c_char);
        cuCtxGetCurrent(context: *mut Handle);
        cuCtxGetDevice(device: *mut c_int);
        cuModuleLoadDataEx(module: *mut Handle, image: *const c_void, count: c_uint, options: *mut c_uint, values: *mut *mut c_void);
        cuModuleUnload(module: Handle);
        cuModuleGetFunction(function: *mut Handle, module: Handle, name: *const c_char);
        cuFuncGetAttribute(value: *mut c_int, attribute: c_uint, function: Handle);
        cuFuncSetAttribute(function: Handle, attribute: c_uint, value: c_int);
        cuLaunchKernelEx(config: *const LaunchConfig, function: Handle, params: *mut *mut c_void, extra: *mut *mut c_void);
        cuMemcpyHtoDAsync_v2(target: u64, source: *const c_void, bytes: usize, stream: Handle);
        cuMemcpyDtoHAsync_v2(target: *mut c_void, source: u64, bytes: usize, stream: Handle);
        cuMemHostAlloc(host: *mut *mut c_void, bytes: usize, flags: c_uint);
        cuMemHostGetDevicePointer_v2(address: *mut u64, host: *mut c_void, flags: c_uint);
        cuMemFreeHost(host: *mut c_void);
        cuMemsetD8Async(address: u64, value: u8, bytes: usize, stream: Handle);
        cuStreamCreate(stream: *mut Handle, flags: c_uint);
        cuStreamDestroy_v2(stream: Handle);
        cuStreamSynchronize(stream: Handle);
        cuEventCreate(event: *mut Handle, flags: c_uint);
        cuEventDestroy_v2(event: Handle);
        cuEventRecord(event: Handle, stream: Handle);
        cuEventElapsedTime(milliseconds: *mut f32, start: Handle, end: Handle);
        cuStreamGetCtx(stream: Handle, context: *mut Handle);
        cuStreamIsCapturing(stream: Handle, status: *mut c_uint);
        cuStreamBeginCapture_v2(stream: Handle, mode: c_uint);
        cuStreamEndCapture(stream: Handle, graph: *mut Handle);
        cuGraphInstantiateWithFlags(executable: *mut Handle, graph: Handle, flags: u64);
        cuGraphLaunch(executable: Handle, stream: Handle);
        cuGraphExecDestroy(executable: Handle);
        cuGraphDestroy(graph: Handle);
    }
}

/// `CUlaunchConfig`.
#[repr(C)]
pub(super) struct LaunchConfig {
    pub(super) grid: [c_uint; 3],
    pub(super) block: [c_uint; 3],
    pub(super) shared_bytes: c_uint,
    pub(super) stream: Handle,
    pub(super) attributes: *const LaunchAttribute,
    pub(super) num_attributes: c_uint,
}
const _: () = assert!(size_of::<LaunchConfig>() == 56);

/// `CUlaunchAttribute`, of which only integer values are used.
#[repr(C)]
pub(super) struct LaunchAttribute {
    pub(super) id: c_uint,
    pad: [u8; 4],
    value: [c_int; 16],
}
const _: () = assert!(size_of::<LaunchAttribute>() == 72);

impl LaunchAttribute {
    /// `CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION`: the kernel may start before the one ahead
    /// of it has finished.
    pub(super) const OVERLAPS_PREVIOUS: Self = {
        let mut value = [0; 16];
        value[0] = 1;
        Self {
            id: 6,
            pad: [0; 4],
            value,
        }
    };
}

/// Name and description of an error code, in the driver's words.
pub(super) fn describe(code: Code) -> String {
    let mut name: *const c_char = std::ptr::null();
    let mut text: *const c_char = std::ptr::null();
    // SAFETY: the driver writes one pointer, to a static string, or leaves it null.
    let _ = unsafe { cuGetErrorName(code, &mut name) };
    // SAFETY: the driver writes one pointer, to a static string, or leaves it null.
    let _ = unsafe { cuGetErrorString(code, &mut text) };
    let word = |pointer: *const c_char| {
        if pointer.is_null() {
            "unknown error".into()
        } else {
            // SAFETY: the driver's strings are static and end with a zero byte.
            unsafe { CStr::from_ptr(pointer) }.to_string_lossy()
        }
    };
    format!("{}, {}", word(name), word(text))
}

/// Whether `cust_raw`'s enum of codes has `code`.
#[cfg(feature = "cust")]
fn cust_knows(code: Code) -> bool {
    matches!(
        code,
        0..=8
            | 34
            | 100..=102
            | 200..=202
            | 205..=224
            | 300..=304
            | 400..=401
            | 500
            | 600
            | 700..=705
            | 708..=720
            | 800..=809
            | 900..=911
            | 999
    )
}
