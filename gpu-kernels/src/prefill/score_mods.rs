//! The rules of [`crate::attention::score_mods`] and the mask, where query rows are the rows of a tile and tokens its
//! columns.

use crate::attention::mask::Visible;
use crate::gpu::Gpu;
use crate::gpu::unroll::unroll;
use crate::params::ScoreParams;
use crate::prefill::rows::{RowView, WarpRows};

/// Scores of 16 rows by 16 tokens, twice 8 tokens in the accumulator layout of `mma`; of a tile, `PAIRS`
/// such for each of `ROW_TILES`.
pub(crate) type Scores<const PAIRS: usize, const ROW_TILES: usize> =
    [[[[f32; 4]; 2]; PAIRS]; ROW_TILES];

/// What becomes of the scores of a warp's rows.
#[derive(Clone, Copy, Debug)]
pub struct PrefillMods<'p> {
    params: &'p ScoreParams,
    /// Every row sees the keys of this range.
    common: (u32, u32),
}

impl<'p> PrefillMods<'p> {
    /// Those of a warp's `num_rows` rows.
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
    /// [`PrefillMods::modify`].
    #[inline(always)]
    pub(crate) fn modifies(&self) -> bool {
        self.params.modifies()
    }

    /// Scale and rules for the rows of `view`. What is not [`ScoreParams::is_transform_short`] has no registers here: those
    /// scores are not used, as every row is mended ([`crate::prefill::mend`]).
    ///
    /// # Safety
    /// The rows' heads exist. The parameters' slopes, if there are any, are one for each head.
    #[inline(always)]
    pub(crate) unsafe fn modify<G: Gpu, const PAIRS: usize, const ROW_TILES: usize>(
        &self,
        gpu: G,
        scores: &mut Scores<PAIRS, ROW_TILES>,
        scale_log2: &[[f32; 2]; ROW_TILES],
        tile_token: u32,
        view: RowView,
    ) {
        unroll!([2] tile in 0..ROW_TILES {
            let scale_log2 = scale_log2[tile];
            unroll!([4] pair in 0..PAIRS {
                unroll!([2] i in 0..2 {
                    unroll!([4] j in 0..4 {
                        let score = scores[tile][pair][i][j] * scale_log2[j / 2];
                        scores[tile][pair][i][j] = self.params.transform_short(gpu, score);
                    });
                });
            });
        });
        let lane = gpu.black_box(gpu.lane());
        let key = tile_token + lane % 4 * 2;
        unroll!([2] tile in 0..ROW_TILES {
            unroll!([2] half in 0..2 {
                let row = view.rows.of_lane(lane, tile, half);
                let position = view.visible.position(view.rows.token(row));
                let head = view.first_head + view.rows.head(row);
                if self.params.has_bias() {
                    // SAFETY: the head of one of the rows, and there is a bias.
                    let head = unsafe { self.params.load_head(gpu, head) };
                    unroll!([4] pair in 0..PAIRS {
                        // Keys of one pair at a time, as there are no registers for all.
                        let key = gpu.black_box(key);
                        unroll!([4] i in 0..4 {
                            let key = key + (pair * 16 + i / 2 * 8 + i % 2) as u32;
                            scores[tile][pair][i / 2][2 * half + i % 2] +=
                                self.params.bias_log2(gpu, head, key, position, view.visible.context_len);
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
