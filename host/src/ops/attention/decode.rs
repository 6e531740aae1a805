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

use gpu_kernels::dtype::HalfDtype;
use gpu_kernels::entry::{Entry, Variant};
use gpu_kernels::kv::CacheDtype;
use gpu_kernels::tile::QueryDtype;

use super::paged::{KvScales, check_scales};
use super::score_mods::{AlibiSlopes, ScoreOptions};
use crate::error::{RequestError, Result};
use crate::ops::checks::{count, grid_count, named, scale, slot_stride_fits};
use crate::ops::device_check::CheckMode;
use crate::plan::{SplitPolicy, variants};
use crate::tensor::{Dtype, TensorView, TensorViewMut};

/// What is wanted. Head sizes, group sizes and dtypes that were compiled: see
/// [`variants::decode_support`].
#[derive(Debug)]
pub struct DecodeRequest<'a> {
    /// `[num_seqs, num_query_heads, head_size]`, bf16 or f16, or fp8_e4m3 over an FP8 cache; any strides
    /// that are multiples of 2.
    pub query: TensorView<'a>,
    /// `[num_blocks, block_size, num_kv_heads, head_size]`, the query's dtype, or fp8_e4m3, fp8_e5m2
    /// or (with a scale for every token and head) i8; any in memory whose last dimension is contiguous and whose strides are multiples of 16 bytes. `block_size` is a
    /// multiple of 8.
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
    /// `[num_seqs, num_query_heads]`, f32, natural logarithm; if wanted.
    pub lse: Option<TensorViewMut<'a>>,
    /// Multiplies query · key; usually `1 / sqrt(head_size)`.
    pub softmax_scale: f32,
    /// What an FP8 cache's values were divided by. There is no default: a scale that is silently 1 gives
    /// silently wrong results.
    pub scales: Option<KvScales<'a>>,
    /// The rest.
    pub options: DecodeOptions<'a>,
}

/// What most callers leave as it is.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct DecodeOptions<'a> {
    /// Keys that a query sees, itself included; all, if there is none. Keys before are not read, nor are the
    /// block-table entries of blocks that hold nothing else.
    pub sliding_window: Option<u32>,
    /// Scores become `softcap * tanh(score / softcap)`; at most 1e18.
    pub softcap: Option<f32>,
    /// A bias that grows with the distance.
    pub alibi: Option<AlibiSlopes<'a>>,
    /// `[num_query_heads]`, f32: scores of a key that has no value. They count in the lse too.
    pub sinks: Option<TensorView<'a>>,
    /// An upper bound of `seq_lens`, if the host knows one below `max_num_blocks_per_seq * block_size`:
    /// the split is made for it. Longer sequences are cut to it.
    pub max_seq_len: Option<u32>,
    /// How the KV range is split over thread blocks.
    pub split_policy: SplitPolicy,
    /// Whether `block_table`, `seq_lens` and scales are checked on the device first. Where each token has scales of its
    /// own, those of all tokens that a query sees are read once more for it.
    pub check: CheckMode,
}

impl<'a> DecodeOptions<'a> {
    /// See [`DecodeOptions::sliding_window`].
    #[must_use]
    pub fn sliding_window(mut self, keys: u32) -> Self {
        self.sliding_window = Some(keys);
        self
    }
    /// See [`DecodeOptions::softcap`].
    #[must_use]
    pub fn softcap(mut self, softcap: f32) -> Self {
        self.softcap = Some(softcap);
        self
    }
    /// See [`DecodeOptions::alibi`].
    #[must_use]
    pub fn alibi(mut self, alibi: AlibiSlopes<'a>) -> Self {
        self.alibi = Some(alibi);
        self
    }
    /// See [`DecodeOptions::sinks`].
    #[must_use]
    pub fn sinks(mut self, sinks: TensorView<'a>) -> Self {
        self.sinks = Some(sinks);
        self
    }
    /// See [`DecodeOptions::max_seq_len`].
    #[must_use]
    pub fn max_seq_len(mut self, tokens: u32) -> Self {
        self.max_seq_len = Some(tokens);
        self
    }
    /// See [`DecodeOptions::split_policy`].
    #[must_use]
    pub fn split_policy(mut self, policy: SplitPolicy) -> Self {
        self.split_policy = policy;
        self
    }
    /// See [`DecodeOptions::check`].
    #[must_use]
    pub fn check(mut self, mode: CheckMode) -> Self {
        self.check = mode;
        self
    }
    /// Those about scores.
    pub(super) fn scores(&self) -> ScoreOptions<'a> {
        ScoreOptions {
            sliding_window: self.sliding_window,
            softcap: self.softcap,
            alibi: self.alibi,
            sinks: self.sinks,
        }
    }
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
    /// Of the output.
    pub(super) dtype: HalfDtype,
    pub(super) query_dtype: QueryDtype,
    /// Bytes per value of the cache.
    pub(super) cache_bytes: u32,
    /// Whether every token and head has scales of its own.
    pub(super) token_scales: bool,
    pub(super) num_seqs: u32,
    pub(super) num_query_heads: u32,
    pub(super) num_kv_heads: u32,
    pub(super) head_size: u32,
    pub(super) head_size_v: u32,
    pub(super) block_size: u32,
    pub(super) num_blocks: i64,
    pub(super) max_seq_len: u32,
    /// The compiled kernel's most query heads per thread block.
    pub(super) heads_per_cta: u32,
    /// Whether the kernel is one with a rule.
    pub(super) ruled: bool,
    pub(super) stage1: &'static Entry,
}

impl<'a> DecodeRequest<'a> {
    /// Checks every tensor against the others, in the order of the fields.
    ///
    /// # Errors
    /// [`RequestError`] naming the first tensor that does not fit; [`crate::error::Error::Unsupported`] for a head size
    /// that was not compiled.
    pub fn check(self) -> Result<CheckedDecode<'a>> {
        self.check_rows(None)
    }

    /// The same for sequences whose rows `query_start_loc` names, `[num_seqs + 1]`, i32, contiguous: each has the one
    /// that its start says, or none. There may be more rows than sequences.
    pub(super) fn check_rows(
        self,
        query_start_loc: Option<TensorView<'a>>,
    ) -> Result<CheckedDecode<'a>> {
        let query = named("query", &self.query);
        let query_dtype = query.dtype(&[Dtype::Bf16, Dtype::F16, Dtype::F8E4m3])?;
        let [num_rows, num_query_heads, head_size] =
            query.rank("[num_seqs, num_query_heads, head_size]")?;
        let num_seqs = query_start_loc
            .as_ref()
            .map_or(num_rows, |starts| starts.shape()[0] - 1);
        query.strides(2)?;
        query.aligned(2 * query_dtype.size())?;

        let key_cache = named("key_cache", &self.key_cache);
        let cache_dtype = match query_dtype {
            Dtype::F8E4m3 => key_cache.dtype(&[Dtype::F8E4m3, Dtype::F8E5m2, Dtype::I8])?,
            _ => key_cache.dtype(&[query_dtype, Dtype::F8E4m3, Dtype::F8E5m2, Dtype::I8])?,
        };
        let chunk = 16 / cache_dtype.size();
        let form = "[num_blocks, block_size, num_kv_heads, head_size]";
        let [num_blocks, block_size, num_kv_heads, key_size] = key_cache.rank(form)?;
        if block_size == 0 || block_size % 8 != 0 {
            return Err(RequestError::Value {
                name: "block_size",
                expected: "a multiple of 8, at least 8".into(),
                got: block_size.to_string(),
            }
            .into());
        }
        if key_size != head_size {
            key_cache.shape(form, &[num_blocks, block_size, num_kv_heads, head_size])?;
        }
        if num_kv_heads == 0 || num_query_heads % num_kv_heads != 0 || num_query_heads == 0 {
            return Err(RequestError::Value {
                name: "num_query_heads",
                expected: format!("a positive multiple of num_kv_heads = {num_kv_heads}"),
                got: num_query_heads.to_string(),
            }
            .into());
        }
        key_cache.strides(chunk)?;
        slot_stride_fits("key_cache", &self.key_cache)?;
        key_cache.aligned(16)?;

        let value_cache = named("value_cache", &self.value_cache);
        value_cache.dtype(&[cache_dtype])?;
        let form = "[num_blocks, block_size, num_kv_heads, head_size_v]";
        let [_, _, _, head_size_v] = value_cache.rank(form)?;
        value_cache.shape(form, &[num_blocks, block_size, num_kv_heads, head_size_v])?;
        value_cache.strides(chunk)?;
        slot_stride_fits("value_cache", &self.value_cache)?;
        value_cache.aligned(16)?;

        let block_table = named("block_table", &self.block_table);
        block_table.dtype(&[Dtype::I32])?;
        let form = "[num_seqs, max_num_blocks_per_seq]";
        let [rows, max_num_blocks_per_seq] = block_table.rank(form)?;
        if rows != num_seqs {
            block_table.shape(form, &[num_seqs, max_num_blocks_per_seq])?;
        }
        block_table.strides(1)?;
        block_table.aligned(4)?;
        let nameable = max_num_blocks_per_seq.saturating_mul(block_size);
        let max_seq_len = match self.options.max_seq_len {
            Some(max_seq_len) if max_seq_len as usize > nameable => {
                let blocks = (max_seq_len as usize).div_ceil(block_size);
                return Err(block_table
                    .wrong_shape(format!(
                        "{form} with at least {blocks} blocks of {block_size} tokens for max_seq_len {max_seq_len}"
                    ))
                    .into());
            }
            Some(max_seq_len) => max_seq_len,
            None => count("max_num_blocks_per_seq * block_size", nameable)?,
        };

        let seq_lens = named("seq_lens", &self.seq_lens);
        seq_lens.dtype(&[Dtype::I32])?;
        seq_lens.shape("[num_seqs]", &[num_seqs])?;
        seq_lens.strides(1)?;
        seq_lens.aligned(4)?;

        let out = named("out", self.out.view());
        let out_dtype = match query_dtype {
            Dtype::F8E4m3 => out.dtype(&[Dtype::Bf16, Dtype::F16])?,
            _ => out.dtype(&[query_dtype])?,
        };
        out.shape(
            "[num_seqs, num_query_heads, head_size_v]",
            &[num_rows, num_query_heads, head_size_v],
        )?;
        out.strides(4)?;
        out.aligned(8)?;
        if let Some(lse) = &self.lse {
            let lse = named("lse", lse.view());
            lse.dtype(&[Dtype::F32])?;
            lse.shape("[num_seqs, num_query_heads]", &[num_rows, num_query_heads])?;
            lse.no_negative_strides()?;
            lse.aligned(4)?;
        }
        scale("softmax_scale", self.softmax_scale)?;
        let scores = self.options.scores();
        scores.check(num_query_heads)?;

        let token_scales = check_scales(
            self.scales.as_ref(),
            query_dtype,
            cache_dtype,
            [num_blocks, block_size, num_kv_heads],
        )?;

        let dtype = match out_dtype {
            Dtype::F16 => HalfDtype::F16,
            _ => HalfDtype::Bf16,
        };
        let cache = match cache_dtype {
            Dtype::F8E4m3 if token_scales => CacheDtype::E4m3PerToken,
            Dtype::F8E4m3 => CacheDtype::E4m3,
            Dtype::I8 => CacheDtype::I8PerToken,
            Dtype::F8E5m2 => CacheDtype::E5m2,
            Dtype::F16 => CacheDtype::F16,
            _ => CacheDtype::Bf16,
        };
        let (head_size, head_size_v) = (
            count("head_size", head_size)?,
            count("head_size_v", head_size_v)?,
        );
        let num_queries_per_kv = count("num_query_heads", num_query_heads / num_kv_heads)?;
        let ruled = query_start_loc.is_some() || scores.given().is_some();
        let stage1 =
            variants::decode_entry(cache, (head_size, head_size_v), num_queries_per_kv, ruled)?;
        let Variant::DecodeGqa { heads_per_cta, .. } = stage1.variant else {
            unreachable!("decode_entry returns decode variants");
        };
        Ok(CheckedDecode {
            query_start_loc,
            starts: None,
            num_tokens: count("num_tokens", num_rows)?,
            dtype,
            query_dtype: match query_dtype {
                Dtype::F8E4m3 => QueryDtype::E4m3,
                _ => QueryDtype::of(dtype),
            },
            cache_bytes: if cache_dtype.size() == 1 { 1 } else { 2 },
            token_scales,
            num_seqs: grid_count("num_seqs", num_seqs)?,
            num_query_heads: count("num_query_heads", num_query_heads)?,
            num_kv_heads: count("num_kv_heads", num_kv_heads)?,
            head_size,
            head_size_v,
            block_size: count("block_size", block_size)?,
            num_blocks: i64::from(count("num_blocks", num_blocks)?),
            max_seq_len,
            heads_per_cta,
            ruled,
            stage1,
            request: self,
        })
    }
}
