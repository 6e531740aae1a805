//! Scores, softmax and output of one warp: an [`OnlineSoftmax`] that takes one KV tile at a time.
//!
//! Everything is in powers of two: products are multiplied by `softmax_scale * log2 e` (and the scales of
//! query and keys) once, inside the `fma` that subtracts the running maximum.

use crate::attention::lse::LOWEST;
use crate::attention::tile::{TILE_KV, row_bytes, swizzle};
use crate::decode::score_mods::DecodeMods;
use crate::decode::{KvTile, QueryTile};
use crate::dtype::{CacheFormat, Half};
use crate::gpu::Gpu;
use crate::gpu::unroll::unroll;

/// What a warp has seen so far. A lane holds, of each head tile, heads `2 (lane % 4)` and `+ 1`.
#[derive(Clone, Copy, Debug)]
pub struct OnlineSoftmax<const V_STEPS: usize, const HEAD_TILES: usize> {
    /// Running maximum of the scores, base 2, the same in all lanes of a head.
    pub max: [[f32; 2]; HEAD_TILES],
    /// Sum of `2^(score - max + PROB_SHIFT)`: this lane's tokens until [`OnlineSoftmax::reduce`], then all.
    pub sum: [[f32; 2]; HEAD_TILES],
    /// `[value dim, head]`, multiplied as `sum` is, in the accumulator layout of `mma`: of each step the two
    /// dims that `CacheFormat::value_dims` names, for both heads.
    pub acc: [[[f32; 4]; V_STEPS]; HEAD_TILES],
    /// What `acc` has to be multiplied by, the same in all lanes: the largest value scale seen, if every
    /// token has one. Probabilities are multiplied by their token's share of it, so that they stay within an
    /// f16 however large or small the scales are.
    pub value_unit: f32,
}

impl<const V_STEPS: usize, const HEAD_TILES: usize> OnlineSoftmax<V_STEPS, HEAD_TILES> {
    /// No token seen.
    pub const EMPTY: Self = Self {
        max: [[LOWEST; 2]; HEAD_TILES],
        sum: [[0.0; 2]; HEAD_TILES],
        acc: [[[0.0; 4]; V_STEPS]; HEAD_TILES],
        value_unit: f32::MIN_POSITIVE,
    };

    /// Takes one tile. `mods` are only looked at with `MODS`.
    ///
    /// # Safety
    /// Converged; the tile is visible to the warp and holds at least one token that the query sees.
    #[inline(always)]
    pub unsafe fn attend<G: Gpu, C: CacheFormat, const K_STEPS: usize, const MODS: bool>(
        &mut self,
        gpu: G,
        query: &QueryTile<K_STEPS, HEAD_TILES>,
        mods: &DecodeMods<HEAD_TILES>,
        tile: KvTile,
    ) {
        // SAFETY: converged, and the tile's keys are visible: this function's contract.
        let mut scores = unsafe { scores::<G, C, K_STEPS, HEAD_TILES>(gpu, query, tile.keys) };
        let mut value_scales = [1.0; 2];
        if C::TOKEN_SCALES {
            // SAFETY: converged, and the tile's scales are visible: this function's contract.
            value_scales = unsafe { scale_keys(gpu, &mut scores, tile.scales) };
        }
        let mut scale_log2 = query.scale_log2;
        if MODS {
            mods.apply(gpu, &mut scores, &scale_log2, &tile);
            scale_log2 = [[1.0; 2]; HEAD_TILES];
        }
        if tile.len < TILE_KV {
            mask_past_end(gpu, &mut scores, tile.len);
        }
        // SAFETY: converged: this function's contract.
        let probs = unsafe { self.softmax_step::<G, C>(gpu, &scores, &scale_log2, value_scales) };
        // SAFETY: converged, and the tile's values are visible: this function's contract.
        unsafe { self.add_values::<G, C>(gpu, &probs, tile.values) };
    }

    /// Updates maximum and sum, rescales what was accumulated, and returns the probabilities as `mma`
    /// operands (16 tokens by 8 heads).
    ///
    /// The `fma` rounds a score once, the maximum was rounded before. Of scores beyond 2^22 the difference is more than a
    /// fraction, so that the largest would become any power of two. Hence the maximum is rounded down, and no probability
    /// is more than the largest.
    ///
    /// # Safety
    /// Converged.
    #[inline(always)]
    unsafe fn softmax_step<G: Gpu, C: CacheFormat>(
        &mut self,
        gpu: G,
        scores: &[[f32; 4]; HEAD_TILES],
        scale_log2: &[[f32; 2]; HEAD_TILES],
        value_scales: [f32; 2],
    ) -> [[u32; 2]; HEAD_TILES] {
        let mut probs = [[0; 2]; HEAD_TILES];
        let mut rescale = [[1.0f32; 2]; HEAD_TILES];
        let mut grew = false;
        let mut unit_shrinks = 1.0;
        let mut shares = [1.0; 2];
        if C::TOKEN_SCALES {
            // SAFETY: converged: this function's contract.
            (unit_shrinks, shares) = unsafe { self.grow_unit(gpu, value_scales) };
            grew = unit_shrinks < 1.0;
        }
        unroll!([2] tile in 0..HEAD_TILES {
            let [s0, s1, s2, s3] = scores[tile];
            let mut tile_max = [gpu.max(s0, s2), gpu.max(s1, s3)];
            unroll!([4] i in 0..3 {
                unroll!([2] head in 0..2 {
                    // SAFETY: converged: this function's contract.
                    let other = unsafe { gpu.shfl_xor(tile_max[head].to_bits(), 4 << i) };
                    tile_max[head] = gpu.max(tile_max[head], f32::from_bits(other));
                });
            });
            let mut tops = [0.0; 2];
            unroll!([2] head in 0..2 {
                let old = self.max[tile][head];
                let max = gpu.max(old, gpu.mul_down(tile_max[head], scale_log2[tile][head]));
                grew |= max > old;
                rescale[tile][head] = gpu.exp2(old - max);
                tops[head] = C::Math::PROB_SHIFT - max;
                self.max[tile][head] = max;
            });
            let [scale0, scale1] = scale_log2[tile];
            let prob = |score, scale, top| {
                gpu.exp2(gpu.min_or_nan(gpu.fma(score, scale, top), C::Math::PROB_SHIFT))
            };
            let (p0, p1) = (prob(s0, scale0, tops[0]), prob(s1, scale1, tops[1]));
            let (p2, p3) = (prob(s2, scale0, tops[0]), prob(s3, scale1, tops[1]));
            self.sum[tile][0] = gpu.fma(self.sum[tile][0], rescale[tile][0], p0 + p2);
            self.sum[tile][1] = gpu.fma(self.sum[tile][1], rescale[tile][1], p1 + p3);
            let (mut p0, mut p1, mut p2, mut p3) = (p0, p1, p2, p3);
            if C::TOKEN_SCALES {
                (p0, p1) = (p0 * shares[0], p1 * shares[0]);
                (p2, p3) = (p2 * shares[1], p3 * shares[1]);
            }
            // A lane holds a token's pair of heads; the next product wants a head's pair of tokens.
            // SAFETY: converged: this function's contract.
            probs[tile] = unsafe {
                [
                    gpu.movmatrix_trans(C::Math::pack(gpu, p0, p1)),
                    gpu.movmatrix_trans(C::Math::pack(gpu, p2, p3)),
                ]
            };
        });
        // The maximum settles after a few tiles; then there is nothing to rescale.
        // SAFETY: converged: this function's contract.
        if unsafe { gpu.any(grew) } {
            unroll!([2] tile in 0..HEAD_TILES {
                let mut r = rescale[tile];
                if C::TOKEN_SCALES {
                    r = [r[0] * unit_shrinks, r[1] * unit_shrinks];
                }
                let [r0, r1] = r;
                unroll!([16] step in 0..V_STEPS {
                    let [a0, a1, a2, a3] = self.acc[tile][step];
                    self.acc[tile][step] = [a0 * r0, a1 * r1, a2 * r0, a3 * r1];
                });
            });
        }
        probs
    }

    /// Makes the unit at least as large as this tile's value scales; returns by what the accumulators shrink,
    /// and the shares of tokens `lane / 4` and `+ 8`.
    ///
    /// # Safety
    /// Converged.
    #[inline(always)]
    unsafe fn grow_unit<G: Gpu>(&mut self, gpu: G, scales: [f32; 2]) -> (f32, [f32; 2]) {
        let mut largest = gpu.max(scales[0], scales[1]);
        unroll!([4] i in 0..3 {
            // SAFETY: converged: this function's contract.
            let other = unsafe { gpu.shfl_xor(f32::to_bits(largest), 4 << i) };
            largest = gpu.max(largest, f32::from_bits(other));
        });
        let old = self.value_unit;
        self.value_unit = gpu.max(old, largest);
        let per_unit = gpu.recip(self.value_unit);
        // Where nothing grew the factor is 1 exactly, which `old * per_unit` need not be.
        let shrinks = if self.value_unit > old {
            old * per_unit
        } else {
            1.0
        };
        (shrinks, [scales[0] * per_unit, scales[1] * per_unit])
    }

    /// `acc += valuesᵀ probs`.
    ///
    /// # Safety
    /// Converged; `values` are those of a tile that is visible to the warp.
    #[inline(always)]
    unsafe fn add_values<G: Gpu, C: CacheFormat>(
        &mut self,
        gpu: G,
        probs: &[[u32; 2]; HEAD_TILES],
        values: u32,
    ) {
        let lane = gpu.lane();
        let row = lane % 8 + lane / 16 * 8;
        unroll!([16] unit in 0..V_STEPS {
            if unit * C::STEPS < V_STEPS {
                let address = chunk_address::<C, V_STEPS>(values, row, unit, lane / 8 % 2);
                // SAFETY: converged, and `row` is below 16, a row of the visible tile: this function's contract.
                let operands = C::values(gpu, unsafe { gpu.ldmatrix_x4_trans(address) });
                unroll!([2] half in 0..2 {
                    let step = unit * C::STEPS + half;
                    if half < C::STEPS && step < V_STEPS {
                        unroll!([2] tile in 0..HEAD_TILES {
                            // SAFETY: converged: this function's contract.
                            self.acc[tile][step] = unsafe {
                                C::Math::mma(gpu, self.acc[tile][step], operands[half], probs[tile])
                            };
                        });
                    }
                });
            }
        });
    }

    /// Adds up the lanes' sums.
    ///
    /// # Safety
    /// Converged; called once, after the last tile.
    #[inline(always)]
    pub unsafe fn reduce<G: Gpu>(&mut self, gpu: G) {
        unroll!([2] tile in 0..HEAD_TILES {
            unroll!([4] i in 0..3 {
                unroll!([2] head in 0..2 {
                    // SAFETY: converged: this function's contract.
                    let other = unsafe { gpu.shfl_xor(self.sum[tile][head].to_bits(), 4 << i) };
                    self.sum[tile][head] += f32::from_bits(other);
                });
            });
        });
    }
}

/// `keys queryᵀ`: 16 tokens by 8 heads, unscaled.
///
/// # Safety
/// Converged; `keys` are those of a tile that is visible to the warp.
#[inline(always)]
unsafe fn scores<G: Gpu, C: CacheFormat, const K_STEPS: usize, const HEAD_TILES: usize>(
    gpu: G,
    query: &QueryTile<K_STEPS, HEAD_TILES>,
    keys: u32,
) -> [[f32; 4]; HEAD_TILES] {
    let lane = gpu.lane();
    let mut scores = [[0.0; 4]; HEAD_TILES];
    unroll!([16] unit in 0..K_STEPS {
        if unit * C::STEPS < K_STEPS {
            let address = chunk_address::<C, K_STEPS>(keys, lane % 16, unit, lane / 16);
            // SAFETY: converged, and `lane % 16` is a row of the visible tile: this function's contract.
            let operands = C::keys(gpu, unsafe { gpu.ldmatrix_x4(address) });
            unroll!([2] half in 0..2 {
                let step = unit * C::STEPS + half;
                if half < C::STEPS && step < K_STEPS {
                    unroll!([2] tile in 0..HEAD_TILES {
                        // SAFETY: converged: this function's contract.
                        scores[tile] = unsafe {
                            C::Math::mma(gpu, scores[tile], operands[half], query.fragments[tile][step])
                        };
                    });
                }
            });
        }
    });
    scores
}

/// Multiplies scores by their token's key scale; returns the value scales of tokens `lane / 4` and `+ 8`.
///
/// # Safety
/// `scales` are those of a tile that is visible to the warp.
#[inline(always)]
unsafe fn scale_keys<G: Gpu, const HEAD_TILES: usize>(
    gpu: G,
    scores: &mut [[f32; 4]; HEAD_TILES],
    scales: u32,
) -> [f32; 2] {
    let token = scales + gpu.lane() / 4 * 4;
    // SAFETY: two key scales and two value scales of the 16 tokens of the visible tile: this function's contract.
    let [k0, k1, v0, v1] = unsafe {
        [
            gpu.ld_shared_b32(token),
            gpu.ld_shared_b32(token + 32),
            gpu.ld_shared_b32(token + 64),
            gpu.ld_shared_b32(token + 96),
        ]
    }
    .map(f32::from_bits);
    unroll!([2] tile in 0..HEAD_TILES {
        let [s0, s1, s2, s3] = scores[tile];
        scores[tile] = [s0 * k0, s1 * k0, s2 * k1, s3 * k1];
    });
    [v0, v1]
}

/// Address of chunk `2 unit + half` of a row.
#[inline(always)]
fn chunk_address<C: CacheFormat, const STEPS: usize>(
    tile: u32,
    row: u32,
    unit: usize,
    half: u32,
) -> u32 {
    let bytes = row_bytes::<C, STEPS>();
    tile + row * bytes + swizzle(row, unit as u32 * 2 + half, bytes / 16) * 16
}

/// Tokens from `len` on do not exist: minus infinity, whatever their zero keys gave.
#[inline(always)]
fn mask_past_end<G: Gpu, const HEAD_TILES: usize>(
    gpu: G,
    scores: &mut [[f32; 4]; HEAD_TILES],
    len: u32,
) {
    let token = gpu.lane() / 4;
    unroll!([2] tile in 0..HEAD_TILES {
        if token >= len {
            scores[tile][0] = f32::NEG_INFINITY;
            scores[tile][1] = f32::NEG_INFINITY;
        }
        if token + 8 >= len {
            scores[tile][2] = f32::NEG_INFINITY;
            scores[tile][3] = f32::NEG_INFINITY;
        }
    });
}
