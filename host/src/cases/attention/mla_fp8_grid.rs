//! The cases over FP8 entries, in every named list.

use super::mla_fp8::{EntryCase, TopK};
use crate::cases::base::lens::Lens;
use crate::cases::base::options::LseForm;
use crate::ops::{CheckMode, EntryForm};
use crate::plan::SplitPolicy;

const FORMS: [EntryForm; 2] = [EntryForm::Fp8Ds, EntryForm::V4];

fn topk(topk: usize) -> TopK {
    TopK {
        topk,
        window: 0,
        skip_every: 0,
        has_lengths: false,
        by_table: false,
    }
}

fn with(
    form: EntryForm,
    heads: usize,
    lens: &[i32],
    change: impl FnOnce(&mut EntryCase),
) -> EntryCase {
    let mut case = EntryCase::of(form, heads, Lens::List(lens.to_vec()));
    case.block_size = 16;
    change(&mut case);
    case
}

/// Everything that a request can say, over both forms.
pub(crate) fn smoke() -> Vec<EntryCase> {
    let mut cases = Vec::new();
    let lens = [70, 0, 1, 33, 50];
    for form in FORMS {
        cases.push(with(form, 16, &lens, |_| {}));
        cases.push(with(form, 20, &lens, |case| {
            (case.query_len, case.block_size) = (3, 64);
            case.split_policy = SplitPolicy::Fixed(32);
            (case.sinks, case.check) = (true, CheckMode::Device);
            case.lse = LseForm::HeadsFirst;
        }));
        cases.push(with(form, 8, &lens, |case| {
            (case.topk, case.sinks) = (Some(topk(40)), true);
        }));
        cases.push(with(form, 17, &lens, |case| {
            case.topk = Some(TopK {
                skip_every: 3,
                has_lengths: true,
                by_table: true,
                ..topk(45)
            });
            (case.query_len, case.pad) = (2, 4);
        }));
        cases.push(with(form, 16, &lens, |case| {
            case.topk = Some(TopK {
                window: 24,
                skip_every: 5,
                ..topk(64)
            });
            (case.sinks, case.query_len) = (true, 2);
            case.split_policy = SplitPolicy::Fixed(32);
        }));
        cases.push(with(form, 5, &lens, |case| {
            case.topk = Some(TopK {
                window: 9,
                has_lengths: true,
                ..topk(20)
            });
            case.sinks = true;
        }));
    }
    let listed = cases.iter().filter(|case| {
        let topk = case.topk.as_ref();
        topk.is_some_and(|topk| topk.has_lengths)
    });
    let checked: Vec<EntryCase> = listed
        .map(|case| EntryCase {
            check: CheckMode::Device,
            ..case.clone()
        })
        .collect();
    cases.extend(checked);
    cases.push(with(EntryForm::Fp8Ds, 16, &lens, |case| {
        case.round_scales = false;
        case.topk = Some(topk(30));
    }));
    cases
}

/// Lengths around tiles and pages; lists longer than a thread block looks up at a time; more rows than it takes.
pub(crate) fn edges() -> Vec<EntryCase> {
    let mut cases = Vec::new();
    let lens = [15, 16, 17, 31, 32, 33, 63, 64, 65];
    for form in FORMS {
        cases.push(with(form, 3, &lens, |case| {
            case.split_policy = SplitPolicy::Fixed(32);
            case.query_len = 2;
        }));
        cases.push(with(form, 2, &lens, |case| case.topk = Some(topk(65))));
        // Every index but a few is skipped.
        cases.push(with(form, 4, &[40, 40], |case| {
            case.topk = Some(TopK {
                skip_every: 1,
                window: 3,
                ..topk(33)
            });
            case.sinks = true;
        }));
        cases.push(with(form, 1, &[1300], |case| {
            case.topk = Some(TopK {
                skip_every: 2,
                ..topk(1200)
            });
            case.split_policy = SplitPolicy::Fixed(4096);
        }));
        for heads in [33, 128] {
            cases.push(with(form, heads, &[0, 5, 33], |case| {
                (case.topk, case.sinks) = (Some(topk(33)), true);
            }));
        }
        // Rows that fill the tiles of warp groups, over one tile, two and more of them, odd numbers and even.
        let tiles = [63, 64, 65, 128, 191, 200, 256];
        for (heads, query_len, split) in [(24, 3, 4096), (64, 1, 128)] {
            cases.push(with(form, heads, &tiles, |case| {
                (case.query_len, case.sinks) = (query_len, true);
                case.split_policy = SplitPolicy::Fixed(split);
                // Queries that are not aligned to 16 bytes.
                case.pad = if query_len == 3 { 4 } else { 0 };
            }));
        }
        cases.push(with(form, 40, &tiles[4..], |case| {
            case.topk = Some(TopK {
                window: 70,
                skip_every: 3,
                has_lengths: true,
                ..topk(130)
            });
            (case.sinks, case.query_len) = (true, 2);
        }));
    }
    cases
}

/// Every kernel at sizes that people run.
pub(crate) fn sweep() -> Vec<EntryCase> {
    let mut cases = Vec::new();
    for form in FORMS {
        for heads in [8, 16, 20, 32, 64, 96, 128] {
            for (query_len, sinks) in [(1, false), (2, true), (4, false)] {
                let mut case = EntryCase::of(form, heads, Lens::Ragged(7, 5000));
                (case.query_len, case.sinks) = (query_len, sinks);
                cases.push(case.clone());
                case.topk = Some(topk(2048));
                cases.push(case.clone());
                case.topk = Some(TopK {
                    window: 128,
                    skip_every: 7,
                    has_lengths: true,
                    ..topk(512)
                });
                cases.push(case.clone());
                case.topk = Some(TopK {
                    by_table: true,
                    ..topk(1024)
                });
                case.round_scales = form == EntryForm::V4;
                cases.push(case);
            }
        }
        let mut long = EntryCase::of(form, 128, Lens::Uniform(1, 131_072));
        cases.push(long.clone());
        long.split_policy = SplitPolicy::BatchInvariant;
        long.topk = Some(topk(16_384));
        cases.push(long);
    }
    cases
}

/// The shapes that peers were timed at, and the dense ones beside them.
pub(crate) fn bench() -> Vec<EntryCase> {
    let mut cases = Vec::new();
    for (form, list) in [
        (EntryForm::Fp8Ds, Some(topk(2048))),
        (
            EntryForm::V4,
            Some(TopK {
                window: 128,
                ..topk(512)
            }),
        ),
        (EntryForm::Fp8Ds, None),
    ] {
        for heads in [128, 64] {
            for num_seqs in [1, 16, 64, 128] {
                let mut case = EntryCase::of(form, heads, Lens::Uniform(num_seqs, 8192));
                case.topk = list;
                case.lse = LseForm::Off;
                case.sinks = form == EntryForm::V4;
                cases.push(case);
            }
        }
    }
    cases
}
