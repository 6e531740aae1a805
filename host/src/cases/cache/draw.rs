//! Random valid cases of writes, gathers, copies and compaction, small enough for the emulator.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::blocks::{BlocksCase, BlocksOperation};
use super::gather::{GatherBy, GatherCase};
use super::grid::{gather, grouped, mla};
use super::mla_form::MlaForm;
use super::mla_write::MlaWriteCase;
use super::mla_write_grouped::MlaWriteGroupedCase;
use super::write::CacheWriteCase;
use super::write_grid::{rotated, write};
use crate::cases::base::fill::Fill;
use crate::cases::base::layout::Layout;
use crate::cases::base::options::{ScaleForm, scaled_formats};
use crate::cases::base::pick::{check, fill, one_in, pick};
use crate::ops::RopeStyle;
use crate::tensor::Dtype;

/// A cache write, maybe of rotated keys.
pub(crate) fn write_case(random: &mut ChaCha8Rng, is_rotated: bool) -> CacheWriteCase {
    let dtype = pick(random, &[Dtype::Bf16, Dtype::F16]);
    let d = if is_rotated {
        2 * random.random_range(1..=64)
    } else {
        random.random_range(1..=140)
    };
    let heads = random.random_range(1..=5);
    let page = random.random_range(1..=40);
    let num_tokens = random.random_range(0..90);
    let mut case = write(dtype, heads, d, page, num_tokens);
    if one_in(random, 3) {
        case.cache.head_size_v = random.random_range(1..=140);
    }
    case.cache.layout = pick(random, &Layout::ALL);
    if random.random() {
        (case.cache.dtype, case.scales) = pick(random, &scaled_formats().collect::<Vec<_>>());
    }
    case.extra_rows = pick(random, &[0, 0, 3]);
    case.skip_every = random.random_range(0..5);
    case.fused = random.random();
    case.check = check(random);
    case.fill = fill(random, &Fill::SPECIAL);
    if !is_rotated {
        return case;
    }
    // Every token has a scale of its own only where nothing is turned, and what is turned of NaN has no bits of its
    // own.
    if case.scales == ScaleForm::Token {
        (case.cache.dtype, case.scales) = (Dtype::F8E4m3, ScaleForm::Head);
    }
    if case.fill == Fill::NotFinite {
        case.fill = Fill::Mixed;
    }
    let style = pick(random, &[RopeStyle::Neox, RopeStyle::GptJ]);
    let rotary_dim = 2 * random.random_range(1..=d / 2);
    rotated(case, style, rotary_dim)
}

/// A write into an MLA cache.
pub(crate) fn mla_write_case(random: &mut ChaCha8Rng) -> MlaWriteCase {
    let form = pick(random, &MlaForm::ALL);
    let page = random.random_range(1..=70);
    let tokens = random.random_range(0..60);
    MlaWriteCase {
        fill: fill(random, &Fill::SPECIAL),
        check: check(random),
        ..mla(form, page, tokens, random.random_range(0..6))
    }
}

/// A write into the MLA caches of many layers.
pub(crate) fn grouped_case(random: &mut ChaCha8Rng) -> MlaWriteGroupedCase {
    let dtype = pick(random, &[Dtype::Bf16, Dtype::F16]);
    let cache_dtype = pick(random, &[dtype, Dtype::F8E4m3, Dtype::F8E5m2]);
    let layers = random.random_range(1..=4);
    let page = random.random_range(1..=70);
    let tokens = random.random_range(0..60);
    let mut case = grouped((dtype, cache_dtype), layers, page, tokens);
    if random.random() {
        case.kv_lora_rank = random.random_range(1..=140);
        case.qk_rope_head_dim = random.random_range(1..=40);
    }
    case.extra_rows = pick(random, &[0, 0, 3]);
    case.shares_slots = random.random();
    case.skip_every = random.random_range(0..5);
    case.check = check(random);
    case.fill = fill(random, &Fill::SPECIAL);
    case
}

/// A gather from an MLA cache.
pub(crate) fn gather_case(random: &mut ChaCha8Rng) -> GatherCase {
    let form = pick(random, &MlaForm::ALL);
    let by = pick(
        random,
        &[
            GatherBy::Ragged,
            GatherBy::Padded,
            GatherBy::TopK,
            GatherBy::Slots,
        ],
    );
    let page = random.random_range(1..=70);
    let seqs = random.random_range(1..=4);
    GatherCase {
        // A NaN's bits are not promised where values are widened.
        fill: fill(random, &Fill::SPECIAL[..6]),
        check: check(random),
        ..gather(form, by, page, seqs, random.random_range(1..=60))
    }
}

/// A copy or a compaction of blocks.
pub(crate) fn blocks_case(random: &mut ChaCha8Rng, operation: BlocksOperation) -> BlocksCase {
    let block_size = random.random_range(1..=20);
    let num_blocks = random.random_range(8..=120);
    let most = operation.most(num_blocks, block_size);
    BlocksCase {
        dtype: pick(random, &[Dtype::Bf16, Dtype::F16]),
        operation,
        block_size,
        row: random.random_range(1..=70),
        num_blocks,
        count: random.random_range(1..=most),
        check: check(random),
        fill: fill(random, &Fill::SPECIAL),
    }
}
