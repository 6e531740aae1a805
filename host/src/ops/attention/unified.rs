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
use gpu_kernels::tile::rows::{Products, RowShape};

use super::decode::{CheckedDecode, Starts};
use super::kv_scales::{KvScales, check_scales};
use super::options::UnifiedOptions;
use super::paged::PagedCache;
use super::shape::{AttentionShape, QUERIES, Query, Words, check_seq_lens, max_seq_len};
use crate::error::{RequestError, Result};
use crate::ops::checks::{count, named, scale};
use crate::plan::variants;
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

static WORDS: Words = Words {
    query: "[num_tokens, num_query_heads, head_size]",
    out: "[num_tokens, num_query_heads, head_size_v]",
    lse: |_| "[num_tokens, num_query_heads]".into(),
    multiple: "a multiple",
};

/// Dtypes of the output that a query may have: bytes, if there is a scale for them, or else as of decode.
fn outputs(query: Dtype) -> &'static [Dtype] {
    match query {
        Dtype::Bf16 => &[Dtype::Bf16, Dtype::F8E4m3],
        Dtype::F16 => &[Dtype::F16, Dtype::F8E4m3],
        Dtype::F8E4m3 => &QUERIES,
        other => unreachable!("a query of {other} is refused by the checks"),
    }
}

impl<'a> UnifiedRequest<'a> {
    /// Checks every tensor against the others, in the order of the fields.
    ///
    /// # Errors
    /// [`RequestError`] naming the first tensor that does not fit; [`crate::error::Error::Unsupported`] for a
    /// cache dtype or head size that was not compiled.
    pub fn check(self) -> Result<CheckedUnified<'a>> {
        let query = Query::<3>::check(&WORDS, &self.query, &QUERIES)?;
        let [num_tokens, num_query_heads, _] = query.shape;
        let (keys, values) = (&self.key_cache, &self.value_cache);
        let cache = PagedCache::check(keys, values, query.dtype, query.head_size())?;
        query.shares(cache.num_kv_heads)?;
        let seq_lens = named("seq_lens", &self.seq_lens);
        let [num_seqs] = seq_lens.rank("[num_seqs]")?;
        let bound = self.options.max_seq_len;
        let max_seq_len = max_seq_len(&self.block_table, num_seqs, cache.block_size, bound)?;
        let starts = named("query_start_loc", &self.query_start_loc);
        let [_] = starts.indices(Dtype::I32, "[num_seqs + 1]")?;
        starts.shape("[num_seqs + 1]", &[num_seqs + 1])?;
        check_seq_lens(&self.seq_lens, num_seqs)?;
        let lse = self.lse.as_ref().map(TensorViewMut::view);
        let (out, dtypes) = (self.out.view(), outputs(query.dtype));
        let out = query.outputs(out, lse, dtypes, cache.head_size_v)?;
        scale("softmax_scale", self.softmax_scale)?;
        let token_scales = check_scales(self.scales.as_ref(), query.dtype, &cache)?;
        self.check_options(out.0, num_query_heads, num_seqs)?;

        let num_seqs = count("num_seqs", num_seqs)?;
        let format = cache.format(token_scales);
        let shape = AttentionShape::new(&query, &cache, out, format, [num_seqs, max_seq_len])?;
        let prefill = variants::prefill_entry(format, shape.head_size, shape.head_size_v)?;
        let num_tokens = count("num_tokens", num_tokens)?;
        check_thread_blocks(&shape, num_tokens)?;
        let starts = Starts {
            table: self.query_start_loc,
            num_tokens,
            max_query_len: self.options.max_query_len.unwrap_or(num_tokens),
            num_decodes: self.options.num_decodes,
        };
        let decodes = self.check_decodes(starts)?;
        let in_chunks =
            named("query", &self.query).in_chunks() && named("out", self.out.view()).in_chunks();
        Ok(CheckedUnified {
            num_decodes: decodes.as_ref().map_or(0, |decodes| decodes.shape.num_seqs),
            decodes,
            starts,
            num_tokens,
            shape,
            prefill,
            in_chunks,
            request: self,
        })
    }

    fn check_options(
        &self,
        out: Dtype,
        num_query_heads: usize,
        num_seqs: usize,
    ) -> Result<(), RequestError> {
        let options = &self.options;
        options.scores().check(num_query_heads)?;
        match (&options.output_scale, out == Dtype::F8E4m3) {
            (Some(scale), true) => {
                named("output_scale", scale).floats(&[&[1]], || "[1]".into())?;
            }
            (None, false) => {}
            (given, needed) => {
                return Err(RequestError::Value {
                    name: "output_scale",
                    expected: match needed {
                        true => "given for an output of fp8_e4m3".into(),
                        false => format!("absent for an output of {out}"),
                    },
                    got: if given.is_some() { "given" } else { "missing" }.into(),
                });
            }
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
            });
        }
        Ok(())
    }
}

/// Tiles of `rows` rows, enough for every division of the tokens into sequences, of which `num_seqs` take part: times
/// KV heads, the thread blocks that share out the rows.
pub(super) fn thread_blocks(
    shape: &AttentionShape,
    num_tokens: u32,
    num_seqs: u32,
    rows: u32,
) -> u64 {
    let all_rows = u64::from(num_tokens) * u64::from(shape.num_queries_per_kv());
    (all_rows / u64::from(rows) + u64::from(num_seqs)).saturating_mul(shape.num_kv_heads.into())
}

/// How a thread block is cut if `products` multiply.
pub(super) fn row_shape(shape: &AttentionShape, products: Products) -> RowShape {
    RowShape::of(
        shape.head_size,
        shape.head_size_v,
        shape.value_bytes(),
        shape.token_scales(),
        products,
    )
}

/// Rows, and thread blocks of whatever kernel, can be counted.
fn check_thread_blocks(shape: &AttentionShape, num_tokens: u32) -> Result<(), RequestError> {
    let (num_tokens_long, queries) = (num_tokens as usize, shape.num_queries_per_kv() as usize);
    count(
        "num_tokens * num_queries_per_kv",
        num_tokens_long.saturating_mul(queries),
    )?;
    let most = [
        Products::Warp,
        Products::WarpGroup,
        Products::WarpGroupOfBytes,
    ]
    .map(|products| {
        let rows = row_shape(shape, products).rows();
        thread_blocks(shape, num_tokens, shape.num_seqs, rows)
    });
    if most.iter().all(|&ctas| ctas <= i32::MAX as u64) {
        return Ok(());
    }
    let (num_seqs, num_kv_heads) = (shape.num_seqs, shape.num_kv_heads);
    Err(RequestError::Value {
        name: "num_tokens",
        expected: format!(
            "few enough for one launch, in {num_seqs} sequences with {num_kv_heads} KV heads"
        ),
        got: num_tokens.to_string(),
    })
}
