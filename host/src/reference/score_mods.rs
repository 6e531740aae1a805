//! Which keys a query sees, and what becomes of their scores, by definition.

use super::HostTensor;

/// Window, softcap, ALiBi and sinks; nothing and all keys by default.
#[derive(Clone, Copy, Debug, Default)]
pub struct ScoreMods<'a> {
    /// Keys that a query sees, itself included; without `causal`, as many after it as before it.
    pub sliding_window: Option<i64>,
    /// Scores become `softcap * tanh(score / softcap)`.
    pub softcap: Option<f64>,
    /// `[num_query_heads]`: `slope * (key - context_len)` is added to scores.
    pub alibi_slopes: Option<&'a HostTensor>,
    /// It is `-slope * sqrt(query - key)` instead, 0 for keys after the query.
    pub alibi_sqrt: bool,
    /// `[num_query_heads]`: `exp(sink)` is added to the softmax's denominator.
    pub sinks: Option<&'a HostTensor>,
}

impl ScoreMods<'_> {
    /// Every key, and scores as they are.
    pub(super) const NONE: Self = Self {
        sliding_window: None,
        softcap: None,
        alibi_slopes: None,
        alibi_sqrt: false,
        sinks: None,
    };

    /// Whether the query at `position` sees key `key`, if it sees all those on its side.
    pub(super) fn sees(&self, key: i64, position: i64) -> bool {
        match self.sliding_window {
            Some(window) => (position - key).abs() < window,
            None => true,
        }
    }

    /// What is added to a score of query head `head`, whose query is at `position`, and its sequence's first one at
    /// `context_len`.
    #[allow(clippy::cast_precision_loss, reason = "positions are small")]
    pub(super) fn bias(&self, head: usize, key: i64, position: i64, context_len: i64) -> f64 {
        let Some(slopes) = self.alibi_slopes else {
            return 0.0;
        };
        let distance = if self.alibi_sqrt {
            -((position - key).max(0) as f64).sqrt()
        } else {
            (key - context_len) as f64
        };
        slopes.float(&[head]) * distance
    }

    /// The score of a key without a value; minus infinity is none.
    pub(super) fn sink(&self, head: usize) -> f64 {
        self.sinks
            .map_or(f64::NEG_INFINITY, |sinks| sinks.float(&[head]))
    }

    /// A score that was `score`, before its bias.
    pub(super) fn transform(&self, score: f64) -> f64 {
        match self.softcap {
            Some(cap) => cap * (score / cap).tanh(),
            None => score,
        }
    }
}
