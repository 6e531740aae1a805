//! What an operation on blocks is, the parameters of its cases, and their tensors.

use std::fmt;

use rand_chacha::ChaCha8Rng;

use crate::cases::base::fill::{Fill, Painter, poison};
use crate::cases::base::memory_mistake::MemoryMistake;
use crate::cases::base::tensors::noise;
use crate::cases::cache::slots::written_role;
use crate::cases::named::{FileContents, Operation};
use crate::ops::CheckMode;
use crate::reference::HostTensor;
use crate::tensor::Dtype;

/// What an operation is. Its file has a constant of it.
pub(super) struct BlocksRules {
    /// As a case's line begins.
    pub(super) name: &'static str,
    /// The request over named tensors.
    pub(super) operation: &'static Operation,
    /// Which of those is the cache, `[num_blocks, block_size, row]`.
    pub(super) cache: &'static str,
    /// The largest [`BlocksCase::count`] over so many blocks of so many tokens.
    pub(super) most: fn(usize, usize) -> usize,
    /// Bytes that any implementation has to move.
    pub(super) moved_bytes: fn(&BlocksCase) -> usize,
    /// The other tensors that the operation is given, made with a seed: what names blocks.
    pub(super) names: fn(&BlocksCase, u64) -> Vec<HostTensor>,
    /// The entries of metadata that it is given.
    pub(super) metadata: fn(&BlocksCase) -> Vec<(&'static str, String)>,
    /// The blocks whose numbers count: in all others may be anything.
    pub(super) read: fn(&BlocksTensors) -> Vec<usize>,
    /// All that is written.
    pub(super) expected: fn(&BlocksTensors) -> Vec<Written>,
    /// What a check on the device has to find.
    pub(super) mistakes: Mistakes,
}

/// What is done with blocks.
#[derive(Clone, Copy)]
pub struct BlocksOperation(pub(super) &'static BlocksRules);

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

/// The name of a tensor that is written, and the bytes that it has to hold then.
pub(super) type Written = (&'static str, Vec<u8>);

/// Wrong values for device memory, drawn for these tensors.
type Mistakes = fn(&BlocksTensors, &mut ChaCha8Rng) -> Vec<MemoryMistake>;

/// The tensors that a case gives to its operation.
pub(super) struct BlocksTensors {
    pub(super) case: BlocksCase,
    /// `[num_blocks, block_size, row]`
    pub(super) cache: HostTensor,
    /// See [`BlocksRules::names`].
    pub(super) names: Vec<HostTensor>,
}

impl BlocksOperation {
    /// What its file says of it.
    pub(super) const fn rules(self) -> &'static BlocksRules {
        self.0
    }

    /// As a case's line begins.
    pub(crate) const fn name(self) -> &'static str {
        self.0.name
    }

    /// The request over named tensors.
    pub(crate) fn operation(self) -> &'static Operation {
        self.0.operation
    }

    /// As `ferroattn run` calls it, which has one name for all ways to compact.
    pub fn run_name(self) -> &'static str {
        self.operation().name
    }

    /// The largest [`BlocksCase::count`] over `num_blocks` blocks of `block_size` tokens.
    pub(crate) fn most(self, num_blocks: usize, block_size: usize) -> usize {
        (self.0.most)(num_blocks, block_size)
    }
}

impl PartialEq for BlocksOperation {
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name()
    }
}

impl Eq for BlocksOperation {}

impl fmt::Debug for BlocksOperation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl BlocksCase {
    /// Bytes of a block.
    pub(super) fn block_bytes(&self) -> usize {
        self.block_size * self.row * self.dtype.size()
    }
}

/// Every so many names one names nothing.
pub(super) const GAP: usize = 7;

/// The name at place `at` of many, or −1.
pub(super) fn name_or_gap(at: usize, name: usize) -> i64 {
    match at % GAP {
        at if at == GAP - 1 => -1,
        _ => name as i64,
    }
}

impl BlocksTensors {
    pub(super) fn new(case: &BlocksCase, seed: u64) -> Self {
        let rules = case.operation.rules();
        let shape = [case.num_blocks, case.block_size, case.row];
        let bytes = noise(case.num_blocks * case.block_bytes(), seed, "cache");
        let mut tensors = Self {
            case: case.clone(),
            cache: HostTensor::contiguous(rules.cache, case.dtype, &shape, bytes),
            names: (rules.names)(case, seed),
        };
        tensors.special(seed);
        tensors
    }

    /// The cache's blocks as the fill wants them; poison is in blocks that nobody reads.
    fn special(&mut self, seed: u64) {
        let case = &self.case;
        if case.fill != Fill::Poison {
            let role = written_role(case.fill);
            Painter::new(case.fill, seed, 50).paint_all(role, &mut self.cache);
            return;
        }
        let read = (case.operation.rules().read)(self);
        let row_bytes = case.row * case.dtype.size();
        let mut bytes = self.cache.storage.bytes.clone();
        for block in (0..case.num_blocks).filter(|block| !read.contains(block)) {
            for row in block * case.block_size..(block + 1) * case.block_size {
                let row = &mut bytes[row * row_bytes..(row + 1) * row_bytes];
                poison(case.dtype, row, block, false);
            }
        }
        self.cache = self.cache.with_bytes(bytes);
    }

    pub(super) fn file_contents(&self) -> FileContents {
        FileContents {
            tensors: [&self.names[..], std::slice::from_ref(&self.cache)].concat(),
            metadata: (self.case.operation.rules().metadata)(&self.case),
        }
    }

    /// Copies block `from` of the cache to block `to` of the tensor whose bytes these are.
    pub(super) fn copy(&self, from: usize, to: usize, bytes: &mut [u8]) {
        let block = self.case.block_bytes();
        let from = &self.cache.storage.bytes[from * block..(from + 1) * block];
        bytes[to * block..(to + 1) * block].copy_from_slice(from);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cases::base::text::Fields;

    /// The numbers of each block of the cache.
    fn blocks(line: &str) -> (BlocksTensors, Vec<Vec<f64>>) {
        let (operation, mut fields) = Fields::read(line).expect("a line");
        let operation = BlocksOperation::named(operation).expect("an operation");
        let case = BlocksCase::read(operation, &mut fields).expect("a case");
        let tensors = BlocksTensors::new(&case, 5);
        let numbers = (0..case.num_blocks)
            .map(|block| {
                let rows = (0..case.block_size).map(|slot| tensors.cache.row(&[block, slot]));
                rows.flatten().collect()
            })
            .collect();
        (tensors, numbers)
    }

    #[test]
    fn poison_is_in_every_block_that_is_not_read_and_in_no_other() {
        for name in ["copy_blocks", "compact_tables", "compact_slots"] {
            let line = format!("{name} bf16 page=3 row=8 blocks=60 count=9 fill=poison");
            let (tensors, blocks) = blocks(&line);
            let read = (tensors.case.operation.rules().read)(&tensors);
            assert!(!read.is_empty() && read.len() < 60, "{line}");
            for (block, numbers) in blocks.iter().enumerate() {
                let is_poison = numbers.iter().all(|x| !x.is_finite());
                assert_eq!(is_poison, !read.contains(&block), "block {block} of {line}");
            }
        }
    }

    #[test]
    fn what_is_copied_has_what_its_fill_is_for() {
        let copied = |fill: &str| {
            let line = format!("copy_blocks bf16 page=6 row=8 blocks=40 count=20 fill={fill}");
            let (tensors, blocks) = blocks(&line);
            let sources = (tensors.case.operation.rules().read)(&tensors).into_iter();
            sources
                .flat_map(|from| blocks[from].clone())
                .collect::<Vec<f64>>()
        };
        let zeros = copied("zeros");
        assert!(zeros.iter().any(|x| x.to_bits() == 0));
        assert!(zeros.iter().any(|x| x.to_bits() == (-0.0f64).to_bits()));
        let least_normal = f64::from(f32::MIN_POSITIVE);
        assert!(
            copied("tiny")
                .iter()
                .any(|x| *x != 0.0 && x.abs() < least_normal)
        );
        assert!(
            copied("huge")
                .iter()
                .any(|x| x.is_finite() && x.abs() > 2f64.powi(98))
        );
        let lost = copied("not-finite");
        assert!(lost.iter().any(|x| x.is_nan()) && lost.contains(&f64::NEG_INFINITY));
        let equal = copied("equal");
        assert!(equal.chunks(8).all(|row| row == [row[0]; 8]));
    }
}
