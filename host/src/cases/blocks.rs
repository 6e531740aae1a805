//! Copies and compaction of whole blocks: parameters, tensors, and what they have to become.

use std::fmt;

use super::exact::DeviceCase;
use super::fill::{Amount, noise, shuffled};
use super::run::workspace;
use super::text::{CaseError, Fields, MAX_BLOCK_SIZE, MAX_HEADS, MAX_TOKENS};
use super::{Uploads, fill::POISON};
use crate::error::Result;
use crate::ops::{BlockCaches, CheckMode, CompactReferences, CompactRequest, CopyBlocksRequest};
use crate::reference::HostTensor;
use crate::runtime::{Buffer, Launcher, Runtime};
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

const NAMES: [(BlocksOperation, &str); 3] = [
    (BlocksOperation::Copy, "copy_blocks"),
    (BlocksOperation::CompactTables, "compact_tables"),
    (BlocksOperation::CompactSlots, "compact_slots"),
];
/// Every so many names one names nothing.
const GAP: usize = 7;
/// Sequences of a compaction.
const SEQS: usize = 4;

impl BlocksOperation {
    pub(super) fn named(name: &str) -> Option<Self> {
        NAMES
            .iter()
            .find(|(_, other)| *other == name)
            .map(|&(it, _)| it)
    }
}

impl BlocksCase {
    /// Blocks that are moved, in and out, at most, and what names them.
    pub fn unavoidable_bytes(&self) -> u64 {
        let block = self.block_size * self.row * self.dtype.size();
        let (blocks, names) = match self.operation {
            // See `GAP`: in this many pairs one of the two is padding.
            BlocksOperation::Copy => (self.count - 2 * self.count / GAP, 16 * self.count),
            _ => (self.num_blocks / 4, 8 * SEQS * self.count),
        };
        (2 * blocks * block + names) as u64
    }

    /// See [`super::Case::peer_name`].
    pub fn peer_name(&self) -> String {
        self.to_string()
    }

    pub(super) fn read(
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
        };
        let most = match operation {
            BlocksOperation::Copy => case.num_blocks / 2,
            _ => case.num_blocks * case.block_size / SEQS,
        };
        if case.count > most {
            return Err(CaseError(format!("`count=` goes up to {most} here")));
        }
        Ok(case)
    }
}

impl fmt::Display for BlocksCase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = NAMES.iter().find(|(it, _)| *it == self.operation);
        let name = name.map_or("", |&(_, name)| name);
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
        )
    }
}

/// The case on a machine.
pub(super) struct ExactBlocks<'m> {
    case: BlocksCase,
    cache: HostTensor,
    compact: HostTensor,
    /// Pairs; a block table; slots.
    names: HostTensor,
    lens: HostTensor,
    renamed: HostTensor,
    num_wanted: HostTensor,
    uploads: Uploads<'m>,
    workspace: Buffer<'m>,
}

fn integers(name: &'static str, shape: &[usize], values: impl Iterator<Item = i64>) -> HostTensor {
    let values = values.map(|value| i32::try_from(value).expect("cases have few blocks"));
    HostTensor::contiguous(
        name,
        Dtype::I32,
        shape,
        values.flat_map(i32::to_le_bytes).collect(),
    )
}

impl<'m> ExactBlocks<'m> {
    pub(super) fn new(
        case: &BlocksCase,
        runtime: &'m dyn Runtime,
        seed: u64,
        _amount: Amount,
    ) -> Result<Self> {
        let cache = |name, blocks: usize| {
            let shape = [blocks, case.block_size, case.row];
            let bytes = noise(
                shape.iter().product::<usize>() * case.dtype.size(),
                seed,
                name,
            );
            HostTensor::contiguous(name, case.dtype, &shape, bytes)
        };
        let id = |(at, &id): (usize, &usize)| match at % GAP {
            at if at == GAP - 1 => -1,
            _ => id as i64,
        };
        let width = case.count.div_ceil(case.block_size);
        let ids = shuffled(case.num_blocks, seed);
        let names = match case.operation {
            BlocksOperation::Copy => {
                let pairs = ids[..2 * case.count].iter().enumerate().map(id);
                let bytes = pairs.flat_map(i64::to_le_bytes).collect();
                HostTensor::contiguous("pairs", Dtype::I64, &[case.count, 2], bytes)
            }
            BlocksOperation::CompactTables => {
                // Half of the blocks, so that sequences share some.
                let shared = ids[..case.num_blocks.div_ceil(2)]
                    .iter()
                    .enumerate()
                    .cycle();
                let table = shared.step_by(3).map(id).take(SEQS * width);
                integers("block_table", &[SEQS, width], table)
            }
            BlocksOperation::CompactSlots => {
                let slots = shuffled(case.num_blocks * case.block_size, seed);
                integers(
                    "slots",
                    &[SEQS, case.count],
                    slots[..SEQS * case.count].iter().enumerate().map(id),
                )
            }
        };
        let lens = integers(
            "seq_lens",
            &[SEQS],
            (0..SEQS).map(|seq| (case.count - seq.min(case.count)) as i64),
        );
        let renamed = HostTensor::contiguous(
            "renamed",
            Dtype::I32,
            &names.shape,
            vec![POISON; 4 * names.num_elements()],
        );
        let num_wanted = HostTensor::contiguous("num_wanted", Dtype::I32, &[1], vec![POISON; 4]);
        let (cache, compact) = (
            cache("cache", case.num_blocks),
            cache("compact", case.num_blocks / 4),
        );
        let all = [&cache, &compact, &names, &lens, &renamed, &num_wanted];
        Ok(Self {
            case: case.clone(),
            uploads: Uploads::new(runtime, all)?,
            workspace: workspace(runtime, 3 * (4 * case.num_blocks).next_multiple_of(256))?,
            cache,
            compact,
            names,
            lens,
            renamed,
            num_wanted,
        })
    }

    /// Copies block `from` of the cache to block `to` of the tensor whose bytes these are.
    fn copy(&self, from: usize, to: usize, bytes: &mut [u8]) {
        let block = self.cache.strides[0] * self.cache.dtype.size();
        let from = &self.cache.storage.bytes[from * block..(from + 1) * block];
        bytes[to * block..(to + 1) * block].copy_from_slice(from);
    }

    /// Position, block and offset of each reference that counts; no block if it names none.
    fn references(&self) -> Vec<(usize, Option<usize>, usize)> {
        let page = self.case.block_size;
        let width = self.names.shape[1];
        let mut references = Vec::new();
        for at in 0..SEQS * width {
            let [seq, column] = [at / width, at % width];
            let name = usize::try_from(self.names.integer(&[seq, column])).ok();
            if self.case.operation == BlocksOperation::CompactSlots {
                references.push((
                    at,
                    name.map(|slot| slot / page),
                    name.map_or(0, |slot| slot % page),
                ));
            } else if self.lens.integer(&[seq]) > (column * page) as i64 {
                references.push((at, name, 0));
            }
        }
        references
    }
}

/// As an i32.
fn number(at: usize) -> [u8; 4] {
    i32::try_from(at)
        .expect("cases have few blocks")
        .to_le_bytes()
}

impl<'m> DeviceCase<'m> for ExactBlocks<'m> {
    fn uploads(&self) -> &Uploads<'m> {
        &self.uploads
    }

    fn launch(&mut self, _set: usize, launcher: &dyn Launcher) -> Result<String> {
        let uploads = &self.uploads;
        // SAFETY: `self` is borrowed exclusively, and launches of one stream run in order.
        let write = |tensor: &HostTensor| unsafe { uploads.view_mut(tensor) };
        if self.case.operation == BlocksOperation::Copy {
            let checked = CopyBlocksRequest {
                caches: BlockCaches::Within(write(&self.cache)?),
                pairs: uploads.view(&self.names)?,
                check: CheckMode::Off,
            }
            .check()?;
            let plan = checked.plan();
            checked.launch(&plan, &mut self.workspace.view_mut(), launcher)?;
            return Ok(plan.to_string());
        }
        let renamed = write(&self.renamed)?;
        let names = uploads.view(&self.names)?;
        let checked = CompactRequest {
            caches: vec![(uploads.view(&self.cache)?, write(&self.compact)?)],
            block_size: self.case.block_size,
            references: if self.case.operation == BlocksOperation::CompactTables {
                CompactReferences::Tables {
                    block_table: names,
                    seq_lens: uploads.view(&self.lens)?,
                    renamed,
                }
            } else {
                CompactReferences::Slots {
                    slots: names,
                    renamed,
                }
            },
            num_wanted: write(&self.num_wanted)?,
        }
        .check()?;
        let plan = checked.plan();
        checked.launch(&plan, &mut self.workspace.view_mut(), launcher)?;
        Ok(plan.to_string())
    }

    fn outputs(&self) -> Result<Vec<HostTensor>> {
        [&self.cache, &self.compact, &self.renamed, &self.num_wanted]
            .into_iter()
            .map(|tensor| self.uploads.read(tensor))
            .collect()
    }

    fn expected(&self) -> Vec<Vec<u8>> {
        let bytes = |tensor: &HostTensor| tensor.storage.bytes.clone();
        let (mut cache, mut compact) = (bytes(&self.cache), bytes(&self.compact));
        let (mut renamed, mut num_wanted) = (bytes(&self.renamed), bytes(&self.num_wanted));
        if self.case.operation == BlocksOperation::Copy {
            for pair in 0..self.case.count {
                let [from, to] =
                    [0, 1].map(|side| usize::try_from(self.names.integer(&[pair, side])));
                if let (Ok(from), Ok(to)) = (from, to) {
                    self.copy(from, to, &mut cache);
                }
            }
            return vec![cache, compact, renamed, num_wanted];
        }
        let references = self.references();
        let mut wanted: Vec<usize> = references
            .iter()
            .filter_map(|&(_, block, _)| block)
            .collect();
        wanted.sort_unstable();
        wanted.dedup();
        let capacity = self.compact.shape[0];
        for (id, &block) in wanted.iter().take(capacity).enumerate() {
            self.copy(block, id, &mut compact);
        }
        let is_slot = self.case.operation == BlocksOperation::CompactSlots;
        for (at, block, offset) in references {
            let id = block.and_then(|block| wanted.binary_search(&block).ok());
            let name = match id.filter(|&id| id < capacity) {
                Some(id) if is_slot => number(id * self.case.block_size + offset),
                Some(id) => number(id),
                // −1.
                None => [0xff; 4],
            };
            renamed[4 * at..4 * at + 4].copy_from_slice(&name);
        }
        num_wanted.copy_from_slice(&number(wanted.len()));
        vec![cache, compact, renamed, num_wanted]
    }
}
