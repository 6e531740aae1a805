//! Arguments of the device-side checks, and the record in which they report.

use crate::params::{KernelParams, MaskParams};

/// What a check found, in device memory: the first fault that was claimed, or `kind` 0.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CheckFault {
    /// 0: none; else one of the constants of this type, which say what the other numbers are.
    pub kind: u32,
    /// Sequence, token, row or pair.
    pub row: u32,
    /// Position within the row; 0 where there is none.
    pub position: u32,
    /// Of a scale, which it is: one of the constants below. Of an index list the query token. Else 0.
    pub tensor: u32,
    /// What was found.
    pub value: i64,
    /// What it had to stay below.
    pub limit: i64,
}

impl CheckFault {
    /// A sequence length below zero or above what its block-table row can name, which is `limit`.
    pub const SEQ_LEN: u32 = 1;
    /// An entry of the block table outside the cache.
    pub const BLOCK_ID: u32 = 2;
    /// A slot outside the cache. `position` is one more than the layer, or 0 if there is one layer.
    pub const SLOT: u32 = 3;
    /// A scale that is not positive and finite: `value` its bits, `row` its index.
    pub const SCALE: u32 = 4;
    /// A slot of a list, of a gather or a compaction, that is outside the cache. `position` is one more than the second
    /// index, or 0 if there is but one.
    pub const INDEX: u32 = 5;
    /// Query tokens of a sequence that begin before 0, end before they begin, or end past the last: `position` is the
    /// end, an i32, `value` the beginning.
    pub const QUERY_START: u32 = 6;
    /// More query tokens in a sequence than the host said.
    pub const QUERY_LEN: u32 = 7;
    /// A sequence among the first `limit` whose query token is not the one of its number: as `QUERY_START`.
    pub const NUM_DECODES: u32 = 8;
    /// The scale of a token and head that is not positive and finite: `row` is the block, `position` the slot in it,
    /// `limit` the head, `value` the bits.
    pub const TOKEN_SCALE: u32 = 9;
    /// Tokens `row` and `position` have the same slot, `value`. `limit` is one more than the layer, or 0.
    pub const SAME_SLOT: u32 = 10;
    /// A position that the table of angles does not have.
    pub const POSITION: u32 = 11;
    /// Rows of a gather: as `QUERY_START`.
    pub const ROW_START: u32 = 12;
    /// A first token below zero.
    pub const FIRST_TOKEN: u32 = 13;
    /// A sequence that the block table does not have.
    pub const SEQ: u32 = 14;
    /// A token, `value`, of sequence `position`, that its row of the block table does not name.
    pub const TOKEN: u32 = 15;
    /// A block of a pair outside its cache: `position` 0 is the source, 1 the target.
    pub const PAIR: u32 = 16;
    /// Pairs `row` and `position` have the same target, `value`.
    pub const SAME_TARGET: u32 = 17;
    /// The target of pair `row`, `value`, is the source of pair `position`.
    pub const TARGET_IS_SOURCE: u32 = 18;
    /// An index outside the cache, or outside what a row of the block table names: `row` is the sequence, `tensor` the
    /// query token, `position` the place in its list.
    pub const TOPK_INDEX: u32 = 19;
    /// The same in the second list.
    pub const WINDOW_INDEX: u32 = 20;
    /// How many indices of a list count, below zero or above those that there are, which is `limit`: `row` and `tensor`
    /// as of an index.
    pub const TOPK_LENGTH: u32 = 21;
    /// The same of the second list.
    pub const WINDOW_LENGTH: u32 = 22;

    /// Of queries.
    pub const Q_SCALE: u32 = 0;
    /// Of keys.
    pub const K_SCALE: u32 = 1;
    /// Of values.
    pub const V_SCALE: u32 = 2;
    /// Of the output.
    pub const OUTPUT_SCALE: u32 = 3;
    /// Of a cache's entries.
    pub const ENTRY_SCALE: u32 = 4;
    /// Of the entries of several layers' caches.
    pub const LAYER_SCALES: u32 = 5;

    /// No fault.
    pub const NONE: Self = Self {
        kind: 0,
        row: 0,
        position: 0,
        tensor: 0,
        value: 0,
        limit: 0,
    };
}

const _: () = assert!(size_of::<CheckFault>() == 32);

/// Scales that have to be positive and finite.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ScaleList {
    /// `[count]`, f32.
    pub address: u64,
    /// From one to the next.
    pub stride: i64,
    /// How many; 0 for no list.
    pub count: u32,
    /// As in [`CheckFault::tensor`].
    pub tensor: u32,
}

impl ScaleList {
    /// No scales.
    pub const NONE: Self = Self {
        address: 0,
        stride: 0,
        count: 0,
        tensor: 0,
    };
}

const _: () = assert!(size_of::<ScaleList>() == 24);

/// The same with one for each token and KV head of a paged cache.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct TokenScaleList {
    /// `[num_blocks, block_size, num_kv_heads]`, f32; 0 for no list.
    pub address: u64,
    /// From a block's scales to the next block's.
    pub stride_block: i64,
    /// From a token's scales to the next in its block.
    pub stride_slot: i64,
    /// From a head's scale to the next.
    pub stride_head: i64,
}

impl TokenScaleList {
    /// No scales.
    pub const NONE: Self = Self {
        address: 0,
        stride_block: 0,
        stride_slot: 0,
        stride_head: 0,
    };
}

/// Arguments of `check_paged`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct CheckPagedParams {
    /// `[num_seqs, max_num_blocks_per_seq]`, i32.
    pub block_table: u64,
    /// `[num_seqs]`, i32.
    pub seq_lens: u64,
    /// One [`CheckFault`], all zero before the launch.
    pub check: u64,
    /// `[num_seqs + 1]`, i32, contiguous: first query token of each sequence; 0 if each has `query_len`.
    pub query_start_loc: u64,
    /// From a row of the block table to the next.
    pub stride_block_table: i64,
    /// From a sequence's length to the next one's.
    pub stride_seq_lens: i64,
    /// Blocks in the cache.
    pub num_blocks: i64,
    /// Those of queries, keys, values and the output, as far as there are any.
    pub scales: [ScaleList; 4],
    /// Of keys and of values, if every token has its own: those of tokens that a query sees are looked at.
    pub token_scales: [TokenScaleList; 2],
    /// Sequences.
    pub num_seqs: u32,
    /// Tokens per cache block.
    pub block_size: u32,
    /// Tokens that a row of the block table can name.
    pub max_seq_len: u32,
    /// KV heads, of which each token has a scale.
    pub num_kv_heads: u32,
    /// Query tokens, all sequences.
    pub num_tokens: u32,
    /// The most query tokens of a sequence.
    pub max_query_len: u32,
    /// Query tokens of each sequence, if `query_start_loc` does not say.
    pub query_len: u32,
    /// The first so many sequences have the one query token of their number.
    pub num_decodes: u32,
    /// As in [`super::ScoreParams`].
    pub mask: MaskParams,
    /// Thread blocks that share out the blocks of a sequence.
    pub num_parts: u32,
    /// Zero; keeps the size a multiple of 8.
    pub reserved: [u32; MaskParams::reserved(9)],
}

const _: () = assert!(
    size_of::<CheckPagedParams>()
        == 7 * 8 + 4 * 24 + 2 * 32 + size_of::<MaskParams>() + (9 + MaskParams::reserved(9)) * 4
);
// SAFETY: repr(C), Copy; the size above is the sum of the fields, so there is no padding.
unsafe impl KernelParams for CheckPagedParams {}

/// Arguments of `check_slots`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct CheckSlotsParams {
    /// `[num_layers, num_tokens]`, i64.
    pub slot_mapping: u64,
    /// One [`CheckFault`], all zero before the launch.
    pub check: u64,
    /// `[num_layers, seen_mask + 1]`, u32, all zero before the launch: a hash table of the tokens by their slots, with
    /// room for twice as many.
    pub seen: u64,
    /// `[num_tokens]`, i64: rows of a table of angles; 0 if there is none.
    pub positions: u64,
    /// `num_blocks * block_size`: slots stay below it.
    pub num_slots: i64,
    /// Rows of the table of angles: positions stay below it.
    pub num_positions: i64,
    /// From a layer's slots to the next layer's; the layer is the grid's y.
    pub stride_layer: i64,
    /// What is written is divided by these.
    pub scales: [ScaleList; 3],
    /// Tokens.
    pub num_tokens: u32,
    /// A power of two less one.
    pub seen_mask: u32,
    /// 1 if `slot_mapping` has a dimension of layers.
    pub has_layers: u32,
    /// 1 if tokens with a negative slot have a position, too: their queries are rotated.
    pub all_positions: u32,
}

const _: () = assert!(size_of::<CheckSlotsParams>() == 7 * 8 + 3 * 24 + 4 * 4);
// SAFETY: repr(C), Copy; the size above is the sum of the fields, so there is no padding.
unsafe impl KernelParams for CheckSlotsParams {}
