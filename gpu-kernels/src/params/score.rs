//! What becomes of products before and in the softmax, as every attention kernel is told.

/// Scale, softcap, ALiBi, sliding window and sinks. Scores are
/// `softcap * tanh(softmax_scale * q·k / softcap)`, or `softmax_scale * q·k` without a cap, plus the bias.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ScoreParams {
    /// `[num_query_heads]` f32; 0 for none.
    pub alibi_slopes: u64,
    /// `[num_query_heads]` f32, natural logarithm: `exp(sink)` is added to the softmax's denominator; 0 for none.
    pub sinks: u64,
    /// Keys visible to a query, itself included; 0 for all.
    pub sliding_window: u32,
    /// Sum of the constants of this type.
    pub flags: u32,
    /// `softmax_scale * log2 e`, or `2 log2 e * softmax_scale / softcap` if scores are capped: multiplies q·k once,
    /// so that the softmax can use powers of two.
    pub qk_scale_log2: f32,
    /// `softcap * log2 e`; 0 for no cap.
    pub softcap_log2: f32,
}

impl ScoreParams {
    /// A query sees no key after its own.
    pub const CAUSAL: u32 = 1;
    /// ALiBi takes the root of the distance.
    pub const ALIBI_SQRT: u32 = 2;
}

const _: () = assert!(size_of::<ScoreParams>() == 2 * 8 + 4 * 4);
