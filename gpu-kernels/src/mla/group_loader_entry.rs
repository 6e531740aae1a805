//! What the warps that load do over entries: as [`super::group_loader_fp8`], but that each row is where a list, or the
//! block table, says, and that the f16 which bytes become are multiplied by the scale of their group of values.
//!
//! ```text
//! for each tile of the stage:
//!     wait until the half is empty; both its goes are under way
//!     for each go: wait until it is there; widen it; it is full
//!     look up the rows of the next tile by the words that have arrived, and ask for those of the one behind it
//! ```
//!
//! A position at which there is nothing gets zeros, and is left out of the bits that say which tokens there are.
//!
//! A value is `e4m3 * scale`, rounded to bf16, as everywhere. Of a scale that is a power of two, as writers make them, and
//! neither tiny nor huge, the f16 is exact without that rounding, and made at a third of the price. What an f16 has no room
//! for becomes infinite or NaN, so that the rows of the query that see it are computed again, from memory: values beyond
//! 65,504, and groups whose largest values would lose bits, if they have any but zeros.

use crate::dtype::{CacheFormat, E4m3};
use crate::gpu::unroll::{rolled, unroll};
use crate::gpu::{Gpu, Line, PANEL_BYTES, PANEL_ROW_BYTES, WARP, in_panels};
use crate::mla::cache_format::dequantise8;
use crate::mla::entry_form::Source;
use crate::mla::entry_places::Places;
use crate::mla::group_loader::GROUP;
use crate::mla::group_loader_fp8::{
    GROUP_BYTES, PANEL_VALUES, TILE_GROUPS, raw_chunk, widen_line, widen_lines,
};
use crate::mla::group_tile::{GROUPS, Part, ROWS};
use crate::mla::slot_list::SECOND_LIST;
use crate::mla::{MlaEntry, MlaTile};
use crate::params::{DecodeMlaEntryParams, EntryList};

/// Rows of a tile that a lane looks up: its own of each 32.
const OWN: usize = (ROWS / WARP) as usize;
/// Rows of which a warp copies a line at a time, how often that is, and how far apart they are.
const LINES: u32 = 4;
const TIMES: u32 = ROWS / LINES;
const LINES_BYTES: u32 = LINES * PANEL_ROW_BYTES;

/// What a lane knows of its rows of a tile.
#[derive(Clone, Copy)]
struct Rows {
    /// Where they begin; 0 if there is nothing.
    at: [u64; OWN],
    /// See [`MlaEntry::scales_of_half`].
    scales: [[u32; 2]; OWN],
}

/// Of smaller scales the products with the smallest bytes are no f16: 2^-14.
const LEAST_PLAIN: f32 = 1.0 / 16_384.0;
/// The largest values of groups with smaller scales lose bits that a bf16 has: 2^-22.
const LEAST: f32 = 1.0 / 4_194_304.0;
/// So do rotary values that are all smaller: 2^-16.
const LEAST_ROTARY: f32 = 1.0 / 65_536.0;
/// Two f16 that are NaN.
const NAN: u32 = 0x7e00_7e00;

/// Brings this warp's part of every tile of `positions`, from the first to the end, of a group of query tokens.
///
/// # Safety
/// Converged; the other warps of the group that loads come here too, and the groups that multiply to
/// [`super::group_softmax::GroupSoftmax::consume`] with the same positions, which exist.
#[inline(always)]
pub(super) unsafe fn load_entries<G: Gpu, E: MlaEntry>(
    gpu: G,
    cut: MlaTile,
    params: &DecodeMlaEntryParams,
    places: Places,
    (start, end): (u32, u32),
) {
    // A warp that might part would have to be gathered before each exchange between its lanes.
    // SAFETY: converged.
    let [warp, start, end] = unsafe { [gpu.warp(), start, end].map(|value| gpu.uniform(value)) };
    let part = Part {
        stage: warp / 2,
        half: warp % 2,
    };
    let step = GROUPS * ROWS;
    let lane = gpu.lane();
    let stage = gpu.shared_base() + cut.group_stage(part.stage);
    let half = stage + part.half * cut.half_bytes();
    // Rotary values are not widened. They are the row's rest, or the last of its values.
    let rotary = stage + E::LATENTS / PANEL_VALUES * PANEL_BYTES;
    let brings_rotary = if cut.has_rest() {
        part.has_rest()
    } else {
        part.half == 1
    };
    let is_short = !cut.has_rest() && part.half == 1;
    // Copying, eight lanes have a line of a row, and four half of one.
    let (line_row, line_chunk) = (lane / 8, lane % 8);
    let (row, quad) = (lane / 4, lane % 4);
    // SAFETY: converged. See `Loader::run` for why they come from a lane.
    let [line_to, short_to, rotary_to] = unsafe {
        [
            half + raw_chunk(line_row, line_chunk),
            half + 2 * PANEL_BYTES + raw_chunk(row, quad),
            rotary + in_panels(line_row, line_chunk),
        ]
        .map(|target| gpu.shfl(target, lane))
    };
    // In the swizzle a row's number, modulo 8, is mixed into the place in the line.
    let rotary_lines = |time: u32| (rotary_to ^ (time % 2 * 64)) + time * LINES_BYTES;
    let column = part.half * (cut.head_size_v / 2);

    let mut first = start + part.stage * ROWS;
    // SAFETY: positions below the end exist: this function's contract.
    let (mut rows, mut next) = unsafe {
        let own = words(gpu, params, places, first, end);
        (
            Rows::of::<G, E>(gpu, params, places, (first, end), own, part.half),
            words(gpu, params, places, first + step, end),
        )
    };
    let mut tile = 0;
    while first < end {
        if tile > 0 {
            // SAFETY: the warp is converged; a group comes there when it is done with the half, if another tile follows in
            // the stage.
            unsafe { gpu.barrier_sync(part.empty(), Part::THREADS) };
        }
        // SAFETY: the warp is converged, and the half is free.
        unsafe {
            rolled!(gpu, go in 0..2 {
                let column = column + go * (2 * PANEL_VALUES);
                if go == 1 && is_short {
                    rows.copy_short(gpu, short_to, column + 16 * quad);
                } else {
                    let to = line_to + go * (2 * PANEL_BYTES);
                    rows.copy_lines(
                        gpu,
                        |time| to + time * LINES_BYTES,
                        column + 16 * line_chunk,
                    );
                }
                if go == 0 {
                    gpu.cp_async_commit();
                }
            });
            if brings_rotary {
                rows.copy_lines(gpu, rotary_lines, E::ROPE_AT + 16 * line_chunk);
            }
            gpu.cp_async_commit();
        }
        // No fence: it would wait for all that is under way. Those that multiply have one.
        // SAFETY: the warp is converged, and what it waited for is there; the half's group has read the bits of before; the
        // group that computes the stage's scores waits at the barriers for each tile.
        unsafe {
            if part.stage == part.half {
                let there = rows.there(gpu);
                if lane == 0 {
                    gpu.st_shared_b64(gpu.shared_base() + cut.group_there(part.stage), there);
                }
            }
            let are_plain = rows.are_plain::<G, E>(gpu, part.half);
            rolled!(gpu, go in 0..2 {
                if go == 0 {
                    gpu.cp_async_wait::<1>();
                } else {
                    gpu.cp_async_wait::<0>();
                }
                let panels = half + go * (2 * PANEL_BYTES);
                if go == 1 && is_short {
                    rows.widen_short::<G, E>(gpu, panels);
                } else {
                    rows.widen_go::<G, E>(gpu, go, panels, are_plain);
                }
                if go == 1 && brings_rotary && !cut.has_rest() {
                    narrow_rotary(gpu, rotary_lines);
                }
                gpu.barrier_arrive(part.full(go), Part::THREADS);
            });
        }
        // While others still multiply.
        // SAFETY: as above; the words are those of the next tile.
        rows = unsafe {
            let tokens = (first + step, end);
            Rows::of::<G, E>(gpu, params, places, tokens, next, part.half)
        };
        // SAFETY: as above.
        next = unsafe { words(gpu, params, places, first + 2 * step, end) };
        first += step;
        tile += 1;
    }
}

/// What is written at this lane's positions of a tile: of a position at which there is nothing, anything.
///
/// # Safety
/// Positions below `end` exist.
#[inline(always)]
unsafe fn words<G: Gpu>(
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
    unsafe fn of<G: Gpu, E: MlaEntry>(
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
                        let place = if slot & SECOND_LIST == 0 {
                            place::<E>(&params.lists[0], slot)
                        } else {
                            place::<E>(&params.lists[1], slot & !SECOND_LIST)
                        };
                        rows.at[i] = place.values;
                        rows.scales[i] = E::scales_of_half(gpu, place, half);
                    }
                }
            }
        });
        rows
    }

    /// Whether all scales of the warp's rows are powers of two with which an f16 is exact.
    ///
    /// # Safety
    /// Converged.
    #[inline(always)]
    unsafe fn are_plain<G: Gpu, E: MlaEntry>(&self, gpu: G, half: u32) -> bool {
        let mut are_plain = true;
        unroll!([2] i in 0..OWN {
            unroll!([4] panel in 0..4 {
                if self.at[i] != 0 && half * 4 + (panel as u32) < E::LATENTS / PANEL_VALUES {
                    let go = panel as u32 / 2;
                    let word = E::scales_of_go(self.scales[i], go);
                    let scale = E::panel_scales(word, go)[panel % 2];
                    are_plain &= scale >= LEAST_PLAIN && is_power_of_two(scale);
                }
            });
        });
        // SAFETY: converged.
        unsafe { !gpu.any(!are_plain) }
    }

    /// Which rows of the tile there are: a bit for each, in all lanes.
    ///
    /// # Safety
    /// Converged.
    #[inline(always)]
    unsafe fn there<G: Gpu>(&self, gpu: G) -> u64 {
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
        let own = if half == 0 { self.at[0] } else { self.at[1] };
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
    unsafe fn copy_lines<G: Gpu>(&self, gpu: G, target: impl Fn(u32) -> u32, offset: u32) {
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

    /// Starts copying half a line of each row, eight rows at a time, the first ones to `target`.
    ///
    /// # Safety
    /// As [`Rows::copy_lines`].
    #[inline(always)]
    unsafe fn copy_short<G: Gpu>(&self, gpu: G, target: u32, offset: u32) {
        const HALF: usize = TILE_GROUPS / 2;
        rolled!(gpu, half in 0..2 {
            unroll!([4] group in 0..HALF {
                let row = group as u32 * GROUP + gpu.lane() / 4;
                // SAFETY: as in `copy_lines`.
                unsafe {
                    let at = self.at(gpu, half, row);
                    let target = target + (half * HALF as u32 + group as u32) * GROUP_BYTES;
                    gpu.cp_async_b128(target, at + offset as u64, at != 0, Line::ONCE);
                }
            });
        });
    }

    /// What go `go` needs of the scales of this lane's row of group `group` of half `half` of the tile.
    ///
    /// # Safety
    /// Converged.
    #[inline(always)]
    unsafe fn scales_of_go<G: Gpu, E: MlaEntry>(
        &self,
        gpu: G,
        go: u32,
        half: u32,
        group: usize,
    ) -> u32 {
        let own = if half == 0 {
            self.scales[0]
        } else {
            self.scales[1]
        };
        // SAFETY: converged.
        unsafe {
            gpu.shfl(
                E::scales_of_go(own, go),
                group as u32 * GROUP + gpu.lane() / 4,
            )
        }
    }

    /// Makes f16 of go `go`, whose lines lie over the panel at `panels`; `are_plain` says what [`Rows::are_plain`] does.
    ///
    /// # Safety
    /// As [`widen_lines`].
    #[inline(always)]
    unsafe fn widen_go<G: Gpu, E: MlaEntry>(&self, gpu: G, go: u32, panels: u32, are_plain: bool) {
        // SAFETY: this function's contract.
        unsafe {
            if are_plain {
                self.widen_panels::<G, E, true>(gpu, go, panels);
            } else {
                self.widen_panels::<G, E, false>(gpu, go, panels);
            }
        }
    }

    /// See [`Rows::widen_go`]; with `PLAIN`, scales are.
    ///
    /// # Safety
    /// As there.
    #[inline(always)]
    unsafe fn widen_panels<G: Gpu, E: MlaEntry, const PLAIN: bool>(
        &self,
        gpu: G,
        go: u32,
        panels: u32,
    ) {
        // SAFETY: this function's contract; the lane's parts of both panels, of which it has taken what lay there.
        unsafe {
            widen_lines(
                gpu,
                panels,
                |half, group| self.scales_of_go::<G, E>(gpu, go, half, group),
                |word, at, [first, second]| {
                    let scales = E::panel_scales(word, go);
                    store_scaled::<G, PLAIN>(gpu, at, first, scales[0]);
                    store_scaled::<G, PLAIN>(gpu, at + PANEL_BYTES, second, scales[1]);
                },
            );
        }
    }

    /// The same of a last go of which only the first panel has bytes.
    ///
    /// # Safety
    /// As [`widen_lines`].
    #[inline(always)]
    unsafe fn widen_short<G: Gpu, E: MlaEntry>(&self, gpu: G, panel: u32) {
        // SAFETY: as in `widen_panels`.
        unsafe {
            widen_line(gpu, panel, |group, at, bytes| {
                let (half, group) = ((group / 4) as u32, group % 4);
                let word = self.scales_of_go::<G, E>(gpu, 1, half, group);
                let scales = E::panel_scales(word, 1);
                store_scaled::<G, false>(gpu, at, bytes, scales[0]);
            });
        }
    }
}

/// Where a slot of a list's cache is.
#[inline(always)]
fn place<E: MlaEntry>(list: &EntryList, slot: u32) -> Source {
    let block = list.block_size.divide(slot);
    let offset = slot - block * list.block_size.divisor();
    let block = list.cache + block as u64 * list.stride_block as u64;
    E::place(block, offset, list)
}

/// Whether a positive number is one, and not a subnormal.
#[inline(always)]
fn is_power_of_two(x: f32) -> bool {
    x.to_bits().trailing_zeros() >= 23
}

/// Stores sixteen bytes times their scale, as f16: the second eight are beside the first ones.
///
/// # Safety
/// `at` is where 8 values of an even chunk of a panel's row go, this lane's, and what lay there has been taken.
#[inline(always)]
unsafe fn store_scaled<G: Gpu, const PLAIN: bool>(gpu: G, at: u32, bytes: [u32; 4], scale: f32) {
    let [low, high] = if PLAIN {
        let scale = gpu.pack_f16(scale, scale);
        E4m3::widen16(gpu, bytes).map(|words| words.map(|word| gpu.mul_f16x2(word, scale)))
    } else {
        let [a, b, c, d] = bytes;
        [[a, b], [c, d]].map(|bytes| {
            dequantise8(gpu, bytes, scale).map(|pair| narrow(gpu, pair, scale < LEAST))
        })
    };
    // SAFETY: this function's contract.
    unsafe {
        gpu.st_shared_b128(at, low);
        gpu.st_shared_b128(at ^ 16, high);
    }
}

/// Two bf16 as f16; NaN if they are `lost` and not both zero.
#[inline(always)]
fn narrow<G: Gpu>(gpu: G, pair: u32, lost: bool) -> u32 {
    if lost && pair & 0x7fff_7fff != 0 {
        return NAN;
    }
    let [low, high] = [pair << 16, pair & 0xffff_0000].map(f32::from_bits);
    gpu.pack_f16(low, high)
}

/// Makes f16 of rotary values that are multiplied as others are: of each line what this lane copied, at `line_at`.
///
/// # Safety
/// The lane's copies are there, and nobody else uses them.
#[inline(always)]
unsafe fn narrow_rotary<G: Gpu>(gpu: G, line_at: impl Fn(u32) -> u32) {
    rolled!(gpu, time in 0..TIMES {
        let at = line_at(time);
        // SAFETY: this function's contract.
        let words = unsafe { gpu.ld_shared_b128(at) };
        let mut largest = 0.0f32;
        for word in words {
            let pair = [word << 16, word & 0xffff_0000].map(|bits| f32::from_bits(bits).abs());
            largest = gpu.max(largest, gpu.max(pair[0], pair[1]));
        }
        let words = words.map(|word| narrow(gpu, word, largest < LEAST_ROTARY));
        // SAFETY: as above.
        unsafe { gpu.st_shared_b128(at, words) };
    });
}
