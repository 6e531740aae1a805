//! Files that no program would write: `ferroattn run` refuses them in words or runs them, and asks for no memory that is
//! not there.
#![allow(missing_docs, reason = "a test crate has no readers of its docs")]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "small test data"
)]

mod common;
mod run_input;
mod tensors;

use std::panic::{AssertUnwindSafe, catch_unwind};

use ferroattn::cli::run_operation;
use ferroattn::emulator::Emulator;
use ferroattn::tensor::Dtype::{Bf16, F8E4m3, U8};
use run_input::*;
use serde_json::{Map, Value, json};
use tensors::{Random, ints};

const NUM_MUTATIONS: u64 = 800;

/// Extents and offsets that break sums and products.
const SIZES: [u64; 14] = [
    0,
    1,
    2,
    7,
    8,
    16,
    64,
    65_536,
    1 << 31,
    1 << 32,
    1 << 40,
    1 << 59,
    1 << 63,
    u64::MAX,
];
const NUMBERS: [i64; 9] = [
    -1,
    0,
    1,
    8,
    1 << 20,
    i32::MAX as i64,
    i32::MIN as i64,
    i64::MAX,
    i64::MIN,
];
const TEXTS: [&str; 16] = [
    "-1",
    "0",
    "1",
    "3",
    "8",
    "2000000000",
    "4294967295",
    "18446744073709551616",
    "nan",
    "-inf",
    "1e-45",
    "3e38",
    "",
    "True",
    "invariant",
    "fp8_ds_mla",
];
const DTYPES: [&str; 13] = [
    "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "I8", "U8", "I32", "I64", "F64", "BOOL", "F4", "X",
];

/// A file taken apart.
struct Parts {
    header: Map<String, Value>,
    data: Vec<u8>,
}

impl Parts {
    fn of(file: &[u8]) -> Self {
        let (len, rest) = file.split_at(8);
        let len = u64::from_le_bytes(len.try_into().expect("eight bytes")) as usize;
        Self {
            header: serde_json::from_slice(&rest[..len]).expect("a header"),
            data: rest[len..].to_vec(),
        }
    }

    fn file(&self) -> Vec<u8> {
        let header = serde_json::to_vec(&self.header).expect("JSON");
        let len = (header.len() as u64).to_le_bytes();
        [&len[..], &header, &self.data].concat()
    }

    /// Changes one thing.
    fn mutate(&mut self, random: &mut Random) {
        let names: Vec<String> = self.header.keys().cloned().collect();
        let name = &names[random.below(names.len())];
        if name == "__metadata__" {
            let entries = self.header[name].as_object_mut().expect("entries");
            let names: Vec<String> = entries.keys().cloned().collect();
            if let Some(at) = random.next().checked_rem(names.len() as u64) {
                let text = TEXTS[random.below(TEXTS.len())];
                entries[&names[at as usize]] = json!(text);
            }
            return;
        }
        let tensor = &mut self.header[name];
        let rank = tensor["shape"].as_array().expect("a shape").len();
        let size = json!(SIZES[random.below(SIZES.len())]);
        match random.below(9) {
            0 => tensor["dtype"] = json!(DTYPES[random.below(DTYPES.len())]),
            1 if rank > 0 => tensor["shape"][random.below(rank)] = size,
            2 if rank > 0 => {
                // An empty tensor may claim to be of any size in other dimensions.
                for dim in 0..rank {
                    tensor["shape"][dim] = json!(SIZES[random.below(SIZES.len())]);
                }
                tensor["shape"][random.below(rank)] = json!(0);
                self.take_data(name);
            }
            3 => {
                let shape = tensor["shape"].as_array_mut().expect("a shape");
                if random.below(2) == 0 {
                    shape.insert(random.below(rank + 1), json!(1));
                } else {
                    shape.pop();
                }
            }
            4 => tensor["data_offsets"][random.below(2)] = size,
            5 => tensor["data_offsets"] = json!([-1, 3.5]),
            6 => {
                let tensor = tensor.take();
                self.header.remove(name);
                self.header.insert(format!("{name}s"), tensor);
            }
            7 if self.data.len() >= 8 => {
                let at = random.below(self.data.len() / 8) * 8;
                let number = NUMBERS[random.below(NUMBERS.len())].to_le_bytes();
                self.data[at..at + 8].copy_from_slice(&number);
            }
            _ => {
                let at = random.below(self.data.len().max(1));
                if let Some(byte) = self.data.get_mut(at) {
                    *byte = random.next() as u8;
                }
            }
        }
    }

    /// Takes a tensor's bytes out of the file, so that an empty one is a right one.
    fn take_data(&mut self, name: &str) {
        let offsets = |tensor: &Value| [0, 1].map(|end| tensor["data_offsets"][end].as_u64());
        let [Some(start), Some(end)] = offsets(&self.header[name]) else {
            return;
        };
        let Some(bytes) = self.data.get(start as usize..end as usize) else {
            return;
        };
        let taken = bytes.len() as u64;
        self.data.drain(start as usize..end as usize);
        for tensor in self.header.values_mut() {
            for at in [0, 1] {
                if let Some(offset) = tensor["data_offsets"][at].as_u64().filter(|&at| at >= end) {
                    tensor["data_offsets"][at] = json!(offset - taken);
                }
            }
        }
        self.header[name]["data_offsets"] = json!([start, start]);
    }
}

#[test]
fn mutated_files_end_in_results_or_words() {
    let inputs = inputs();
    let (mut done, mut refused) = (0, 0);
    for seed in 0..NUM_MUTATIONS {
        let random = &mut Random::new(seed + 1);
        let input = &inputs[random.below(inputs.len())];
        let mut file = input.file();
        if random.below(8) == 0 {
            for _ in 0..=random.below(3) {
                let at = random.below(file.len());
                file[at.min(random.below(600))] = random.next() as u8;
            }
            let len = random.below(2 * file.len());
            file.truncate(len);
        } else {
            let mut parts = Parts::of(&file);
            for _ in 0..=random.below(2) {
                parts.mutate(random);
            }
            file = parts.file();
        }
        let run = || run_operation(input.op, &file, &Emulator::new());
        let Ok(end) = catch_unwind(AssertUnwindSafe(run)) else {
            panic!("seed {seed}: {} panicked", input.op)
        };
        match end {
            Ok(_) => done += 1,
            Err(error) => {
                // What kernels may not do, checks find before.
                let fault = error.downcast_ref::<ferroattn::Error>();
                assert!(
                    !matches!(fault, Some(ferroattn::Error::Fault(_))),
                    "seed {seed}: {}: {error}",
                    input.op
                );
                refused += 1;
            }
        }
    }
    assert!(done > 50 && refused > 250, "{done} done, {refused} refused");
}

/// Sizes that only numbers in the file ask for.
#[test]
fn sizes_are_checked_before_anything_is_allocated() {
    let cache = || filled("cache", U8, &[1, BLOCK_SIZE, 16], |_| 0.0);
    let table = || ints("block_table", &[1, 1], &[0]);
    let compact = Input::new("compact", &[cache(), ints("slots", &[1], &[0])]);
    let gather = Input::new("gather", &[cache(), table()]);
    for (input, name, most) in [
        (
            compact.entry("num_compact_blocks", 2_000_000_000),
            "num_compact_blocks is 2000000000",
            1,
        ),
        (
            gather
                .clone()
                .with(ints("seq_lens", &[1], &[1]))
                .entry("rows_per_seq", 4_000_000_000u64),
            "rows_per_seq is 4000000000",
            8,
        ),
        (
            gather
                .clone()
                .with(ints("row_starts", &[2], &[0, i32::MAX])),
            "`row_starts[1]` is 2147483647",
            8,
        ),
        (
            decode_mla(Bf16).entry("kv_lora_rank", 1_000_000_000),
            "kv_lora_rank is 1000000000",
            576,
        ),
    ] {
        let error = input.run(&Emulator::new()).expect_err("too large");
        let expected = format!("{name}, but these tensors have no use for more than {most}");
        assert_eq!(error, expected);
    }
    let negative = gather.with(ints("row_starts", &[2], &[0, -1]));
    let error = negative
        .run(&Emulator::new())
        .expect_err("no number of rows");
    assert_eq!(error, "`row_starts[1]` is -1, but it is a number of rows");

    // Values of 2^40 numbers, of no key.
    let values = filled("value_cache", F8E4m3, &[0, BLOCK_SIZE, 1, 1 << 40], |_| 0.0);
    let error = decode(F8E4m3).with(values).run(&Emulator::new());
    let error = error.expect_err("an output without end");
    assert!(
        error.contains("`out` would have shape [1, 1, 1099511627776]"),
        "{error}"
    );
}

/// A few rows of padding are no mistake.
#[test]
fn a_little_more_than_is_needed_may_be_asked_for() {
    let cache = filled("cache", U8, &[1, BLOCK_SIZE, 16], |_| 5.0);
    let input = Input::new("compact", &[cache, ints("slots", &[1], &[0])]);
    let results = input.entry("num_compact_blocks", 3).run(&Emulator::new());
    let compact = &results.expect("three blocks")["compact"];
    assert_eq!((compact.len(), compact[0]), (3 * BLOCK_SIZE * 16, 5.0));
}
