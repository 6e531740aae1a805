//! Everything that can go wrong, as values.
//!
//! A bad request is an [`Error::Request`] that names the tensor, what it had to be and what it was; a shape
//! nobody compiled is [`Error::Unsupported`]; a machine that cannot run is [`Error::Driver`]; and what the
//! emulator or a device-side check found is [`Error::Fault`] or [`Error::Check`].

mod check_error;

pub use check_error::CheckError;

#[cfg(feature = "emulator")]
use crate::emulator::Fault;
use crate::runtime::DriverError;
use crate::tensor::Dtype;

/// The result of everything fallible here.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an operation was refused or failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The request contradicts itself or the operation.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The request makes sense, but no kernel was compiled for it.
    #[error("{operation} does not support {what} {got}; supported: {supported}")]
    Unsupported {
        /// The operation asked for.
        operation: &'static str,
        /// Which property.
        what: &'static str,
        /// What was asked for.
        got: String,
        /// What there is.
        supported: String,
    },
    /// The CUDA driver is missing, too old, or refused.
    #[error(transparent)]
    Driver(#[from] DriverError),
    /// The emulator caught a kernel breaking a rule.
    #[cfg(feature = "emulator")]
    #[error(transparent)]
    Fault(#[from] Box<Fault>),
    /// A device-side check found a bad index before the kernel ran; nothing was written.
    #[error(transparent)]
    Check(#[from] CheckError),
}

/// What is wrong with a request.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// The wrong element type.
    #[error("`{tensor}` must be {expected}, but its dtype is {got}")]
    Dtype {
        /// Which tensor.
        tensor: &'static str,
        /// What it had to be.
        expected: String,
        /// What it is.
        got: Dtype,
    },
    /// AMD's FP8.
    #[error(
        "`{tensor}` is {got}, an FP8 format of AMD GPUs with another exponent bias: the same bytes mean half \
         the value, and NVIDIA GPUs cannot convert them; use fp8_e4m3 or fp8_e5m2 (OCP) instead"
    )]
    Fnuz {
        /// Which tensor.
        tensor: &'static str,
        /// Its dtype.
        got: Dtype,
    },
    /// The wrong shape.
    #[error("`{tensor}` must be {expected}, but its shape is {got:?}")]
    Shape {
        /// Which tensor.
        tensor: &'static str,
        /// What it had to be, with numbers filled in.
        expected: String,
        /// What it is.
        got: Vec<usize>,
    },
    /// Strides that the kernels cannot follow.
    #[error("`{tensor}` must have {expected}, but its strides are {got:?} (in elements)")]
    Stride {
        /// Which tensor.
        tensor: &'static str,
        /// What they had to be.
        expected: String,
        /// What they are.
        got: Vec<i64>,
    },
    /// An address that is null or not aligned enough.
    #[error(
        "`{tensor}` must be aligned to {expected} bytes and not null, but its address is {got:#x}"
    )]
    Address {
        /// Which tensor.
        tensor: &'static str,
        /// Bytes of alignment needed.
        expected: usize,
        /// The address.
        got: u64,
    },
    /// A number out of its range.
    #[error("`{name}` must be {expected}, but it is {got}")]
    Value {
        /// Which argument.
        name: &'static str,
        /// What it had to be.
        expected: String,
        /// What it is.
        got: String,
    },
    /// The plan was made for another request than the one that is launched: see what the plan's type says that it fits.
    #[error("the plan was made for {what} {expected}, but the request has {got}")]
    Plan {
        /// The first property that does not fit.
        what: &'static str,
        /// What the plan was made for.
        expected: String,
        /// What the request has.
        got: String,
    },
    /// Memory of one machine in a launch on another.
    #[error("`{tensor}` is memory of another machine than the one that launches")]
    Machine {
        /// Which tensor.
        tensor: &'static str,
    },
    /// The workspace is smaller than the plan needs.
    #[error("the workspace must hold {needed} bytes, but it holds {got}")]
    Workspace {
        /// Bytes the plan needs.
        needed: usize,
        /// Bytes given.
        got: usize,
    },
}
