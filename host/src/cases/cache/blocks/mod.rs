//! Cases of operations on whole blocks: which operations there are, and how a case is written.
//!
//! Each operation has a file here. It says once what the operation's tensors are called and what request they make (an
//! [`Operation`](crate::cases::named::Operation), which `ferroattn run` has from here too), what is in those of a case,
//! and what they have to become ([`rules::BlocksRules`]). `device` runs cases of all by that.

mod compact;
mod copy;
mod device;
mod rules;

use std::fmt;

use crate::cases::base::device_case::Described;
use crate::cases::base::options::{read_check, write_check};
use crate::cases::base::text::{CaseError, Fields, MAX_BLOCK_SIZE, MAX_HEADS, MAX_TOKENS};
use crate::cases::named::FileContents;

use rules::BlocksTensors;
pub use rules::{BlocksCase, BlocksOperation};

impl BlocksOperation {
    /// All of them: every named list has some of each, cases of each are drawn, and `ferroattn run` runs each.
    pub(crate) const ALL: [Self; 3] = [
        Self(&copy::COPY),
        Self(&compact::TABLES),
        Self(&compact::SLOTS),
    ];

    /// The operation of this name.
    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|it| it.name() == name)
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
