//! What a check on the device finds in the tensors of gathers, copies and compactions: the message names tensor, index
//! and value, and nothing is written.
#![allow(missing_docs, reason = "a test crate has no readers of its docs")]

mod found;
mod tensors;

use ferroattn::error::CheckError;
use ferroattn::ops::{
    BlockCaches, CheckMode, CompactReferences, CompactRequest, CopyBlocksRequest, GatherForm,
    GatherRequest, GatherRows,
};
use ferroattn::reference::HostTensor;
use ferroattn::tensor::Dtype;
use found::{assert_refused, found};
use tensors::*;

/// A gather of FP8 from 4 blocks of 8 tokens: 6 rows; `scale` and what chooses tokens may be bad.
fn gather(
    form: GatherForm<'static>,
    machine: &Machine,
    cache: &HostTensor,
    out: &HostTensor,
    rows: GatherRows<'static>,
) -> Result<(), CheckError> {
    let request = GatherRequest {
        cache: machine.view(cache),
        block_size: 8,
        form,
        out: machine.view_mut(out),
        rows,
        zero_missing: true,
        check: CheckMode::Device,
    };
    found!(machine, request)
}

/// Ragged rows of two sequences whose tables name 2 blocks of 8 each; what is changed, and what is said of it.
#[test]
fn no_gather_follows_a_fault() {
    let table = [3, 0, 1, 2];
    let cases = [
        (table, [0, 4, 6], [0, 0], 1.0, ""),
        (table, [0, 4, 6], [12, 14], 1.0, ""),
        (
            table,
            [0, 4, 6],
            [13, 0],
            1.0,
            "row 3 is token 16 of sequence 0, outside 0..16, the tokens that a row of `block_table` names",
        ),
        (
            table,
            [0, 4, 6],
            [0, -1],
            1.0,
            "`first_tokens[1]` is -1, below 0",
        ),
        (
            [-1, 0, 1, 2],
            [0, 4, 6],
            [0, 0],
            1.0,
            "`block_table[0, 0]` is -1, outside 0..4",
        ),
        // An entry that no row needs.
        ([-1, 0, 1, 2], [0, 4, 6], [8, 0], 1.0, ""),
        (
            table,
            [0, 4, 7],
            [0, 0],
            1.0,
            "`row_starts` gives sequence 1 the rows 4..7, which is no part of 0..6",
        ),
        (
            table,
            [2, 2, 1],
            [0, 0],
            1.0,
            "`row_starts` gives sequence 1 the rows 2..1, which is no part of 0..6",
        ),
        (
            table,
            [0, 4, 6],
            [0, 0],
            f32::NAN,
            "`scale[0]` is NaN, but a scale must be positive and finite",
        ),
    ];
    for (table, starts, first_tokens, scale, expected) in cases {
        for (form, cache) in [
            ("raw", Dtype::F8E4m3),
            ("fp8", Dtype::F8E4m3),
            ("fp8_ds", Dtype::U8),
            ("v4", Dtype::U8),
        ] {
            // The others read none.
            if scale.is_nan() && form != "fp8" {
                continue;
            }
            let machine = Machine::new();
            let (shape, dtype, row) = match form {
                "raw" => (vec![4, 8, 16], cache, 16),
                "fp8" => (vec![4, 8, 16], Dtype::Bf16, 16),
                "fp8_ds" => (vec![4, 8, 656], Dtype::Bf16, 576),
                _ => (vec![4, 8 * 584], Dtype::Bf16, 512),
            };
            let cache = tensor("cache", cache, &shape, vec![1; shape.iter().product()]);
            let out = poisoned_tensor("out", dtype, &[6, row]);
            let rows = GatherRows::Ragged {
                block_table: machine.view(&ints("block_table", &[2, 2], &table)),
                row_starts: machine.view(&ints("row_starts", &[3], &starts)),
                first_tokens: Some(machine.view(&ints("first_tokens", &[2], &first_tokens))),
            };
            let form = match form {
                "raw" => GatherForm::Raw,
                "fp8" => GatherForm::Fp8 {
                    scale: machine.view(&floats("scale", &[1], &[scale])),
                },
                "fp8_ds" => GatherForm::Fp8Ds,
                _ => GatherForm::V4,
            };
            let found = gather(form, &machine, &cache, &out, rows);
            if expected.is_empty() {
                assert_eq!(found, Ok(()), "{starts:?} {first_tokens:?}");
            } else {
                assert_refused(&machine, found, expected, &[&out]);
            }
        }
    }
}

#[test]
fn chosen_and_padded_rows_are_looked_at_too() {
    let machine = Machine::new();
    let cache = tensor("cache", Dtype::U8, &[4, 8, 16], vec![1; 512]);
    let block_table = || machine.view(&ints("block_table", &[2, 2], &[3, 0, 1, 9]));
    let out = poisoned_tensor("out", Dtype::U8, &[4, 16]);
    let by_index = |indices: [i32; 4], seqs: [i32; 2]| {
        let rows = GatherRows::TopK {
            block_table: block_table(),
            indices: machine.view(&ints("indices", &[2, 2], &indices)),
            seqs: Some(machine.view(&ints("seqs", &[2], &seqs))),
        };
        gather(GatherForm::Raw, &machine, &cache, &out, rows)
    };
    let refused = |found, expected: &str| assert_refused(&machine, found, expected, &[&out]);
    refused(
        by_index([0, 16, -1, 7], [0, 1]),
        "row 1 is token 16 of sequence 0, outside 0..16, the tokens that a row of `block_table` names",
    );
    refused(
        by_index([0, 1, 2, 3], [0, 2]),
        "`seqs[1]` is 2, outside 0..2, the rows of `block_table`",
    );
    refused(
        by_index([0, 1, -5, 8], [0, 1]),
        "`block_table[1, 1]` is 9, outside 0..4",
    );
    let by_slot = |slots: [i32; 4]| {
        let rows = GatherRows::Slots {
            slots: machine.view(&ints("slots", &[4], &slots)),
        };
        gather(GatherForm::Raw, &machine, &cache, &out, rows)
    };
    refused(
        by_slot([0, -2, 32, 4]),
        "`slots[2]` is 32, outside 0..32 (negative slots are skipped)",
    );
    let padded = poisoned_tensor("out", Dtype::U8, &[2, 4, 16]);
    let by_length = |seq_lens: [i32; 2], lens: [i32; 2]| {
        let rows = GatherRows::Padded {
            block_table: block_table(),
            seq_lens: machine.view(&ints("seq_lens", &[2], &seq_lens)),
            lens: Some(machine.view(&ints("lens", &[2], &lens))),
        };
        gather(GatherForm::Raw, &machine, &cache, &padded, rows)
    };
    let expected = "row 1 is token 16 of sequence 0, outside 0..16, the tokens that a row of `block_table` names";
    assert_refused(&machine, by_length([17, 3], [2, 2]), expected, &[&padded]);
    // A sequence of which nothing is wanted is not looked at.
    assert_eq!(by_length([16, 1 << 20], [2, 0]), Ok(()));
    assert_eq!(by_index([0, 15, -1, 7], [0, 1]), Ok(()));
    assert_eq!(by_slot([0, -1, 31, -9]), Ok(()));
}

#[test]
fn no_copy_follows_bad_pairs() {
    let run = |pairs: &[[i64; 2]], within: bool| {
        let machine = Machine::new();
        let [source, target] = ["source", "target"].map(|name| {
            let bytes = (0u8..192).collect();
            tensor(name, Dtype::U8, &[6, 32], bytes)
        });
        let bytes = pairs.iter().flatten().flat_map(|id: &i64| id.to_le_bytes());
        let list = tensor("pairs", Dtype::I64, &[pairs.len(), 2], bytes.collect());
        let write = machine.view_mut(&target);
        let request = CopyBlocksRequest {
            caches: if within {
                BlockCaches::Within(write)
            } else {
                BlockCaches::Between {
                    source: machine.view(&source),
                    target: write,
                }
            },
            pairs: machine.view(&list),
            check: CheckMode::Device,
        };
        let found = found!(machine, request);
        (machine, found, target)
    };
    for (pairs, expected) in [
        (
            [[0, 1], [6, 2]],
            "`pairs[1, 0]` is 6, outside 0..6 (negative blocks are skipped)",
        ),
        (
            [[0, 1 << 32], [1, 2]],
            "`pairs[0, 1]` is 4294967296, outside 0..6 (negative blocks are skipped)",
        ),
        (
            [[0, 3], [1, 3]],
            "`pairs[0, 1]` and `pairs[1, 1]` are both 3: two copies to one block",
        ),
    ] {
        for within in [true, false] {
            let (machine, found, target) = run(&pairs, within);
            assert_refused(&machine, found, expected, &[&target]);
        }
    }
    for (pairs, expected) in [
        (
            [[0, 1], [1, 2]],
            "`pairs[0, 1]` is 1, which is also the source `pairs[1, 0]`",
        ),
        (
            [[1, 2], [0, 1]],
            "`pairs[1, 1]` is 1, which is also the source `pairs[0, 0]`",
        ),
    ] {
        let (machine, found, target) = run(&pairs, true);
        assert_refused(&machine, found, expected, &[&target]);
        assert_eq!(run(&pairs, false).1, Ok(()), "two caches");
    }
    // Padding, one source of two, and a block that stays where it is.
    for pairs in [
        [[-1, 3], [0, 3]],
        [[0, 1], [0, 2]],
        [[4, 4], [0, 1]],
        [[1, -1], [0, 1]],
    ] {
        assert_eq!(run(&pairs, true).1, Ok(()), "{pairs:?}");
    }
}

/// A pool of 4 blocks of 8 tokens, compacted into 3 by what `references` makes; and what was found.
fn compact(
    references: impl FnOnce(&Machine) -> (CompactReferences<'static>, HostTensor),
    expected: &str,
) {
    let machine = Machine::new();
    let pool = tensor(
        "cache",
        Dtype::U8,
        &[4, 8, 16],
        (0..=255).cycle().take(512).collect(),
    );
    let compact = poisoned_tensor("compact", Dtype::U8, &[3, 8, 16]);
    let num_wanted = poisoned_tensor("num_wanted", Dtype::I32, &[1]);
    let (references, renamed) = references(&machine);
    let request = CompactRequest {
        caches: vec![(machine.view(&pool), machine.view_mut(&compact))],
        block_size: 8,
        references,
        num_wanted: machine.view_mut(&num_wanted),
        check: CheckMode::Device,
    };
    let found = found!(machine, request);
    if expected.is_empty() {
        assert_eq!(found, Ok(()));
        let wanted = i32::from_le_bytes(machine.read(&num_wanted).try_into().expect("an i32"));
        assert!((0..=3).contains(&wanted), "{wanted}");
    } else {
        assert_refused(
            &machine,
            found,
            expected,
            &[&compact, &num_wanted, &renamed],
        );
    }
}

#[test]
fn no_compaction_follows_bad_block_tables_or_lengths() {
    let run = |table: [i32; 4], lens: [i32; 2], expected: &str| {
        let references = |machine: &Machine| {
            let renamed = poisoned_tensor("renamed", Dtype::I32, &[2, 2]);
            let references = CompactReferences::Tables {
                block_table: machine.view(&ints("block_table", &[2, 2], &table)),
                seq_lens: machine.view(&ints("seq_lens", &[2], &lens)),
                renamed: machine.view_mut(&renamed),
            };
            (references, renamed)
        };
        compact(references, expected);
    };
    let table = [3, 0, 1, 3];
    run(table, [16, 16], "");
    run(table, [0, 1], "");
    run(table, [17, 3], "`seq_lens[0]` is 17, outside 0..=16");
    run(table, [4, -1], "`seq_lens[1]` is -1, outside 0..=16");
    let most = "`seq_lens[1]` is 2147483647, outside 0..=16";
    run(table, [4, i32::MAX], most);
    let outside = "`block_table[1, 1]` is 4, outside 0..4";
    run([3, 0, 1, 4], [16, 9], outside);
    let outside = "`block_table[0, 0]` is 2147483647, outside 0..4";
    run([i32::MAX, 0, 1, 2], [1, 16], outside);
    // Behind a sequence's tokens, or freed.
    run([3, 4, 1, i32::MAX], [8, 1], "");
    run([-1, 0, i32::MIN, -7], [16, 16], "");
}

#[test]
fn no_compaction_follows_slots_outside_the_cache() {
    let run = |slots: [i32; 4], shape: &[usize], expected: &str| {
        let references = |machine: &Machine| {
            let renamed = poisoned_tensor("renamed", Dtype::I32, shape);
            let references = CompactReferences::Slots {
                slots: machine.view(&ints("slots", shape, &slots)),
                renamed: machine.view_mut(&renamed),
            };
            (references, renamed)
        };
        compact(references, expected);
    };
    let (one, two) = (&[4][..], &[2, 2][..]);
    run([31, 0, -1, 9], one, "");
    run([31, 0, i32::MIN, -9], two, "");
    let skipped = "(negative slots are skipped)";
    run(
        [31, 0, 32, 9],
        one,
        &format!("`slots[2]` is 32, outside 0..32 {skipped}"),
    );
    run(
        [31, 0, 1, i32::MAX],
        two,
        &format!("`slots[1, 1]` is 2147483647, outside 0..32 {skipped}"),
    );
    run(
        [1 << 20, 0, 1, -1],
        two,
        &format!("`slots[0, 0]` is 1048576, outside 0..32 {skipped}"),
    );
}
