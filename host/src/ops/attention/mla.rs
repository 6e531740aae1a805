//! Decode attention over a paged latent (MLA) cache: one row per token, shared by all query heads.
//!
//! For query token `t` of sequence `s` and query head `h`, `score[i] = softmax_scale * query[s, t, h] · row[i]` over
//! the first `seq_lens[s] - (query_len - 1 - t)` rows that the block table names, and
//! `out[s, t, h] = Σ softmax(score)[i] row[i][..head_size_v]`: the values are the first columns of the keys, read
//! once. A query token that sees nothing gives 0 and an lse of −inf.
//!
//! `softmax_scale` belongs to the model, not to the row: with the usual heads of 128 + 64 values it is
//! `1 / sqrt(192)`, not `1 / sqrt(576)`. Over an FP8 cache the one scale of the rows multiplies score and output.

use gpu_kernels::dtype::QueryDtype;
use gpu_kernels::entry::Entry;

use super::kv_scales::{MlaScales, check_latent_scales};
use super::options::DecodeOptions;
use super::paged::PagedCache;
use super::shape::{AttentionShape, Query, Words, check_seq_lens, half_outputs, max_seq_len};
use crate::error::Result;
use crate::ops::checks::{count, grid_count};
use crate::plan::variants;
use crate::tensor::{TensorView, TensorViewMut};

/// What is wanted. Row sizes that were compiled: see [`variants::decode_mla_support`].
#[derive(Debug)]
pub struct DecodeMlaRequest<'a> {
    /// `[num_seqs, query_len, num_query_heads, head_size]`, bf16 or f16, or fp8_e4m3 over an FP8 cache; any strides
    /// that are multiples of 2.
    pub query: TensorView<'a>,
    /// `[num_blocks, block_size, head_size]`, the query's dtype, or FP8 (see [`support`](crate::plan::support)): each
    /// row the latent, then the rotary part. Strides are multiples of 16 bytes; `block_size` is a multiple of 8.
    pub cache: TensorView<'a>,
    /// `[num_seqs, max_num_blocks_per_seq]`, i32. Entries past a sequence's last block are not read.
    pub block_table: TensorView<'a>,
    /// `[num_seqs]`, i32: tokens in the cache, this step's included. 0 is an empty sequence.
    pub seq_lens: TensorView<'a>,
    /// `[num_seqs, query_len, num_query_heads, head_size_v]`, the query's dtype, or bf16 or f16 for an FP8 query;
    /// `head_size_v` is the size of the latent. Any strides that are multiples of 4.
    pub out: TensorViewMut<'a>,
    /// `[num_seqs, query_len, num_query_heads]`, f32, natural logarithm; if wanted. As [`super::DecodeRequest::lse`]
    /// says, and how near.
    pub lse: Option<TensorViewMut<'a>>,
    /// Multiplies query · row. How large it, and what it multiplies, may be: [`super::DecodeRequest::softmax_scale`].
    pub softmax_scale: f32,
    /// What an FP8 cache was divided by. There is no default.
    pub scales: Option<MlaScales<'a>>,
    /// The rest.
    pub options: DecodeOptions<'a>,
}

/// A request whose tensors agree with each other and with a compiled kernel.
#[derive(Debug)]
pub struct CheckedDecodeMla<'a> {
    pub(super) request: DecodeMlaRequest<'a>,
    /// The kernel for few rows.
    pub(super) narrow: &'static Entry,
    pub(super) query_len: u32,
    pub(super) shape: AttentionShape,
}

/// Of all decodes over latent caches.
pub(super) const WORDS: Words = Words {
    query: "[num_seqs, query_len, num_query_heads, head_size]",
    out: "[num_seqs, query_len, num_query_heads, head_size_v]",
    lse: |shape| format!("[num_seqs, query_len, num_query_heads] = {shape:?}"),
    multiple: "a positive multiple",
};

impl<'a> DecodeMlaRequest<'a> {
    /// Checks every tensor against the others, in the order of the fields.
    ///
    /// # Errors
    /// [`crate::error::RequestError`] naming the first tensor that does not fit; [`crate::error::Error::Unsupported`]
    /// for a row size that was not compiled.
    pub fn check(self) -> Result<CheckedDecodeMla<'a>> {
        let query = Query::<4>::check(&WORDS, &self.query, QueryDtype::ALL)?;
        let [num_seqs, query_len, num_query_heads, head_size] = query.shape;
        query.has_rows()?;
        let cache = PagedCache::check_latent(&self.cache, query.dtype, head_size)?;
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
        check_latent_scales(self.scales.as_ref(), query.dtype, &cache)?;
        self.options.score_mods.refuse("MLA decode")?;

        let num_seqs = grid_count("num_seqs", num_seqs)?;
        let format = cache.format(false);
        let shape = AttentionShape::new(&query, &cache, out, format, [num_seqs, max_seq_len])?;
        let kernels = variants::decode_mla_entries(format, shape.head_size, shape.head_size_v)?;
        count(
            "query_len * num_query_heads",
            query_len.saturating_mul(num_query_heads),
        )?;
        Ok(CheckedDecodeMla {
            narrow: kernels[0].0,
            query_len: grid_count("query_len", query_len)?,
            shape,
            request: self,
        })
    }
}
