//! Telling machines apart: memory of one is no memory of another.

use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::cuda_symbols::Handle;

/// Which machine memory belongs to, and which one launches go to.
///
/// A GPU's is that of its stream: work in another stream of the same GPU does not wait for the copies in this one, nor
/// they for it, so that a [`super::Buffer`] would be read before it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MachineId(NonZeroU64);

impl MachineId {
    /// One that no other machine has.
    pub fn unique() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        // Addresses have no highest bit, so no stream's is like it.
        Self(NonZeroU64::MIN | (1 << 63) | NEXT.fetch_add(2, Relaxed))
    }

    /// That of whoever works in a stream; null is one too.
    pub(super) fn of_stream(stream: Handle) -> Self {
        Self(NonZeroU64::MIN.saturating_add(stream as u64))
    }
}
