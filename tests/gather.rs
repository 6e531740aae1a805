//! Gathers against the reference, byte by byte: every form and every way to name rows; rows without a token stay
//! untouched or become zeros.
#![allow(missing_docs, reason = "a test crate has no readers of its docs")]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    reason = "small test data"
)]

mod tensors;

use ferroattn::Error;
use ferroattn::error::CheckError;
use ferroattn::ops::{
    CheckMode, ConcatAndCacheMlaRequest, GatherForm, GatherRequest, GatherRows, MlaCacheForm,
    ScaleRule, check_result,
};
use ferroattn::reference::{HostTensor, Pages, fp8_value, mla_fp8_ds_values, mla_v4_values};
use ferroattn::tensor::Dtype;
use half::{bf16, f16};
use tensors::*;

/// A cache, and what its slots give.
struct Cache {
    tensor: HostTensor,
    block_size: usize,
    form: Form,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Form {
    /// Values of a row and their dtype.
    Raw(Dtype),
    Fp8(Dtype, Dtype),
    Fp8Ds,
    V4,
}

const SCALE: f32 = 0.37;

impl Cache {
    fn new(
        form: Form,
        row: usize,
        block_size: usize,
        num_blocks: usize,
        random: &mut Random,
    ) -> Self {
        let slots = num_blocks * block_size;
        let tensor = match form {
            Form::Raw(dtype) | Form::Fp8(dtype, _) => {
                let count = slots * row;
                let data = (0..count * dtype.size())
                    .map(|_| random.next() as u8)
                    .collect();
                tensor("cache", dtype, &[num_blocks, block_size, row], data)
            }
            Form::Fp8Ds => Self::entries(
                form,
                &[num_blocks, block_size, 656],
                block_size,
                slots,
                random,
            ),
            Form::V4 => {
                let page = (block_size * 584).next_multiple_of(576);
                Self::entries(form, &[num_blocks, page], block_size, slots, random)
            }
        };
        Self {
            tensor,
            block_size,
            form,
        }
    }

    /// All slots written by the writer.
    fn entries(
        form: Form,
        shape: &[usize],
        block_size: usize,
        slots: usize,
        random: &mut Random,
    ) -> HostTensor {
        let size = if form == Form::V4 { 448 } else { 512 };
        let part = |name, size, random: &mut Random| {
            tensor(
                name,
                Dtype::Bf16,
                &[slots, size],
                finite_values(Dtype::Bf16, slots * size, random),
            )
        };
        let (kv_c, k_pe) = (part("kv_c", size, random), part("k_pe", 64, random));
        let cache = poisoned_tensor("cache", Dtype::U8, shape);
        let list: Vec<i64> = (0..slots as i64).collect();
        let machine = Machine::new();
        let request = ConcatAndCacheMlaRequest {
            kv_c: machine.view(&kv_c),
            k_pe: Some(machine.view(&k_pe)),
            kv_cache: machine.view_mut(&cache),
            slot_mapping: machine.view(&longs("slot_mapping", &list)),
            block_size,
            form: if form == Form::V4 {
                MlaCacheForm::V4
            } else {
                MlaCacheForm::Fp8Ds {
                    rule: ScaleRule::Exact,
                }
            },
            check: CheckMode::Off,
        };
        let checked = request.check().expect("fits");
        checked
            .launch(
                &checked.plan(),
                &mut machine.workspace(0),
                &machine.emulator,
            )
            .expect("runs");
        let bytes = machine.read(&cache);
        tensor("cache", Dtype::U8, shape, bytes)
    }

    fn out(&self) -> (Dtype, usize) {
        match self.form {
            Form::Raw(dtype) | Form::Fp8(_, dtype) => (dtype, self.tensor.shape[2]),
            Form::Fp8Ds => (Dtype::Bf16, 576),
            Form::V4 => (Dtype::Bf16, 512),
        }
    }

    /// The bytes that a slot becomes.
    fn row(&self, slot: usize) -> Vec<u8> {
        let (block, offset) = (slot / self.block_size, slot % self.block_size);
        let bytes = &self.tensor.storage.bytes;
        let to_bytes = |values: Vec<bf16>| values.iter().flat_map(|x| x.to_le_bytes()).collect();
        match self.form {
            Form::Raw(dtype) => {
                let at = self.tensor.position(&[block, offset, 0]) * dtype.size();
                bytes[at..at + self.tensor.shape[2] * dtype.size()].to_vec()
            }
            Form::Fp8(dtype, out) => {
                let at = self.tensor.position(&[block, offset, 0]);
                let row = &bytes[at..at + self.tensor.shape[2]];
                let values = row
                    .iter()
                    .map(|&byte| fp8_value(dtype, byte) as f32 * SCALE);
                values
                    .flat_map(|x| match out {
                        Dtype::Bf16 => bf16::from_f32(x).to_le_bytes().to_vec(),
                        Dtype::F16 => f16::from_f32(x).to_le_bytes().to_vec(),
                        _ => x.to_le_bytes().to_vec(),
                    })
                    .collect()
            }
            Form::Fp8Ds => {
                let at = slot * 656;
                to_bytes(mla_fp8_ds_values(&bytes[at..at + 656]))
            }
            Form::V4 => {
                let page = block * self.tensor.shape[1];
                let (entry, scales) = (
                    page + offset * 576,
                    page + self.block_size * 576 + offset * 8,
                );
                to_bytes(mla_v4_values(
                    &bytes[entry..entry + 576],
                    &bytes[scales..scales + 8],
                ))
            }
        }
    }
}

/// Runs a gather into `out` and compares all of `out`'s storage. `positions` are the rows' places in it, in
/// elements. NaN payloads may differ.
#[track_caller]
fn gather(
    machine: &Machine,
    cache: &Cache,
    out: &HostTensor,
    rows: GatherRows<'static>,
    zero_missing: bool,
    expected: &[Option<usize>],
) {
    let scale = floats("scale", &[1], &[SCALE]);
    let request = GatherRequest {
        cache: machine.view(&cache.tensor),
        block_size: cache.block_size,
        form: match cache.form {
            Form::Raw(_) => GatherForm::Raw,
            Form::Fp8(..) => GatherForm::Fp8 {
                scale: machine.view(&scale),
            },
            Form::Fp8Ds => GatherForm::Fp8Ds,
            Form::V4 => GatherForm::V4,
        },
        out: machine.view_mut(out),
        rows,
        zero_missing,
        check: CheckMode::Off,
    };
    let checked = request.check().unwrap_or_else(|error| panic!("{error}"));
    checked
        .launch(
            &checked.plan(),
            &mut machine.workspace(0),
            &machine.emulator,
        )
        .unwrap_or_else(|error| panic!("{error}"));
    let mut bytes = out.storage.bytes.clone();
    let (dtype, row) = cache.out();
    for (index, &slot) in expected.iter().enumerate() {
        let at = out.row_position(index) * dtype.size();
        let place = &mut bytes[at..at + row * dtype.size()];
        match slot {
            Some(slot) => place.copy_from_slice(&cache.row(slot)),
            None if zero_missing => place.fill(0),
            None => {}
        }
    }
    let mut got = machine.read(out);
    if matches!(cache.form, Form::Fp8(..)) {
        // Arbitrary bytes hold NaN, whose bits are not promised.
        for bytes in [&mut got, &mut bytes] {
            for value in bytes.chunks_mut(dtype.size()) {
                let is_nan = match dtype {
                    Dtype::F32 => f32::from_le_bytes(value.try_into().expect("four")).is_nan(),
                    Dtype::F16 => f16::from_le_bytes(value.try_into().expect("two")).is_nan(),
                    _ => bf16::from_le_bytes(value.try_into().expect("two")).is_nan(),
                };
                if is_nan {
                    value.fill(POISON);
                }
            }
        }
    }
    assert_same_bytes(
        &got,
        &bytes,
        &format!("{:?}, block size {}", cache.form, cache.block_size),
    );
}

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

#[test]
fn bad_blocks_and_slots_are_skipped_and_reported() {
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
    assert_eq!(bytes[..128], cache.row(48), "block 3 is there");
    assert!(
        bytes[16 * 144..].iter().all(|&byte| byte == POISON),
        "block 4 is not"
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
    assert_eq!(bytes[..128], cache.row(50));
    assert!(bytes[14 * 144..].iter().all(|&byte| byte == POISON));
    let Err(CheckError::Index {
        row,
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
