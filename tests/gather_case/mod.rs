//! Caches to gather from, what their slots give, and running a gather on the emulator.
#![allow(dead_code, reason = "each test crate uses a part")]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    reason = "small test data"
)]

use ferroattn::ops::{
    CheckMode, ConcatAndCacheMlaRequest, GatherForm, GatherRequest, GatherRows, MlaCacheForm,
    ScaleRule,
};
use ferroattn::reference::{HostTensor, fp8_value, mla_fp8_ds_values, mla_v4_values};
use ferroattn::tensor::Dtype;
use half::{bf16, f16};

use crate::tensors::*;

/// A cache, and what its slots give.
pub(crate) struct Cache {
    pub(crate) tensor: HostTensor,
    pub(crate) block_size: usize,
    pub(crate) form: Form,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Form {
    /// Values of a row and their dtype.
    Raw(Dtype),
    Fp8(Dtype, Dtype),
    Fp8Ds,
    V4,
}

pub(crate) const SCALE: f32 = 0.37;

impl Cache {
    pub(crate) fn new(
        form: Form,
        row: usize,
        block_size: usize,
        num_blocks: usize,
        random: &mut Random,
    ) -> Self {
        let slots = num_blocks * block_size;
        let tensor = match form {
            Form::Raw(dtype) | Form::Fp8(dtype, _) => {
                let count = slots * row;
                let data = (0..count * dtype.size())
                    .map(|_| random.next() as u8)
                    .collect();
                tensor("cache", dtype, &[num_blocks, block_size, row], data)
            }
            Form::Fp8Ds => Self::entries(
                form,
                &[num_blocks, block_size, 656],
                block_size,
                slots,
                random,
            ),
            Form::V4 => {
                let page = (block_size * 584).next_multiple_of(576);
                Self::entries(form, &[num_blocks, page], block_size, slots, random)
            }
        };
        Self {
            tensor,
            block_size,
            form,
        }
    }

    /// All slots written by the writer.
    pub(crate) fn entries(
        form: Form,
        shape: &[usize],
        block_size: usize,
        slots: usize,
        random: &mut Random,
    ) -> HostTensor {
        let size = if form == Form::V4 { 448 } else { 512 };
        let part = |name, size, random: &mut Random| {
            tensor(
                name,
                Dtype::Bf16,
                &[slots, size],
                finite_values(Dtype::Bf16, slots * size, random),
            )
        };
        let (kv_c, k_pe) = (part("kv_c", size, random), part("k_pe", 64, random));
        let cache = poisoned_tensor("cache", Dtype::U8, shape);
        let list: Vec<i64> = (0..slots as i64).collect();
        let machine = Machine::new();
        let request = ConcatAndCacheMlaRequest {
            kv_c: machine.view(&kv_c),
            k_pe: Some(machine.view(&k_pe)),
            kv_cache: machine.view_mut(&cache),
            slot_mapping: machine.view(&longs("slot_mapping", &list)),
            block_size,
            form: if form == Form::V4 {
                MlaCacheForm::V4
            } else {
                MlaCacheForm::Fp8Ds {
                    rule: ScaleRule::Exact,
                }
            },
            check: CheckMode::Off,
        };
        let checked = request.check().expect("fits");
        checked
            .launch(
                &checked.plan(),
                &mut machine.workspace(0),
                &machine.emulator,
            )
            .expect("runs");
        let bytes = machine.read(&cache);
        tensor("cache", Dtype::U8, shape, bytes)
    }

    pub(crate) fn out(&self) -> (Dtype, usize) {
        match self.form {
            Form::Raw(dtype) | Form::Fp8(_, dtype) => (dtype, self.tensor.shape[2]),
            Form::Fp8Ds => (Dtype::Bf16, 576),
            Form::V4 => (Dtype::Bf16, 512),
        }
    }

    /// The bytes that a slot becomes.
    pub(crate) fn row(&self, slot: usize) -> Vec<u8> {
        let (block, offset) = (slot / self.block_size, slot % self.block_size);
        let bytes = &self.tensor.storage.bytes;
        let to_bytes = |values: Vec<bf16>| values.iter().flat_map(|x| x.to_le_bytes()).collect();
        match self.form {
            Form::Raw(dtype) => {
                let at = self.tensor.position(&[block, offset, 0]) * dtype.size();
                bytes[at..at + self.tensor.shape[2] * dtype.size()].to_vec()
            }
            Form::Fp8(dtype, out) => {
                let at = self.tensor.position(&[block, offset, 0]);
                let row = &bytes[at..at + self.tensor.shape[2]];
                let values = row
                    .iter()
                    .map(|&byte| fp8_value(dtype, byte) as f32 * SCALE);
                values
                    .flat_map(|x| match out {
                        Dtype::Bf16 => bf16::from_f32(x).to_le_bytes().to_vec(),
                        Dtype::F16 => f16::from_f32(x).to_le_bytes().to_vec(),
                        _ => x.to_le_bytes().to_vec(),
                    })
                    .collect()
            }
            Form::Fp8Ds => {
                let at = slot * 656;
                to_bytes(mla_fp8_ds_values(&bytes[at..at + 656]))
            }
            Form::V4 => {
                let page = block * self.tensor.shape[1];
                let (entry, scales) = (
                    page + offset * 576,
                    page + self.block_size * 576 + offset * 8,
                );
                to_bytes(mla_v4_values(
                    &bytes[entry..entry + 576],
                    &bytes[scales..scales + 8],
                ))
            }
        }
    }
}

/// Runs a gather into `out` and compares all of `out`'s storage. `positions` are the rows' places in it, in
/// elements. NaN payloads may differ.
#[track_caller]
pub(crate) fn gather(
    machine: &Machine,
    cache: &Cache,
    out: &HostTensor,
    rows: GatherRows<'static>,
    zero_missing: bool,
    expected: &[Option<usize>],
) {
    let scale = floats("scale", &[1], &[SCALE]);
    let request = GatherRequest {
        cache: machine.view(&cache.tensor),
        block_size: cache.block_size,
        form: match cache.form {
            Form::Raw(_) => GatherForm::Raw,
            Form::Fp8(..) => GatherForm::Fp8 {
                scale: machine.view(&scale),
            },
            Form::Fp8Ds => GatherForm::Fp8Ds,
            Form::V4 => GatherForm::V4,
        },
        out: machine.view_mut(out),
        rows,
        zero_missing,
        check: CheckMode::Off,
    };
    let checked = request.check().unwrap_or_else(|error| panic!("{error}"));
    checked
        .launch(
            &checked.plan(),
            &mut machine.workspace(0),
            &machine.emulator,
        )
        .unwrap_or_else(|error| panic!("{error}"));
    let mut bytes = out.storage.bytes.clone();
    let (dtype, row) = cache.out();
    for (index, &slot) in expected.iter().enumerate() {
        let at = out.row_position(index) * dtype.size();
        let place = &mut bytes[at..at + row * dtype.size()];
        match slot {
            Some(slot) => place.copy_from_slice(&cache.row(slot)),
            None if zero_missing => place.fill(0),
            None => {}
        }
    }
    let mut got = machine.read(out);
    if matches!(cache.form, Form::Fp8(..)) {
        // Arbitrary bytes hold NaN, whose bits are not promised.
        for bytes in [&mut got, &mut bytes] {
            for value in bytes.chunks_mut(dtype.size()) {
                let is_nan = match dtype {
                    Dtype::F32 => f32::from_le_bytes(value.try_into().expect("four")).is_nan(),
                    Dtype::F16 => f16::from_le_bytes(value.try_into().expect("two")).is_nan(),
                    _ => bf16::from_le_bytes(value.try_into().expect("two")).is_nan(),
                };
                if is_nan {
                    value.fill(POISON);
                }
            }
        }
    }
    assert_same_bytes(
        &got,
        &bytes,
        &format!("{:?}, block size {}", cache.form, cache.block_size),
    );
}
