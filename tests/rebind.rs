//! Checked requests pointed at other tensors: the next layer's get the parameters that checking them would have given
//! them, and what is not alike is refused. Nothing here runs.
#![allow(missing_docs, reason = "a test crate has no readers of its docs")]

mod common;

use common::parts::{Parts, Refusal, launched, parts};
use ferroattn::ops::{
    AlibiForm, AlibiSlopes, CacheScales, CacheWriteRequest, CheckMode, DecodeMlaRequest,
    DecodeOptions, DecodeRequest, KvScales, MlaScales, UnifiedOptions, UnifiedRequest,
};
use ferroattn::plan::DeviceInfo;
use ferroattn::tensor::{Dtype, TensorView, TensorViewMut};

/// Tensors one after the other, from an address of its own for each layer.
struct Layer(u64);

impl Layer {
    fn parts(&mut self, dtype: Dtype, shape: &[usize]) -> Parts {
        self.0 += 0x10_0000;
        Parts {
            address: self.0,
            ..parts(dtype, shape)
        }
    }
    fn view(&mut self, dtype: Dtype, shape: &[usize]) -> TensorView<'static> {
        self.parts(dtype, shape).view()
    }
    fn view_mut(&mut self, dtype: Dtype, shape: &[usize]) -> TensorViewMut<'static> {
        self.parts(dtype, shape).view_mut()
    }
}

const FIRST: u64 = 0x1000;
const SECOND: u64 = 0x7000_0000;

/// Whether a rebound request launches what a checked one does. `$request(layer)` makes them.
macro_rules! rebinds {
    ($request:expr, $plan:expr) => {
        let first = $request(Layer(FIRST)).check().expect("a good request");
        let second = $request(Layer(SECOND)).check().expect("a good request");
        let plan = $plan(&first);
        let rebound = first.rebind($request(Layer(SECOND))).expect("alike");
        let expected = launched(|workspace, to| second.launch(&plan, workspace, to));
        let launches = launched(|workspace, to| rebound.launch(&plan, workspace, to));
        assert!(launches == expected, "{rebound:?} is not {second:?}");
        let old = launched(|workspace, to| first.launch(&plan, workspace, to));
        assert!(launches != old, "other addresses");
    };
}

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
            .alibi(AlibiSlopes {
                slopes: layer.view(Dtype::F32, &[8]),
                form: AlibiForm::Linear,
            })
            .sinks(layer.view(Dtype::F32, &[8]))
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
            let mut options = UnifiedOptions::default();
            options.causal_flags = Some(layer.view(Dtype::U8, &[3]));
            options.sinks = Some(layer.view(Dtype::F32, &[8]));
            (options.num_decodes, options.max_query_len) = (num_decodes, max_query_len);
            options.check = check;
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

#[test]
fn a_cache_write_is_rebound() {
    for kind in 0..4 {
        let request = |mut layer: Layer| {
            let (source, cache) = match kind {
                0 => (Dtype::Bf16, Dtype::Bf16),
                // Copied, with scales that nobody reads.
                1 => (Dtype::F8E4m3, Dtype::F8E4m3),
                _ => (Dtype::Bf16, Dtype::F8E4m3),
            };
            let scales = [10, 16, 2];
            CacheWriteRequest {
                key: layer.view(source, &[6, 2, 64]),
                value: layer.view(source, &[6, 2, 64]),
                key_cache: layer.view_mut(cache, &[10, 16, 2, 64]),
                value_cache: layer.view_mut(cache, &[10, 16, 2, 64]),
                slot_mapping: layer.view(Dtype::I64, &[6]),
                block_size: 16,
                scales: match kind {
                    0 => CacheScales::None,
                    1 | 2 => CacheScales::Given {
                        k_scale: layer.view(Dtype::F32, &[2]),
                        v_scale: layer.view(Dtype::F32, &[1]),
                    },
                    _ => CacheScales::PerTokenHead {
                        k_scale: layer.view_mut(Dtype::F32, &scales),
                        v_scale: layer.view_mut(Dtype::F32, &scales),
                    },
                },
                check: CheckMode::Device,
            }
        };
        rebinds!(request, |first: &ferroattn::ops::CheckedCacheWrite<'_>| {
            first.plan()
        });
    }
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
            |r| r.options = r.options.sliding_window(7),
            "`sliding_window` must be None as before, but it is Some(7)",
        ),
        (
            |r| r.options = r.options.check(CheckMode::Off),
            "`check` must be Device as before, but it is Off",
        ),
    ];
    for (change, message) in table {
        let mut request = decode(Layer(SECOND), Dtype::F8E4m3);
        change(&mut request);
        let error = first.rebind(request).expect_err("it differs");
        assert_eq!(error.to_string(), message);
    }
}
