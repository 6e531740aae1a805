//! Checking a step of unified attention.

use gpu_kernels::dtype::QueryDtype;
use gpu_kernels::prefill::{MmaKind, PrefillTile};

use super::decode::Starts;
use super::kv_scales::check_scales;
use super::paged::PagedCache;
use super::shape::{AttentionShape, Query, Words, check_seq_lens, max_seq_len};
use super::unified::{CheckedUnified, UnifiedRequest};
use crate::error::{RequestError, Result};
use crate::ops::checks::{count, named};
use crate::plan::{MOST_CTAS_X, variants};
use crate::tensor::{Dtype, TensorViewMut};

static WORDS: Words = Words {
    query: "[num_tokens, num_query_heads, head_size]",
    out: "[num_tokens, num_query_heads, head_size_v]",
    lse: |_| "[num_tokens, num_query_heads]".into(),
    multiple: "a multiple",
};

/// Dtypes of the output that a query may have: bytes, if there is a scale for them, or else as of decode.
fn outputs(query: QueryDtype) -> &'static [QueryDtype] {
    match query {
        QueryDtype::Bf16 => &[QueryDtype::Bf16, QueryDtype::F8E4m3],
        QueryDtype::F16 => &[QueryDtype::F16, QueryDtype::F8E4m3],
        QueryDtype::F8E4m3 => QueryDtype::ALL,
    }
}

impl<'a> UnifiedRequest<'a> {
    /// Checks every tensor against the others, in the order of the fields.
    ///
    /// # Errors
    /// [`RequestError`] naming the first tensor that does not fit; [`crate::error::Error::Unsupported`] for a
    /// cache dtype or head size that was not compiled.
    pub fn check(self) -> Result<CheckedUnified<'a>> {
        let query = Query::<3>::check(&WORDS, &self.query, QueryDtype::ALL)?;
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
        let mods = &self.options.score_mods;
        mods.check_scale(self.softmax_scale)?;
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
        out: QueryDtype,
        num_query_heads: usize,
        num_seqs: usize,
    ) -> Result<(), RequestError> {
        let options = &self.options;
        options.score_mods.check(num_query_heads)?;
        match (&options.output_scale, out == QueryDtype::F8E4m3) {
            (Some(scale), true) => {
                named("output_scale", scale).floats(&[&[1]], || "[1]".into())?;
            }
            (None, false) => {}
            (given, needed) => {
                return Err(RequestError::Value {
                    name: "output_scale",
                    expected: match needed {
                        true => "given for an output of fp8_e4m3".into(),
                        false => format!("absent for an output of {}", out.dtype()),
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
pub(super) fn row_shape(shape: &AttentionShape, products: MmaKind) -> PrefillTile {
    PrefillTile::of(
        shape.head_size,
        shape.head_size_v,
        shape.value_bytes(),
        shape.token_scales(),
        products,
    )
}

/// Rows, and thread blocks of whatever kernel, can be counted.
fn check_thread_blocks(shape: &AttentionShape, num_tokens: u32) -> Result<(), RequestError> {
    let rows = (num_tokens as usize).saturating_mul(shape.num_queries_per_kv() as usize);
    let rows = count("num_tokens * num_queries_per_kv", rows)?;
    let fewest = [MmaKind::Warp, MmaKind::WarpGroup, MmaKind::WarpGroupOfBytes]
        .map(|products| row_shape(shape, products).rows())
        .into_iter()
        .fold(u32::MAX, u32::min);
    let (num_seqs, num_kv_heads) = (shape.num_seqs, shape.num_kv_heads);
    if thread_blocks(shape, num_tokens, num_seqs, fewest) <= MOST_CTAS_X {
        return Ok(());
    }
    let (name, got) = if num_seqs > rows / fewest {
        ("num_seqs", num_seqs)
    } else {
        ("num_tokens", num_tokens)
    };
    Err(RequestError::Value {
        name,
        expected: format!("few enough for one launch with {num_kv_heads} KV heads"),
        got: got.to_string(),
    })
}
