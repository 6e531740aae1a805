//! What the warp group that loads does: it fills the ring of tiles that the others multiply with.
//!
//! Keys and values lie in it as panels. A panel is 64 rows of 128 bytes, swizzled; a row of 16-bit values takes as many
//! panels as it has 64 values. Rows of bytes are copied to a room of their own, and widened from there.
//!
//! Before a tile is handed on, a fence waits for everything that a thread has under way. With long rows, two teams of
//! warps bring every second tile, so that one has a tile to hand on while the other's copies are under way; with short
//! ones, all warps bring each tile sooner.

use core::marker::PhantomData;

use crate::dtype::CacheFormat;
use crate::gpu::unroll::unroll;
use crate::gpu::{Gpu, Line, PANEL_ROW_BYTES, in_panels};
use crate::params::PrefillParams;
use crate::prefill::lane_token::LaneToken;
use crate::prefill::stages::{empty, empty_threads, full, full_threads, next_stage, team_warps};
use crate::prefill::{MmaKind, PrefillTile, WARPS};

/// Tokens of a tile that a warp brings at a time.
const PIECE: u32 = 16;
/// Tiles that a thread block has on their way to shared memory.
const TILES_AHEAD: u32 = 2;

/// A team's tiles on their way to the ring. A warp brings pieces of 16 tokens side by side.
///
/// A lane knows where the key or the value of one token of a piece is. Of each piece it copies, and widens, chunk `chunk`
/// of row `row` and of rows [`Producer::apart`] from it.
#[derive(Clone, Copy, Debug)]
pub struct Producer<'p, C, const K_STEPS: usize, const V_STEPS: usize, const BYTE_KEYS: bool> {
    /// The lane's token of the next piece.
    token: LaneToken<'p>,
    row: u32,
    chunk: u32,
    format: PhantomData<C>,
}

impl<'p, C: CacheFormat, const K_STEPS: usize, const V_STEPS: usize, const BYTE_KEYS: bool>
    Producer<'p, C, K_STEPS, V_STEPS, BYTE_KEYS>
{
    const SHAPE: PrefillTile =
        PrefillTile::of_kernel::<C, K_STEPS, V_STEPS>(MmaKind::of_groups(BYTE_KEYS));
    /// Whether keys are multiplied as they are, and so copied to where they belong.
    const COPIED_KEYS: bool = C::BYTES == 2 || BYTE_KEYS;
    const ROW_BYTES: u32 = K_STEPS as u32 * 16 * C::BYTES;
    /// Rows of a lane.
    const PARTS: usize = PIECE as usize * Self::ROW_BYTES as usize / 512;
    /// Warps of a team, and their teams, which take turns.
    const TEAM_WARPS: u32 = team_warps::<K_STEPS>();
    const TEAMS: u32 = WARPS / Self::TEAM_WARPS;
    /// Pieces of a warp's tile.
    const PIECES: u32 = Self::SHAPE.tile_kv / Self::TEAM_WARPS / PIECE;

    /// How far a lane's row number `part` is from its first.
    #[inline(always)]
    const fn apart(part: usize) -> u32 {
        let part = part as u32;
        match (C::BYTES, K_STEPS) {
            (1, 8) => part / 2 * 8 + part % 2 * 2,
            (1, _) => part * 8,
            _ => part * (16 / K_STEPS as u32),
        }
    }

    /// Brings tokens `begin .. end` of a sequence and KV head from the tile at `first_token` on, which `begin` lies in
    /// or before, to `groups` groups.
    ///
    /// # Safety
    /// The group that loads comes here, each of the others to [`super::OnlineSoftmax::consume`]. The block table and the
    /// caches hold every token of the sequence from `begin` up to `end`, which lies behind `first_token`, a multiple of
    /// the tile.
    #[inline(always)]
    pub unsafe fn run<G: Gpu>(
        gpu: G,
        params: &'p PrefillParams,
        head: (u32, u32),
        first_token: u32,
        (begin, end): (u32, u32),
        groups: u32,
    ) {
        const { assert!(K_STEPS == V_STEPS && (K_STEPS == 4 || K_STEPS == 8)) };
        let mut producer = Self::new(gpu, params, head, first_token, (begin, end));
        let (stages, tile_kv) = (Self::SHAPE.stages, Self::SHAPE.tile_kv);
        // Before a stage is filled again, every group has come to its barrier: they do when they are done with a tile
        // that is followed by another in its stage.
        let wait_until_empty = |token: u32, stage: u32| {
            if token >= first_token + stages * tile_kv {
                // SAFETY: all of the team come here, and every group that multiplies, as said above.
                unsafe { gpu.barrier_sync(empty(stage, stages), empty_threads::<K_STEPS>(groups)) };
            }
        };
        let team = gpu.warp() / Self::TEAM_WARPS;
        let turn = Self::TEAMS * tile_kv;
        let after = |stage: u32| {
            let next = next_stage(stage, stages);
            if Self::TEAMS == 2 {
                next_stage(next, stages)
            } else {
                next
            }
        };
        // The team's next tile to hand on, and the next one to ask for.
        let (mut token, mut stage) = (first_token + team * tile_kv, team);
        let (mut ahead, mut to) = (token, stage);
        while token < end {
            if ahead < end {
                // SAFETY: what is copied to is free: the stage behind the barrier, or bytes that this lane has widened.
                unsafe {
                    if Self::COPIED_KEYS {
                        wait_until_empty(ahead, to);
                    }
                    Self::each_piece(gpu, |piece| producer.copy(gpu, to, piece));
                }
                gpu.cp_async_commit();
            }
            (ahead, to) = (ahead + turn, after(to));
            if ahead - token < TILES_AHEAD * tile_kv {
                continue;
            }
            if token + turn < ahead.min(end) {
                gpu.cp_async_wait::<1>();
            } else {
                gpu.cp_async_wait::<0>();
            }
            if C::BYTES == 1 {
                // SAFETY: the bytes have arrived; behind the barrier the stage is free.
                unsafe {
                    if !Self::COPIED_KEYS {
                        wait_until_empty(token, stage);
                    }
                    Self::each_piece(gpu, |piece| producer.widen(gpu, stage, piece));
                }
            }
            gpu.fence_warpgroup();
            unroll!([4] group in 0..3 {
                if (group as u32) < groups {
                    // SAFETY: each group waits there for each tile.
                    unsafe { gpu.barrier_arrive(full(stage, group as u32), full_threads::<K_STEPS>()) };
                }
            });
            (token, stage) = (token + turn, after(stage));
        }
    }

    /// Each piece of this warp's tile. A loop that is not unrolled: its instructions have to be fetched, too.
    #[inline(always)]
    fn each_piece<G: Gpu>(gpu: G, mut bring: impl FnMut(u32)) {
        let mut piece = 0;
        while piece < Self::PIECES {
            bring(piece);
            piece = gpu.black_box(piece + 1);
        }
    }

    #[inline(always)]
    fn new<G: Gpu>(
        gpu: G,
        params: &'p PrefillParams,
        head: (u32, u32),
        first_token: u32,
        tokens: (u32, u32),
    ) -> Self {
        let lane = gpu.lane();
        // Eight neighbouring lanes copy a line, and store at a time. When they widen, they have four chunks, of even
        // places then, of rows `r` and `r ^ 5`, which the swizzle sends to different banks.
        let (row, chunk) = match (C::BYTES, K_STEPS) {
            (1, 8) => (
                (lane / 16) ^ (lane / 4 % 2 * 5),
                lane / 8 % 2 * 4 + lane % 4,
            ),
            (1, _) => ((lane / 8) ^ (lane / 4 % 2 * 5), lane % 4),
            _ => (
                lane / const { K_STEPS as u32 * 2 },
                lane % const { K_STEPS as u32 * 2 },
            ),
        };
        let token = first_token + gpu.warp() * (Self::PIECES * PIECE) + lane % PIECE;
        Self {
            token: LaneToken::new(gpu, params, head, lane < 16, token, tokens),
            row,
            chunk,
            format: PhantomData,
        }
    }

    /// Starts copying piece `piece` of this warp's next tile: to stage `stage`, or, if it is of bytes, to the room for
    /// them. Tokens that do not exist become zero.
    ///
    /// # Safety
    /// Converged. The lane's part of the target is free.
    #[inline(always)]
    unsafe fn copy<G: Gpu>(&mut self, gpu: G, stage: u32, piece: u32) {
        let source = self.token.source();
        // SAFETY: converged.
        let some_missing = unsafe { gpu.any(source == 0) };
        let (mut keys, mut values) = self.panels(gpu, stage, piece);
        if C::BYTES == 1 {
            let (raw_keys, raw_values) = self.raw(gpu, stage, piece);
            if !BYTE_KEYS {
                keys = raw_keys;
            }
            values = raw_values;
        }
        // Hardly ever are any missing, and looking at each one costs as much as copying it.
        // SAFETY: converged, and the target is free: the contract of `copy`; a source that is not 0 is a token's.
        unsafe {
            if some_missing {
                self.copy_rows::<G, true>(gpu, source, keys, |source| source != 0);
                self.copy_rows::<G, false>(gpu, source, values, |source| source != 0);
            } else {
                self.copy_rows::<G, true>(gpu, source, keys, |_| true);
                self.copy_rows::<G, false>(gpu, source, values, |_| true);
            }
        }
        let next = if piece + 1 < Self::PIECES {
            PIECE
        } else {
            Self::TEAMS * Self::SHAPE.tile_kv - (Self::PIECES - 1) * PIECE
        };
        self.token.advance(gpu, next);
    }

    /// Copies 16 rows of keys or of values: of keys the lower lanes know in `source` where they are, of values the upper.
    ///
    /// # Safety
    /// As [`Producer::copy`]; rows that are valid exist.
    #[inline(always)]
    unsafe fn copy_rows<G: Gpu, const KEYS: bool>(
        &self,
        gpu: G,
        source: u64,
        target: u32,
        is_valid: impl Fn(u64) -> bool,
    ) {
        let line = Line {
            // The rest of the line is the next head's row, which another thread block reads at about this time.
            is_whole: Self::ROW_BYTES < 128,
            // Every tile of rows reads all keys before it.
            stays: true,
        };
        let mut sources = [0; 8];
        // Known, these sums would wait in registers.
        let row = gpu.black_box(self.row) + if KEYS { 0 } else { 16 };
        unroll!([8] part in 0..8 {
            if part < Self::PARTS {
                let lane = row + Self::apart(part);
                // SAFETY: converged.
                let (low, high) = unsafe {
                    (gpu.shfl(source as u32, lane), gpu.shfl((source >> 32) as u32, lane))
                };
                sources[part] = low as u64 | (high as u64) << 32;
            }
        });
        unroll!([8] part in 0..8 {
            if part < Self::PARTS {
                let target = if C::BYTES == 2 || KEYS && BYTE_KEYS {
                    Self::in_panel(target, part)
                } else {
                    target + Self::apart(part) * Self::ROW_BYTES
                };
                let chunk = sources[part] + (self.chunk * 16) as u64;
                // SAFETY: the target is free: the contract of `copy_rows`; the row is only read if its token exists.
                unsafe { gpu.cp_async_b128(target, chunk, is_valid(sources[part]), line) };
            }
        });
    }

    /// Puts this lane's bytes of piece `piece` as f16 into stage `stage`.
    ///
    /// # Safety
    /// They have arrived, and the stage is free.
    #[inline(always)]
    unsafe fn widen<G: Gpu>(&self, gpu: G, stage: u32, piece: u32) {
        let (raw_keys, raw_values) = self.raw(gpu, stage, piece);
        let (keys, values) = self.panels(gpu, stage, piece);
        // SAFETY: the piece has arrived and the stage is free: the contract of `widen`.
        unsafe {
            if !BYTE_KEYS {
                Self::widen_rows(gpu, raw_keys, keys);
            }
            Self::widen_rows(gpu, raw_values, values);
        }
    }

    /// Widens the lane's chunks of 16 rows.
    ///
    /// # Safety
    /// As [`Producer::widen`].
    #[inline(always)]
    unsafe fn widen_rows<G: Gpu>(gpu: G, raw: u32, panel: u32) {
        let mut bytes = [[0u32; 4]; 4];
        unroll!([4] part in 0..4 {
            if part < Self::PARTS {
                // SAFETY: this lane's copy.
                bytes[part] = unsafe { gpu.ld_shared_b128(raw + Self::apart(part) * Self::ROW_BYTES) };
            }
        });
        unroll!([4] part in 0..4 {
            if part < Self::PARTS {
                let [low, high] = C::widen16(gpu, bytes[part]);
                let at = Self::in_panel(panel, part);
                // SAFETY: this lane's places, of which the second is the next one before the swizzle.
                unsafe {
                    gpu.st_shared_b128(at, low);
                    gpu.st_shared_b128(at ^ 16, high);
                }
            }
        });
    }

    /// The first token of piece `piece` of this warp, counted from the tile's.
    #[inline(always)]
    fn first_row<G: Gpu>(gpu: G, piece: u32) -> u32 {
        (gpu.warp() % Self::TEAM_WARPS * Self::PIECES + piece) * PIECE
    }

    /// Where the chunk of the lane's first row belongs in the keys and in the values of stage `stage`.
    #[inline(always)]
    fn panels<G: Gpu>(&self, gpu: G, stage: u32, piece: u32) -> (u32, u32) {
        let tile = Self::SHAPE.tile(gpu.shared_base(), 0, stage);
        let wide = if C::BYTES == 1 { 2 } else { 1 };
        let at =
            |chunk: u32| Self::first_row(gpu, piece) * PANEL_ROW_BYTES + in_panels(self.row, chunk);
        let key_chunk = if BYTE_KEYS { 1 } else { wide } * self.chunk;
        (
            tile.keys + at(key_chunk),
            tile.values + at(wide * self.chunk),
        )
    }

    /// Where the lane's chunk of its row number `part` belongs, if that of its first is at `first`: rows that are a
    /// multiple of 2 further flip bits that the swizzle does not share with others.
    #[inline(always)]
    fn in_panel(first: u32, part: usize) -> u32 {
        let apart = Self::apart(part);
        (first ^ (apart % 8 * 16)) + apart * PANEL_ROW_BYTES
    }

    /// Where the chunk of the lane's first row waits among keys and values of bytes: those of one row in one line, those
    /// of eight lanes in different banks. There is room for a tile of every second stage, without keys that are
    /// copied to where they belong.
    #[inline(always)]
    fn raw<G: Gpu>(&self, gpu: G, stage: u32, piece: u32) -> (u32, u32) {
        let side = Self::SHAPE.tile_kv * Self::ROW_BYTES;
        let flip = if K_STEPS == 8 { self.row & 4 } else { 0 };
        let keys = gpu.shared_base()
            + Self::SHAPE.raw()
            + stage % TILES_AHEAD * (Self::SHAPE.raw_bytes / TILES_AHEAD)
            + (Self::first_row(gpu, piece) + self.row) * Self::ROW_BYTES
            + (self.chunk ^ flip) * 16;
        (keys, if BYTE_KEYS { keys } else { keys + side })
    }
}
