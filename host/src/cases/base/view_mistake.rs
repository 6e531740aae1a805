//! Mistakes in the views that a request is made of.

use std::cell::RefCell;

use crate::tensor::{Dtype, MAX_RANK};

/// What is done to a view of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ViewMistake {
    /// One dimension more.
    Rank,
    /// A dtype that no operation takes there.
    Dtype,
    /// Every second element of the last dimension.
    LastStride,
    /// Backwards along the first dimension.
    Backwards,
    /// One byte further.
    Misaligned,
    /// The address 0.
    Null,
    /// One element less in the last dimension.
    Narrow,
}

/// All of them.
pub(crate) const VIEW_MISTAKES: [ViewMistake; 7] = [
    ViewMistake::Rank,
    ViewMistake::Dtype,
    ViewMistake::LastStride,
    ViewMistake::Backwards,
    ViewMistake::Misaligned,
    ViewMistake::Null,
    ViewMistake::Narrow,
];

/// A view, taken apart.
pub(crate) struct Parts {
    pub(crate) address: u64,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    pub(crate) strides: Vec<i64>,
}

/// Breaks the view that is made next after `left` others, if it can be.
#[derive(Debug)]
pub(crate) struct ViewBreaker {
    left: usize,
    mistake: ViewMistake,
    /// The tensor that was broken.
    broken: Option<&'static str>,
}

impl ViewBreaker {
    /// Breaks the view that is made after `left` others.
    pub(crate) fn new(left: usize, mistake: ViewMistake) -> Self {
        Self {
            left,
            mistake,
            broken: None,
        }
    }

    /// The tensor that was broken, if any was.
    pub(crate) fn broken(&self) -> Option<&'static str> {
        self.broken
    }

    /// Called with every view that is made.
    pub(crate) fn see(&mut self, name: &'static str, parts: &mut Parts) {
        if self.left > 0 {
            self.left -= 1;
        } else if self.broken.is_none() && self.mistake.apply(name, parts) {
            self.broken = Some(name);
        }
    }
}

impl ViewMistake {
    /// Changes the view unless the result could make sense; says whether it did.
    fn apply(self, name: &str, parts: &mut Parts) -> bool {
        let rank = parts.shape.len();
        // The dtype and the rank of caches whose blocks are only copied are the caller's.
        let is_opaque = matches!(name, "cache" | "target" | "compact") && parts.dtype != Dtype::U8;
        // Indices, scales, and an lse may lie in any order.
        let is_rows = matches!(
            name,
            "query"
                | "out"
                | "key"
                | "value"
                | "qkv"
                | "key_cache"
                | "value_cache"
                | "kv_cache"
                | "query_out"
        ) && !is_opaque;
        if parts.shape.iter().product::<usize>() == 0 || rank == 0 {
            return false;
        }
        match self {
            Self::Rank if rank < MAX_RANK && !is_opaque => {
                parts.shape.insert(0, 1);
                parts.strides.insert(0, 0);
            }
            Self::Dtype if !is_opaque => {
                parts.dtype = match parts.dtype {
                    Dtype::I32 | Dtype::I64 | Dtype::U8 => Dtype::F32,
                    _ => Dtype::I32,
                };
            }
            Self::LastStride if is_rows && parts.shape[rank - 1] > 1 => {
                parts.strides[rank - 1] *= 2;
            }
            Self::Backwards if parts.shape[0] > 1 => parts.strides[0] = -parts.strides[0].max(1),
            Self::Misaligned if parts.dtype.size() > 1 && !is_opaque => parts.address += 1,
            Self::Null => parts.address = 0,
            // Pages may be larger than they have to be.
            Self::Narrow if is_rows && rank > 2 && parts.shape[rank - 1] > 1 => {
                parts.shape[rank - 1] -= 1;
            }
            _ => return false,
        }
        true
    }
}

/// A place for a [`ViewBreaker`]; there is none but in these tests of requests.
pub(crate) type ViewBreakerCell = RefCell<Option<ViewBreaker>>;
