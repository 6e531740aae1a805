//! What the warp group that loads does: it fills stages with the keys and values that the others multiply, in turns.
//!
//! A stage has panels: 64 rows of 128 bytes, swizzled, four of keys and four of values. Each warp brings 16 tokens. Bytes
//! are copied, in whole lines, over the first of each two panels that they will fill as 16-bit values ([`super::widen`]).
//!
//! ```text
//! for each turn:
//!     wait until its keys' stage is empty; their copies are under way
//!     wait until its values' stage is empty; their copies are under way
//!     when they are there, the turn is full
//! ```
//!
//! Stages are empty, and a turn is full, about one turn before it is wanted: keys' stages half a turn earlier than values'.

use core::marker::PhantomData;

use crate::dtype::CacheFormat;
use crate::gpu::unroll::unroll;
use crate::gpu::{Gpu, Line, PANEL_BYTES, PANEL_ROW_BYTES, bytes_in_panel, in_panels};
use crate::params::PrefillParams;
use crate::prefill::lane_token::LaneToken;
use crate::prefill::wide::widen::widen;
use crate::prefill::wide::{
    FULL_THREADS, STAGES, STEPS, TILE_KV, empty_threads, full, keys_empty, other, values_empty,
};
use crate::prefill::{MmaKind, PrefillTile, WARPS};

/// Tokens of a tile that a warp brings.
const PIECE: u32 = TILE_KV / WARPS;
/// Rows that a warp copies a line of at a time, eight lanes each, and how often that is.
const ROWS: u32 = 4;
const TIMES: usize = (PIECE / ROWS) as usize;

/// A warp's part of the tiles. Each of its lower 16 lanes knows where the key of one of its tokens is, of its upper ones
/// where the value is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Producer<'p, C> {
    token: LaneToken<'p>,
    format: PhantomData<C>,
}

impl<'p, C: CacheFormat> Producer<'p, C> {
    const SHAPE: PrefillTile = PrefillTile::of_kernel::<C, STEPS, STEPS>(MmaKind::WarpGroup);
    /// Lines of a row, and how many panels one of them becomes.
    const LINES: usize = STEPS * 16 * C::BYTES as usize / PANEL_ROW_BYTES as usize;
    const LINE_PANELS: u32 = 2 / C::BYTES;

    /// Brings tokens `begin .. end` of a sequence and KV head from the tile at `first_token` on, which `begin` lies in
    /// or before, to `groups` groups.
    ///
    /// # Safety
    /// The group that loads comes here, each of the others to [`crate::prefill::OnlineSoftmax::consume_wide`]. The block
    /// table and the caches hold every token of the sequence from `begin` up to `end`, which lies behind `first_token`, a
    /// multiple of the tile.
    #[inline(always)]
    pub(super) unsafe fn run<G: Gpu>(
        gpu: G,
        params: &'p PrefillParams,
        head: (u32, u32),
        first_token: u32,
        tokens: (u32, u32),
        groups: u32,
    ) {
        let lane = gpu.lane();
        let token = first_token + gpu.warp() * PIECE + lane % PIECE;
        let mut producer = Self {
            token: LaneToken::new(gpu, params, head, lane < PIECE, token, tokens),
            format: PhantomData,
        };
        let empty_threads = empty_threads(groups);
        let tiles = (tokens.1 - first_token).div_ceil(TILE_KV);
        let (mut turn, mut stage) = (0, 0);
        while turn <= tiles {
            // SAFETY: the group comes here together, and every group that multiplies to these barriers, when it is done
            // with a stage that is wanted again; behind them it is free.
            unsafe {
                // The last turn has no keys, but no group is told of it before it has taken the one that was two before.
                if turn >= STAGES {
                    gpu.barrier_sync(keys_empty(stage), empty_threads);
                }
                if turn < tiles {
                    producer.copy::<G, true>(gpu, stage);
                }
                gpu.cp_async_commit();
                if turn > STAGES {
                    gpu.barrier_sync(values_empty(other(stage)), empty_threads);
                }
                if turn > 0 {
                    producer.copy::<G, false>(gpu, other(stage));
                }
                gpu.cp_async_commit();
                if C::BYTES == 1 && turn < tiles {
                    // Under the copies of the values.
                    gpu.cp_async_wait::<1>();
                    widen::<G, C>(gpu, Self::panels::<G, true>(gpu, stage));
                }
                gpu.cp_async_wait::<0>();
                if C::BYTES == 1 && turn > 0 {
                    widen::<G, C>(gpu, Self::panels::<G, false>(gpu, other(stage)));
                }
                unroll!([2] group in 0..2 {
                    if (group as u32) < groups {
                        gpu.barrier_arrive(full(stage, group as u32), FULL_THREADS);
                    }
                });
            }
            stage = other(stage);
            // The first turns are not made loops of their own: their instructions would have to be fetched, too.
            turn = gpu.black_box(turn + 1);
        }
    }

    /// This warp's rows in the first panel of the keys, or of the values, of stage `stage`.
    #[inline(always)]
    fn panels<G: Gpu, const KEYS: bool>(gpu: G, stage: u32) -> u32 {
        let tile = Self::SHAPE.tile(gpu.shared_base(), 0, stage);
        let panels = if KEYS { tile.keys } else { tile.values };
        panels + gpu.warp() * (PIECE * PANEL_ROW_BYTES)
    }

    /// Starts copying this warp's keys, or values, of its next tile to stage `stage`. Tokens that do not exist become zero.
    ///
    /// # Safety
    /// Converged. The warp's part of the stage is free.
    #[inline(always)]
    unsafe fn copy<G: Gpu, const KEYS: bool>(&mut self, gpu: G, stage: u32) {
        let lane = gpu.lane();
        let source = self.token.source();
        let (row, chunk) = (lane / 8, lane % 8);
        let first = if KEYS { 0 } else { PIECE };
        let mut rows = [0; TIMES];
        unroll!([4] time in 0..TIMES {
            let from = first + row + time as u32 * ROWS;
            // SAFETY: converged.
            let (low, high) = unsafe {
                (gpu.shfl(source as u32, from), gpu.shfl((source >> 32) as u32, from))
            };
            rows[time] = low as u64 | (high as u64) << 32;
        });
        let place = if C::BYTES == 1 {
            bytes_in_panel(row, chunk)
        } else {
            in_panels(row, chunk)
        };
        let target = Self::panels::<G, KEYS>(gpu, stage) + place;
        // SAFETY: converged; the target is free: the contract of `copy`; a source that is not 0 is a token's.
        unsafe {
            // Hardly ever are any missing, and looking at each one costs as much as copying it.
            if gpu.any(source == 0) {
                Self::copy_lines(gpu, &rows, target, |row| row != 0);
            } else {
                Self::copy_lines(gpu, &rows, target, |_| true);
            }
        }
        if (lane < PIECE) == KEYS {
            self.token.advance(gpu, TILE_KV);
        }
    }

    /// Copies the lane's chunk of each line of `rows`; that of the first row's first line belongs at `target`.
    ///
    /// # Safety
    /// As [`Producer::copy`]; rows that are valid exist.
    #[inline(always)]
    unsafe fn copy_lines<G: Gpu>(
        gpu: G,
        rows: &[u64; TIMES],
        target: u32,
        is_valid: impl Fn(u64) -> bool,
    ) {
        let line = Line {
            is_whole: false,
            // Every tile of rows reads all keys before it.
            stays: true,
        };
        unroll!([4] time in 0..TIMES {
            let row = time as u32 * ROWS;
            // Rows of four more flip a bit of the swizzle; bytes lie as in the row four before.
            let flip = if C::BYTES == 1 { 0 } else { row % 8 * 16 };
            let target = (target ^ flip) + row * PANEL_ROW_BYTES;
            let source = rows[time] + (gpu.lane() % 8 * 16) as u64;
            unroll!([4] number in 0..(Self::LINES) {
                let number = number as u32;
                let panel = number * Self::LINE_PANELS * PANEL_BYTES;
                let offset = (number * PANEL_ROW_BYTES) as u64;
                // SAFETY: the target is free: this function's contract; the row is only read if its token exists.
                unsafe { gpu.cp_async_b128(target + panel, source + offset, is_valid(rows[time]), line) };
            });
        });
    }
}
