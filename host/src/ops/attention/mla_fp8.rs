//! Decode attention over a paged latent (MLA) cache of FP8 entries: all tokens of a sequence, or those that index
//! lists name.
//!
//! As [`super::DecodeMlaRequest`], with rows that are entries of 656 bytes (`fp8_ds_mla`) or DeepSeek V4's of 584: a
//! value is `e4m3 * scale`, the scale its group's, rounded to bf16. That is exact for scales that are powers of two,
//! as V4's are and as current writers make the others; a 656-byte scale is taken as it is stored.
//!
//! With index lists each query token attends to the tokens that its own lists name, in one softmax; indices that are
//! negative or outside the cache are skipped, and a token that is named twice counts twice. A query token that sees
//! nothing gives 0 and an lse of −inf. With [`crate::ops::CheckMode::Device`] what is skipped is a fault, but for
//! negative indices: an index past the cache or past what the block table names, an entry of the block table that an
//! index needs and that is no block, a length below zero or above the list's. Indices behind the length are not read.

use gpu_kernels::dtype::{CacheDtype, QueryDtype};
use gpu_kernels::entry::Entry;
use gpu_kernels::gpu::fast_divmod::FastDivmod;
use gpu_kernels::mla::cache_format::{EntryForm, fp8_ds, v4};
use gpu_kernels::mla::kernel_fp8::HEAD_SIZE_V;
use gpu_kernels::params::EntryList;

use super::mla;
use super::options::DecodeOptions;
use super::score_mods::check_per_head;
use super::shape::{AttentionShape, Query, Words, check_seq_lens, nameable};
use crate::error::{RequestError, Result};
use crate::ops::checks::{count, grid_count, named};
use crate::ops::layout::{byte_stride, byte_strides};
use crate::ops::mla_entries::check_entries;
use crate::plan::variants;
use crate::tensor::{Dtype, TensorView, TensorViewMut};

/// What is wanted.
#[derive(Debug)]
pub struct DecodeMlaEntryRequest<'a> {
    /// `[num_seqs, query_len, num_query_heads, head_size]`, bf16, of 576 values (656-byte form) or 512 (V4's); any
    /// strides that are multiples of 2.
    pub query: TensorView<'a>,
    /// How the caches store a token.
    pub form: EntryForm,
    /// `[num_blocks, block_size, 656]`, u8, strides multiples of 16; V4: `[num_blocks, page_bytes]`.
    pub cache: TensorView<'a>,
    /// Tokens per block of `cache`.
    pub block_size: usize,
    /// Which of its tokens a query token attends to.
    pub tokens: EntryTokens<'a>,
    /// `[num_query_heads]`, f32, natural logarithm, if wanted: `exp(sink)` is added to the softmax's denominator, and
    /// not to the lse.
    pub sinks: Option<TensorView<'a>>,
    /// `[num_seqs, query_len, num_query_heads, 512]`, bf16; any strides that are multiples of 4.
    pub out: TensorViewMut<'a>,
    /// `[num_seqs, query_len, num_query_heads]`, f32, natural logarithm; if wanted. As [`super::DecodeRequest::lse`]
    /// says, and how near.
    pub lse: Option<TensorViewMut<'a>>,
    /// Multiplies query · row. How large it, and what it multiplies, may be: [`super::DecodeRequest::softmax_scale`].
    pub softmax_scale: f32,
    /// The rest. With index lists no `max_seq_len`: they have their own lengths.
    pub options: DecodeOptions<'a>,
}

/// Which tokens a query token attends to.
#[derive(Clone, Copy, Debug)]
#[allow(
    clippy::large_enum_variant,
    reason = "a request lives on the stack, once"
)]
pub enum EntryTokens<'a> {
    /// All up to itself; the query tokens are the last of their sequence.
    All {
        /// `[num_seqs, max_num_blocks_per_seq]`, i32. Entries past a sequence's last block are not read.
        block_table: TensorView<'a>,
        /// `[num_seqs]`, i32: tokens in the cache, this step's included. 0 is an empty sequence.
        seq_lens: TensorView<'a>,
    },
    /// Those of a list.
    TopK {
        /// `[num_seqs, query_len, topk]`, i32.
        topk_indices: TensorView<'a>,
        /// `[num_seqs]` or `[num_seqs, query_len]`, i32: how many of them count, the first ones; all if none. More than
        /// there are is all of them, a number below zero is none; a check takes neither.
        topk_length: Option<TensorView<'a>>,
        /// `[num_seqs, max_num_blocks_per_seq]`, i32: indices are tokens of the sequence. If none they are slots of
        /// the cache, `block * block_size + offset`.
        block_table: Option<TensorView<'a>>,
        /// A second list over a second cache of the same form: V4's sliding window.
        window: Option<WindowTokens<'a>>,
    },
}

/// Tokens of a second cache.
#[derive(Clone, Copy, Debug)]
pub struct WindowTokens<'a> {
    /// As the request's.
    pub cache: TensorView<'a>,
    /// Tokens per block of `cache`.
    pub block_size: usize,
    /// `[num_seqs, query_len, window]`, i32: slots of `cache`.
    pub indices: TensorView<'a>,
    /// `[num_seqs]` or `[num_seqs, query_len]`, i32: how many of them count, as `topk_length`.
    pub length: Option<TensorView<'a>>,
}

/// A request whose tensors agree with each other.
#[derive(Debug)]
pub struct CheckedDecodeMlaEntry<'a> {
    pub(super) request: DecodeMlaEntryRequest<'a>,
    /// The kernel for few rows.
    pub(super) narrow: &'static Entry,
    pub(super) query_len: u32,
    /// Its longest sequence is as long as the lists together, where there are lists.
    pub(super) shape: AttentionShape,
    pub(super) lists: [EntryList; 2],
}

impl EntryTokens<'_> {
    /// Which of them it is.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::All { .. } => "All",
            Self::TopK { .. } => "TopK",
        }
    }

    /// Tokens per block of the window's cache, if there is one.
    pub(super) fn window_block_size(&self) -> Option<usize> {
        match self {
            Self::All { .. } => None,
            Self::TopK { window, .. } => window.as_ref().map(|window| window.block_size),
        }
    }
}

impl<'a> DecodeMlaEntryRequest<'a> {
    /// Checks every tensor against the others, in the order of the fields.
    ///
    /// # Errors
    /// [`RequestError`] naming the first tensor that does not fit.
    pub fn check(self) -> Result<CheckedDecodeMlaEntry<'a>> {
        let query = Query::<4>::check(&WORDS, &self.query, &[QueryDtype::Bf16])?;
        let [num_seqs, query_len, num_query_heads, _] = query.shape;
        query.has_head_size(head_size(self.form) as usize)?;
        query.has_rows()?;

        let is_v4 = self.form == EntryForm::V4;
        let first = cache_list("cache", is_v4, &self.cache, self.block_size)?;
        let num_blocks = count("num_blocks", self.cache.shape()[0])?;
        let rows = [num_seqs, query_len];
        let (lists, num_positions) = match &self.tokens {
            EntryTokens::All {
                block_table,
                seq_lens,
            } => {
                let tokens = tokens_of(block_table, num_seqs, self.block_size)?;
                check_seq_lens(seq_lens, num_seqs)?;
                let bound = self.options.max_seq_len.unwrap_or(tokens);
                if bound > tokens {
                    return Err(RequestError::Value {
                        name: "max_seq_len",
                        expected: format!(
                            "at most the {tokens} tokens that `block_table` can name"
                        ),
                        got: bound.to_string(),
                    }
                    .into());
                }
                ([first, NO_LIST], bound)
            }
            EntryTokens::TopK {
                topk_indices,
                topk_length,
                block_table,
                window,
            } => {
                let mut first = first;
                index_list(
                    &mut first,
                    ("topk_indices", topk_indices),
                    ("topk_length", topk_length.as_ref()),
                    rows,
                )?;
                if let Some(block_table) = block_table {
                    first.num_tokens = tokens_of(block_table, num_seqs, self.block_size)?;
                }
                let mut second = NO_LIST;
                if let Some(window) = window {
                    second = cache_list("window.cache", is_v4, &window.cache, window.block_size)?;
                    let indices = ("window.indices", &window.indices);
                    let length = ("window.length", window.length.as_ref());
                    index_list(&mut second, indices, length, rows)?;
                }
                let len = first.len as usize + second.len as usize;
                ([first, second], count("topk + window", len)?)
            }
        };

        if let Some(sinks) = &self.sinks {
            check_per_head("sinks", sinks, num_query_heads)?;
        }
        let out = self.out.view();
        let lse = self.lse.as_ref().map(TensorViewMut::view);
        let head_size_v = Some(HEAD_SIZE_V as usize);
        let (out, _) = query.outputs(out, lse, &[QueryDtype::Bf16], head_size_v)?;
        let mods = &self.options.score_mods;
        mods.check_scale(self.softmax_scale)?;
        self.check_options()?;
        count(
            "query_len * num_query_heads",
            query_len.saturating_mul(num_query_heads),
        )?;
        if self.is_sparse() {
            grid_count("num_seqs * query_len", num_seqs.saturating_mul(query_len))?;
        }
        let (narrow, _) = variants::decode_mla_entry_entries(self.form)[0];
        Ok(CheckedDecodeMlaEntry {
            lists: self.at(lists),
            narrow,
            query_len: grid_count("query_len", query_len)?,
            shape: AttentionShape {
                query: query.dtype,
                out,
                // Of the entries' values: what else is in an entry, the kernels know.
                cache: CacheDtype::of(Dtype::F8E4m3),
                num_seqs: grid_count("num_seqs", num_seqs)?,
                num_query_heads: count("num_query_heads", num_query_heads)?,
                num_kv_heads: 1,
                head_size: head_size(self.form),
                head_size_v: HEAD_SIZE_V,
                block_size: count("block_size", self.block_size)?,
                num_blocks,
                max_seq_len: num_positions,
            },
            request: self,
        })
    }

    /// Lists with the addresses of the tensors.
    pub(super) fn at(&self, [first, second]: [EntryList; 2]) -> [EntryList; 2] {
        let address = |view: Option<&TensorView<'_>>| view.map_or(0, TensorView::address);
        let (indices, lens, window) = match &self.tokens {
            EntryTokens::All { .. } => (None, None, None),
            EntryTokens::TopK {
                topk_indices,
                topk_length,
                window,
                ..
            } => (Some(topk_indices), topk_length.as_ref(), window.as_ref()),
        };
        [
            EntryList {
                cache: self.cache.address(),
                indices: address(indices),
                lens: address(lens),
                ..first
            },
            EntryList {
                cache: address(window.map(|window| &window.cache)),
                indices: address(window.map(|window| &window.indices)),
                lens: address(window.and_then(|window| window.length.as_ref())),
                ..second
            },
        ]
    }

    /// Whether tokens are chosen by index lists.
    pub(super) fn is_sparse(&self) -> bool {
        matches!(self.tokens, EntryTokens::TopK { .. })
    }

    /// What index lists leave no use for is not given.
    fn check_options(&self) -> Result<(), RequestError> {
        self.options.score_mods.refuse("MLA decode")?;
        match self.options.max_seq_len {
            Some(tokens) if self.is_sparse() => Err(RequestError::Value {
                name: "max_seq_len",
                expected: "absent with index lists, which have their own lengths".into(),
                got: tokens.to_string(),
            }),
            Some(_) | None => Ok(()),
        }
    }
}

/// Values of a query's head.
fn head_size(form: EntryForm) -> u32 {
    match form {
        EntryForm::Fp8Ds => fp8_ds::LATENTS + fp8_ds::ROPE,
        EntryForm::V4 => v4::VALUES + v4::ROPE,
    }
}

/// How the request calls dimensions: as [`super::mla`], but for the output's.
static WORDS: Words = Words {
    out: "[num_seqs, query_len, num_query_heads, 512]",
    ..mla::WORDS
};

/// No second list.
const NO_LIST: EntryList = EntryList {
    cache: 0,
    indices: 0,
    lens: 0,
    stride_block: 0,
    stride_slot: 0,
    stride_indices_seq: 0,
    stride_indices_token: 0,
    stride_lens_seq: 0,
    stride_lens_token: 0,
    block_size: FastDivmod::new(1),
    num_slots: 0,
    len: 0,
    num_tokens: 0,
};

/// A cache without indices.
fn cache_list(
    name: &'static str,
    is_v4: bool,
    cache: &TensorView<'_>,
    block_size: usize,
) -> Result<EntryList, RequestError> {
    if block_size == 0 {
        return Err(RequestError::Value {
            name: "block_size",
            expected: "at least 1".into(),
            got: "0".into(),
        });
    }
    let num_blocks = check_entries(named(name, cache), is_v4, block_size)?;
    // Within a page the kernel's byte offsets are 32-bit.
    count(
        "block_size * 584",
        block_size.saturating_mul(v4::BYTES as usize),
    )?;
    let num_slots = num_blocks.saturating_mul(block_size);
    Ok(EntryList {
        stride_block: byte_stride(cache, 0),
        stride_slot: if is_v4 { 0 } else { byte_stride(cache, 1) },
        block_size: FastDivmod::new(count("block_size", block_size)?),
        num_slots: count("num_blocks * block_size", num_slots)?,
        ..NO_LIST
    })
}

/// Tokens that a row of the block table can name.
fn tokens_of(
    block_table: &TensorView<'_>,
    num_seqs: usize,
    block_size: usize,
) -> Result<u32, RequestError> {
    let tokens = nameable(block_table, num_seqs, block_size)?;
    count("max_num_blocks_per_seq * block_size", tokens)
}

/// Adds indices, and how many of them count.
fn index_list(
    list: &mut EntryList,
    (name, indices): (&'static str, &TensorView<'_>),
    (length_name, length): (&'static str, Option<&TensorView<'_>>),
    [num_seqs, query_len]: [usize; 2],
) -> Result<(), RequestError> {
    let form = "[num_seqs, query_len, topk], topk at least 1";
    let named_indices = named(name, indices);
    let [.., len] = named_indices.indices::<3>(Dtype::I32, form)?;
    named_indices.shape(form, &[num_seqs, query_len, len.max(1)])?;
    [list.stride_indices_seq, list.stride_indices_token] = byte_strides(indices);
    list.len = count(name, len)?;
    let Some(length) = length else { return Ok(()) };
    let named_length = named(length_name, length);
    named_length.dtype(&[Dtype::I32])?;
    [list.stride_lens_seq, list.stride_lens_token] = match length.shape() {
        [_] => {
            named_length.shape("[num_seqs]", &[num_seqs])?;
            [byte_stride(length, 0), 0]
        }
        _ => {
            let form = "[num_seqs] or [num_seqs, query_len]";
            named_length.shape(form, &[num_seqs, query_len])?;
            byte_strides(length)
        }
    };
    named_length.no_negative_strides()?;
    named_length.aligned(4)?;
    Ok(())
}
