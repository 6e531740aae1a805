//! Scores, softmax and output of one thread block: a running softmax that takes one latent tile at a time.
//!
//! As in [`crate::decode`], everything is in powers of two, and the scales multiply sums. As in [`crate::prefill`],
//! the maximum that is subtracted from scores is only near the largest one: a head's is raised when a score exceeds
//! it by more than `2^RISE`, so that after the first tiles there is hardly anything to rescale.

use core::marker::PhantomData;

use crate::attention::lse::{LOWEST, Lse, finite, is_far};
use crate::attention::tile::{HEADS, TILE_KV, row_bytes};
use crate::dtype::{CacheFormat, Half};
use crate::gpu::unroll::unroll;
use crate::gpu::{Gpu, WARP};
use crate::mla::scores::{Part, Scores};
use crate::mla::{LatentQuery, MlaTile, RowChunks};

/// How far, in powers of two, a score may exceed the running maximum.
const RISE: f32 = 4.0;
/// Two to that power.
const RISE_POWER: f32 = 16.0;

/// Heads of a tile that a lane of an accumulator holds: `2 (lane % 4)` and the next.
type Pair = [f32; 2];

/// What a warp has seen so far: the softmax of its own heads and tokens, the output of all heads in its own
/// columns.
#[derive(Clone, Copy, Debug)]
pub struct OnlineSoftmax<
    C,
    const HEAD_TILES: usize,
    const WARP_HEAD_TILES: usize,
    const WARP_DIM_TILES: usize,
> {
    /// What is subtracted from the scores of the warp's own heads, base 2: the same in all warps that have them.
    max: [Pair; WARP_HEAD_TILES],
    /// Sum of `2^(score - max + SHIFT)` of the warp's own heads over this lane's tokens.
    sum: [Pair; WARP_HEAD_TILES],
    /// `[column, head]`, multiplied as `sum` is, in the accumulator layout of `mma`.
    acc: [[[f32; 4]; WARP_DIM_TILES]; HEAD_TILES],
    format: PhantomData<C>,
}

impl<
    C: CacheFormat,
    const HEAD_TILES: usize,
    const WARP_HEAD_TILES: usize,
    const WARP_DIM_TILES: usize,
> OnlineSoftmax<C, HEAD_TILES, WARP_HEAD_TILES, WARP_DIM_TILES>
{
    /// Warps that share out the heads.
    const HEAD_WARPS: usize = HEAD_TILES / WARP_HEAD_TILES;
    /// Probabilities are multiplied by two to this power: what an f16 has room for.
    const SHIFT: f32 = C::Math::PROB_SHIFT - RISE;
    /// What takes that back.
    const UNIT: f32 = C::Math::PROB_UNIT * RISE_POWER;

    /// No token seen.
    pub const EMPTY: Self = Self {
        max: [[LOWEST; 2]; WARP_HEAD_TILES],
        sum: [[0.0; 2]; WARP_HEAD_TILES],
        acc: [[[0.0; 4]; WARP_DIM_TILES]; HEAD_TILES],
        format: PhantomData,
    };

    /// First of a warp's own head tiles.
    #[inline(always)]
    pub fn first_tile<G: Gpu>(gpu: G, cut: MlaTile) -> u32 {
        Part::of::<WARP_HEAD_TILES>(gpu.warp(), cut).first_tile
    }

    /// Takes the tile at `tile`. Head `h` of the thread block attends to its tokens below `len_of(h)`;
    /// `all_see` says that this is no restriction. If the cut has [`MlaTile::key_halves`], `scratch` is
    /// [`MlaTile::scratch_bytes`] of shared memory that is free until `scratch_is_free` is called. `meanwhile` is called
    /// between the products before, with a step and the number of steps.
    ///
    /// # Safety
    /// Every thread of the thread block comes here; the tile is visible to it. Nobody else uses the scratch until
    /// `scratch_is_free` is called.
    #[inline(always)]
    #[allow(clippy::too_many_arguments, reason = "each is one fact about the tile")]
    pub unsafe fn attend<G: Gpu, const K_STEPS: usize, const WARP_TOKEN_TILES: usize>(
        &mut self,
        gpu: G,
        cut: MlaTile,
        query: &LatentQuery<K_STEPS, WARP_HEAD_TILES>,
        (tile, scratch): (u32, u32),
        all_see: bool,
        len_of: impl Fn(u32) -> u32,
        meanwhile: impl FnMut(usize, usize),
        scratch_is_free: impl FnOnce(),
    ) {
        // There is no register to keep what follows from the warp's number in from tile to tile.
        let part = Part::of::<WARP_HEAD_TILES>(gpu.black_box(gpu.warp()), cut);
        let first_token = part.token_warp * WARP_TOKEN_TILES as u32 * TILE_KV;
        // SAFETY: all come here, the tile is visible, and the scratch is free: the contract of `attend`.
        let mut scores: Scores<WARP_HEAD_TILES, WARP_TOKEN_TILES> = unsafe {
            part.scores::<G, C, K_STEPS, _, _>(
                gpu,
                cut,
                query,
                (tile, first_token),
                scratch,
                meanwhile,
            )
        };
        if !all_see {
            part.mask(gpu, &mut scores, first_token, len_of);
        }
        let scale_log2 =
            |head_tile: usize| query.scale_log2(gpu, cut, part.first_tile + head_tile as u32);
        // SAFETY: all come here: the contract of `attend`. What warps write for each other is read behind a barrier.
        unsafe {
            self.share_maxima(gpu, part, &scores, scale_log2);
            gpu.sync_cta();
            scratch_is_free();
            self.store_probs(gpu, cut, part, &scores, scale_log2);
            gpu.sync_cta();
            self.rescale(gpu, cut);
            self.add_values::<G, K_STEPS>(gpu, cut, tile);
        }
    }

    /// Stores the maxima of the warp's own heads and tokens.
    ///
    /// # Safety
    /// Converged; nobody reads maxima.
    #[inline(always)]
    unsafe fn share_maxima<G: Gpu, const WARP_TOKEN_TILES: usize>(
        &self,
        gpu: G,
        part: Part,
        scores: &Scores<WARP_HEAD_TILES, WARP_TOKEN_TILES>,
        scale_log2: impl Fn(usize) -> Pair,
    ) {
        unroll!([4] head_tile in 0..WARP_HEAD_TILES {
            let scale_log2 = scale_log2(head_tile);
            let mut max = [f32::NEG_INFINITY; 2];
            unroll!([2] token_tile in 0..WARP_TOKEN_TILES {
                let [s0, s1, s2, s3] = scores[head_tile][token_tile];
                max = [gpu.max(max[0], gpu.max(s0, s2)), gpu.max(max[1], gpu.max(s1, s3))];
            });
            // SAFETY: converged.
            max = unsafe { over_groups(gpu, max, |a, b| gpu.max(a, b)) };
            if gpu.lane() < 4 {
                unroll!([2] head in 0..2 {
                    let at = MlaTile::stats_of(part.head(gpu, head_tile, head)) + part.token_warp * 4;
                    let max = max[head] * scale_log2[head];
                    // SAFETY: this warp's maximum of its own head; one lane writes it.
                    unsafe { gpu.st_shared_b32(gpu.shared_base() + at, max.to_bits()) };
                });
            }
        });
    }

    /// Rescales what was accumulated under smaller maxima.
    ///
    /// # Safety
    /// Converged; the factors of this tile are visible.
    #[inline(always)]
    unsafe fn rescale<G: Gpu>(&mut self, gpu: G, cut: MlaTile) {
        let base = gpu.shared_base();
        let mut grew = 0;
        unroll!([4] head_warp in 0..(Self::HEAD_WARPS) {
            // SAFETY: visible: the contract of `rescale`.
            grew |= unsafe { gpu.ld_shared_b32(base + cut.grew() + head_warp as u32 * 4) };
        });
        // The maxima settle after a few tiles; then there is nothing to rescale.
        if grew == 0 {
            return;
        }
        unroll!([8] head_tile in 0..HEAD_TILES {
            let head = head_tile as u32 * HEADS + gpu.lane() % 4 * 2;
            // SAFETY: visible: the contract of `rescale`.
            let factors = unsafe { gpu.ld_shared_b64(base + cut.factors() + head * 4) };
            let [r0, r1] = [factors as u32, (factors >> 32) as u32].map(f32::from_bits);
            unroll!([8] step in 0..WARP_DIM_TILES {
                let [a0, a1, a2, a3] = self.acc[head_tile][step];
                self.acc[head_tile][step] = [a0 * r0, a1 * r1, a2 * r0, a3 * r1];
            });
        });
    }

    /// Finds the new running maxima, adds the probabilities to the sums and stores them as `mma` operands: of each
    /// tile of 16 tokens and each tile of heads, 8 bytes a lane; and what the output has to be rescaled by.
    ///
    /// # Safety
    /// Converged; the tile's maxima are visible, and nobody reads probabilities or factors.
    #[inline(always)]
    unsafe fn store_probs<G: Gpu, const WARP_TOKEN_TILES: usize>(
        &mut self,
        gpu: G,
        cut: MlaTile,
        part: Part,
        scores: &Scores<WARP_HEAD_TILES, WARP_TOKEN_TILES>,
        scale_log2: impl Fn(usize) -> Pair,
    ) {
        let base = gpu.shared_base() + cut.probs() + gpu.lane() * 8;
        let mut grew = false;
        unroll!([4] head_tile in 0..WARP_HEAD_TILES {
            let [scale0, scale1] = scale_log2(head_tile);
            let mut tops = [0.0; 2];
            unroll!([2] head in 0..2 {
                let own = part.head(gpu, head_tile, head);
                let old = self.max[head_tile][head];
                // SAFETY: the maxima are visible: the contract of `store_probs`.
                let largest = unsafe { tile_max(gpu, cut, gpu.shared_base() + MlaTile::stats_of(own)) };
                let new = if largest > old + RISE { largest } else { old };
                let factor = gpu.exp2(old - new);
                grew |= new > old;
                self.max[head_tile][head] = new;
                self.sum[head_tile][head] *= factor;
                tops[head] = Self::SHIFT - new;
                if part.token_warp == 0 && gpu.lane() < 4 {
                    let at = gpu.shared_base() + cut.factors() + own * 4;
                    // SAFETY: one lane for each head; nobody reads factors.
                    unsafe { gpu.st_shared_b32(at, factor.to_bits()) };
                }
            });
            let [top0, top1] = tops;
            unroll!([2] token_tile in 0..WARP_TOKEN_TILES {
                let [s0, s1, s2, s3] = scores[head_tile][token_tile];
                let p0 = gpu.exp2(gpu.fma(s0, scale0, top0));
                let p1 = gpu.exp2(gpu.fma(s1, scale1, top1));
                let p2 = gpu.exp2(gpu.fma(s2, scale0, top0));
                let p3 = gpu.exp2(gpu.fma(s3, scale1, top1));
                self.sum[head_tile][0] += p0 + p2;
                self.sum[head_tile][1] += p1 + p3;
                // A lane holds a token's pair of heads; the next product wants a head's pair of tokens.
                // SAFETY: converged.
                let (low, high) = unsafe {
                    (
                        gpu.movmatrix_trans(C::Math::pack(gpu, p0, p1)),
                        gpu.movmatrix_trans(C::Math::pack(gpu, p2, p3)),
                    )
                };
                let token_tile = part.token_warp * WARP_TOKEN_TILES as u32 + token_tile as u32;
                let tile = token_tile * HEAD_TILES as u32 + part.first_tile + head_tile as u32;
                // SAFETY: this lane's operands of this warp's tokens and heads.
                unsafe { gpu.st_shared_b64(base + tile * WARP * 8, low as u64 | (high as u64) << 32) };
            });
        });
        // SAFETY: converged.
        let grew = unsafe { gpu.any(grew) };
        if part.token_warp == 0 && gpu.lane() == 0 {
            let head_warp = part.first_tile / WARP_HEAD_TILES as u32;
            // SAFETY: one lane for each group of heads; nobody reads it.
            unsafe {
                gpu.st_shared_b32(gpu.shared_base() + cut.grew() + head_warp * 4, grew as u32)
            };
        }
    }

    /// `acc += valuesᵀ probs`, in the warp's own columns.
    ///
    /// # Safety
    /// Converged; probabilities and tile are visible.
    #[inline(always)]
    unsafe fn add_values<G: Gpu, const K_STEPS: usize>(&mut self, gpu: G, cut: MlaTile, tile: u32) {
        let lane = gpu.lane();
        let row = lane % 8 + lane / 16 * 8;
        let bytes = row_bytes::<C, K_STEPS>();
        let columns = tile + gpu.warp() * WARP_DIM_TILES as u32 * 16 * C::BYTES;
        let probs = gpu.shared_base() + cut.probs() + lane * 8;
        unroll!([4] token_tile in 0..4 {
            if token_tile as u32 * TILE_KV < cut.tile_len {
                let mut operands = [[0; 2]; HEAD_TILES];
                unroll!([8] head_tile in 0..HEAD_TILES {
                    let at = probs + (token_tile * HEAD_TILES + head_tile) as u32 * WARP * 8;
                    // SAFETY: written before the barrier.
                    let words = unsafe { gpu.ld_shared_b64(at) };
                    operands[head_tile] = [words as u32, (words >> 32) as u32];
                });
                let row = token_tile as u32 * TILE_KV + row;
                let chunks = RowChunks::new(columns + row * bytes, row, lane / 8 % 2, 2, bytes / 16);
                unroll!([8] unit in 0..WARP_DIM_TILES {
                    if unit * C::STEPS < WARP_DIM_TILES {
                        // SAFETY: converged; a row of the tile.
                        let values = C::values(gpu, unsafe { gpu.ldmatrix_x4_trans(chunks.at(unit)) });
                        unroll!([2] half in 0..2 {
                            let step = unit * C::STEPS + half;
                            if half < C::STEPS && step < WARP_DIM_TILES {
                                unroll!([8] head_tile in 0..HEAD_TILES {
                                    let acc = &mut self.acc[head_tile][step];
                                    // SAFETY: converged.
                                    *acc = unsafe { C::Math::mma(gpu, *acc, values[half], operands[head_tile]) };
                                });
                            }
                        });
                    }
                });
            }
        });
    }

    /// After the last tile: brings the output of all heads, normalised and multiplied by `v_scale`, into rows of
    /// [`MlaTile::out_row_bytes`] that begin at the address returned, and hands `store_lse` the lse of every head. A head
    /// that saw no token gets zeros and minus infinity.
    ///
    /// # Safety
    /// Every thread of the thread block comes here, once.
    #[inline(always)]
    pub unsafe fn finish<G: Gpu>(
        mut self,
        gpu: G,
        cut: MlaTile,
        v_scale: f32,
        store_lse: impl Fn(u32, Lse),
    ) -> u32 {
        // Nothing of this needs a register during the loop.
        let thread = gpu.black_box(gpu.thread_idx());
        let (warp, lane) = (thread / WARP, thread % WARP);
        let (group, quad) = (lane / 4, lane % 4);
        let part = Part::of::<WARP_HEAD_TILES>(warp, cut);
        let stats = gpu.shared_base();
        let rows = stats + cut.stats_bytes();
        gpu.cp_async_wait::<0>();
        unroll!([4] head_tile in 0..WARP_HEAD_TILES {
            // SAFETY: converged.
            self.sum[head_tile] = unsafe { over_groups(gpu, self.sum[head_tile], |a, b| a + b) };
            if group == 0 {
                unroll!([2] head in 0..2 {
                    let at = stats + MlaTile::stats_of(part.head(gpu, head_tile, head)) + part.token_warp * 4;
                    // SAFETY: this warp's sum of its own head; one lane writes it, after the last maxima were read.
                    unsafe { gpu.st_shared_b32(at, self.sum[head_tile][head].to_bits()) };
                    if part.token_warp == 0 {
                        let at = stats + cut.scales() + part.head(gpu, head_tile, head) * 4;
                        // SAFETY: this head's; its scale is not needed any more.
                        unsafe { gpu.st_shared_b32(at, self.max[head_tile][head].to_bits()) };
                    }
                });
            }
        });
        // SAFETY: all come here; from now on probabilities, query and ring may be overwritten.
        unsafe { gpu.sync_cta() };
        let row = thread;
        if row < cut.heads {
            let scale_at = stats + cut.scales() + row * 4;
            let mut sum = 0.0;
            for token_warp in 0..cut.token_warps {
                // SAFETY: written before the barrier.
                sum += f32::from_bits(unsafe {
                    gpu.ld_shared_b32(stats + MlaTile::stats_of(row) + token_warp * 4)
                });
            }
            // SAFETY: written before the barrier; this thread alone reads and writes it up to the next one.
            let max = f32::from_bits(unsafe { gpu.ld_shared_b32(scale_at) });
            // A row that saw nothing: 0 and -inf. One whose scores are too large for a tile: NaN, until it is mended.
            let scale = if is_far(finite(max)) {
                f32::NAN
            } else if sum == 0.0 {
                0.0
            } else {
                gpu.recip(sum) * v_scale
            };
            // SAFETY: as above.
            unsafe { gpu.st_shared_b32(scale_at, scale.to_bits()) };
            store_lse(
                row,
                Lse {
                    max,
                    sum: sum * Self::UNIT,
                },
            );
        }
        // SAFETY: all come here.
        unsafe { gpu.sync_cta() };
        let (low_dim, high_dim) = C::value_dims(group);
        let first_dim = warp * WARP_DIM_TILES as u32 * 16;
        unroll!([8] head_tile in 0..HEAD_TILES {
            let first_row = head_tile as u32 * HEADS + quad * 2;
            // SAFETY: written before the barrier.
            let scales = unsafe { gpu.ld_shared_b64(stats + cut.scales() + first_row * 4) };
            let scales = [scales as u32, (scales >> 32) as u32].map(f32::from_bits);
            unroll!([2] head in 0..2 {
                let at = rows + (first_row + head as u32) * cut.out_row_bytes() + first_dim * 4;
                unroll!([8] step in 0..WARP_DIM_TILES {
                    let acc = self.acc[head_tile][step];
                    let at = at + step as u32 * 64;
                    // SAFETY: this lane's columns of the head's row.
                    unsafe {
                        gpu.st_shared_b32(at + low_dim * 4, (acc[head] * scales[head]).to_bits());
                        gpu.st_shared_b32(at + high_dim * 4, (acc[head + 2] * scales[head]).to_bits());
                    }
                });
            });
        });
        // SAFETY: all come here.
        unsafe { gpu.sync_cta() };
        rows
    }
}

/// The maximum of a head in this tile, over the warps that share out its tokens.
///
/// # Safety
/// They wrote theirs at `at`, before a barrier.
#[inline(always)]
unsafe fn tile_max<G: Gpu>(gpu: G, cut: MlaTile, at: u32) -> f32 {
    // SAFETY: written before a barrier: the contract of `tile_max`.
    unsafe {
        if cut.token_warps == 4 {
            let [a, b, c, d] = gpu.ld_shared_b128(at).map(f32::from_bits);
            return gpu.max(gpu.max(a, b), gpu.max(c, d));
        }
        let (a, b) = (gpu.ld_shared_b32(at), gpu.ld_shared_b32(at + 4));
        gpu.max(f32::from_bits(a), f32::from_bits(b))
    }
}

/// Combines a pair over the lanes that hold the same heads.
///
/// # Safety
/// Converged.
#[inline(always)]
unsafe fn over_groups<G: Gpu>(gpu: G, mut pair: Pair, with: impl Fn(f32, f32) -> f32) -> Pair {
    unroll!([4] i in 0..3 {
        unroll!([2] head in 0..2 {
            // SAFETY: converged.
            let other = unsafe { gpu.shfl_xor(pair[head].to_bits(), 4 << i) };
            pair[head] = with(pair[head], f32::from_bits(other));
        });
    });
    pair
}
