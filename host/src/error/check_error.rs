//! What a check on the device finds.

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
    /// A slot to gather, or to keep, that is outside the cache.
    #[error(
        "`slots[{}]` is {value}, outside 0..{num_slots} (negative slots are skipped)",
        of_list(*.row, *.position)
    )]
    Index {
        /// The row.
        row: u32,
        /// Where in the row, if the slots have two indices.
        position: Option<u32>,
        /// The slot.
        value: i64,
        /// Slots in the cache.
        num_slots: i64,
    },
    /// An index of a list that is outside the cache, or is a token that the block table does not name.
    #[error(
        "`{list}[{seq}, {token}, {position}]` is {value}, outside 0..{limit} (negative indices are skipped)"
    )]
    ListIndex {
        /// Which list.
        list: &'static str,
        /// The sequence.
        seq: u32,
        /// Its query token.
        token: u32,
        /// Where in the token's list.
        position: u32,
        /// The index.
        value: i64,
        /// Slots of the cache, or tokens that a row of the block table names.
        limit: i64,
    },
    /// More indices that count than there are, or fewer than none.
    #[error("`{length}` of query token {token} of sequence {seq} is {value}, outside 0..={limit}")]
    ListLength {
        /// Which lengths.
        length: &'static str,
        /// The sequence.
        seq: u32,
        /// Its query token.
        token: u32,
        /// The length.
        value: i64,
        /// Indices of a query token.
        limit: i64,
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

/// The index of an element in a row of a tensor, or in one that has no rows.
fn of_list(row: u32, position: Option<u32>) -> String {
    match position {
        Some(position) => format!("{row}, {position}"),
        None => row.to_string(),
    }
}

/// The index of a token in a tensor that may have layers.
fn of_layer(layer: Option<u32>, token: u32) -> String {
    match layer {
        Some(layer) => format!("{layer}, {token}"),
        None => token.to_string(),
    }
}
