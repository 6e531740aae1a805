//! A stream of our own, and events in it that tell the time.
//!
//! `cust` has both, but its streams wait for the default stream: a copy by any other thread would then
//! disturb a capture.

use super::cuda_symbols::{self as sys, Handle};
use super::driver::DriverError;

/// A stream that waits for no other.
#[derive(Debug)]
pub(super) struct Stream(Handle);

// SAFETY: the driver's handles may be used from any thread, says CUDA's documentation.
unsafe impl Send for Stream {}
// SAFETY: and from several at the same time.
unsafe impl Sync for Stream {}

impl Stream {
    /// A stream in the current context.
    pub(super) fn new() -> Result<Self, DriverError> {
        const NON_BLOCKING: u32 = 1;
        let mut stream: Handle = std::ptr::null_mut();
        // SAFETY: writes one pointer.
        unsafe { sys::cuStreamCreate(&mut stream, NON_BLOCKING)? };
        Ok(Self(stream))
    }

    /// The `CUstream`.
    pub(super) fn handle(&self) -> Handle {
        self.0
    }

    /// Waits for everything enqueued.
    pub(super) fn synchronize(&self) -> Result<(), DriverError> {
        // SAFETY: `new` made the stream, and only `drop` destroys it.
        unsafe { sys::cuStreamSynchronize(self.0) }.map_err(DriverError::from)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // An error would be one of earlier work.
        // SAFETY: `new` made it, and nothing uses it after `drop`.
        let _ = unsafe { sys::cuStreamDestroy_v2(self.0) };
    }
}

/// A point in a stream whose time is taken when the GPU gets there.
#[derive(Debug)]
pub(super) struct Event(Handle);

impl Event {
    /// An event that was not recorded yet.
    pub(super) fn new() -> Result<Self, DriverError> {
        let mut event: Handle = std::ptr::null_mut();
        // SAFETY: writes one pointer.
        unsafe { sys::cuEventCreate(&mut event, 0)? };
        Ok(Self(event))
    }

    /// Records it behind everything enqueued.
    pub(super) fn record(&self, stream: &Stream) -> Result<(), DriverError> {
        // SAFETY: each was made by its `new`, and is destroyed by its `drop` alone.
        unsafe { sys::cuEventRecord(self.0, stream.handle()) }.map_err(DriverError::from)
    }

    /// Time from `start` to here, once the GPU has passed both.
    pub(super) fn milliseconds_since(&self, start: &Self) -> Result<f32, DriverError> {
        let mut milliseconds = 0.0;
        // SAFETY: each was made by `new`, and is destroyed by `drop` alone; the driver writes one float.
        unsafe { sys::cuEventElapsedTime(&mut milliseconds, start.0, self.0)? };
        Ok(milliseconds)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: `new` made it, and nothing uses it after `drop`; the driver frees it once its time is taken.
        let _ = unsafe { sys::cuEventDestroy_v2(self.0) };
    }
}
