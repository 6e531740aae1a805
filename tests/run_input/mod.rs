//! Small inputs of `ferroattn run`, one of each operation and of each way to use it, to change one thing of.
#![allow(dead_code, reason = "each test crate uses a part")]

use std::collections::HashMap;

use ferroattn::cases::grid::GRIDS;
use ferroattn::cases::{BlocksCase, Case, FileContents};
use ferroattn::cli::run_operation;
use ferroattn::reference::{HostTensor, fp8_value};
use ferroattn::runtime::Runtime;
use ferroattn::tensor::Dtype::{self, Bf16, F8E4m3, F32, I64, U8};
use half::{bf16, f16};
use safetensors::SafeTensors;

use crate::common::files::file;
use crate::tensors::{encode, ints, tensor};

/// Tokens of a block.
pub(crate) const BLOCK_SIZE: usize = 8;

/// An operation and its file.
#[derive(Clone, Debug)]
pub(crate) struct Input {
    pub(crate) op: &'static str,
    pub(crate) tensors: Vec<HostTensor>,
    pub(crate) metadata: Vec<(&'static str, String)>,
}

/// What an operation wrote, by name: numbers, whatever their dtype.
pub(crate) type Results = HashMap<String, Vec<f32>>;

impl Input {
    pub(crate) fn new(op: &'static str, tensors: &[HostTensor]) -> Self {
        Self {
            op,
            tensors: tensors.to_vec(),
            metadata: Vec::new(),
        }
    }

    fn of(op: &'static str, contents: FileContents) -> Self {
        let FileContents { tensors, metadata } = contents;
        Self {
            op,
            tensors,
            metadata,
        }
    }

    /// With this tensor, instead of one of its name.
    pub(crate) fn with(mut self, tensor: HostTensor) -> Self {
        self = self.without(tensor.storage.name);
        self.tensors.push(tensor);
        self
    }

    /// With this entry of the metadata, instead of one of its name.
    pub(crate) fn entry(mut self, name: &'static str, value: impl ToString) -> Self {
        self = self.without(name);
        self.metadata.push((name, value.to_string()));
        self
    }

    pub(crate) fn without(mut self, name: &str) -> Self {
        self.tensors.retain(|tensor| tensor.storage.name != name);
        self.metadata.retain(|(other, _)| *other != name);
        self
    }

    pub(crate) fn file(&self) -> Vec<u8> {
        let tensors = self.tensors.iter();
        let tensors: Vec<_> = tensors
            .map(|tensor| (tensor.storage.name, tensor))
            .collect();
        let metadata = self.metadata.iter();
        let metadata: Vec<_> = metadata
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        file(&tensors, &metadata.join(" "))
    }

    /// What it gives, or what is said instead.
    pub(crate) fn run(&self, machine: &dyn Runtime) -> Result<Results, String> {
        let written =
            run_operation(self.op, &self.file(), machine).map_err(|error| format!("{error:#}"))?;
        let written = SafeTensors::deserialize(&written).expect("a file");
        let tensors = written.tensors().into_iter();
        Ok(tensors
            .map(|(name, view)| (name, numbers(view.dtype(), view.data())))
            .collect())
    }
}

/// One of each operation, and of each way to use it.
pub(crate) fn inputs() -> Vec<Input> {
    let table = ints("block_table", &[1, 1], &[0]);
    let seq_lens = ints("seq_lens", &[1], &[5]);
    let slots = ints("slots", &[3], &[3, -1, 0]);
    let topk = ints("topk_indices", &[1, 1, 3], &[3, -1, 0]);
    let entries = filled("cache", U8, &[1, BLOCK_SIZE, 656], |_| 0.0);
    let entry_query = filled("query", Bf16, &[1, 1, 2, 576], |_| 1.0);
    let over_entries = Input::new("decode_mla_entry", &[entry_query, entries.clone()])
        .entry("softmax_scale", 0.1)
        .entry("form", "fp8_ds_mla");
    let listed = over_entries.clone().with(topk.clone());
    let mut window = [entries.clone(), topk];
    for (tensor, name) in window.iter_mut().zip(["window_cache", "window_indices"]) {
        *tensor = renamed(tensor, name);
    }
    let [window_cache, window_indices] = window;

    let write = cache_write(Bf16);
    let scaled = cache_write(F8E4m3)
        .with(ones("k_scale", 1))
        .with(ones("v_scale", 1));
    let per_token = cache_write(F8E4m3)
        .with(filled("k_scale_cache", F32, &[1, BLOCK_SIZE, 1], |_| 0.0))
        .with(filled("v_scale_cache", F32, &[1, BLOCK_SIZE, 1], |_| 0.0));

    let cache = filled("cache", F8E4m3, &[1, BLOCK_SIZE, 16], |at| at as f32 / 16.0);
    let gather = Input::new("gather", &[cache]);
    let by_table = gather.clone().with(table.clone());
    let pairs = tensor("pairs", I64, &[1, 2], le_bytes(&[0, 1]));
    let caches = |name| filled(name, Bf16, &[2, 2, BLOCK_SIZE, 16], |at| at as f32);
    let blocks = |name| filled(name, Bf16, &[2, BLOCK_SIZE, 16], |at| at as f32);
    let copy = Input::new("copy_blocks", &[pairs]);
    let latents = Input::new(
        "concat_and_cache_mla",
        &[
            filled("kv_c", Bf16, &[2, 512], |_| 1.0),
            filled("k_pe", Bf16, &[2, 64], |_| 2.0),
            slot_mapping(&[1, 0]),
        ],
    );
    let by_hand = vec![
        decode(Bf16),
        decode(F8E4m3),
        decode(F8E4m3)
            .with(filled("query", F8E4m3, &[1, 1, 64], |_| 1.0))
            .with(ones("q_scale", 1))
            .entry("out_dtype", "f16"),
        decode(Bf16)
            .with(ones("alibi_slopes", 1))
            .with(ones("sinks", 1))
            .entry("sliding_window", 3)
            .entry("softcap", 20)
            .entry("max_seq_len", 8)
            .entry("split_policy", 8),
        unified(&[5], &[2]),
        unified(&[5, 6], &[1, 2])
            .with(tensor("causal_flags", U8, &[2], vec![1, 0]))
            .with(ones("output_scale", 1))
            .entry("out_dtype", "fp8_e4m3")
            .entry("num_decodes", 1)
            .entry("max_query_len", 2)
            .entry("f32_scores", "true")
            .entry("split_policy", "invariant"),
        unified(&[5, 6], &[1, 2])
            .with(ones("alibi_slopes", 1))
            .with(ones("sinks", 1))
            .entry("causal", "False")
            .entry("sliding_window", 3)
            .entry("softcap", 20)
            .entry("max_seq_len", 8),
        unified(&[5], &[2])
            .with(filled("query", F8E4m3, &[2, 1, 64], |_| 1.0))
            .with(filled("key_cache", F8E4m3, &[1, BLOCK_SIZE, 1, 64], |_| {
                1.0
            }))
            .with(filled(
                "value_cache",
                F8E4m3,
                &[1, BLOCK_SIZE, 1, 64],
                |_| 1.0,
            ))
            .with(ones("q_scale", 1))
            .with(ones("k_scale", 1))
            .with(ones("v_scale", 1))
            .entry("out_dtype", "bf16"),
        decode_mla(Bf16).entry("max_seq_len", 5),
        decode_mla(F8E4m3)
            .with(filled("query", F8E4m3, &[1, 2, 1, 576], |_| 1.0))
            .with(ones("q_scale", 1))
            .with(ones("k_scale", 1))
            .entry("out_dtype", "bf16")
            .entry("split_policy", 8),
        over_entries
            .with(table.clone())
            .with(seq_lens.clone())
            .entry("max_seq_len", 5)
            .entry("split_policy", "auto")
            .entry("block_size", 8),
        listed
            .with(window_cache)
            .with(window_indices)
            .with(ints("topk_length", &[1], &[2]))
            .with(ints("window_length", &[1], &[1]))
            .entry("window_block_size", 8)
            .with(ones("sinks", 2)),
        write.clone().entry("block_size", 8),
        scaled.clone(),
        per_token,
        rope(write.clone()).entry("style", "gptj"),
        rope(write).with(filled("query", Bf16, &[2, 2, 16], |_| 1.0)),
        rope(scaled)
            .entry("block_size", 8)
            .with(filled("query", Bf16, &[2, 2, 16], |_| 1.0))
            .with(ones("q_scale", 1)),
        latents
            .clone()
            .with(filled("kv_cache", Bf16, &[1, BLOCK_SIZE, 576], |_| 0.0)),
        latents
            .clone()
            .with(filled("kv_cache", F8E4m3, &[1, BLOCK_SIZE, 576], |_| 0.0))
            .with(ones("scale", 1)),
        latents
            .clone()
            .with(filled("kv_cache", U8, &[1, BLOCK_SIZE, 656], |_| 0.0))
            .entry("form", "fp8_ds_mla")
            .entry("scale_rule", "power_of_two")
            .entry("block_size", 8),
        Input {
            op: "concat_and_cache_mla_grouped",
            ..latents.clone()
        }
        .with(filled("kv_c", Bf16, &[2, 2, 512], |_| 1.0))
        .with(filled("k_pe", Bf16, &[2, 2, 64], |_| 1.0))
        .with(filled(
            "kv_caches",
            F8E4m3,
            &[2, 1, BLOCK_SIZE, 576],
            |_| 0.0,
        ))
        .with(ones("scales", 2))
        .with(tensor(
            "slot_mapping",
            I64,
            &[2, 2],
            le_bytes(&[1, 0, 3, -1]),
        )),
        gather.clone().with(slots.clone()).entry("block_size", 8),
        gather
            .with(slots.clone())
            .with(ones("scale", 1))
            .entry("out_dtype", "f32"),
        Input::new("gather", &[entries, slots.clone()]).entry("form", "fp8_ds_mla"),
        by_table
            .clone()
            .with(ints("topk_indices", &[2, 2], &[2, -1, 0, 7]))
            .with(ints("seqs", &[2], &[0, 0])),
        by_table
            .clone()
            .with(ints("row_starts", &[2], &[0, 3]))
            .with(ints("first_tokens", &[1], &[2])),
        by_table
            .with(seq_lens)
            .with(ints("lens", &[1], &[2]))
            .entry("rows_per_seq", 4),
        copy.clone().with(blocks("target")).with(blocks("source")),
        copy.clone().with(caches("targets")),
        copy.with(caches("targets")).with(caches("sources")),
    ];
    by_hand.into_iter().chain(of_cases()).collect()
}

/// One of each operation that has cases on blocks.
fn of_cases() -> Vec<Input> {
    let smoke = GRIDS.iter().find(|grid| grid.name == "smoke");
    let smoke = (smoke.expect("a list of small cases").cases)();
    let mut cases: Vec<BlocksCase> = Vec::new();
    for case in smoke {
        let Case::Blocks(case) = case else { continue };
        if !cases.iter().any(|other| other.operation == case.operation) {
            cases.push(case);
        }
    }
    let input = |case: &BlocksCase| Input::of(case.operation.run_name(), case.file_contents(1));
    cases.iter().map(input).collect()
}

/// One head of 64 values over one block: the query and the keys are 0, so that each key counts the same; the values of
/// token `t` are `t`.
pub(crate) fn decode(cache: Dtype) -> Input {
    let tensors = [
        filled("query", Bf16, &[1, 1, 64], |_| 0.0),
        filled("key_cache", cache, &[1, BLOCK_SIZE, 1, 64], |_| 0.0),
        filled("value_cache", cache, &[1, BLOCK_SIZE, 1, 64], |at| {
            (at / 64) as f32
        }),
        ints("block_table", &[1, 1], &[0]),
        ints("seq_lens", &[1], &[8]),
    ];
    let input = Input::new("decode", &tensors).entry("softmax_scale", 1);
    if cache.size() == 1 {
        return input.with(ones("k_scale", 1)).with(ones("v_scale", 1));
    }
    input
}

/// The same for sequences of these lengths, of which so many tokens are queries. Values are those of [`decode`], plus 100
/// for each sequence before.
pub(crate) fn unified(seq_lens: &[i32], query_lens: &[i32]) -> Input {
    let num_seqs = seq_lens.len();
    let ids: Vec<i32> = (0..).take(num_seqs).collect();
    let starts = query_lens.iter().scan(0, |end, len| {
        *end += len;
        Some(*end)
    });
    let starts: Vec<i32> = [0].into_iter().chain(starts).collect();
    let num_tokens = usize::try_from(starts[num_seqs]).expect("a count");
    let caches = [num_seqs, BLOCK_SIZE, 1, 64];
    let tensors = [
        filled("query", Bf16, &[num_tokens, 1, 64], |_| 0.0),
        filled("key_cache", Bf16, &caches, |_| 0.0),
        filled("value_cache", Bf16, &caches, |at| {
            let (seq, token) = (at / 64 / BLOCK_SIZE, at / 64 % BLOCK_SIZE);
            (100 * seq + token) as f32
        }),
        ints("block_table", &[num_seqs, 1], &ids),
        ints("query_start_loc", &[num_seqs + 1], &starts),
        ints("seq_lens", &[num_seqs], seq_lens),
    ];
    Input::new("unified", &tensors).entry("softmax_scale", 1)
}

/// Two query tokens of one head over five rows of ones.
pub(crate) fn decode_mla(cache: Dtype) -> Input {
    let tensors = [
        filled("query", Bf16, &[1, 2, 1, 576], |_| 0.0),
        filled("cache", cache, &[1, BLOCK_SIZE, 576], |_| 1.0),
        ints("block_table", &[1, 1], &[0]),
        ints("seq_lens", &[1], &[5]),
    ];
    Input::new("decode_mla", &tensors)
        .entry("softmax_scale", 0.07)
        .entry("kv_lora_rank", 512)
}

/// Two tokens of one head of 16 ones, for slots 1 and 0 of an empty cache.
pub(crate) fn cache_write(cache: Dtype) -> Input {
    let caches = ["key_cache", "value_cache"]
        .map(|name| filled(name, cache, &[1, BLOCK_SIZE, 1, 16], |_| 0.0));
    Input::new("reshape_and_cache_flash", &caches)
        .with(filled("key", Bf16, &[2, 1, 16], |_| 1.0))
        .with(filled("value", Bf16, &[2, 1, 16], |_| 1.0))
        .with(slot_mapping(&[1, 0]))
}

/// The same with a table of four positions that turns nothing.
pub(crate) fn rope(write: Input) -> Input {
    let write = Input {
        op: "rope_and_cache",
        ..write
    };
    write
        .with(tensor("positions", I64, &[2], le_bytes(&[3, 0])))
        .with(filled("cos_sin", F32, &[4, 16], |at| {
            if at % 16 < 8 { 1.0 } else { 0.0 }
        }))
}

/// A tensor of numbers, each made from its index.
pub(crate) fn filled(
    name: &'static str,
    dtype: Dtype,
    shape: &[usize],
    number: impl Fn(usize) -> f32,
) -> HostTensor {
    let numbers = (0..shape.iter().product()).map(number);
    let bytes = match dtype {
        U8 => numbers.map(|x| x as u8).collect(),
        _ => numbers.flat_map(|x| encode(dtype, x)).collect(),
    };
    tensor(name, dtype, shape, bytes)
}

/// `[count]`, f32.
pub(crate) fn ones(name: &'static str, count: usize) -> HostTensor {
    filled(name, F32, &[count], |_| 1.0)
}

pub(crate) fn slot_mapping(slots: &[i64]) -> HostTensor {
    tensor("slot_mapping", I64, &[slots.len()], le_bytes(slots))
}

/// The same bytes under another name.
pub(crate) fn renamed(other: &HostTensor, name: &'static str) -> HostTensor {
    let bytes = other.storage.bytes.clone();
    tensor(name, other.dtype, &other.shape, bytes)
}

fn le_bytes(values: &[i64]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

fn numbers(dtype: safetensors::Dtype, bytes: &[u8]) -> Vec<f32> {
    let fours = || bytes.as_chunks::<4>().0.iter();
    let twos = || bytes.as_chunks::<2>().0.iter();
    match dtype {
        safetensors::Dtype::F32 => fours().map(|&x| f32::from_le_bytes(x)).collect(),
        safetensors::Dtype::I32 => fours().map(|&x| i32::from_le_bytes(x) as f32).collect(),
        safetensors::Dtype::BF16 => twos().map(|&x| bf16::from_le_bytes(x).to_f32()).collect(),
        safetensors::Dtype::F16 => twos().map(|&x| f16::from_le_bytes(x).to_f32()).collect(),
        safetensors::Dtype::F8_E4M3 => bytes.iter().map(|&x| fp8_value(F8E4m3, x) as f32).collect(),
        safetensors::Dtype::U8 => bytes.iter().map(|&x| f32::from(x)).collect(),
        other => panic!("{other} in these tests"),
    }
}
