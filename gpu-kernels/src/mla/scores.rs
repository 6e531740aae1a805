//! Scores of a latent tile: keys times query, for a warp's tokens and heads.

use crate::attention::tile::{HEADS, TILE_KV, row_bytes};
use crate::dtype::{CacheFormat, Half};
use crate::gpu::unroll::unroll;
use crate::gpu::{Gpu, WARP};
use crate::mla::{LatentQuery, MlaTile, RowChunks};

/// A warp's scores: tiles of heads by tiles of 16 tokens, in the accumulator layout of `mma`.
pub(crate) type Scores<const WARP_HEAD_TILES: usize, const WARP_TOKEN_TILES: usize> =
    [[[f32; 4]; WARP_TOKEN_TILES]; WARP_HEAD_TILES];

/// Which scores are a warp's own.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part {
    /// First of its head tiles.
    pub(crate) first_tile: u32,
    /// Which of the warps that share out the tokens it is.
    pub(crate) token_warp: u32,
}

impl Part {
    /// Of warp `warp`.
    #[inline(always)]
    pub(crate) fn of<const WARP_HEAD_TILES: usize>(warp: u32, cut: MlaTile) -> Self {
        Self {
            first_tile: warp / cut.token_warps * WARP_HEAD_TILES as u32,
            token_warp: warp % cut.token_warps,
        }
    }

    /// Number of one of the two heads of an own tile that a lane holds.
    #[inline(always)]
    pub(crate) fn head<G: Gpu>(self, gpu: G, head_tile: usize, head: usize) -> u32 {
        (self.first_tile + head_tile as u32) * HEADS + gpu.lane() % 4 * 2 + head as u32
    }

    /// `keys queryᵀ`, unscaled, of the tile at `keys`. With [`MlaTile::key_halves`], two warps that have the same tokens
    /// make the scores of both, each from half of the columns, and swap: fewer reads of shared memory for each
    /// product. `scratch` is what they swap through. `meanwhile` is called between the products, with a step and the
    /// number of steps.
    ///
    /// # Safety
    /// Every thread of the thread block comes here; the tile is visible; nobody else uses `scratch` before the
    /// second barrier from here.
    #[inline(always)]
    pub(crate) unsafe fn scores<
        G: Gpu,
        C: CacheFormat,
        const K_STEPS: usize,
        const WARP_HEAD_TILES: usize,
        const WARP_TOKEN_TILES: usize,
    >(
        self,
        gpu: G,
        cut: MlaTile,
        query: &LatentQuery<K_STEPS, WARP_HEAD_TILES>,
        (keys, first_token): (u32, u32),
        scratch: u32,
        meanwhile: impl FnMut(usize, usize),
    ) -> Scores<WARP_HEAD_TILES, WARP_TOKEN_TILES> {
        if !cut.key_halves {
            let words = |tile, pair| query.pair(gpu, self.first_tile, 0, tile, pair);
            // SAFETY: converged; the tile is visible.
            return unsafe {
                self.products::<G, C, K_STEPS, WARP_HEAD_TILES, WARP_TOKEN_TILES>(
                    gpu,
                    (keys, first_token),
                    0,
                    K_STEPS / 2,
                    words,
                    meanwhile,
                )
            };
        }
        // The other warp has the next two tiles of heads, or the last two.
        let half = self.first_tile / 2 % 2;
        let (pairs, first_pair) = (K_STEPS / 4, half * (K_STEPS / 4) as u32);
        let words =
            |tile, pair| query.pair(gpu, self.first_tile - 2 * half, first_pair, tile, pair);
        // SAFETY: converged; the tile is visible.
        let both: Scores<4, WARP_TOKEN_TILES> = unsafe {
            self.products::<G, C, K_STEPS, 4, WARP_TOKEN_TILES>(
                gpu,
                (keys, first_token),
                first_pair,
                pairs,
                words,
                meanwhile,
            )
        };
        let mut own = [[[0.0f32; 4]; WARP_TOKEN_TILES]; WARP_HEAD_TILES];
        let step = WARP * 16;
        let mine = scratch + gpu.warp() * (4 * step) + gpu.lane() * 16;
        unroll!([2] tile in 0..2 {
            unroll!([2] token_tile in 0..WARP_TOKEN_TILES {
                let [low, high] = [both[tile][token_tile], both[tile + 2][token_tile]];
                let other = if half == 0 { high } else { low };
                own[tile][token_tile] = if half == 0 { low } else { high };
                let at = mine + (tile * 2 + token_tile) as u32 * step;
                // SAFETY: this warp's part of the scratch.
                unsafe { gpu.st_shared_b128(at, other.map(f32::to_bits)) };
            });
        });
        // SAFETY: all come here.
        unsafe { gpu.sync_cta() };
        let partner = gpu.warp() ^ cut.token_warps;
        let theirs = scratch + partner * (4 * step) + gpu.lane() * 16;
        unroll!([2] tile in 0..2 {
            unroll!([2] token_tile in 0..WARP_TOKEN_TILES {
                let at = theirs + (tile * 2 + token_tile) as u32 * step;
                // SAFETY: written before the barrier.
                let words = unsafe { gpu.ld_shared_b128(at) };
                unroll!([4] i in 0..4 {
                    own[tile][token_tile][i] += f32::from_bits(words[i]);
                });
            });
        });
        own
    }

    /// The sum over `pairs` pairs of steps from `first_pair` on; `words` knows the query's operands of a tile and
    /// pair. Two sums alternate where there is one tile of heads only, so that a product need not wait for the
    /// one before.
    #[inline(always)]
    unsafe fn products<
        G: Gpu,
        C: CacheFormat,
        const K_STEPS: usize,
        const TILES: usize,
        const WARP_TOKEN_TILES: usize,
    >(
        self,
        gpu: G,
        (keys, first_token): (u32, u32),
        first_pair: u32,
        pairs: usize,
        words_of: impl Fn(usize, usize) -> [u32; 4],
        mut meanwhile: impl FnMut(usize, usize),
    ) -> Scores<TILES, WARP_TOKEN_TILES> {
        let lane = gpu.black_box(gpu.lane());
        let bytes = row_bytes::<C, K_STEPS>();
        let first_chunk = first_pair * 4 * C::BYTES / 2 + lane / 16;
        let rows: [RowChunks; WARP_TOKEN_TILES] = core::array::from_fn(|token_tile| {
            let row = first_token + token_tile as u32 * TILE_KV + lane % 16;
            RowChunks::new(keys + row * bytes, row, first_chunk, 2, bytes / 16)
        });
        let mut scores = [[[0.0; 4]; WARP_TOKEN_TILES]; TILES];
        let mut others = scores;
        unroll!([36] pair in 0..(K_STEPS / 2) {
            if pair < pairs {
                let mut words = [[0; 4]; TILES];
                unroll!([4] tile in 0..TILES {
                    words[tile] = words_of(tile, pair);
                });
                unroll!([2] token_tile in 0..WARP_TOKEN_TILES {
                    // SAFETY: converged; a row of the tile.
                    let load = |unit| C::keys(gpu, unsafe { gpu.ldmatrix_x4(rows[token_tile].at(unit)) });
                    let [first, second] = if C::STEPS == 2 {
                        load(pair)
                    } else {
                        [load(2 * pair)[0], load(2 * pair + 1)[0]]
                    };
                    unroll!([4] tile in 0..TILES {
                        let [a, b, c, d] = words[tile];
                        let sum = &mut scores[tile][token_tile];
                        // SAFETY: converged.
                        *sum = unsafe { C::Math::mma(gpu, *sum, first, [a, b]) };
                        let sum = if TILES == 1 {
                            &mut others[tile][token_tile]
                        } else {
                            &mut scores[tile][token_tile]
                        };
                        // SAFETY: converged.
                        *sum = unsafe { C::Math::mma(gpu, *sum, second, [c, d]) };
                    });
                });
                meanwhile(pair, pairs);
            }
        });
        if TILES == 1 {
            unroll!([2] token_tile in 0..WARP_TOKEN_TILES {
                unroll!([4] i in 0..4 {
                    scores[0][token_tile][i] += others[0][token_tile][i];
                });
            });
        }
        scores
    }

    /// Minus infinity for tokens that a head does not see.
    #[inline(always)]
    pub(crate) fn mask<G: Gpu, const WARP_HEAD_TILES: usize, const WARP_TOKEN_TILES: usize>(
        self,
        gpu: G,
        scores: &mut Scores<WARP_HEAD_TILES, WARP_TOKEN_TILES>,
        first_token: u32,
        len_of: impl Fn(u32) -> u32,
    ) {
        let first_token = first_token + gpu.lane() / 4;
        unroll!([4] head_tile in 0..WARP_HEAD_TILES {
            unroll!([2] head in 0..2 {
                let len = len_of(self.head(gpu, head_tile, head));
                unroll!([2] token_tile in 0..WARP_TOKEN_TILES {
                    unroll!([2] half in 0..2 {
                        if first_token + token_tile as u32 * TILE_KV + half as u32 * 8 >= len {
                            scores[head_tile][token_tile][half * 2 + head] = f32::NEG_INFINITY;
                        }
                    });
                });
            });
        });
    }
}
