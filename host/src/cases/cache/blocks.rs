//! Parameters of a copy or a compaction of whole blocks.

use std::fmt;

use crate::cases::base::device_case::Described;
use crate::cases::base::fill::Fill;
use crate::cases::base::options::{read_check, write_check};
use crate::cases::base::text::{CaseError, Fields, MAX_BLOCK_SIZE, MAX_HEADS, MAX_TOKENS};
use crate::ops::CheckMode;
use crate::tensor::Dtype;

/// Parameters of a copy or a compaction of blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlocksCase {
    /// Of the cache.
    pub dtype: Dtype,
    /// What is done.
    pub operation: BlocksOperation,
    /// Tokens per block.
    pub block_size: usize,
    /// Values per token.
    pub row: usize,
    /// Blocks of the cache.
    pub num_blocks: usize,
    /// Pairs of blocks, tokens of a sequence, or slots.
    pub count: usize,
    /// Whether the pairs of a copy are checked on the device; nothing of a compaction is.
    pub check: CheckMode,
    /// What the numbers are like: they have to arrive as they are.
    pub fill: Fill,
}

/// What is done with blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlocksOperation {
    /// Some are copied to others of the same cache.
    Copy,
    /// Those of four sequences are compacted, into a quarter of the blocks.
    CompactTables,
    /// Those of chosen slots are compacted, likewise.
    CompactSlots,
}

/// Every so many names one names nothing.
pub(crate) const GAP: usize = 7;
/// Sequences of a compaction.
pub(crate) const SEQS: usize = 4;

impl BlocksOperation {
    /// All of them: every named list has some of each, and cases of each are drawn.
    pub(crate) const ALL: [Self; 3] = [Self::Copy, Self::CompactTables, Self::CompactSlots];

    /// As a case's line begins.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Copy => "copy_blocks",
            Self::CompactTables => "compact_tables",
            Self::CompactSlots => "compact_slots",
        }
    }

    /// The operation of this name.
    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|it| it.name() == name)
    }

    /// Whether its indices can be checked on the device.
    pub(crate) fn is_checkable(self) -> bool {
        match self {
            Self::Copy => true,
            Self::CompactTables | Self::CompactSlots => false,
        }
    }

    /// The largest [`BlocksCase::count`] over `num_blocks` blocks of `block_size` tokens.
    pub(crate) fn most(self, num_blocks: usize, block_size: usize) -> usize {
        match self {
            Self::Copy => num_blocks / 2,
            Self::CompactTables | Self::CompactSlots => num_blocks * block_size / SEQS,
        }
    }
}

impl BlocksCase {
    pub(crate) fn read(
        operation: BlocksOperation,
        fields: &mut Fields<'_>,
    ) -> Result<Self, CaseError> {
        let case = Self {
            dtype: fields.dtype(),
            operation,
            block_size: fields.size("page", MAX_BLOCK_SIZE)?,
            row: fields.size("row", MAX_HEADS)?,
            num_blocks: fields.size("blocks", MAX_TOKENS)?,
            count: fields.size("count", MAX_BLOCK_SIZE)?,
            check: match operation.is_checkable() {
                true => read_check(fields)?,
                false => CheckMode::Off,
            },
            fill: fields.optional("fill")?.unwrap_or_default(),
        };
        let most = operation.most(case.num_blocks, case.block_size);
        if case.count > most {
            return Err(CaseError(format!("`count=` goes up to {most} here")));
        }
        Ok(case)
    }
}

impl Described for BlocksCase {
    fn peer_name(&self) -> String {
        self.to_string()
    }

    /// Blocks that are moved, in and out, at most, and what names them.
    fn unavoidable_bytes(&self, _seed: u64) -> u64 {
        let block = self.block_size * self.row * self.dtype.size();
        let (blocks, names) = match self.operation {
            // See `GAP`: in this many pairs one of the two is padding.
            BlocksOperation::Copy => (self.count - 2 * self.count / GAP, 16 * self.count),
            BlocksOperation::CompactTables | BlocksOperation::CompactSlots => {
                (self.num_blocks / 4, 8 * SEQS * self.count)
            }
        };
        (2 * blocks * block + names) as u64
    }
}

impl fmt::Display for BlocksCase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.operation.name();
        let Self {
            dtype,
            block_size,
            row,
            num_blocks,
            count,
            ..
        } = self;
        write!(
            f,
            "{name} {dtype} page={block_size} row={row} blocks={num_blocks} count={count}"
        )?;
        write_check(self.check, f)?;
        self.fill.write(f)
    }
}
