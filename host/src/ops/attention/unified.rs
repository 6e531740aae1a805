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
use gpu_kernels::tile::QueryDtype;

use super::decode::{CheckedDecode, DecodeOptions, DecodeRequest, Starts};
use super::paged::{self, KvScales, PagedCache, floats};
use super::score_mods::{AlibiSlopes, ScoreOptions};
use crate::error::{RequestError, Result};
use crate::ops::checks::{count, grid_count, named, scale};
use crate::ops::device_check::CheckMode;
use crate::plan::{SplitPolicy, variants};
use crate::tensor::{Dtype, TensorView, TensorViewMut};

/// What is wanted. Dtypes and head sizes that were compiled: see [`variants::prefill_support`].
#[derive(Debug)]
pub struct UnifiedRequest<'a> {
    /// `[num_tokens, num_query_heads, head_size]`, bf16 or f16, or fp8_e4m3 over a cache of bytes; any strides
    /// that are multiples of 2.
    pub query: TensorView<'a>,
    /// `[num_blocks, block_size, num_kv_heads, head_size]`, the query's dtype, or fp8_e4m3, fp8_e5m2
    /// or (with a scale for every token and head) i8; any in memory whose last dimension is contiguous and
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
    /// `[num_tokens, num_query_heads]`, f32, natural logarithm; if wanted.
    pub lse: Option<TensorViewMut<'a>>,
    /// Multiplies query · key; usually `1 / sqrt(head_size)`.
    pub softmax_scale: f32,
    /// What a cache of bytes was divided by. There is no default: a scale that is silently 1 gives silently
    /// wrong results.
    pub scales: Option<KvScales<'a>>,
    /// The rest.
    pub options: UnifiedOptions<'a>,
}

/// What many callers leave as it is.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct UnifiedOptions<'a> {
    /// Whether a query sees no key after its own. On unless it is switched off.
    pub causal: bool,
    /// `[num_seqs]`, u8: the same for the queries of each sequence, not 0 if they see no key after their own. If
    /// given, `causal` means nothing.
    pub causal_flags: Option<TensorView<'a>>,
    /// Keys that a query sees, itself included; all, if there is none.
    pub sliding_window: Option<u32>,
    /// Scores become `softcap * tanh(score / softcap)`; at most 1e18.
    pub softcap: Option<f32>,
    /// A bias that grows with the distance.
    pub alibi: Option<AlibiSlopes<'a>>,
    /// `[num_query_heads]`, f32: scores of a key that has no value.
    pub sinks: Option<TensorView<'a>>,
    /// `[1]`, f32: an fp8_e4m3 output is divided by it, and only that.
    pub output_scale: Option<TensorView<'a>>,
    /// The first so many sequences have exactly one query token each, as serving stacks order their batches.
    /// The host knows it, so they can take the decode kernels, which split a long context over thread blocks.
    pub num_decodes: u32,
    /// An upper bound of the sequences' query tokens, if the host knows one; `num_tokens` is one. With at most 1, all
    /// sequences take the decode kernels: those without a query token are skipped, and tokens past the last
    /// sequence's are left alone, as otherwise. Of a sequence that has more after all, only the first is computed.
    pub max_query_len: Option<u32>,
    /// An upper bound of `seq_lens`, if the host knows one below `max_num_blocks_per_seq * block_size`. Longer
    /// sequences are cut to it.
    pub max_seq_len: Option<u32>,
    /// Whether scores are added up in f32 everywhere. Otherwise, where an FP8 query meets an fp8_e4m3 cache on compute
    /// capability 9.0, with heads of 64 or 128 and rows that begin at multiples of 16 bytes, both are multiplied as they
    /// are. That is faster, and exact but for the sum, for which those tensor cores have fewer bits: a score is off by
    /// about 2^-15 of the most that its terms can amount to, by 2^-12 at worst.
    pub f32_scores: bool,
    /// How keys are split over thread blocks. With [`SplitPolicy::BatchInvariant`] they are not, and no
    /// sequence takes a decode kernel: the bits of a query token's output then depend on nothing but the token,
    /// the keys before it and the options, not on the batch, nor on how a prefill was cut into chunks.
    pub split_policy: SplitPolicy,
    /// Whether `query_start_loc` (in order, within `num_tokens`, no more than `max_query_len` apart, `num_decodes` as
    /// it says), `block_table`, `seq_lens` and scales are checked on the device first, of sequences with query tokens
    /// as far as these see. Where each cached token has scales of its own, those that are read are read once more for it.
    /// A checked step takes one kernel for all sequences, a decode kernel if each has at most one query token.
    pub check: CheckMode,
}

impl Default for UnifiedOptions<'_> {
    fn default() -> Self {
        Self {
            causal: true,
            causal_flags: None,
            sliding_window: None,
            softcap: None,
            alibi: None,
            sinks: None,
            output_scale: None,
            num_decodes: 0,
            max_query_len: None,
            max_seq_len: None,
            f32_scores: false,
            split_policy: SplitPolicy::default(),
            check: CheckMode::default(),
        }
    }
}

/// A request whose tensors agree with each other and with a compiled kernel.
#[derive(Debug)]
pub struct CheckedUnified<'a> {
    pub(super) request: UnifiedRequest<'a>,
    /// The sequences that take the decode kernels.
    pub(super) decodes: Option<CheckedDecode<'a>>,
    pub(super) num_decodes: u32,
    pub(super) starts: Starts<'a>,
    pub(super) query_dtype: QueryDtype,
    pub(super) out_dtype: QueryDtype,
    pub(super) cache: PagedCache,
    pub(super) num_tokens: u32,
    pub(super) num_seqs: u32,
    pub(super) num_query_heads: u32,
    pub(super) num_kv_heads: u32,
    pub(super) head_size: u32,
    pub(super) head_size_v: u32,
    pub(super) block_size: u32,
    pub(super) max_seq_len: u32,
    pub(super) prefill: &'static Entry,
    /// Whether every row of query and output is aligned to 16 bytes, as the kernels of warp groups want it.
    pub(super) in_chunks: bool,
}

impl<'a> UnifiedRequest<'a> {
    /// Checks every tensor against the others, in the order of the fields.
    ///
    /// # Errors
    /// [`RequestError`] naming the first tensor that does not fit; [`crate::error::Error::Unsupported`] for a
    /// cache dtype or head size that was not compiled.
    pub fn check(self) -> Result<CheckedUnified<'a>> {
        let query = named("query", &self.query);
        let query_dtype = query.dtype(&[Dtype::Bf16, Dtype::F16, Dtype::F8E4m3])?;
        let [num_tokens, num_query_heads, head_size] =
            query.rank("[num_tokens, num_query_heads, head_size]")?;
        query.strides(2)?;
        query.aligned(2 * query_dtype.size())?;
        let cache = PagedCache::check(
            &self.key_cache,
            &self.value_cache,
            self.scales.as_ref(),
            query_dtype,
            head_size,
        )?;
        let num_kv_heads = cache.num_kv_heads;
        if num_query_heads == 0 || num_kv_heads == 0 || num_query_heads % num_kv_heads != 0 {
            return Err(RequestError::Value {
                name: "num_query_heads",
                expected: format!("a multiple of num_kv_heads = {num_kv_heads}"),
                got: num_query_heads.to_string(),
            }
            .into());
        }
        let [num_seqs] = self.seq_lens.shape() else {
            return Err(named("seq_lens", &self.seq_lens)
                .wrong_shape("[num_seqs]".into())
                .into());
        };
        let num_seqs = *num_seqs;
        let bound = self.options.max_seq_len;
        let max_seq_len = paged::max_seq_len(&self.block_table, num_seqs, cache.block_size, bound)?;
        let starts = named("query_start_loc", &self.query_start_loc);
        let [_] = starts.indices(Dtype::I32, "[num_seqs + 1]")?;
        starts.shape("[num_seqs + 1]", &[num_seqs + 1])?;
        let [_] = named("seq_lens", &self.seq_lens).indices(Dtype::I32, "[num_seqs]")?;
        let out_dtype = self.check_outputs(query_dtype, cache.head_size_v)?;
        scale("softmax_scale", self.softmax_scale)?;
        self.check_options(num_query_heads, num_seqs)?;

        let num_queries_per_kv = num_query_heads / num_kv_heads;
        count(
            "num_tokens * num_queries_per_kv",
            num_tokens.saturating_mul(num_queries_per_kv),
        )?;
        let (head_size, head_size_v) = (
            count("head_size", head_size)?,
            count("head_size_v", cache.head_size_v)?,
        );
        let prefill = variants::prefill_entry(cache.format, head_size, head_size_v)?;
        let num_tokens_counted = count("num_tokens", num_tokens)?;
        let starts = Starts {
            table: self.query_start_loc,
            num_tokens: num_tokens_counted,
            max_query_len: self.options.max_query_len.unwrap_or(num_tokens_counted),
            num_decodes: self.options.num_decodes,
        };
        let mut decodes = match self.decodes(num_seqs, num_tokens) {
            Decodes::None => None,
            Decodes::First(count) => Some(self.decode_request(count, count)?.check()?),
            Decodes::All => Some(
                self.decode_request(num_seqs, num_tokens)?
                    .check_rows(Some(self.query_start_loc))?,
            ),
        };
        if let Some(decodes) = &mut decodes {
            decodes.starts = Some(starts);
        }
        let in_chunks = query.in_chunks() && named("out", self.out.view()).in_chunks();
        Ok(CheckedUnified {
            num_decodes: decodes.as_ref().map_or(0, |decodes| decodes.num_seqs),
            decodes,
            query_dtype: kernel_dtype(query_dtype),
            out_dtype,
            starts,
            num_tokens: num_tokens_counted,
            num_seqs: count("num_seqs", num_seqs)?,
            num_query_heads: count("num_query_heads", num_query_heads)?,
            num_kv_heads: count("num_kv_heads", num_kv_heads)?,
            head_size,
            head_size_v,
            block_size: count("block_size", cache.block_size)?,
            max_seq_len,
            prefill,
            in_chunks,
            cache,
            request: self,
        })
    }

    /// Output and lse; returns the output's dtype.
    fn check_outputs(&self, query_dtype: Dtype, head_size_v: usize) -> Result<QueryDtype> {
        let [num_tokens, num_query_heads, _] = self.query.shape() else {
            unreachable!("the query's rank was checked");
        };
        let out = named("out", self.out.view());
        let has_scale = self.options.output_scale.is_some();
        let out_dtype = match (out.view.dtype(), query_dtype) {
            (Dtype::F8E4m3, _) => Dtype::F8E4m3,
            (_, Dtype::F8E4m3) => out.dtype(&[Dtype::Bf16, Dtype::F16, Dtype::F8E4m3])?,
            _ => out.dtype(&[query_dtype, Dtype::F8E4m3])?,
        };
        let needs_scale = out_dtype == Dtype::F8E4m3;
        if has_scale != needs_scale {
            let (expected, got) = match needs_scale {
                true => ("given for an output of fp8_e4m3".to_owned(), "missing"),
                false => (format!("absent for an output of {out_dtype}"), "given"),
            };
            return Err(RequestError::Value {
                name: "output_scale",
                expected,
                got: got.into(),
            }
            .into());
        }
        out.shape(
            "[num_tokens, num_query_heads, head_size_v]",
            &[*num_tokens, *num_query_heads, head_size_v],
        )?;
        out.strides(4)?;
        out.aligned(4 * out_dtype.size())?;
        if let Some(lse) = &self.lse {
            let shape = [*num_tokens, *num_query_heads];
            floats(named("lse", lse.view()), &[&shape], || {
                "[num_tokens, num_query_heads]".into()
            })?;
        }
        Ok(kernel_dtype(out_dtype))
    }

    fn check_options(&self, num_query_heads: usize, num_seqs: usize) -> Result<()> {
        let options = &self.options;
        options.scores().check(num_query_heads)?;
        if let Some(output_scale) = &options.output_scale {
            floats(named("output_scale", output_scale), &[&[1]], || {
                "[1]".into()
            })?;
        }
        if let Some(flags) = &options.causal_flags {
            let flags = named("causal_flags", flags);
            let [_] = flags.indices(Dtype::U8, "[num_seqs]")?;
            flags.shape("[num_seqs]", &[num_seqs])?;
        }
        if options.num_decodes as usize > num_seqs {
            return Err(RequestError::Value {
                name: "num_decodes",
                expected: format!("at most num_seqs = {num_seqs}"),
                got: options.num_decodes.to_string(),
            }
            .into());
        }
        Ok(())
    }

    /// The sequences that take the decode kernels.
    fn decodes(&self, num_seqs: usize, num_tokens: usize) -> Decodes {
        let options = &self.options;
        let num_decodes = options.num_decodes as usize;
        let longest = options.max_query_len.map_or(num_tokens, |len| len as usize);
        let decodes = if num_decodes == num_seqs {
            Decodes::First(num_seqs)
        } else if longest.min(num_tokens) <= 1 {
            Decodes::All
        } else if num_decodes > 0 && options.check == CheckMode::Off {
            Decodes::First(num_decodes)
        } else {
            Decodes::None
        };
        let count = match decodes {
            Decodes::First(count) => count,
            _ => num_seqs,
        };
        // The decode kernels split keys, store no bytes, and have sequences along one dimension of the grid.
        let fits = options.split_policy != SplitPolicy::BatchInvariant
            && options.output_scale.is_none()
            && count > 0
            && grid_count("num_seqs", count).is_ok();
        if fits { decodes } else { Decodes::None }
    }

    /// The first `num_seqs` sequences and `num_tokens` query tokens as a request of their own.
    pub(super) fn decode_request(
        &self,
        num_seqs: usize,
        num_tokens: usize,
    ) -> Result<DecodeRequest<'a>, RequestError> {
        let too_few = || {
            named("query", &self.query)
                .wrong_shape(format!("at least num_decodes = {num_tokens} tokens"))
        };
        let first = |view: &TensorView<'a>, count: usize| view.first(count).ok_or_else(too_few);
        let first_mut = |view: &TensorViewMut<'a>| {
            // SAFETY: what the decode kernels write, the other kernel does not touch, and both run in order.
            unsafe { view.first(num_tokens) }.ok_or_else(too_few)
        };
        let options = &self.options;
        Ok(DecodeRequest {
            query: first(&self.query, num_tokens)?,
            key_cache: self.key_cache,
            value_cache: self.value_cache,
            block_table: first(&self.block_table, num_seqs)?,
            seq_lens: first(&self.seq_lens, num_seqs)?,
            out: first_mut(&self.out)?,
            lse: self.lse.as_ref().map(first_mut).transpose()?,
            softmax_scale: self.softmax_scale,
            scales: self.scales,
            // `causal` makes no difference to the last token of a sequence.
            options: DecodeOptions {
                sliding_window: options.sliding_window,
                softcap: options.softcap,
                alibi: options.alibi,
                sinks: options.sinks,
                max_seq_len: options.max_seq_len,
                split_policy: options.split_policy,
                check: options.check,
            },
        })
    }
}

/// Sequences that take the decode kernels.
enum Decodes {
    /// None of them.
    None,
    /// The first so many, each with the query token of its number.
    First(usize),
    /// All of them, each with the query token that `query_start_loc` says, or none.
    All,
}

impl<'a> UnifiedOptions<'a> {
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

fn kernel_dtype(dtype: Dtype) -> QueryDtype {
    match dtype {
        Dtype::F8E4m3 => QueryDtype::E4m3,
        Dtype::F16 => QueryDtype::F16,
        _ => QueryDtype::Bf16,
    }
}
