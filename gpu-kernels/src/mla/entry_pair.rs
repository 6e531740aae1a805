//! Values of entries where they are in memory, for heads that are computed again.

use crate::dtype::{Bf16, Half};
use crate::gpu::Gpu;
use crate::mla::cache_format::dequantise8;
use crate::mla::entry_form::MlaEntry;
use crate::mla::slot_list::{SECOND_LIST, find};
use crate::params::EntryList;

/// Two values of the entry that a word of the slot list names, from `dim` on: as they would be in a tile.
///
/// # Safety
/// The slot is one of its list's cache; `dim` is even, and below the entry's values.
#[inline(always)]
pub(crate) unsafe fn entry_pair<G: Gpu, E: MlaEntry>(
    gpu: G,
    lists: &[EntryList; 2],
    slot: u32,
    dim: u32,
) -> [f32; 2] {
    if slot & SECOND_LIST == 0 {
        // SAFETY: a slot of the first list's cache: the contract of `entry_pair`.
        unsafe { pair_of_list::<G, E>(gpu, &lists[0], slot, dim) }
    } else {
        // SAFETY: a slot of the second list's cache: the contract of `entry_pair`.
        unsafe { pair_of_list::<G, E>(gpu, &lists[1], slot & !SECOND_LIST, dim) }
    }
}

/// The same of a list.
///
/// # Safety
/// As [`entry_pair`].
#[inline(always)]
unsafe fn pair_of_list<G: Gpu, E: MlaEntry>(
    gpu: G,
    list: &EntryList,
    slot: u32,
    dim: u32,
) -> [f32; 2] {
    let (block, offset) = find(list, slot);
    let words = |word: u32| [word as u16, (word >> 16) as u16].map(|bits| Bf16::widen(gpu, bits));
    // SAFETY: slot and dim are the entry's: the contract of `pair_of_list`. RoPE values take no notice of the scale.
    unsafe {
        let (values, scale) = E::in_memory(gpu, block, offset, list, dim.min(E::LATENTS - 1));
        if dim < E::LATENTS {
            let bytes = gpu.ld_global_b16(values + dim as u64) as u32;
            words(dequantise8(gpu, [bytes, 0], scale)[0])
        } else {
            let at = values + (E::ROPE_AT + (dim - E::LATENTS) * 2) as u64;
            words(gpu.ld_global_b32(at))
        }
    }
}
