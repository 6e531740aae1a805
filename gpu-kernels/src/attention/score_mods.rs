//! What becomes of a score between the product and the softmax: softcap, then ALiBi.
//!
//! A rule is written here once, for one score, whichever lane holds it. [`DecodeMods`](crate::decode::DecodeMods) and
//! [`PrefillMods`](crate::prefill::PrefillMods) apply it to the scores of a tile, each in the layout of its registers.

use crate::attention::mask::Visible;
use crate::gpu::Gpu;
use crate::params::ScoreParams;

/// What the rules have to know of a query head.
#[derive(Clone, Copy, Debug)]
pub struct HeadMods {
    /// ALiBi's, times log2 e.
    slope_log2: f32,
}

impl HeadMods {
    /// Of a head that does not exist, or of which nothing has to be known.
    pub(crate) const NONE: Self = Self { slope_log2: 0.0 };
}

impl ScoreParams {
    /// Whether scores are more than products times their scale.
    #[inline(always)]
    pub(crate) fn modifies(&self) -> bool {
        self.softcap_log2 != 0.0 || self.has_bias()
    }

    /// The rules that look at nothing but the score, a product times its scale: what comes out is in powers of two.
    #[inline(always)]
    pub(crate) fn transform<G: Gpu>(&self, gpu: G, score: f32) -> f32 {
        if self.is_transform_short() {
            self.transform_short(gpu, score)
        } else {
            self.transform_long(gpu, score)
        }
    }

    /// Whether that is [`ScoreParams::transform_short`], of a few instructions, or else [`ScoreParams::transform_long`].
    #[inline(always)]
    pub(crate) fn is_transform_short(&self) -> bool {
        self.softcap_log2 < MOST_CANCELLED
    }

    #[inline(always)]
    pub(crate) fn transform_short<G: Gpu>(&self, gpu: G, score: f32) -> f32 {
        if self.softcap_log2 != 0.0 {
            self.softcap_log2 * tanh(gpu, score)
        } else {
            score
        }
    }

    #[inline(always)]
    pub(crate) fn transform_long<G: Gpu>(&self, gpu: G, score: f32) -> f32 {
        self.softcap_log2 * tanh_near_0(gpu, score)
    }

    /// Whether there is a bias: something to be known of heads, and to be added to their scores.
    #[inline(always)]
    pub(crate) fn has_bias(&self) -> bool {
        self.alibi_slopes != 0
    }

    /// What has to be known of query head `head`, if there is a bias.
    ///
    /// # Safety
    /// The head exists. The slopes' address is not 0, and there is one for each head.
    #[inline(always)]
    pub(crate) unsafe fn load_head<G: Gpu>(&self, gpu: G, head: u32) -> HeadMods {
        // SAFETY: the head exists, and there are slopes, one for each: this function's contract.
        let slope = unsafe { gpu.ld_global_b32(self.alibi_slopes + 4 * head as u64) };
        HeadMods {
            slope_log2: f32::from_bits(slope) * core::f32::consts::LOG2_E,
        }
    }

    /// What is added to a head's score of key `key` for the query at `position`, in powers of two.
    #[inline(always)]
    pub(crate) fn bias_log2<G: Gpu>(
        &self,
        gpu: G,
        head: HeadMods,
        key: u32,
        position: i32,
        context_len: i32,
    ) -> f32 {
        if self.flags & ScoreParams::ALIBI_SQRT != 0 {
            let distance = (position - key as i32).max(0) as f32;
            // The root by its logarithm: 0 gives 2^-inf.
            -head.slope_log2 * gpu.exp2(0.5 * gpu.log2(distance))
        } else {
            head.slope_log2 * (key as i32 - context_len) as f32
        }
    }
}

/// The score of one key, of the product times its scale, by all the rules; `(position, key)` are of query and key. For
/// whoever computes one score at a time.
///
/// # Safety
/// `head` exists. The parameters' slopes, if there are any, are one for each head.
#[inline(always)]
pub unsafe fn score_of_key<G: Gpu>(
    gpu: G,
    params: &ScoreParams,
    visible: Visible,
    head: u32,
    (position, key): (i32, u32),
    score: f32,
) -> f32 {
    let mut score = params.transform(gpu, score);
    if params.has_bias() {
        // SAFETY: the head exists, and there are slopes, one for each: this function's contract, and the line before.
        let head = unsafe { params.load_head(gpu, head) };
        score += params.bias_log2(gpu, head, key, position, visible.context_len);
    }
    score
}

/// tanh(x) of `2 x log2 e`, which is what a score is multiplied by that has a softcap. Off by 2^-23 near 0.
#[inline(always)]
fn tanh<G: Gpu>(gpu: G, score: f32) -> f32 {
    // 1 - 2 / (e^2x + 1), with e^2x = 2^score: no infinity minus infinity.
    gpu.fma(-2.0, gpu.recip(gpu.exp2(score) + 1.0), 1.0)
}

/// The same, as good near 0 as f32 is: there [`tanh`] is a small difference of large numbers, and the series
/// x - x^3 / 3 + 2 x^5 / 15 - 17 x^7 / 315 + 62 x^9 / 2835 is not.
#[inline(always)]
fn tanh_near_0<G: Gpu>(gpu: G, score: f32) -> f32 {
    let x = score * (0.5 * core::f32::consts::LN_2);
    let square = x * x;
    let mut series = gpu.fma(square, 62.0 / 2835.0, -17.0 / 315.0);
    series = gpu.fma(square, series, 2.0 / 15.0);
    series = gpu.fma(square, series, -1.0 / 3.0);
    series = gpu.fma(square * series, x, x);
    if x.abs() < 0.25 {
        series
    } else {
        tanh(gpu, score)
    }
}

/// Caps, times log2 e, of which 2^-23 does not matter.
const MOST_CANCELLED: f32 = 256.0;
