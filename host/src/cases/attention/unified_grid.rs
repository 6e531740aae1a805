//! The cases of unified attention, in every named list.

use super::decode_grid::decode;
use super::unified::{Causal, QueryLens, UnifiedCase};
use crate::cases::base::layout::Layout;
use crate::cases::base::lens::Lens;
use crate::cases::base::options::{LseForm, ScaleForm};
use crate::ops::{AlibiForm, CheckMode};
use crate::plan::{SplitPolicy, variants};
use crate::tensor::Dtype;

use Dtype::{Bf16, F8E4m3, F16};

/// A case of sequences with `(query_len, seq_len)` tokens.
fn unified(dtype: Dtype, heads: (usize, usize), d: usize, lens: &[(usize, i32)]) -> UnifiedCase {
    let seq_lens = Lens::List(lens.iter().map(|&(_, len)| len).collect());
    let query_lens = QueryLens::List(lens.iter().map(|&(len, _)| len).collect());
    UnifiedCase::of(decode(dtype, heads, d, 16, seq_lens), query_lens)
}

/// Every compiled kernel: dtype of the query, and what makes a case one for it.
fn kernels() -> impl Iterator<Item = (Dtype, impl Fn(&mut UnifiedCase))> {
    variants::prefill_support()
        .into_iter()
        .map(|(cache, d, dv)| {
            let kv = cache.dtype;
            let dtype = if kv.size() == 1 { Bf16 } else { kv };
            let scales = match cache {
                cache if cache.token_scales => ScaleForm::Token,
                cache if cache.dtype == F8E4m3 => ScaleForm::Head,
                _ => ScaleForm::Tensor,
            };
            let adapt = move |case: &mut UnifiedCase| {
                case.base.cache.dtype = kv;
                case.base.cache.head_size = d as usize;
                case.base.cache.head_size_v = dv as usize;
                case.base.scales = scales;
            };
            (dtype, adapt)
        })
}

/// A change to a case.
type Change = fn(&mut UnifiedCase);

/// Everything that a request can say, one by one.
const OPTIONS: [Change; 26] = [
    |_| {},
    |case| case.causal = Causal::Off,
    |case| case.causal = Causal::Mixed,
    |case| case.base.scores.sliding_window = Some(16),
    |case| (case.base.scores.sliding_window, case.causal) = (Some(20), Causal::Off),
    |case| (case.base.scores.sliding_window, case.causal) = (Some(20), Causal::Mixed),
    |case| case.base.scores.sliding_window = Some(1),
    |case| case.base.scores.softcap = Some(50.0),
    // Scores up to 1e4.
    |case| (case.base.scores.softcap, case.base.softmax_scale) = (Some(50.0), Some(150.0)),
    |case| {
        (
            case.base.scores.softcap,
            case.base.scores.sinks,
            case.base.scores.sliding_window,
        ) = (Some(2.0), true, Some(40))
    },
    |case| case.base.scores.alibi = Some(AlibiForm::Linear),
    |case| case.base.scores.alibi = Some(AlibiForm::Sqrt),
    |case| {
        (case.base.scores.alibi, case.base.scores.softcap) = (Some(AlibiForm::Linear), Some(30.0))
    },
    |case| case.base.scores.sinks = true,
    |case| case.output_scale = Some(0.01),
    |case| case.extra_tokens = 5,
    |case| case.base.lse = LseForm::HeadsFirst,
    |case| case.base.lse = LseForm::Off,
    |case| {
        (
            case.base.pad_query,
            case.base.pad_out,
            case.base.pad_block_table,
        ) = (6, 4, 3)
    },
    |case| case.base.check = CheckMode::Device,
    |case| case.base.max_seq_len = Some(60),
    |case| case.base.softmax_scale = Some(1.0),
    |case| case.base.split_policy = SplitPolicy::BatchInvariant,
    |case| case.base.split_policy = SplitPolicy::Fixed(1),
    |case| {
        (
            case.base.split_policy,
            case.base.scores.sinks,
            case.output_scale,
        ) = (SplitPolicy::Fixed(64), true, Some(0.01))
    },
    |case| {
        (
            case.base.split_policy,
            case.base.scores.sliding_window,
            case.causal,
        ) = (SplitPolicy::Fixed(64), Some(30), Causal::Mixed)
    },
];

pub(crate) fn smoke() -> Vec<UnifiedCase> {
    let mut cases = Vec::new();
    let small = [(3, 70), (2, 0), (1, 1), (40, 40), (0, 9), (7, 5)];
    for (dtype, adapt) in kernels() {
        let mut case = unified(dtype, (4, 2), 64, &small);
        adapt(&mut case);
        cases.push(case);
    }
    for change in OPTIONS {
        let mut case = unified(
            Bf16,
            (6, 2),
            64,
            &[(30, 75), (1, 40), (0, 3), (9, 9), (2, 0)],
        );
        change(&mut case);
        cases.push(case);
    }
    // The same over bytes, where scores pass through other scales.
    let formats = [
        (F8E4m3, ScaleForm::Tensor),
        (Dtype::F8E5m2, ScaleForm::Head),
        (F8E4m3, ScaleForm::Token),
        (Dtype::I8, ScaleForm::Token),
    ];
    for (at, change) in OPTIONS[..13].iter().enumerate() {
        let mut case = unified(F16, (10, 2), 64, &[(1, 50), (20, 33)]);
        (case.base.cache.dtype, case.base.scales) = formats[at % formats.len()];
        case.base.query_dtype = if at % 3 == 0 { F16 } else { F8E4m3 };
        change(&mut case);
        cases.push(case);
    }
    for heads in [(1, 1), (3, 3), (5, 1), (8, 1), (33, 1), (130, 1)] {
        cases.push(unified(F16, heads, 64, &[(5, 18), (1, 66), (11, 11)]));
    }
    for page in [8, 24, 64, 128] {
        let mut case = unified(Bf16, (4, 1), 64, &[(50, 150), (3, 130)]);
        case.base.cache.block_size = page;
        cases.push(case);
    }
    for layout in Layout::ALL {
        let mut case = unified(Bf16, (8, 2), 128, &[(20, 70), (1, 31)]);
        case.base.cache.layout = layout;
        cases.push(case);
    }
    // Decodes first: with and without the host's word, and nothing else.
    for decodes_first in [true, false] {
        let mut case = unified(
            Bf16,
            (4, 2),
            64,
            &[(1, 100), (1, 0), (1, 33), (12, 40), (1, 5)],
        );
        case.decodes_first = decodes_first;
        cases.push(case);
        let mut case = unified(Bf16, (4, 2), 64, &[(1, 100), (1, 0), (1, 33)]);
        case.decodes_first = decodes_first;
        cases.push(case);
    }
    // Decodes only, with sequences between that have no query token, and tokens after the last.
    for (at, change) in OPTIONS.into_iter().enumerate() {
        let lens = [(1, 100), (0, 20), (1, 0), (1, 133), (0, 0), (1, 5)];
        let mut case = unified(Bf16, (6, 2), 64, &lens);
        change(&mut case);
        case.max_query_len = Some(1);
        case.extra_tokens += at % 3;
        cases.push(case);
        let mut case = unified(F16, (6, 2), 64, &[(1, 100), (1, 33), (10, 133)]);
        change(&mut case);
        case.decodes_first = true;
        cases.push(case);
    }
    cases
}

/// Lengths around tiles and blocks.
pub(crate) fn edges() -> Vec<UnifiedCase> {
    let mut cases = Vec::new();
    let lens: [u16; 12] = [15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129];
    let with = |queries: fn(usize) -> usize| -> Vec<_> {
        lens.map(|len| (queries(len.into()), len.into())).to_vec()
    };
    // As many queries as keys, and one or a tile of them at the end.
    let (all, ones, some) = (with(|len| len), with(|_| 1), with(|len| len / 2));
    for (heads, lens) in [((2, 2), &all), ((4, 2), &some), ((1, 1), &ones)] {
        for sliding_window in [None, Some(32)] {
            let mut case = unified(Bf16, heads, 64, lens);
            case.base.scores.sliding_window = sliding_window;
            cases.push(case);
        }
    }
    // More sequences than lanes look for at once, most of them without query tokens.
    let many: Vec<_> = (0..70)
        .map(|at| (usize::from(at % 3 == 0), at % 7))
        .collect();
    cases.push(unified(F16, (2, 1), 64, &many));
    let empty: Vec<_> = (0..40).map(|at| (usize::from(at == 39), 3)).collect();
    cases.push(unified(F16, (2, 1), 64, &empty));
    cases.push(unified(F16, (2, 1), 64, &[(0, 5), (0, 0)]));
    // vLLM's table at a shorter context.
    for heads in [(4, 4), (8, 2), (5, 1)] {
        for (d, sliding_window, softcap) in [
            (128, None, None),
            (128, Some(64), Some(50.0)),
            (256, None, Some(50.0)),
            (256, Some(64), None),
        ] {
            let mut case = unified(Bf16, heads, d, &[(1, 132), (5, 18), (40, 90)]);
            (case.base.scores.sliding_window, case.base.scores.softcap) = (sliding_window, softcap);
            cases.push(case);
        }
    }
    // FP8 by FP8, with every option, added up in either way.
    for (at, change) in OPTIONS.into_iter().enumerate() {
        let d = if at % 2 == 0 { 64 } else { 128 };
        let mut case = unified(Bf16, (6, 2), d, &[(1, 50), (20, 133), (40, 40), (0, 9)]);
        (case.base.cache.dtype, case.base.query_dtype) = (F8E4m3, F8E4m3);
        case.base.scales = [ScaleForm::Tensor, ScaleForm::Head][at / 2 % 2];
        case.f32_scores = at % 4 == 3;
        change(&mut case);
        cases.push(case);
    }
    // Heads of 256, with every option, over every cache whose scales are not its tokens'.
    for (at, change) in OPTIONS.into_iter().enumerate() {
        let dtype = [Bf16, F16][at % 2];
        let kv = [dtype, F8E4m3, dtype, Dtype::F8E5m2][at / 2 % 4];
        let mut case = unified(dtype, (6, 2), 256, &[(1, 50), (20, 133), (70, 200), (0, 9)]);
        case.base.cache.dtype = kv;
        if kv.size() == 1 {
            case.base.query_dtype = [dtype, F8E4m3][at / 4 % 2];
            case.base.scales = [ScaleForm::Tensor, ScaleForm::Head][at / 8 % 2];
        }
        change(&mut case);
        cases.push(case);
    }
    // Splits that begin where windows do not.
    for sliding_window in [None, Some(64), Some(65), Some(100)] {
        let mut case = unified(Bf16, (4, 2), 64, &[(70, 320), (1, 300), (129, 129), (2, 1)]);
        case.base.scores.sliding_window = sliding_window;
        case.base.split_policy = SplitPolicy::Fixed(64);
        cases.push(case);
    }
    // Speculative decoding.
    for query_len in [2, 4, 6, 8] {
        let lens = [(query_len, 128), (query_len, 129), (0, 0), (query_len, 150)];
        cases.push(unified(Bf16, (8, 2), 64, &lens));
    }
    cases
}

/// vLLM's table, every kernel at sizes people run, and everything a request can say.
pub(crate) fn sweep() -> Vec<UnifiedCase> {
    let mut cases = Vec::new();
    for lens in [
        [(1, 1328), (5, 18), (129, 463)],
        [(1, 523), (1, 37), (1, 2011)],
    ] {
        for heads in [(4, 4), (8, 2), (5, 1)] {
            for d in [128, 256] {
                for sliding_window in [None, Some(64), Some(128), Some(256)] {
                    for softcap in [None, Some(50.0)] {
                        for (query, kv) in [(Bf16, Bf16), (Bf16, F8E4m3), (F8E4m3, F8E4m3)] {
                            let mut case = unified(Bf16, heads, d, &lens);
                            (case.base.query_dtype, case.base.cache.dtype) = (query, kv);
                            (case.base.scores.sliding_window, case.base.scores.softcap) =
                                (sliding_window, softcap);
                            cases.push(case);
                        }
                    }
                }
            }
        }
    }
    let lens = [
        (1, 900),
        (700, 1500),
        (0, 70),
        (64, 64),
        (1, 0),
        (333, 333),
        (5, 2000),
    ];
    for (dtype, adapt) in kernels() {
        for heads in [(4, 4), (8, 2), (10, 2), (16, 1)] {
            for page in [8, 16, 64] {
                let mut case = unified(dtype, heads, 64, &lens);
                case.base.cache.block_size = page;
                adapt(&mut case);
                cases.push(case);
            }
        }
        for change in &OPTIONS[1..13] {
            let mut case = unified(dtype, (12, 2), 64, &lens);
            adapt(&mut case);
            change(&mut case);
            case.base.scores.sliding_window =
                case.base.scores.sliding_window.map(|window| window * 13);
            cases.push(case);
        }
    }
    for query_len in [2, 4, 6, 8, 16] {
        let lens = [
            (query_len, 128),
            (query_len, 129),
            (0, 0),
            (query_len, 4000),
        ];
        let mut case = unified(Bf16, (32, 8), 128, &lens);
        case.base.cache.block_size = 128;
        cases.push(case);
    }
    for layout in Layout::ALL {
        let mut case = unified(Bf16, (32, 8), 128, &lens);
        case.base.cache.layout = layout;
        cases.push(case);
    }
    let mut many = unified(F16, (8, 2), 128, &[(1, 1); 533]);
    many.output_scale = Some(0.5);
    cases.push(many.clone());
    many.query_lens = QueryLens::All;
    many.base.lens = Lens::Uniform(60, 533);
    cases.push(many);
    cases
}

/// The shapes that peers were measured at.
pub(crate) fn bench() -> Vec<UnifiedCase> {
    let mut cases = Vec::new();
    let mixed = |chunk: (usize, i32)| -> Vec<(usize, i32)> {
        let decodes = std::iter::repeat_n((1, 4096), 32);
        decodes.chain([chunk]).collect()
    };
    let lists = [
        vec![(2048, 2048)],
        vec![(2048, 2048 + 8192)],
        vec![(8192, 8192)],
        mixed((512, 512)),
        mixed((512, 512 + 4096)),
    ];
    let timed = |mut case: UnifiedCase, longest: i32| {
        case.base.max_seq_len = u32::try_from(longest).ok();
        case.base.lse = LseForm::Off;
        case.decodes_first = true;
        case
    };
    for (query, kv) in [(Bf16, Bf16), (Bf16, F8E4m3), (F8E4m3, F8E4m3)] {
        for (heads, d) in [((32, 8), 128), ((64, 8), 64), ((16, 8), 256)] {
            for lens in &lists {
                let longest = lens.iter().map(|&(_, len)| len).max().unwrap_or(0);
                let mut case = unified(Bf16, heads, d, lens);
                (case.base.query_dtype, case.base.cache.dtype) = (query, kv);
                cases.push(timed(case, longest));
            }
        }
    }
    // Decodes with a window and sinks, and with a softcap.
    for num_seqs in [1, 64] {
        let lens = Lens::Uniform(num_seqs, 8192);
        let base = decode(Bf16, (64, 8), 64, 16, lens.clone());
        let mut case = UnifiedCase::of(base, QueryLens::Each(1));
        (case.base.scores.sliding_window, case.base.scores.sinks) = (Some(128), true);
        cases.push(timed(case, 8192));
        let base = decode(Bf16, (16, 8), 256, 16, lens);
        let mut case = UnifiedCase::of(base, QueryLens::Each(1));
        case.base.scores.softcap = Some(50.0);
        cases.push(timed(case, 8192));
    }
    cases
}
