//! Which requests a plan of a cache write, a gather or a copy fits: as the plans of attention, written down.
#![allow(missing_docs, reason = "a test crate has no readers of its docs")]

mod common;

use common::parts::{launched, parts, refused_plan};
use ferroattn::ops::{
    BlockCaches, CacheScales, CacheTable, CacheWriteRequest, CheckMode, CheckedCacheWrite,
    CompactReferences, CompactRequest, ConcatAndCacheMlaGroupedRequest, ConcatAndCacheMlaRequest,
    CopyBlocksRequest, GatherForm, GatherRequest, GatherRows, MlaCacheForm, RopeAndCacheRequest,
    RopeStyle, RopeTable,
};
use ferroattn::runtime::Launch;
use ferroattn::tensor::Dtype;

/// The launches without their parameters.
fn kernels(launches: Vec<(Launch, Vec<u8>)>) -> Vec<Launch> {
    launches.into_iter().map(|(launch, _)| launch).collect()
}

fn write(num_tokens: usize, dtype: Dtype, check: CheckMode) -> CheckedCacheWrite<'static> {
    write_request(num_tokens, dtype, check)
        .check()
        .expect("a good request")
}

fn write_request(num_tokens: usize, dtype: Dtype, check: CheckMode) -> CacheWriteRequest<'static> {
    let (new, cache) = (
        parts(dtype, &[num_tokens, 2, 64]),
        parts(dtype, &[10, 16, 2, 64]),
    );
    CacheWriteRequest {
        key: new.view(),
        value: new.view(),
        key_cache: cache.view_mut(),
        value_cache: cache.view_mut(),
        slot_mapping: parts(Dtype::I64, &[num_tokens]).view(),
        block_size: 16,
        scales: CacheScales::None,
        check,
    }
}

/// Checks an operation of which `$request(rows, mode)` makes requests: a plan for 8 rows fits 3, on their own grids,
/// and not 9, nor another mode.
macro_rules! rows_at_most {
    ($request:expr, $rows:literal) => {
        for mode in [CheckMode::Off, CheckMode::Device] {
            let other = match mode {
                CheckMode::Off => CheckMode::Device,
                CheckMode::Device => CheckMode::Off,
            };
            let plan = $request(8, mode).plan();
            let few = $request(3, mode);
            let own = few.plan();
            let own: Vec<_> = own.launches().copied().collect();
            assert_eq!(
                kernels(launched(|workspace, to| few.launch(&plan, workspace, to))),
                own
            );
            let many = $request(9, mode);
            assert_eq!(
                refused_plan(|workspace, to| many.launch(&plan, workspace, to)),
                format!(
                    "the plan was made for {} of at most 8, but the request has 9",
                    $rows
                )
            );
            let checked = $request(8, other);
            assert_eq!(
                refused_plan(|workspace, to| checked.launch(&plan, workspace, to)),
                format!("the plan was made for check {mode:?}, but the request has {other:?}")
            );
        }
    };
}

#[test]
fn plans_of_cache_writes() {
    rows_at_most!(|rows, check| write(rows, Dtype::Bf16, check), "num_tokens");
    let plan = write(8, Dtype::Bf16, CheckMode::Off).plan();
    let rope = |rows, check| {
        RopeAndCacheRequest {
            write: write_request(rows, Dtype::Bf16, check),
            table: RopeTable {
                positions: parts(Dtype::I64, &[rows]).view(),
                cos_sin: parts(Dtype::F32, &[99, 64]).view(),
                style: RopeStyle::Neox,
            },
            query: None,
        }
        .check()
        .expect("a good request")
    };
    rows_at_most!(rope, "num_tokens");
    let message =
        refused_plan(|workspace, to| rope(8, CheckMode::Off).launch(&plan, workspace, to));
    assert!(message.contains("kernel"), "{message}");
    let mla = |rows, check| {
        ConcatAndCacheMlaRequest {
            kv_c: parts(Dtype::Bf16, &[rows, 512]).view(),
            k_pe: Some(parts(Dtype::Bf16, &[rows, 64]).view()),
            kv_cache: parts(Dtype::U8, &[10, 64, 656]).view_mut(),
            slot_mapping: parts(Dtype::I64, &[rows]).view(),
            block_size: 64,
            form: MlaCacheForm::Fp8Ds {
                rule: Default::default(),
            },
            check,
        }
        .check()
        .expect("a good request")
    };
    rows_at_most!(mla, "num_tokens");
    let grouped = |layers: usize, rows: usize, check| {
        let addresses = parts(Dtype::I64, &[layers]).view();
        let (shape, strides) = ([10, 64, 576], [64 * 576, 576, 1]);
        ConcatAndCacheMlaGroupedRequest {
            kv_c: parts(Dtype::Bf16, &[layers, rows, 512]).view(),
            k_pe: parts(Dtype::Bf16, &[layers, rows, 64]).view(),
            // SAFETY: nothing is launched.
            kv_caches: unsafe { CacheTable::from_raw(addresses, Dtype::Bf16, &shape, &strides) }
                .expect("three strides"),
            slot_mapping: parts(Dtype::I64, &[layers, rows]).view(),
            block_size: 64,
            scales: None,
            check,
        }
        .check()
        .expect("a good request")
    };
    rows_at_most!(|rows, check| grouped(3, rows, check), "num_tokens");
    rows_at_most!(|layers, check| grouped(layers, 5, check), "num_layers");
}

#[test]
fn plans_of_gathers_and_copies() {
    let gather = |rows: usize, check| {
        GatherRequest {
            cache: parts(Dtype::Bf16, &[10, 16, 64]).view(),
            block_size: 16,
            form: GatherForm::Raw,
            out: parts(Dtype::Bf16, &[rows, 64]).view_mut(),
            rows: GatherRows::Slots {
                slots: parts(Dtype::I32, &[rows]).view(),
            },
            zero_missing: false,
            check,
        }
        .check()
        .expect("a good request")
    };
    rows_at_most!(gather, "num_rows");
    let copy = |pairs: usize, check| {
        CopyBlocksRequest {
            caches: BlockCaches::Within(parts(Dtype::Bf16, &[100, 16, 64]).view_mut()),
            pairs: parts(Dtype::I64, &[pairs, 2]).view(),
            check,
        }
        .check()
        .expect("a good request")
    };
    rows_at_most!(copy, "num_pairs");
}

#[test]
fn plans_of_compaction() {
    let compact = |slots: usize, blocks: usize, caches: usize| {
        let cache = || {
            (
                parts(Dtype::Bf16, &[blocks, 16, 64]).view(),
                parts(Dtype::Bf16, &[20, 16, 64]).view_mut(),
            )
        };
        CompactRequest {
            caches: (0..caches).map(|_| cache()).collect(),
            block_size: 16,
            references: CompactReferences::Slots {
                slots: parts(Dtype::I32, &[slots]).view(),
                renamed: parts(Dtype::I32, &[slots]).view_mut(),
            },
            num_wanted: parts(Dtype::I32, &[1]).view_mut(),
            check: CheckMode::Device,
        }
        .check()
        .expect("a good request")
    };
    let plan = compact(100_000, 300, 2).plan();
    let few = compact(10, 200, 1);
    let own: Vec<_> = few.plan().launches().copied().collect();
    assert_eq!(
        kernels(launched(|workspace, to| few.launch(&plan, workspace, to))),
        own
    );
    for (request, message) in [
        (
            compact(100_001, 300, 2),
            "references of at most 100000, but the request has 100001",
        ),
        (
            compact(10, 301, 2),
            "num_blocks of at most 300, but the request has 301",
        ),
        (
            compact(10, 300, 3),
            "caches of at most 2, but the request has 3",
        ),
    ] {
        let message = format!("the plan was made for {message}");
        assert_eq!(
            refused_plan(|workspace, to| request.launch(&plan, workspace, to)),
            message
        );
    }
}
