//! Options that several operations have, and how lines spell them.

use std::fmt;

use super::text::{CaseError, Fields, parse};
use crate::ops::CheckMode;
use crate::plan::SplitPolicy;
use crate::tensor::Dtype;

/// Whether the lse is written, and how it lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LseForm {
    /// Not wanted.
    Off,
    /// Contiguous.
    On,
    /// Heads outermost, as some callers merge partial results.
    HeadsFirst,
}

impl LseForm {
    pub(crate) fn read(fields: &mut Fields<'_>) -> Result<Self, CaseError> {
        match fields.text("lse") {
            None => Ok(Self::On),
            Some("off") => Ok(Self::Off),
            Some("heads-first") => Ok(Self::HeadsFirst),
            Some(other) => Err(CaseError(format!(
                "`lse={other}`: given, it is off or heads-first"
            ))),
        }
    }

    pub(crate) fn write(self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::On => "",
            Self::Off => " lse=off",
            Self::HeadsFirst => " lse=heads-first",
        })
    }
}

/// How a cache of bytes is scaled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScaleForm {
    /// One scale for all keys, one for all values.
    Tensor,
    /// One for each KV head.
    Head,
    /// One for each token and KV head, in tensors of their own.
    Token,
}

/// Each element type of a cache of bytes with each kind of scale that it takes.
pub(crate) const SCALED_FORMATS: [(Dtype, ScaleForm); 6] = [
    (Dtype::F8E4m3, ScaleForm::Tensor),
    (Dtype::F8E4m3, ScaleForm::Head),
    (Dtype::F8E4m3, ScaleForm::Token),
    (Dtype::F8E5m2, ScaleForm::Tensor),
    (Dtype::F8E5m2, ScaleForm::Head),
    (Dtype::I8, ScaleForm::Token),
];

impl ScaleForm {
    pub(crate) fn read(fields: &mut Fields<'_>) -> Result<Self, CaseError> {
        match fields.text("scales") {
            None => Ok(Self::Tensor),
            Some("head") => Ok(Self::Head),
            Some("token") => Ok(Self::Token),
            Some(other) => Err(CaseError(format!(
                "`scales={other}`: given, it is head or token"
            ))),
        }
    }

    pub(crate) fn write(self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tensor => "",
            Self::Head => " scales=head",
            Self::Token => " scales=token",
        })
    }
}

/// `kv=`: what a cache stores if not values of `dtype`.
pub(crate) fn read_cache_dtype(fields: &mut Fields<'_>, dtype: Dtype) -> Result<Dtype, CaseError> {
    match fields.text("kv") {
        None => Ok(dtype),
        Some("fp8_e4m3") => Ok(Dtype::F8E4m3),
        Some("fp8_e5m2") => Ok(Dtype::F8E5m2),
        Some("i8") => Ok(Dtype::I8),
        Some(other) => Err(CaseError(format!(
            "`kv={other}`: given, it is fp8_e4m3, fp8_e5m2 or i8"
        ))),
    }
}

pub(crate) fn read_split(fields: &mut Fields<'_>) -> Result<SplitPolicy, CaseError> {
    match fields.text("split") {
        None => Ok(SplitPolicy::Auto),
        Some("invariant") => Ok(SplitPolicy::BatchInvariant),
        Some(tokens) => Ok(SplitPolicy::Fixed(parse("split", tokens)?)),
    }
}

pub(crate) fn write_split(policy: SplitPolicy, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match policy {
        SplitPolicy::Auto => Ok(()),
        SplitPolicy::BatchInvariant => f.write_str(" split=invariant"),
        SplitPolicy::Fixed(tokens) => write!(f, " split={tokens}"),
    }
}

pub(crate) fn read_check(fields: &mut Fields<'_>) -> Result<CheckMode, CaseError> {
    match fields.text("check") {
        None => Ok(CheckMode::Off),
        Some("device") => Ok(CheckMode::Device),
        Some(other) => Err(CaseError(format!("`check={other}`: given, it is device"))),
    }
}

pub(crate) fn write_check(check: CheckMode, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    f.write_str(match check {
        CheckMode::Off => "",
        CheckMode::Device => " check=device",
    })
}

/// Whether `key=value` is given; no other value is.
pub(crate) fn read_flag(
    fields: &mut Fields<'_>,
    key: &str,
    value: &str,
) -> Result<bool, CaseError> {
    match fields.text(key) {
        None => Ok(false),
        Some(text) if text == value => Ok(true),
        Some(other) => Err(CaseError(format!("`{key}={other}`: given, it is {value}"))),
    }
}
