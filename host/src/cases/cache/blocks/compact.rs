//! `compact`: the blocks of four sequences, or of chosen slots, into a quarter of the blocks.

use anyhow::Context;
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::rules::{BlocksCase, BlocksRules, BlocksTensors, Written, name_or_gap};
use crate::cases::base::memory_mistake::MemoryMistake;
use crate::cases::base::pick::pick;
use crate::cases::base::tensors::{POISON, integers, shuffled};
use crate::cases::named::{BLOCK_SIZE, Inputs, Job, Key, Names, Operation, Output, extent, launch};
use crate::ops::{CompactReferences, CompactRequest};
use crate::reference::HostTensor;
use crate::tensor::Dtype;

/// Sequences of a case.
const SEQS: usize = 4;

/// Those of four sequences.
pub(super) const TABLES: BlocksRules = BlocksRules {
    name: "compact_tables",
    operation: &COMPACT,
    cache: "cache",
    most: |num_blocks, block_size| num_blocks * block_size / SEQS,
    // All that the compact cache has, in and out, and the references, in and out.
    moved_bytes: |case| 2 * num_compact_blocks(case) * case.block_bytes() + 8 * SEQS * case.count,
    names: tables,
    metadata: |case| {
        vec![
            ("num_compact_blocks", num_compact_blocks(case).to_string()),
            ("block_size", case.block_size.to_string()),
        ]
    },
    read: |tensors| wanted(&table_references(tensors)),
    expected: |tensors| compacted(tensors, &table_references(tensors), 1),
    mistakes: |tensors, random| {
        let [table, lens] = &tensors.names[..] else {
            panic!("a block table and lengths");
        };
        bad_table(table, lens, &tensors.case, random)
    },
};

/// Those of chosen slots.
pub(super) const SLOTS: BlocksRules = BlocksRules {
    name: "compact_slots",
    names: slots,
    read: |tensors| wanted(&slot_references(tensors)),
    expected: |tensors| compacted(tensors, &slot_references(tensors), tensors.case.block_size),
    mistakes: |tensors, random| {
        let num_slots = tensors.case.num_blocks * tensors.case.block_size;
        vec![bad_index(&tensors.names[0], num_slots, random)]
    },
    ..TABLES
};

fn num_compact_blocks(case: &BlocksCase) -> usize {
    case.num_blocks / 4
}

/// A block table and the tokens of its rows.
fn tables(case: &BlocksCase, seed: u64) -> Vec<HostTensor> {
    let ids = shuffled(case.num_blocks, seed);
    // Half of the blocks, so that sequences share some.
    let shared = ids[..case.num_blocks.div_ceil(2)].iter().enumerate();
    let table = shared.cycle().step_by(3);
    let table = table.map(|(at, &id)| name_or_gap(at, id));
    let width = case.count.div_ceil(case.block_size);
    let lens = (0..SEQS).map(|seq| (case.count - seq.min(case.count)) as i64);
    vec![
        integers("block_table", &[SEQS, width], table.take(SEQS * width)),
        integers("seq_lens", &[SEQS], lens),
    ]
}

fn slots(case: &BlocksCase, seed: u64) -> Vec<HostTensor> {
    let slots = shuffled(case.num_blocks * case.block_size, seed);
    let slots = slots[..SEQS * case.count].iter().enumerate();
    let slots = slots.map(|(at, &slot)| name_or_gap(at, slot));
    vec![integers("slots", &[SEQS, case.count], slots)]
}

/// What refers to a block.
struct Reference {
    /// Its place among all of the tensor.
    at: usize,
    /// None if it names nothing.
    block: Option<usize>,
    /// Of a token in the block.
    offset: usize,
}

/// Entries of the block table that are within their sequence.
fn table_references(tensors: &BlocksTensors) -> Vec<Reference> {
    let [table, lens] = &tensors.names[..] else {
        panic!("a block table and lengths");
    };
    let width = table.shape[1];
    let reference = |at| {
        let [seq, column] = [at / width, at % width];
        let first_token = (column * tensors.case.block_size) as i64;
        (lens.integer(&[seq]) > first_token).then(|| Reference {
            at,
            block: usize::try_from(table.integer(&[seq, column])).ok(),
            offset: 0,
        })
    };
    (0..SEQS * width).filter_map(reference).collect()
}

fn slot_references(tensors: &BlocksTensors) -> Vec<Reference> {
    let slots = &tensors.names[0];
    let (width, page) = (slots.shape[1], tensors.case.block_size);
    let reference = |at| {
        let slot = usize::try_from(slots.integer(&[at / width, at % width])).ok();
        Reference {
            at,
            block: slot.map(|slot| slot / page),
            offset: slot.map_or(0, |slot| slot % page),
        }
    };
    (0..SEQS * width).map(reference).collect()
}

/// The blocks that references name, each once, in order.
fn wanted(references: &[Reference]) -> Vec<usize> {
    let mut wanted: Vec<usize> = references.iter().filter_map(|it| it.block).collect();
    wanted.sort_unstable();
    wanted.dedup();
    wanted
}

/// What is made of a cache and of references to it, whose names count `names_per_block` a block.
fn compacted(
    tensors: &BlocksTensors,
    references: &[Reference],
    names_per_block: usize,
) -> Vec<Written> {
    let capacity = num_compact_blocks(&tensors.case);
    let wanted = wanted(references);
    let mut compact = vec![POISON; capacity * tensors.case.block_bytes()];
    for (id, &block) in wanted.iter().take(capacity).enumerate() {
        tensors.copy(block, id, &mut compact);
    }
    let mut renamed = vec![POISON; 4 * tensors.names[0].num_elements()];
    for &Reference { at, block, offset } in references {
        let id = block.and_then(|block| wanted.binary_search(&block).ok());
        let name = match id.filter(|&id| id < capacity) {
            Some(id) => number(id * names_per_block + offset),
            // −1.
            None => [0xff; 4],
        };
        renamed[4 * at..4 * at + 4].copy_from_slice(&name);
    }
    let num_wanted = number(wanted.len()).to_vec();
    vec![
        ("compact", compact),
        ("renamed", renamed),
        ("num_wanted", num_wanted),
    ]
}

/// As an i32.
fn number(at: usize) -> [u8; 4] {
    i32::try_from(at)
        .expect("cases have few blocks")
        .to_le_bytes()
}

/// A length that a row of the block table cannot name or that is none, and a block that some sequence needs and that the
/// cache does not have.
fn bad_table(
    table: &HostTensor,
    lens: &HostTensor,
    case: &BlocksCase,
    random: &mut ChaCha8Rng,
) -> Vec<MemoryMistake> {
    let [num_seqs, width] = table.shape[..] else {
        panic!("rows of a block table");
    };
    let most = (width * case.block_size) as i64;
    let (min, max) = (i64::from(i32::MIN), i64::from(i32::MAX));
    let seq = random.random_range(0..num_seqs);
    let bad = pick(random, &[-1, min, most + 1, max]);
    let mut mistakes = vec![MemoryMistake::index(lens, &[seq], bad)];
    let len = usize::try_from(lens.integer(&[seq])).expect("a length");
    if len > 0 {
        let column = random.random_range(0..len.div_ceil(case.block_size));
        let bad = pick(random, &[case.num_blocks as i64, max]);
        mistakes.push(MemoryMistake::index(table, &[seq, column], bad));
    }
    mistakes
}

/// A slot, `[rows, row_len]`, that the cache does not have.
fn bad_index(slots: &HostTensor, num_slots: usize, random: &mut ChaCha8Rng) -> MemoryMistake {
    let at = [0, 1].map(|dim| random.random_range(0..slots.shape[dim]));
    let bad = pick(random, &[num_slots as i64, i64::from(i32::MAX)]);
    MemoryMistake::index(slots, &at, bad)
}

static NUM_COMPACT_BLOCKS: Key<u32> = Key::count("num_compact_blocks");

static COMPACT: Operation = Operation {
    name: "compact",
    about: "the blocks that are referred to, and no others, as a cache of their own",
    tensors: Names {
        needed: &["cache"],
        optional: &["block_table", "seq_lens", "slots"],
    },
    metadata: Names {
        needed: &[&NUM_COMPACT_BLOCKS],
        optional: &[&BLOCK_SIZE],
    },
    choices: &[
        "whole sequences: block_table, seq_lens",
        "named slots: slots",
    ],
    writes: "compact, renamed, num_wanted",
    outputs: compact_blocks,
    launch: compact,
};

fn compact_blocks(inputs: &Inputs) -> anyhow::Result<Vec<Output>> {
    let cache = inputs.get("cache")?;
    let mut compact = cache.shape.clone();
    let num_blocks = compact.first_mut().context("`cache` has no dimensions")?;
    let asked = inputs.needed(&NUM_COMPACT_BLOCKS)? as usize;
    let block_bytes = cache.shape[1..].iter().product::<usize>() * cache.dtype.size();
    *num_blocks = extent("num_compact_blocks", asked, *num_blocks, block_bytes)?;
    let by_slots = inputs.has("slots");
    let names = inputs.get(if by_slots { "slots" } else { "block_table" })?;
    Ok(vec![
        Output::new("compact", cache.dtype, &compact),
        Output::new("renamed", Dtype::I32, &names.shape),
        Output::new("num_wanted", Dtype::I32, &[1]),
    ])
}

fn compact(job: &Job<'_>) -> anyhow::Result<()> {
    let checked = CompactRequest {
        caches: vec![(job.view("cache")?, job.view_mut("compact")?)],
        block_size: job.inputs().block_size("cache", &BLOCK_SIZE)?,
        references: if job.inputs().has("slots") {
            CompactReferences::Slots {
                slots: job.view("slots")?,
                renamed: job.view_mut("renamed")?,
            }
        } else {
            CompactReferences::Tables {
                block_table: job.view("block_table")?,
                seq_lens: job.view("seq_lens")?,
                renamed: job.view_mut("renamed")?,
            }
        },
        num_wanted: job.view_mut("num_wanted")?,
        check: job.check(),
    }
    .check()?;
    launch!(job, checked, checked.plan(), job.check())
}
