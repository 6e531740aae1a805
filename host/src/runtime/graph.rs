//! Work recorded once and replayed without the host's cost of enqueueing it.

use super::Cuda;
use super::cuda_symbols::{self as sys, Handle};
use super::driver::DriverError;
use crate::error::Result;

/// A captured graph; see [`Cuda::capture`].
#[derive(Debug)]
pub struct Graph<'a> {
    cuda: &'a Cuda,
    stream: Handle,
    executable: Handle,
}

impl<'a> Graph<'a> {
    /// Records what `work` enqueues into `stream`, which belongs to `cuda`.
    pub(super) fn capture(
        cuda: &'a Cuda,
        stream: Handle,
        work: impl FnOnce() -> Result<()>,
    ) -> Result<Self> {
        // Calls of other threads that cannot be captured do not disturb us.
        const THREAD_LOCAL: u32 = 1;
        cuda.make_current()?;
        // SAFETY: the stream of `cuda` is alive.
        unsafe { sys::cuStreamBeginCapture_v2(stream, THREAD_LOCAL) }.map_err(DriverError::from)?;
        // Also ends the capture if `work` panics: the stream must stay usable.
        let capture = Capture { stream };
        let result = work();
        let captured = capture.end();
        // An error of `work` explains more than a capture that it spoilt.
        result?;
        let recorded = captured?;
        let mut executable: Handle = std::ptr::null_mut();
        // SAFETY: a complete graph; writes one pointer.
        unsafe { sys::cuGraphInstantiateWithFlags(&mut executable, recorded.0, 0) }
            .map_err(DriverError::from)?;
        Ok(Self {
            cuda,
            stream,
            executable,
        })
    }

    /// Enqueues the recorded work into the machine's stream.
    ///
    /// # Errors
    /// The driver refused.
    pub fn launch(&self) -> Result<()> {
        self.cuda.make_current()?;
        // SAFETY: the graph is complete, and what it uses is borrowed as long as it lives.
        unsafe { sys::cuGraphLaunch(self.executable, self.stream) }.map_err(DriverError::from)?;
        Ok(())
    }
}

impl Drop for Graph<'_> {
    fn drop(&mut self) {
        use super::Runtime;
        // What fails here was reported before, or the GPU is gone.
        let _ = self.cuda.synchronize();
        if !self.cuda.is_there() {
            return;
        }
        // SAFETY: made by us, no longer running, not used again.
        let _ = unsafe { sys::cuGraphExecDestroy(self.executable) };
    }
}

/// A capture under way.
struct Capture {
    stream: Handle,
}

/// A graph as recorded, which an executable is made from.
struct Recorded(Handle);

impl Capture {
    fn end(self) -> Result<Recorded, DriverError> {
        let stream = self.stream;
        std::mem::forget(self);
        end_capture(stream)
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        drop(end_capture(self.stream));
    }
}

impl Drop for Recorded {
    fn drop(&mut self) {
        // SAFETY: made by `end_capture`, not used again.
        let _ = unsafe { sys::cuGraphDestroy(self.0) };
    }
}

fn end_capture(stream: Handle) -> Result<Recorded, DriverError> {
    let mut graph: Handle = std::ptr::null_mut();
    // SAFETY: this thread began the capture; writes one pointer, null if the capture was spoilt.
    unsafe { sys::cuStreamEndCapture(stream, &mut graph)? };
    Ok(Recorded(graph))
}
