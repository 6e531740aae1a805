//! Decisions: pure functions of shapes and machine numbers, no GPU in sight.

mod device;
pub mod dtypes;
mod row_splits;
mod runs;
mod splits;
pub mod support;
pub mod variants;

pub use device::DeviceInfo;
pub(crate) use device::{MOST_CTAS_X, MOST_CTAS_YZ};
pub use row_splits::RowSplitShape;
pub use runs::Runs;
pub use splits::{SplitPolicy, SplitShape, Splits, warp_tile_nanoseconds};
