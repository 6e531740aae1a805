//! Cases of operations on whole blocks: their parameters, and which operations there are.
//!
//! Each operation has a file here. It says once what the operation's tensors are called and what request they make
//! ([`Operation`], which `ferroattn run` has from here too), what is in those of a case, and what they have to become
//! ([`BlocksRules`]). `device` runs cases of all by that.

mod compact;
mod copy;
mod device;
mod rules;

use std::fmt;

use crate::cases::base::device_case::Described;
use crate::cases::base::fill::Fill;
use crate::cases::base::options::{read_check, write_check};
use crate::cases::base::text::{CaseError, Fields, MAX_BLOCK_SIZE, MAX_HEADS, MAX_TOKENS};
use crate::cases::named::{FileContents, Operation};
use crate::ops::CheckMode;
use crate::tensor::Dtype;

use rules::{BlocksRules, BlocksTensors};

/// Parameters of an operation on blocks.
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
    /// Pairs of blocks, tokens of a sequence, or slots: as many things as name blocks.
    pub count: usize,
    /// Whether what names blocks is checked on the device.
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

impl BlocksOperation {
    /// All of them: every named list has some of each, cases of each are drawn, and `ferroattn run` runs each.
    pub(crate) const ALL: [Self; 3] = [Self::Copy, Self::CompactTables, Self::CompactSlots];

    /// What its file says of it.
    const fn rules(self) -> &'static BlocksRules {
        match self {
            Self::Copy => &copy::COPY,
            Self::CompactTables => &compact::TABLES,
            Self::CompactSlots => &compact::SLOTS,
        }
    }

    /// As a case's line begins.
    pub(crate) const fn name(self) -> &'static str {
        self.rules().name
    }

    /// The operation of this name.
    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|it| it.name() == name)
    }

    /// The request over named tensors.
    pub(crate) fn operation(self) -> &'static Operation {
        self.rules().operation
    }

    /// As `ferroattn run` calls it, which has one name for all ways to compact.
    pub fn run_name(self) -> &'static str {
        self.operation().name
    }

    /// The largest [`BlocksCase::count`] over `num_blocks` blocks of `block_size` tokens.
    pub(crate) fn most(self, num_blocks: usize, block_size: usize) -> usize {
        (self.rules().most)(num_blocks, block_size)
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
            check: read_check(fields)?,
            fill: fields.optional("fill")?.unwrap_or_default(),
        };
        let most = operation.most(case.num_blocks, case.block_size);
        if case.count > most {
            return Err(CaseError(format!("`count=` goes up to {most} here")));
        }
        Ok(case)
    }

    /// Bytes of a block.
    fn block_bytes(&self) -> usize {
        self.block_size * self.row * self.dtype.size()
    }

    /// The case as a file for `ferroattn run`, by [`BlocksOperation::run_name`].
    pub fn file_contents(&self, seed: u64) -> FileContents {
        BlocksTensors::new(self, seed).file_contents()
    }
}

impl Described for BlocksCase {
    fn peer_name(&self) -> String {
        self.to_string()
    }

    fn unavoidable_bytes(&self, _seed: u64) -> u64 {
        (self.operation.rules().moved_bytes)(self) as u64
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
