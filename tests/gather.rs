//! Gathers against the reference, byte by byte: every form and every way to name rows; rows without a token stay
//! untouched or become zeros.
#![allow(missing_docs, reason = "a test crate has no readers of its docs")]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    reason = "small test data"
)]

mod gather_case;
mod tensors;

use ferroattn::Error;
use ferroattn::error::CheckError;
use ferroattn::ops::{CheckMode, GatherForm, GatherRequest, GatherRows, check_result};
use ferroattn::reference::{HostTensor, Pages};
use ferroattn::tensor::{Dtype, TensorView};
use gather_case::*;
use tensors::*;

const JUNK: i32 = -1_000_000;

/// A block table for sequences of up to so many tokens; entries past them are junk.
fn block_table(lens: &[usize], width: usize, cache: &Cache, random: &mut Random) -> HostTensor {
    let mut free: Vec<usize> = (0..cache.tensor.shape[0]).collect();
    let mut entries = vec![JUNK; lens.len() * width];
    for (seq, len) in lens.iter().enumerate() {
        for column in 0..len.div_ceil(cache.block_size).min(width) {
            entries[seq * width + column] = free.swap_remove(random.below(free.len())) as i32;
        }
    }
    ints("block_table", &[lens.len(), width], &entries)
}

/// Output rows with a gap after each, so that a row that is too long shows.
fn rows_with_gaps(cache: &Cache, num_rows: usize) -> HostTensor {
    let (dtype, row) = cache.out();
    let step = row + 8;
    let storage = poisoned("out", num_rows.max(1) * step * dtype.size());
    view_of(&storage, dtype, 0, &[num_rows, row], &[step, 1])
}

const FORMS: [(Form, usize); 10] = [
    (Form::Raw(Dtype::Bf16), 576),
    (Form::Raw(Dtype::F32), 512),
    (Form::Raw(Dtype::U8), 577),
    (Form::Raw(Dtype::U8), 656),
    (Form::Raw(Dtype::Bf16), 1200),
    (Form::Fp8(Dtype::F8E4m3, Dtype::Bf16), 576),
    (Form::Fp8(Dtype::F8E4m3, Dtype::F32), 320),
    (Form::Fp8(Dtype::F8E5m2, Dtype::F16), 37),
    (Form::Fp8Ds, 576),
    (Form::V4, 512),
];

#[test]
fn sequences_one_after_the_other() {
    for (form, row) in FORMS {
        for (block_size, starts, lens) in [
            (16, vec![0, 0, 0], vec![0, 1, 40]),
            (16, vec![3, 17, 5, 31], vec![0, 1, 63, 4]),
            (16, vec![3, 17, 5], vec![20, 10, 16]),
            (64, vec![17, 0, 71], vec![1, 65, 3]),
        ] {
            let mut random = Random::new(1);
            let cache = Cache::new(form, row, block_size, 14, &mut random);
            let ends: Vec<usize> = starts.iter().zip(&lens).map(|(s, l)| s + l).collect();
            let table = block_table(&ends, 6, &cache, &mut random);
            let mut row_starts = vec![0usize];
            for len in &lens {
                row_starts.push(row_starts.last().expect("one") + len);
            }
            // Two rows belong to nobody.
            let num_rows = row_starts.last().expect("one") + 2;
            let out = rows_with_gaps(&cache, num_rows);
            let as_ints = |list: &[usize]| list.iter().map(|&n| n as i32).collect::<Vec<_>>();
            let machine = Machine::new();
            let rows = GatherRows::Ragged {
                block_table: machine.view(&table),
                row_starts: machine.view(&ints(
                    "row_starts",
                    &[row_starts.len()],
                    &as_ints(&row_starts),
                )),
                first_tokens: Some(machine.view(&ints(
                    "first_tokens",
                    &[starts.len()],
                    &as_ints(&starts),
                ))),
            };
            let pages = Pages {
                block_table: &table,
                block_size,
                num_blocks: 14,
            };
            let expected = pages.ragged(&row_starts, &starts, num_rows);
            assert!(expected.iter().flatten().count() > 0);
            gather(&machine, &cache, &out, rows, false, &expected);
        }
    }
}

#[test]
fn more_sequences_than_lanes_and_long_ones() {
    let many: Vec<usize> = (0..70).map(|seq| seq % 4).collect();
    for (lens, block_size, width) in [(many, 8, 1), (vec![17, 32_768, 71], 64, 520)] {
        let mut random = Random::new(2);
        let num_blocks = 600;
        let cache = Cache::new(
            Form::Raw(Dtype::Bf16),
            8,
            block_size,
            num_blocks,
            &mut random,
        );
        let table = block_table(&lens, width, &cache, &mut random);
        let mut row_starts = vec![0usize];
        for len in &lens {
            row_starts.push(row_starts.last().expect("one") + len);
        }
        let num_rows = *row_starts.last().expect("one");
        let out = rows_with_gaps(&cache, num_rows);
        let machine = Machine::new();
        let starts: Vec<i32> = row_starts.iter().map(|&n| n as i32).collect();
        let rows = GatherRows::Ragged {
            block_table: machine.view(&table),
            row_starts: machine.view(&ints("row_starts", &[starts.len()], &starts)),
            first_tokens: None,
        };
        let pages = Pages {
            block_table: &table,
            block_size,
            num_blocks,
        };
        let expected = pages.ragged(&row_starts, &vec![0; lens.len()], num_rows);
        gather(&machine, &cache, &out, rows, false, &expected);
    }
}

#[test]
fn the_last_tokens_of_each_sequence() {
    for form in [Form::V4, Form::Fp8Ds] {
        for (seq_lens, lens, offset) in
            [([9, 23, 7], None, 0), ([19, 8, 257], Some([6, 8, 129]), 5)]
        {
            let mut random = Random::new(3);
            let cache = Cache::new(form, 0, 64, 9, &mut random);
            let table = block_table(&seq_lens, 6, &cache, &mut random);
            let (dtype, row) = cache.out();
            let per_seq = 140;
            // Rows begin at `offset` of a longer list of rows.
            let storage = poisoned("out", 3 * per_seq * row * 2);
            let out = view_of(
                &storage,
                dtype,
                offset * row,
                &[3, per_seq - offset, row],
                &[per_seq * row, row, 1],
            );
            let as_ints = |list: [usize; 3]| list.map(|n| n as i32);
            let machine = Machine::new();
            let rows = GatherRows::Padded {
                block_table: machine.view(&table),
                seq_lens: machine.view(&ints("seq_lens", &[3], &as_ints(seq_lens))),
                lens: lens.map(|lens| machine.view(&ints("lens", &[3], &as_ints(lens)))),
            };
            let pages = Pages {
                block_table: &table,
                block_size: 64,
                num_blocks: 9,
            };
            let expected = pages.padded(&seq_lens, &lens.unwrap_or(seq_lens), per_seq - offset);
            gather(&machine, &cache, &out, rows, false, &expected);
        }
    }
}

#[test]
fn chosen_positions() {
    for (form, row) in FORMS {
        for zero_missing in [false, true] {
            let mut random = Random::new(4);
            let cache = Cache::new(form, row, 16, 12, &mut random);
            let lens = [40, 64, 1];
            let table = block_table(&lens, 4, &cache, &mut random);
            let (num_tokens, topk) = (4, 9);
            let seqs = [2usize, 0, 1, 1];
            let list: Vec<i32> = (0..num_tokens * topk)
                .map(|i| match random.below(4) {
                    0 => -1,
                    _ => random.below(lens[seqs[i / topk]]) as i32,
                })
                .collect();
            let indices = ints("indices", &[num_tokens, topk], &list);
            let machine = Machine::new();
            let rows = GatherRows::TopK {
                block_table: machine.view(&table),
                indices: machine.view(&indices),
                seqs: Some(machine.view(&ints("seqs", &[4], &seqs.map(|seq| seq as i32)))),
            };
            let pages = Pages {
                block_table: &table,
                block_size: 16,
                num_blocks: 12,
            };
            let expected = pages.topk(&indices, &seqs);
            let out = rows_with_gaps(&cache, num_tokens * topk);
            gather(&machine, &cache, &out, rows, zero_missing, &expected);
        }
    }
}

#[test]
fn slots_in_any_order_give_the_same_rows() {
    for (form, row) in FORMS {
        let mut random = Random::new(5);
        let cache = Cache::new(form, row, 16, 3, &mut random);
        // All slots forwards: the dense gather; then backwards with holes.
        let forwards: Vec<i32> = (0..48).collect();
        let backwards: Vec<i32> = (0..48)
            .rev()
            .map(|slot| if slot % 5 == 0 { -1 } else { slot })
            .collect();
        for list in [forwards, backwards, vec![], vec![47]] {
            let machine = Machine::new();
            let slots = ints("slots", &[list.len()], &list);
            let rows = GatherRows::Slots {
                slots: machine.view(&slots),
            };
            let expected: Vec<Option<usize>> = list
                .iter()
                .map(|&slot| usize::try_from(slot).ok())
                .collect();
            let out = rows_with_gaps(&cache, list.len());
            gather(&machine, &cache, &out, rows, false, &expected);
        }
    }
}

/// Unchecked, rows of which nobody says where their token is stay as they are, or become zeros.
#[test]
fn what_is_nowhere_is_skipped() {
    let mut random = Random::new(8);
    let cache = Cache::new(Form::Raw(Dtype::Bf16), 64, 16, 4, &mut random);
    let table = ints("block_table", &[3, 2], &[3, 0, -1, 2, 1, 4]);
    // Of sequence 0 the last tokens that its row names, and two past them; of 1 two of a block that is none and two of the
    // next; of 2 from before the first token on.
    let starts = [0, 4, 8, 10];
    let expected = [
        Some(14),
        Some(15),
        None,
        None,
        None,
        None,
        Some(32),
        Some(33),
        None,
        None,
    ];
    for zero_missing in [false, true] {
        let machine = Machine::new();
        let rows = GatherRows::Ragged {
            block_table: machine.view(&table),
            row_starts: machine.view(&ints("row_starts", &[4], &starts)),
            first_tokens: Some(machine.view(&ints("first_tokens", &[3], &[30, 14, -1]))),
        };
        let out = rows_with_gaps(&cache, 10);
        gather(&machine, &cache, &out, rows, zero_missing, &expected);

        let machine = Machine::new();
        let rows = GatherRows::TopK {
            block_table: machine.view(&table),
            indices: machine.view(&ints(
                "indices",
                &[2, 4],
                &[31, 32, -1, 15, 15, 16, i32::MIN, 40],
            )),
            seqs: Some(machine.view(&ints("seqs", &[2], &[2, 3]))),
        };
        let out = rows_with_gaps(&cache, 8);
        let mut expected = [None; 8];
        expected[3] = Some(31);
        gather(&machine, &cache, &out, rows, zero_missing, &expected);
    }
}

/// A block table without columns names no token, wherever it lies: at address 0 it is not taken for none.
#[test]
fn an_empty_block_table_names_no_token() {
    let mut random = Random::new(9);
    let cache = Cache::new(Form::Raw(Dtype::Bf16), 64, 16, 4, &mut random);
    let machine = Machine::new();
    // SAFETY: it has no elements.
    let block_table = unsafe { TensorView::contiguous(0, Dtype::I32, &[2, 0]) };
    let rows = GatherRows::TopK {
        block_table: block_table.expect("two dimensions"),
        indices: machine.view(&ints("indices", &[2, 3], &[0, 1, 20, 0, -1, 63])),
        seqs: None,
    };
    let out = rows_with_gaps(&cache, 6);
    gather(&machine, &cache, &out, rows, true, &[None; 6]);
}

#[test]
fn bad_blocks_and_slots_are_reported_and_nothing_is_gathered() {
    let mut random = Random::new(6);
    let cache = Cache::new(Form::Raw(Dtype::Bf16), 64, 16, 4, &mut random);
    let table = ints("block_table", &[1, 2], &[3, 4]);
    let run = |rows: &dyn Fn(&Machine) -> GatherRows<'static>| {
        let machine = Machine::new();
        let out = rows_with_gaps(&cache, 20);
        let request = GatherRequest {
            cache: machine.view(&cache.tensor),
            block_size: 16,
            form: GatherForm::Raw,
            out: machine.view_mut(&out),
            rows: rows(&machine),
            zero_missing: false,
            check: CheckMode::Device,
        };
        let checked = request.check().expect("fits");
        let plan = checked.plan();
        let mut workspace = machine.workspace(plan.workspace_bytes());
        checked
            .launch(&plan, &mut workspace, &machine.emulator)
            .expect("runs");
        let found = check_result(&machine.read_workspace(&workspace));
        (machine.read(&out), found)
    };
    let (bytes, found) = run(&|machine| GatherRows::Ragged {
        block_table: machine.view(&table),
        row_starts: machine.view(&ints("row_starts", &[2], &[0, 20])),
        first_tokens: None,
    });
    assert!(
        bytes.iter().all(|&byte| byte == POISON),
        "block 3 is there, block 4 is not"
    );
    assert!(
        matches!(
            found,
            Err(CheckError::BlockId {
                seq: 0,
                position: 1,
                value: 4,
                num_blocks: 4
            })
        ),
        "{found:?}"
    );
    let list: Vec<i32> = (50..70).collect();
    let (bytes, found) = run(&|machine| GatherRows::Slots {
        slots: machine.view(&ints("slots", &[20], &list)),
    });
    assert!(bytes.iter().all(|&byte| byte == POISON));
    let Err(CheckError::Index {
        row,
        position: None,
        value,
        num_slots: 64,
    }) = found
    else {
        panic!("{found:?}");
    };
    assert!(
        row >= 14 && value == 50 + i64::from(row),
        "one of those outside"
    );
}

#[test]
fn requests_that_do_not_fit_are_refused() {
    let mut random = Random::new(7);
    let cache = Cache::new(Form::Fp8Ds, 0, 16, 2, &mut random);
    let machine = Machine::new();
    let out = poisoned_tensor("out", Dtype::Bf16, &[4, 512]);
    let request = GatherRequest {
        cache: machine.view(&cache.tensor),
        block_size: 16,
        form: GatherForm::Fp8Ds,
        out: machine.view_mut(&out),
        rows: GatherRows::Slots {
            slots: machine.view(&ints("slots", &[4], &[0; 4])),
        },
        zero_missing: false,
        check: CheckMode::Off,
    };
    let Err(Error::Request(error)) = request.check() else {
        panic!("rows of 512 values");
    };
    assert!(
        error.to_string().contains("`out`") && error.to_string().contains("576"),
        "{error}"
    );
}
