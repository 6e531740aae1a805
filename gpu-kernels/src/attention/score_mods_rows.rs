//! What becomes of products before the softmax: softcap, ALiBi, masks.

use crate::attention::mask::{Alibi, RowView, Visible, WarpRows};
use crate::gpu::Gpu;
use crate::gpu::unroll::unroll;
use crate::params::ScoreParams;

/// Scores of 16 rows by 16 tokens, twice 8 tokens in the accumulator layout of `mma`; of a tile, `PAIRS`
/// such for each of `ROW_TILES`.
pub(crate) type Scores<const PAIRS: usize, const ROW_TILES: usize> =
    [[[[f32; 4]; 2]; PAIRS]; ROW_TILES];

/// What becomes of products before the softmax: bent, biased, masked.
#[derive(Clone, Copy, Debug)]
pub struct ScoreRule<'p> {
    params: &'p ScoreParams,
    /// Every row sees the keys of this range.
    common: (u32, u32),
}

impl<'p> ScoreRule<'p> {
    /// The rule for a warp's `num_rows` rows.
    #[inline(always)]
    pub fn new(params: &'p ScoreParams, rows: WarpRows, num_rows: u32, visible: Visible) -> Self {
        let first = visible.position(rows.token(rows.first));
        let last = visible.position(rows.token(rows.first + num_rows - 1));
        Self {
            params,
            common: (visible.first(last), visible.end(first)),
        }
    }

    /// Whether scores are more than products times a scale: then they are in powers of two after
    /// [`ScoreRule::bend`].
    #[inline(always)]
    pub(crate) fn bends(&self) -> bool {
        self.params.softcap_log2 != 0.0 || self.params.alibi_slopes != 0
    }

    /// Softcap and ALiBi for the rows of `view`.
    ///
    /// # Safety
    /// The parameters' slopes, if there are any, are one for each head.
    #[inline(always)]
    pub(crate) unsafe fn bend<G: Gpu, const PAIRS: usize, const ROW_TILES: usize>(
        &self,
        gpu: G,
        scores: &mut Scores<PAIRS, ROW_TILES>,
        scale_log2: &[[f32; 2]; ROW_TILES],
        tile_token: u32,
        view: RowView,
    ) {
        let cap_log2 = self.params.softcap_log2;
        let lane = gpu.black_box(gpu.lane());
        let key = tile_token + lane % 4 * 2;
        unroll!([2] tile in 0..ROW_TILES {
            unroll!([2] half in 0..2 {
                let row = view.rows.of_lane(lane, tile, half);
                let position = view.visible.position(view.rows.token(row));
                let head = view.first_head + view.rows.head(row);
                unroll!([4] pair in 0..PAIRS {
                    unroll!([4] i in 0..4 {
                        let mut score = scores[tile][pair][i / 2][2 * half + i % 2];
                        score *= scale_log2[tile][half];
                        if cap_log2 != 0.0 {
                            score = cap(gpu, score, cap_log2);
                        }
                        scores[tile][pair][i / 2][2 * half + i % 2] = score;
                    });
                });
                if self.params.alibi_slopes != 0 {
                    // SAFETY: slopes are given, one for each head.
                    let alibi = unsafe { Alibi::of_head(gpu, self.params, head) };
                    unroll!([4] pair in 0..PAIRS {
                        // Keys of one pair at a time, as there are no registers for all.
                        let key = gpu.black_box(key);
                        unroll!([4] i in 0..4 {
                            let key = key + (pair * 16 + i / 2 * 8 + i % 2) as u32;
                            scores[tile][pair][i / 2][2 * half + i % 2] +=
                                alibi.bias_log2(gpu, key, position, view.visible.context_len);
                        });
                    });
                }
            });
        });
    }

    /// Whether some row does not see all keys of the tile at `tile_token`.
    #[inline(always)]
    pub(crate) fn masks(&self, tile_token: u32, tile_kv: u32) -> bool {
        tile_token < self.common.0 || tile_token + tile_kv > self.common.1
    }

    /// Minus infinity for keys that a row of `view` does not see.
    #[inline(always)]
    pub(crate) fn mask<G: Gpu, const PAIRS: usize, const ROW_TILES: usize>(
        &self,
        gpu: G,
        scores: &mut Scores<PAIRS, ROW_TILES>,
        tile_token: u32,
        view: RowView,
    ) {
        let lane = gpu.black_box(gpu.lane());
        let key = tile_token + lane % 4 * 2;
        unroll!([2] tile in 0..ROW_TILES {
            unroll!([2] half in 0..2 {
                let row = view.rows.of_lane(lane, tile, half);
                let position = view.visible.position(view.rows.token(row));
                // Counted from the lane's first key, so that its keys are constants and take no registers.
                let first = gpu.black_box(view.visible.first(position).saturating_sub(key));
                let end = gpu.black_box(view.visible.end(position).saturating_sub(key));
                unroll!([4] pair in 0..PAIRS {
                    unroll!([4] i in 0..4 {
                        let key = (pair * 16 + i / 2 * 8 + i % 2) as u32;
                        if key < first || key >= end {
                            scores[tile][pair][i / 2][2 * half + i % 2] = f32::NEG_INFINITY;
                        }
                    });
                });
            });
        });
    }
}

/// The score of one key, `(position, key)` of query and key, of its product times its scale.
///
/// # Safety
/// As [`ScoreRule::bend`].
#[inline(always)]
pub unsafe fn score_of_key<G: Gpu>(
    gpu: G,
    params: &ScoreParams,
    visible: Visible,
    head: u32,
    (position, key): (i32, u32),
    mut score: f32,
) -> f32 {
    if params.softcap_log2 != 0.0 {
        score = cap(gpu, score, params.softcap_log2);
    }
    if params.alibi_slopes != 0 {
        // SAFETY: slopes are given, one for each head.
        let alibi = unsafe { Alibi::of_head(gpu, params, head) };
        score += alibi.bias_log2(gpu, key, position, visible.context_len);
    }
    score
}

/// The softcap of a score that was multiplied by `2 log2 e / softcap`; the result is in powers of two.
#[inline(always)]
pub(crate) fn cap<G: Gpu>(gpu: G, score: f32, cap_log2: f32) -> f32 {
    // tanh(x) = 1 - 2 / (e^2x + 1), with e^2x = 2^score: no infinity minus infinity.
    let tanh = gpu.fma(-2.0, gpu.recip(gpu.exp2(score) + 1.0), 1.0);
    if cap_log2 < MOST_CANCELLED {
        return cap_log2 * tanh;
    }
    // Near 0 that is a small difference of large numbers: off by 2^-23, which a large cap multiplies. There the series
    // is as good as f32, x - x^3 / 3 + 2 x^5 / 15 - 17 x^7 / 315 + 62 x^9 / 2835.
    let x = score * (0.5 * core::f32::consts::LN_2);
    let square = x * x;
    let mut series = gpu.fma(square, 62.0 / 2835.0, -17.0 / 315.0);
    series = gpu.fma(square, series, 2.0 / 15.0);
    series = gpu.fma(square, series, -1.0 / 3.0);
    series = gpu.fma(square * series, x, x);
    cap_log2 * if x.abs() < 0.25 { series } else { tanh }
}

/// Caps, times log2 e, of which 2^-23 does not matter.
const MOST_CANCELLED: f32 = 256.0;
