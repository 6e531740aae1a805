//! Everything that can go wrong, as values.
//!
//! A bad request is an [`Error::Request`] that names the tensor, what it had to be and what it was; a shape
//! nobody compiled is [`Error::Unsupported`]; a machine that cannot run is [`Error::Driver`]; and what the
//! emulator or a device-side check found is [`Error::Fault`] or [`Error::Check`].

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
    /// The workspace is smaller than the plan needs.
    #[error("the workspace must hold {needed} bytes, but it holds {got}")]
    Workspace {
        /// Bytes the plan needs.
        needed: usize,
        /// Bytes given.
        got: usize,
    },
}

/// What a device-side check found: the first bad index that was claimed.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum CheckError {
    /// A sequence length below zero, or longer than its block-table row.
    #[error("`seq_lens[{seq}]` is {value}, outside 0..={limit}")]
    SeqLen {
        /// The sequence.
        seq: u32,
        /// Its length.
        value: i64,
        /// The longest allowed.
        limit: i64,
    },
    /// A block id outside the cache.
    #[error("`block_table[{seq}, {position}]` is {value}, outside 0..{num_blocks}")]
    BlockId {
        /// The sequence.
        seq: u32,
        /// Column of the block table.
        position: u32,
        /// The id.
        value: i64,
        /// Blocks in the cache.
        num_blocks: i64,
    },
    /// Query tokens that begin before 0, end before they begin, or end past the last.
    #[error(
        "`query_start_loc` gives sequence {seq} the query tokens {start}..{end}, which is no part of 0..{num_tokens}"
    )]
    QueryStart {
        /// The sequence.
        seq: u32,
        /// Where its query tokens begin.
        start: i64,
        /// Where they end.
        end: i64,
        /// Query tokens, all sequences.
        num_tokens: i64,
    },
    /// More query tokens than the host said.
    #[error(
        "`query_start_loc` gives sequence {seq} {value} query tokens, more than max_query_len {limit}"
    )]
    QueryLen {
        /// The sequence.
        seq: u32,
        /// Its query tokens.
        value: i64,
        /// The most allowed.
        limit: i64,
    },
    /// A slot outside the cache.
    #[error(
        "`slot_mapping[{token}]` is {value}, outside 0..{num_slots} (negative slots are skipped)"
    )]
    Slot {
        /// The token.
        token: u32,
        /// The slot.
        value: i64,
        /// Slots in the cache.
        num_slots: i64,
    },
    /// An index of a gather that names a slot outside the cache; its row was skipped.
    #[error("`indices[{row}]` is {value}, outside 0..{num_slots} (negative indices are skipped)")]
    Index {
        /// The row.
        row: u32,
        /// The index.
        value: i64,
        /// Slots in the cache.
        num_slots: i64,
    },
    /// A scale that is zero, negative, infinite or NaN.
    #[error("`{name}[{head}]` is {value}, but a scale must be positive and finite")]
    Scale {
        /// Which scale.
        name: &'static str,
        /// KV head; 0 if they share one.
        head: u32,
        /// The scale.
        value: f32,
    },
}
