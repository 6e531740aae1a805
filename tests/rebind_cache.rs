//! Checked cache writes pointed at other tensors: the next layer's get the parameters that checking them would have given
//! them, and what is not alike is refused. Nothing here runs.
#![allow(missing_docs, reason = "a test crate has no readers of its docs")]

mod common;

use common::parts::{Refusal, cache_table, parts};
use common::rebind::{FIRST, Layer, rebinds, refuses};
use ferroattn::ops::{
    CacheScales, CacheWriteRequest, CheckMode, CheckedCacheWrite, CheckedConcatAndCacheMla,
    CheckedConcatAndCacheMlaGrouped, CheckedRopeAndCache, ConcatAndCacheMlaGroupedRequest,
    ConcatAndCacheMlaRequest, MlaCacheForm, RopeAndCacheRequest, RopeQuery, RopeStyle, RopeTable,
    ScaleRule,
};
use ferroattn::tensor::Dtype;

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
        rebinds!(request, CheckedCacheWrite::plan);
    }
}

/// With queries that become FP8, over an FP8 cache with scales; or everything in bf16, with or without queries.
fn rope(mut layer: Layer, kind: usize) -> RopeAndCacheRequest<'static> {
    let cache = if kind == 0 {
        Dtype::F8E4m3
    } else {
        Dtype::Bf16
    };
    RopeAndCacheRequest {
        write: CacheWriteRequest {
            key: layer.view(Dtype::Bf16, &[6, 2, 64]),
            value: layer.view(Dtype::Bf16, &[6, 2, 64]),
            key_cache: layer.view_mut(cache, &[10, 16, 2, 64]),
            value_cache: layer.view_mut(cache, &[10, 16, 2, 64]),
            slot_mapping: layer.view(Dtype::I64, &[6]),
            block_size: 16,
            scales: match kind {
                0 => CacheScales::Given {
                    k_scale: layer.view(Dtype::F32, &[2]),
                    v_scale: layer.view(Dtype::F32, &[1]),
                },
                _ => CacheScales::None,
            },
            check: CheckMode::Device,
        },
        table: RopeTable {
            positions: layer.view(Dtype::I64, &[6]),
            cos_sin: layer.view(Dtype::F32, &[99, 64]),
            style: RopeStyle::Neox,
        },
        query: (kind < 2).then(|| RopeQuery {
            query: layer.view(Dtype::Bf16, &[6, 8, 64]),
            out: layer.view_mut(
                if kind == 0 {
                    Dtype::F8E4m3
                } else {
                    Dtype::Bf16
                },
                &[6, 8, 64],
            ),
            q_scale: (kind == 0).then(|| layer.view(Dtype::F32, &[1])),
        }),
    }
}

#[test]
fn a_write_with_rotation_is_rebound() {
    for kind in 0..3 {
        rebinds!(|layer| rope(layer, kind), CheckedRopeAndCache::plan);
    }
    let first = rope(Layer(FIRST), 0).check().expect("a good request");
    let table: [Refusal<RopeAndCacheRequest<'static>>; 7] = [
        (
            |r| r.table.cos_sin = parts(Dtype::Bf16, &[99, 64]).view(),
            "`cos_sin` must be f32, but its dtype is bf16",
        ),
        (
            |r| r.table.positions = parts(Dtype::I64, &[7]).view(),
            "`positions` must be as before = [6], but its shape is [7]",
        ),
        (
            |r| {
                let mut cache = parts(Dtype::F8E4m3, &[10, 16, 2, 64]);
                cache.strides[1] += 64;
                r.write.key_cache = cache.view_mut();
            },
            "`key_cache` must have strides [2048, 128, 64, 1] as before, but its strides are [2048, 192, 64, 1] (in \
             elements)",
        ),
        (
            |r| r.query = None,
            "`query` must be given as before, but it is missing",
        ),
        (
            |r| r.table.style = RopeStyle::GptJ,
            "`style` must be Neox as before, but it is GptJ",
        ),
        (
            |r| r.write.block_size = 8,
            "`block_size` must be 16 as before, but it is 8",
        ),
        (
            |r| r.write.check = CheckMode::Off,
            "`check` must be Device as before, but it is Off",
        ),
    ];
    refuses!(first, |layer| rope(layer, 0), table);
    let first = rope(Layer(FIRST), 1).check().expect("a good request");
    let table: [Refusal<RopeAndCacheRequest<'static>>; 1] = [(
        |r| {
            r.write.scales = CacheScales::PerTokenHead {
                k_scale: parts(Dtype::F32, &[10, 16, 2]).view_mut(),
                v_scale: parts(Dtype::F32, &[10, 16, 2]).view_mut(),
            };
        },
        "`k_scale` must be absent as before, but it is given",
    )];
    refuses!(first, |layer| rope(layer, 1), table);
}

/// A cache's form, whether there are RoPE keys, and the cache's dtype and shape.
type MlaKind = (MlaCacheForm<'static>, bool, Dtype, &'static [usize]);

fn mla(
    mut layer: Layer,
    (form, has_rope, cache, shape): MlaKind,
) -> ConcatAndCacheMlaRequest<'static> {
    let latents = if matches!(form, MlaCacheForm::V4) {
        448
    } else {
        512
    };
    ConcatAndCacheMlaRequest {
        kv_c: layer.view(Dtype::Bf16, &[6, latents]),
        k_pe: has_rope.then(|| layer.view(Dtype::Bf16, &[6, 64])),
        kv_cache: layer.view_mut(cache, shape),
        slot_mapping: layer.view(Dtype::I64, &[6]),
        block_size: 64,
        form: match form {
            MlaCacheForm::Fp8 { .. } => MlaCacheForm::Fp8 {
                scale: layer.view(Dtype::F32, &[1]),
            },
            other => other,
        },
        check: CheckMode::Device,
    }
}

#[test]
fn a_write_of_latents_is_rebound() {
    let scale = parts(Dtype::F32, &[1]).view();
    let exact = MlaCacheForm::Fp8Ds {
        rule: ScaleRule::Exact,
    };
    let kinds: [MlaKind; 7] = [
        (MlaCacheForm::Plain, true, Dtype::Bf16, &[10, 64, 576]),
        (MlaCacheForm::Plain, false, Dtype::Bf16, &[10, 64, 512]),
        (
            MlaCacheForm::Fp8 { scale },
            true,
            Dtype::F8E4m3,
            &[10, 64, 576],
        ),
        (
            MlaCacheForm::Fp8 { scale },
            false,
            Dtype::F8E4m3,
            &[10, 64, 512],
        ),
        (exact, true, Dtype::U8, &[10, 64, 656]),
        (exact, false, Dtype::U8, &[10, 64, 656]),
        (MlaCacheForm::V4, true, Dtype::U8, &[10, 584 * 64]),
    ];
    for kind in kinds {
        rebinds!(|layer| mla(layer, kind), CheckedConcatAndCacheMla::plan);
    }
    let first = mla(Layer(FIRST), kinds[4]).check().expect("a good request");
    let table: [Refusal<ConcatAndCacheMlaRequest<'static>>; 6] = [
        (
            |r| r.kv_c = parts(Dtype::F16, &[6, 512]).view(),
            "`kv_c` must be bf16, but its dtype is f16",
        ),
        (
            |r| r.k_pe = None,
            "`k_pe` must be given as before, but it is missing",
        ),
        (
            |r| r.kv_cache = parts(Dtype::U8, &[11, 64, 656]).view_mut(),
            "`kv_cache` must be as before = [10, 64, 656], but its shape is [11, 64, 656]",
        ),
        (
            |r| {
                let mut latents = parts(Dtype::Bf16, &[6, 512]);
                latents.strides[0] = 576;
                r.kv_c = latents.view();
            },
            "`kv_c` must have strides [512, 1] as before, but its strides are [576, 1] (in elements)",
        ),
        (
            |r| {
                r.form = MlaCacheForm::Fp8Ds {
                    rule: ScaleRule::PowerOfTwo,
                };
            },
            "`form` must be Fp8Ds with exact scales as before, but it is Fp8Ds with powers of two",
        ),
        (
            |r| r.block_size = 32,
            "`block_size` must be 64 as before, but it is 32",
        ),
    ];
    refuses!(first, |layer| mla(layer, kinds[4]), table);
}

fn grouped(mut layer: Layer, cache: Dtype) -> ConcatAndCacheMlaGroupedRequest<'static> {
    ConcatAndCacheMlaGroupedRequest {
        kv_c: layer.view(Dtype::Bf16, &[3, 6, 512]),
        k_pe: layer.view(Dtype::Bf16, &[3, 6, 64]),
        kv_caches: cache_table(layer.view(Dtype::I64, &[3]), cache, &[10, 64, 576]),
        slot_mapping: layer.view(Dtype::I64, &[3, 6]),
        block_size: 64,
        scales: (cache != Dtype::Bf16).then(|| layer.view(Dtype::F32, &[3])),
        check: CheckMode::Device,
    }
}

#[test]
fn a_write_of_many_layers_is_rebound() {
    for cache in [Dtype::Bf16, Dtype::F8E5m2] {
        rebinds!(
            |layer| grouped(layer, cache),
            CheckedConcatAndCacheMlaGrouped::plan
        );
    }
    let request = |layer| grouped(layer, Dtype::Bf16);
    let first = request(Layer(FIRST)).check().expect("a good request");
    let changes: [Refusal<ConcatAndCacheMlaGroupedRequest<'static>>; 4] = [
        (
            |r| r.k_pe = parts(Dtype::Bf16, &[3, 7, 64]).view(),
            "`k_pe` must be as before = [3, 6, 64], but its shape is [3, 7, 64]",
        ),
        (
            |r| {
                let addresses = parts(Dtype::I64, &[3]).view();
                r.kv_caches = cache_table(addresses, Dtype::Bf16, &[20, 64, 576]);
            },
            "`kv_caches` must be as before = [10, 64, 576], but its shape is [20, 64, 576]",
        ),
        (
            |r| {
                let addresses = parts(Dtype::I64, &[3]).view();
                r.kv_caches = cache_table(addresses, Dtype::F16, &[10, 64, 576]);
            },
            "`kv_caches` must be bf16, but its dtype is f16",
        ),
        (
            |r| r.scales = Some(parts(Dtype::F32, &[3]).view()),
            "`scales` must be absent as before, but it is given",
        ),
    ];
    refuses!(first, request, changes);
}
