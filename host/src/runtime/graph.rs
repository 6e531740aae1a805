//! Work recorded once and replayed without the host's cost of enqueueing it.

use super::cuda_symbols::{self as sys, Handle};
use super::driver::DriverError;
use super::kept::Kept;
use super::{Cuda, Runtime};
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
        // SAFETY: `cuda` keeps its stream as long as it lives.
        unsafe { sys::cuStreamBeginCapture_v2(stream, THREAD_LOCAL) }.map_err(DriverError::from)?;
        cuda.kept.begin_capture();
        let mut graph = Self {
            cuda,
            stream,
            executable: std::ptr::null_mut(),
        };
        // Also ends the capture if `work` panics: the stream must stay usable.
        let capture = Capture {
            stream,
            kept: &cuda.kept,
        };
        let result = work();
        let captured = capture.end();
        // An error of `work` explains more than a capture that it spoilt.
        result?;
        let recorded = captured?;
        // SAFETY: a complete graph; writes one pointer.
        unsafe { sys::cuGraphInstantiateWithFlags(&mut graph.executable, recorded.0, 0) }
            .map_err(DriverError::from)?;
        Ok(graph)
    }

    /// Enqueues the recorded work into the machine's stream.
    ///
    /// # Errors
    /// The driver refused.
    pub fn launch(&self) -> Result<()> {
        self.cuda.make_current()?;
        // SAFETY: the graph is complete, and the memory it uses is kept as long as it lives.
        unsafe { sys::cuGraphLaunch(self.executable, self.stream) }.map_err(DriverError::from)?;
        Ok(())
    }
}

impl Drop for Graph<'_> {
    fn drop(&mut self) {
        if !self.executable.is_null() {
            // What fails here was reported before, or the GPU is gone.
            let _ = self.cuda.synchronize();
            if self.cuda.is_there() {
                // SAFETY: made by us, no longer running, not used again.
                let _ = unsafe { sys::cuGraphExecDestroy(self.executable) };
            }
        }
        self.cuda.forget_graph();
    }
}

/// A capture under way.
struct Capture<'k> {
    stream: Handle,
    kept: &'k Kept,
}

/// A graph as recorded, which an executable is made from.
struct Recorded(Handle);

impl Capture<'_> {
    fn end(self) -> Result<Recorded, DriverError> {
        let (stream, kept) = (self.stream, self.kept);
        std::mem::forget(self);
        end_capture(stream, kept)
    }
}

impl Drop for Capture<'_> {
    fn drop(&mut self) {
        drop(end_capture(self.stream, self.kept));
    }
}

impl Drop for Recorded {
    fn drop(&mut self) {
        // SAFETY: made by `end_capture`, not used again.
        let _ = unsafe { sys::cuGraphDestroy(self.0) };
    }
}

fn end_capture(stream: Handle, kept: &Kept) -> Result<Recorded, DriverError> {
    let mut graph: Handle = std::ptr::null_mut();
    // SAFETY: this thread began the capture; writes one pointer, null if the capture was spoilt.
    let ended = unsafe { sys::cuStreamEndCapture(stream, &mut graph) };
    kept.end_capture();
    ended?;
    Ok(Recorded(graph))
}
