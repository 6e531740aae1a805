//! The cases of cache writes with scales or a rotation, of MLA writes, and of gathers, in every named list.

use super::grids::write;
use super::{
    BlocksCase, BlocksOperation, CacheWriteCase, Case, Fill, GatherBy, GatherCase, Layout, MlaForm,
    MlaWriteCase, RopeCase, ScaleForm,
};
use crate::ops::{CheckMode, RopeStyle};
use crate::tensor::Dtype;

/// Each element type of a cache of bytes with each kind of scale that it takes.
const FORMATS: [(Dtype, ScaleForm); 6] = [
    (Dtype::F8E4m3, ScaleForm::Tensor),
    (Dtype::F8E4m3, ScaleForm::Head),
    (Dtype::F8E4m3, ScaleForm::Token),
    (Dtype::F8E5m2, ScaleForm::Tensor),
    (Dtype::F8E5m2, ScaleForm::Head),
    (Dtype::I8, ScaleForm::Token),
];

const GATHERS: [GatherBy; 4] = [
    GatherBy::Ragged,
    GatherBy::Padded,
    GatherBy::TopK,
    GatherBy::Slots,
];

fn scaled(mut case: CacheWriteCase, (kv, scales): (Dtype, ScaleForm)) -> CacheWriteCase {
    case.cache.dtype = kv;
    case.scales = scales;
    case
}

pub(super) fn rotated(
    mut case: CacheWriteCase,
    style: RopeStyle,
    rotary_dim: usize,
) -> CacheWriteCase {
    case.rope = Some(RopeCase {
        style,
        rotary_dim,
        num_query_heads: 4 * case.cache.num_kv_heads,
        fp8_query: case.is_scaled(),
    });
    case
}

pub(super) fn mla(form: MlaForm, block_size: usize, num_tokens: usize, skip_every: usize) -> Case {
    Case::MlaWrite(MlaWriteCase {
        dtype: Dtype::Bf16,
        form,
        block_size,
        num_tokens,
        skip_every,
        fill: Fill::Plain,
    })
}

pub(super) fn gather(
    form: MlaForm,
    by: GatherBy,
    page: usize,
    num_seqs: usize,
    rows: usize,
) -> Case {
    Case::Gather(GatherCase {
        dtype: Dtype::Bf16,
        form,
        by,
        block_size: page,
        num_seqs,
        rows_per_seq: rows,
        fill: Fill::Plain,
    })
}

/// A copy and both compactions.
fn blocks(block_size: usize, row: usize, num_blocks: usize, count: usize) -> [Case; 3] {
    [
        BlocksOperation::Copy,
        BlocksOperation::CompactTables,
        BlocksOperation::CompactSlots,
    ]
    .map(|operation| {
        Case::Blocks(BlocksCase {
            dtype: Dtype::Bf16,
            operation,
            block_size,
            row,
            num_blocks,
            count,
        })
    })
}

/// Every form, small, with padding among the tokens.
pub(super) fn smoke() -> Vec<Case> {
    let mut cases = Vec::new();
    for (at, format) in FORMATS.into_iter().enumerate() {
        let dtype = [Dtype::Bf16, Dtype::F16][at % 2];
        for (layout, d, fused) in [
            (Layout::Nhd, 64, true),
            (Layout::PackedHnd, 80, false),
            (Layout::Hnd, 46, false),
        ] {
            let mut case = scaled(write(dtype, 4, d, 16, 42), format);
            case.cache.layout = layout;
            case.fused = fused;
            case.skip_every = 5;
            cases.push(Case::CacheWrite(case));
        }
    }
    // So many that a thread block does keys and values.
    for format in [FORMATS[0], FORMATS[1]] {
        cases.push(Case::CacheWrite(scaled(
            write(Dtype::Bf16, 8, 128, 16, 150),
            format,
        )));
    }
    for style in [RopeStyle::Neox, RopeStyle::GptJ] {
        for (d, rotary_dim) in [(64, 64), (128, 32), (46, 20)] {
            let mut plain = write(Dtype::Bf16, 2, d, 16, 42);
            plain.skip_every = 5;
            plain.check = CheckMode::Device;
            cases.push(Case::CacheWrite(rotated(plain.clone(), style, rotary_dim)));
            let scaled = scaled(plain, FORMATS[1]);
            cases.push(Case::CacheWrite(rotated(scaled, style, rotary_dim)));
        }
    }
    for form in MlaForm::ALL {
        cases.push(mla(form, 16, 42, 5));
        for by in GATHERS {
            cases.push(gather(form, by, 16, 3, 37));
        }
    }
    cases.extend(blocks(16, 32, 40, 20));
    cases.extend(blocks(3, 7, 200, 50));
    cases
}

/// vLLM's tables for its cache writes with scales, its MLA writes and its gathers, and larger ones.
pub(super) fn sweep() -> Vec<Case> {
    let mut cases = Vec::new();
    for format in FORMATS {
        for dtype in [Dtype::Bf16, Dtype::F16] {
            for (heads, d) in [(8, 64), (8, 80), (8, 256), (13, 46), (1, 128)] {
                for page in [8, 16, 32] {
                    let mut case = scaled(write(dtype, heads, d, page, 42), format);
                    case.fused = page == 16;
                    case.skip_every = 7;
                    cases.push(Case::CacheWrite(case));
                }
            }
        }
        for layout in Layout::ALL {
            let mut case = scaled(write(Dtype::Bf16, 8, 128, 16, 2048), format);
            case.cache.layout = layout;
            cases.push(Case::CacheWrite(case));
        }
    }
    for style in [RopeStyle::Neox, RopeStyle::GptJ] {
        for (d, rotary_dim) in [
            (64, 64),
            (80, 32),
            (96, 24),
            (128, 128),
            (128, 64),
            (256, 256),
        ] {
            for tokens in [1, 42, 2048] {
                let plain = write(Dtype::F16, 8, d, 16, tokens);
                cases.push(Case::CacheWrite(rotated(plain.clone(), style, rotary_dim)));
                for format in [FORMATS[0], FORMATS[1], FORMATS[3]] {
                    let scaled = scaled(plain.clone(), format);
                    cases.push(Case::CacheWrite(rotated(scaled, style, rotary_dim)));
                }
            }
        }
    }
    for form in MlaForm::ALL {
        for (page, tokens) in [(16, 42), (64, 1), (64, 4096)] {
            cases.push(mla(form, page, tokens, 9));
        }
        for by in GATHERS {
            for (page, seqs, rows) in [(16, 8, 512), (64, 3, 32_768 / 16 + 5), (64, 40, 71)] {
                cases.push(gather(form, by, page, seqs, rows));
            }
        }
    }
    for (page, row, num_blocks, count) in [(16, 1024, 500, 200), (64, 576, 9000, 3000)] {
        cases.extend(blocks(page, row, num_blocks, count));
    }
    cases
}

/// The shapes of measured peers.
pub(super) fn bench() -> Vec<Case> {
    let mut cases = Vec::new();
    for tokens in [1, 64, 512, 2048, 16_384, 65_536] {
        let case = write(Dtype::Bf16, 8, 128, 16, tokens);
        cases.push(Case::CacheWrite(scaled(case, FORMATS[0])));
    }
    for format in [FORMATS[2], FORMATS[5]] {
        for tokens in [1, 1024, 65_536] {
            let case = write(Dtype::Bf16, 8, 128, 16, tokens);
            cases.push(Case::CacheWrite(scaled(case, format)));
        }
    }
    for tokens in [1, 64, 1024, 65_536] {
        let case = write(Dtype::Bf16, 8, 128, 16, tokens);
        cases.push(Case::CacheWrite(rotated(
            case.clone(),
            RopeStyle::Neox,
            128,
        )));
        cases.push(Case::CacheWrite(rotated(
            scaled(case, FORMATS[0]),
            RopeStyle::Neox,
            128,
        )));
    }
    for form in MlaForm::ALL {
        for tokens in [1, 64, 1024, 65_536] {
            cases.push(mla(form, 64, tokens, 0));
        }
    }
    for form in [MlaForm::Plain, MlaForm::Fp8, MlaForm::Ds656] {
        for (seqs, tokens) in [(1, 1024), (1, 8192), (1, 65_536), (4, 32_768), (16, 98_304)] {
            cases.push(gather(form, GatherBy::Ragged, 64, seqs, tokens / seqs));
        }
        for (seqs, topk) in [(1, 1024), (64, 2048)] {
            cases.push(gather(form, GatherBy::TopK, 64, seqs, topk));
        }
    }
    for (seqs, len) in [(1, 4096), (1, 32_768), (8, 8192), (64, 1024)] {
        cases.push(gather(MlaForm::V4, GatherBy::Padded, 64, seqs, len));
    }
    for tokens in [1024, 16_384, 131_072] {
        cases.push(gather(MlaForm::V4, GatherBy::Slots, 64, 1, tokens));
    }
    // Blocks enough to be in no level-2 cache, and references enough to fill the compact cache.
    let [copy, _, _] = blocks(64, 576, 4000, 2000);
    let [_, tables, slots] = blocks(64, 576, 4000, 30_000);
    cases.extend([copy, tables, slots]);
    cases
}
