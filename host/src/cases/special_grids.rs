//! The cases of special values, in every named list.

use super::cache_grids::{gather, mla, rotated};
use super::grids::{decode, write};
use super::{CacheWriteCase, Case, DecodeCase, Fill, GatherBy, Lens, MlaForm, ScaleForm};
use crate::ops::{AlibiForm, RopeStyle};
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

/// Every fill of what is stored and gathered, and poison around a decode step, small.
pub(super) fn smoke() -> Vec<Case> {
    let mut cases = decodes(Fill::Poison, || Lens::List(vec![70, 0, 1, 33]));
    for fill in FILLS {
        cases.extend(writes(fill));
    }
    cases
}

/// The same at sizes that people run.
pub(super) fn sweep() -> Vec<Case> {
    decodes(Fill::Poison, || Lens::Ragged(9, 3000))
}
