//! What a plan was made for, and which requests it fits.
//!
//! A plan holds grids, the choice of kernels and a layout of the workspace, which all depend on the request that it
//! was made from. It carries the facts they depend on; whoever launches compares them with the request's own, and takes
//! from the request what may be smaller: the grid.

use std::fmt;

use gpu_kernels::entry::EntryId;

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
            if !planned.covers(got) {
                return Err(RequestError::Plan {
                    what,
                    expected: planned.to_string(),
                    got: got.value().to_string(),
                });
            }
        }
        Ok(())
    }
}

impl Fact {
    fn covers(self, got: Self) -> bool {
        match (self, got) {
            (Self::AtMost(most), Self::AtMost(got)) => got <= most,
            (planned, got) => planned == got,
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
        }
    }
}
