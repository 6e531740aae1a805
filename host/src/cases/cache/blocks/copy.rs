//! `copy_blocks`: blocks to others of the same cache; a file may also have two caches, or many.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::rules::{BlocksRules, BlocksTensors, GAP, name_or_gap};
use crate::cases::base::memory_mistake::MemoryMistake;
use crate::cases::base::pick::pick;
use crate::cases::base::tensors::shuffled;
use crate::cases::named::{Job, Names, Operation, Output, launch};
use crate::ops::{BlockCaches, CopyBlocksRequest};
use crate::reference::HostTensor;
use crate::tensor::Dtype;

pub(super) const COPY: BlocksRules = BlocksRules {
    name: "copy_blocks",
    operation: &COPY_BLOCKS,
    cache: "target",
    most: |num_blocks, _| num_blocks / 2,
    // Blocks in and out, and the pairs, of so many of which one side is padding.
    moved_bytes: |case| {
        2 * (case.count - 2 * case.count / GAP) * case.block_bytes() + 16 * case.count
    },
    names: |case, seed| {
        let ids = shuffled(case.num_blocks, seed);
        let ids = ids[..2 * case.count].iter().enumerate();
        let bytes = ids.flat_map(|(at, &id)| name_or_gap(at, id).to_le_bytes());
        let shape = [case.count, 2];
        vec![HostTensor::contiguous(
            "pairs",
            Dtype::I64,
            &shape,
            bytes.collect(),
        )]
    },
    metadata: |_| Vec::new(),
    read: |tensors| copies(tensors).iter().map(|&[from, _]| from).collect(),
    expected: |tensors| {
        let mut target = tensors.cache.storage.bytes.clone();
        for [from, to] in copies(tensors) {
            tensors.copy(from, to, &mut target);
        }
        vec![("target", target)]
    },
    mistakes: |tensors, random| bad_pairs(&tensors.names[0], tensors.case.num_blocks, random),
};

/// Source and target of each pair that names two blocks.
fn copies(tensors: &BlocksTensors) -> Vec<[usize; 2]> {
    let block = |pair, side| usize::try_from(tensors.names[0].integer(&[pair, side])).ok();
    (0..tensors.case.count)
        .filter_map(|pair| Some([block(pair, 0)?, block(pair, 1)?]))
        .collect()
}

/// A block that the cache does not have, a target that is another pair's, and one that is another pair's source.
fn bad_pairs(pairs: &HostTensor, num_blocks: usize, random: &mut ChaCha8Rng) -> Vec<MemoryMistake> {
    let block = |pair: usize, side: usize| pairs.integer(&[pair, side]);
    // Pairs of which one is padding are skipped.
    let mut whole: Vec<usize> = (0..pairs.shape[0])
        .filter(|&pair| block(pair, 0) >= 0 && block(pair, 1) >= 0)
        .collect();
    if whole.is_empty() {
        return Vec::new();
    }
    let pair = whole.swap_remove(random.random_range(0..whole.len()));
    let side = random.random_range(0..2);
    let outside = pick(random, &[num_blocks as i64, 1 << 32, i64::MAX]);
    let mut mistakes = vec![MemoryMistake::index(pairs, &[pair, side], outside)];
    if !whole.is_empty() {
        let other = pick(random, &whole);
        let [low, high] = [pair.min(other), pair.max(other)];
        let target = block(other, 1);
        let message = format!("`pairs[{low}, 1]` and `pairs[{high}, 1]` are both {target}:");
        mistakes.push(MemoryMistake::saying(pairs, &[pair, 1], target, message));
        let source = block(other, 0);
        let message =
            format!("`pairs[{pair}, 1]` is {source}, which is also the source `pairs[{other}, 0]`");
        mistakes.push(MemoryMistake::saying(pairs, &[pair, 1], source, message));
    }
    mistakes
}

static COPY_BLOCKS: Operation = Operation {
    name: "copy_blocks",
    about: "whole blocks, each from the first of a pair to the second",
    tensors: Names {
        needed: &["pairs"],
        optional: &["target", "source", "targets", "sources"],
    },
    metadata: Names::NONE,
    choices: &[
        "one cache, or two: target, [source]",
        "caches along the first dimension: targets, [sources]",
    ],
    writes: "target or targets",
    outputs: Output::none,
    launch: copy_blocks,
};

fn copy_blocks(job: &Job<'_>) -> anyhow::Result<()> {
    if job.inputs().has("targets") {
        let sources = job.optional_caches("sources")?;
        let targets = job.caches_mut("targets")?;
        let target = targets.table()?;
        let source = match &sources {
            Some(sources) => sources.table()?,
            None => target,
        };
        return copy(job, BlockCaches::Tables { source, target });
    }
    let source = job.optional("source")?;
    let target = job.view_mut("target")?;
    let caches = match source {
        Some(source) => BlockCaches::Between { source, target },
        None => BlockCaches::Within(target),
    };
    copy(job, caches)
}

fn copy(job: &Job<'_>, caches: BlockCaches<'_>) -> anyhow::Result<()> {
    let checked = CopyBlocksRequest {
        caches,
        pairs: job.view("pairs")?,
        check: job.check(),
    }
    .check()?;
    launch!(job, checked, checked.plan(), job.check())
}
