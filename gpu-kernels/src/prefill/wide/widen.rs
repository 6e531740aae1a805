//! Bytes of the cache become f16 in the panels that they were copied over.
//!
//! A lane widens other bytes than it copied: lines are copied whole, which is what copies are fast with, and widened in an
//! order in which no two lanes want the same bank.

use crate::dtype::CacheFormat;
use crate::gpu::unroll::unroll;
use crate::gpu::{Gpu, PANEL_BYTES, PANEL_ROW_BYTES, bytes_in_panel, in_panels};

/// Rows that a warp widens at a time: four lanes each.
const ROWS: u32 = 8;

/// Widens a warp's 16 rows: two lines of bytes in the first and third of four panels, of which `panels` are the rows of the
/// first.
///
/// # Safety
/// Converged; the warp copied them, and each lane has waited for its copies. Nobody else reads the panels.
#[inline(always)]
pub(super) unsafe fn widen<G: Gpu, C: CacheFormat>(gpu: G, panels: u32) {
    let (row, quad) = (gpu.lane() / 4, gpu.lane() % 4);
    // A lane has a chunk for each panel of a line.
    let [first, second] = [bytes_in_panel(row, quad), bytes_in_panel(row, 4 + quad)];
    let wide = in_panels(row, 2 * quad);
    unroll!([2] line in 0..2 {
        let panels = panels + line as u32 * (2 * PANEL_BYTES);
        let mut bytes = [[[0; 4]; 2]; 2];
        // SAFETY: converged: all copies are there, and nobody writes over them before all lanes have what they widen.
        unsafe {
            gpu.sync_warp();
            unroll!([2] part in 0..2 {
                let at = panels + part as u32 * (ROWS * PANEL_ROW_BYTES);
                bytes[part] = [gpu.ld_shared_b128(at + first), gpu.ld_shared_b128(at + second)];
            });
            gpu.sync_warp();
        }
        unroll!([2] part in 0..2 {
            unroll!([2] panel in 0..2 {
                let [low, high] = C::widen16(gpu, bytes[part][panel]);
                let at = panels + part as u32 * (ROWS * PANEL_ROW_BYTES) + panel as u32 * PANEL_BYTES + wide;
                // SAFETY: this lane's part of both panels; the second eight are beside the first ones.
                unsafe {
                    gpu.st_shared_b128(at, low);
                    gpu.st_shared_b128(at ^ 16, high);
                }
            });
        });
    });
}
