//! What a kernel did wrong, as a value.

use std::fmt;
use std::panic::Location;

/// The rule that was broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FaultKind {
    /// An access outside every allocation, or outside the thread block's shared memory.
    OutOfBounds,
    /// An address that is no multiple of the bytes accessed.
    Misaligned,
    /// A read of bytes that nobody ever wrote.
    UninitialisedRead,
    /// Two unordered accesses to the same byte, at least one of them a write.
    DataRace,
    /// An access to the target of an asynchronous copy that its lane has not waited for, or a write to its source.
    AsyncCopyNotWaited,
    /// Some threads wait at a barrier, the others have exited or wait elsewhere.
    BarrierDivergence,
    /// Lanes ask the same atomic forever.
    Deadlock,
    /// A warp operation that not all 32 lanes have joined, or joined with contradicting arguments.
    MissingLanes,
    /// The kernel's code panicked.
    Panicked,
    /// The kernel calls itself too often, or keeps too much in its variables: a lane has 1 MiB for them.
    StackOverflow,
    /// The kernel's code called the emulator that runs it, or another one.
    HostCall,
}

/// A broken rule: which, and exactly where.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub struct Fault {
    /// The rule.
    pub kind: FaultKind,
    /// The kernel, or the host call, that broke it.
    pub kernel: String,
    /// Index of the thread block in the grid.
    pub block: [u32; 3],
    /// Index of the thread in the thread block.
    pub thread: u32,
    /// The allocation, or "shared memory"; empty where no memory is involved. An access outside every
    /// allocation names the nearest.
    pub tensor: String,
    /// Byte offset in the tensor; negative before its begin.
    pub index: i64,
    /// The operation, in the kernel's source.
    pub at: &'static Location<'static>,
    /// What else is known: who else touched the byte, where the other lanes are.
    pub detail: String,
}

/// What a check found, before it is known where in the kernel.
#[derive(Debug)]
pub(super) struct Finding {
    pub(super) kind: FaultKind,
    pub(super) tensor: String,
    pub(super) index: i64,
    pub(super) detail: String,
    /// The thread of the same thread block that made the other access of a race, or the copy that is in the way.
    pub(super) other: Option<u32>,
}

/// How a shared-memory finding calls its tensor.
pub(super) const SHARED: &str = "shared memory";

impl Finding {
    /// About memory.
    pub(super) fn memory(kind: FaultKind, tensor: &str, index: i64, detail: String) -> Box<Self> {
        Box::new(Self {
            kind,
            tensor: tensor.to_string(),
            index,
            detail,
            other: None,
        })
    }

    /// With the place filled in.
    pub(super) fn into_fault(
        self,
        kernel: &str,
        block: [u32; 3],
        thread: u32,
        at: &'static Location<'static>,
    ) -> Fault {
        Fault {
            kind: self.kind,
            kernel: kernel.to_string(),
            block,
            thread,
            tensor: self.tensor,
            index: self.index,
            at,
            detail: self.detail,
        }
    }

    /// About lanes that do not meet.
    pub(super) fn lanes(kind: FaultKind, detail: String) -> Box<Self> {
        Self::memory(kind, "", 0, detail)
    }
}

impl fmt::Display for FaultKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::OutOfBounds => "access out of bounds",
            Self::Misaligned => "misaligned access",
            Self::UninitialisedRead => "read of bytes never written",
            Self::DataRace => "data race",
            Self::AsyncCopyNotWaited => "access to an asynchronous copy in flight",
            Self::BarrierDivergence => "barrier that not all threads reach",
            Self::Deadlock => "deadlock",
            Self::MissingLanes => "warp operation that not all lanes join",
            Self::Panicked => "panic",
            Self::StackOverflow => "stack overflow",
            Self::HostCall => "call of an emulator",
        })
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [x, y, z] = self.block;
        write!(f, "{} in `{}`", self.kind, self.kernel)?;
        if !self.tensor.is_empty() {
            write!(f, ", `{}` byte {}", self.tensor, self.index)?;
        }
        write!(
            f,
            ", thread {} of thread block ({x}, {y}, {z}), at {}",
            self.thread, self.at
        )?;
        if !self.detail.is_empty() {
            write!(f, ": {}", self.detail)?;
        }
        Ok(())
    }
}
