//! What decode, unified attention and MLA decode check alike: queries, lengths, outputs; and the numbers that come of it.

use gpu_kernels::dtype::{CacheDtype, HalfDtype, QueryDtype};

use super::paged::PagedCache;
use crate::error::{RequestError, Result};
use crate::ops::checks::{Named, count, named};
use crate::tensor::{Dtype, TensorView};

/// Dtypes, heads and lengths of a checked request: what kernels and plans are chosen by.
#[derive(Clone, Copy, Debug)]
pub(super) struct AttentionShape {
    pub(super) query: QueryDtype,
    pub(super) out: QueryDtype,
    pub(super) cache: CacheDtype,
    pub(super) num_seqs: u32,
    pub(super) num_query_heads: u32,
    pub(super) num_kv_heads: u32,
    pub(super) head_size: u32,
    pub(super) head_size_v: u32,
    pub(super) block_size: u32,
    pub(super) num_blocks: u32,
    /// Tokens of the longest sequence.
    pub(super) max_seq_len: u32,
}

impl AttentionShape {
    /// Of parts that were checked.
    ///
    /// # Errors
    /// [`RequestError::Value`] for a number that kernels do not count to.
    pub(super) fn new<const RANK: usize>(
        query: &Query<'_, '_, RANK>,
        cache: &PagedCache,
        (out, head_size_v): (QueryDtype, usize),
        format: CacheDtype,
        [num_seqs, max_seq_len]: [u32; 2],
    ) -> Result<Self, RequestError> {
        Ok(Self {
            query: query.dtype,
            out,
            cache: format,
            num_seqs,
            num_query_heads: count("num_query_heads", query.num_heads())?,
            num_kv_heads: count("num_kv_heads", cache.num_kv_heads)?,
            head_size: count("head_size", query.head_size())?,
            head_size_v: count("head_size_v", head_size_v)?,
            block_size: count("block_size", cache.block_size)?,
            num_blocks: count("num_blocks", cache.num_blocks)?,
            max_seq_len,
        })
    }

    /// Query heads that share a KV head.
    pub(super) fn num_queries_per_kv(&self) -> u32 {
        self.num_query_heads / self.num_kv_heads
    }

    /// Bytes per value of the cache.
    pub(super) fn value_bytes(&self) -> u32 {
        self.cache.value_bytes()
    }

    /// Whether every token and head has scales of its own.
    pub(super) fn token_scales(&self) -> bool {
        self.cache.token_scales
    }

    /// The output's dtype for kernels whose output has 16 bits.
    ///
    /// # Panics
    /// If it does not.
    pub(super) fn half_out(&self) -> HalfDtype {
        match self.out {
            QueryDtype::F16 => HalfDtype::F16,
            QueryDtype::Bf16 => HalfDtype::Bf16,
            QueryDtype::F8E4m3 => unreachable!("an output of bytes was refused by the check"),
        }
    }
}

/// How an operation calls dimensions.
#[derive(Debug)]
pub(super) struct Words {
    /// `[.., num_query_heads, head_size]`
    pub(super) query: &'static str,
    /// `[.., num_query_heads, head_size_v]`
    pub(super) out: &'static str,
    /// What an lse has to be, for a shape.
    pub(super) lse: fn(&[usize]) -> String,
    /// What the number of query heads has to be: which multiple of that of the KV heads.
    pub(super) multiple: &'static str,
}

/// Dtypes of the output of 16 bits that a query may have.
pub(super) fn half_outputs(query: QueryDtype) -> &'static [QueryDtype] {
    match query {
        QueryDtype::Bf16 => &[QueryDtype::Bf16],
        QueryDtype::F16 => &[QueryDtype::F16],
        QueryDtype::F8E4m3 => &[QueryDtype::Bf16, QueryDtype::F16],
    }
}

/// A query that is laid out as kernels want it: `RANK - 2` dimensions of rows, then heads, then their values.
#[derive(Clone, Copy)]
pub(super) struct Query<'r, 'a, const RANK: usize> {
    words: &'static Words,
    tensor: Named<'r, 'a>,
    pub(super) dtype: QueryDtype,
    pub(super) shape: [usize; RANK],
}

impl<'r, 'a, const RANK: usize> Query<'r, 'a, RANK> {
    /// Checks it, for an operation that takes `dtypes`.
    pub(super) fn check(
        words: &'static Words,
        view: &'r TensorView<'a>,
        dtypes: &[QueryDtype],
    ) -> Result<Self, RequestError> {
        let tensor = named("query", view);
        let dtype = tensor.dtype(dtypes)?;
        let shape = tensor.rank(words.query)?;
        tensor.strides(2)?;
        tensor.aligned(2 * dtype.dtype().size())?;
        Ok(Self {
            words,
            tensor,
            dtype,
            shape,
        })
    }

    pub(super) fn num_heads(&self) -> usize {
        self.shape[RANK - 2]
    }

    pub(super) fn head_size(&self) -> usize {
        self.shape[RANK - 1]
    }

    /// Its heads are shared out evenly among the KV heads.
    pub(super) fn shares(&self, num_kv_heads: usize) -> Result<(), RequestError> {
        let num_heads = self.num_heads();
        if num_kv_heads > 0 && num_heads > 0 && num_heads.is_multiple_of(num_kv_heads) {
            return Ok(());
        }
        Err(RequestError::Value {
            name: "num_query_heads",
            expected: format!("{} of num_kv_heads = {num_kv_heads}", self.words.multiple),
            got: num_heads.to_string(),
        })
    }

    /// Its heads have so many values.
    pub(super) fn has_head_size(&self, head_size: usize) -> Result<(), RequestError> {
        let mut shape = self.shape;
        shape[RANK - 1] = head_size;
        self.tensor.shape(self.words.query, &shape)
    }

    /// A sequence has rows and heads, though there may be no sequence.
    pub(super) fn has_rows(&self) -> Result<(), RequestError> {
        if !self.shape[1..RANK - 1].contains(&0) {
            return Ok(());
        }
        let form = self.words.query;
        let expected = format!("{form}, none of the middle ones 0");
        Err(self.tensor.wrong_shape(expected))
    }

    /// Output and lse have its rows and heads; `dtypes` are what the output may be. Gives the output's dtype and head
    /// size, which the output itself says if `head_size_v` does not.
    pub(super) fn outputs(
        &self,
        out: &TensorView<'_>,
        lse: Option<&TensorView<'_>>,
        dtypes: &[QueryDtype],
        head_size_v: Option<usize>,
    ) -> Result<(QueryDtype, usize), RequestError> {
        let out = named("out", out);
        let dtype = out.dtype(dtypes)?;
        let mut shape = self.shape;
        shape[RANK - 1] = match head_size_v {
            Some(head_size_v) => head_size_v,
            None => out.rank::<RANK>(self.words.out)?[RANK - 1],
        };
        out.shape(self.words.out, &shape)?;
        out.strides(4)?;
        out.aligned(4 * dtype.dtype().size())?;
        if let Some(lse) = lse {
            let rows = &self.shape[..RANK - 1];
            named("lse", lse).floats(&[rows], || (self.words.lse)(rows))?;
        }
        Ok((dtype, shape[RANK - 1]))
    }
}

/// `[num_seqs]`, i32: the sequences' lengths.
pub(super) fn check_seq_lens(
    seq_lens: &TensorView<'_>,
    num_seqs: usize,
) -> Result<(), RequestError> {
    let seq_lens = named("seq_lens", seq_lens);
    seq_lens.dtype(&[Dtype::I32])?;
    seq_lens.shape("[num_seqs]", &[num_seqs])?;
    seq_lens.strides(1)?;
    seq_lens.aligned(4)
}

/// Tokens that a row of the block table can name.
pub(super) fn nameable(
    block_table: &TensorView<'_>,
    num_seqs: usize,
    block_size: usize,
) -> Result<usize, RequestError> {
    let table = named("block_table", block_table);
    let [rows, blocks] = table.indices(Dtype::I32, BLOCK_TABLE)?;
    if rows != num_seqs {
        table.shape(BLOCK_TABLE, &[num_seqs, blocks])?;
    }
    Ok(blocks.saturating_mul(block_size))
}

const BLOCK_TABLE: &str = "[num_seqs, max_num_blocks_per_seq]";

/// The most tokens of a sequence: what the block table can name, or the bound that the host knows.
pub(super) fn max_seq_len(
    block_table: &TensorView<'_>,
    num_seqs: usize,
    block_size: usize,
    bound: Option<u32>,
) -> Result<u32, RequestError> {
    let nameable = nameable(block_table, num_seqs, block_size)?;
    match bound {
        Some(bound) if bound as usize > nameable => {
            let blocks = (bound as usize).div_ceil(block_size);
            Err(named("block_table", block_table).wrong_shape(format!(
                "{BLOCK_TABLE} with at least {blocks} blocks of {block_size} tokens for max_seq_len {bound}"
            )))
        }
        Some(bound) => count("max_seq_len", bound as usize),
        None => count("max_num_blocks_per_seq * block_size", nameable),
    }
}
