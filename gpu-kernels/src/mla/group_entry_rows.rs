//! The rows of a tile of entries, as a warp that loads knows them: each lane looks up its own, and tells the others where
//! they are when they are copied.

use crate::gpu::unroll::{rolled, unroll};
use crate::gpu::{Gpu, Line, PANEL_ROW_BYTES, WARP};
use crate::mla::cache_format::fp8_ds;
use crate::mla::entry_places::Places;
use crate::mla::group_tile::ROWS;
use crate::mla::slot_list::{SECOND_LIST, find};
use crate::params::{DecodeMlaEntryParams, EntryList};

/// Rows of a tile that a lane looks up: its own of each 32.
pub(super) const OWN: usize = (ROWS / WARP) as usize;
/// Rows of which a warp copies a line at a time, and how far apart they are.
const LINES: u32 = 4;
pub(super) const LINES_BYTES: u32 = LINES * PANEL_ROW_BYTES;

/// What a lane knows of its rows of a tile.
#[derive(Clone, Copy)]
pub(super) struct Rows {
    /// Where they begin; 0 if there is nothing.
    pub(super) at: [u64; OWN],
    /// Those of the warp's half of the latents, one for each go.
    pub(super) scales: [[u32; 2]; OWN],
}

/// What is written at this lane's positions of a tile: of a position at which there is nothing, anything.
///
/// # Safety
/// Positions below `end` exist.
#[inline(always)]
pub(super) unsafe fn words<G: Gpu>(
    gpu: G,
    params: &DecodeMlaEntryParams,
    places: Places,
    first: u32,
    end: u32,
) -> [u32; OWN] {
    let mut words = [0; OWN];
    unroll!([2] i in 0..OWN {
        let position = first + i as u32 * WARP + gpu.lane();
        // Something is loaded in any case: a word of which it is not certain whether it was would be waited for.
        let mut address = params.rows.query;
        if position < end && let Some(written) = places.address(params, position) {
            address = written;
        }
        // SAFETY: the position exists, or it is the query's first word.
        words[i] = unsafe { gpu.ld_global_b32(address) };
    });
    words
}

impl Rows {
    /// Those at this lane's positions of the tile at `first`, of those below `end`, by what is written there.
    ///
    /// # Safety
    /// Positions below `end` exist.
    #[inline(always)]
    pub(super) unsafe fn of<G: Gpu>(
        gpu: G,
        params: &DecodeMlaEntryParams,
        places: Places,
        (first, end): (u32, u32),
        words: [u32; OWN],
        half: u32,
    ) -> Self {
        let mut rows = Self {
            at: [0; OWN],
            scales: [[0; 2]; OWN],
        };
        unroll!([2] i in 0..OWN {
            let position = first + i as u32 * WARP + gpu.lane();
            if position < end && places.address(params, position).is_some() {
                // SAFETY: the position exists, and so does a slot that is found there: `Places::slot`.
                unsafe {
                    if let Some(slot) = places.slot_of(gpu, params, position, words[i]) {
                        let at = if slot & SECOND_LIST == 0 {
                            entry_at(&params.lists[0], slot)
                        } else {
                            entry_at(&params.lists[1], slot & !SECOND_LIST)
                        };
                        rows.at[i] = at;
                        let scales = gpu.ld_global_b64(at + (fp8_ds::SCALES_AT + 8 * half) as u64);
                        rows.scales[i] = [scales as u32, (scales >> 32) as u32];
                    }
                }
            }
        });
        rows
    }

    /// Which rows of the tile there are: a bit for each, in all lanes.
    ///
    /// # Safety
    /// Converged.
    #[inline(always)]
    pub(super) unsafe fn there<G: Gpu>(&self, gpu: G) -> u64 {
        let mut there = [0; OWN];
        unroll!([2] i in 0..OWN {
            there[i] = ((self.at[i] != 0) as u32) << gpu.lane();
            for mask in [1, 2, 4, 8, 16] {
                // SAFETY: converged.
                there[i] |= unsafe { gpu.shfl_xor(there[i], mask) };
            }
        });
        there[0] as u64 | (there[1] as u64) << 32
    }

    /// Where row `row` of half `half` of the tile begins; 0 if there is nothing.
    ///
    /// # Safety
    /// Converged; the row is one of the tile.
    #[inline(always)]
    unsafe fn at<G: Gpu>(&self, gpu: G, half: u32, row: u32) -> u64 {
        // Both are read before one is chosen: compilers that choose an address keep the array in memory.
        let [first, second] = self.at;
        let own = if half == 0 { first } else { second };
        // SAFETY: converged, and the row is one of the half's 32.
        unsafe {
            gpu.shfl(own as u32, row) as u64 | (gpu.shfl((own >> 32) as u32, row) as u64) << 32
        }
    }

    /// Starts copying a line of each row, four rows at a time, of which this lane's 16 bytes are `offset` bytes behind the
    /// row's beginning and go to `target` in shared memory.
    ///
    /// # Safety
    /// Converged; the target is free; rows that there are have the line.
    #[inline(always)]
    pub(super) unsafe fn copy_lines<G: Gpu>(
        &self,
        gpu: G,
        target: impl Fn(u32) -> u32,
        offset: u32,
    ) {
        const TIMES: usize = (WARP / LINES) as usize;
        rolled!(gpu, half in 0..2 {
            unroll!([8] time in 0..TIMES {
                let row = time as u32 * LINES + gpu.lane() / 8;
                // SAFETY: converged; this lane's part of the line, read only if the row is there.
                unsafe {
                    let at = self.at(gpu, half, row);
                    let target = target(time as u32) + half * (WARP * PANEL_ROW_BYTES);
                    gpu.cp_async_b128(target, at + offset as u64, at != 0, Line::ONCE);
                }
            });
        });
    }
}

/// Where the entry in a slot of a list's cache is.
#[inline(always)]
fn entry_at(list: &EntryList, slot: u32) -> u64 {
    let (block, offset) = find(list, slot);
    block + offset as u64 * list.stride_slot as u64
}
