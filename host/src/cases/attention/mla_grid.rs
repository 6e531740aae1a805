//! The cases over latent (MLA) caches, in every named list.

use super::decode::DecodeCase;
use super::decode_grid::{decode, edge_lens, scheduled, unequal};
use crate::cases::base::fill::Fill;
use crate::cases::base::layout::Layout;
use crate::cases::base::lens::Lens;
use crate::cases::base::mla_entry::{LATENTS, ROPE, SOFTMAX_SCALE};
use crate::cases::base::options::LseForm;
use crate::ops::CheckMode;
use crate::plan::{SplitPolicy, variants};
use crate::tensor::Dtype;

/// Element types of the cache under a query of `dtype`.
fn caches(dtype: Dtype) -> [Dtype; 3] {
    [dtype, Dtype::F8E4m3, Dtype::F8E5m2]
}

/// Rows of 576 values, 512 of them the value, at the scale of a model with heads of 128 + 64.
pub(crate) fn mla(dtype: Dtype, heads: usize, page: usize, lens: Lens) -> DecodeCase {
    let mut case = decode(dtype, (heads, 1), LATENTS + ROPE, page, lens);
    case.cache.head_size_v = LATENTS;
    case.softmax_scale = Some(SOFTMAX_SCALE);
    case.latent = Some(1);
    case
}

fn with(mut case: DecodeCase, change: impl FnOnce(&mut DecodeCase)) -> DecodeCase {
    change(&mut case);
    case
}

/// Every row size and element type, few heads and many, one query token and several.
pub(crate) fn smoke() -> Vec<DecodeCase> {
    let mut cases = Vec::new();
    for (d, dv) in variants::decode_mla_support() {
        for dtype in [Dtype::Bf16, Dtype::F16] {
            for kv in caches(dtype) {
                for (heads, q_len) in [(16, 1), (40, 1), (20, 2)] {
                    let lens = Lens::List(vec![70, 0, 1, 33]);
                    cases.push(with(mla(dtype, heads, 16, lens), |case| {
                        (case.cache.head_size, case.cache.head_size_v) = (d as usize, dv as usize);
                        case.cache.dtype = kv;
                        case.latent = Some(q_len);
                    }));
                }
            }
        }
    }
    let plain = |heads| mla(Dtype::Bf16, heads, 32, Lens::List(vec![200, 2, 129, 64]));
    for heads in [8, 48] {
        cases.push(with(plain(heads), |case| {
            case.split_policy = SplitPolicy::Fixed(64);
            (case.pad_query, case.pad_out, case.pad_block_table) = (8, 4, 3);
            case.latent = Some(4);
            case.lse = LseForm::HeadsFirst;
        }));
        cases.push(with(plain(heads), |case| {
            case.cache.dtype = Dtype::F8E4m3;
            case.query_dtype = Dtype::F8E4m3;
            case.check = CheckMode::Device;
            case.cache.layout = Layout::CrossLayer;
        }));
        cases.push(with(plain(heads), |case| {
            case.latent = Some(2);
            case.max_seq_len = Some(150);
        }));
    }
    cases
}

/// Every kernel around the lengths of tiles and pages; more rows than a thread block takes.
pub(crate) fn edges() -> Vec<DecodeCase> {
    let mut cases = Vec::new();
    for (heads, kv) in [
        (16, Dtype::Bf16),
        (16, Dtype::F8E4m3),
        (64, Dtype::Bf16),
        (64, Dtype::F8E4m3),
    ] {
        let lens = edge_lens(16, &[32, 64, 128]);
        cases.push(with(
            mla(Dtype::Bf16, heads, 16, Lens::List(lens)),
            |case| {
                (case.cache.head_size, case.cache.head_size_v) = (288, 256);
                case.cache.dtype = kv;
                case.split_policy = SplitPolicy::Fixed(64);
                case.latent = Some(3);
            },
        ));
    }
    for heads in [1, 17, 33, 96, 128] {
        let lens = Lens::List(vec![0, 1, 65]);
        cases.push(with(mla(Dtype::F16, heads, 64, lens), |_| {}));
    }
    // Rows that fill the tiles of warp groups, over one tile, two and more of them, odd numbers and even.
    let mut tiles = edge_lens(16, &[64, 128, 192, 256]);
    tiles.retain(|&len| len >= 0);
    let [bf16, f16] = [Dtype::Bf16, Dtype::F16];
    let [e4m3, e5m2] = [Dtype::F8E4m3, Dtype::F8E5m2];
    for (dtype, query, kv, heads, q_len, split) in [
        (bf16, bf16, bf16, 40, 3, SplitPolicy::BatchInvariant),
        (f16, f16, f16, 64, 1, SplitPolicy::Fixed(128)),
        (bf16, bf16, e4m3, 40, 3, SplitPolicy::BatchInvariant),
        (f16, f16, e5m2, 64, 1, SplitPolicy::Fixed(128)),
        (bf16, e4m3, e4m3, 24, 3, SplitPolicy::Fixed(64)),
    ] {
        cases.push(with(
            mla(dtype, heads, 16, Lens::List(tiles.clone())),
            |case| {
                (case.latent, case.split_policy) = (Some(q_len), split);
                (case.cache.dtype, case.query_dtype) = (kv, query);
                (case.fill, case.check) = (Fill::NotFinite, CheckMode::Device);
                // Queries that are aligned to two values only.
                case.pad_query = if q_len == 3 { 2 } else { 0 };
            },
        ));
    }
    for kv in [bf16, e4m3] {
        cases.push(with(mla(bf16, 72, 32, Lens::OneLong(5, 40, 700)), |case| {
            (case.cache.dtype, case.split_policy) = (kv, SplitPolicy::Scheduled)
        }));
    }
    // So many rows of few splits that they are merged by thread blocks of several units.
    cases.push(with(
        mla(Dtype::Bf16, 128, 16, Lens::Ragged(24, 100)),
        |case| {
            (case.cache.head_size, case.cache.head_size_v) = (288, 256);
            case.split_policy = SplitPolicy::Fixed(32);
        },
    ));
    for (heads, q_len) in [(16, 1), (40, 2)] {
        for lens in [
            Lens::Zipf(9, 700),
            Lens::OneLong(7, 8, 900),
            Lens::List(vec![0, 0, 300, 1]),
        ] {
            cases.push(with(mla(Dtype::Bf16, heads, 16, lens), |case| {
                (case.cache.head_size, case.cache.head_size_v) = (288, 256);
                case.split_policy = SplitPolicy::Scheduled;
                case.latent = Some(q_len);
            }));
        }
    }
    cases
}

/// Every kernel at sizes that people run.
pub(crate) fn sweep() -> Vec<DecodeCase> {
    let mut cases = Vec::new();
    for (d, dv) in variants::decode_mla_support() {
        for dtype in [Dtype::Bf16, Dtype::F16] {
            for kv in caches(dtype) {
                for heads in [8, 16, 20, 32, 64, 96, 128] {
                    for (page, q_len, query) in
                        [(64, 1, dtype), (16, 2, dtype), (32, 4, Dtype::F8E4m3)]
                    {
                        if query == Dtype::F8E4m3 && kv == dtype {
                            continue;
                        }
                        let lens = Lens::Ragged(7, 5000);
                        cases.push(with(mla(dtype, heads, page, lens), |case| {
                            (case.cache.head_size, case.cache.head_size_v) =
                                (d as usize, dv as usize);
                            (case.cache.dtype, case.query_dtype) = (kv, query);
                            case.latent = Some(q_len);
                        }));
                    }
                }
            }
        }
    }
    for heads in [16, 128] {
        for lens in unequal() {
            cases.push(with(mla(Dtype::Bf16, heads, 64, lens), |case| {
                case.split_policy = SplitPolicy::Scheduled;
            }));
        }
    }
    // Long contexts: many small probabilities must not be lost.
    for kv in caches(Dtype::Bf16) {
        for heads in [16, 128] {
            let lens = Lens::Uniform(1, 131_072);
            cases.push(with(mla(Dtype::Bf16, heads, 64, lens), |case| {
                case.cache.dtype = kv
            }));
        }
    }
    cases
}

/// The shapes that peers were timed at.
pub(crate) fn bench() -> Vec<DecodeCase> {
    let mut cases = Vec::new();
    for kv in [Dtype::Bf16, Dtype::F8E4m3] {
        for heads in [16, 64, 128] {
            for num_seqs in [1, 16, 64, 128] {
                for len in [1024, 8192, 32_768] {
                    let lens = Lens::Uniform(num_seqs, len as usize);
                    cases.push(with(mla(Dtype::Bf16, heads, 64, lens), |case| {
                        case.cache.dtype = kv;
                        case.max_seq_len = Some(len);
                        case.lse = LseForm::Off;
                    }));
                }
            }
        }
    }
    for heads in [16, 128] {
        for lens in scheduled() {
            for schedule_once in [true, false] {
                cases.push(with(mla(Dtype::Bf16, heads, 64, lens.clone()), |case| {
                    case.lse = LseForm::Off;
                    case.max_seq_len = Some(131_072);
                    (case.split_policy, case.schedule_once) =
                        (SplitPolicy::Scheduled, schedule_once);
                }));
            }
        }
    }
    cases
}
