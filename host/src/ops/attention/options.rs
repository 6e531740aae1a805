//! What attention requests leave open: options, all with a default.

use super::score_mods::ScoreMods;
use crate::error::RequestError;
use crate::ops::device_check::CheckMode;
use crate::ops::tensors::same;
use crate::plan::SplitPolicy;
use crate::tensor::TensorView;

/// What most callers leave as it is.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct DecodeOptions<'a> {
    /// Sliding window, softcap, ALiBi and sinks.
    pub score_mods: ScoreMods<'a>,
    /// An upper bound of `seq_lens`, if the host knows one below `max_num_blocks_per_seq * block_size`:
    /// the split is made for it. Longer sequences are cut to it.
    pub max_seq_len: Option<u32>,
    /// How the KV range is split over thread blocks.
    pub split_policy: SplitPolicy,
    /// The schedule of this step, if [`SplitPolicy::Scheduled`] is wanted and one was made already
    /// ([`super::CheckedDecode::schedule`]) for the same `seq_lens`, bound, window and starts, by a plan with the same
    /// [`super::DecodePlan::runs`]; by another one the output is wrong. Without it each launch makes its own.
    pub schedule: Option<TensorView<'a>>,
    /// Whether `block_table`, `seq_lens` and scales, or index lists, are checked on the device first. Where each token has
    /// scales of its own, those of all tokens that a query sees are read once more for it.
    pub check: CheckMode,
}

impl<'a> DecodeOptions<'a> {
    /// See [`DecodeOptions::score_mods`].
    #[must_use]
    pub fn score_mods(mut self, mods: ScoreMods<'a>) -> Self {
        self.score_mods = mods;
        self
    }
    /// See [`DecodeOptions::max_seq_len`].
    #[must_use]
    pub fn max_seq_len(mut self, tokens: u32) -> Self {
        self.max_seq_len = Some(tokens);
        self
    }
    /// See [`DecodeOptions::split_policy`].
    #[must_use]
    pub fn split_policy(mut self, policy: SplitPolicy) -> Self {
        self.split_policy = policy;
        self
    }
    /// See [`DecodeOptions::schedule`].
    #[must_use]
    pub fn schedule(mut self, items: TensorView<'a>) -> Self {
        self.schedule = Some(items);
        self
    }
    /// See [`DecodeOptions::check`].
    #[must_use]
    pub fn check(mut self, mode: CheckMode) -> Self {
        self.check = mode;
        self
    }
    /// Whether others are the same, but for addresses.
    pub(super) fn same(&self, new: &DecodeOptions<'_>) -> Result<(), RequestError> {
        self.score_mods.same(&new.score_mods)?;
        same("max_seq_len", self.max_seq_len, new.max_seq_len)?;
        same("split_policy", self.split_policy, new.split_policy)?;
        same("check", self.check, new.check)
    }
}

/// What many callers leave as it is.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct UnifiedOptions<'a> {
    /// Whether a query sees no key after its own. On unless it is switched off.
    pub causal: bool,
    /// `[num_seqs]`, u8: the same for the queries of each sequence, not 0 if they see no key after their own. If
    /// given, `causal` means nothing.
    pub causal_flags: Option<TensorView<'a>>,
    /// Sliding window, softcap, ALiBi and sinks.
    pub score_mods: ScoreMods<'a>,
    /// `[1]`, f32: an fp8_e4m3 output is divided by it, and only that.
    pub output_scale: Option<TensorView<'a>>,
    /// The first so many sequences have exactly one query token each, as serving stacks order their batches.
    /// The host knows it, so they can take the decode kernels, which split a long context over thread blocks.
    pub num_decodes: u32,
    /// An upper bound of the sequences' query tokens, if the host knows one; `num_tokens` is one. With at most 1, all
    /// sequences take the decode kernels: those without a query token are skipped, and tokens past the last
    /// sequence's are left alone, as otherwise. Of a sequence that has more after all, only the first is computed.
    pub max_query_len: Option<u32>,
    /// An upper bound of `seq_lens`, if the host knows one below `max_num_blocks_per_seq * block_size`. Longer
    /// sequences are cut to it.
    pub max_seq_len: Option<u32>,
    /// Whether scores are added up in f32 everywhere. Otherwise, where an FP8 query meets an fp8_e4m3 cache on compute
    /// capability 9.0, with heads of 64 or 128 and rows that begin at multiples of 16 bytes, both are multiplied as they
    /// are. That is faster, and exact but for the sum, for which those tensor cores have fewer bits: a score is off by
    /// about 2^-15 of the most that its terms can amount to, by 2^-12 at worst.
    pub f32_scores: bool,
    /// How keys are split over thread blocks. With [`SplitPolicy::BatchInvariant`] they are not, and no
    /// sequence takes a decode kernel: the bits of a query token's output then depend on nothing but the token,
    /// the keys before it and the options, not on the batch, nor on how a prefill was cut into chunks. With
    /// [`SplitPolicy::Scheduled`] the device decides for sequences that take the decode kernels, for others the planner.
    pub split_policy: SplitPolicy,
    /// Whether `query_start_loc` (in order, within `num_tokens`, no more than `max_query_len` apart, `num_decodes` as
    /// it says), `block_table`, `seq_lens` and scales are checked on the device first, of sequences with query tokens
    /// as far as these see. Where each cached token has scales of its own, those that are read are read once more for it.
    /// A checked step takes one kernel for all sequences, a decode kernel if each has at most one query token.
    pub check: CheckMode,
}

impl Default for UnifiedOptions<'_> {
    fn default() -> Self {
        Self {
            causal: true,
            causal_flags: None,
            score_mods: ScoreMods::default(),
            output_scale: None,
            num_decodes: 0,
            max_query_len: None,
            max_seq_len: None,
            f32_scores: false,
            split_policy: SplitPolicy::default(),
            check: CheckMode::default(),
        }
    }
}

impl<'a> UnifiedOptions<'a> {
    /// See [`UnifiedOptions::causal`].
    #[must_use]
    pub fn causal(mut self, is_causal: bool) -> Self {
        self.causal = is_causal;
        self
    }
    /// See [`UnifiedOptions::causal_flags`].
    #[must_use]
    pub fn causal_flags(mut self, flags: TensorView<'a>) -> Self {
        self.causal_flags = Some(flags);
        self
    }
    /// See [`UnifiedOptions::score_mods`].
    #[must_use]
    pub fn score_mods(mut self, mods: ScoreMods<'a>) -> Self {
        self.score_mods = mods;
        self
    }
    /// See [`UnifiedOptions::output_scale`].
    #[must_use]
    pub fn output_scale(mut self, scale: TensorView<'a>) -> Self {
        self.output_scale = Some(scale);
        self
    }
    /// See [`UnifiedOptions::num_decodes`].
    #[must_use]
    pub fn num_decodes(mut self, sequences: u32) -> Self {
        self.num_decodes = sequences;
        self
    }
    /// See [`UnifiedOptions::max_query_len`].
    #[must_use]
    pub fn max_query_len(mut self, tokens: u32) -> Self {
        self.max_query_len = Some(tokens);
        self
    }
    /// See [`UnifiedOptions::max_seq_len`].
    #[must_use]
    pub fn max_seq_len(mut self, tokens: u32) -> Self {
        self.max_seq_len = Some(tokens);
        self
    }
    /// See [`UnifiedOptions::f32_scores`].
    #[must_use]
    pub fn f32_scores(mut self, everywhere: bool) -> Self {
        self.f32_scores = everywhere;
        self
    }
    /// See [`UnifiedOptions::split_policy`].
    #[must_use]
    pub fn split_policy(mut self, policy: SplitPolicy) -> Self {
        self.split_policy = policy;
        self
    }
    /// See [`UnifiedOptions::check`].
    #[must_use]
    pub fn check(mut self, mode: CheckMode) -> Self {
        self.check = mode;
        self
    }
    /// Those of sequences that take the decode kernels. `causal` makes no difference to the last token of a sequence.
    pub(super) fn of_decodes(&self) -> DecodeOptions<'a> {
        DecodeOptions {
            score_mods: self.score_mods,
            max_seq_len: self.max_seq_len,
            split_policy: self.split_policy,
            schedule: None,
            check: self.check,
        }
    }

    /// Whether others are the same, but for addresses.
    pub(super) fn same(&self, new: &UnifiedOptions<'_>) -> Result<(), RequestError> {
        self.of_decodes().same(&new.of_decodes())?;
        same("causal", self.causal, new.causal)?;
        same("num_decodes", self.num_decodes, new.num_decodes)?;
        same("max_query_len", self.max_query_len, new.max_query_len)?;
        same("f32_scores", self.f32_scores, new.f32_scores)
    }
}
