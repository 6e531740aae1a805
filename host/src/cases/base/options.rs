//! Options that several operations have, and how lines spell them.

use std::fmt;

use gpu_kernels::dtype::CacheDtype;

use super::text::{CaseError, Fields, parse};
use crate::ops::CheckMode;
use crate::plan::{SplitPolicy, dtypes};
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

/// Each element type of a cache of bytes with each kind of scale that attention takes over it.
pub(crate) fn scaled_formats() -> impl Iterator<Item = (Dtype, ScaleForm)> + Clone {
    use ScaleForm::{Head, Tensor, Token};
    let bytes = Dtype::ALL.iter().copied().filter(|dtype| dtype.size() == 1);
    bytes.flat_map(|dtype| {
        [Tensor, Head, Token]
            .map(|scales| (dtype, scales))
            .into_iter()
            .filter(move |&(_, scales)| {
                let token_scales = scales == Token;
                dtypes::attention_caches().contains(&CacheDtype {
                    dtype,
                    token_scales,
                })
            })
    })
}

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
    let Some(text) = fields.text("kv") else {
        return Ok(dtype);
    };
    let mut bytes: Vec<Dtype> = scaled_formats().map(|(dtype, _)| dtype).collect();
    bytes.dedup();
    let mut named = bytes.iter().filter(|dtype| dtype.name() == text);
    named.next().copied().ok_or_else(|| {
        let names: Vec<&str> = bytes.iter().map(|dtype| dtype.name()).collect();
        CaseError(format!("`kv={text}`: given, it is {}", names.join(" or ")))
    })
}

pub(crate) fn read_split(fields: &mut Fields<'_>) -> Result<SplitPolicy, CaseError> {
    match fields.text("split") {
        None => Ok(SplitPolicy::Auto),
        Some("invariant") => Ok(SplitPolicy::BatchInvariant),
        Some("scheduled") => Ok(SplitPolicy::Scheduled),
        Some(tokens) => Ok(SplitPolicy::Fixed(parse("split", tokens)?)),
    }
}

pub(crate) fn write_split(policy: SplitPolicy, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match policy {
        SplitPolicy::Auto => Ok(()),
        SplitPolicy::BatchInvariant => f.write_str(" split=invariant"),
        SplitPolicy::Scheduled => f.write_str(" split=scheduled"),
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
