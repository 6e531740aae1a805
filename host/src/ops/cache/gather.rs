//! Gathers: tokens of a paged cache into rows that lie side by side, byte for byte or dequantised.
//!
//! Only what is named is read, never the whole pool, and nothing is allocated: `num_rows` rows go in and
//! come out, whatever the indices say, so a gather can be captured in a graph. Which token goes to which row,
//! [`GatherRows`] says; how it is stored, [`GatherForm`].
//!
//! Negative indices are skipped, and so are tokens past the end of a block-table row, blocks and slots outside the cache,
//! and sequences that the block table does not have: their rows stay as they are, or become zeros if `zero_missing` says
//! so. With [`CheckMode::Device`] all of these but negative indices are faults, as are row starts that decrease and a
//! scale that is not positive and finite, and nothing is gathered then. A 656-byte entry's own scales are not looked at.

use gpu_kernels::params::GatherParams;

use crate::ops::checks::named;
use crate::ops::device_check::CheckMode;
use crate::ops::tensors::{Given, addresses, given};
use crate::runtime::Launch;
use crate::tensor::{TensorView, TensorViewMut};

/// What is wanted.
#[derive(Debug)]
pub struct GatherRequest<'a> {
    /// `[num_blocks, block_size, row]`, any strides whose last is 1; V4: `[num_blocks, page_bytes]`, u8.
    pub cache: TensorView<'a>,
    /// Tokens per cache block.
    pub block_size: usize,
    /// How the cache stores a token.
    pub form: GatherForm<'a>,
    /// `[num_rows, row]`; for [`GatherRows::Padded`] `[num_seqs, rows_per_seq, row]`. A row is `cache`'s, or
    /// 576 (656-byte form) or 512 (V4's) values of bf16.
    pub out: TensorViewMut<'a>,
    /// Which token goes to which row.
    pub rows: GatherRows<'a>,
    /// Whether rows without a token become zeros; else they stay as they are.
    pub zero_missing: bool,
    /// Whether what rows refer to, and the scale, are checked on the device first.
    pub check: CheckMode,
}

/// How a cache stores a token.
#[derive(Clone, Copy, Debug)]
pub enum GatherForm<'a> {
    /// As `out` has it: bytes are copied, whatever they mean.
    Raw,
    /// FP8 (see [`support`](crate::plan::support)); `out` (bf16, f16 or f32) gets `stored * scale`.
    Fp8 {
        /// `[1]`, f32.
        scale: TensorView<'a>,
    },
    /// 656 bytes a token (`fp8_ds_mla`); `out` is bf16.
    Fp8Ds,
    /// DeepSeek V4's pages; `out` is bf16.
    V4,
}

/// Which token goes to which row of the output.
#[derive(Clone, Copy, Debug)]
pub enum GatherRows<'a> {
    /// All tokens of some sequences, one after the other: row `r` of sequence `s`, where
    /// `row_starts[s] <= r < row_starts[s + 1]`, is token `first_tokens[s] + r - row_starts[s]`.
    Ragged {
        /// `[num_seqs, max_num_blocks_per_seq]`, i32; entries past a sequence's tokens are not read.
        block_table: TensorView<'a>,
        /// `[num_seqs + 1]`, i32, not decreasing; ends at `num_rows` or before.
        row_starts: TensorView<'a>,
        /// `[num_seqs]`, i32, if sequences do not begin with token 0; need not be multiples of `block_size`.
        first_tokens: Option<TensorView<'a>>,
    },
    /// The last `lens[s]` of each sequence's `seq_lens[s]` tokens, a fixed number of rows for each.
    Padded {
        /// `[num_seqs, max_num_blocks_per_seq]`, i32; entries past a sequence's tokens are not read.
        block_table: TensorView<'a>,
        /// `[num_seqs]`, i32.
        seq_lens: TensorView<'a>,
        /// `[num_seqs]`, i32; none for all tokens.
        lens: Option<TensorView<'a>>,
    },
    /// Positions in sequences, as an indexer chooses them: `indices[t, k]` of sequence `seqs[t]`.
    TopK {
        /// `[num_seqs, max_num_blocks_per_seq]`, i32.
        block_table: TensorView<'a>,
        /// `[num_tokens, topk]`, i32, contiguous; negative ones are skipped.
        indices: TensorView<'a>,
        /// `[num_tokens]`, i32; none if token `t` is of sequence `t`.
        seqs: Option<TensorView<'a>>,
    },
    /// Slots of the cache: `block * block_size + offset`.
    Slots {
        /// `[num_rows]`, i32; negative ones are skipped.
        slots: TensorView<'a>,
    },
}

/// A request whose tensors agree with each other.
#[derive(Debug)]
pub struct CheckedGather<'a> {
    pub(super) request: GatherRequest<'a>,
    pub(super) check: Option<Launch>,
    pub(super) launch: Launch,
    pub(super) params: GatherParams,
}

impl<'a> GatherRequest<'a> {
    /// The tensors, in the order of the kernels' parameters.
    pub(super) fn tensors(&self) -> [Given<'_, 'a>; 6] {
        let scale = match &self.form {
            GatherForm::Fp8 { scale } => Some(scale),
            GatherForm::Raw | GatherForm::Fp8Ds | GatherForm::V4 => None,
        };
        let [block_table, rows, seqs] = match &self.rows {
            GatherRows::Ragged {
                block_table,
                row_starts,
                first_tokens,
            } => [
                Some(named("block_table", block_table)),
                Some(named("row_starts", row_starts)),
                given("first_tokens", first_tokens.as_ref()),
            ],
            GatherRows::Padded {
                block_table,
                seq_lens,
                lens,
            } => [
                Some(named("block_table", block_table)),
                given("lens", lens.as_ref()),
                Some(named("seq_lens", seq_lens)),
            ],
            GatherRows::TopK {
                block_table,
                indices,
                seqs,
            } => [
                Some(named("block_table", block_table)),
                Some(named("indices", indices)),
                given("seqs", seqs.as_ref()),
            ],
            GatherRows::Slots { slots } => [None, Some(named("slots", slots)), None],
        };
        let cache = Some(named("cache", &self.cache));
        let out = Some(named("out", self.out.view()));
        [cache, out, given("scale", scale), block_table, rows, seqs]
    }

    /// Parameters with the addresses of the tensors.
    pub(super) fn at(&self, params: GatherParams) -> GatherParams {
        let [cache, out, scale, block_table, rows, seqs] = addresses(self.tensors());
        GatherParams {
            cache,
            out,
            scale,
            block_table,
            rows,
            seqs,
            ..params
        }
    }
}

impl GatherForm<'_> {
    /// Which of them it is.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Raw => "Raw",
            Self::Fp8 { .. } => "Fp8",
            Self::Fp8Ds => "Fp8Ds",
            Self::V4 => "V4",
        }
    }
}

impl GatherRows<'_> {
    /// Which of them it is.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Ragged { .. } => "Ragged",
            Self::Padded { .. } => "Padded",
            Self::TopK { .. } => "TopK",
            Self::Slots { .. } => "Slots",
        }
    }
}
