//! The cases of attention with special values.

use super::decode::DecodeCase;
use super::decode_grid::decode;
use super::mla_fp8::{EntryCase, TopK};
use super::mla_grid::mla;
use super::unified::{Causal, QueryLens, UnifiedCase};
use crate::cases::base::fill::Fill;
use crate::cases::base::lens::Lens;
use crate::cases::base::options::{LseForm, ScaleForm};
use crate::ops::{AlibiForm, EntryForm};
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

/// Decode over every kind of cache.
pub(crate) fn decodes(fill: Fill, lens: &Lens) -> Vec<DecodeCase> {
    let mut cases = Vec::new();
    for (at, form) in FORMS.into_iter().enumerate() {
        cases.push(of(form, fill, (6, 2), lens.clone()));
        let mut case = of(form, fill, (9, 1), lens.clone());
        options(&mut case, at + 1);
        cases.push(case);
    }
    cases
}

/// Decode over latent caches.
pub(crate) fn latent(fill: Fill, lens: &Lens) -> Vec<DecodeCase> {
    let mut cases = Vec::new();
    for (dtype, query, kv, _) in FORMS {
        for (heads, query_len) in [(16, 1), (20, 3)] {
            if kv == I8 {
                continue;
            }
            let mut case = mla(dtype, heads, 16, lens.clone());
            (case.query_dtype, case.cache.dtype) = (query, kv);
            (case.latent, case.fill) = (Some(query_len), fill);
            if !cases.contains(&case) {
                cases.push(case);
            }
        }
    }
    cases
}

/// Decode over FP8 entries, all of them and by lists.
pub(crate) fn entries(fill: Fill, lens: &Lens) -> Vec<EntryCase> {
    let mut cases = Vec::new();
    for form in [EntryForm::Fp8Ds, EntryForm::V4] {
        let mut case = EntryCase::of(form, 16, lens.clone());
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
    cases
}

/// Unified attention over every kind of cache; `(query_len, seq_len)` of each sequence.
pub(crate) fn unified(fill: Fill, lens: &[(usize, i32)]) -> Vec<UnifiedCase> {
    let mut cases = Vec::new();
    for (at, form) in FORMS.into_iter().enumerate() {
        for (d, turn) in [(64, 0), (128, at + 1), (256, at + 2)] {
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
    cases
}
