//! From new keys and values through a cache to attention: what a cache write leaves, decode reads. Caches begin
//! as NaN everywhere, so that a slot that was missed, or one too many that is read, shows.
#![allow(missing_docs, reason = "a test crate has no readers of its docs")]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_precision_loss,
    reason = "small test data"
)]

mod tensors;

use ferroattn::ops::{
    CacheScales, CacheWriteRequest, CheckMode, DecodeOptions, DecodeRequest, KvScales,
    RopeAndCacheRequest, RopeStyle, RopeTable,
};
use ferroattn::reference::HostTensor;
use ferroattn::runtime::Launcher;
use ferroattn::tensor::Dtype;
use half::bf16;
use tensors::*;

const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const HEAD_SIZE: usize = 64;
const BLOCK_SIZE: usize = 16;
/// Tokens of each sequence; the last block of none is full.
const LENS: [usize; 3] = [1, 37, 58];
const SOFTMAX_SCALE: f32 = 0.3;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Scales {
    None,
    Given(usize),
    PerTokenHead,
}

/// Sequences of new tokens, and where each goes.
struct Batch {
    machine: Machine,
    query: HostTensor,
    key: HostTensor,
    value: HostTensor,
    slots: HostTensor,
    table: HostTensor,
    lens: HostTensor,
    num_blocks: usize,
}

impl Batch {
    fn new() -> Self {
        let random = &mut Random::new(11);
        let tokens: usize = LENS.iter().sum();
        let mut new = |name, rows, heads| {
            let data = finite_values(Dtype::Bf16, rows * heads * HEAD_SIZE, random);
            tensor(name, Dtype::Bf16, &[rows, heads, HEAD_SIZE], data)
        };
        let (query, key, value) = (
            new("query", LENS.len(), HEADS),
            new("key", tokens, KV_HEADS),
            new("value", tokens, KV_HEADS),
        );
        // Every second block belongs to somebody, in falling order; the others stay NaN.
        let width = 5;
        let mut table = vec![-1_000_000; LENS.len() * width];
        let mut slots = Vec::new();
        let num_blocks = 2 * LENS.len() * width;
        let mut block = num_blocks;
        for (seq, &len) in LENS.iter().enumerate() {
            for token in 0..len {
                if token % BLOCK_SIZE == 0 {
                    block -= 2;
                    table[seq * width + token / BLOCK_SIZE] = block as i32;
                }
                slots.push((block * BLOCK_SIZE + token % BLOCK_SIZE) as i64);
            }
        }
        Self {
            machine: Machine::new(),
            query,
            key,
            value,
            slots: longs("slot_mapping", &slots),
            table: ints("block_table", &[LENS.len(), width], &table),
            lens: ints("seq_lens", &[LENS.len()], &LENS.map(|len| len as i32)),
            num_blocks,
        }
    }

    /// Writes and decodes; the caches are of `dtype`. The output's values.
    fn run(&self, dtype: Dtype, scales: Scales, rope: Option<&RopeTable<'_>>) -> Vec<f32> {
        let machine = &self.machine;
        let shape = [self.num_blocks, BLOCK_SIZE, KV_HEADS, HEAD_SIZE];
        let caches = ["key_cache", "value_cache"].map(|name| poisoned_tensor(name, dtype, &shape));
        let scale_tensors =
            [("k_scale", 0.011), ("v_scale", 0.007)].map(|(name, first)| match scales {
                Scales::None => floats(name, &[1], &[1.0]),
                Scales::Given(count) => {
                    let scales: Vec<f32> =
                        (0..count).map(|head| first * (1.0 + head as f32)).collect();
                    floats(name, &[count], &scales)
                }
                Scales::PerTokenHead => poisoned_tensor(name, Dtype::F32, &shape[..3]),
            });
        let [k_scale, v_scale] = &scale_tensors;
        let write = CacheWriteRequest {
            key: machine.view(&self.key),
            value: machine.view(&self.value),
            key_cache: machine.view_mut(&caches[0]),
            value_cache: machine.view_mut(&caches[1]),
            slot_mapping: machine.view(&self.slots),
            block_size: BLOCK_SIZE,
            scales: match scales {
                Scales::None => CacheScales::None,
                Scales::Given(_) => CacheScales::Given {
                    k_scale: machine.view(k_scale),
                    v_scale: machine.view(v_scale),
                },
                Scales::PerTokenHead => CacheScales::PerTokenHead {
                    k_scale: machine.view_mut(k_scale),
                    v_scale: machine.view_mut(v_scale),
                },
            },
            check: CheckMode::Device,
        };
        // Room for a check of a thousand slots.
        let mut workspace = machine.workspace(1 << 14);
        match rope {
            None => {
                let checked = write.check().expect("fits");
                checked.launch(&checked.plan(), &mut workspace, &machine.emulator)
            }
            Some(&table) => {
                // The decode step's queries are fewer than the tokens that are written here.
                let checked = RopeAndCacheRequest {
                    write,
                    table,
                    query: None,
                }
                .check()
                .expect("fits");
                checked.launch(&checked.plan(), &mut workspace, &machine.emulator)
            }
        }
        .expect("written");

        let out = poisoned_tensor("out", Dtype::Bf16, &self.query.shape);
        let decode = DecodeRequest {
            query: machine.view(&self.query),
            key_cache: machine.view(&caches[0]),
            value_cache: machine.view(&caches[1]),
            block_table: machine.view(&self.table),
            seq_lens: machine.view(&self.lens),
            out: machine.view_mut(&out),
            lse: None,
            softmax_scale: SOFTMAX_SCALE,
            scales: (scales != Scales::None).then(|| KvScales {
                q_scale: None,
                k_scale: machine.view(k_scale),
                v_scale: machine.view(v_scale),
            }),
            options: DecodeOptions::default(),
        }
        .check()
        .expect("fits");
        let plan = decode.plan(&machine.emulator.device()).expect("a plan");
        let mut workspace = machine.workspace(plan.workspace_bytes());
        decode
            .launch(&plan, &mut workspace, &machine.emulator)
            .expect("decoded");
        let bytes = machine.read(&out);
        let (pairs, []) = bytes.as_chunks::<2>() else {
            panic!("values of two bytes")
        };
        pairs
            .iter()
            .map(|&pair| bf16::from_le_bytes(pair).to_f32())
            .collect()
    }

    /// Attention over the tokens as they were before they were stored.
    fn expected(&self, key: &HostTensor) -> Vec<f32> {
        let mut out = Vec::new();
        let mut first = 0;
        for (seq, len) in LENS.into_iter().enumerate() {
            for head in 0..HEADS {
                let kv = head / (HEADS / KV_HEADS);
                let weights: Vec<f64> = (first..first + len)
                    .map(|token| {
                        let score: f64 = (0..HEAD_SIZE)
                            .map(|dim| {
                                self.query.float(&[seq, head, dim]) * key.float(&[token, kv, dim])
                            })
                            .sum();
                        (score * f64::from(SOFTMAX_SCALE)).exp()
                    })
                    .collect();
                let sum: f64 = weights.iter().sum();
                out.extend((0..HEAD_SIZE).map(|dim| {
                    let tokens = weights.iter().zip(first..);
                    let value: f64 = tokens
                        .map(|(weight, token)| weight * self.value.float(&[token, kv, dim]))
                        .sum();
                    (value / sum) as f32
                }));
            }
            first += len;
        }
        out
    }
}

/// The largest difference relative to the largest value.
fn error(got: &[f32], expected: &[f32]) -> f32 {
    let largest = expected
        .iter()
        .fold(0.0f32, |largest, x| largest.max(x.abs()));
    got.iter()
        .zip(expected)
        .fold(0.0, |error, (got, expected)| {
            assert!(got.is_finite(), "poison was read");
            f32::max(error, (got - expected).abs() / largest)
        })
}

#[test]
fn what_is_written_is_what_is_attended_to() {
    let batch = Batch::new();
    let expected = batch.expected(&batch.key);
    for (dtype, scales, bound) in [
        (Dtype::Bf16, Scales::None, 0.005),
        (Dtype::F8E4m3, Scales::Given(1), 0.06),
        (Dtype::F8E4m3, Scales::Given(KV_HEADS), 0.06),
        (Dtype::F8E5m2, Scales::Given(1), 0.12),
        (Dtype::F8E4m3, Scales::PerTokenHead, 0.06),
        (Dtype::I8, Scales::PerTokenHead, 0.02),
    ] {
        let error = error(&batch.run(dtype, scales, None), &expected);
        assert!(error < bound, "{dtype} {scales:?}: off by {error}");
    }
}

#[test]
fn rotated_keys_are_what_is_attended_to() {
    let batch = Batch::new();
    let tokens = batch.slots.shape[0];
    let positions: Vec<i64> = LENS.into_iter().flat_map(|len| 0..len as i64).collect();
    let positions = longs("positions", &positions);
    let angles: Vec<f32> = (0..64 * HEAD_SIZE)
        .map(|at| {
            let (row, column) = (at / HEAD_SIZE, at % HEAD_SIZE);
            let angle = row as f32 * 100f32.powf(-((column % 32) as f32) / 32.0);
            if column < 32 {
                angle.cos()
            } else {
                angle.sin()
            }
        })
        .collect();
    let cos_sin = floats("cos_sin", &[64, HEAD_SIZE], &angles);
    assert_eq!(positions.shape, [tokens]);
    for (style, is_interleaved) in [(RopeStyle::Neox, false), (RopeStyle::GptJ, true)] {
        let table = RopeTable {
            positions: batch.machine.view(&positions),
            cos_sin: batch.machine.view(&cos_sin),
            style,
        };
        let turned = ferroattn::reference::rotate(&batch.key, &positions, &cos_sin, is_interleaved);
        let expected = batch.expected(&turned);
        for (dtype, scales, bound) in [
            (Dtype::Bf16, Scales::None, 0.005),
            (Dtype::F8E4m3, Scales::Given(KV_HEADS), 0.06),
        ] {
            let error = error(&batch.run(dtype, scales, Some(&table)), &expected);
            assert!(error < bound, "{dtype} {scales:?}: off by {error}");
        }
    }
}
