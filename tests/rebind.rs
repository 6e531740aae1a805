//! Checked attention pointed at other tensors: the next layer's get the parameters that checking them would have given
//! them, and what is not alike is refused. Nothing here runs.
#![allow(missing_docs, reason = "a test crate has no readers of its docs")]

mod common;

use common::parts::{Refusal, parts};
use common::rebind::{FIRST, Layer, SECOND, rebinds, refuses};
use ferroattn::ops::{
    AlibiForm, AlibiSlopes, CheckMode, CheckedDecodeMlaEntry, DecodeMlaEntryRequest,
    DecodeMlaRequest, DecodeOptions, DecodeRequest, EntryForm, EntryTokens, KvScales, MlaScales,
    ScoreMods, UnifiedOptions, UnifiedRequest, WindowTokens,
};
use ferroattn::plan::{DeviceInfo, SplitPolicy};
use ferroattn::tensor::Dtype;

/// Of the first kind over an FP8 cache, with everything that has an address.
fn decode(mut layer: Layer, cache: Dtype) -> DecodeRequest<'static> {
    let cache_shape = [100, 16, 2, 64];
    let scaled = cache != Dtype::Bf16;
    DecodeRequest {
        query: layer.view(Dtype::Bf16, &[5, 8, 64]),
        key_cache: layer.view(cache, &cache_shape),
        value_cache: layer.view(cache, &cache_shape),
        block_table: layer.view(Dtype::I32, &[5, 20]),
        seq_lens: layer.view(Dtype::I32, &[5]),
        out: layer.view_mut(Dtype::Bf16, &[5, 8, 64]),
        lse: Some(layer.view_mut(Dtype::F32, &[5, 8])),
        softmax_scale: 0.125,
        scales: scaled.then(|| KvScales {
            q_scale: None,
            k_scale: layer.view(Dtype::F32, &[2]),
            v_scale: layer.view(Dtype::F32, &[2]),
        }),
        options: DecodeOptions::default()
            .score_mods(
                ScoreMods::default()
                    .alibi(AlibiSlopes {
                        slopes: layer.view(Dtype::F32, &[8]),
                        form: AlibiForm::Linear,
                    })
                    .sinks(layer.view(Dtype::F32, &[8])),
            )
            .check(CheckMode::Device),
    }
}

#[test]
fn a_decode_is_rebound() {
    for cache in [Dtype::Bf16, Dtype::F8E4m3] {
        rebinds!(
            |layer| decode(layer, cache),
            |first: &ferroattn::ops::CheckedDecode<'_>| first.plan(&DeviceInfo::H200).unwrap()
        );
    }
}

#[test]
fn a_step_of_unified_attention_is_rebound() {
    // Rows alone, decodes and rows, decodes alone, decodes that `query_start_loc` finds.
    for (num_decodes, max_query_len, check) in [
        (0, None, CheckMode::Device),
        (2, None, CheckMode::Off),
        (3, None, CheckMode::Device),
        (0, Some(1), CheckMode::Device),
    ] {
        let request = |mut layer: Layer| {
            let cache_shape = [100, 16, 2, 64];
            let mut options = UnifiedOptions::default()
                .causal_flags(layer.view(Dtype::U8, &[3]))
                .score_mods(ScoreMods::default().sinks(layer.view(Dtype::F32, &[8])))
                .num_decodes(num_decodes)
                .check(check);
            options.max_query_len = max_query_len;
            UnifiedRequest {
                query: layer.view(Dtype::Bf16, &[20, 8, 64]),
                key_cache: layer.view(Dtype::Bf16, &cache_shape),
                value_cache: layer.view(Dtype::Bf16, &cache_shape),
                block_table: layer.view(Dtype::I32, &[3, 20]),
                query_start_loc: layer.view(Dtype::I32, &[4]),
                seq_lens: layer.view(Dtype::I32, &[3]),
                out: layer.view_mut(Dtype::Bf16, &[20, 8, 64]),
                lse: Some(layer.view_mut(Dtype::F32, &[20, 8])),
                softmax_scale: 0.125,
                scales: None,
                options,
            }
        };
        rebinds!(request, |first: &ferroattn::ops::CheckedUnified<'_>| first
            .plan(&DeviceInfo::H200)
            .unwrap());
    }
}

#[test]
fn mla_decode_is_rebound() {
    let request = |mut layer: Layer| DecodeMlaRequest {
        query: layer.view(Dtype::F8E4m3, &[4, 2, 16, 576]),
        cache: layer.view(Dtype::F8E4m3, &[100, 16, 576]),
        block_table: layer.view(Dtype::I32, &[4, 20]),
        seq_lens: layer.view(Dtype::I32, &[4]),
        out: layer.view_mut(Dtype::Bf16, &[4, 2, 16, 512]),
        lse: Some(layer.view_mut(Dtype::F32, &[4, 2, 16])),
        softmax_scale: 0.07,
        scales: Some(MlaScales {
            q_scale: Some(layer.view(Dtype::F32, &[1])),
            k_scale: layer.view(Dtype::F32, &[1]),
        }),
        options: DecodeOptions::default().check(CheckMode::Device),
    };
    rebinds!(request, |first: &ferroattn::ops::CheckedDecodeMla<'_>| {
        first.plan(&DeviceInfo::H200).unwrap()
    });
}

/// Over entries: all tokens, or those of a list, or of two lists over two caches.
fn entries(mut layer: Layer, form: EntryForm, lists: usize) -> DecodeMlaEntryRequest<'static> {
    let (head_size, cache_shape): (_, &[usize]) = match form {
        EntryForm::Fp8Ds => (576, &[50, 64, 656]),
        EntryForm::V4 => (512, &[50, 584 * 64]),
    };
    let query = layer.view(Dtype::Bf16, &[3, 2, 16, head_size]);
    let cache = layer.view(Dtype::U8, cache_shape);
    let block_table = layer.view(Dtype::I32, &[3, 9]);
    let tokens = match lists {
        0 => EntryTokens::All {
            block_table,
            seq_lens: layer.view(Dtype::I32, &[3]),
        },
        _ => EntryTokens::TopK {
            topk_indices: layer.view(Dtype::I32, &[3, 2, 128]),
            topk_length: Some(layer.view(Dtype::I32, &[3, 2])),
            block_table: Some(block_table),
            window: (lists > 1).then(|| WindowTokens {
                cache: layer.view(Dtype::U8, cache_shape),
                block_size: 64,
                indices: layer.view(Dtype::I32, &[3, 2, 64]),
                length: Some(layer.view(Dtype::I32, &[3])),
            }),
        },
    };
    DecodeMlaEntryRequest {
        query,
        form,
        cache,
        block_size: 64,
        tokens,
        sinks: Some(layer.view(Dtype::F32, &[16])),
        out: layer.view_mut(Dtype::Bf16, &[3, 2, 16, 512]),
        lse: Some(layer.view_mut(Dtype::F32, &[3, 2, 16])),
        softmax_scale: 0.07,
        options: DecodeOptions::default().check(match lists {
            0 => CheckMode::Device,
            _ => CheckMode::Off,
        }),
    }
}

#[test]
fn mla_decode_over_entries_is_rebound() {
    for form in [EntryForm::Fp8Ds, EntryForm::V4] {
        for lists in 0..3 {
            rebinds!(
                |layer| entries(layer, form, lists),
                |first: &CheckedDecodeMlaEntry<'_>| first.plan(&DeviceInfo::H200).unwrap()
            );
        }
    }
}

#[test]
fn entries_that_are_not_alike_are_refused() {
    let request = |layer| entries(layer, EntryForm::V4, 2);
    let first = request(Layer(FIRST)).check().expect("a good request");
    /// Changes the second list.
    fn window(
        request: &mut DecodeMlaEntryRequest<'static>,
        change: fn(&mut Option<WindowTokens<'static>>),
    ) {
        let EntryTokens::TopK { window, .. } = &mut request.tokens else {
            panic!("index lists");
        };
        change(window);
    }
    let table: [Refusal<DecodeMlaEntryRequest<'static>>; 10] = [
        (
            |r| r.query = parts(Dtype::F16, &[3, 2, 16, 512]).view(),
            "`query` must be bf16, but its dtype is f16",
        ),
        (
            |r| {
                let mut cache = parts(Dtype::U8, &[50, 584 * 64]);
                cache.strides[0] += 64;
                r.cache = cache.view();
            },
            "`cache` must have strides [37376, 1] as before, but its strides are [37440, 1] (in elements)",
        ),
        (
            |r| {
                window(r, |window| {
                    let window = window.as_mut().expect("a second list");
                    window.indices = parts(Dtype::I32, &[3, 2, 65]).view();
                });
            },
            "`window.indices` must be as before = [3, 2, 64], but its shape is [3, 2, 65]",
        ),
        (
            |r| {
                window(r, |window| {
                    window.as_mut().expect("a second list").block_size = 32
                })
            },
            "`window.block_size` must be Some(64) as before, but it is Some(32)",
        ),
        (
            |r| window(r, |window| *window = None),
            "`window.cache` must be given as before, but it is missing",
        ),
        (
            |r| r.tokens = entries(Layer(SECOND), EntryForm::V4, 0).tokens,
            "`tokens` must be TopK as before, but it is All",
        ),
        (
            |r| r.form = EntryForm::Fp8Ds,
            "`form` must be V4 as before, but it is Fp8Ds",
        ),
        (
            |r| r.block_size = 32,
            "`block_size` must be 64 as before, but it is 32",
        ),
        (
            |r| r.sinks = None,
            "`sinks` must be given as before, but it is missing",
        ),
        (
            |r| r.options = r.options.split_policy(SplitPolicy::BatchInvariant),
            "`split_policy` must be Auto as before, but it is BatchInvariant",
        ),
    ];
    refuses!(first, request, table);
}

#[test]
fn what_is_not_alike_is_refused() {
    let first = decode(Layer(FIRST), Dtype::F8E4m3)
        .check()
        .expect("a good request");
    let table: [Refusal<DecodeRequest<'static>>; 9] = [
        (
            |r| r.query = parts(Dtype::F16, &[5, 8, 64]).view(),
            "`query` must be bf16, but its dtype is f16",
        ),
        (
            |r| r.block_table = parts(Dtype::I32, &[5, 21]).view(),
            "`block_table` must be as before = [5, 20], but its shape is [5, 21]",
        ),
        (
            |r| {
                let mut cache = parts(Dtype::F8E4m3, &[100, 16, 2, 64]);
                cache.strides[0] *= 2;
                r.value_cache = cache.view();
            },
            "`value_cache` must have strides [2048, 128, 64, 1] as before, but its strides are \
             [4096, 128, 64, 1] (in elements)",
        ),
        (
            |r| {
                let mut query = parts(Dtype::Bf16, &[5, 8, 64]);
                query.address += 4;
                r.query = query.view();
            },
            "`query` must be aligned to 16 bytes and not null, but its address is 0x1004",
        ),
        (
            |r| r.lse = None,
            "`lse` must be given as before, but it is missing",
        ),
        (
            |r| r.scales = None,
            "`k_scale` must be given as before, but it is missing",
        ),
        (
            |r| r.softmax_scale = 0.0,
            "`softmax_scale` must be positive and finite, but it is 0",
        ),
        (
            |r| r.options.score_mods.sliding_window = Some(7),
            "`sliding_window` must be None as before, but it is Some(7)",
        ),
        (
            |r| r.options = r.options.check(CheckMode::Off),
            "`check` must be Device as before, but it is Off",
        ),
    ];
    refuses!(first, |layer| decode(layer, Dtype::F8E4m3), table);
}
