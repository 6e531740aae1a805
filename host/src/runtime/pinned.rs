//! Host memory that stays where it is, so that the GPU can read and write it by its address: where blocks of
//! a cache go that the GPU has no room for.

use std::ffi::c_void;

use super::buffer::DeviceMemory;
use super::cuda::Cuda;
use super::cuda_symbols::{self as sys, Failure};
use super::driver::{DriverError, OUT_OF_MEMORY};
use super::kept::Memory;
use super::{Launcher, MachineId, Runtime};
use crate::error::Result;

/// Page-locked host memory of a GPU's context. A [`super::Buffer`] in it has an address that kernels can use,
/// at the speed of the bus.
#[derive(Clone, Copy, Debug)]
pub struct Pinned<'c> {
    cuda: &'c Cuda,
}

impl<'c> Pinned<'c> {
    /// Memory that the kernels of `cuda` can reach.
    pub fn new(cuda: &'c Cuda) -> Self {
        Self { cuda }
    }
}

// SAFETY: page-locked allocations are aligned to pages and stay until they are freed.
unsafe impl DeviceMemory for Pinned<'_> {
    fn owner(&self) -> MachineId {
        self.cuda.machine()
    }

    fn allocate(&self, _name: &'static str, bytes: usize) -> Result<u64> {
        const PORTABLE_AND_MAPPED: u32 = 3;
        self.cuda.make_current()?;
        let mut host: *mut c_void = std::ptr::null_mut();
        // SAFETY: writes one pointer. An address must not be null, even one that nothing is read from.
        unsafe { sys::cuMemHostAlloc(&mut host, bytes.max(1), PORTABLE_AND_MAPPED) }.map_err(
            |failure| match failure {
                Failure::Code(_, OUT_OF_MEMORY) => DriverError::OutOfMemory { bytes },
                other => other.into(),
            },
        )?;
        let mut address = 0;
        // SAFETY: writes one address; the memory was allocated as mapped.
        let mapped = unsafe { sys::cuMemHostGetDevicePointer_v2(&mut address, host, 0) };
        // Host and device have one address space (CUDA calls it unified), so that one number will do.
        if mapped.is_err() || address != host as u64 {
            // SAFETY: allocated above, and nobody has it.
            let _ = unsafe { sys::cuMemFreeHost(host) };
            mapped.map_err(DriverError::from)?;
            return Err(DriverError::NotUnified.into());
        }
        self.cuda.kept.allocated(Memory::Host(address));
        Ok(address)
    }

    unsafe fn free(&self, address: u64, _bytes: usize) {
        // SAFETY: the contract of `DeviceMemory::free` has it allocated by `allocate`, and used by nothing but what is
        // enqueued, for which `free_memory` waits.
        unsafe { self.cuda.free_memory(Memory::Host(address)) };
    }

    unsafe fn copy_in(&self, address: u64, bytes: &[u8]) -> Result<()> {
        self.cuda.synchronize()?;
        // SAFETY: this method's contract has the range lie in one allocation, which is the host's memory; `synchronize`
        // has waited for what was enqueued.
        unsafe { (address as *mut u8).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        Ok(())
    }

    unsafe fn copy_out(&self, address: u64, bytes: &mut [u8]) -> Result<()> {
        self.cuda.synchronize()?;
        // SAFETY: this method's contract has the range lie in one allocation, which is the host's memory; `synchronize`
        // has waited for what was enqueued.
        unsafe { (address as *const u8).copy_to_nonoverlapping(bytes.as_mut_ptr(), bytes.len()) };
        Ok(())
    }
}
