//! Cases of `reshape_and_cache_flash`, and running them on the emulator.
#![allow(dead_code, reason = "each test crate uses a part")]

use std::sync::Arc;

use ferroattn::Error;
use ferroattn::ops::{CacheScales, CacheWriteRequest, CheckMode, check_result};
use ferroattn::reference::{HostTensor, Storage};
use ferroattn::tensor::Dtype;

use crate::tensors::*;

/// How a cache lies in memory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Layout {
    /// `[block, slot, head, dim]`.
    Nhd,
    /// `[block, head, slot, dim]`.
    Hnd,
    /// `[block, slot, head, key and value dims]` in one storage.
    PackedNhd,
    /// `[block, head, slot, key and value dims]` in one storage.
    PackedHnd,
    /// As `Nhd`, three layers between blocks.
    CrossLayer,
}

#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) dtype: Dtype,
    pub(crate) cache: Dtype,
    pub(crate) num_tokens: usize,
    pub(crate) heads: usize,
    pub(crate) head_size: usize,
    pub(crate) head_size_v: usize,
    pub(crate) block_size: usize,
    pub(crate) num_blocks: usize,
    pub(crate) layout: Layout,
    /// Key and value are parts of a fused query-key-value tensor.
    pub(crate) fused: bool,
}

impl Default for Case {
    fn default() -> Self {
        Self {
            dtype: Dtype::Bf16,
            cache: Dtype::Bf16,
            num_tokens: 42,
            heads: 8,
            head_size: 64,
            head_size_v: 64,
            block_size: 16,
            num_blocks: 6,
            layout: Layout::Nhd,
            fused: true,
        }
    }
}

pub(crate) struct Inputs {
    pub(crate) key: HostTensor,
    pub(crate) value: HostTensor,
    pub(crate) key_cache: HostTensor,
    pub(crate) value_cache: HostTensor,
    pub(crate) slots: HostTensor,
}

impl Case {
    pub(crate) fn inputs(&self, random: &mut Random) -> Inputs {
        let Self { dtype, heads, .. } = *self;
        let (dk, dv) = (self.head_size, self.head_size_v);
        // Two rows more than slots, as captured graphs have.
        let rows = self.num_tokens + 2;
        let (key, value) = if self.fused {
            // The query has as many heads as the key.
            let row = heads * (2 * dk + dv);
            let storage = Storage::new("qkv", values(dtype, rows * row, random));
            let part = |offset, size: usize| {
                view_of(
                    &storage,
                    dtype,
                    offset,
                    &[rows, heads, size],
                    &[row, size, 1],
                )
            };
            (part(heads * dk, dk), part(2 * heads * dk, dv))
        } else {
            let mut own = |name, size| {
                let data = values(dtype, rows * heads * size, random);
                tensor(name, dtype, &[rows, heads, size], data)
            };
            (own("key", dk), own("value", dv))
        };
        let (key_cache, value_cache) = self.caches();
        let num_slots = self.num_blocks * self.block_size;
        let slots = longs(
            "slot_mapping",
            &slots(self.num_tokens, num_slots, 5, random),
        );
        Inputs {
            key,
            value,
            key_cache,
            value_cache,
            slots,
        }
    }

    pub(crate) fn caches(&self) -> (HostTensor, HostTensor) {
        let (dk, dv) = (self.head_size, self.head_size_v);
        let (heads, block, blocks) = (self.heads, self.block_size, self.num_blocks);
        let bytes = self.cache.size();
        let (packed, hnd) = match self.layout {
            Layout::Nhd | Layout::CrossLayer => (false, false),
            Layout::Hnd => (false, true),
            Layout::PackedNhd => (true, false),
            Layout::PackedHnd => (true, true),
        };
        let layers = if self.layout == Layout::CrossLayer {
            3
        } else {
            1
        };
        let make = |storage: &Arc<Storage>, offset, size: usize, row: usize| {
            let (slot, head) = if hnd {
                (row, block * row)
            } else {
                (heads * row, row)
            };
            let strides = [layers * heads * block * row, slot, head, 1];
            view_of(
                storage,
                self.cache,
                offset,
                &[blocks, block, heads, size],
                &strides,
            )
        };
        let elements = |row: usize| layers * blocks * block * heads * row;
        if packed {
            let storage = poisoned("kv_cache", elements(dk + dv) * bytes);
            (
                make(&storage, 0, dk, dk + dv),
                make(&storage, dk, dv, dk + dv),
            )
        } else {
            let keys = poisoned("key_cache", elements(dk) * bytes);
            let values = poisoned("value_cache", elements(dv) * bytes);
            (make(&keys, 0, dk, dk), make(&values, 0, dv, dv))
        }
    }
}

/// Runs a write and returns the storages' bytes: of the key cache and of the value cache.
pub(crate) fn run(
    machine: &Machine,
    inputs: &Inputs,
    scales: CacheScales<'static>,
    check: CheckMode,
) -> Result<(Vec<u8>, Vec<u8>), Error> {
    let request = CacheWriteRequest {
        key: machine.view(&inputs.key),
        value: machine.view(&inputs.value),
        key_cache: machine.view_mut(&inputs.key_cache),
        value_cache: machine.view_mut(&inputs.value_cache),
        slot_mapping: machine.view(&inputs.slots),
        block_size: inputs.key_cache.shape[1],
        scales,
        check,
    };
    let checked = request.check()?;
    let plan = checked.plan();
    let mut workspace = machine.workspace(plan.workspace_bytes());
    checked.launch(&plan, &mut workspace, &machine.emulator)?;
    if check == CheckMode::Device {
        check_result(&machine.read_workspace(&workspace))?;
    }
    Ok((
        machine.read(&inputs.key_cache),
        machine.read(&inputs.value_cache),
    ))
}

/// What both storages had to become; they are one if the cache is packed.
pub(crate) fn expected(
    inputs: &Inputs,
    mut write: impl FnMut(&HostTensor, &HostTensor, &mut [u8]),
) -> (Vec<u8>, Vec<u8>) {
    let mut keys = inputs.key_cache.storage.bytes.clone();
    write(&inputs.key, &inputs.key_cache, &mut keys);
    if Arc::ptr_eq(&inputs.key_cache.storage, &inputs.value_cache.storage) {
        write(&inputs.value, &inputs.value_cache, &mut keys);
        return (keys.clone(), keys);
    }
    let mut values = inputs.value_cache.storage.bytes.clone();
    write(&inputs.value, &inputs.value_cache, &mut values);
    (keys, values)
}

#[track_caller]
pub(crate) fn assert_both(got: &(Vec<u8>, Vec<u8>), expected: &(Vec<u8>, Vec<u8>), case: &Case) {
    assert_same_bytes(&got.0, &expected.0, &format!("keys of {case:?}"));
    assert_same_bytes(&got.1, &expected.1, &format!("values of {case:?}"));
}
