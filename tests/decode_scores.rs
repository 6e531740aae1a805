//! Decode with a window, a softcap, ALiBi or sinks: what is refused, planned and promised. Cases against the reference
//! are in `decode.rs`.
#![allow(missing_docs, reason = "a test crate has no readers of its docs")]

mod common;

use common::parts::{Refusal, parts};
use common::{decode_case, machines};
use ferroattn::cases::fill::{self, Amount, DecodeTensors, POISON};
use ferroattn::cases::{DecodeCase, DeviceDecode};
use ferroattn::ops::{AlibiForm, AlibiSlopes, DecodeOptions, DecodeRequest, ScoreMods};
use ferroattn::plan::{DeviceInfo, SplitPolicy};
use ferroattn::reference::HostTensor;
use ferroattn::runtime::{Buffer, Runtime};
use ferroattn::tensor::{Dtype, TensorView};

/// A bf16 step of `num_seqs` sequences of up to 8,192 tokens, 64 query heads over 8 KV heads of 64.
#[derive(Clone, Debug)]
struct Step {
    num_seqs: usize,
    options: DecodeOptions<'static>,
}

impl Step {
    fn request(&self) -> DecodeRequest<'static> {
        let rows = parts(Dtype::Bf16, &[self.num_seqs, 64, 64]);
        let cache = parts(Dtype::Bf16, &[100, 16, 8, 64]);
        DecodeRequest {
            query: rows.view(),
            key_cache: cache.view(),
            value_cache: cache.view(),
            block_table: parts(Dtype::I32, &[self.num_seqs, 512]).view(),
            seq_lens: parts(Dtype::I32, &[self.num_seqs]).view(),
            out: rows.view_mut(),
            lse: None,
            softmax_scale: 0.125,
            scales: None,
            options: self.options,
        }
    }

    /// The plan for an H200, on one line.
    fn plan(num_seqs: usize, options: DecodeOptions<'static>) -> String {
        let checked = Self { num_seqs, options }.request().check();
        let plan = checked.expect("a good request").plan(&DeviceInfo::H200);
        plan.expect("a plan").to_string()
    }
}

fn floats(shape: &[usize]) -> TensorView<'static> {
    parts(Dtype::F32, shape).view()
}

#[test]
fn options_that_do_not_fit_are_named() {
    let table: [Refusal<Step>; 5] = [
        (
            |s| s.options.score_mods.sliding_window = Some(0),
            "`sliding_window` must be between 1 and 1073741823, but it is 0",
        ),
        (
            |s| s.options.score_mods.softcap = Some(f32::INFINITY),
            "`softcap` must be positive and finite, but it is inf",
        ),
        (
            |s| s.options.score_mods.sinks = Some(floats(&[8])),
            "`sinks` must be [num_query_heads] = [64], but its shape is [8]",
        ),
        (
            |s| s.options.score_mods.sinks = Some(parts(Dtype::Bf16, &[64]).view()),
            "`sinks` must be f32, but its dtype is bf16",
        ),
        (
            |s| {
                let (slopes, form) = (floats(&[64, 1]), AlibiForm::Linear);
                s.options.score_mods.alibi = Some(AlibiSlopes { slopes, form });
            },
            "`alibi_slopes` must be [num_query_heads] = [64], but its shape is [64, 1]",
        ),
    ];
    for (change, message) in table {
        let mut step = Step {
            num_seqs: 3,
            options: DecodeOptions::default(),
        };
        change(&mut step);
        let error = step.request().check().expect_err("refused");
        assert_eq!(error.to_string(), message);
    }
}

fn window(keys: u32) -> ScoreMods<'static> {
    ScoreMods::default().sliding_window(keys)
}

#[test]
fn a_window_sizes_the_grid_whatever_the_context() {
    let plain = DecodeOptions::default();
    // (sequences, options) -> how the plan begins
    let table = [
        (
            (64, plain.score_mods(window(128).sinks(floats(&[64])))),
            "1 splits of 192 tokens; decode_gqa_bf16_d64_h8_rule grid [8, 1, 64] x 128 threads; workspace 0 B",
        ),
        (
            (64, plain.score_mods(window(1))),
            "1 splits of 64 tokens; decode_gqa_bf16_d64_h8_rule grid [8, 1, 64]",
        ),
        (
            (
                1,
                plain
                    .score_mods(window(2000))
                    .split_policy(SplitPolicy::Fixed(64)),
            ),
            "32 splits of 64 tokens; decode_gqa_bf16_d64_h8_rule grid [8, 32, 1]",
        ),
        (
            (
                1,
                plain
                    .score_mods(ScoreMods::default().softcap(30.0))
                    .split_policy(SplitPolicy::BatchInvariant),
            ),
            "8 splits of 1024 tokens; decode_gqa_bf16_d64_h8_rule grid [8, 8, 1]",
        ),
        (
            (1, plain.split_policy(SplitPolicy::BatchInvariant)),
            "8 splits of 1024 tokens; decode_gqa_bf16_d64_h8 grid [8, 8, 1]",
        ),
    ];
    for ((num_seqs, options), beginning) in table {
        let plan = Step::plan(num_seqs, options);
        assert!(plan.starts_with(beginning), "{plan}");
    }
}

#[test]
fn a_short_window_takes_the_shared_memory_of_its_tiles() {
    let shared = |options| {
        let step = Step {
            num_seqs: 64,
            options,
        };
        let checked = step.request().check().expect("a good request");
        let plan = checked.plan(&DeviceInfo::H200).expect("a plan");
        plan.launches().next().expect("a launch").shared_bytes
    };
    let plain = DecodeOptions::default();
    // Four warps' tiles of 16 tokens, 4 KiB each: three for 128 tokens that begin anywhere.
    assert_eq!(shared(plain.score_mods(window(128))), 4 * 3 * 4096);
    assert_eq!(
        shared(plain.score_mods(ScoreMods::default().softcap(50.0))),
        shared(plain)
    );
}

const SEED: u64 = 3;

fn tensors(line: &str) -> (DecodeCase, DecodeTensors) {
    let case = decode_case(line);
    let tensors = fill::decode(&case, SEED, Amount::WHOLE);
    (case, tensors)
}

/// Bytes of output and lse.
fn attend(
    machine: &dyn Runtime,
    case: &DecodeCase,
    tensors: DecodeTensors,
    max_seq_len: Option<u32>,
) -> [Vec<u8>; 2] {
    let mut options = case.options();
    options.max_seq_len = max_seq_len;
    let mut device = DeviceDecode::new(machine, tensors).expect("room");
    let request = device.request(0, case.scale(), options).expect("views");
    let checked = request.check().expect("a good request");
    let plan = checked.plan(&machine.device()).expect("a plan");
    let bytes = plan.workspace_bytes().max(256);
    let mut workspace = Buffer::uninit(machine, "workspace", Dtype::U8, &[bytes]).expect("room");
    checked
        .launch(&plan, &mut workspace.view_mut(), machine)
        .expect("launched");
    machine.synchronize().expect("finished");
    let (out, lse) = device.results().expect("read");
    [out, lse.expect("these cases have an lse")].map(|tensor| {
        let size = tensor.dtype.size() * tensor.strides[0];
        let start = tensor.dtype.size() * tensor.offset;
        tensor.storage.bytes[start..start + size * tensor.shape[0]].to_vec()
    })
}

#[test]
fn a_batch_invariant_sequence_has_the_same_bits_in_every_batch() {
    for line in [
        "decode bf16 heads=4/1 d=64 page=16 layout=nhd lens=700,2100,5,1405 split=invariant window=1300 softcap=20 \
         sinks=on",
        "decode f16 heads=4/1 kv=fp8_e4m3 d=64 page=16 layout=nhd lens=90,300,5,205 split=invariant window=70 \
         alibi=linear",
    ] {
        let (case, whole) = tensors(line);
        for machine in machines() {
            let all = attend(machine.as_ref(), &case, whole.clone(), None);
            for (first, count) in [(0, 1), (1, 1), (2, 1), (3, 1), (0, 2), (1, 3)] {
                let mut part = whole.clone();
                part.num_seqs = count;
                let slice = |tensor: &HostTensor| tensor.slice(first, count);
                part.query = slice(&whole.query);
                part.block_table = slice(&whole.block_table);
                part.seq_lens = slice(&whole.seq_lens);
                part.out = slice(&whole.out);
                part.lse = whole.lse.as_ref().map(slice);
                let longest = (first..first + count)
                    .map(|seq| case.tokens(SEED)[seq])
                    .max();
                for bound in [None, longest.and_then(|len| u32::try_from(len).ok())] {
                    let got = attend(machine.as_ref(), &case, part.clone(), bound);
                    for (got, all) in got.iter().zip(&all) {
                        let row = all.len() / 4;
                        assert_eq!(got[..], all[first * row..(first + count) * row], "{line}");
                    }
                }
            }
        }
    }
}

/// Keys that no query sees, in blocks that a serving stack may have given to others, and the entries that named them.
#[test]
fn the_output_has_the_same_bits_whatever_lies_before_the_window() {
    let lens = [200usize, 131, 90, 20];
    for line in [
        "decode bf16 heads=4/2 d=64 page=8 layout=nhd lens=200,131,90,20 window=25",
        "decode bf16 heads=4/2 kv=i8 d=64 page=8 layout=nhd scales=token lens=200,131,90,20 split=64 window=75 sinks=on",
    ] {
        let (case, clean) = tensors(line);
        let window = case.scores.sliding_window.expect("a window") as usize;
        let mut dirty = clean.clone();
        for (seq, len) in lens.into_iter().enumerate() {
            let first = len.saturating_sub(window);
            let block_of = |token: usize| {
                let block = clean.block_table.integer(&[seq, token / 8]);
                usize::try_from(block).expect("a block id")
            };
            let poison = |tensor: &mut HostTensor, row: usize| {
                let mut bytes = tensor.storage.bytes.clone();
                let size = tensor.dtype.size();
                for token in 0..first {
                    for head in 0..2 {
                        let mut place = vec![block_of(token), token % 8, head];
                        place.resize(tensor.shape.len(), 0);
                        let at = size * tensor.position(&place);
                        bytes[at..at + size * row].fill(POISON);
                    }
                }
                *tensor = tensor.with_bytes(bytes);
            };
            poison(&mut dirty.key_cache, 64);
            poison(&mut dirty.value_cache, 64);
            if let Some(scales) = &mut dirty.scales {
                poison(&mut scales.k_scale, 1);
                poison(&mut scales.v_scale, 1);
            }
            let mut table = dirty.block_table.storage.bytes.clone();
            for block in 0..first / 8 {
                let at = 4 * clean.block_table.position(&[seq, block]);
                table[at..at + 4].copy_from_slice(&(-1_000_000i32).to_le_bytes());
            }
            dirty.block_table = dirty.block_table.with_bytes(table);
        }
        for machine in machines() {
            let expected = attend(machine.as_ref(), &case, clean.clone(), None);
            assert_eq!(
                attend(machine.as_ref(), &case, dirty.clone(), None),
                expected,
                "{line}"
            );
        }
    }
}

/// A window longer than every sequence: nothing but rounding changes.
#[test]
fn a_window_without_effect_changes_nothing() {
    let (plain, clean) = tensors("decode f16 heads=4/2 d=64 page=16 layout=nhd lens=200,1,90");
    let mut wide = plain.clone();
    wide.scores.sliding_window = Some(1000);
    for machine in machines() {
        let expected = attend(machine.as_ref(), &plain, clean.clone(), None);
        let got = attend(machine.as_ref(), &wide, clean.clone(), None);
        let halves = |bytes: &[u8]| -> Vec<f32> {
            let pairs = bytes.chunks_exact(2);
            pairs
                .map(|pair| half::f16::from_le_bytes([pair[0], pair[1]]).to_f32())
                .collect()
        };
        for (got, expected) in halves(&got[0]).into_iter().zip(halves(&expected[0])) {
            assert!((got - expected).abs() <= 2e-3, "{got} {expected}");
        }
    }
}
