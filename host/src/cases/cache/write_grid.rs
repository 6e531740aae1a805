//! The cases of cache writes, with scales and a rotation or without, in every named list.

use super::write::{CacheWriteCase, RopeCase};
use crate::cases::base::fill::Fill;
use crate::cases::base::layout::{CacheShape, Layout};
use crate::cases::base::options::{ScaleForm, scaled_formats};
use crate::ops::{CheckMode, RopeStyle};
use crate::tensor::Dtype;

use Dtype::{Bf16, F16};

/// The plainest cache write.
pub(crate) fn write(
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

fn scaled(mut case: CacheWriteCase, (kv, scales): (Dtype, ScaleForm)) -> CacheWriteCase {
    case.cache.dtype = kv;
    case.scales = scales;
    case
}

pub(crate) fn rotated(
    mut case: CacheWriteCase,
    style: RopeStyle,
    rotary_dim: usize,
) -> CacheWriteCase {
    case.rope = Some(RopeCase {
        style,
        rotary_dim,
        num_query_heads: 4 * case.cache.num_kv_heads,
        fp8_query: case.is_scaled(),
    });
    case
}

/// Every layout, and tokens in any number.
pub(crate) fn smoke() -> Vec<CacheWriteCase> {
    let mut cases = Vec::new();
    for layout in Layout::ALL {
        let mut case = write(Bf16, 8, 64, 16, 42);
        case.cache.layout = layout;
        case.skip_every = 5;
        cases.push(case);
    }
    let plain = || write(F16, 4, 80, 8, 42);
    cases.extend([
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
    ]);
    let mut unequal = write(Bf16, 2, 192, 16, 20);
    unequal.cache.head_size_v = 128;
    cases.push(unequal);
    cases
}

/// Every format and rotation, small, with padding among the tokens.
pub(crate) fn smoke_scaled() -> Vec<CacheWriteCase> {
    let mut cases = Vec::new();
    for (at, format) in scaled_formats().enumerate() {
        let dtype = [Bf16, F16][at % 2];
        for (layout, d, fused) in [
            (Layout::Nhd, 64, true),
            (Layout::PackedHnd, 80, false),
            (Layout::Hnd, 46, false),
        ] {
            let mut case = scaled(write(dtype, 4, d, 16, 42), format);
            case.cache.layout = layout;
            case.fused = fused;
            case.skip_every = 5;
            cases.push(case);
        }
    }
    // So many that a thread block does keys and values.
    for format in [
        (Dtype::F8E4m3, ScaleForm::Tensor),
        (Dtype::F8E4m3, ScaleForm::Head),
    ] {
        cases.push(scaled(write(Bf16, 8, 128, 16, 150), format));
    }
    for style in [RopeStyle::Neox, RopeStyle::GptJ] {
        for (d, rotary_dim) in [(64, 64), (128, 32), (46, 20)] {
            let mut plain = write(Bf16, 2, d, 16, 42);
            plain.skip_every = 5;
            plain.check = CheckMode::Device;
            cases.push(rotated(plain.clone(), style, rotary_dim));
            let scaled = scaled(plain, (Dtype::F8E4m3, ScaleForm::Head));
            cases.push(rotated(scaled, style, rotary_dim));
        }
    }
    cases
}

/// Tokens around those of blocks, and rows of any size.
pub(crate) fn edges() -> Vec<CacheWriteCase> {
    let mut cases = Vec::new();
    for page in [1, 5, 16, 128] {
        for tokens in [1, 31, 129] {
            let mut case = write(Bf16, 2, 64, page, tokens);
            case.skip_every = 4;
            cases.push(case);
        }
    }
    for (heads, d) in [(1, 1), (1, 8), (13, 46), (5, 40), (1, 256), (7, 12)] {
        cases.push(write(F16, heads, d, 16, 17));
    }
    cases
}

/// vLLM's table for its cache write.
pub(crate) fn sweep() -> Vec<CacheWriteCase> {
    let mut cases = Vec::new();
    // vLLM's table for its cache write, and rows that are no multiple of 16 bytes.
    for dtype in [Bf16, F16] {
        for layout in Layout::ALL {
            for (heads, d) in [(8, 64), (8, 80), (8, 256), (13, 46)] {
                for page in [8, 16, 32] {
                    let mut case = write(dtype, heads, d, page, 42);
                    case.cache.layout = layout;
                    case.fused = page == 16;
                    case.skip_every = 7;
                    cases.push(case);
                }
            }
        }
    }
    for tokens in [1, 64, 2048, 10_000] {
        let mut case = write(Bf16, 8, 128, 16, tokens);
        case.check = CheckMode::Device;
        cases.push(case);
    }
    cases
}

/// vLLM's table for its cache writes with scales, and rotations.
pub(crate) fn sweep_scaled() -> Vec<CacheWriteCase> {
    let mut cases = Vec::new();
    for format in scaled_formats() {
        for dtype in [Bf16, F16] {
            for (heads, d) in [(8, 64), (8, 80), (8, 256), (13, 46), (1, 128)] {
                for page in [8, 16, 32] {
                    let mut case = scaled(write(dtype, heads, d, page, 42), format);
                    case.fused = page == 16;
                    case.skip_every = 7;
                    cases.push(case);
                }
            }
        }
        for layout in Layout::ALL {
            let mut case = scaled(write(Bf16, 8, 128, 16, 2048), format);
            case.cache.layout = layout;
            cases.push(case);
        }
    }
    for style in [RopeStyle::Neox, RopeStyle::GptJ] {
        for (d, rotary_dim) in [
            (64, 64),
            (80, 32),
            (96, 24),
            (128, 128),
            (128, 64),
            (256, 256),
        ] {
            for tokens in [1, 42, 2048] {
                let plain = write(F16, 8, d, 16, tokens);
                cases.push(rotated(plain.clone(), style, rotary_dim));
                for format in [
                    (Dtype::F8E4m3, ScaleForm::Tensor),
                    (Dtype::F8E4m3, ScaleForm::Head),
                    (Dtype::F8E5m2, ScaleForm::Tensor),
                ] {
                    let scaled = scaled(plain.clone(), format);
                    cases.push(rotated(scaled, style, rotary_dim));
                }
            }
        }
    }
    cases
}

/// The shapes that peers were timed at.
pub(crate) fn bench() -> Vec<CacheWriteCase> {
    let mut cases = Vec::new();
    for tokens in [1, 64, 512, 2048, 16_384, 65_536] {
        cases.push(write(Bf16, 8, 128, 16, tokens));
    }
    cases
}

/// The same with scales and rotations.
pub(crate) fn bench_scaled() -> Vec<CacheWriteCase> {
    let mut cases = Vec::new();
    for tokens in [1, 64, 512, 2048, 16_384, 65_536] {
        let case = write(Bf16, 8, 128, 16, tokens);
        cases.push(scaled(case, (Dtype::F8E4m3, ScaleForm::Tensor)));
    }
    for format in [
        (Dtype::F8E4m3, ScaleForm::Token),
        (Dtype::I8, ScaleForm::Token),
    ] {
        for tokens in [1, 1024, 65_536] {
            let case = write(Bf16, 8, 128, 16, tokens);
            cases.push(scaled(case, format));
        }
    }
    for tokens in [1, 64, 1024, 65_536] {
        let case = write(Bf16, 8, 128, 16, tokens);
        cases.push(rotated(case.clone(), RopeStyle::Neox, 128));
        cases.push(rotated(
            scaled(case, (Dtype::F8E4m3, ScaleForm::Tensor)),
            RopeStyle::Neox,
            128,
        ));
    }
    cases
}
