//! What becomes of products before the softmax, where tokens are the rows of a tile and query heads its columns.

use crate::attention::mask::Alibi;
use crate::attention::score_mods_rows::cap;
use crate::attention::tile::HEADS;
use crate::decode::KvTile;
use crate::gpu::Gpu;
use crate::gpu::unroll::unroll;
use crate::params::ScoreParams;

/// Softcap, ALiBi and the start of the window, for the query heads of a warp and one query token, the last of its
/// sequence: it sees every key from the window's first on.
#[derive(Clone, Copy, Debug)]
pub struct HeadRule<const HEAD_TILES: usize> {
    /// As in the parameters.
    cap_log2: f32,
    /// Whether there are slopes, and what they multiply.
    has_alibi: bool,
    is_sqrt: bool,
    /// Of heads `2 (lane % 4)` and `+ 1` of each tile: plain numbers, which every
    /// compiler keeps in registers.
    slopes_log2: [[f32; 2]; HEAD_TILES],
    /// Of the query token.
    position: i32,
}

impl<const HEAD_TILES: usize> HeadRule<HEAD_TILES> {
    /// Scores are products times their scale.
    pub const NONE: Self = Self {
        cap_log2: 0.0,
        has_alibi: false,
        is_sqrt: false,
        slopes_log2: [[0.0; 2]; HEAD_TILES],
        position: 0,
    };

    /// The rule for `num_heads` query heads from `first_head` on.
    ///
    /// # Safety
    /// The parameters' slopes, if there are any, are one for each head.
    #[inline(always)]
    pub unsafe fn load<G: Gpu>(
        gpu: G,
        params: &ScoreParams,
        first_head: u32,
        num_heads: u32,
        position: i32,
    ) -> Self {
        let has_alibi = params.alibi_slopes != 0;
        let mut slopes_log2 = [[0.0; 2]; HEAD_TILES];
        unroll!([2] tile in 0..HEAD_TILES {
            unroll!([2] i in 0..2 {
                let head = tile as u32 * HEADS + gpu.lane() % 4 * 2 + i as u32;
                if has_alibi && head < num_heads {
                    // SAFETY: a head that exists, and slopes are given.
                    let alibi = unsafe { Alibi::of_head(gpu, params, first_head + head) };
                    slopes_log2[tile][i] = alibi.slope_log2;
                }
            });
        });
        Self {
            cap_log2: params.softcap_log2,
            has_alibi,
            is_sqrt: params.flags & ScoreParams::ALIBI_SQRT != 0,
            slopes_log2,
            position,
        }
    }

    /// Makes scores in powers of two of products: scale, softcap, ALiBi, and minus infinity for keys before the
    /// window.
    #[inline(always)]
    pub(crate) fn apply<G: Gpu>(
        &self,
        gpu: G,
        scores: &mut [[f32; 4]; HEAD_TILES],
        scale_log2: &[[f32; 2]; HEAD_TILES],
        tile: &KvTile,
    ) {
        // A lane holds tokens `lane / 4` and `+ 8`, of each two heads.
        let row = gpu.lane() / 4;
        unroll!([2] at in 0..HEAD_TILES {
            unroll!([4] i in 0..4 {
                let mut score = scores[at][i] * scale_log2[at][i % 2];
                if self.cap_log2 != 0.0 {
                    score = cap(gpu, score, self.cap_log2);
                }
                scores[at][i] = score;
            });
        });
        if self.has_alibi {
            unroll!([2] at in 0..HEAD_TILES {
                unroll!([4] i in 0..4 {
                    let alibi = Alibi {
                        slope_log2: self.slopes_log2[at][i % 2],
                        is_sqrt: self.is_sqrt,
                    };
                    let key = tile.token + row + (i / 2 * 8) as u32;
                    scores[at][i] += alibi.bias_log2(gpu, key, self.position, self.position);
                });
            });
        }
        if tile.skipped > 0 {
            unroll!([2] at in 0..HEAD_TILES {
                unroll!([4] i in 0..4 {
                    if tile.skipped > row + (i / 2 * 8) as u32 {
                        scores[at][i] = f32::NEG_INFINITY;
                    }
                });
            });
        }
    }
}
