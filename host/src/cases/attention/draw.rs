//! Random valid cases of attention, small enough for the emulator.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::decode::DecodeCase;
use super::decode_grid::{decode, head_sizes};
use super::mla_fp8::{EntryCase, TopK};
use super::mla_grid::mla;
use super::score_mods::ScoreCase;
use super::unified::{Causal, QueryLens, UnifiedCase};
use crate::cases::base::fill::Fill;
use crate::cases::base::layout::Layout;
use crate::cases::base::lens::Lens;
use crate::cases::base::options::{LseForm, ScaleForm, scaled_formats};
use crate::cases::base::pick::{check, fill, one_in, pick};
use crate::ops::{CheckMode, EntryForm};
use crate::plan::{SplitPolicy, variants};
use crate::tensor::Dtype;

fn page(random: &mut ChaCha8Rng) -> usize {
    pick(random, &[8, 16, 16, 24, 32, 40, 64, 128])
}

fn split(random: &mut ChaCha8Rng) -> SplitPolicy {
    match random.random_range(0..8) {
        0 => SplitPolicy::BatchInvariant,
        1 => SplitPolicy::Fixed(1),
        2 => SplitPolicy::Fixed(random.random_range(1..200)),
        3 | 4 => SplitPolicy::Scheduled,
        _ => SplitPolicy::Auto,
    }
}

fn lse(random: &mut ChaCha8Rng) -> LseForm {
    pick(
        random,
        &[LseForm::On, LseForm::On, LseForm::Off, LseForm::HeadsFirst],
    )
}

/// Lengths around those of tiles and pages, and any other.
fn length(random: &mut ChaCha8Rng) -> i32 {
    match random.random_range(0..6) {
        0 => pick(random, &[0, 1, 2, 3]),
        1 => pick(random, &[15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129]),
        _ => random.random_range(1..180),
    }
}

fn lengths(random: &mut ChaCha8Rng) -> Vec<i32> {
    let num_seqs = random.random_range(1..=5);
    (0..num_seqs).map(|_| length(random)).collect()
}

/// Dtypes and scales, heads, layout, strides, options: all of a case but its head sizes and lengths.
fn vary(case: &mut DecodeCase, random: &mut ChaCha8Rng) {
    if one_in(random, 2) {
        (case.cache.dtype, case.scales) = pick(random, &scaled_formats().collect::<Vec<_>>());
        if one_in(random, 3) {
            case.query_dtype = Dtype::F8E4m3;
        }
    }
    let unit = if case.query_dtype.size() == 1 { 16 } else { 2 };
    case.pad_query = unit * pick(random, &[0, 0, 1, 4, 8]);
    case.pad_out = pick(random, &[0, 0, 4, 8, 12, 16]);
    case.pad_block_table = pick(random, &[0, 0, 1, 3]);
    case.lse = lse(random);
    case.split_policy = split(random);
    case.schedule_once = case.split_policy == SplitPolicy::Scheduled && one_in(random, 2);
    case.check = check(random);
    if one_in(random, 4) {
        case.softmax_scale = Some(pick(random, &[1.0, 0.01, 0.3]));
    }
}

/// A bound of the lengths, now and then, and one that cuts some if nothing is checked.
fn bound(case: &mut DecodeCase, lens: &[i32], random: &mut ChaCha8Rng) {
    let longest = lens
        .iter()
        .copied()
        .max()
        .unwrap_or(0)
        .max(1)
        .cast_unsigned();
    case.max_seq_len = match random.random_range(0..6) {
        0 => Some(longest),
        1 => Some(longest + random.random_range(0..200)),
        // So far that there may be many splits.
        2 => Some(longest + random.random_range(1_000..4_000)),
        3 if case.check == CheckMode::Off => Some(random.random_range(1..=longest)),
        _ => None,
    };
}

pub(crate) fn decode_case(random: &mut ChaCha8Rng) -> DecodeCase {
    let mut lens = lengths(random);
    let sizes: Vec<_> = head_sizes().collect();
    let (d, dv) = pick(random, &sizes);
    let kv_heads = random.random_range(1..=3);
    let group = pick(random, &[1, 2, 3, 4, 5, 7, 8, 9, 16, 17]);
    let dtype = pick(random, &[Dtype::Bf16, Dtype::F16]);
    let page = page(random);
    let heads = (group * kv_heads, kv_heads);
    let mut case = decode(dtype, heads, d, page, Lens::List(Vec::new()));
    case.cache.head_size_v = dv;
    case.cache.layout = pick(random, &Layout::ALL);
    vary(&mut case, random);
    case.scores = ScoreCase::draw(random);
    if case.check == CheckMode::Off && one_in(random, 4) {
        lens.push(-1);
    }
    bound(&mut case, &lens, random);
    case.lens = Lens::List(lens);
    case.fill = fill(random, &Fill::SPECIAL);
    case
}

pub(crate) fn latent_case(random: &mut ChaCha8Rng) -> DecodeCase {
    let lens = lengths(random);
    let (d, dv) = pick(random, &variants::decode_mla_support());
    let dtype = pick(random, &[Dtype::Bf16, Dtype::F16]);
    let heads = pick(random, &[1, 3, 8, 16, 20, 33, 64]);
    let page = page(random);
    let mut case = mla(dtype, heads, page, Lens::List(Vec::new()));
    (case.cache.head_size, case.cache.head_size_v) = (d as usize, dv as usize);
    case.cache.layout = pick(random, &[Layout::Nhd, Layout::Hnd, Layout::CrossLayer]);
    vary(&mut case, random);
    // One scale, of FP8.
    case.scales = ScaleForm::Tensor;
    if case.cache.dtype == Dtype::I8 {
        case.cache.dtype = Dtype::F8E5m2;
    }
    case.latent = Some(random.random_range(1..=4));
    bound(&mut case, &lens, random);
    case.lens = Lens::List(lens);
    case.fill = fill(random, &Fill::SPECIAL);
    case
}

pub(crate) fn entry_case(random: &mut ChaCha8Rng) -> EntryCase {
    let form = pick(random, &[EntryForm::Fp8Ds, EntryForm::V4]);
    let heads = pick(random, &[1, 5, 8, 16, 17, 20, 33]);
    let mut case = EntryCase::of(form, heads, Lens::List(lengths(random)));
    case.block_size = page(random);
    case.query_len = random.random_range(1..=3);
    case.round_scales = form == EntryForm::V4 || random.random();
    case.sinks = random.random();
    case.pad = pick(random, &[0, 0, 4, 8]);
    case.lse = lse(random);
    case.split_policy = split(random);
    if random.random() {
        case.topk = Some(TopK {
            topk: random.random_range(1..150),
            window: if random.random() {
                random.random_range(1..80)
            } else {
                0
            },
            skip_every: random.random_range(0..6),
            has_lengths: random.random(),
            by_table: one_in(random, 3),
        });
    }
    case.check = check(random);
    case.fill = fill(random, &Fill::SPECIAL);
    case
}

pub(crate) fn unified_case(random: &mut ChaCha8Rng) -> UnifiedCase {
    let support = variants::prefill_support();
    let (_, d, dv) = pick(random, &support);
    let kv_heads = random.random_range(1..=2);
    let group = pick(random, &[1, 2, 3, 4, 5, 8]);
    let dtype = pick(random, &[Dtype::Bf16, Dtype::F16]);
    let page = page(random);
    let heads = (group * kv_heads, kv_heads);
    let mut base = decode(dtype, heads, d as usize, page, Lens::List(Vec::new()));
    base.cache.head_size_v = dv as usize;
    base.cache.layout = pick(random, &Layout::ALL);
    vary(&mut base, random);
    base.scores = ScoreCase::draw(random);
    let lens = lengths(random);
    bound(&mut base, &lens, random);
    base.lens = Lens::List(lens.clone());
    base.fill = fill(random, &Fill::SPECIAL);
    let decodes = random.random_range(0..=lens.len());
    let query_lens: Vec<usize> = lens
        .iter()
        .enumerate()
        .map(|(seq, &len)| {
            let len = usize::try_from(len).unwrap_or(0);
            match random.random_range(0..4) {
                _ if seq < decodes => 1,
                0 => len,
                1 => pick(random, &[0, 1, 2, 5]),
                _ => random.random_range(0..=len),
            }
        })
        .collect();
    let longest = query_lens.iter().copied().max().unwrap_or(0);
    let mut case = UnifiedCase::of(base, QueryLens::List(query_lens));
    case.decodes_first = random.random();
    case.causal = pick(
        random,
        &[Causal::On, Causal::On, Causal::Off, Causal::Mixed],
    );
    case.extra_tokens = pick(random, &[0, 0, 3]);
    case.f32_scores = one_in(random, 4);
    if one_in(random, 4) {
        case.output_scale = Some(pick(random, &[0.01, 0.5]));
    }
    if one_in(random, 3) {
        case.max_query_len = u32::try_from(longest + random.random_range(0..20)).ok();
    }
    case
}
