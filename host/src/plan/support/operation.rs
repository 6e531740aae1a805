//! The operations of the support matrix, and what its columns do not say about them.

use gpu_kernels::entry::EntryId;

use super::role::{any, supports};
use super::{Role, Sizes};

/// An operation, in the order of the matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operation {
    /// [`crate::ops::DecodeRequest`]
    Decode,
    /// [`crate::ops::UnifiedRequest`]
    UnifiedAttention,
    /// [`crate::ops::DecodeMlaRequest`]
    DecodeMla,
    /// [`crate::ops::DecodeMlaEntryRequest`]
    DecodeMlaEntry,
    /// [`crate::ops::CacheWriteRequest`]
    ReshapeAndCacheFlash,
    /// [`crate::ops::RopeAndCacheRequest`]
    RopeAndCache,
    /// [`crate::ops::ConcatAndCacheMlaRequest`], [`crate::ops::ConcatAndCacheMlaGroupedRequest`]
    ConcatAndCacheMla,
    /// [`crate::ops::GatherRequest`]
    Gather,
    /// [`crate::ops::CopyBlocksRequest`]
    CopyBlocks,
    /// [`crate::ops::CompactRequest`]
    Compact,
}

impl Operation {
    /// All of them, in order.
    pub const ALL: [Self; 10] = [
        Self::Decode,
        Self::UnifiedAttention,
        Self::DecodeMla,
        Self::DecodeMlaEntry,
        Self::ReshapeAndCacheFlash,
        Self::RopeAndCache,
        Self::ConcatAndCacheMla,
        Self::Gather,
        Self::CopyBlocks,
        Self::Compact,
    ];

    /// As errors and the command line call it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Decode => "decode",
            Self::UnifiedAttention => "unified_attention",
            Self::DecodeMla => "decode_mla",
            Self::DecodeMlaEntry => "decode_mla_entry",
            Self::ReshapeAndCacheFlash => "reshape_and_cache_flash",
            Self::RopeAndCache => "rope_and_cache",
            Self::ConcatAndCacheMla => "concat_and_cache_mla",
            Self::Gather => "gather",
            Self::CopyBlocks => "copy_blocks",
            Self::Compact => "compact",
        }
    }

    /// What it does, and what else it takes.
    pub const fn note(self) -> &'static str {
        match self {
            Self::Decode => {
                "split-KV decode attention, MHA, MQA and GQA with any number of query heads per KV head. `block_size` any \
                 multiple of 8; NHD, HND, packed K and V, cross-layer, through strides; ragged lengths, 0 included; \
                 `sliding_window`, `softcap`, ALiBi, `sinks`; lse. The output has the query's dtype; for an FP8 query, \
                 bf16 or f16. Scales lie in device memory."
            }
            Self::UnifiedAttention => {
                "prefills, chunks and decodes in one call. As `decode`, and causal or not, sequence by sequence if need \
                 be; any output may be fp8_e4m3 (`output_scale`)."
            }
            Self::DecodeMla => {
                "decode attention over latent (MLA) caches: a row's first columns are its values. Any number of query heads \
                 and query tokens, causal; one scale for latent and RoPE part; outputs as of `decode`; lse."
            }
            Self::DecodeMlaEntry => {
                "MLA decode over FP8 entries. All tokens, or top-k indices and a second list over a second cache (sliding \
                 window), with lengths; any number of query heads and query tokens; `sinks`; lse."
            }
            Self::ReshapeAndCacheFlash => {
                "writes new keys and values. Any block size and strides; slots below 0 are skipped. FP8 input is copied, \
                 whatever scales are given; scales per token and KV head are computed and stored."
            }
            Self::RopeAndCache => {
                "rotates queries and keys, and writes keys and values. NeoX and GPT-J, any even part of a head, table in \
                 f32 or the input's dtype. The output is the queries, in place, elsewhere or left out: in the input's dtype, or \
                 over an FP8 cache in fp8_e4m3."
            }
            Self::ConcatAndCacheMla => {
                "writes latents and RoPE keys: one layer, or (but for entries and pages) many in one launch, each with a scale \
                 of its own."
            }
            Self::Gather => {
                "rows by block table, last tokens, top-k indices or slots; −1 and what lies outside is skipped. The raw \
                 copy takes AMD's FP8 as u8."
            }
            Self::CopyBlocks => {
                "whole blocks (`swap_blocks`, too): within a cache, between two, between tables of caches; either side \
                 in pinned host memory."
            }
            Self::Compact => {
                "the blocks that block tables or slots refer to, into a cache of their own; references renamed."
            }
        }
    }
}

/// What a kernel is for that is the only one of its kind.
///
/// # Panics
/// If it is not described here: a test looks at all kernels.
pub(super) fn only(id: EntryId) -> Role {
    match id {
        EntryId::copy_blocks => supports(Operation::CopyBlocks, any(), Sizes::Any),
        EntryId::schedule => Role::Assists(&[
            Operation::Decode,
            Operation::UnifiedAttention,
            Operation::DecodeMla,
        ]),
        EntryId::check_pairs => Role::Assists(&[Operation::CopyBlocks]),
        EntryId::check_lists => Role::Assists(&[Operation::DecodeMlaEntry]),
        EntryId::compact_mark
        | EntryId::compact_number
        | EntryId::compact_rename
        | EntryId::check_compact => Role::Assists(&[Operation::Compact]),
        other => panic!("{} has no role", other.entry().name),
    }
}
