//! What a query sees, and what becomes of its scores before and in the softmax, as every attention kernel is told.

/// Which keys a query sees; [`crate::attention::mask::Visible`] says what it means.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MaskParams {
    /// Keys visible to a query, itself included; 0 for all.
    pub sliding_window: u32,
}

impl MaskParams {
    /// All keys.
    pub const ALL: Self = Self { sliding_window: 0 };

    /// How many words a block of parameters reserves that has `words` others besides these, so that its size is a
    /// multiple of 8 however many these are.
    pub const fn reserved(words: usize) -> usize {
        (words + size_of::<Self>() / 4) % 2
    }
}

/// Scale, softcap, ALiBi, mask and sinks. Scores are
/// `softcap * tanh(softmax_scale * q·k / softcap)`, or `softmax_scale * q·k` without a cap, plus the bias.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ScoreParams {
    /// `[num_query_heads]` f32; 0 for none.
    pub alibi_slopes: u64,
    /// `[num_query_heads]` f32, natural logarithm: `exp(sink)` is added to the softmax's denominator; 0 for none.
    pub sinks: u64,
    /// What a query sees, but for [`ScoreParams::CAUSAL`].
    pub mask: MaskParams,
    /// Sum of the constants of this type.
    pub flags: u32,
    /// `softmax_scale * log2 e`, or `2 log2 e * softmax_scale / softcap` if scores are capped: multiplies q·k once,
    /// so that the softmax can use powers of two.
    pub qk_scale_log2: f32,
    /// `softcap * log2 e`; 0 for no cap.
    pub softcap_log2: f32,
    /// Zero; keeps the size a multiple of 8.
    pub reserved: [u32; MaskParams::reserved(3)],
}

impl ScoreParams {
    /// A query sees no key after its own.
    pub const CAUSAL: u32 = 1;
    /// ALiBi takes the root of the distance.
    pub const ALIBI_SQRT: u32 = 2;

    /// Scores are products times a scale; what that is, is not said.
    pub(crate) const NONE: Self = Self {
        alibi_slopes: 0,
        sinks: 0,
        mask: MaskParams::ALL,
        flags: 0,
        qk_scale_log2: 0.0,
        softcap_log2: 0.0,
        reserved: [0; MaskParams::reserved(3)],
    };
}

const _: () = assert!(
    size_of::<ScoreParams>() == 2 * 8 + size_of::<MaskParams>() + (3 + MaskParams::reserved(3)) * 4
);
