//! The cases of special values, in every named list.

use super::cache_grids::{gather, mla, rotated};
use super::grids::{decode, write};
use super::{
    CacheWriteCase, Case, Causal, DecodeCase, EntryCase, Fill, GatherBy, Lens, LseForm, MlaForm,
    QueryLens, ScaleForm, TopK, UnifiedCase, mla_grids,
};
use crate::ops::{AlibiForm, EntryForm, RopeStyle};
use crate::plan::SplitPolicy;
use crate::tensor::Dtype;

use Dtype::{Bf16, F8E4m3, F8E5m2, F16, I8};

/// Dtypes of output, query and cache, and the scales, of every kind of kernel.
const FORMS: [(Dtype, Dtype, Dtype, ScaleForm); 9] = [
    (Bf16, Bf16, Bf16, ScaleForm::Tensor),
    (F16, F16, F16, ScaleForm::Tensor),
    (Bf16, Bf16, F8E4m3, ScaleForm::Tensor),
    (F16, F16, F8E4m3, ScaleForm::Head),
    (Bf16, Bf16, F8E5m2, ScaleForm::Tensor),
    (Bf16, F8E4m3, F8E4m3, ScaleForm::Head),
    (Bf16, F8E4m3, F8E5m2, ScaleForm::Tensor),
    (Bf16, Bf16, F8E4m3, ScaleForm::Token),
    (Bf16, Bf16, I8, ScaleForm::Token),
];

const FILLS: [Fill; 7] = [
    Fill::Zeros,
    Fill::Equal,
    Fill::Tiny,
    Fill::Huge,
    Fill::Mixed,
    Fill::Poison,
    Fill::NotFinite,
];

fn of(
    form: (Dtype, Dtype, Dtype, ScaleForm),
    fill: Fill,
    heads: (usize, usize),
    lens: Lens,
) -> DecodeCase {
    let (dtype, query, kv, scales) = form;
    let mut case = decode(dtype, heads, 64, 16, lens);
    (case.query_dtype, case.cache.dtype) = (query, kv);
    (case.scales, case.fill) = (scales, fill);
    case
}

/// What may be asked of scores, by turns.
fn options(case: &mut DecodeCase, turn: usize) {
    match turn % 5 {
        1 => case.scores.sliding_window = Some(20),
        2 => case.scores.softcap = Some(30.0),
        3 => (case.scores.sinks, case.split_policy) = (true, SplitPolicy::Fixed(32)),
        4 => case.scores.alibi = Some(AlibiForm::Linear),
        _ => {}
    }
}

fn decodes(fill: Fill, lens: impl Fn() -> Lens) -> Vec<Case> {
    let mut cases = Vec::new();
    for (at, form) in FORMS.into_iter().enumerate() {
        cases.push(of(form, fill, (6, 2), lens()));
        let mut case = of(form, fill, (9, 1), lens());
        options(&mut case, at + 1);
        cases.push(case);
    }
    cases.into_iter().map(Case::Decode).collect()
}

fn latent(fill: Fill, lens: impl Fn() -> Lens) -> Vec<Case> {
    let mut cases = Vec::new();
    for (dtype, query, kv, _) in FORMS {
        for (heads, query_len) in [(16, 1), (20, 3)] {
            if kv == I8 {
                continue;
            }
            let mut case = mla_grids::mla(dtype, heads, 16, lens());
            (case.query_dtype, case.cache.dtype) = (query, kv);
            (case.latent, case.fill) = (Some(query_len), fill);
            if !cases.contains(&case) {
                cases.push(case);
            }
        }
    }
    cases.into_iter().map(Case::Decode).collect()
}

fn entries(fill: Fill, lens: impl Fn() -> Lens) -> Vec<Case> {
    let mut cases = Vec::new();
    for form in [EntryForm::Fp8Ds, EntryForm::V4] {
        let mut case = EntryCase::of(form, 16, lens());
        (case.block_size, case.query_len, case.fill) = (16, 2, fill);
        cases.push(case.clone());
        (case.num_query_heads, case.query_len, case.sinks) = (9, 1, true);
        cases.push(case.clone());
        case.topk = Some(TopK {
            topk: 40,
            window: 20,
            skip_every: 5,
            has_lengths: true,
            by_table: false,
        });
        cases.push(case.clone());
        case.topk = Some(TopK {
            topk: 33,
            window: 0,
            skip_every: 3,
            has_lengths: false,
            by_table: true,
        });
        (case.lse, case.query_len) = (LseForm::HeadsFirst, 2);
        cases.push(case);
    }
    cases.into_iter().map(Case::DecodeEntries).collect()
}

fn unified(fill: Fill, lens: &[(usize, i32)]) -> Vec<Case> {
    let mut cases = Vec::new();
    for (at, form) in FORMS.into_iter().enumerate() {
        for (d, turn) in [(64, 0), (128, at + 1)] {
            let seq_lens = Lens::List(lens.iter().map(|&(_, len)| len).collect());
            let query_lens = QueryLens::List(lens.iter().map(|&(len, _)| len).collect());
            let mut base = of(form, fill, (6, 2), seq_lens);
            (base.cache.head_size, base.cache.head_size_v) = (d, d);
            options(&mut base, turn);
            let mut case = UnifiedCase::of(base, query_lens);
            match turn {
                3 | 6 => case.causal = Causal::Mixed,
                5 if form.0 == Bf16 => case.output_scale = Some(0.01),
                _ => {}
            }
            cases.push(case);
        }
    }
    cases.into_iter().map(Case::Unified).collect()
}

fn writes(fill: Fill) -> Vec<Case> {
    let mut cases = Vec::new();
    let with = |mut case: CacheWriteCase, kv, scales| {
        (case.cache.dtype, case.scales) = (kv, scales);
        (case.fill, case.skip_every) = (fill, 5);
        case
    };
    for (at, (_, _, kv, scales)) in FORMS.into_iter().enumerate() {
        let dtype = [Bf16, F16][at % 2];
        if kv.size() == 2 && fill != Fill::Poison {
            continue;
        }
        let kv = if kv.size() == 2 { dtype } else { kv };
        for d in [64, 46] {
            cases.push(with(write(dtype, 3, d, 16, 42), kv, scales));
        }
        // What is turned of NaN has no bits of its own.
        if scales != ScaleForm::Token && fill != Fill::NotFinite {
            let case = with(write(dtype, 2, 64, 16, 20), kv, scales);
            cases.push(rotated(case, RopeStyle::Neox, 32));
        }
    }
    let mut cases: Vec<Case> = cases.into_iter().map(Case::CacheWrite).collect();
    for form in MlaForm::ALL {
        if let Case::MlaWrite(mut case) = mla(form, 16, 42, 5) {
            case.fill = fill;
            cases.push(Case::MlaWrite(case));
        }
        for by in [GatherBy::Ragged, GatherBy::Slots] {
            if let Case::Gather(mut case) = gather(form, by, 16, 3, 37) {
                case.fill = fill;
                cases.push(Case::Gather(case));
            }
        }
    }
    let mut lines: Vec<String> = Vec::new();
    cases.retain(|case| {
        let line = case.to_string();
        let is_new = !lines.contains(&line);
        lines.push(line);
        is_new
    });
    cases
}

/// Every fill in every operation, small.
pub(super) fn smoke() -> Vec<Case> {
    let lens = || Lens::List(vec![70, 0, 1, 33]);
    let mut cases = Vec::new();
    for fill in FILLS {
        cases.extend(decodes(fill, lens));
        cases.extend(latent(fill, lens));
        cases.extend(entries(fill, lens));
        let lens = [(30, 75), (1, 40), (0, 30), (9, 9), (2, 0), (5, 70)];
        cases.extend(unified(fill, &lens));
        cases.extend(writes(fill));
    }
    cases
}

/// The same at sizes that people run.
pub(super) fn sweep() -> Vec<Case> {
    let mut cases = Vec::new();
    for fill in FILLS {
        cases.extend(decodes(fill, || Lens::Ragged(9, 3000)));
        cases.extend(latent(fill, || Lens::Ragged(7, 3000)));
        cases.extend(entries(fill, || Lens::Ragged(7, 3000)));
        let lens = [
            (1, 900),
            (700, 1500),
            (64, 64),
            (333, 333),
            (5, 2000),
            (0, 70),
        ];
        cases.extend(unified(fill, &lens));
    }
    cases
}
