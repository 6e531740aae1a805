//! The cases of writes, gathers and copies with special values.

use super::blocks::{BlocksCase, BlocksOperation};
use super::gather::{GatherBy, GatherCase};
use super::grid::{blocks, gather, grouped, mla};
use super::mla_form::MlaForm;
use super::mla_write::MlaWriteCase;
use super::mla_write_grouped::MlaWriteGroupedCase;
use super::write::CacheWriteCase;
use super::write_grid::{rotated, write};
use crate::cases::base::fill::Fill;
use crate::cases::base::options::ScaleForm;
use crate::ops::RopeStyle;
use crate::tensor::Dtype;

use Dtype::{Bf16, F8E4m3, F8E5m2, F16, I8};

/// Dtypes of input and cache, and the scales, of every kind of kernel; 16 bits are copied.
const FORMS: [(Dtype, Dtype, ScaleForm); 7] = [
    (Bf16, Bf16, ScaleForm::Tensor),
    (F16, F16, ScaleForm::Tensor),
    (Bf16, F8E4m3, ScaleForm::Tensor),
    (F16, F8E4m3, ScaleForm::Head),
    (Bf16, F8E5m2, ScaleForm::Tensor),
    (F16, F8E4m3, ScaleForm::Token),
    (Bf16, I8, ScaleForm::Token),
];

/// Writes of heads.
pub(crate) fn writes(fill: Fill) -> Vec<CacheWriteCase> {
    let mut cases = Vec::new();
    for (dtype, kv, scales) in FORMS {
        // What is copied is noise already.
        if kv.size() == 2 && fill != Fill::Poison {
            continue;
        }
        let with = |mut case: CacheWriteCase| {
            (case.cache.dtype, case.scales) = (kv, scales);
            (case.fill, case.skip_every) = (fill, 5);
            case
        };
        for d in [64, 46] {
            cases.push(with(write(dtype, 3, d, 16, 42)));
        }
        // What is turned of NaN has no bits of its own.
        if scales != ScaleForm::Token && fill != Fill::NotFinite {
            let case = with(write(dtype, 2, 64, 16, 20));
            cases.push(rotated(case, RopeStyle::Neox, 32));
        }
    }
    cases
}

/// MLA writes.
pub(crate) fn mla_writes(fill: Fill) -> [MlaWriteCase; 4] {
    MlaForm::ALL.map(|form| MlaWriteCase {
        fill,
        ..mla(form, 16, 42, 5)
    })
}

/// Writes into the caches of many layers.
pub(crate) fn grouped_writes(fill: Fill) -> [MlaWriteGroupedCase; 2] {
    [(Bf16, Bf16), (F16, F8E4m3)].map(|dtypes| MlaWriteGroupedCase {
        skip_every: 5,
        fill,
        ..grouped(dtypes, 3, 16, 42)
    })
}

/// Gathers.
pub(crate) fn gathers(fill: Fill) -> Vec<GatherCase> {
    let of = |form| {
        [GatherBy::Ragged, GatherBy::Slots].map(|by| GatherCase {
            fill,
            ..gather(form, by, 16, 3, 37)
        })
    };
    MlaForm::ALL.into_iter().flat_map(of).collect()
}

/// One of each operation on blocks of `row` values per token.
pub(crate) fn moved_blocks(
    fill: Fill,
    (block_size, row): (usize, usize),
    num_blocks: usize,
    count: usize,
) -> [BlocksCase; BlocksOperation::ALL.len()] {
    blocks(block_size, row, num_blocks, count).map(|case| BlocksCase { fill, ..case })
}
