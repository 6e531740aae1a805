//! How the rows of a gather are shared out among warps.

use crate::gpu::WARP;

/// Threads per thread block.
pub const THREADS: u32 = 4 * WARP;
/// Units of a lane.
pub(crate) const UNITS: usize = 4;
/// Units of a warp.
pub const SLAB: u32 = UNITS as u32 * WARP;

/// Thread blocks for `num_rows` rows of `units` units each; `None` if they are too many for a grid.
pub fn grid(num_rows: u32, units: u32) -> Option<[u32; 3]> {
    let slabs = units.div_ceil(SLAB).max(1);
    let fits = num_rows <= i32::MAX as u32 && slabs <= 0xffff;
    fits.then_some([num_rows.div_ceil(THREADS / WARP).max(1), slabs, 1])
}
