//! A stream of our own, and marks in it that tell the time.
//!
//! `cust` has both, but its streams wait for the default stream: a copy by any other thread would then
//! disturb a capture.

use super::cuda_symbols::{self as sys, Handle};
use super::driver::DriverError;

/// A stream that waits for no other.
#[derive(Debug)]
pub(super) struct Queue(Handle);

// SAFETY: the driver's handles may be used from any thread, also at the same time.
unsafe impl Send for Queue {}
// SAFETY: as above.
unsafe impl Sync for Queue {}

impl Queue {
    /// A stream in the current context.
    pub(super) fn new() -> Result<Self, DriverError> {
        const NON_BLOCKING: u32 = 1;
        let mut stream: Handle = std::ptr::null_mut();
        // SAFETY: writes one pointer.
        unsafe { sys::cuStreamCreate(&mut stream, NON_BLOCKING)? };
        Ok(Self(stream))
    }

    /// The `CUstream`.
    pub(super) fn stream(&self) -> Handle {
        self.0
    }

    /// Waits for everything enqueued.
    pub(super) fn synchronize(&self) -> Result<(), DriverError> {
        // SAFETY: the stream is alive.
        unsafe { sys::cuStreamSynchronize(self.0) }.map_err(DriverError::from)
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // An error would be one of earlier work.
        // SAFETY: made by us, not used again.
        let _ = unsafe { sys::cuStreamDestroy_v2(self.0) };
    }
}

/// A point in a stream whose time is taken when the GPU gets there (an event).
#[derive(Debug)]
pub(super) struct Mark(Handle);

impl Mark {
    /// A mark that was not set yet.
    pub(super) fn new() -> Result<Self, DriverError> {
        let mut event: Handle = std::ptr::null_mut();
        // SAFETY: writes one pointer.
        unsafe { sys::cuEventCreate(&mut event, 0)? };
        Ok(Self(event))
    }

    /// Sets it behind everything enqueued.
    pub(super) fn record(&self, queue: &Queue) -> Result<(), DriverError> {
        // SAFETY: both are alive.
        unsafe { sys::cuEventRecord(self.0, queue.stream()) }.map_err(DriverError::from)
    }

    /// Time from `start` to here, once the GPU has passed both.
    pub(super) fn milliseconds_since(&self, start: &Self) -> Result<f32, DriverError> {
        let mut milliseconds = 0.0;
        // SAFETY: both are alive; writes one float.
        unsafe { sys::cuEventElapsedTime(&mut milliseconds, start.0, self.0)? };
        Ok(milliseconds)
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        // SAFETY: made by us, not used again; the driver waits with freeing it.
        let _ = unsafe { sys::cuEventDestroy_v2(self.0) };
    }
}
