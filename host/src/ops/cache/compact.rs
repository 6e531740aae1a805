//! Compaction: the blocks that block tables or indices refer to, and no others, in a cache of their own, and
//! the references by their new names.
//!
//! Negative references name nothing (engines write −1 where they have freed a block) and stay −1, and so does what lies
//! outside the pool. With [`CheckMode::Device`] the latter is a fault, as are lengths below zero and those that a row of
//! the block table cannot name.
//!
//! A launch for each pool and three more (four, with a check), whatever the references say: nothing waits for the host,
//! the workspace is bounded by the pool (eight bytes a block), and all of it can be captured. New ids follow the order
//! of the old ones, so equal references give equal bytes. If more blocks are wanted than the compact cache has, those
//! with the largest ids have no place, and what refers to them becomes −1; `num_wanted` says how many there were.
//!
//! **When.** Compaction pays where a pool as a whole is too large to be touched: to send the blocks of some
//! sequences elsewhere (host, another device), or to dequantise once what many layers' or steps' readers
//! share. It moves whole blocks: for chosen tokens (`topk` of them, scattered) [`super::GatherRows::TopK`]
//! moves only those and needs one launch; and [`crate::ops::DecodeRequest`] reads pools as they are, of every
//! dtype, with no copy at all.

use gpu_kernels::entry::Variant;
use gpu_kernels::gather::grid as gather;
use gpu_kernels::gpu::fast_divmod::FastDivmod;
use gpu_kernels::params::{CompactParams, GatherParams};

use super::copy_blocks::check_blocks;
use crate::error::{RequestError, Result};
use crate::ops::checks::{count, named};
use crate::ops::device_check::CheckMode;
use crate::ops::layout::{alignment, byte_stride, elements};
use crate::ops::tensors::{Given, addresses};
use crate::plan::variants;
use crate::runtime::Launch;
use crate::tensor::{Dtype, TensorView, TensorViewMut};

/// What is wanted.
#[derive(Debug)]
pub struct CompactRequest<'a> {
    /// Pools and their compact caches, `[num_blocks, ..]` and `[num_compact_blocks, ..]`: keys and values,
    /// say, or several layers, of any forms as long as all have the same numbers of blocks. Of each, a block
    /// fills one piece of memory, ordered alike on both sides. Blocks past `num_wanted` stay as they are.
    pub caches: Vec<(TensorView<'a>, TensorViewMut<'a>)>,
    /// Tokens per block.
    pub block_size: usize,
    /// What refers to blocks, and where the new names go.
    pub references: CompactReferences<'a>,
    /// `[1]`, i32: how many blocks are referred to.
    pub num_wanted: TensorViewMut<'a>,
    /// Whether references and lengths are checked on the device first. After a fault nothing is written.
    pub check: CheckMode,
}

/// What refers to blocks.
#[derive(Debug)]
pub enum CompactReferences<'a> {
    /// Whole sequences.
    Tables {
        /// `[num_seqs, max_num_blocks_per_seq]`, i32; entries past a sequence's tokens are not read. Negative ones, and
        /// those outside the pool, become −1.
        block_table: TensorView<'a>,
        /// `[num_seqs]`, i32, contiguous. Unchecked, a length that a row cannot name is cut to it; one below zero is
        /// zero.
        seq_lens: TensorView<'a>,
        /// As `block_table`, with the new ids; entries past a sequence's tokens stay as they are.
        renamed: TensorViewMut<'a>,
    },
    /// Chosen tokens.
    Slots {
        /// `[n]` or `[num_tokens, topk]`, contiguous i32: `block * block_size + offset`; negative ones, and
        /// those outside the cache, become −1.
        slots: TensorView<'a>,
        /// As `slots`, in the compact cache.
        renamed: TensorViewMut<'a>,
    },
}

/// A request whose tensors agree with each other.
#[derive(Debug)]
pub struct CheckedCompact<'a> {
    /// Without the workspace's addresses.
    pub(super) params: CompactParams,
    /// One for each pair of caches; likewise.
    pub(super) gathers: Vec<BlockGather>,
    pub(super) request: CompactRequest<'a>,
}

/// How the blocks of one pool are copied.
#[derive(Clone, Copy, Debug)]
pub(super) struct BlockGather {
    pub(super) launch: Launch,
    pub(super) params: GatherParams,
}

impl<'a> CompactRequest<'a> {
    /// Checks every tensor against the others.
    ///
    /// # Errors
    /// [`crate::error::RequestError`] naming the first tensor that does not fit.
    pub fn check(self) -> Result<CheckedCompact<'a>> {
        let num_wanted = named("num_wanted", self.num_wanted.view());
        num_wanted.indices::<1>(Dtype::I32, "[1]")?;
        num_wanted.shape("[1]", &[1])?;
        let block_size = count("block_size", self.block_size)?;
        let ([num_blocks, num_compact_blocks], gathers) = self.gathers()?;
        if block_size == 0 || i64::from(block_size) * i64::from(num_compact_blocks) > 1 << 31 {
            return Err(RequestError::Value {
                name: "block_size",
                expected: "at least 1, with compact slots that fit an i32".into(),
                got: block_size.to_string(),
            }
            .into());
        }
        let mut params = self.at(CompactParams {
            references: 0,
            seq_lens: 0,
            renamed: 0,
            marks: 0,
            new_ids: 0,
            old_ids: 0,
            num_wanted: 0,
            check: 0,
            stride_references: 0,
            stride_renamed: 0,
            num_rows: 0,
            max_num_blocks_per_seq: 0,
            block_size: FastDivmod::new(block_size),
            num_blocks,
            num_compact_blocks,
            reserved: 0,
        });
        self.references(&mut params)?;
        Ok(CheckedCompact {
            params,
            gathers,
            request: self,
        })
    }

    /// How many blocks there are, before and after; and how they are copied: each new id is a row of a
    /// gather, whose token is the old one.
    fn gathers(&self) -> Result<([u32; 2], Vec<BlockGather>), RequestError> {
        let mut blocks = None;
        let mut gathers = Vec::new();
        for (pool, compact) in &self.caches {
            let pool_named = named("caches (pool)", pool);
            let compact_named = named("caches (compact)", compact.view());
            let block_bytes = check_blocks(pool_named, compact_named)?;
            pool_named.aligned(1)?;
            compact_named.aligned(1)?;
            let these = [pool.shape()[0], compact.view().shape()[0]];
            if *blocks.get_or_insert(these) != these {
                let expected =
                    format!("{blocks:?} blocks, as the first pool and its compact cache");
                return Err(pool_named.wrong_shape(expected));
            }
            let [num_blocks, num_rows] = these;
            let (stride_cache_block, stride_out_row) =
                (byte_stride(pool, 0), byte_stride(compact.view(), 0));
            let unit = alignment(&[
                pool.address(),
                compact.view().address(),
                stride_cache_block.cast_unsigned(),
                stride_out_row.cast_unsigned(),
                block_bytes,
            ]);
            let row_units = usize::try_from(block_bytes / u64::from(unit)).unwrap_or(usize::MAX);
            let params = GatherParams {
                cache: pool.address(),
                out: compact.view().address(),
                scale: 0,
                block_table: 0,
                rows: 0,
                seqs: 0,
                check: 0,
                stride_cache_block,
                stride_cache_slot: 0,
                stride_out_row,
                stride_out_seq: 0,
                stride_block_table: 0,
                num_rows: count("num_compact_blocks", num_rows)?,
                num_seqs: 0,
                rows_per_seq: FastDivmod::new(1),
                mode: GatherParams::INDICES,
                block_size: FastDivmod::new(1),
                num_blocks: count("num_blocks", num_blocks)?,
                max_num_blocks_per_seq: 0,
                zero_missing: 0,
                unit,
                row_units: count("bytes of a block", row_units)?,
            };
            let grid = gather::grid(params.num_rows, params.row_units)
                .ok_or_else(|| pool_named.wrong_shape("blocks of less than 2^27 bytes".into()))?;
            let launch = launch(Variant::GatherCopy, grid, 0);
            gathers.push(BlockGather { launch, params });
        }
        let [num_blocks, num_compact_blocks] = blocks.unwrap_or([0; 2]);
        let blocks = [
            count("num_blocks", num_blocks)?,
            count("num_compact_blocks", num_compact_blocks)?,
        ];
        Ok((blocks, gathers))
    }

    fn references(&self, params: &mut CompactParams) -> Result<(), RequestError> {
        match &self.references {
            CompactReferences::Tables {
                block_table,
                seq_lens,
                renamed,
            } => {
                let form = "[num_seqs, max_num_blocks_per_seq]";
                let [num_seqs, width] =
                    named("block_table", block_table).indices(Dtype::I32, form)?;
                let lens = named("seq_lens", seq_lens);
                lens.indices::<1>(Dtype::I32, "[num_seqs]")?;
                lens.shape("[num_seqs]", &[num_seqs])?;
                let names = named("renamed", renamed.view());
                names.indices::<2>(Dtype::I32, form)?;
                names.shape(form, &[num_seqs, width])?;
                params.stride_references = byte_stride(block_table, 0);
                params.stride_renamed = byte_stride(renamed.view(), 0);
                params.num_rows = count("num_seqs", num_seqs)?;
                params.max_num_blocks_per_seq = count("max_num_blocks_per_seq", width)?;
            }
            CompactReferences::Slots { slots, renamed } => {
                for (name, view) in [("slots", slots), ("renamed", renamed.view())] {
                    let slots = named(name, view);
                    slots.dtype(&[Dtype::I32])?;
                    slots.contiguous_from(0)?;
                    slots.aligned(4)?;
                }
                named("renamed", renamed.view()).shape("as `slots`", slots.shape())?;
                params.num_rows = count("slots", elements(slots.shape()))?;
                params.max_num_blocks_per_seq = match slots.shape() {
                    [_, .., len] => count("slots", *len)?,
                    [] | [_] => 0,
                };
            }
        }
        Ok(())
    }
}

impl<'a> CompactRequest<'a> {
    /// The tensors that are not caches, in the order of [`Self::at`].
    pub(super) fn tensors(&self) -> [Given<'_, 'a>; 4] {
        let num_wanted = Some(named("num_wanted", self.num_wanted.view()));
        match &self.references {
            CompactReferences::Tables {
                block_table,
                seq_lens,
                renamed,
            } => [
                num_wanted,
                Some(named("block_table", block_table)),
                Some(named("seq_lens", seq_lens)),
                Some(named("renamed", renamed.view())),
            ],
            CompactReferences::Slots { slots, renamed } => [
                num_wanted,
                Some(named("slots", slots)),
                None,
                Some(named("renamed", renamed.view())),
            ],
        }
    }

    /// Parameters with the addresses of the tensors.
    pub(super) fn at(&self, params: CompactParams) -> CompactParams {
        let [num_wanted, references, seq_lens, renamed] = addresses(self.tensors());
        CompactParams {
            num_wanted,
            references,
            seq_lens,
            renamed,
            ..params
        }
    }
}

impl CompactReferences<'_> {
    /// Which of them it is.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Tables { .. } => "Tables",
            Self::Slots { .. } => "Slots",
        }
    }
}

pub(super) fn launch(variant: Variant, grid: [u32; 3], shared_bytes: u32) -> Launch {
    Launch {
        kernel: variants::entry(variant).id,
        grid,
        shared_bytes,
        overlaps_previous: false,
    }
}
