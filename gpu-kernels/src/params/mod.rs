//! What the host tells a kernel: one `#[repr(C)]` struct per kernel, passed by value.
//!
//! The whole agreement between host and device lies here and both sides read it. Pointers are device
//! addresses; the shape stands beside each.
//!
//! Every stride counts bytes. Along a dimension with a single index it is 0.

mod blocks;
mod cache;
mod check;
mod decode;
mod decode_mla;
mod decode_mla_entry;
mod gather;
mod merge;
mod mla;
mod prefill;
mod read_ceiling;
mod rope;
mod schedule;
mod score;

pub use blocks::*;
pub use cache::*;
pub use check::*;
pub use decode::*;
pub use decode_mla::*;
pub use decode_mla_entry::*;
pub use gather::*;
pub use merge::*;
pub use mla::*;
pub use prefill::*;
pub use read_ceiling::*;
pub use rope::*;
pub use schedule::*;
pub use score::*;

/// A parameter block that may be sent to a kernel as bytes.
///
/// # Safety
/// `repr(C)`, `Copy`, without padding: every byte is initialised.
pub unsafe trait KernelParams: Copy {
    /// The bytes the driver copies.
    fn as_bytes(&self) -> &[u8] {
        // SAFETY: the implementor has no padding, so all bytes are initialised; the lifetime is `self`'s.
        unsafe { core::slice::from_raw_parts((self as *const Self).cast(), size_of::<Self>()) }
    }
}
