//! The cases of MLA writes, of gathers, and of copies and compaction of blocks, in every named list.

use super::blocks::{BlocksCase, BlocksOperation};
use super::gather::{GatherBy, GatherCase};
use super::mla_form::MlaForm;
use super::mla_write::MlaWriteCase;
use super::mla_write_grouped::MlaWriteGroupedCase;
use crate::cases::base::fill::Fill;
use crate::cases::base::mla_entry::{LATENTS, ROPE};
use crate::ops::CheckMode;
use crate::tensor::Dtype;

use Dtype::{Bf16, F8E4m3, F8E5m2, F16};

/// What names the tokens of a gather, each once.
const GATHERS: [GatherBy; 4] = [
    GatherBy::Ragged,
    GatherBy::Padded,
    GatherBy::TopK,
    GatherBy::Slots,
];

/// The plainest MLA write.
pub(crate) fn mla(
    form: MlaForm,
    block_size: usize,
    num_tokens: usize,
    skip_every: usize,
) -> MlaWriteCase {
    MlaWriteCase {
        dtype: Bf16,
        form,
        block_size,
        num_tokens,
        skip_every,
        check: CheckMode::Off,
        fill: Fill::Plain,
    }
}

/// The plainest write into the caches of `num_layers` layers.
pub(crate) fn grouped(
    (dtype, cache_dtype): (Dtype, Dtype),
    num_layers: usize,
    block_size: usize,
    num_tokens: usize,
) -> MlaWriteGroupedCase {
    MlaWriteGroupedCase {
        dtype,
        cache_dtype,
        num_layers,
        kv_lora_rank: LATENTS,
        qk_rope_head_dim: ROPE,
        block_size,
        num_tokens,
        extra_rows: 0,
        shares_slots: false,
        skip_every: 0,
        check: CheckMode::Off,
        fill: Fill::Plain,
    }
}

/// The plainest gather.
pub(crate) fn gather(
    form: MlaForm,
    by: GatherBy,
    page: usize,
    num_seqs: usize,
    rows: usize,
) -> GatherCase {
    GatherCase {
        dtype: Bf16,
        form,
        by,
        block_size: page,
        num_seqs,
        rows_per_seq: rows,
        check: CheckMode::Off,
        fill: Fill::Plain,
    }
}

/// One of each operation.
pub(crate) fn blocks(
    block_size: usize,
    row: usize,
    num_blocks: usize,
    count: usize,
) -> [BlocksCase; BlocksOperation::ALL.len()] {
    BlocksOperation::ALL.map(|operation| BlocksCase {
        dtype: Bf16,
        operation,
        block_size,
        row,
        num_blocks,
        count,
        check: CheckMode::Off,
        fill: Fill::Plain,
    })
}

/// Every form, small, with padding among the tokens; with a check and without.
pub(crate) fn smoke_mla() -> Vec<MlaWriteCase> {
    let mut cases = Vec::new();
    for form in MlaForm::ALL {
        let case = mla(form, 16, 42, 5);
        cases.push(case.clone());
        cases.push(MlaWriteCase {
            check: CheckMode::Device,
            ..case
        });
    }
    cases
}

/// Copied and scaled, with slots of each layer and with slots that all share.
pub(crate) fn smoke_grouped() -> Vec<MlaWriteGroupedCase> {
    let mut cases = Vec::new();
    for dtypes in [(Bf16, Bf16), (F16, F16), (Bf16, F8E4m3), (F16, F8E5m2)] {
        let case = MlaWriteGroupedCase {
            skip_every: 5,
            ..grouped(dtypes, 3, 16, 42)
        };
        cases.push(case.clone());
        cases.push(MlaWriteGroupedCase {
            shares_slots: true,
            check: CheckMode::Device,
            extra_rows: 3,
            ..case
        });
    }
    // Entries that are no multiple of 16 bytes, one layer, no token.
    cases.push(MlaWriteGroupedCase {
        kv_lora_rank: 37,
        qk_rope_head_dim: 6,
        check: CheckMode::Device,
        ..grouped((F16, F8E4m3), 4, 7, 30)
    });
    cases.push(grouped((Bf16, Bf16), 1, 64, 1));
    cases.push(grouped((Bf16, F8E4m3), 2, 16, 0));
    cases
}

/// By everything that names tokens, from every form; with a check and without.
pub(crate) fn smoke_gathers() -> Vec<GatherCase> {
    let mut cases = Vec::new();
    for (at, form) in MlaForm::ALL.into_iter().enumerate() {
        for by in GATHERS {
            cases.push(gather(form, by, 16, 3, 37));
        }
        cases.push(GatherCase {
            check: CheckMode::Device,
            ..gather(form, GATHERS[at], 16, 3, 37)
        });
    }
    cases
}

/// Small blocks, and small blocks of odd rows; with a check and without.
pub(crate) fn smoke_blocks() -> Vec<BlocksCase> {
    let small = || blocks(16, 32, 40, 20).into_iter();
    let checked = small().map(|case| BlocksCase {
        check: CheckMode::Device,
        ..case
    });
    small()
        .chain(blocks(3, 7, 200, 50))
        .chain(checked)
        .collect()
}

/// vLLM's table for its MLA writes, and larger ones.
pub(crate) fn sweep_mla() -> Vec<MlaWriteCase> {
    let sizes = [(16, 42), (64, 1), (64, 4096)];
    let each = |form| sizes.map(|(page, tokens)| mla(form, page, tokens, 9));
    MlaForm::ALL.into_iter().flat_map(each).collect()
}

/// All layers of a model, and some.
pub(crate) fn sweep_grouped() -> Vec<MlaWriteGroupedCase> {
    let mut cases = Vec::new();
    for dtypes in [(Bf16, Bf16), (F16, F16), (Bf16, F8E4m3), (F16, F8E5m2)] {
        for (layers, page, tokens) in [(61, 64, 64), (27, 16, 513), (4, 64, 4096)] {
            let case = MlaWriteGroupedCase {
                skip_every: 9,
                ..grouped(dtypes, layers, page, tokens)
            };
            cases.push(case.clone());
            cases.push(MlaWriteGroupedCase {
                shares_slots: true,
                check: CheckMode::Device,
                ..case
            });
        }
    }
    cases
}

/// vLLM's table for its gathers, and larger ones.
pub(crate) fn sweep_gathers() -> Vec<GatherCase> {
    let mut cases = Vec::new();
    for form in MlaForm::ALL {
        for by in GATHERS {
            for (page, seqs, rows) in [(16, 8, 512), (64, 3, 32_768 / 16 + 5), (64, 40, 71)] {
                cases.push(gather(form, by, page, seqs, rows));
            }
        }
    }
    cases
}

/// Blocks as models have them, few and many.
pub(crate) fn sweep_blocks() -> Vec<BlocksCase> {
    let sizes = [(16, 1024, 500, 200), (64, 576, 9000, 3000)];
    let each = |(page, row, num_blocks, count)| blocks(page, row, num_blocks, count);
    sizes.into_iter().flat_map(each).collect()
}

/// The MLA writes that peers were timed at.
pub(crate) fn bench_mla() -> Vec<MlaWriteCase> {
    let each = |form| [1, 64, 1024, 65_536].map(|tokens| mla(form, 64, tokens, 0));
    MlaForm::ALL.into_iter().flat_map(each).collect()
}

/// The gathers that peers were timed at.
pub(crate) fn bench_gathers() -> Vec<GatherCase> {
    let mut cases = Vec::new();
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
    cases
}

/// Blocks enough to be in no level-2 cache, and references enough to fill the compact cache.
pub(crate) fn bench_blocks() -> [BlocksCase; 3] {
    let [copy, ..] = blocks(64, 576, 4000, 2000);
    let [_, tables, slots, ..] = blocks(64, 576, 4000, 30_000);
    [copy, tables, slots]
}
