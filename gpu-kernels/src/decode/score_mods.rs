//! The rules of [`crate::attention::score_mods`] and the mask, where tokens are the rows of a tile and query heads its
//! columns.

use crate::attention::score_mods::HeadMods;
use crate::attention::tile::HEADS;
use crate::decode::KvTile;
use crate::gpu::Gpu;
use crate::gpu::unroll::unroll;
use crate::params::ScoreParams;

/// What becomes of the scores of a warp's query heads and one query token, the last of its sequence: it sees every key
/// from the first one on.
#[derive(Clone, Copy, Debug)]
pub struct DecodeMods<const HEAD_TILES: usize> {
    /// A copy: in registers, as far as it is looked at.
    params: ScoreParams,
    /// Whether it says that there is a bias.
    has_bias: bool,
    /// Of heads `2 (lane % 4)` and `+ 1` of each tile: plain numbers, which every
    /// compiler keeps in registers.
    heads: [[HeadMods; 2]; HEAD_TILES],
    /// Of the query token.
    position: i32,
}

impl<const HEAD_TILES: usize> DecodeMods<HEAD_TILES> {
    /// Scores are products times their scale.
    pub const NONE: Self = Self {
        params: ScoreParams::NONE,
        has_bias: false,
        heads: [[HeadMods::NONE; 2]; HEAD_TILES],
        position: 0,
    };

    /// Those of `num_heads` query heads from `first_head` on.
    ///
    /// # Safety
    /// The heads exist. The parameters' slopes, if there are any, are one for each head.
    #[inline(always)]
    pub unsafe fn load<G: Gpu>(
        gpu: G,
        params: &ScoreParams,
        first_head: u32,
        num_heads: u32,
        position: i32,
    ) -> Self {
        let has_bias = params.has_bias();
        let mut heads = [[HeadMods::NONE; 2]; HEAD_TILES];
        unroll!([2] tile in 0..HEAD_TILES {
            unroll!([2] i in 0..2 {
                let head = tile as u32 * HEADS + gpu.lane() % 4 * 2 + i as u32;
                if has_bias && head < num_heads {
                    // SAFETY: `head < num_heads` and there are slopes, one for each head: this function's contract.
                    heads[tile][i] = unsafe { params.load_head(gpu, first_head + head) };
                }
            });
        });
        Self {
            params: *params,
            has_bias,
            heads,
            position,
        }
    }

    /// Makes scores in powers of two of products: scale, the rules, and minus infinity for keys that the query does not
    /// see.
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
                let score = scores[at][i] * scale_log2[at][i % 2];
                scores[at][i] = self.params.transform(gpu, score);
            });
        });
        if self.has_bias {
            unroll!([2] at in 0..HEAD_TILES {
                unroll!([4] i in 0..4 {
                    let head = self.heads[at][i % 2];
                    let key = tile.token + row + (i / 2 * 8) as u32;
                    scores[at][i] += self.params.bias_log2(gpu, head, key, self.position, self.position);
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
