//! Checked gathers, copies of blocks and compactions pointed at other tensors: the next layer's get the parameters that
//! checking them would have given them, and what is not alike is refused. Nothing here runs.
#![allow(missing_docs, reason = "a test crate has no readers of its docs")]

mod common;

use common::parts::{Refusal, cache_table, parts};
use common::rebind::{FIRST, Layer, rebinds, refuses};
use ferroattn::ops::{
    BlockCaches, CheckMode, CheckedCompact, CheckedCopyBlocks, CheckedGather, CompactReferences,
    CompactRequest, CopyBlocksRequest, GatherForm, GatherRequest, GatherRows,
};
use ferroattn::tensor::Dtype;

/// Every kind of rows, and every form of a cache.
fn gather(mut layer: Layer, rows: usize, form: usize) -> GatherRequest<'static> {
    let (cache, cache_shape, out, row): (_, &[usize], _, _) = match form {
        0 => (Dtype::Bf16, &[50, 16, 64], Dtype::Bf16, 64),
        1 => (Dtype::F8E4m3, &[50, 16, 64], Dtype::F16, 64),
        2 => (Dtype::U8, &[50, 16, 656], Dtype::Bf16, 576),
        _ => (Dtype::U8, &[50, 16 * 584], Dtype::Bf16, 512),
    };
    let cache = layer.view(cache, cache_shape);
    let form = match form {
        0 => GatherForm::Raw,
        1 => GatherForm::Fp8 {
            scale: layer.view(Dtype::F32, &[1]),
        },
        2 => GatherForm::Fp8Ds,
        _ => GatherForm::V4,
    };
    let block_table = layer.view(Dtype::I32, &[3, 9]);
    let rows_out = layer.view_mut(out, &[12, row]);
    let (out, rows) = match rows {
        0 => (
            rows_out,
            GatherRows::Ragged {
                block_table,
                row_starts: layer.view(Dtype::I32, &[4]),
                first_tokens: Some(layer.view(Dtype::I32, &[3])),
            },
        ),
        1 => (
            layer.view_mut(out, &[3, 4, row]),
            GatherRows::Padded {
                block_table,
                seq_lens: layer.view(Dtype::I32, &[3]),
                lens: Some(layer.view(Dtype::I32, &[3])),
            },
        ),
        2 => (
            rows_out,
            GatherRows::TopK {
                block_table,
                indices: layer.view(Dtype::I32, &[2, 6]),
                seqs: Some(layer.view(Dtype::I32, &[2])),
            },
        ),
        _ => (
            rows_out,
            GatherRows::Slots {
                slots: layer.view(Dtype::I32, &[12]),
            },
        ),
    };
    GatherRequest {
        cache,
        block_size: 16,
        form,
        out,
        rows,
        zero_missing: true,
        check: CheckMode::Device,
    }
}

#[test]
fn a_gather_is_rebound() {
    for rows in 0..4 {
        for form in 0..4 {
            rebinds!(|layer| gather(layer, rows, form), CheckedGather::plan);
        }
    }
    let request = |layer| gather(layer, 0, 1);
    let first = request(Layer(FIRST)).check().expect("a good request");
    let table: [Refusal<GatherRequest<'static>>; 7] = [
        (
            |r| r.out = parts(Dtype::F32, &[12, 64]).view_mut(),
            "`out` must be f16, but its dtype is f32",
        ),
        (
            |r| r.cache = parts(Dtype::F8E4m3, &[51, 16, 64]).view(),
            "`cache` must be as before = [50, 16, 64], but its shape is [51, 16, 64]",
        ),
        (
            |r| {
                let mut out = parts(Dtype::F16, &[12, 64]);
                out.strides[0] = 128;
                r.out = out.view_mut();
            },
            "`out` must have strides [64, 1] as before, but its strides are [128, 1] (in elements)",
        ),
        (
            |r| {
                let mut cache = parts(Dtype::F8E4m3, &[50, 16, 64]);
                cache.address += 8;
                r.cache = cache.view();
            },
            "`cache` must be aligned to 16 bytes and not null, but its address is 0x1008",
        ),
        (
            |r| r.form = GatherForm::Raw,
            "`form` must be Fp8 as before, but it is Raw",
        ),
        (
            |r| r.rows = gather(Layer(FIRST), 3, 1).rows,
            "`rows` must be Ragged as before, but it is Slots",
        ),
        (
            |r| r.zero_missing = false,
            "`zero_missing` must be true as before, but it is false",
        ),
    ];
    refuses!(first, request, table);
}

/// Within a cache, between two, between tables of caches.
fn copies(mut layer: Layer, kind: usize) -> CopyBlocksRequest<'static> {
    let shape = [50, 16, 64];
    CopyBlocksRequest {
        caches: match kind {
            0 => BlockCaches::Within(layer.view_mut(Dtype::Bf16, &shape)),
            1 => BlockCaches::Between {
                source: layer.view(Dtype::Bf16, &shape),
                target: layer.view_mut(Dtype::Bf16, &shape),
            },
            _ => BlockCaches::Tables {
                source: cache_table(layer.view(Dtype::I64, &[3]), Dtype::Bf16, &shape),
                target: cache_table(layer.view(Dtype::I64, &[3]), Dtype::Bf16, &shape),
            },
        },
        pairs: layer.view(Dtype::I64, &[7, 2]),
        check: CheckMode::Device,
    }
}

#[test]
fn a_copy_of_blocks_is_rebound() {
    for kind in 0..3 {
        rebinds!(|layer| copies(layer, kind), CheckedCopyBlocks::plan);
    }
    let request = |layer| copies(layer, 2);
    let first = request(Layer(FIRST)).check().expect("a good request");
    let changes: [Refusal<CopyBlocksRequest<'static>>; 3] = [
        (
            |r| r.pairs = parts(Dtype::I64, &[8, 2]).view(),
            "`pairs` must be as before = [7, 2], but its shape is [8, 2]",
        ),
        (
            |r| {
                let addresses = parts(Dtype::I64, &[3]).view();
                let table = |blocks| cache_table(addresses, Dtype::Bf16, &[blocks, 16, 64]);
                let (source, target) = (table(50), table(49));
                r.caches = BlockCaches::Tables { source, target };
            },
            "`target` must be as before = [50, 16, 64], but its shape is [49, 16, 64]",
        ),
        (
            |r| r.caches = copies(Layer(FIRST), 0).caches,
            "`caches` must be Tables as before, but it is Within",
        ),
    ];
    refuses!(first, request, changes);
}

fn compact(mut layer: Layer, by_slots: bool) -> CompactRequest<'static> {
    let mut caches = || {
        let pool = layer.view(Dtype::Bf16, &[50, 16, 64]);
        (pool, layer.view_mut(Dtype::Bf16, &[20, 16, 64]))
    };
    CompactRequest {
        caches: vec![caches(), caches()],
        block_size: 16,
        references: if by_slots {
            CompactReferences::Slots {
                slots: layer.view(Dtype::I32, &[30]),
                renamed: layer.view_mut(Dtype::I32, &[30]),
            }
        } else {
            CompactReferences::Tables {
                block_table: layer.view(Dtype::I32, &[3, 9]),
                seq_lens: layer.view(Dtype::I32, &[3]),
                renamed: layer.view_mut(Dtype::I32, &[3, 9]),
            }
        },
        num_wanted: layer.view_mut(Dtype::I32, &[1]),
        check: CheckMode::Device,
    }
}

#[test]
fn a_compaction_is_rebound() {
    for by_slots in [false, true] {
        rebinds!(|layer| compact(layer, by_slots), CheckedCompact::plan);
    }
    let request = |layer| compact(layer, false);
    let first = request(Layer(FIRST)).check().expect("a good request");
    let changes: [Refusal<CompactRequest<'static>>; 5] = [
        (
            |r| r.caches.truncate(1),
            "`caches` must be 2 as before, but it is 1",
        ),
        (
            |r| r.caches[1].0 = parts(Dtype::F16, &[50, 16, 64]).view(),
            "`caches` must be bf16, but its dtype is f16",
        ),
        (
            |r| r.num_wanted = parts(Dtype::I32, &[2]).view_mut(),
            "`num_wanted` must be as before = [1], but its shape is [2]",
        ),
        (
            |r| r.references = compact(Layer(FIRST), true).references,
            "`references` must be Tables as before, but it is Slots",
        ),
        (
            |r| r.check = CheckMode::Off,
            "`check` must be Device as before, but it is Off",
        ),
    ];
    refuses!(first, request, changes);
}
