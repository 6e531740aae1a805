//! The support matrix against the requests of attention: what it has is accepted and planned, everything else is refused
//! with a typed error. Nothing here is launched: the addresses are made up.
#![allow(missing_docs, reason = "a test crate has no readers of its docs")]

mod common;

use common::matrix::{DTYPES, Judge, heads};
use common::parts::parts;
use ferroattn::ops::{
    DecodeMlaEntryRequest, DecodeMlaRequest, DecodeOptions, DecodeRequest, EntryForm, EntryTokens,
    KvScales, MlaScales, ScoreMods, UnifiedOptions, UnifiedRequest,
};
use ferroattn::plan::support::{
    Cache, Operation, Output, Role, Scales, Support, Tensors, role, rows, supports,
};
use ferroattn::plan::{DeviceInfo, variants};
use ferroattn::tensor::{Dtype, TensorView};
use ferroattn::{Error, Result};
use gpu_kernels::entry::ENTRIES;

const DEVICES: [DeviceInfo; 2] = [DeviceInfo::EMULATED, DeviceInfo::H200];
/// Head sizes (of keys, of values) that nothing was compiled for.
const STRANGE_SIZES: [(u32, u32); 4] = [(80, 80), (64, 128), (128, 192), (512, 512)];
const GIVEN: [Scales; 4] = [
    Scales::None,
    Scales::PerTensor,
    Scales::PerHead,
    Scales::PerTokenHead,
];
const SEQS: usize = 3;
const HEADS: usize = 8;
const KV_HEADS: usize = 2;
const BLOCKS: usize = 10;
/// Tokens of a block.
const BLOCK: usize = 16;

/// Everything about a request that the matrix speaks of.
#[derive(Clone, Copy, Debug)]
struct Asked {
    query: Dtype,
    cache: Dtype,
    out: Dtype,
    scales: Scales,
    sizes: (u32, u32),
}

/// All dtypes and scales, with each of `sizes`.
fn everything(sizes: &[(u32, u32)]) -> impl Iterator<Item = Asked> {
    let dtypes = || DTYPES.into_iter();
    dtypes().flat_map(move |query| {
        dtypes().flat_map(move |cache| {
            dtypes().flat_map(move |out| {
                GIVEN.into_iter().flat_map(move |scales| {
                    sizes.iter().map(move |&sizes| Asked {
                        query,
                        cache,
                        out,
                        scales,
                        sizes,
                    })
                })
            })
        })
    })
}

impl Asked {
    fn tensors(self) -> Tensors {
        Tensors {
            input: Some(self.query),
            output: Output::Dtype(self.out),
        }
    }

    /// Keys' and values' scales, and the query's if it is FP8.
    fn kv_scales(self) -> Option<KvScales<'static>> {
        let scale = self.scale(KV_HEADS)?;
        Some(KvScales {
            q_scale: self.q_scale(),
            k_scale: scale,
            v_scale: scale,
        })
    }

    fn q_scale(self) -> Option<TensorView<'static>> {
        (self.query == Dtype::F8E4m3).then(|| parts(Dtype::F32, &[1]).view())
    }

    fn scale(self, num_heads: usize) -> Option<TensorView<'static>> {
        let shape: &[usize] = match self.scales {
            Scales::None => return None,
            Scales::PerTensor => &[1],
            Scales::PerHead => &[num_heads],
            Scales::PerTokenHead => &[BLOCKS, BLOCK, num_heads],
            Scales::Unused | Scales::PerLayer | Scales::InEntries => {
                unreachable!("no scales of attention")
            }
        };
        Some(parts(Dtype::F32, shape).view())
    }

    fn decode(self, options: DecodeOptions<'static>) -> Result<()> {
        let (head_size, head_size_v) = (self.sizes.0 as usize, self.sizes.1 as usize);
        let request = DecodeRequest {
            query: parts(self.query, &[SEQS, HEADS, head_size]).view(),
            key_cache: parts(self.cache, &[BLOCKS, BLOCK, KV_HEADS, head_size]).view(),
            value_cache: parts(self.cache, &[BLOCKS, BLOCK, KV_HEADS, head_size_v]).view(),
            block_table: parts(Dtype::I32, &[SEQS, 4]).view(),
            seq_lens: parts(Dtype::I32, &[SEQS]).view(),
            out: parts(self.out, &[SEQS, HEADS, head_size_v]).view_mut(),
            lse: None,
            softmax_scale: 0.125,
            scales: self.kv_scales(),
            options,
        };
        let checked = request.check()?;
        DEVICES
            .iter()
            .try_for_each(|device| checked.plan(device).map(drop))
    }

    fn unified(self, num_tokens: usize, sliding_window: Option<u32>) -> Result<()> {
        let (head_size, head_size_v) = (self.sizes.0 as usize, self.sizes.1 as usize);
        let mut options = UnifiedOptions::default();
        options.score_mods.sliding_window = sliding_window;
        options.output_scale = (self.out == Dtype::F8E4m3).then(|| parts(Dtype::F32, &[1]).view());
        let request = UnifiedRequest {
            query: parts(self.query, &[num_tokens, HEADS, head_size]).view(),
            key_cache: parts(self.cache, &[BLOCKS, BLOCK, KV_HEADS, head_size]).view(),
            value_cache: parts(self.cache, &[BLOCKS, BLOCK, KV_HEADS, head_size_v]).view(),
            block_table: parts(Dtype::I32, &[SEQS, 4]).view(),
            query_start_loc: parts(Dtype::I32, &[SEQS + 1]).view(),
            seq_lens: parts(Dtype::I32, &[SEQS]).view(),
            out: parts(self.out, &[num_tokens, HEADS, head_size_v]).view_mut(),
            lse: None,
            softmax_scale: 0.125,
            scales: self.kv_scales(),
            options,
        };
        let checked = request.check()?;
        DEVICES
            .iter()
            .try_for_each(|device| checked.plan(device).map(drop))
    }

    fn decode_mla(self) -> Result<()> {
        let (head_size, head_size_v) = (self.sizes.0 as usize, self.sizes.1 as usize);
        let request = DecodeMlaRequest {
            query: parts(self.query, &[SEQS, 2, HEADS, head_size]).view(),
            cache: parts(self.cache, &[BLOCKS, BLOCK, head_size]).view(),
            block_table: parts(Dtype::I32, &[SEQS, 4]).view(),
            seq_lens: parts(Dtype::I32, &[SEQS]).view(),
            out: parts(self.out, &[SEQS, 2, HEADS, head_size_v]).view_mut(),
            lse: None,
            softmax_scale: 0.07,
            scales: self.scale(KV_HEADS).map(|k_scale| MlaScales {
                q_scale: self.q_scale(),
                k_scale,
            }),
            options: DecodeOptions::default(),
        };
        let checked = request.check()?;
        DEVICES
            .iter()
            .try_for_each(|device| checked.plan(device).map(drop))
    }
}

/// Holds a request of every combination against the matrix.
fn judge(operation: Operation, compiled: &[(u32, u32)], run: impl Fn(Asked) -> Result<()>) {
    let sizes: Vec<_> = compiled.iter().copied().chain(STRANGE_SIZES).collect();
    let mut judge = Judge::new(operation);
    for asked in everything(&sizes) {
        let (tensors, cache) = (asked.tensors(), Cache::Dtype(asked.cache));
        let has = |sizes| supports(operation, tensors, cache, asked.scales, heads(sizes));
        let answer = run(asked);
        if !has(asked.sizes) && compiled.iter().any(|&sizes| has(sizes)) {
            let is_told = matches!(answer, Err(Error::Unsupported { .. }));
            assert!(is_told, "{asked:?}: {answer:?}");
        }
        judge.hold(tensors, cache, asked.scales, heads(asked.sizes), answer);
    }
    judge.finish();
}

#[test]
fn decode_takes_what_the_matrix_has() {
    let sizes = variants::decode_support();
    judge(Operation::Decode, &sizes, |asked| {
        asked.decode(DecodeOptions::default())
    });
    judge(Operation::Decode, &sizes, |asked| {
        let mods = ScoreMods::default().sliding_window(9).softcap(30.0);
        asked.decode(DecodeOptions::default().score_mods(mods))
    });
}

#[test]
fn unified_attention_takes_what_the_matrix_has() {
    let support = variants::prefill_support();
    let mut sizes: Vec<_> = support.iter().map(|&(_, k, v)| (k, v)).collect();
    sizes.sort_unstable();
    sizes.dedup();
    judge(Operation::UnifiedAttention, &sizes, |asked| {
        asked.unified(20, None)
    });
    judge(Operation::UnifiedAttention, &sizes, |asked| {
        asked.unified(20, Some(9))
    });
    // At most one query token a sequence: the decode kernels.
    judge(Operation::UnifiedAttention, &sizes, |asked| {
        asked.unified(1, None)
    });
}

#[test]
fn mla_decode_takes_what_the_matrix_has() {
    let sizes = variants::decode_mla_support();
    judge(Operation::DecodeMla, &sizes, Asked::decode_mla);
}

#[test]
fn mla_decode_over_entries_takes_what_the_matrix_has() {
    let mut judge = Judge::new(Operation::DecodeMlaEntry);
    for (form, cache) in [
        (EntryForm::Fp8Ds, parts(Dtype::U8, &[BLOCKS, BLOCK, 656])),
        (EntryForm::V4, parts(Dtype::U8, &[BLOCKS, BLOCK * 584])),
    ] {
        for (query, out) in DTYPES.iter().flat_map(|&q| DTYPES.map(|out| (q, out))) {
            for sizes in [(576, 512), (512, 512), (512, 448), (576, 576), (288, 256)] {
                let (head_size, head_size_v) = (sizes.0 as usize, sizes.1 as usize);
                let request = DecodeMlaEntryRequest {
                    query: parts(query, &[SEQS, 2, HEADS, head_size]).view(),
                    form,
                    cache: cache.view(),
                    block_size: BLOCK,
                    tokens: EntryTokens::All {
                        block_table: parts(Dtype::I32, &[SEQS, 4]).view(),
                        seq_lens: parts(Dtype::I32, &[SEQS]).view(),
                    },
                    sinks: None,
                    out: parts(out, &[SEQS, 2, HEADS, head_size_v]).view_mut(),
                    lse: None,
                    softmax_scale: 0.07,
                    options: DecodeOptions::default(),
                };
                let planned = request.check().and_then(|checked| {
                    DEVICES
                        .iter()
                        .try_for_each(|device| checked.plan(device).map(drop))
                });
                let tensors = Tensors {
                    input: Some(query),
                    output: Output::Dtype(out),
                };
                let (cache, scales) = (Cache::Entries(form), Scales::InEntries);
                judge.hold(tensors, cache, scales, heads(sizes), planned);
            }
        }
    }
    judge.finish();
}

#[test]
fn every_kernel_has_its_place_in_the_matrix() {
    fn within<T: PartialEq>(some: &[T], all: &[T]) -> bool {
        !some.is_empty() && some.iter().all(|one| all.contains(one))
    }
    let is_in = |part: &Support, row: &Support| {
        part.operation == row.operation
            && within(&part.tensors, &row.tensors)
            && within(&part.caches, &row.caches)
            && within(&part.scales, &row.scales)
            && within(&part.sizes, &row.sizes)
    };
    for entry in ENTRIES {
        match role(entry.variant) {
            Role::Supports(parts) => {
                assert!(!parts.is_empty(), "{} supports nothing", entry.name);
                for part in parts {
                    let rows = rows().iter().filter(|row| is_in(&part, row)).count();
                    assert_eq!(rows, 1, "{}: rows with {part:?}", entry.name);
                }
            }
            Role::Assists(operations) => {
                assert!(!operations.is_empty(), "{} is for nothing", entry.name);
            }
            Role::Measures => assert_eq!(entry.name, "read_ceiling"),
        }
    }
}

#[test]
fn every_operation_has_rows_in_order() {
    let mut operations: Vec<_> = rows().iter().map(|row| row.operation).collect();
    operations.dedup();
    assert_eq!(operations, Operation::ALL);
}
