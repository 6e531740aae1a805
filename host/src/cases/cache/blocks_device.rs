//! Copies and compaction of blocks on a machine: tensors, and what they have to become.

use rand_chacha::ChaCha8Rng;

use super::blocks::{BlocksCase, BlocksOperation, GAP, SEQS};
use super::mistakes::bad_pairs;
use super::slots::written_role;
use crate::cases::base::compare::Accuracy;
use crate::cases::base::device_case::{DeviceCase, Runnable, Workspaces, all_same};
use crate::cases::base::fill::{Fill, Painter, poison};
use crate::cases::base::memory_mistake::MemoryMistake;
use crate::cases::base::mismatch::Mismatch;
use crate::cases::base::tensors::{Amount, POISON, integers, noise, shuffled};
use crate::cases::base::uploads::Uploads;
use crate::error::Result;
use crate::ops::{BlockCaches, CheckMode, CompactReferences, CompactRequest, CopyBlocksRequest};
use crate::reference::HostTensor;
use crate::runtime::{Launcher, Runtime};
use crate::tensor::Dtype;

/// A copy or a compaction on a machine.
struct BlocksRun<'m> {
    case: BlocksCase,
    tensors: BlocksTensors,
    uploads: Uploads<'m>,
    workspaces: Workspaces<'m>,
}

/// Tensors of a copy or a compaction.
struct BlocksTensors {
    /// `[num_blocks, block_size, row]`
    cache: HostTensor,
    /// `[num_blocks / 4, block_size, row]`
    compact: HostTensor,
    /// Pairs; a block table; slots.
    names: HostTensor,
    /// `[SEQS]`
    lens: HostTensor,
    /// As `names`.
    renamed: HostTensor,
    /// `[1]`
    num_wanted: HostTensor,
}

impl Runnable for BlocksCase {
    fn check(&self) -> CheckMode {
        self.check
    }

    fn on<'m>(
        &self,
        runtime: &'m dyn Runtime,
        seed: u64,
        _amount: Amount,
    ) -> Result<Box<dyn DeviceCase<'m> + 'm>> {
        let tensors = BlocksTensors::new(self, seed);
        Ok(Box::new(BlocksRun {
            case: self.clone(),
            uploads: Uploads::new(runtime, tensors.all())?,
            workspaces: Workspaces::new(runtime, self.check),
            tensors,
        }))
    }
}

impl BlocksCase {
    /// Pairs of blocks, a block table, or slots.
    fn names(&self, seed: u64) -> HostTensor {
        let id = |(at, &id): (usize, &usize)| match at % GAP {
            at if at == GAP - 1 => -1,
            _ => id as i64,
        };
        let width = self.count.div_ceil(self.block_size);
        let ids = shuffled(self.num_blocks, seed);
        match self.operation {
            BlocksOperation::Copy => {
                let pairs = ids[..2 * self.count].iter().enumerate().map(id);
                let bytes = pairs.flat_map(i64::to_le_bytes).collect();
                HostTensor::contiguous("pairs", Dtype::I64, &[self.count, 2], bytes)
            }
            BlocksOperation::CompactTables => {
                // Half of the blocks, so that sequences share some.
                let shared = ids[..self.num_blocks.div_ceil(2)]
                    .iter()
                    .enumerate()
                    .cycle();
                let table = shared.step_by(3).map(id).take(SEQS * width);
                integers("block_table", &[SEQS, width], table)
            }
            BlocksOperation::CompactSlots => {
                let slots = shuffled(self.num_blocks * self.block_size, seed);
                let slots = slots[..SEQS * self.count].iter().enumerate().map(id);
                integers("slots", &[SEQS, self.count], slots)
            }
        }
    }
}

impl BlocksTensors {
    fn new(case: &BlocksCase, seed: u64) -> Self {
        let cache = |name, blocks: usize| {
            let shape = [blocks, case.block_size, case.row];
            let bytes = shape.iter().product::<usize>() * case.dtype.size();
            HostTensor::contiguous(name, case.dtype, &shape, noise(bytes, seed, name))
        };
        let names = case.names(seed);
        let lens = (0..SEQS).map(|seq| (case.count - seq.min(case.count)) as i64);
        let renamed = vec![POISON; 4 * names.num_elements()];
        let mut tensors = Self {
            cache: cache("cache", case.num_blocks),
            compact: cache("compact", case.num_blocks / 4),
            lens: integers("seq_lens", &[SEQS], lens),
            renamed: HostTensor::contiguous("renamed", Dtype::I32, &names.shape, renamed),
            num_wanted: HostTensor::contiguous("num_wanted", Dtype::I32, &[1], vec![POISON; 4]),
            names,
        };
        tensors.special(case, seed);
        tensors
    }

    /// The cache's blocks as the fill wants them; poison is in blocks that nobody reads.
    fn special(&mut self, case: &BlocksCase, seed: u64) {
        if case.fill != Fill::Poison {
            let role = written_role(case.fill);
            Painter::new(case.fill, seed, 50).paint_all(role, &mut self.cache);
            return;
        }
        let read: Vec<usize> = match case.operation {
            BlocksOperation::Copy => self.copies(case).iter().map(|&[from, _]| from).collect(),
            BlocksOperation::CompactTables | BlocksOperation::CompactSlots => self.wanted(case),
        };
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

    fn outputs(&self) -> [&HostTensor; 4] {
        [&self.cache, &self.compact, &self.renamed, &self.num_wanted]
    }

    fn all(&self) -> impl Iterator<Item = &HostTensor> {
        self.outputs().into_iter().chain([&self.names, &self.lens])
    }

    /// Source and target of each pair that names two blocks.
    fn copies(&self, case: &BlocksCase) -> Vec<[usize; 2]> {
        let block = |pair, side| usize::try_from(self.names.integer(&[pair, side])).ok();
        (0..case.count)
            .filter_map(|pair| Some([block(pair, 0)?, block(pair, 1)?]))
            .collect()
    }

    /// The blocks that references name, each once, in order.
    fn wanted(&self, case: &BlocksCase) -> Vec<usize> {
        let references = self.references(case).into_iter();
        let mut wanted: Vec<usize> = references.filter_map(|(_, block, _)| block).collect();
        wanted.sort_unstable();
        wanted.dedup();
        wanted
    }

    /// Copies block `from` of the cache to block `to` of the tensor whose bytes these are.
    fn copy(&self, from: usize, to: usize, bytes: &mut [u8]) {
        let block = self.cache.strides[0] * self.cache.dtype.size();
        let from = &self.cache.storage.bytes[from * block..(from + 1) * block];
        bytes[to * block..(to + 1) * block].copy_from_slice(from);
    }

    /// Position, block and offset of each reference that counts; no block if it names none.
    fn references(&self, case: &BlocksCase) -> Vec<(usize, Option<usize>, usize)> {
        let page = case.block_size;
        let width = self.names.shape[1];
        let mut references = Vec::new();
        for at in 0..SEQS * width {
            let [seq, column] = [at / width, at % width];
            let name = usize::try_from(self.names.integer(&[seq, column])).ok();
            if case.operation == BlocksOperation::CompactSlots {
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

    /// What every output's storage has to hold.
    fn expected(&self, case: &BlocksCase) -> Vec<Vec<u8>> {
        let [mut cache, mut compact, mut renamed, mut num_wanted] =
            self.outputs().map(|tensor| tensor.storage.bytes.clone());
        if case.operation == BlocksOperation::Copy {
            for [from, to] in self.copies(case) {
                self.copy(from, to, &mut cache);
            }
            return vec![cache, compact, renamed, num_wanted];
        }
        let wanted = self.wanted(case);
        let capacity = self.compact.shape[0];
        for (id, &block) in wanted.iter().take(capacity).enumerate() {
            self.copy(block, id, &mut compact);
        }
        let is_slot = case.operation == BlocksOperation::CompactSlots;
        for (at, block, offset) in self.references(case) {
            let id = block.and_then(|block| wanted.binary_search(&block).ok());
            let name = match id.filter(|&id| id < capacity) {
                Some(id) if is_slot => number(id * case.block_size + offset),
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

/// As an i32.
fn number(at: usize) -> [u8; 4] {
    i32::try_from(at)
        .expect("cases have few blocks")
        .to_le_bytes()
}

impl<'m> DeviceCase<'m> for BlocksRun<'m> {
    fn launch(&mut self, set: usize, launcher: &dyn Launcher) -> Result<String> {
        let (case, tensors, uploads) = (&self.case, &self.tensors, &self.uploads);
        // SAFETY: `self` is borrowed exclusively, and launches of one stream run in order.
        let write = |tensor: &HostTensor| unsafe { uploads.view_mut(tensor) };
        if case.operation == BlocksOperation::Copy {
            let checked = CopyBlocksRequest {
                caches: BlockCaches::Within(write(&tensors.cache)?),
                pairs: uploads.view(&tensors.names)?,
                check: case.check,
            }
            .check()?;
            let plan = checked.plan();
            let workspace = self.workspaces.of(set, plan.workspace_bytes())?;
            checked.launch(&plan, &mut workspace.view_mut(), launcher)?;
            return Ok(plan.to_string());
        }
        let renamed = write(&tensors.renamed)?;
        let names = uploads.view(&tensors.names)?;
        let checked = CompactRequest {
            caches: vec![(uploads.view(&tensors.cache)?, write(&tensors.compact)?)],
            block_size: case.block_size,
            references: if case.operation == BlocksOperation::CompactTables {
                CompactReferences::Tables {
                    block_table: names,
                    seq_lens: uploads.view(&tensors.lens)?,
                    renamed,
                }
            } else {
                CompactReferences::Slots {
                    slots: names,
                    renamed,
                }
            },
            num_wanted: write(&tensors.num_wanted)?,
        }
        .check()?;
        let plan = checked.plan();
        let workspace = self.workspaces.of(set, plan.workspace_bytes())?;
        checked.launch(&plan, &mut workspace.view_mut(), launcher)?;
        Ok(plan.to_string())
    }

    fn uploads(&self) -> &Uploads<'m> {
        &self.uploads
    }

    fn find_fault(&self) -> Result<()> {
        self.workspaces.find_fault()
    }

    fn outputs(&self) -> Result<Vec<HostTensor>> {
        let outputs = self.tensors.outputs().into_iter();
        outputs.map(|tensor| self.uploads.read(tensor)).collect()
    }

    fn judge(&self, outputs: &[HostTensor], _budget: u64) -> Result<Accuracy, Mismatch> {
        all_same(outputs, &self.tensors.expected(&self.case))
    }

    fn mistakes(&self, random: &mut ChaCha8Rng) -> Vec<MemoryMistake> {
        bad_pairs(&self.tensors.names, self.case.num_blocks, random)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cases::base::text::Fields;

    /// The numbers of each block of the cache.
    fn blocks(line: &str) -> (BlocksTensors, BlocksCase, Vec<Vec<f64>>) {
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
        (tensors, case, numbers)
    }

    #[test]
    fn poison_is_in_every_block_that_is_not_read_and_in_no_other() {
        for name in ["copy_blocks", "compact_tables", "compact_slots"] {
            let line = format!("{name} bf16 page=3 row=8 blocks=60 count=9 fill=poison");
            let (tensors, case, blocks) = blocks(&line);
            let read = match case.operation {
                BlocksOperation::Copy => tensors.copies(&case).iter().map(|it| it[0]).collect(),
                BlocksOperation::CompactTables | BlocksOperation::CompactSlots => {
                    tensors.wanted(&case)
                }
            };
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
            let (tensors, case, blocks) = blocks(&line);
            let sources = tensors.copies(&case).into_iter().map(|[from, _]| from);
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
