//! The softmax of a warp's rows, as they see one KV tile after the other.
//!
//! Everything is in powers of two. The maximum that is subtracted from scores is not the largest score seen,
//! only near it: it is raised when a score exceeds it by more than `2^RISE`, which after the first tiles
//! hardly happens, and until then nothing has to be rescaled. Each row decides for itself, so its bits do not
//! depend on the rows beside it.

use crate::attention::lse::LOWEST;
use crate::dtype::{CacheFormat, Half};
use crate::gpu::Gpu;
use crate::gpu::unroll::unroll;
use crate::prefill::rows::RowView;
use crate::prefill::score_mods::{PrefillMods, Scores};

/// How far, in powers of two, a score may exceed the running maximum.
const RISE: f32 = 4.0;
/// Two to that power.
const RISE_POWER: f32 = 16.0;

/// Of scales that are a smaller part of the unit, an f16 loses bits: 2^-12.
const FAR_APART: f32 = 1.0 / 4096.0;
/// What is left of a row's sum times the unit where shares were lost, or values cancel: 2^-6. Of bytes that use their range,
/// the mean of 100,000 is larger still.
const LITTLE: f32 = 1.0 / 64.0;

/// What a warp's rows have seen so far. A lane holds rows `lane / 4` and `+ 8` of each row tile.
#[derive(Clone, Copy, Debug)]
pub struct OnlineSoftmax<const V_STEPS: usize, const ROW_TILES: usize> {
    /// What is subtracted from scores, base 2, the same in all lanes of a row.
    pub max: [[f32; 2]; ROW_TILES],
    /// Sum of `2^(score - max + shift)`: this lane's tokens until [`OnlineSoftmax::reduce`], then all.
    pub sum: [[f32; 2]; ROW_TILES],
    /// `[row, value dim]`, multiplied as `sum` is, in the accumulator layout of `mma`: of each step twice 8
    /// dims.
    pub acc: [[[[f32; 4]; 2]; V_STEPS]; ROW_TILES],
    /// What `acc` has to be multiplied by: a power of two above all value scales seen, if every token has
    /// one. Probabilities are multiplied by their token's share of it, so that they stay within an f16.
    pub value_unit: f32,
    /// The least value scale of the tokens that this lane has looked at, but for zeros.
    pub least_scale: f32,
}

/// How much what was accumulated shrinks, because maxima rose.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rise<const ROW_TILES: usize> {
    factors: [[f32; 2]; ROW_TILES],
    /// Whether any row of the warp has one below 1.
    pub(crate) any: bool,
}

impl<const ROW_TILES: usize> Rise<ROW_TILES> {
    /// Rescales accumulators of row tile `tile`.
    #[inline(always)]
    pub(crate) fn shrink<const STEPS: usize>(&self, tile: usize, acc: &mut [[[f32; 4]; 2]; STEPS]) {
        let [r0, r1] = self.factors[tile];
        unroll!([16] step in 0..STEPS {
            unroll!([2] i in 0..2 {
                let [a0, a1, a2, a3] = acc[step][i];
                acc[step][i] = [a0 * r0, a1 * r0, a2 * r1, a3 * r1];
            });
        });
    }
}

impl<const V_STEPS: usize, const ROW_TILES: usize> OnlineSoftmax<V_STEPS, ROW_TILES> {
    /// No token seen.
    pub const EMPTY: Self = Self {
        max: [[LOWEST; 2]; ROW_TILES],
        sum: [[0.0; 2]; ROW_TILES],
        acc: [[[[0.0; 4]; 2]; V_STEPS]; ROW_TILES],
        value_unit: f32::MIN_POSITIVE,
        least_scale: f32::INFINITY,
    };

    /// Probabilities are multiplied by two to this power: what an f16 has room for.
    #[inline(always)]
    pub fn shift<C: CacheFormat>() -> f32 {
        C::Math::PROB_SHIFT - RISE
    }

    /// What takes that back.
    #[inline(always)]
    pub fn unit<C: CacheFormat>() -> f32 {
        C::Math::PROB_UNIT * RISE_POWER
    }

    /// Applies the rules to a tile's products; what they have to be multiplied by still.
    ///
    /// # Safety
    /// Converged, with what [`PrefillMods::modify`] needs.
    #[inline(always)]
    pub(crate) unsafe fn apply<G: Gpu, const PAIRS: usize>(
        gpu: G,
        mods: &PrefillMods<'_>,
        scores: &mut Scores<PAIRS, ROW_TILES>,
        mut scale_log2: [[f32; 2]; ROW_TILES],
        token: u32,
        view: impl Fn() -> RowView,
    ) -> [[f32; 2]; ROW_TILES] {
        if mods.modifies() {
            // SAFETY: as `PrefillMods` was made.
            unsafe { mods.modify(gpu, scores, &scale_log2, token, view()) };
            scale_log2 = [[1.0; 2]; ROW_TILES];
        }
        if mods.masks(token, PAIRS as u32 * 16) {
            mods.mask(gpu, scores, token, view());
        }
        scale_log2
    }

    /// Raises the maximum of rows that have a score far above it. What they have accumulated is to be rescaled.
    ///
    /// # Safety
    /// Converged.
    #[inline(always)]
    pub(crate) unsafe fn raise_max<G: Gpu, const PAIRS: usize>(
        &mut self,
        gpu: G,
        scores: &Scores<PAIRS, ROW_TILES>,
        scale_log2: &[[f32; 2]; ROW_TILES],
    ) -> Rise<ROW_TILES> {
        let mut largest = [[f32::NEG_INFINITY; 2]; ROW_TILES];
        let mut rises = false;
        unroll!([2] tile in 0..ROW_TILES {
            unroll!([4] pair in 0..PAIRS {
                unroll!([2] i in 0..2 {
                    let [s0, s1, s2, s3] = scores[tile][pair][i];
                    largest[tile][0] = gpu.max(largest[tile][0], gpu.max(s0, s1));
                    largest[tile][1] = gpu.max(largest[tile][1], gpu.max(s2, s3));
                });
            });
            unroll!([2] half in 0..2 {
                largest[tile][half] *= scale_log2[tile][half];
                rises |= largest[tile][half] > self.max[tile][half] + RISE;
            });
        });
        let mut rise = Rise {
            factors: [[1.0; 2]; ROW_TILES],
            // SAFETY: converged.
            any: unsafe { gpu.any(rises) },
        };
        // A row rises if one of its four lanes says so: seldom do they have to tell each other how far.
        if rise.any {
            unroll!([2] tile in 0..ROW_TILES {
                unroll!([2] half in 0..2 {
                    let mut largest = largest[tile][half];
                    unroll!([2] i in 0..2 {
                        // SAFETY: converged: the vote is the same for all lanes.
                        let other = unsafe { gpu.shfl_xor(largest.to_bits(), 1 << i) };
                        largest = gpu.max(largest, f32::from_bits(other));
                    });
                    let max = self.max[tile][half];
                    if largest > max + RISE {
                        rise.factors[tile][half] = gpu.exp2(max - largest);
                        self.max[tile][half] = largest;
                    }
                });
            });
        }
        rise
    }

    /// Raises the maxima to those of others who see the same rows, which are no smaller. What was accumulated is to be
    /// rescaled.
    ///
    /// # Safety
    /// Converged.
    #[inline(always)]
    pub(crate) unsafe fn raise_to<G: Gpu>(
        &mut self,
        gpu: G,
        max: [[f32; 2]; ROW_TILES],
    ) -> Rise<ROW_TILES> {
        let mut rise = Rise {
            factors: [[1.0; 2]; ROW_TILES],
            any: false,
        };
        let mut rises = false;
        unroll!([2] tile in 0..ROW_TILES {
            unroll!([2] half in 0..2 {
                let old = self.max[tile][half];
                if max[tile][half] > old {
                    rises = true;
                    rise.factors[tile][half] = gpu.exp2(old - max[tile][half]);
                }
            });
        });
        self.max = max;
        // SAFETY: converged.
        rise.any = unsafe { gpu.any(rises) };
        rise
    }

    /// Rescales the sums.
    #[inline(always)]
    pub(crate) fn rescale_sum(&mut self, rise: Rise<ROW_TILES>) {
        if rise.any {
            unroll!([2] tile in 0..ROW_TILES {
                let [r0, r1] = rise.factors[tile];
                self.sum[tile][0] *= r0;
                self.sum[tile][1] *= r1;
            });
        }
    }

    /// Rescales the accumulators.
    #[inline(always)]
    pub(crate) fn rescale_acc(&mut self, rise: Rise<ROW_TILES>) {
        if rise.any {
            unroll!([2] tile in 0..ROW_TILES {
                rise.shrink(tile, &mut self.acc[tile]);
            });
        }
    }

    /// What is added to scores before they become probabilities.
    #[inline(always)]
    pub(crate) fn top<C: CacheFormat>(&self) -> [[f32; 2]; ROW_TILES] {
        let mut top = [[0.0; 2]; ROW_TILES];
        unroll!([2] tile in 0..ROW_TILES {
            unroll!([2] half in 0..2 {
                top[tile][half] = Self::shift::<C>() - self.max[tile][half];
            });
        });
        top
    }

    /// The probabilities of 16 rows and 16 tokens, which are added to the sums.
    #[inline(always)]
    pub(crate) fn weights<G: Gpu>(
        &mut self,
        gpu: G,
        tile: usize,
        scores: &[[f32; 4]; 2],
        [scale0, scale1]: [f32; 2],
        [top0, top1]: [f32; 2],
    ) -> [[f32; 4]; 2] {
        let mut weights = [[0.0; 4]; 2];
        unroll!([2] i in 0..2 {
            let [s0, s1, s2, s3] = scores[i];
            let p0 = gpu.exp2(gpu.fma(s0, scale0, top0));
            let p1 = gpu.exp2(gpu.fma(s1, scale0, top0));
            let p2 = gpu.exp2(gpu.fma(s2, scale1, top1));
            let p3 = gpu.exp2(gpu.fma(s3, scale1, top1));
            self.sum[tile][0] += p0 + p1;
            self.sum[tile][1] += p2 + p3;
            weights[i] = [p0, p1, p2, p3];
        });
        weights
    }

    /// Whether the value scales of a warp's tokens are so far apart that shares of the unit may not show in an f16.
    ///
    /// # Safety
    /// Converged; called after the last tile.
    #[inline(always)]
    pub(crate) unsafe fn scales_are_far_apart<G: Gpu>(&self, gpu: G) -> bool {
        let mut least = self.least_scale;
        for mask in [1, 2, 4, 8, 16] {
            // SAFETY: converged: this function's contract.
            let other = f32::from_bits(unsafe { gpu.shfl_xor(least.to_bits(), mask) });
            least = if other < least { other } else { least };
        }
        least < self.value_unit * FAR_APART
    }

    /// Whether what a lane has of a row, `(tile, half)`, is so little of the unit that its tokens' shares are likely to have
    /// been lost: a token that it does not see, or that hardly counts, made the unit.
    #[inline(always)]
    pub(crate) fn lost_shares<G: Gpu>(&self, gpu: G, (tile, half): (usize, usize)) -> bool {
        let mut largest = 0.0f32;
        unroll!([16] step in 0..V_STEPS {
            unroll!([2] i in 0..2 {
                let sums = self.acc[tile][step][i];
                largest = gpu.max(largest, gpu.max(sums[2 * half].abs(), sums[2 * half + 1].abs()));
            });
        });
        largest < self.sum[tile][half] * LITTLE
    }

    /// Adds up the lanes' sums.
    ///
    /// # Safety
    /// Converged; called once, after the last tile.
    #[inline(always)]
    pub unsafe fn reduce<G: Gpu>(&mut self, gpu: G) {
        unroll!([2] tile in 0..ROW_TILES {
            unroll!([2] half in 0..2 {
                unroll!([2] i in 0..2 {
                    // SAFETY: converged.
                    let other = unsafe { gpu.shfl_xor(self.sum[tile][half].to_bits(), 1 << i) };
                    self.sum[tile][half] += f32::from_bits(other);
                });
            });
        });
    }
}

/// Probabilities of 16 rows and 16 tokens, multiplied by their tokens' `shares`, as a left factor: what a lane holds of
/// the first product is what the second wants.
#[inline(always)]
pub(crate) fn pack<G: Gpu, C: CacheFormat>(
    gpu: G,
    weights: [[f32; 4]; 2],
    shares: [[f32; 2]; 2],
) -> [u32; 4] {
    let mut probs = [0u32; 4];
    unroll!([2] i in 0..2 {
        let [mut p0, mut p1, mut p2, mut p3] = weights[i];
        if C::TOKEN_SCALES {
            (p0, p1) = (p0 * shares[i][0], p1 * shares[i][1]);
            (p2, p3) = (p2 * shares[i][0], p3 * shares[i][1]);
        }
        probs[2 * i] = C::Math::pack(gpu, p0, p1);
        probs[2 * i + 1] = C::Math::pack(gpu, p2, p3);
    });
    probs
}
