//! The cases of decode with a window, a softcap, ALiBi or sinks, in every named list.

use super::decode::DecodeCase;
use super::decode_grid::{decode, head_sizes};
use super::score_mods::ScoreCase;
use crate::cases::base::lens::Lens;
use crate::cases::base::options::{LseForm, ScaleForm};
use crate::ops::{AlibiForm, CheckMode};
use crate::plan::SplitPolicy;
use crate::tensor::Dtype;

use Dtype::{Bf16, F8E4m3, F16};

/// Everything that a request can say of its scores; windows may be made longer.
fn scores(longer: u32) -> Vec<ScoreCase> {
    let plain = ScoreCase::default();
    let window = |keys| ScoreCase {
        sliding_window: Some(keys * longer),
        ..plain
    };
    let softcap = |cap| ScoreCase {
        softcap: Some(cap),
        ..plain
    };
    let alibi = |form| ScoreCase {
        alibi: Some(form),
        ..plain
    };
    let sinks = ScoreCase {
        sinks: true,
        ..plain
    };
    vec![
        window(16),
        window(1),
        window(37),
        softcap(50.0),
        alibi(AlibiForm::Linear),
        alibi(AlibiForm::Sqrt),
        sinks,
        ScoreCase {
            softcap: Some(2.0),
            alibi: Some(AlibiForm::Linear),
            ..sinks
        },
        ScoreCase {
            sinks: true,
            ..window(64)
        },
        ScoreCase {
            sinks: true,
            softcap: Some(30.0),
            alibi: Some(AlibiForm::Sqrt),
            ..window(41)
        },
    ]
}

/// Every kind of cache: query, cache, scales.
const FORMATS: [(Dtype, Dtype, ScaleForm); 6] = [
    (Bf16, Bf16, ScaleForm::Tensor),
    (F16, F16, ScaleForm::Tensor),
    (Bf16, F8E4m3, ScaleForm::Head),
    (F16, Dtype::F8E5m2, ScaleForm::Tensor),
    (Bf16, F8E4m3, ScaleForm::Token),
    (F16, Dtype::I8, ScaleForm::Token),
];

/// A case over a cache of format `format` of [`FORMATS`].
fn over(format: usize, heads: (usize, usize), (d, dv): (usize, usize), lens: Lens) -> DecodeCase {
    let (dtype, kv, scales) = FORMATS[format % FORMATS.len()];
    let mut case = decode(dtype, heads, d, 16, lens);
    (case.cache.dtype, case.cache.head_size_v, case.scales) = (kv, dv, scales);
    case
}

pub(crate) fn smoke() -> Vec<DecodeCase> {
    let mut cases = Vec::new();
    // Every compiled kernel, with everything at once.
    for format in 0..FORMATS.len() {
        for sizes in head_sizes() {
            let mut case = over(format, (4, 2), sizes, Lens::List(vec![70, 0, 1, 33]));
            case.scores = scores(1)[9];
            cases.push(case);
        }
    }
    // Each option by itself, in one split and in several.
    for (at, scores) in scores(1).into_iter().enumerate() {
        for split_policy in [SplitPolicy::Auto, SplitPolicy::Fixed(64)] {
            let lens = Lens::List(vec![200, 0, 129, 16, 1]);
            let mut case = over(at, (6, 2), (64, 64), lens);
            if case.cache.dtype.size() == 1 && at % 2 == 0 {
                case.query_dtype = F8E4m3;
            }
            (case.scores, case.split_policy) = (scores, split_policy);
            cases.push(case);
        }
    }
    // Scores up to 1e4 under a cap; groups of more heads than a tile; strides, checks and bounds.
    let plain = || {
        let mut case = over(0, (24, 2), (64, 64), Lens::List(vec![90, 141, 64]));
        case.scores = scores(1)[9];
        case
    };
    cases.extend([
        DecodeCase {
            scores: scores(1)[3],
            softmax_scale: Some(150.0),
            ..plain()
        },
        DecodeCase {
            pad_query: 6,
            pad_out: 4,
            pad_block_table: 3,
            lse: LseForm::HeadsFirst,
            ..plain()
        },
        DecodeCase {
            check: CheckMode::Device,
            lse: LseForm::Off,
            ..plain()
        },
        DecodeCase {
            max_seq_len: Some(100),
            ..plain()
        },
        DecodeCase {
            split_policy: SplitPolicy::BatchInvariant,
            ..plain()
        },
    ]);
    cases
}

/// Windows that begin anywhere in a tile, a block or a split.
pub(crate) fn edges() -> Vec<DecodeCase> {
    let mut cases = Vec::new();
    let lens: Vec<i32> = (120..=136).chain([1, 7, 8, 9, 63, 64, 65, 300]).collect();
    for (at, keys) in [1, 7, 8, 9, 15, 16, 17, 63, 64, 65, 128]
        .into_iter()
        .enumerate()
    {
        for split_policy in [SplitPolicy::Auto, SplitPolicy::Fixed(64)] {
            let mut case = over(at, (2, 1), (64, 64), Lens::List(lens.clone()));
            case.cache.block_size = [16, 8, 24][at % 3];
            case.split_policy = split_policy;
            (case.scores.sliding_window, case.scores.sinks) = (Some(keys), at % 2 == 0);
            cases.push(case);
        }
    }
    cases
}

/// Every compiled kernel and every option at sizes people run.
pub(crate) fn sweep() -> Vec<DecodeCase> {
    let mut cases = Vec::new();
    for format in 0..FORMATS.len() {
        for sizes in head_sizes() {
            for (heads, scores) in [((8, 8), 9), ((16, 4), 8), ((40, 2), 7)] {
                let mut case = over(format, heads, sizes, Lens::Ragged(9, 3000));
                case.scores = self::scores(13)[scores];
                cases.push(case);
            }
        }
        for scores in scores(13) {
            for split_policy in [SplitPolicy::Auto, SplitPolicy::Fixed(100)] {
                let mut case = over(format, (16, 2), (128, 128), Lens::Ragged(12, 5000));
                (case.scores, case.split_policy) = (scores, split_policy);
                cases.push(case);
            }
        }
    }
    // Models' heads: a short window with sinks, a long one, a softcap.
    for ((heads, d), scores) in [((64, 8), 64), ((32, 16), 128), ((16, 8), 256)]
        .into_iter()
        .zip([8, 0, 3].map(|at| scores(64)[at]))
    {
        for lens in [Lens::Uniform(1, 30_000), Lens::Ragged(64, 9000)] {
            let mut case = over(0, heads, (d, d), lens);
            case.scores = scores;
            cases.push(case);
        }
    }
    cases
}
