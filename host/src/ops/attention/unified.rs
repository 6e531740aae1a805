//! Attention of any number of query tokens per sequence over a paged cache: prefills, chunks of prefills and
//! decodes, in one call.
//!
//! Sequence `s` has the query tokens `query_start_loc[s] .. query_start_loc[s + 1]`, which are the last of its
//! `seq_lens[s]` tokens: query token `t` of them stands at position `seq_lens[s] - query_len + t`. For query head
//! `h` of KV head `g = h / num_queries_per_kv`, `score[k] = softmax_scale * query[t, h] · key[k, g]`, then
//! `softcap * tanh(score / softcap)`, then plus ALiBi's bias, over the keys that the token sees:
//!
//! - with `causal`, or its sequence's flag, those up to its own position;
//! - with `sliding_window`, the last so many of them (without `causal`, those less than so far away).
//!
//! `out[t, h] = Σ softmax(score)[k] value[k, g]`, `lse[t, h] = ln Σ exp(score[k])`. With `sinks`, `exp(sinks[h])` is
//! added to the sum: to the denominator, and to the lse. A token that sees no key gives 0, and −inf or its
//! sink. Query tokens past the last sequence's, as a captured graph has, are left alone.
//!
//! Over a cache of bytes, stored values are widened exactly and scales multiply sums, as in decode. (One case is less
//! exact, and faster: [`UnifiedOptions::f32_scores`].)

use gpu_kernels::entry::Entry;

use super::decode::{CheckedDecode, Starts};
use super::kv_scales::KvScales;
use super::options::UnifiedOptions;
use super::shape::AttentionShape;
use crate::tensor::{TensorView, TensorViewMut};

/// What is wanted. Dtypes and head sizes that were compiled: see [`crate::plan::variants::prefill_support`].
#[derive(Debug)]
pub struct UnifiedRequest<'a> {
    /// `[num_tokens, num_query_heads, head_size]`, bf16 or f16, or fp8_e4m3 over a cache of bytes; any strides
    /// that are multiples of 2.
    pub query: TensorView<'a>,
    /// `[num_blocks, block_size, num_kv_heads, head_size]`, the query's dtype, or FP8 or (with a scale for
    /// every token and head) i8: see [`support`](crate::plan::support). Any in memory whose last dimension is contiguous and
    /// whose strides are multiples of 16 bytes. `block_size` is a multiple of 8.
    pub key_cache: TensorView<'a>,
    /// `[num_blocks, block_size, num_kv_heads, head_size_v]`, as `key_cache`.
    pub value_cache: TensorView<'a>,
    /// `[num_seqs, max_num_blocks_per_seq]`, i32. Entries past a sequence's last block are not read.
    pub block_table: TensorView<'a>,
    /// `[num_seqs + 1]`, i32, contiguous: first query token of each sequence, in order, and the end of the
    /// last. Cut to `num_tokens`.
    pub query_start_loc: TensorView<'a>,
    /// `[num_seqs]`, i32: tokens in the cache, this step's included. 0 is an empty sequence.
    pub seq_lens: TensorView<'a>,
    /// `[num_tokens, num_query_heads, head_size_v]`, the query's dtype, or bf16 or f16 for an FP8 query, or
    /// fp8_e4m3 with [`UnifiedOptions::output_scale`]; any strides that are multiples of 4.
    pub out: TensorViewMut<'a>,
    /// `[num_tokens, num_query_heads]`, f32, natural logarithm; if wanted. As [`super::DecodeRequest::lse`] says, and how near.
    pub lse: Option<TensorViewMut<'a>>,
    /// Multiplies query · key; usually `1 / sqrt(head_size)`. How large it, and what it multiplies, may be:
    /// [`super::DecodeRequest::softmax_scale`].
    pub softmax_scale: f32,
    /// What a cache of bytes was divided by. There is no default: a scale that is silently 1 gives silently
    /// wrong results.
    pub scales: Option<KvScales<'a>>,
    /// The rest.
    pub options: UnifiedOptions<'a>,
}

/// A request whose tensors agree with each other and with a compiled kernel.
#[derive(Debug)]
pub struct CheckedUnified<'a> {
    pub(super) request: UnifiedRequest<'a>,
    /// The sequences that take the decode kernels.
    pub(super) decodes: Option<CheckedDecode<'a>>,
    pub(super) num_decodes: u32,
    pub(super) starts: Starts<'a>,
    pub(super) num_tokens: u32,
    pub(super) shape: AttentionShape,
    pub(super) prefill: &'static Entry,
    /// Whether every row of query and output is aligned to 16 bytes, as the kernels of warp groups want it.
    pub(super) in_chunks: bool,
}
