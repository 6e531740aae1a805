//! What an attention request says of its scores, beyond their scale: window, softcap, ALiBi, sinks.

use std::f32::consts::LOG2_E;

use gpu_kernels::params::ScoreParams;

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

/// The options of that name, of any request that has them.
#[derive(Clone, Copy, Debug)]
pub(super) struct ScoreOptions<'a> {
    pub(super) sliding_window: Option<u32>,
    pub(super) softcap: Option<f32>,
    pub(super) alibi: Option<AlibiSlopes<'a>>,
    pub(super) sinks: Option<TensorView<'a>>,
}

impl ScoreOptions<'_> {
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
    pub(super) fn same(&self, new: &ScoreOptions<'_>) -> Result<(), RequestError> {
        let form = |options: &ScoreOptions<'_>| options.alibi.map(|alibi| alibi.form);
        same("sliding_window", self.sliding_window, new.sliding_window)?;
        same("softcap", self.softcap, new.softcap)?;
        same("alibi", form(self), form(new))
    }

    /// As kernels want them.
    pub(super) fn params(&self, softmax_scale: f32, causal: bool) -> ScoreParams {
        let address = |view: Option<&TensorView<'_>>| view.map_or(0, TensorView::address);
        let (qk_scale_log2, softcap_log2) = match self.softcap {
            Some(cap) => (2.0 * LOG2_E * softmax_scale / cap, cap * LOG2_E),
            None => (softmax_scale * LOG2_E, 0.0),
        };
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
            sliding_window: self.sliding_window.unwrap_or(0),
            flags,
            qk_scale_log2,
            softcap_log2,
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

/// The tensors that may be given: slopes and sinks.
pub(super) fn given_mods<'v, 'a>(
    alibi: Option<&'v AlibiSlopes<'a>>,
    sinks: Option<&'v TensorView<'a>>,
) -> [Given<'v, 'a>; 2] {
    [
        given("alibi_slopes", alibi.map(|alibi| &alibi.slopes)),
        given("sinks", sinks),
    ]
}
