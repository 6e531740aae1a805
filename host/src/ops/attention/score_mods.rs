//! What an attention request says of its scores, beyond their scale: window, softcap, ALiBi, sinks. Requests, plans and
//! parameters know no more of them than what is written here.

use std::f32::consts::LOG2_E;

use gpu_kernels::params::{MaskParams, ScoreParams};

use crate::error::RequestError;
use crate::ops::checks::{named, scale};
use crate::ops::tensors::{Given, given, same};
use crate::tensor::TensorView;

/// The largest softcap: beyond it, scores divided by it would leave the range of f32.
const MOST_SOFTCAP: f32 = 1e18;

/// ALiBi.
#[derive(Clone, Copy, Debug)]
pub struct AlibiSlopes<'a> {
    /// `[num_query_heads]`, f32.
    pub slopes: TensorView<'a>,
    /// What they multiply.
    pub form: AlibiForm,
}

/// What an ALiBi slope multiplies. `context_len = seq_len - query_len`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AlibiForm {
    /// `key - context_len`: up to what is the same for all keys of a query, minus the distance.
    Linear,
    /// `-sqrt(query - key)`.
    Sqrt,
}

/// What becomes of scores, and which of them there are: nothing and all, as far as nothing else is said.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct ScoreMods<'a> {
    /// Keys that a query sees, itself included; all, if there is none. Keys before those that any query of the sequence
    /// sees are not read, nor are the block-table entries of blocks that hold nothing else.
    pub sliding_window: Option<u32>,
    /// Scores become `softcap * tanh(score / softcap)`; at most 1e18, and not so small that `2 log2 e * softmax_scale /
    /// softcap`, by which query · key is multiplied, is no f32. From 177 on, where a short tanh would be too coarse,
    /// unified attention computes such rows one by one, which is slow.
    pub softcap: Option<f32>,
    /// A bias that grows with the distance.
    pub alibi: Option<AlibiSlopes<'a>>,
    /// `[num_query_heads]`, f32: scores of a key that has no value. They count in the lse too. Where the keys that have one
    /// get less than 2^-126 of the softmax, all together, the output is 0.
    pub sinks: Option<TensorView<'a>>,
}

impl<'a> ScoreMods<'a> {
    /// See [`ScoreMods::sliding_window`].
    #[must_use]
    pub fn sliding_window(mut self, keys: u32) -> Self {
        self.sliding_window = Some(keys);
        self
    }
    /// See [`ScoreMods::softcap`].
    #[must_use]
    pub fn softcap(mut self, softcap: f32) -> Self {
        self.softcap = Some(softcap);
        self
    }
    /// See [`ScoreMods::alibi`].
    #[must_use]
    pub fn alibi(mut self, alibi: AlibiSlopes<'a>) -> Self {
        self.alibi = Some(alibi);
        self
    }
    /// See [`ScoreMods::sinks`].
    #[must_use]
    pub fn sinks(mut self, sinks: TensorView<'a>) -> Self {
        self.sinks = Some(sinks);
        self
    }

    /// Checks the scale of scores by itself, and what kernels multiply query · key by: an infinity would make a score of 0
    /// a NaN.
    pub(super) fn check_scale(&self, softmax_scale: f32) -> Result<(), RequestError> {
        scale("softmax_scale", softmax_scale)?;
        let factor = self.scale_factor();
        if !(factor * softmax_scale).is_finite() {
            return Err(RequestError::Value {
                name: "softmax_scale",
                expected: format!("at most {:e}: scores are kept in base 2", f32::MAX / factor),
                got: softmax_scale.to_string(),
            });
        }
        match self.softcap {
            // What is no cap at all is refused as such.
            Some(cap) if cap > 0.0 && self.qk_scale_log2(softmax_scale).is_infinite() => {
                Err(RequestError::Value {
                    name: "softcap",
                    expected: format!(
                        "at least about {:e} with a softmax_scale of {softmax_scale}: scores are divided by it",
                        f64::from(factor * softmax_scale) / f64::from(f32::MAX)
                    ),
                    got: cap.to_string(),
                })
            }
            _ => Ok(()),
        }
    }

    /// What takes a score to base 2, or to where its tanh is taken.
    fn scale_factor(&self) -> f32 {
        match self.softcap {
            Some(_) => 2.0 * LOG2_E,
            None => LOG2_E,
        }
    }

    /// What query · key is multiplied by.
    fn qk_scale_log2(&self, softmax_scale: f32) -> f32 {
        self.scale_factor() * softmax_scale / self.softcap.unwrap_or(1.0)
    }

    /// Checks them for so many query heads.
    pub(super) fn check(&self, num_query_heads: usize) -> Result<(), RequestError> {
        if let Some(window) = self.sliding_window
            && (window == 0 || window > i32::MAX as u32 / 2)
        {
            return Err(RequestError::Value {
                name: "sliding_window",
                expected: format!("between 1 and {}", i32::MAX / 2),
                got: window.to_string(),
            });
        }
        if let Some(softcap) = self.softcap {
            scale("softcap", softcap)?;
            if softcap > MOST_SOFTCAP {
                return Err(RequestError::Value {
                    name: "softcap",
                    expected: format!("at most {MOST_SOFTCAP:e}: what is larger caps nothing"),
                    got: softcap.to_string(),
                });
            }
        }
        if let Some(alibi) = &self.alibi {
            check_per_head("alibi_slopes", &alibi.slopes, num_query_heads)?;
        }
        if let Some(sinks) = &self.sinks {
            check_per_head("sinks", sinks, num_query_heads)?;
        }
        Ok(())
    }

    /// The name of one that is given, if one is.
    pub(super) fn given(&self) -> Option<&'static str> {
        let given = [
            ("options.sliding_window", self.sliding_window.is_some()),
            ("options.softcap", self.softcap.is_some()),
            ("options.alibi", self.alibi.is_some()),
            ("options.sinks", self.sinks.is_some()),
        ];
        given.into_iter().find(|&(_, is)| is).map(|(name, _)| name)
    }

    /// Refuses those that are given to an operation that has none.
    pub(super) fn refuse(&self, operation: &str) -> Result<(), RequestError> {
        match self.given() {
            None => Ok(()),
            Some(name) => Err(RequestError::Value {
                name,
                expected: format!("absent for {operation}"),
                got: "given".into(),
            }),
        }
    }

    /// Whether others are the same, but for addresses.
    pub(super) fn same(&self, new: &ScoreMods<'_>) -> Result<(), RequestError> {
        let form = |mods: &ScoreMods<'_>| mods.alibi.map(|alibi| alibi.form);
        same("sliding_window", self.sliding_window, new.sliding_window)?;
        same("softcap", self.softcap, new.softcap)?;
        same("alibi", form(self), form(new))
    }

    /// The tensors that may be given: slopes and sinks.
    pub(super) fn tensors<'v>(&'v self) -> [Given<'v, 'a>; 2] {
        [
            given(
                "alibi_slopes",
                self.alibi.as_ref().map(|alibi| &alibi.slopes),
            ),
            given("sinks", self.sinks.as_ref()),
        ]
    }

    /// The most keys that one query sees, itself and those before it; `None` if they are as many as there are. Without
    /// `causal` it sees as many after it.
    pub(super) fn most_keys(&self) -> Option<u32> {
        self.sliding_window
    }

    /// What a query sees, as kernels and plans want it.
    pub(super) fn mask(&self) -> MaskParams {
        MaskParams {
            sliding_window: self.sliding_window.unwrap_or(0),
        }
    }

    /// As kernels want them.
    pub(super) fn params(&self, softmax_scale: f32, causal: bool) -> ScoreParams {
        let address = |view: Option<&TensorView<'_>>| view.map_or(0, TensorView::address);
        let mut flags = 0;
        if causal {
            flags |= ScoreParams::CAUSAL;
        }
        if matches!(&self.alibi, Some(alibi) if alibi.form == AlibiForm::Sqrt) {
            flags |= ScoreParams::ALIBI_SQRT;
        }
        ScoreParams {
            alibi_slopes: address(self.alibi.as_ref().map(|alibi| &alibi.slopes)),
            sinks: address(self.sinks.as_ref()),
            mask: self.mask(),
            flags,
            qk_scale_log2: self.qk_scale_log2(softmax_scale),
            softcap_log2: self.softcap.map_or(0.0, |cap| cap * LOG2_E),
            reserved: Default::default(),
        }
    }
}

/// f32, one for each query head.
pub(super) fn check_per_head(
    name: &'static str,
    tensor: &TensorView<'_>,
    num_query_heads: usize,
) -> Result<(), RequestError> {
    let tensor = named(name, tensor);
    tensor.floats(&[&[num_query_heads]], || {
        format!("[num_query_heads] = [{num_query_heads}]")
    })?;
    tensor.strides(1)
}

/// The first rule of a mask that is not the same, by its name; the one of a plan, and the one of a request.
pub(in crate::ops) fn mask_difference(
    planned: MaskParams,
    request: MaskParams,
) -> Option<(&'static str, [u32; 2])> {
    let MaskParams { sliding_window } = planned;
    let rules = [("sliding_window", [sliding_window, request.sliding_window])];
    rules
        .into_iter()
        .find(|(_, [planned, request])| planned != request)
}
