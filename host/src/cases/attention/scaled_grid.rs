//! The cases over caches of bytes, in every named list.

use super::decode::DecodeCase;
use super::decode_grid::{decode, head_sizes};
use crate::cases::base::layout::Layout;
use crate::cases::base::lens::Lens;
use crate::cases::base::options::{LseForm, ScaleForm, scaled_formats};
use crate::ops::CheckMode;
use crate::plan::SplitPolicy;
use crate::tensor::Dtype;

fn scaled(mut case: DecodeCase, (kv, scales): (Dtype, ScaleForm)) -> DecodeCase {
    case.cache.dtype = kv;
    case.scales = scales;
    case
}

/// Every format at every head size; a query of each type; groups, pages and layouts in turn.
pub(crate) fn smoke() -> Vec<DecodeCase> {
    let lens = || Lens::List(vec![70, 0, 1, 33]);
    let mut cases = Vec::new();
    for (d, dv) in head_sizes() {
        for format in scaled_formats() {
            let mut case = scaled(decode(Dtype::Bf16, (4, 2), d, 16, lens()), format);
            case.cache.head_size_v = dv;
            cases.push(case);
        }
    }
    for format in scaled_formats() {
        let mut case = scaled(decode(Dtype::F16, (12, 1), 64, 8, lens()), format);
        case.split_policy = SplitPolicy::Fixed(64);
        cases.push(case.clone());
        case.dtype = Dtype::Bf16;
        case.query_dtype = Dtype::F8E4m3;
        (case.pad_query, case.pad_out) = (16, 4);
        case.check = CheckMode::Device;
        cases.push(case);
        for layout in Layout::ALL {
            let mut case = scaled(decode(Dtype::Bf16, (5, 1), 128, 32, lens()), format);
            case.cache.layout = layout;
            cases.push(case);
        }
    }
    cases
}

/// vLLM's table for FP8 decode, and every format at every compiled shape.
pub(crate) fn sweep() -> Vec<DecodeCase> {
    let mut cases = Vec::new();
    for heads in [(32, 32), (32, 8)] {
        for dtype in [Dtype::Bf16, Dtype::F16] {
            for format in scaled_formats() {
                let lens = Lens::Uniform(3, 1025);
                cases.push(scaled(decode(dtype, heads, 128, 16, lens), format));
            }
        }
    }
    for (d, dv) in head_sizes() {
        for format in scaled_formats() {
            for (group, page, query) in [
                (1, 16, Dtype::Bf16),
                (4, 8, Dtype::Bf16),
                (6, 32, Dtype::F8E4m3),
                (8, 64, Dtype::Bf16),
                (12, 16, Dtype::F8E4m3),
                (16, 128, Dtype::Bf16),
                (32, 16, Dtype::Bf16),
            ] {
                let lens = Lens::Ragged(7, 3000);
                let case = decode(Dtype::Bf16, (2 * group, 2), d, page, lens);
                let mut case = scaled(case, format);
                case.query_dtype = query;
                case.cache.head_size_v = dv;
                cases.push(case);
            }
        }
    }
    for format in scaled_formats() {
        for layout in Layout::ALL {
            let lens = Lens::Ragged(17, 4096);
            let mut case = scaled(decode(Dtype::Bf16, (32, 8), 128, 16, lens), format);
            case.cache.layout = layout;
            case.lse = LseForm::HeadsFirst;
            (case.pad_query, case.pad_out, case.pad_block_table) = (64, 32, 5);
            cases.push(case);
        }
        // Long contexts: many small probabilities must not be lost.
        for query in [Dtype::Bf16, Dtype::F8E4m3] {
            let lens = Lens::Uniform(1, 131_072);
            let mut case = scaled(decode(Dtype::Bf16, (32, 8), 128, 16, lens), format);
            case.query_dtype = query;
            cases.push(case);
        }
    }
    cases
}

/// The shapes of the 16-bit list over an FP8 cache, and some with a scale for every token and head.
pub(crate) fn bench(sixteen_bits: &[DecodeCase]) -> Vec<DecodeCase> {
    let mut cases = Vec::new();
    for case in sixteen_bits {
        cases.push(scaled(case.clone(), (Dtype::F8E4m3, ScaleForm::Tensor)));
        let is_plain = case.num_query_heads == 32 && case.cache.num_kv_heads == 8;
        if is_plain && case.max_seq_len == Some(8192) && matches!(case.lens, Lens::Uniform(..)) {
            for format in [
                (Dtype::F8E4m3, ScaleForm::Token),
                (Dtype::I8, ScaleForm::Token),
            ] {
                cases.push(scaled(case.clone(), format));
            }
            let mut case = scaled(case.clone(), (Dtype::F8E4m3, ScaleForm::Tensor));
            case.query_dtype = Dtype::F8E4m3;
            cases.push(case);
        }
    }
    cases
}
