//! `copy_blocks` and compaction on the emulator: every byte of every cache, poison around the blocks included.
#![allow(missing_docs, reason = "a test crate has no readers of its docs")]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "small test data"
)]

mod tensors;

use ferroattn::error::CheckError;
use ferroattn::ops::{
    BlockCaches, CacheTable, CheckMode, CompactReferences, CompactRequest, CopyBlocksRequest,
    GatherForm, GatherRequest, GatherRows, check_result,
};
use ferroattn::reference::HostTensor;
use ferroattn::tensor::{Dtype, TensorView};
use tensors::*;

/// Bytes of blocks of 2 tokens, 3 heads and `head_size` values, which lie `gap` blocks apart; heads before
/// tokens if `hnd`.
fn pool(name: &'static str, blocks: usize, head_size: usize, gap: usize, hnd: bool) -> HostTensor {
    let block = 2 * 3 * head_size;
    let random = &mut Random::new(blocks as u64 + 7);
    let bytes = (0..blocks * (1 + gap) * block).map(|_| random.next() as u8);
    let storage = ferroattn::reference::Storage::new(name, bytes.collect());
    let inner = if hnd {
        [head_size, 2 * head_size]
    } else {
        [3 * head_size, head_size]
    };
    let strides = [(1 + gap) * block, inner[0], inner[1], 1];
    view_of(&storage, Dtype::U8, 0, &[blocks, 2, 3, head_size], &strides)
}

/// Copies block `from` of one storage's bytes to block `to` of another's.
fn copy(source: &HostTensor, from: usize, target: &HostTensor, to: usize, bytes: &mut [u8]) {
    let block: usize = source.shape[1..].iter().product();
    let (from, to) = (from * source.strides[0], to * target.strides[0]);
    bytes[to..to + block].copy_from_slice(&source.storage.bytes[from..from + block]);
}

fn pairs(list: &[[i64; 2]]) -> HostTensor {
    let bytes = list
        .iter()
        .flatten()
        .flat_map(|id| id.to_le_bytes())
        .collect();
    tensor("pairs", Dtype::I64, &[list.len(), 2], bytes)
}

/// Launches, and returns the check's record.
fn run(machine: &Machine, request: CopyBlocksRequest<'_>) -> Vec<u8> {
    let checked = request.check().expect("a good request");
    let plan = checked.plan();
    let mut workspace = machine.workspace(plan.workspace_bytes());
    checked
        .launch(&plan, &mut workspace, &machine.emulator)
        .expect("it runs");
    machine.read_workspace(&workspace)
}

#[test]
fn blocks_are_copied_within_a_cache_and_between_two() {
    // Blocks of 16-byte units, of odd bytes, and of more than one thread block's slab.
    for (head_size, hnd) in [(16, false), (7, false), (64, true), (4096, false)] {
        let list = [[0, 5], [3, 1], [-1, 2], [2, -1], [0, 7]];
        let machine = Machine::new();
        let cache = pool("cache", 8, head_size, 1, hnd);
        run(
            &machine,
            CopyBlocksRequest {
                caches: BlockCaches::Within(machine.view_mut(&cache)),
                pairs: machine.view(&pairs(&list)),
                check: CheckMode::Off,
            },
        );
        let (source, target) = (cache, pool("target", 9, head_size, 0, hnd));
        let mut within = source.storage.bytes.clone();
        let mut between = target.storage.bytes.clone();
        for [from, to] in list {
            if let (Ok(from), Ok(to)) = (usize::try_from(from), usize::try_from(to)) {
                copy(&source, from, &source, to, &mut within);
                copy(&source, from, &target, to, &mut between);
            }
        }
        assert_same_bytes(&machine.read(&source), &within, "within");

        let machine = Machine::new();
        let record = run(
            &machine,
            CopyBlocksRequest {
                caches: BlockCaches::Between {
                    source: machine.view(&source),
                    target: machine.view_mut(&target),
                },
                pairs: machine.view(&pairs(&list)),
                check: CheckMode::Device,
            },
        );
        check_result(&record).expect("padding is no fault");
        assert_same_bytes(&machine.read(&target), &between, "between");
        assert_same_bytes(&machine.read(&source), &source.storage.bytes, "the source");
    }
}

#[test]
fn all_layers_in_one_launch() {
    let machine = Machine::new();
    let layers: Vec<[HostTensor; 2]> = (0..3)
        .map(|_| {
            [
                pool("source", 4, 16, 0, false),
                pool("target", 5, 16, 0, false),
            ]
        })
        .collect();
    let table = |side: usize| {
        let addresses: Vec<i64> = layers
            .iter()
            .map(|layer| machine.address(&layer[side]) as i64)
            .collect();
        let shape = &layers[0][side].shape;
        let strides: Vec<i64> = layers[0][side].strides.iter().map(|&s| s as i64).collect();
        let addresses = machine.view(&longs("addresses", &addresses));
        // SAFETY: the emulator checks every access.
        unsafe { CacheTable::from_raw(addresses, Dtype::U8, shape, &strides) }.expect("strides")
    };
    let list = [[3, 0], [1, 4]];
    let request = CopyBlocksRequest {
        caches: BlockCaches::Tables {
            source: table(0),
            target: table(1),
        },
        pairs: machine.view(&pairs(&list)),
        check: CheckMode::Off,
    };
    run(&machine, request);
    for [source, target] in &layers {
        let mut expected = target.storage.bytes.clone();
        for [from, to] in list {
            copy(source, from as usize, target, to as usize, &mut expected);
        }
        assert_same_bytes(&machine.read(target), &expected, "a layer");
    }
}

#[test]
fn blocks_outside_the_caches_are_reported_and_nothing_is_copied() {
    for (pair, side, value, num_blocks) in [([4, 0], 0, 4, 4), ([0, 6], 1, 6, 6)] {
        let machine = Machine::new();
        let (source, target) = (
            pool("source", 4, 16, 0, false),
            pool("target", 6, 16, 0, false),
        );
        let list = [[1, 2], pair];
        let record = run(
            &machine,
            CopyBlocksRequest {
                caches: BlockCaches::Between {
                    source: machine.view(&source),
                    target: machine.view_mut(&target),
                },
                pairs: machine.view(&pairs(&list)),
                check: CheckMode::Device,
            },
        );
        let fault = CheckError::Pair {
            pair: 1,
            side,
            value,
            num_blocks,
        };
        assert_eq!(check_result(&record), Err(fault));
        assert_same_bytes(&machine.read(&target), &target.storage.bytes, "no pair");
    }
}

#[test]
fn requests_that_do_not_fit_are_refused_by_name() {
    let machine = Machine::new();
    let source = pool("source", 4, 16, 0, false);
    let refused = |source: &HostTensor, target: &HostTensor, list: &HostTensor| {
        let request = CopyBlocksRequest {
            caches: BlockCaches::Between {
                source: machine.view(source),
                target: machine.view_mut(target),
            },
            pairs: machine.view(list),
            check: CheckMode::Off,
        };
        request.check().expect_err("refused").to_string()
    };
    let list = pairs(&[[0, 1]]);
    let with_holes = HostTensor {
        shape: vec![4, 2, 2, 16],
        ..source.clone()
    };
    for (message, tensor) in [
        (
            refused(&source, &pool("target", 4, 8, 0, false), &list),
            "`target`",
        ),
        (
            refused(&source, &pool("target", 4, 16, 0, true), &list),
            "`target`",
        ),
        (refused(&with_holes, &with_holes, &list), "`source`"),
        (
            refused(&source, &source, &longs("pairs", &[0, 1])),
            "`pairs`",
        ),
    ] {
        assert!(message.contains(tensor), "{message}");
    }
}

/// A pool of keys and one of values, and what compaction into `capacity` blocks makes of them.
struct Compaction {
    machine: Machine,
    pools: [HostTensor; 2],
    compacts: [HostTensor; 2],
    num_wanted: HostTensor,
}

impl Compaction {
    fn run(
        blocks: usize,
        capacity: usize,
        references: impl FnOnce(&Machine) -> CompactReferences<'static>,
    ) -> Self {
        let machine = Machine::new();
        let pools = [
            pool("keys", blocks, 16, 1, false),
            pool("values", blocks, 9, 0, true),
        ];
        let compacts = [
            pool("compact keys", capacity, 16, 0, false),
            pool("compact values", capacity, 9, 2, true),
        ];
        let num_wanted = poisoned_tensor("num_wanted", Dtype::I32, &[1]);
        let request = CompactRequest {
            caches: (0..2)
                .map(|side| {
                    (
                        machine.view(&pools[side]),
                        machine.view_mut(&compacts[side]),
                    )
                })
                .collect(),
            block_size: 2,
            references: references(&machine),
            num_wanted: machine.view_mut(&num_wanted),
            check: CheckMode::Off,
        };
        let checked = request.check().expect("a good request");
        let plan = checked.plan();
        let mut workspace = machine.workspace(plan.workspace_bytes());
        checked
            .launch(&plan, &mut workspace, &machine.emulator)
            .expect("it runs");
        Self {
            machine,
            pools,
            compacts,
            num_wanted,
        }
    }

    /// The compact caches hold `wanted`, in order, as far as they go.
    fn assert_holds(&self, wanted: &[usize]) {
        let count = (wanted.len() as i32).to_le_bytes();
        assert_same_bytes(&self.machine.read(&self.num_wanted), &count, "num_wanted");
        for (pool, compact) in self.pools.iter().zip(&self.compacts) {
            let mut expected = compact.storage.bytes.clone();
            for (id, &block) in wanted.iter().enumerate().take(compact.shape[0]) {
                copy(pool, block, compact, id, &mut expected);
            }
            assert_same_bytes(&self.machine.read(compact), &expected, pool.storage.name);
        }
    }
}

fn sorted(blocks: impl Iterator<Item = usize>) -> Vec<usize> {
    let mut blocks: Vec<usize> = blocks.collect();
    blocks.sort_unstable();
    blocks.dedup();
    blocks
}

#[test]
fn sequences_are_compacted_with_their_block_tables() {
    // More blocks than one thread block numbers; a table that shares blocks and names some outside the pool.
    let (blocks, width) = (9000, 40);
    let random = &mut Random::new(3);
    // The last three are longer than their rows can name, or have no token at all.
    let lens = [0, 1, 64, 79, 80, 33, 81, i32::MAX, -1];
    let mut table: Vec<i32> = (0..lens.len() * width)
        .map(|_| random.below(blocks) as i32)
        .collect();
    (table[2 * width + 3], table[3 * width]) = (-7, 9000);
    table[4 * width + 5] = table[2 * width];
    let used = |seq: usize| {
        let tokens = usize::try_from(lens[seq]).unwrap_or(0);
        &table[seq * width..seq * width + tokens.div_ceil(2).min(width)]
    };
    let wanted = sorted(
        (0..lens.len())
            .flat_map(used)
            .filter_map(|&block| usize::try_from(block).ok().filter(|&block| block < blocks)),
    );
    for capacity in [wanted.len() + 3, wanted.len(), 50, 0] {
        let tables = ints("block_table", &[lens.len(), width], &table);
        let renamed = poisoned_tensor("renamed", Dtype::I32, &[lens.len(), width]);
        let done = Compaction::run(blocks, capacity, |machine| CompactReferences::Tables {
            block_table: machine.view(&tables),
            seq_lens: machine.view(&ints("seq_lens", &[lens.len()], &lens)),
            renamed: machine.view_mut(&renamed),
        });
        done.assert_holds(&wanted);
        let mut expected = renamed.storage.bytes.clone();
        for seq in 0..lens.len() {
            for (position, &block) in used(seq).iter().enumerate() {
                let id = wanted.iter().position(|&other| other as i32 == block);
                let id = id.filter(|&id| id < capacity).map_or(-1, |id| id as i32);
                let at = 4 * (seq * width + position);
                expected[at..at + 4].copy_from_slice(&id.to_le_bytes());
            }
        }
        assert_same_bytes(&done.machine.read(&renamed), &expected, "renamed");
    }
}

#[test]
fn chosen_slots_are_compacted_and_still_gather_the_same_rows() {
    let blocks = 300;
    let random = &mut Random::new(4);
    let chosen: Vec<i32> = (0..2500)
        .map(|i| match i % 9 {
            0 => -1,
            1 => 2 * blocks as i32 + 5,
            _ => random.below(2 * blocks) as i32 / 7,
        })
        .collect();
    let is_good = |slot: i32| (0..2 * blocks as i32).contains(&slot);
    let wanted = sorted(
        chosen
            .iter()
            .filter(|&&slot| is_good(slot))
            .map(|&slot| slot as usize / 2),
    );
    let slots = ints("slots", &[50, 50], &chosen);
    let renamed = poisoned_tensor("renamed", Dtype::I32, &[50, 50]);
    let done = Compaction::run(blocks, wanted.len(), |machine| CompactReferences::Slots {
        slots: machine.view(&slots),
        renamed: machine.view_mut(&renamed),
    });
    done.assert_holds(&wanted);

    let machine = &done.machine;
    let gather = |cache: &HostTensor, slots: &HostTensor| {
        let row = 3 * 16;
        let rows = poisoned_tensor("rows", Dtype::U8, &[2500, row]);
        let flat = |tensor: &HostTensor, shape: &[usize], strides: &[usize]| HostTensor {
            shape: shape.to_vec(),
            strides: strides.to_vec(),
            ..tensor.clone()
        };
        let cache = flat(
            cache,
            &[cache.shape[0], 2, row],
            &[cache.strides[0], row, 1],
        );
        let slots: TensorView<'_> = machine.view(&flat(slots, &[2500], &[1]));
        let request = GatherRequest {
            cache: machine.view(&cache),
            block_size: 2,
            form: GatherForm::Raw,
            out: machine.view_mut(&rows),
            rows: GatherRows::Slots { slots },
            zero_missing: true,
            check: CheckMode::Off,
        };
        let checked = request.check().expect("a good request");
        checked
            .launch(
                &checked.plan(),
                &mut machine.workspace(0),
                &machine.emulator,
            )
            .expect("it runs");
        machine.read(&rows)
    };
    let [pool, compact] = [&done.pools[0], &done.compacts[0]];
    assert_same_bytes(
        &gather(compact, &renamed),
        &gather(pool, &slots),
        "gathered rows",
    );
}
