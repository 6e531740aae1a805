//! The cases of decode over 16-bit caches, in every named list.

use super::decode::DecodeCase;
use super::score_mods::ScoreCase;
use crate::cases::base::fill::Fill;
use crate::cases::base::layout::{CacheShape, Layout};
use crate::cases::base::lens::Lens;
use crate::cases::base::options::{LseForm, ScaleForm};
use crate::ops::CheckMode;
use crate::plan::{SplitPolicy, variants};
use crate::tensor::Dtype;

const DTYPES: [Dtype; 2] = [Dtype::Bf16, Dtype::F16];

/// The plainest decode case: the lists vary it.
pub(crate) fn decode(
    dtype: Dtype,
    heads: (usize, usize),
    head_size: usize,
    page: usize,
    lens: Lens,
) -> DecodeCase {
    DecodeCase {
        dtype,
        query_dtype: dtype,
        num_query_heads: heads.0,
        cache: CacheShape {
            dtype,
            num_kv_heads: heads.1,
            head_size,
            head_size_v: head_size,
            block_size: page,
            layout: Layout::Nhd,
        },
        lens,
        pad_query: 0,
        pad_out: 0,
        pad_block_table: 0,
        lse: LseForm::On,
        softmax_scale: None,
        scales: ScaleForm::Tensor,
        split_policy: SplitPolicy::Auto,
        schedule_once: false,
        check: CheckMode::Off,
        max_seq_len: None,
        latent: None,
        scores: ScoreCase::default(),
        fill: Fill::Plain,
    }
}

/// Head sizes that decode was compiled for.
pub(crate) fn head_sizes() -> impl Iterator<Item = (usize, usize)> {
    variants::decode_support()
        .into_iter()
        .map(|(d, dv)| (d as usize, dv as usize))
}

/// Lengths at which a paged, tiled kernel goes wrong.
pub(crate) fn edge_lens(block_size: u16, tiles: &[u16]) -> Vec<i32> {
    let mut lens = vec![-1, 0, 1];
    for &size in [block_size].iter().chain(tiles) {
        let size = i32::from(size);
        lens.extend([size - 1, size, size + 1]);
    }
    lens.sort_unstable();
    lens.dedup();
    lens
}

/// Every head size, group, page, layout and option, small.
pub(crate) fn smoke() -> Vec<DecodeCase> {
    use Dtype::{Bf16, F16};
    let lens = || Lens::List(vec![70, 0, 1, 33]);
    let mut cases = Vec::new();
    for (d, dv) in head_sizes() {
        for dtype in DTYPES {
            let mut case = decode(dtype, (4, 2), d, 16, lens());
            case.cache.head_size_v = dv;
            cases.push(case);
        }
    }
    for heads in [(2, 2), (5, 1), (6, 1), (8, 1), (12, 1), (16, 1), (32, 1)] {
        cases.push(decode(Bf16, heads, 64, 16, lens()));
    }
    for page in [8, 24, 32, 64, 128] {
        cases.push(decode(F16, (4, 1), 64, page, lens()));
    }
    for layout in Layout::ALL {
        let mut case = decode(Bf16, (8, 2), 128, 16, Lens::List(vec![100, 31]));
        case.cache.layout = layout;
        case.split_policy = SplitPolicy::Fixed(64);
        cases.push(case);
    }
    let plain = || decode(Bf16, (8, 2), 64, 16, Lens::List(vec![200, 0, 129, 64]));
    cases.extend([
        DecodeCase {
            pad_query: 6,
            pad_out: 4,
            pad_block_table: 3,
            ..plain()
        },
        DecodeCase {
            lse: LseForm::Off,
            ..plain()
        },
        DecodeCase {
            lse: LseForm::HeadsFirst,
            split_policy: SplitPolicy::Fixed(64),
            ..plain()
        },
        DecodeCase {
            softmax_scale: Some(1.0),
            ..plain()
        },
        DecodeCase {
            softmax_scale: Some(0.01),
            ..plain()
        },
        DecodeCase {
            split_policy: SplitPolicy::BatchInvariant,
            ..plain()
        },
        DecodeCase {
            split_policy: SplitPolicy::Fixed(1),
            ..plain()
        },
        DecodeCase {
            check: CheckMode::Device,
            ..plain()
        },
        DecodeCase {
            max_seq_len: Some(200),
            ..plain()
        },
        DecodeCase {
            max_seq_len: Some(150),
            ..plain()
        },
        DecodeCase {
            split_policy: SplitPolicy::Scheduled,
            ..plain()
        },
        DecodeCase {
            split_policy: SplitPolicy::Scheduled,
            schedule_once: true,
            max_seq_len: Some(150),
            ..plain()
        },
        DecodeCase {
            split_policy: SplitPolicy::Scheduled,
            check: CheckMode::Device,
            max_seq_len: Some(1000),
            ..plain()
        },
    ]);
    cases
}

/// Lengths at which a paged, tiled kernel goes wrong, and the widest groups.
pub(crate) fn edges() -> Vec<DecodeCase> {
    let mut cases = Vec::new();
    // A warp takes 16 tokens at a time, a thread block 32 or 64.
    for (at, (d, dv)) in head_sizes().enumerate() {
        for (dtype, page) in [(DTYPES[at % 2], 16), (DTYPES[(at + 1) % 2], 24)] {
            let lens = edge_lens(page, &[16, 32, 64, 128]);
            let mut case = decode(dtype, (2, 1), d, usize::from(page), Lens::List(lens));
            case.cache.head_size_v = dv;
            case.split_policy = SplitPolicy::Fixed(64);
            cases.push(case);
        }
    }
    for page in [8, 32, 64, 128] {
        let lens = edge_lens(page, &[16, 64]);
        cases.push(decode(
            Dtype::Bf16,
            (4, 1),
            64,
            usize::from(page),
            Lens::List(lens),
        ));
    }
    // The widest groups, and those that fill a head tile partly.
    for group in [1, 3, 7, 8, 9, 15, 16, 17, 31] {
        let lens = Lens::List(vec![0, 1, 65]);
        cases.push(decode(Dtype::F16, (2 * group, 2), 64, 16, lens));
    }
    // Empty batches of lengths.
    for lens in [vec![0], vec![0, 0, -5], vec![1], vec![1; 9]] {
        cases.push(decode(Dtype::Bf16, (4, 2), 64, 16, Lens::List(lens)));
    }
    // Around the batch-invariant split, whose length is the same for every batch.
    let mut invariant = decode(
        Dtype::Bf16,
        (2, 1),
        64,
        16,
        Lens::List(vec![1023, 1024, 1025]),
    );
    invariant.split_policy = SplitPolicy::BatchInvariant;
    cases.push(invariant);
    // Runs that end anywhere, more sequences than runs, and more than a thread block has threads.
    for lens in [
        Lens::Ragged(7, 700),
        Lens::Zipf(20, 2000),
        Lens::OneLong(9, 16, 1500),
        Lens::Uniform(16, 64),
        Lens::Ragged(600, 20),
        Lens::List(vec![0; 4]),
        Lens::List(vec![0, 0, 900, -3, 0, 1]),
    ] {
        let mut case = decode(Dtype::Bf16, (4, 2), 64, 16, lens);
        case.split_policy = SplitPolicy::Scheduled;
        cases.push(case);
    }
    cases
}

/// vLLM's table for its decode kernel, every compiled shape, and models' heads at long contexts.
pub(crate) fn sweep() -> Vec<DecodeCase> {
    let mut cases = Vec::new();
    // vLLM's table for its decode kernel.
    for num_seqs in [3, 5] {
        for len in [1027, 1025] {
            for heads in [(32, 32), (32, 8)] {
                for (d, dv) in [(128, 128), (192, 128)] {
                    let mut case = decode(Dtype::Bf16, heads, d, 16, Lens::Uniform(num_seqs, len));
                    case.cache.head_size_v = dv;
                    cases.push(case);
                }
            }
        }
    }
    // Every compiled shape, at every page size and at every kind of group.
    for (d, dv) in head_sizes() {
        for dtype in DTYPES {
            for page in [8, 16, 32, 64, 128] {
                let mut case = decode(dtype, (16, 4), d, page, Lens::Ragged(9, 3000));
                case.cache.head_size_v = dv;
                cases.push(case);
            }
            for group in [1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 24, 32] {
                let mut case = decode(dtype, (2 * group, 2), d, 16, Lens::Ragged(5, 2000));
                case.cache.head_size_v = dv;
                cases.push(case);
            }
        }
    }
    for layout in Layout::ALL {
        for dtype in DTYPES {
            let mut case = decode(dtype, (32, 8), 128, 16, Lens::Ragged(17, 4096));
            case.cache.layout = layout;
            cases.push(case.clone());
            case.split_policy = SplitPolicy::Fixed(256);
            case.lse = LseForm::HeadsFirst;
            (case.pad_query, case.pad_out, case.pad_block_table) = (64, 32, 5);
            cases.push(case);
        }
    }
    // Models' heads at long contexts.
    let models = [
        (32, 8, 128),
        (64, 8, 128),
        (32, 32, 128),
        (64, 8, 64),
        (16, 8, 256),
        (40, 8, 128),
        (28, 4, 128),
    ];
    for (heads, kv_heads, d) in models {
        for lens in [
            Lens::Uniform(1, 32_768),
            Lens::Ragged(4, 32_768),
            Lens::Ragged(64, 2048),
            Lens::Uniform(200, 100),
        ] {
            cases.push(decode(Dtype::Bf16, (heads, kv_heads), d, 16, lens));
        }
    }
    for policy in [
        SplitPolicy::BatchInvariant,
        SplitPolicy::Fixed(1),
        SplitPolicy::Fixed(500),
        SplitPolicy::Scheduled,
    ] {
        let mut case = decode(Dtype::Bf16, (32, 8), 128, 16, Lens::Ragged(6, 9000));
        case.split_policy = policy;
        case.check = CheckMode::Device;
        cases.push(case);
    }
    for dtype in DTYPES {
        for lens in unequal() {
            let mut case = decode(dtype, (32, 8), 128, 16, lens);
            case.split_policy = SplitPolicy::Scheduled;
            cases.push(case);
        }
    }
    cases
}

/// Batches of unequal lengths that peers were timed at.
pub(crate) fn unequal() -> [Lens; 3] {
    [
        Lens::RaggedMean(64, 8192, 4128),
        Lens::Zipf(64, 131_072),
        Lens::OneLong(64, 1024, 131_072),
    ]
}

/// Those, and batches of equal ones, for a plan that knows no more than that a sequence has at most 131,072 tokens.
pub(crate) fn scheduled() -> impl Iterator<Item = Lens> {
    let batches = [
        (1, 1024),
        (1, 8192),
        (8, 8192),
        (64, 1024),
        (64, 8192),
        (128, 1024),
    ];
    let equal = batches.map(|(num_seqs, len)| Lens::Uniform(num_seqs, len));
    equal.into_iter().chain(unequal())
}

/// The shapes that peers were timed at.
pub(crate) fn bench() -> Vec<DecodeCase> {
    let mut cases = Vec::new();
    let mut push = |heads, d, lens: Lens, longest: u32| {
        let mut case = decode(Dtype::Bf16, heads, d, 16, lens);
        case.max_seq_len = Some(longest);
        case.lse = LseForm::Off;
        cases.push(case);
    };
    for num_seqs in [1, 8, 64, 128] {
        for len in [1024, 8192, 32_768] {
            push((32, 8), 128, Lens::Uniform(num_seqs, len as usize), len);
        }
    }
    push((32, 8), 128, Lens::Uniform(1, 131_072), 131_072);
    push((32, 8), 128, Lens::RaggedMean(64, 8192, 3610), 8192);
    for (heads, d) in [
        ((64, 8), 128),
        ((32, 32), 128),
        ((64, 8), 64),
        ((16, 8), 256),
    ] {
        for num_seqs in [1, 64] {
            push(heads, d, Lens::Uniform(num_seqs, 8192), 8192);
        }
    }
    for lens in scheduled() {
        for schedule_once in [true, false] {
            let mut case = decode(Dtype::Bf16, (32, 8), 128, 16, lens.clone());
            case.lse = LseForm::Off;
            case.max_seq_len = Some(131_072);
            (case.split_policy, case.schedule_once) = (SplitPolicy::Scheduled, schedule_once);
            cases.push(case);
        }
    }
    cases
}
