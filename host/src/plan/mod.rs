//! Decisions: pure functions of shapes and machine numbers, no GPU in sight.

mod device;
mod splits;
pub mod variants;

pub use device::DeviceInfo;
pub use splits::{SplitPolicy, SplitShape, Splits};
