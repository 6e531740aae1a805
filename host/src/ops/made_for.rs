//! What a plan was made for, and which requests it fits.
//!
//! A plan holds grids, the choice of kernels and a layout of the workspace, which all depend on the request that it
//! was made from. It carries the facts they depend on; whoever launches compares them with the request's own, and takes
//! from the request what may be smaller: the grid.

use std::fmt;

use gpu_kernels::entry::EntryId;
use gpu_kernels::params::MaskParams;

use super::attention::mask_difference;
use super::device_check::CheckMode;
use crate::error::RequestError;
use crate::plan::SplitPolicy;
use crate::tensor::Dtype;

/// Something that a plan depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fact {
    /// A number that must be the same.
    Number(u32),
    /// A number that may be smaller.
    AtMost(u32),
    /// A dtype that must be the same.
    Dtype(Dtype),
    /// A kernel.
    Kernel(EntryId),
    /// Something that is so or not.
    Flag(bool),
    /// How keys are split.
    Splits(SplitPolicy),
    /// Whether indices are checked.
    Check(CheckMode),
    /// What a query sees.
    Mask(MaskParams),
}

/// Facts, always in the same order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MadeFor<const N: usize> {
    /// The names that users know them by.
    pub(super) names: &'static [&'static str; N],
    pub(super) facts: [Fact; N],
}

impl<const N: usize> MadeFor<N> {
    /// Whether a plan that was made for these facts is right for a request with those of `request`.
    ///
    /// # Errors
    /// [`RequestError::Plan`] naming the first that does not fit.
    pub(super) fn fits(&self, request: &Self) -> Result<(), RequestError> {
        let facts = self.facts.iter().zip(&request.facts);
        for ((&planned, &got), what) in facts.zip(self.names) {
            if let Some((what, [expected, got])) = planned.difference(got, what) {
                return Err(RequestError::Plan {
                    what,
                    expected,
                    got,
                });
            }
        }
        Ok(())
    }
}

impl Fact {
    /// What a request with the fact `got` has that does not fit, by its name: planned, and the request's.
    fn difference(self, got: Self, name: &'static str) -> Option<(&'static str, [String; 2])> {
        match (self, got) {
            (Self::AtMost(most), Self::AtMost(got)) if got <= most => None,
            (Self::Mask(planned), Self::Mask(got)) => mask_difference(planned, got)
                .map(|(rule, values)| (rule, values.map(|value| value.to_string()))),
            (planned, got) if planned == got => None,
            (planned, got) => Some((name, [planned.to_string(), got.value().to_string()])),
        }
    }

    /// Without the freedom to be less.
    fn value(self) -> Self {
        match self {
            Self::AtMost(number) => Self::Number(number),
            other => other,
        }
    }
}

impl fmt::Display for Fact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::AtMost(most) => write!(f, "of at most {most}"),
            Self::Dtype(dtype) => dtype.fmt(f),
            Self::Kernel(id) => f.write_str(id.entry().name),
            Self::Flag(is) => is.fmt(f),
            Self::Splits(policy) => write!(f, "{policy:?}"),
            Self::Check(mode) => write!(f, "{mode:?}"),
            Self::Mask(mask) => write!(f, "{mask:?}"),
        }
    }
}
