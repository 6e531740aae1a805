//! The support matrix against cache writes, gathers and copies: what it has is accepted, everything else is refused with a
//! typed error. Nothing here is launched: the addresses are made up.
#![allow(missing_docs, reason = "a test crate has no readers of its docs")]

mod common;

use common::matrix::{DTYPES, Judge, heads};
use common::parts::{Parts, parts};
use ferroattn::Result;
use ferroattn::ops::{
    BlockCaches, CacheScales, CacheTable, CacheWritePlan, CacheWriteRequest, CheckMode,
    CompactReferences, CompactRequest, ConcatAndCacheMlaGroupedRequest, ConcatAndCacheMlaRequest,
    CopyBlocksRequest, EntryForm, GatherForm, GatherPlan, GatherRequest, GatherRows, MlaCacheForm,
    RopeAndCacheRequest, RopeQuery, RopeStyle, RopeTable, ScaleRule,
};
use ferroattn::plan::support::{Cache, Operation, Output, Scales, Sizes, Tensors, supports};
use ferroattn::tensor::{Dtype, contiguous_strides};

const TOKENS: usize = 6;
const KV_HEADS: usize = 2;
const BLOCKS: usize = 10;
/// Tokens of a block.
const BLOCK: usize = 16;
const GIVEN: [Scales; 4] = [
    Scales::None,
    Scales::PerTensor,
    Scales::PerHead,
    Scales::PerTokenHead,
];

fn pairs() -> impl Iterator<Item = (Dtype, Dtype)> {
    let both = |one| DTYPES.into_iter().map(move |other| (one, other));
    DTYPES.into_iter().flat_map(both)
}

fn written(input: Dtype) -> Tensors {
    Tensors {
        input: Some(input),
        output: Output::None,
    }
}

fn gathered(output: Dtype) -> Tensors {
    Tensors {
        input: None,
        output: Output::Dtype(output),
    }
}

/// A write of keys and values with heads of these sizes.
fn write(
    input: Dtype,
    cache: Dtype,
    scales: Scales,
    (head_size, head_size_v): (u32, u32),
) -> CacheWriteRequest<'static> {
    let new = |size: u32| parts(input, &[TOKENS, KV_HEADS, size as usize]).view();
    let cache = |size: u32| parts(cache, &[BLOCKS, BLOCK, KV_HEADS, size as usize]).view_mut();
    let given = |shape: &[usize]| CacheScales::Given {
        k_scale: parts(Dtype::F32, shape).view(),
        v_scale: parts(Dtype::F32, shape).view(),
    };
    let stored = || parts(Dtype::F32, &[BLOCKS, BLOCK, KV_HEADS]).view_mut();
    CacheWriteRequest {
        key: new(head_size),
        value: new(head_size_v),
        key_cache: cache(head_size),
        value_cache: cache(head_size_v),
        slot_mapping: parts(Dtype::I64, &[TOKENS]).view(),
        block_size: BLOCK,
        scales: match scales {
            Scales::None => CacheScales::None,
            Scales::PerTensor => given(&[1]),
            Scales::PerHead => given(&[KV_HEADS]),
            Scales::PerTokenHead => CacheScales::PerTokenHead {
                k_scale: stored(),
                v_scale: stored(),
            },
            Scales::Unused | Scales::PerLayer | Scales::InEntries => {
                unreachable!("no scales of this write")
            }
        },
        check: CheckMode::Device,
    }
}

#[test]
fn cache_writes_take_what_the_matrix_has() {
    let operation = Operation::ReshapeAndCacheFlash;
    let mut judge = Judge::new(operation);
    for (input, cache) in pairs() {
        for given in GIVEN {
            for sizes in [
                (64, 64),
                (72, 40),
                (7, 9),
                (512, 512),
                (64, 513),
                (1000, 64),
            ] {
                let answer = write(input, cache, given, sizes).check();
                let answer = answer.map(|checked| checked.plan());
                let (tensors, cache) = (written(input), Cache::Dtype(cache));
                let is_unused = given != Scales::None
                    && supports(operation, tensors, cache, Scales::Unused, heads(sizes));
                let scales = match given {
                    Scales::PerTensor | Scales::PerHead if is_unused => Scales::Unused,
                    given => given,
                };
                judge.hold(tensors, cache, scales, heads(sizes), answer);
            }
        }
    }
    judge.finish();
}

#[test]
fn rope_and_cache_takes_what_the_matrix_has() {
    let mut judge = Judge::new(Operation::RopeAndCache);
    for (input, cache) in pairs() {
        for (out, scales) in DTYPES
            .iter()
            .flat_map(|&out| GIVEN.map(|given| (out, given)))
        {
            for sizes in [(64, 64), (72, 40)] {
                let query_shape = [TOKENS, 4, sizes.0 as usize];
                let request = RopeAndCacheRequest {
                    write: write(input, cache, scales, sizes),
                    table: RopeTable {
                        positions: parts(Dtype::I64, &[TOKENS]).view(),
                        cos_sin: parts(Dtype::F32, &[100, 32]).view(),
                        style: RopeStyle::Neox,
                    },
                    query: Some(RopeQuery {
                        query: parts(input, &query_shape).view(),
                        out: parts(out, &query_shape).view_mut(),
                        q_scale: (out != input).then(|| parts(Dtype::F32, &[1]).view()),
                    }),
                };
                let answer = request.check().map(|checked| checked.plan());
                let tensors = Tensors {
                    input: Some(input),
                    output: Output::Dtype(out),
                };
                judge.hold(tensors, Cache::Dtype(cache), scales, heads(sizes), answer);
            }
        }
    }
    judge.finish();
}

fn concat(input: Dtype, cache: Dtype, form: MlaCacheForm<'static>) -> Result<CacheWritePlan> {
    let request = ConcatAndCacheMlaRequest {
        kv_c: parts(input, &[TOKENS, 40]).view(),
        k_pe: Some(parts(input, &[TOKENS, 24]).view()),
        kv_cache: parts(cache, &[BLOCKS, BLOCK, 64]).view_mut(),
        slot_mapping: parts(Dtype::I64, &[TOKENS]).view(),
        block_size: BLOCK,
        form,
        check: CheckMode::Device,
    };
    request.check().map(|checked| checked.plan())
}

/// Many layers in one launch, with scales or without.
fn concat_layers(input: Dtype, cache: Dtype, is_scaled: bool) -> Result<CacheWritePlan> {
    const LAYERS: usize = 3;
    let shape = [BLOCKS, BLOCK, 64];
    let addresses = parts(Dtype::I64, &[LAYERS]).view();
    // SAFETY: the caches are never handed to a kernel.
    let kv_caches =
        unsafe { CacheTable::from_raw(addresses, cache, &shape, &contiguous_strides(&shape)) };
    let request = ConcatAndCacheMlaGroupedRequest {
        kv_c: parts(input, &[LAYERS, TOKENS, 40]).view(),
        k_pe: parts(input, &[LAYERS, TOKENS, 24]).view(),
        kv_caches: kv_caches?,
        slot_mapping: parts(Dtype::I64, &[LAYERS, TOKENS]).view(),
        block_size: BLOCK,
        scales: is_scaled.then(|| parts(Dtype::F32, &[LAYERS]).view()),
        check: CheckMode::Device,
    };
    request.check().map(|checked| checked.plan())
}

#[test]
fn mla_cache_writes_take_what_the_matrix_has() {
    let mut judge = Judge::new(Operation::ConcatAndCacheMla);
    let sizes = Sizes::Latent {
        kv_lora_rank: 40,
        qk_rope_head_dim: 24,
    };
    for (input, cache) in pairs() {
        let scale = parts(Dtype::F32, &[1]).view();
        for (scales, answer) in [
            (Scales::None, concat(input, cache, MlaCacheForm::Plain)),
            (
                Scales::PerTensor,
                concat(input, cache, MlaCacheForm::Fp8 { scale }),
            ),
            (Scales::None, concat_layers(input, cache, false)),
            (Scales::PerLayer, concat_layers(input, cache, true)),
        ] {
            judge.hold(written(input), Cache::Dtype(cache), scales, sizes, answer);
        }
    }
    for input in DTYPES {
        for (form, cache) in [
            (EntryForm::Fp8Ds, parts(Dtype::U8, &[BLOCKS, BLOCK, 656])),
            (EntryForm::V4, parts(Dtype::U8, &[BLOCKS, BLOCK * 584])),
        ] {
            for (kv_lora_rank, qk_rope_head_dim) in [(512, 64), (448, 64), (512, 32), (256, 32)] {
                let request = ConcatAndCacheMlaRequest {
                    kv_c: parts(input, &[TOKENS, kv_lora_rank as usize]).view(),
                    k_pe: Some(parts(input, &[TOKENS, qk_rope_head_dim as usize]).view()),
                    kv_cache: cache.view_mut(),
                    slot_mapping: parts(Dtype::I64, &[TOKENS]).view(),
                    block_size: BLOCK,
                    form: match form {
                        EntryForm::Fp8Ds => MlaCacheForm::Fp8Ds {
                            rule: ScaleRule::Exact,
                        },
                        EntryForm::V4 => MlaCacheForm::V4,
                    },
                    check: CheckMode::Device,
                };
                let answer = request.check().map(|checked| checked.plan());
                let sizes = Sizes::Latent {
                    kv_lora_rank,
                    qk_rope_head_dim,
                };
                let (cache, scales) = (Cache::Entries(form), Scales::InEntries);
                judge.hold(written(input), cache, scales, sizes, answer);
            }
        }
    }
    judge.finish();
}

fn gather(cache: Parts, form: GatherForm<'static>, out: Dtype, row: usize) -> Result<GatherPlan> {
    let request = GatherRequest {
        cache: cache.view(),
        block_size: BLOCK,
        form,
        out: parts(out, &[TOKENS, row]).view_mut(),
        rows: GatherRows::Slots {
            slots: parts(Dtype::I32, &[TOKENS]).view(),
        },
        zero_missing: true,
        check: CheckMode::Device,
    };
    request.check().map(|checked| checked.plan())
}

#[test]
fn gathers_take_what_the_matrix_has() {
    let mut judge = Judge::new(Operation::Gather);
    for (cache, out) in pairs() {
        let scale = parts(Dtype::F32, &[1]).view();
        for (scales, form) in [
            (Scales::None, GatherForm::Raw),
            (Scales::PerTensor, GatherForm::Fp8 { scale }),
        ] {
            let answer = gather(parts(cache, &[BLOCKS, BLOCK, 72]), form, out, 72);
            let (cache, sizes) = (Cache::Dtype(cache), heads((72, 72)));
            judge.hold(gathered(out), cache, scales, sizes, answer);
        }
    }
    for out in DTYPES {
        for size in [576, 512, 288] {
            for (form, gather_form, cache) in [
                (
                    EntryForm::Fp8Ds,
                    GatherForm::Fp8Ds,
                    parts(Dtype::U8, &[BLOCKS, BLOCK, 656]),
                ),
                (
                    EntryForm::V4,
                    GatherForm::V4,
                    parts(Dtype::U8, &[BLOCKS, BLOCK * 584]),
                ),
            ] {
                let answer = gather(cache, gather_form, out, size as usize);
                let (cache, sizes) = (Cache::Entries(form), heads((size, size)));
                judge.hold(gathered(out), cache, Scales::InEntries, sizes, answer);
            }
        }
    }
    judge.finish();
}

/// Copies take bytes that nobody reads as numbers, AMD's FP8 too, of which the matrix does not speak.
fn copied() -> impl Iterator<Item = (Dtype, Dtype)> {
    pairs().filter(|(source, target)| !source.is_fnuz() && !target.is_fnuz())
}

#[test]
fn copies_of_blocks_take_what_the_matrix_has() {
    let mut judge = Judge::new(Operation::CopyBlocks);
    for (source, target) in copied() {
        let request = CopyBlocksRequest {
            caches: BlockCaches::Between {
                source: parts(source, &[BLOCKS, 100]).view(),
                target: parts(target, &[BLOCKS, 100]).view_mut(),
            },
            pairs: parts(Dtype::I64, &[4, 2]).view(),
            check: CheckMode::Device,
        };
        let answer = request.check().map(|checked| checked.plan());
        let cache = Cache::Dtype(source);
        judge.hold(gathered(target), cache, Scales::None, Sizes::Any, answer);
    }
    judge.finish();
}

#[test]
fn compaction_takes_what_the_matrix_has() {
    let mut judge = Judge::new(Operation::Compact);
    for (pool, compact) in copied() {
        let request = CompactRequest {
            caches: vec![(
                parts(pool, &[BLOCKS, 100]).view(),
                parts(compact, &[4, 100]).view_mut(),
            )],
            block_size: BLOCK,
            references: CompactReferences::Slots {
                slots: parts(Dtype::I32, &[20]).view(),
                renamed: parts(Dtype::I32, &[20]).view_mut(),
            },
            num_wanted: parts(Dtype::I32, &[1]).view_mut(),
            check: CheckMode::Device,
        };
        let answer = request.check().map(|checked| checked.plan());
        let cache = Cache::Dtype(pool);
        judge.hold(gathered(compact), cache, Scales::None, Sizes::Any, answer);
    }
    judge.finish();
}
