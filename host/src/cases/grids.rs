//! The named lists of cases.

use super::{
    CacheShape, CacheWriteCase, Case, DecodeCase, Fill, Layout, Lens, LseForm, ScaleForm,
    ScoreCase, cache_grids, entry_grids, mla_grids, scaled_grids, scored_grids, special_grids,
    unified_grids,
};
use crate::ops::CheckMode;
use crate::plan::{SplitPolicy, variants};
use crate::tensor::Dtype;

/// A named list.
#[derive(Clone, Copy, Debug)]
pub struct Grid {
    /// Its name on the command line.
    pub name: &'static str,
    /// What it is for.
    pub about: &'static str,
    /// The cases.
    pub cases: fn() -> Vec<Case>,
}

/// All lists.
pub const GRIDS: [Grid; 4] = [
    Grid {
        name: "smoke",
        about: "one of everything, small enough for the emulator",
        cases: smoke,
    },
    Grid {
        name: "edges",
        about: "lengths and shapes at which a paged, tiled kernel goes wrong",
        cases: edges,
    },
    Grid {
        name: "sweep",
        about: "every supported shape at sizes people run; for a GPU",
        cases: sweep,
    },
    Grid {
        name: "bench",
        about: "the shapes that are timed",
        cases: bench,
    },
];

const DTYPES: [Dtype; 2] = [Dtype::Bf16, Dtype::F16];

/// The plainest decode case: the lists vary it.
pub(super) fn decode(
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
        check: CheckMode::Off,
        max_seq_len: None,
        latent: None,
        scores: ScoreCase::default(),
        fill: Fill::Plain,
    }
}

/// The plainest cache write.
pub(super) fn write(
    dtype: Dtype,
    heads: usize,
    head_size: usize,
    page: usize,
    num_tokens: usize,
) -> CacheWriteCase {
    CacheWriteCase {
        dtype,
        scales: ScaleForm::Tensor,
        rope: None,
        cache: CacheShape {
            dtype,
            num_kv_heads: heads,
            head_size,
            head_size_v: head_size,
            block_size: page,
            layout: Layout::Nhd,
        },
        num_tokens,
        extra_rows: 0,
        skip_every: 0,
        fused: false,
        check: CheckMode::Off,
        fill: Fill::Plain,
    }
}

/// Head sizes that decode was compiled for.
pub(super) fn head_sizes() -> impl Iterator<Item = (usize, usize)> {
    variants::decode_support()
        .into_iter()
        .map(|(d, dv)| (d as usize, dv as usize))
}

/// Lengths at which a paged, tiled kernel goes wrong.
pub fn edge_lens(block_size: u16, tiles: &[u16]) -> Vec<i32> {
    let mut lens = vec![-1, 0, 1];
    for &size in [block_size].iter().chain(tiles) {
        let size = i32::from(size);
        lens.extend([size - 1, size, size + 1]);
    }
    lens.sort_unstable();
    lens.dedup();
    lens
}

fn smoke() -> Vec<Case> {
    use Dtype::{Bf16, F16};
    let lens = || Lens::List(vec![70, 0, 1, 33]);
    let mut cases = Vec::new();
    for (d, dv) in head_sizes() {
        for dtype in DTYPES {
            let mut case = decode(dtype, (4, 2), d, 16, lens());
            case.cache.head_size_v = dv;
            cases.push(Case::Decode(case));
        }
    }
    for heads in [(2, 2), (5, 1), (6, 1), (8, 1), (12, 1), (16, 1), (32, 1)] {
        cases.push(Case::Decode(decode(Bf16, heads, 64, 16, lens())));
    }
    for page in [8, 24, 32, 64, 128] {
        cases.push(Case::Decode(decode(F16, (4, 1), 64, page, lens())));
    }
    for layout in Layout::ALL {
        let mut case = decode(Bf16, (8, 2), 128, 16, Lens::List(vec![100, 31]));
        case.cache.layout = layout;
        case.split_policy = SplitPolicy::Fixed(64);
        cases.push(Case::Decode(case));
    }
    let plain = || decode(Bf16, (8, 2), 64, 16, Lens::List(vec![200, 0, 129, 64]));
    cases.extend(
        [
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
        ]
        .map(Case::Decode),
    );
    for layout in Layout::ALL {
        let mut case = write(Bf16, 8, 64, 16, 42);
        case.cache.layout = layout;
        case.skip_every = 5;
        cases.push(Case::CacheWrite(case));
    }
    let plain = || write(F16, 4, 80, 8, 42);
    cases.extend(
        [
            plain(),
            CacheWriteCase {
                num_tokens: 0,
                ..plain()
            },
            CacheWriteCase {
                num_tokens: 1,
                ..plain()
            },
            CacheWriteCase {
                fused: true,
                extra_rows: 7,
                ..plain()
            },
            CacheWriteCase {
                check: CheckMode::Device,
                skip_every: 2,
                ..plain()
            },
            // Rows that are no multiple of 16 bytes.
            write(Bf16, 13, 46, 16, 42),
            CacheWriteCase {
                fused: true,
                skip_every: 3,
                ..write(Bf16, 3, 5, 5, 9)
            },
        ]
        .map(Case::CacheWrite),
    );
    let mut unequal = write(Bf16, 2, 192, 16, 20);
    unequal.cache.head_size_v = 128;
    cases.push(Case::CacheWrite(unequal));
    cases.extend(scaled_grids::smoke());
    cases.extend(scored_grids::smoke());
    cases.extend(mla_grids::smoke());
    cases.extend(entry_grids::smoke());
    cases.extend(unified_grids::smoke());
    cases.extend(cache_grids::smoke());
    cases.extend(special_grids::smoke());
    cases
}

fn edges() -> Vec<Case> {
    let mut cases = Vec::new();
    // A warp takes 16 tokens at a time, a thread block 32 or 64.
    for (at, (d, dv)) in head_sizes().enumerate() {
        for (dtype, page) in [(DTYPES[at % 2], 16), (DTYPES[(at + 1) % 2], 24)] {
            let lens = edge_lens(page, &[16, 32, 64, 128]);
            let mut case = decode(dtype, (2, 1), d, usize::from(page), Lens::List(lens));
            case.cache.head_size_v = dv;
            case.split_policy = SplitPolicy::Fixed(64);
            cases.push(Case::Decode(case));
        }
    }
    for page in [8, 32, 64, 128] {
        let lens = edge_lens(page, &[16, 64]);
        cases.push(Case::Decode(decode(
            Dtype::Bf16,
            (4, 1),
            64,
            usize::from(page),
            Lens::List(lens),
        )));
    }
    // The widest groups, and those that fill a head tile partly.
    for group in [1, 3, 7, 8, 9, 15, 16, 17, 31] {
        let lens = Lens::List(vec![0, 1, 65]);
        cases.push(Case::Decode(decode(
            Dtype::F16,
            (2 * group, 2),
            64,
            16,
            lens,
        )));
    }
    // Empty batches of lengths.
    for lens in [vec![0], vec![0, 0, -5], vec![1], vec![1; 9]] {
        cases.push(Case::Decode(decode(
            Dtype::Bf16,
            (4, 2),
            64,
            16,
            Lens::List(lens),
        )));
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
    cases.push(Case::Decode(invariant));
    for page in [1, 5, 16, 128] {
        for tokens in [1, 31, 129] {
            let mut case = write(Dtype::Bf16, 2, 64, page, tokens);
            case.skip_every = 4;
            cases.push(Case::CacheWrite(case));
        }
    }
    for (heads, d) in [(1, 1), (1, 8), (13, 46), (5, 40), (1, 256), (7, 12)] {
        cases.push(Case::CacheWrite(write(Dtype::F16, heads, d, 16, 17)));
    }
    cases.extend(scored_grids::edges());
    cases.extend(mla_grids::edges());
    cases.extend(entry_grids::edges());
    cases.extend(unified_grids::edges());
    cases
}

fn sweep() -> Vec<Case> {
    let mut cases = Vec::new();
    // vLLM's table for its decode kernel.
    for num_seqs in [3, 5] {
        for len in [1027, 1025] {
            for heads in [(32, 32), (32, 8)] {
                for (d, dv) in [(128, 128), (192, 128)] {
                    let mut case = decode(Dtype::Bf16, heads, d, 16, Lens::Uniform(num_seqs, len));
                    case.cache.head_size_v = dv;
                    cases.push(Case::Decode(case));
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
                cases.push(Case::Decode(case));
            }
            for group in [1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 24, 32] {
                let mut case = decode(dtype, (2 * group, 2), d, 16, Lens::Ragged(5, 2000));
                case.cache.head_size_v = dv;
                cases.push(Case::Decode(case));
            }
        }
    }
    for layout in Layout::ALL {
        for dtype in DTYPES {
            let mut case = decode(dtype, (32, 8), 128, 16, Lens::Ragged(17, 4096));
            case.cache.layout = layout;
            cases.push(Case::Decode(case.clone()));
            case.split_policy = SplitPolicy::Fixed(256);
            case.lse = LseForm::HeadsFirst;
            (case.pad_query, case.pad_out, case.pad_block_table) = (64, 32, 5);
            cases.push(Case::Decode(case));
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
            cases.push(Case::Decode(decode(
                Dtype::Bf16,
                (heads, kv_heads),
                d,
                16,
                lens,
            )));
        }
    }
    for policy in [
        SplitPolicy::BatchInvariant,
        SplitPolicy::Fixed(1),
        SplitPolicy::Fixed(500),
    ] {
        let mut case = decode(Dtype::Bf16, (32, 8), 128, 16, Lens::Ragged(6, 9000));
        case.split_policy = policy;
        case.check = CheckMode::Device;
        cases.push(Case::Decode(case));
    }
    // vLLM's table for its cache write, and rows that are no multiple of 16 bytes.
    for dtype in DTYPES {
        for layout in Layout::ALL {
            for (heads, d) in [(8, 64), (8, 80), (8, 256), (13, 46)] {
                for page in [8, 16, 32] {
                    let mut case = write(dtype, heads, d, page, 42);
                    case.cache.layout = layout;
                    case.fused = page == 16;
                    case.skip_every = 7;
                    cases.push(Case::CacheWrite(case));
                }
            }
        }
    }
    for tokens in [1, 64, 2048, 10_000] {
        let mut case = write(Dtype::Bf16, 8, 128, 16, tokens);
        case.check = CheckMode::Device;
        cases.push(Case::CacheWrite(case));
    }
    cases.extend(scaled_grids::sweep());
    cases.extend(scored_grids::sweep());
    cases.extend(mla_grids::sweep());
    cases.extend(entry_grids::sweep());
    cases.extend(unified_grids::sweep());
    cases.extend(cache_grids::sweep());
    cases.extend(special_grids::sweep());
    cases
}

fn bench() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut push = |heads, d, lens: Lens, longest: u32| {
        let mut case = decode(Dtype::Bf16, heads, d, 16, lens);
        case.max_seq_len = Some(longest);
        case.lse = LseForm::Off;
        cases.push(Case::Decode(case));
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
    cases.extend(scaled_grids::bench(&cases));
    cases.extend(mla_grids::bench());
    cases.extend(entry_grids::bench());
    for tokens in [1, 64, 512, 2048, 16_384, 65_536] {
        cases.push(Case::CacheWrite(write(Dtype::Bf16, 8, 128, 16, tokens)));
    }
    cases.extend(unified_grids::bench());
    cases.extend(cache_grids::bench());
    cases
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_reads_back_and_is_listed_once() {
        for grid in GRIDS {
            let cases = (grid.cases)();
            for case in &cases {
                assert_eq!(case.to_string().parse().as_ref(), Ok(case));
            }
            let mut lines: Vec<_> = cases.iter().map(Case::to_string).collect();
            lines.sort_unstable();
            for pair in lines.windows(2) {
                assert_ne!(pair[0], pair[1], "twice in {}", grid.name);
            }
        }
    }

    #[test]
    fn timed_shapes_have_the_peers_names_and_bytes() {
        let names: Vec<_> = bench().iter().map(Case::peer_name).collect();
        for name in [
            "gqa32_8_128 kv=bf16 pg=16 b=64 ctx=8192",
            "gqa32_8_128 kv=bf16 pg=16 b=64 ctx=8192 ragged",
            "mqa64_8_128 kv=bf16 pg=16 b=1 ctx=8192",
            "mha32_32_128 kv=bf16 pg=16 b=64 ctx=8192",
            "oss64_8_64 kv=bf16 pg=16 b=64 ctx=8192",
            "gemma16_8_256 kv=bf16 pg=16 b=1 ctx=8192",
            "write H=8 D=128 kv=bf16 n=65536",
            "write H=8 D=128 kv=fp8 n=65536",
            "write fp8_per_token_head n=65536",
            "mla write ds656 n=65536",
            "dsv4 insert v4_584 n=65536",
            "mla gather bf16 req=16 tok=98304",
            "dsv4 gather v4_584 req=64 len=1024",
            "dsv4 slot gather n=131072",
            "copy_blocks bf16 page=64 row=576 blocks=4000 count=2000",
            "compact_tables bf16 page=64 row=576 blocks=4000 count=30000",
        ] {
            assert!(names.iter().any(|other| other == name), "{name}");
        }
        let ragged = bench()
            .into_iter()
            .find(|case| case.to_string().contains("ragged"))
            .expect("a ragged case");
        for seed in [0, 1, 2] {
            let megabytes = ragged.unavoidable_bytes(seed) / 1_000_000;
            assert!((945..=949).contains(&megabytes), "{megabytes} MB");
        }
    }
}
