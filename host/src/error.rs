//! Everything that can go wrong, as values.
//!
//! A bad request is an [`Error::Request`] that names the tensor, what it had to be and what it was; a shape
//! nobody compiled is [`Error::Unsupported`]; a machine that cannot run is [`Error::Driver`]; and what the
//! emulator or a device-side check found is [`Error::Fault`] or [`Error::Check`].

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

/// What a device-side check found: of all faults, the one that was claimed first. Nothing was written.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum CheckError {
    /// A sequence length below zero, or longer than its block-table row or the bound that the host gave.
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
    /// A sequence among the decodes that has another query token than the one of its number, or not one.
    #[error(
        "`num_decodes` is {num_decodes}, but `query_start_loc` gives sequence {seq} the query tokens {start}..{end}, \
         not the one token {seq}"
    )]
    NumDecodes {
        /// The sequence.
        seq: u32,
        /// Where its query tokens begin.
        start: i64,
        /// Where they end.
        end: i64,
        /// How many sequences are decodes.
        num_decodes: i64,
    },
    /// A slot outside the cache.
    #[error(
        "`slot_mapping[{}]` is {value}, outside 0..{num_slots} (negative slots are skipped)",
        of_layer(*.layer, *.token)
    )]
    Slot {
        /// The layer, if the slots have layers.
        layer: Option<u32>,
        /// The token.
        token: u32,
        /// The slot.
        value: i64,
        /// Slots in the cache.
        num_slots: i64,
    },
    /// Two tokens with the same slot.
    #[error("`slot_mapping` gives slot {slot} to two tokens, [{}] and [{}]", of_layer(*.layer, .tokens[0]), of_layer(*.layer, .tokens[1]))]
    SameSlot {
        /// The layer, if the slots have layers.
        layer: Option<u32>,
        /// The tokens, in order.
        tokens: [u32; 2],
        /// The slot.
        slot: i64,
    },
    /// A position that the table of angles does not have.
    #[error("`positions[{token}]` is {value}, outside 0..{num_positions}, the rows of `cos_sin`")]
    Position {
        /// The token.
        token: u32,
        /// The position.
        value: i64,
        /// Rows of the table.
        num_positions: i64,
    },
    /// A slot to gather that is outside the cache.
    #[error("`slots[{row}]` is {value}, outside 0..{num_slots} (negative slots are skipped)")]
    Index {
        /// The row.
        row: u32,
        /// The slot.
        value: i64,
        /// Slots in the cache.
        num_slots: i64,
    },
    /// Rows to gather that begin before 0, end before they begin, or end past the last.
    #[error(
        "`row_starts` gives sequence {seq} the rows {start}..{end}, which is no part of 0..{num_rows}"
    )]
    RowStart {
        /// The sequence.
        seq: u32,
        /// Where its rows begin.
        start: i64,
        /// Where they end.
        end: i64,
        /// Rows, all sequences.
        num_rows: i64,
    },
    /// A first token to gather that is below zero.
    #[error("`first_tokens[{seq}]` is {value}, below 0")]
    FirstToken {
        /// The sequence.
        seq: u32,
        /// The token.
        value: i64,
    },
    /// A sequence that the block table does not have.
    #[error("`seqs[{token}]` is {value}, outside 0..{num_seqs}, the rows of `block_table`")]
    Seq {
        /// Where in `seqs`.
        token: u32,
        /// The sequence.
        value: i64,
        /// Sequences.
        num_seqs: i64,
    },
    /// A token to gather that no entry of the block table names.
    #[error(
        "row {row} is token {value} of sequence {seq}, outside 0..{limit}, the tokens that a row of `block_table` names"
    )]
    Token {
        /// The row of the output.
        row: u32,
        /// The sequence.
        seq: u32,
        /// The token.
        value: i64,
        /// Tokens that the block table names.
        limit: i64,
    },
    /// A block to copy that is outside its cache.
    #[error(
        "`pairs[{pair}, {side}]` is {value}, outside 0..{num_blocks} (negative blocks are skipped)"
    )]
    Pair {
        /// The pair.
        pair: u32,
        /// 0 for the source, 1 for the target.
        side: u32,
        /// The block.
        value: i64,
        /// Blocks in the cache.
        num_blocks: i64,
    },
    /// Two pairs with the same target.
    #[error("`pairs[{}, 1]` and `pairs[{}, 1]` are both {block}: two copies to one block", .pairs[0], .pairs[1])]
    SameTarget {
        /// The pairs, in order.
        pairs: [u32; 2],
        /// The target.
        block: i64,
    },
    /// A target that is another pair's source in the same cache.
    #[error("`pairs[{pair}, 1]` is {block}, which is also the source `pairs[{other}, 0]`")]
    TargetIsSource {
        /// The pair whose target it is.
        pair: u32,
        /// The pair whose source it is.
        other: u32,
        /// The block.
        block: i64,
    },
    /// A scale that is zero, negative, infinite or NaN.
    #[error("`{name}[{index}]` is {value}, but a scale must be positive and finite")]
    Scale {
        /// Which scale.
        name: &'static str,
        /// KV head, or layer; 0 if they share one.
        index: u32,
        /// The scale.
        value: f32,
    },
    /// The same of a token and head.
    #[error(
        "`{name}[{block}, {slot}, {head}]` is {value}, but a scale must be positive and finite"
    )]
    TokenScale {
        /// Which scale.
        name: &'static str,
        /// Block of the cache.
        block: u32,
        /// Slot in the block.
        slot: u32,
        /// KV head.
        head: i64,
        /// The scale.
        value: f32,
    },
    /// What was read is no record: no check has run with this workspace.
    #[error("the check record begins with {kind:#x}, which is no fault: no check has written it")]
    NoRecord {
        /// Its first word.
        kind: u32,
    },
}

/// The index of a token in a tensor that may have layers.
fn of_layer(layer: Option<u32>, token: u32) -> String {
    match layer {
        Some(layer) => format!("{layer}, {token}"),
        None => token.to_string(),
    }
}
