//! A GPU as a machine of our own: context, stream, memory, time. The only file that uses `cust`.

use std::ffi::{c_int, c_void};
use std::mem::ManuallyDrop;
use std::sync::OnceLock;

use cust::context::{Context, ContextHandle, CurrentContext};
use cust::device::{Device, DeviceAttribute};
use cust::error::CudaError;
use cust::memory::{DevicePointer, cuda_free, cuda_malloc};

use super::buffer::DeviceMemory;
use super::cuda_symbols::{self as sys, take_failure};
use super::driver::{DriverError, DriverVersion, device_count, require_driver};
use super::embedded::Route;
use super::graph::Graph;
use super::kept::{Kept, Memory};
use super::own_stream::{Event, Stream};
use super::{Kernels, Launch, Launcher, MachineId, Runtime, StreamLauncher};
use crate::error::Result;
use crate::plan::DeviceInfo;
use gpu_kernels::entry::EntryId;

/// What tells one GPU from another, for reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceProperties {
    /// Its number among the devices that the driver sees.
    pub ordinal: u32,
    /// Its name, such as "NVIDIA H200".
    pub name: String,
    /// What the planner knows of it.
    pub info: DeviceInfo,
    /// The driver's version.
    pub driver: DriverVersion,
    /// Bytes of device memory.
    pub memory_bytes: usize,
    /// Bytes of level-2 cache.
    pub l2_bytes: usize,
    /// Highest clock of the multiprocessors, in kHz.
    pub sm_clock_khz: u32,
    /// Highest clock of the memory, in kHz.
    pub memory_clock_khz: u32,
    /// Width of the memory bus, in bits.
    pub memory_bus_bits: u32,
}

impl DeviceProperties {
    /// Bytes per second that the memory's pins could carry: two transfers per clock.
    pub fn peak_bytes_per_second(&self) -> f64 {
        f64::from(self.memory_clock_khz) * 1e3 * 2.0 * f64::from(self.memory_bus_bits) / 8.0
    }
}

/// A GPU with a stream and memory of our own, in the device's primary context (the one that CUDA's runtime
/// API uses). Its methods make that context current on the calling thread, so that a program may use several GPUs,
/// from any thread. What is the case after an error, [`driver`](super::driver) says.
pub struct Cuda {
    kernels: Kernels,
    /// Memory that graphs may refer to.
    pub(super) kept: Kept,
    /// Memory to sweep the level-2 cache with: address and size.
    sweep: OnceLock<(u64, usize)>,
    properties: DeviceProperties,
    // Dropped before the context, if that is there.
    stream: ManuallyDrop<Stream>,
    context: Context,
}

impl Cuda {
    /// Opens device `ordinal`. Its kernels come from the PTX that [`Kernels::load`] chooses.
    ///
    /// # Errors
    /// No driver, no such device, or one that no kernels were compiled for; no PTX of the route that was
    /// asked for.
    pub fn open(ordinal: u32) -> Result<Self, DriverError> {
        Self::open_set(ordinal, None)
    }

    /// As [`Cuda::open`], with the PTX that the compiler of `route` wrote.
    ///
    /// # Errors
    /// As [`Cuda::open`].
    pub fn open_with(ordinal: u32, route: Route) -> Result<Self, DriverError> {
        Self::open_set(ordinal, Some(route))
    }

    fn open_set(ordinal: u32, route: Option<Route>) -> Result<Self, DriverError> {
        let driver = require_driver()?;
        let count = device_count()?;
        if ordinal >= count {
            return Err(DriverError::NoDevice { ordinal, count });
        }
        let device = Device::get_device(ordinal).map_err(driver_error)?;
        let context = Context::new(device).map_err(driver_error)?;
        CurrentContext::set_current(&context).map_err(driver_error)?;
        let stream = Stream::new()?;
        let kernels = Kernels::load_set(route)?;
        let read = |attribute| -> Result<u32, DriverError> {
            let value = device.get_attribute(attribute).map_err(driver_error)?;
            Ok(value.try_into().unwrap_or(0))
        };
        let properties = DeviceProperties {
            ordinal,
            name: device.name().map_err(driver_error)?,
            info: kernels.device(),
            driver,
            memory_bytes: device.total_memory().map_err(driver_error)?,
            l2_bytes: read(DeviceAttribute::L2CacheSize)? as usize,
            sm_clock_khz: read(DeviceAttribute::ClockRate)?,
            memory_clock_khz: read(DeviceAttribute::MemoryClockRate)?,
            memory_bus_bits: read(DeviceAttribute::GlobalMemoryBusWidth)?,
        };
        Ok(Self {
            kernels,
            kept: Kept::default(),
            sweep: OnceLock::new(),
            properties,
            stream: ManuallyDrop::new(stream),
            context,
        })
    }

    /// What tells this GPU from others.
    pub fn properties(&self) -> &DeviceProperties {
        &self.properties
    }

    /// The kernels in this GPU's context.
    pub fn kernels(&self) -> &Kernels {
        &self.kernels
    }

    /// As [`Kernels::prepare`], whichever context is current on the calling thread.
    ///
    /// # Errors
    /// The driver cannot compile a kernel, or has no memory for it.
    pub fn prepare(&self, kernels: &[EntryId]) -> Result<(), DriverError> {
        self.make_current()?;
        self.kernels.prepare(kernels)
    }

    /// Records what `work` enqueues into a graph instead of running it. Kernels that were never launched
    /// have to be loaded before ([`Kernels::prepare`]); memory cannot be allocated meanwhile.
    ///
    /// The graph borrows what the closure borrows. Memory of this machine that was allocated before the capture ends
    /// stays as long as there is a graph: a [`super::Buffer`] that is dropped meanwhile, one that `work` owned for
    /// instance, is freed with the last one. (Other memory is its owner's business: see
    /// [`crate::tensor::TensorView::from_raw`].)
    ///
    /// # Errors
    /// What `work` returns; or the driver refused.
    pub fn capture<'a>(
        &'a self,
        work: impl FnOnce(&StreamLauncher<'a>) -> Result<()> + 'a,
    ) -> Result<Graph<'a>> {
        let launcher = self.launcher()?;
        Graph::capture(self, self.stream.handle(), || work(&launcher))
    }

    /// Calls `work` `repeats` times and returns how long the GPU took for each, in milliseconds. `before`
    /// is called ahead of each and not counted; it may sweep the cache ([`Cuda::sweep_l2`]). Waits only
    /// once, at the end.
    ///
    /// What counts is the time between two events in the stream. A graph keeps the time in which the host
    /// enqueues kernels out of it.
    ///
    /// # Errors
    /// What the closures return; or the driver refused.
    pub fn time(
        &self,
        repeats: usize,
        mut before: impl FnMut() -> Result<()>,
        mut work: impl FnMut() -> Result<()>,
    ) -> Result<Vec<f32>> {
        self.make_current()?;
        let marks = (0..repeats)
            .map(|_| Ok((Event::new()?, Event::new()?)))
            .collect::<Result<Vec<_>, DriverError>>()?;
        let mut measure = || {
            for (start, end) in &marks {
                before()?;
                start.record(&self.stream)?;
                work()?;
                end.record(&self.stream)?;
            }
            self.synchronize()?;
            let times = marks
                .iter()
                .map(|(start, end)| end.milliseconds_since(start));
            Ok(times.collect::<Result<_, _>>()?)
        };
        let milliseconds = measure();
        if !self.is_there() {
            std::mem::forget(marks);
        }
        milliseconds
    }

    /// Enqueues overwriting twice the level-2 cache, so that nothing of earlier work is left in it.
    ///
    /// # Errors
    /// No memory; or the driver refused.
    pub fn sweep_l2(&self) -> Result<()> {
        let (address, bytes) = match self.sweep.get() {
            Some(&sweep) => sweep,
            None => {
                let bytes = 2 * self.properties.l2_bytes.max(1);
                let sweep = (self.allocate("l2 sweep", bytes)?, bytes);
                *self.sweep.get_or_init(|| sweep)
            }
        };
        // SAFETY: `sweep` is this many bytes, allocated above for this alone.
        unsafe { self.zero(address, bytes) }
    }

    /// Our stream, a `CUstream`, for whoever launches into it by other means. It lives as long as `self`.
    pub fn stream(&self) -> *mut c_void {
        self.stream.handle()
    }

    /// A launcher into our stream.
    fn launcher(&self) -> Result<StreamLauncher<'_>, DriverError> {
        self.make_current()?;
        // SAFETY: the stream lives as long as `self`, which the launcher borrows.
        unsafe { StreamLauncher::new(&self.kernels, self.stream.handle()) }
    }

    /// Frees memory, or keeps it while there are graphs.
    ///
    /// # Safety
    /// It was allocated on this machine and not freed, and nobody but work that was enqueued before uses it.
    pub(super) unsafe fn free_memory(&self, memory: Memory) {
        if self.kept.keeps(memory) {
            return;
        }
        // The error would be one of earlier work, which `synchronize` reports. cuMemFree waits for it.
        let _ = self.synchronize();
        if !self.is_there() {
            return;
        }
        match memory {
            Memory::Device(address) => {
                // SAFETY: this function's contract has `cuda_malloc` have allocated it; `synchronize` has
                // waited for the work that uses it.
                let _ = unsafe { cuda_free(DevicePointer::<u8>::from_raw(address)) };
            }
            Memory::Host(address) => {
                // SAFETY: this function's contract has `Pinned` have allocated it; `synchronize` has
                // waited for the work that uses it.
                let _ = unsafe { sys::cuMemFreeHost(address as *mut c_void) };
            }
        }
    }

    /// Called once for each capture, when its graph is gone or did not come to be.
    pub(super) fn forget_graph(&self) {
        for memory in self.kept.forget_graph() {
            // SAFETY: its owner freed it before, and no graph is left that could use it.
            unsafe { self.free_memory(memory) };
        }
    }

    /// Whether the context still exists, and with it what was made in it. Makes it current.
    pub(super) fn is_there(&self) -> bool {
        let mut device: c_int = 0;
        // SAFETY: writes one int.
        self.make_current().is_ok() && unsafe { sys::cuCtxGetDevice(&mut device) }.is_ok()
    }

    pub(super) fn make_current(&self) -> Result<(), DriverError> {
        CurrentContext::set_current(&self.context).map_err(driver_error)
    }
}

impl Launcher for Cuda {
    unsafe fn launch(&self, launch: &Launch, params: &[u8]) -> Result<()> {
        // SAFETY: both methods have the contract of `Launcher::launch`.
        unsafe { self.launcher()?.launch(launch, params) }
    }

    unsafe fn zero(&self, address: u64, bytes: usize) -> Result<()> {
        // SAFETY: both methods have the contract of `Launcher::zero`.
        unsafe { self.launcher()?.zero(address, bytes) }
    }

    fn device(&self) -> DeviceInfo {
        self.kernels.device()
    }

    fn machine(&self) -> MachineId {
        MachineId::of_stream(self.stream())
    }
}

// SAFETY: the driver's allocations are aligned to 256 bytes and stay until they are freed.
unsafe impl DeviceMemory for Cuda {
    fn owner(&self) -> MachineId {
        self.machine()
    }

    fn allocate(&self, _name: &'static str, bytes: usize) -> Result<u64> {
        self.make_current()?;
        // An address must not be null, even one that nothing is read from.
        let bytes = bytes.max(1);
        // SAFETY: whether it is read before it is written is the buffer's business.
        let pointer = unsafe { cuda_malloc::<u8>(bytes) }.map_err(|error| match error {
            CudaError::OutOfMemory => DriverError::OutOfMemory { bytes },
            other => driver_error(other),
        })?;
        let address = pointer.as_raw();
        self.kept.allocated(Memory::Device(address));
        Ok(address)
    }

    unsafe fn free(&self, address: u64, _bytes: usize) {
        // SAFETY: the contract of `DeviceMemory::free` has it allocated by `allocate`, and used by nothing but what is
        // enqueued, for which `free_memory` waits.
        unsafe { self.free_memory(Memory::Device(address)) };
    }

    unsafe fn copy_in(&self, address: u64, bytes: &[u8]) -> Result<()> {
        self.make_current()?;
        if !bytes.is_empty() {
            // SAFETY: this method's contract has the range lie in one allocation; `synchronize` below waits for the
            // copy, during which `bytes` is borrowed.
            unsafe {
                sys::cuMemcpyHtoDAsync_v2(
                    address,
                    bytes.as_ptr().cast(),
                    bytes.len(),
                    self.stream(),
                )
            }
            .map_err(DriverError::from)?;
        }
        self.synchronize()
    }

    unsafe fn copy_out(&self, address: u64, bytes: &mut [u8]) -> Result<()> {
        self.make_current()?;
        if !bytes.is_empty() {
            // SAFETY: this method's contract has the range lie in one allocation; `synchronize` below waits for the
            // copy, during which `bytes` is borrowed.
            unsafe {
                sys::cuMemcpyDtoHAsync_v2(
                    bytes.as_mut_ptr().cast(),
                    address,
                    bytes.len(),
                    self.stream(),
                )
            }
            .map_err(DriverError::from)?;
        }
        self.synchronize()
    }
}

impl Runtime for Cuda {
    fn name(&self) -> String {
        format!("cuda: {}", self.properties.name)
    }

    fn is_emulator(&self) -> bool {
        false
    }

    fn synchronize(&self) -> Result<()> {
        self.make_current()?;
        Ok(self.stream.synchronize()?)
    }
}

impl Drop for Cuda {
    fn drop(&mut self) {
        // What fails here was reported before, or the GPU is gone.
        let _ = self.synchronize();
        if let Some((address, bytes)) = self.sweep.take() {
            // SAFETY: `sweep_l2` allocated it, and nobody else has it; `free` waits for its work.
            unsafe { self.free(address, bytes) };
        }
        if self.is_there() {
            // SAFETY: `is_there` saw the context; `synchronize` above has waited for launches; graphs borrow `self`.
            unsafe { self.kernels.unload() };
            // SAFETY: `self` is being dropped, and this is the last that uses it.
            unsafe { ManuallyDrop::drop(&mut self.stream) };
        }
    }
}

/// What went wrong in a call of `cust`, with the name of the driver's function.
fn driver_error(error: CudaError) -> DriverError {
    take_failure().map_or_else(
        || DriverError::Call {
            function: "cust",
            code: error as u32,
            description: format!("{error:?}"),
        },
        DriverError::from,
    )
}

impl std::fmt::Debug for Cuda {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cuda")
            .field("properties", &self.properties)
            .field("context", &self.context.get_inner())
            .finish_non_exhaustive()
    }
}
