//! Where an output differs from what it had to be.

use std::fmt;

/// Where an output is wrong.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Mismatch {
    /// Not finite where it had to be, or the other way round.
    NonFinite {
        /// Which tensor.
        tensor: &'static str,
        /// Index of the element.
        at: Vec<usize>,
        /// What it is.
        got: f64,
        /// What it had to be.
        expected: f64,
    },
    /// A sequence is off as a whole.
    Frobenius {
        /// The sequence.
        seq: usize,
        /// Its relative error.
        error: f64,
        /// The limit.
        limit: f64,
        /// Index of the element that is furthest off.
        at: Vec<usize>,
        /// What that element is.
        got: f64,
        /// What it had to be.
        expected: f64,
    },
    /// An element is off.
    Element {
        /// Which tensor.
        tensor: &'static str,
        /// Index of the element.
        at: Vec<usize>,
        /// What it is.
        got: f64,
        /// What it had to be.
        expected: f64,
        /// How far it may be off.
        limit: f64,
    },
    /// A byte differs that had to be copied, or left alone.
    Byte {
        /// Which storage.
        tensor: &'static str,
        /// Which byte of it.
        at: usize,
        /// Index of the element there, if it is one.
        element: Option<Vec<usize>>,
        /// What it is.
        got: u8,
        /// What it had to be.
        expected: u8,
    },
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NonFinite {
                tensor,
                at,
                got,
                expected,
            } => write!(f, "{tensor}{at:?} is {got}, expected {expected}"),
            Self::Frobenius {
                seq,
                error,
                limit,
                at,
                got,
                expected,
            } => write!(
                f,
                "sequence {seq} has relative error {error:.3e} (limit {limit:.1e}), most at out{at:?}: \
                 {got:.6e}, expected {expected:.6e}"
            ),
            Self::Element {
                tensor,
                at,
                got,
                expected,
                limit,
            } => write!(
                f,
                "{tensor}{at:?} is {got:.6e}, expected {expected:.6e} within {limit:.2e}"
            ),
            Self::Byte {
                tensor,
                at,
                element,
                got,
                expected,
            } => {
                write!(
                    f,
                    "byte {at} of {tensor} is {got:#04x}, expected {expected:#04x}: "
                )?;
                match element {
                    Some(index) => write!(f, "element {index:?}"),
                    None => write!(f, "outside the tensor"),
                }
            }
        }
    }
}

impl std::error::Error for Mismatch {}
