//! Decode attention over a paged cache: one query token per sequence.
//!
//! For sequence `s` and query head `h` of KV head `g = h / num_queries_per_kv`,
//! `score[t] = softmax_scale * query[s, h] · key[t, g]` over the `seq_lens[s]` tokens that the block table
//! names, `out[s, h] = Σ softmax(score)[t] value[t, g]`, and `lse[s, h] = ln Σ exp(score[t])`. A sequence of
//! length 0 gives 0 and −inf, and so does one of which every score is −inf; a score that is NaN makes both NaN.
//! The query token is the last of its sequence; with a sliding window, a softcap, ALiBi or sinks, scores and sums
//! are those of unified attention for it.
//!
//! Over an FP8 cache the stored bytes are widened exactly, and the scales multiply sums: `q_scale * k_scale`
//! the score, `v_scale` the output (the probability, if every token has its own). Nothing is rounded twice, as it would be if keys and values were turned
//! into bf16 with their scale first.

use gpu_kernels::dtype::QueryDtype;
use gpu_kernels::entry::{Entry, Variant};

use super::kv_scales::{KvScales, check_scales};
use super::options::DecodeOptions;
use super::paged::PagedCache;
use super::shape::{AttentionShape, Query, Words, check_seq_lens, half_outputs, max_seq_len};
use crate::error::Result;
use crate::ops::checks::{count, grid_count};
use crate::plan::variants;
use crate::tensor::{TensorView, TensorViewMut};

/// What is wanted. Head sizes, group sizes and dtypes that were compiled: see
/// [`variants::decode_support`].
#[derive(Debug)]
pub struct DecodeRequest<'a> {
    /// `[num_seqs, num_query_heads, head_size]`, bf16 or f16, or fp8_e4m3 over an FP8 cache; any strides
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
    /// `[num_seqs]`, i32: tokens in the cache, this step's included. 0 is an empty sequence.
    pub seq_lens: TensorView<'a>,
    /// `[num_seqs, num_query_heads, head_size_v]`, the query's dtype, or bf16 or f16 for an FP8 query; any
    /// strides that are multiples of 4.
    pub out: TensorViewMut<'a>,
    /// `[num_seqs, num_query_heads]`, f32, natural logarithm; if wanted. One rule for all operations: it is −inf exactly
    /// if no key was attended to or every score is −inf, and NaN if a score is NaN.
    ///
    /// It is the largest score plus the logarithm of a sum of exponentials, in base 2 and then times ln 2. That
    /// logarithm is exact if the sum is a power of two, as it is for one key or for equal keys of such a number, and else
    /// off by 2^-22 at most, beside what f32 sums are rounded to. Then the largest score is added, and rounded to what an
    /// f32 of its size can hold.
    pub lse: Option<TensorViewMut<'a>>,
    /// Multiplies query · key; usually `1 / sqrt(head_size)`.
    ///
    /// Of all operations scores are right as far as f32 holds them. Query · key, with every part of its sum, may reach
    /// f32's largest number, 3.4e38, before anything multiplies it, and a score, of which log2 e times as much is kept,
    /// 2.35e38. What is larger is an infinity: a key with a score of −inf counts for nothing, and of a row with one of
    /// +inf neither output nor lse is finite. `softmax_scale` itself is positive and at most 2.35e38, with a softcap half
    /// of that: what is larger is refused. Scales that lie in device memory, those of an FP8 cache, multiply it there:
    /// the product has to be an f32, too.
    pub softmax_scale: f32,
    /// What an FP8 cache's values were divided by. There is no default: a scale that is silently 1 gives
    /// silently wrong results.
    pub scales: Option<KvScales<'a>>,
    /// The rest.
    pub options: DecodeOptions<'a>,
}

/// Where sequences' query tokens begin, and what the host said about it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Starts<'a> {
    /// `[num_seqs + 1]`, i32, contiguous.
    pub(super) table: TensorView<'a>,
    /// Query tokens, all sequences.
    pub(super) num_tokens: u32,
    /// Of a sequence, the most.
    pub(super) max_query_len: u32,
    /// The first so many sequences have the token of their number.
    pub(super) num_decodes: u32,
}

/// A request whose tensors agree with each other and with a compiled kernel.
#[derive(Debug)]
pub struct CheckedDecode<'a> {
    pub(super) request: DecodeRequest<'a>,
    /// `[num_seqs + 1]`, i32, contiguous: each sequence's row of query, output and lse, if it is not its number.
    pub(super) query_start_loc: Option<TensorView<'a>>,
    /// What a check looks at to know that the rows are those, if there is anything.
    pub(super) starts: Option<Starts<'a>>,
    /// Rows of query, output and lse.
    pub(super) num_tokens: u32,
    pub(super) shape: AttentionShape,
    /// The compiled kernel's most query heads per thread block.
    pub(super) heads_per_cta: u32,
    /// Whether the kernel is one with score mods.
    pub(super) ruled: bool,
    pub(super) stage1: &'static Entry,
}

static WORDS: Words = Words {
    query: "[num_seqs, num_query_heads, head_size]",
    out: "[num_seqs, num_query_heads, head_size_v]",
    lse: |shape| format!("[num_seqs, num_query_heads] = {shape:?}"),
    multiple: "a positive multiple",
};

impl<'a> DecodeRequest<'a> {
    /// Checks every tensor against the others, in the order of the fields.
    ///
    /// # Errors
    /// [`crate::error::RequestError`] naming the first tensor that does not fit; [`crate::error::Error::Unsupported`]
    /// for a head size that was not compiled.
    pub fn check(self) -> Result<CheckedDecode<'a>> {
        self.check_rows(None)
    }

    /// The same for sequences whose rows `query_start_loc` names, `[num_seqs + 1]`, i32, contiguous: each has the one
    /// that its start says, or none. There may be more rows than sequences.
    pub(super) fn check_rows(
        self,
        query_start_loc: Option<TensorView<'a>>,
    ) -> Result<CheckedDecode<'a>> {
        let query = Query::<3>::check(&WORDS, &self.query, QueryDtype::ALL)?;
        let [num_rows, ..] = query.shape;
        let num_seqs = query_start_loc
            .as_ref()
            .map_or(num_rows, |starts| starts.shape()[0] - 1);
        let (keys, values) = (&self.key_cache, &self.value_cache);
        let cache = PagedCache::check(keys, values, query.dtype, query.head_size())?;
        query.shares(cache.num_kv_heads)?;
        let bound = self.options.max_seq_len;
        let max_seq_len = max_seq_len(&self.block_table, num_seqs, cache.block_size, bound)?;
        check_seq_lens(&self.seq_lens, num_seqs)?;
        let out = query.outputs(
            self.out.view(),
            self.lse.as_ref().map(TensorViewMut::view),
            half_outputs(query.dtype),
            cache.head_size_v,
        )?;
        let mods = &self.options.score_mods;
        mods.check_scale(self.softmax_scale)?;
        let token_scales = check_scales(self.scales.as_ref(), query.dtype, &cache)?;
        mods.check(query.num_heads())?;

        let num_seqs = grid_count("num_seqs", num_seqs)?;
        let format = cache.format(token_scales);
        let shape = AttentionShape::new(&query, &cache, out, format, [num_seqs, max_seq_len])?;
        let ruled = query_start_loc.is_some() || mods.given().is_some();
        let stage1 = variants::decode_entry(
            format,
            (shape.head_size, shape.head_size_v),
            shape.num_queries_per_kv(),
            ruled,
        )?;
        let Variant::DecodeGqa { heads_per_cta, .. } = stage1.variant else {
            unreachable!("decode_entry returns decode variants");
        };
        Ok(CheckedDecode {
            query_start_loc,
            starts: None,
            num_tokens: count("num_tokens", num_rows)?,
            shape,
            heads_per_cta,
            ruled,
            stage1,
            request: self,
        })
    }
}
