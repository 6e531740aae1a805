//! From embedded PTX to functions that can be launched, one kernel at a time.
//!
//! The driver compiles PTX for the GPU it finds. Doing that for every kernel would take seconds, so each is
//! a module of its own, compiled when it is first launched or when [`Kernels::prepare`] asks for it. (The
//! driver keeps what it compiled on disk; the second process finds it there.)

use std::ffi::{CString, c_int, c_void};
use std::sync::{Mutex, OnceLock, PoisonError};

use gpu_kernels::entry::{ENTRIES, EntryId};

use super::cuda_symbols::{self as sys, Failure, Handle};
use super::driver::{DriverError, DriverVersion, OUT_OF_MEMORY, attribute, require_driver};
use super::embedded::{self, Arch, ArchSet, PtxSet, Route};
use crate::plan::DeviceInfo;

/// `CU_DEVICE_ATTRIBUTE_*` that the planner asks for.
mod device_attribute {
    pub(super) const NUM_SMS: u32 = 16;
    pub(super) const CAPABILITY_MAJOR: u32 = 75;
    pub(super) const CAPABILITY_MINOR: u32 = 76;
    pub(super) const SHARED_BYTES_PER_SM: u32 = 81;
    pub(super) const SHARED_BYTES_PER_CTA: u32 = 97;
}

/// The kernels, in the CUDA context that was current when they were loaded.
///
/// It may be shared between threads. Dropping it leaves the compiled modules to the context, which frees
/// them when it is destroyed; nothing here keeps a context alive.
#[derive(Debug)]
pub struct Kernels {
    context: usize,
    device: DeviceInfo,
    driver: DriverVersion,
    set: &'static PtxSet,
    /// By `EntryId`.
    loaded: Box<[OnceLock<Function>]>,
    loading: Mutex<()>,
}

/// A kernel that can be launched, and the module that owns it.
#[derive(Clone, Copy, Debug)]
struct Function {
    module: usize,
    function: usize,
}

impl Kernels {
    /// Makes the kernels ready to be loaded in the context that is current on this thread. Compiles
    /// nothing yet. The PTX is that of the environment variable `FERROATTN_PTX` (`nvvm` or `nvptx`), or
    /// else this library's default.
    ///
    /// # Errors
    /// No driver or one that is too old; no current context; a GPU that no kernels were compiled for; no
    /// PTX of the route that was asked for.
    pub fn load() -> Result<Self, DriverError> {
        Self::load_set(None)
    }

    /// As [`Kernels::load`], with the PTX that the compiler of `route` wrote.
    ///
    /// # Errors
    /// As [`Kernels::load`].
    pub fn load_route(route: Route) -> Result<Self, DriverError> {
        Self::load_set(Some(route))
    }

    pub(super) fn load_set(route: Option<Route>) -> Result<Self, DriverError> {
        let driver = require_driver()?;
        let context = current_context()?;
        let mut ordinal: c_int = 0;
        // SAFETY: writes one int; a context is current.
        unsafe { sys::cuCtxGetDevice(&mut ordinal)? };
        let set = embedded::choose(route)?;
        let device = device_info(ordinal, set)?;
        let (major, minor) = device.compute_capability;
        if set.arch_for((major, minor)).is_none() {
            return Err(DriverError::ComputeCapability {
                major,
                minor,
                compiled: names(set.archs()),
            });
        }
        Ok(Self {
            context,
            device,
            driver,
            set,
            loaded: ENTRIES.iter().map(|_| OnceLock::new()).collect(),
            loading: Mutex::new(()),
        })
    }

    /// Compiles and loads `kernels`, so that launching them takes no time and may be captured into a graph.
    /// The context of [`Kernels::load`] must be current.
    ///
    /// # Errors
    /// Another context is current; the driver cannot compile a kernel.
    pub fn prepare(&self, kernels: &[EntryId]) -> Result<(), DriverError> {
        kernels
            .iter()
            .try_for_each(|&kernel| self.function_or_load(kernel).map(drop))
    }

    /// What the planner needs to know of the GPU.
    pub fn device(&self) -> DeviceInfo {
        self.device
    }

    /// The set of PTX that the kernels come from.
    pub fn set(&self) -> &'static PtxSet {
        self.set
    }

    /// The architectures of the PTX that suits the GPU, separated by commas.
    pub fn archs(&self) -> String {
        names(self.set.archs_for(self.device.compute_capability))
    }

    /// The driver's version.
    pub fn driver(&self) -> DriverVersion {
        self.driver
    }

    /// Registers per thread and bytes of local memory per thread of a kernel, as the driver compiled it.
    ///
    /// # Errors
    /// As [`Kernels::prepare`].
    pub fn usage(&self, kernel: EntryId) -> Result<KernelUsage, DriverError> {
        const LOCAL_SIZE_BYTES: u32 = 3;
        const NUM_REGS: u32 = 4;
        let function = self.function_or_load(kernel)?;
        let read = |attribute| -> Result<u32, DriverError> {
            let mut value: c_int = 0;
            // SAFETY: writes one int; the function is loaded.
            unsafe { sys::cuFuncGetAttribute(&mut value, attribute, function)? };
            Ok(value.try_into().unwrap_or(0))
        };
        Ok(KernelUsage {
            registers: read(NUM_REGS)?,
            local_bytes: read(LOCAL_SIZE_BYTES)?,
        })
    }

    /// Frees the compiled modules at once instead of with their context.
    ///
    /// # Safety
    /// The context still exists and no launch of these kernels is running or will be replayed by a graph.
    pub unsafe fn unload(&mut self) {
        for function in self.loaded.iter_mut().filter_map(OnceLock::take) {
            // A failure here is one of earlier work, which is not ours to report.
            // SAFETY: `function_or_load` loaded it, `take` leaves nobody else who has it, and by this function's
            // contract it is not in use.
            let _ = unsafe { sys::cuModuleUnload(function.module as Handle) };
        }
    }

    /// The context everything was loaded in.
    pub(super) fn context(&self) -> usize {
        self.context
    }

    /// The function of `kernel` if it is loaded.
    pub(super) fn function(&self, kernel: EntryId) -> Option<Handle> {
        self.loaded[kernel as usize]
            .get()
            .map(|loaded| loaded.function as Handle)
    }

    /// The function of `kernel`, compiled now if need be.
    pub(super) fn function_or_load(&self, kernel: EntryId) -> Result<Handle, DriverError> {
        if let Some(function) = self.function(kernel) {
            return Ok(function);
        }
        // One at a time: two threads must not compile the same kernel twice.
        let _loading = self.loading.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(function) = self.function(kernel) {
            return Ok(function);
        }
        if current_context()? != self.context {
            return Err(DriverError::WrongContext {
                what: "the calling thread",
            });
        }
        let loaded = self.compile(kernel)?;
        Ok(self.loaded[kernel as usize].get_or_init(|| loaded).function as Handle)
    }

    fn compile(&self, kernel: EntryId) -> Result<Function, DriverError> {
        const MAX_DYNAMIC_SHARED_SIZE_BYTES: u32 = 8;
        let entry = kernel.entry();
        let name = entry.name;
        let arch = self.set.arch_of(entry, self.device.compute_capability);
        let jit_error = |reason: String, log: String| DriverError::Jit {
            entry: name,
            // None suits: those that it was compiled for.
            arch: arch.map_or_else(|| names(entry.archs), |arch| arch.name().to_owned()),
            ptx_version: self.set.ptx_version.to_owned(),
            driver: self.driver,
            reason,
            log,
        };
        let ptx = arch
            .and_then(|arch| self.set.module(name, arch))
            .and_then(|ptx| CString::new(ptx).ok())
            .ok_or_else(|| jit_error("the kernel is not in the PTX".into(), String::new()))?;
        let failed = |failure: Failure, log: String| match (failure, failure.into()) {
            (Failure::Code(function, OUT_OF_MEMORY), _) => DriverError::OutOfMemoryIn {
                function,
                entry: Some(name),
            },
            (Failure::Code(_, code), DriverError::Call { .. }) => {
                jit_error(sys::describe(code), log)
            }
            (_, other) => other,
        };
        let module = jit(&ptx).map_err(|(failure, log)| failed(failure, log))?;
        let find = || {
            let c_name = CString::new(name).expect("PTX symbols hold no zero byte");
            let mut function: Handle = std::ptr::null_mut();
            // SAFETY: the module was just loaded; writes one pointer.
            unsafe { sys::cuModuleGetFunction(&mut function, module, c_name.as_ptr())? };
            // Only a permission: how much shared memory a launch uses is the plan's business.
            let bytes = c_int::try_from(self.device.shared_bytes_per_cta).unwrap_or(c_int::MAX);
            // SAFETY: the function was just loaded.
            unsafe { sys::cuFuncSetAttribute(function, MAX_DYNAMIC_SHARED_SIZE_BYTES, bytes)? };
            Ok(function)
        };
        match find() {
            Ok(function) => Ok(Function {
                module: module as usize,
                function: function as usize,
            }),
            Err(failure) => {
                // SAFETY: just loaded, and nobody else has it.
                let _ = unsafe { sys::cuModuleUnload(module) };
                Err(failed(failure, String::new()))
            }
        }
    }
}

/// What a compiled kernel occupies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelUsage {
    /// Registers per thread.
    pub registers: u32,
    /// Bytes of local memory per thread: more than 0 means that registers were spilled.
    pub local_bytes: u32,
}

/// The names of architectures, separated by commas.
fn names(archs: ArchSet) -> String {
    archs.iter().map(Arch::name).collect::<Vec<_>>().join(", ")
}

/// Numbers of device `ordinal` for the planner, and what of `set` it runs.
fn device_info(ordinal: c_int, set: &PtxSet) -> Result<DeviceInfo, DriverError> {
    use device_attribute as a;
    let compute_capability = (
        attribute(ordinal, a::CAPABILITY_MAJOR)?,
        attribute(ordinal, a::CAPABILITY_MINOR)?,
    );
    Ok(DeviceInfo {
        num_sms: attribute(ordinal, a::NUM_SMS)?,
        compute_capability,
        archs: set.archs(),
        shared_bytes_per_cta: attribute(ordinal, a::SHARED_BYTES_PER_CTA)?,
        shared_bytes_per_sm: attribute(ordinal, a::SHARED_BYTES_PER_SM)?,
    })
}

/// The context that is current on this thread.
pub(super) fn current_context() -> Result<usize, DriverError> {
    let mut context: Handle = std::ptr::null_mut();
    // SAFETY: writes one pointer.
    unsafe { sys::cuCtxGetCurrent(&mut context)? };
    if context.is_null() {
        return Err(DriverError::NoContext);
    }
    Ok(context as usize)
}

/// Compiles PTX; on failure the driver's log comes along.
fn jit(ptx: &CString) -> Result<Handle, (Failure, String)> {
    const ERROR_LOG_BUFFER: u32 = 5;
    const ERROR_LOG_BUFFER_SIZE_BYTES: u32 = 6;
    let mut log = vec![0u8; 16 * 1024];
    let mut options = [ERROR_LOG_BUFFER, ERROR_LOG_BUFFER_SIZE_BYTES];
    // The driver takes the size as an integer in the place of a pointer.
    let mut values = [log.as_mut_ptr().cast::<c_void>(), log.len() as *mut c_void];
    let mut module: Handle = std::ptr::null_mut();
    // SAFETY: the image ends with a zero byte; the log is as long as said and outlives the call.
    let loaded = unsafe {
        sys::cuModuleLoadDataEx(
            &mut module,
            ptx.as_ptr().cast(),
            2,
            options.as_mut_ptr(),
            values.as_mut_ptr(),
        )
    };
    loaded.map(|()| module).map_err(|failure| {
        let text = log.split(|&byte| byte == 0).next().unwrap_or_default();
        (failure, String::from_utf8_lossy(text).trim().to_owned())
    })
}
