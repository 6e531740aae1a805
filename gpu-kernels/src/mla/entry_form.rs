//! The forms of FP8 entries, as types: where their values and scales lie, in the cache and in the ring.

use crate::gpu::{Gpu, Line};
use crate::mla::cache_format::{EntryForm, fp8_ds, power_of_two, v4};
use crate::params::EntryList;

/// A form of entries.
pub trait MlaEntry: Copy {
    /// Its name.
    const FORM: EntryForm;
    /// FP8 values.
    const LATENTS: u32;
    /// Bytes in the ring: an odd multiple of 16, so that rows begin in different banks.
    const RAW_BYTES: u32;
    /// Where the RoPE values begin in the ring.
    const ROPE_AT: u32;

    /// Chunks of 64 bytes: four lanes share an entry, each takes the `quad`th 16 bytes of every chunk.
    const PARTS: usize;

    /// Where this lane finds its bytes of slot `offset` of the block at `block`.
    fn source<G: Gpu>(gpu: G, block: u64, offset: u32, list: &EntryList) -> Source;
    /// Starts copying this lane's bytes of chunk `part` to its place in the entry at `target`, or zeros if the entry
    /// does not exist.
    ///
    /// # Safety
    /// The source is an entry's of the cache, if `exists` says so; nobody else touches this lane's bytes of the target.
    unsafe fn copy<G: Gpu>(gpu: G, part: usize, target: u32, source: Source, exists: bool);
    /// The scale of the 16 values `16 chunk ..` of the entry at `raw`.
    ///
    /// # Safety
    /// The entry is visible to this lane.
    unsafe fn scale<G: Gpu>(gpu: G, raw: u32, chunk: u32) -> f32;
    /// Where the values of slot `offset` of the block at `block` begin, and the scale of FP8 value `value`.
    ///
    /// # Safety
    /// The slot is one of the list's cache, and `value` is below [`MlaEntry::LATENTS`].
    unsafe fn in_memory<G: Gpu>(
        gpu: G,
        block: u64,
        offset: u32,
        list: &EntryList,
        value: u32,
    ) -> (u64, f32);
}

/// 656 bytes: see [`fp8_ds`].
#[derive(Clone, Copy, Debug)]
pub struct Fp8Ds;

impl MlaEntry for Fp8Ds {
    const FORM: EntryForm = EntryForm::Fp8Ds;
    const LATENTS: u32 = fp8_ds::LATENTS;
    const RAW_BYTES: u32 = fp8_ds::BYTES;
    const ROPE_AT: u32 = fp8_ds::ROPE_AT;
    const PARTS: usize = 11;

    #[inline(always)]
    fn source<G: Gpu>(gpu: G, block: u64, offset: u32, list: &EntryList) -> Source {
        let quad = gpu.black_box(gpu.lane()) % 4;
        Source {
            values: block + offset as u64 * list.stride_slot as u64 + quad as u64 * 16,
            scales: 0,
        }
    }
    #[inline(always)]
    unsafe fn copy<G: Gpu>(gpu: G, part: usize, target: u32, source: Source, exists: bool) {
        // The last chunk has 16 bytes.
        if part < 10 || gpu.black_box(gpu.lane()).is_multiple_of(4) {
            let (target, source) = (target + part as u32 * 64, source.values + part as u64 * 64);
            // SAFETY: 16 bytes of the entry, read only if it exists; the target is this lane's: the contract of `copy`.
            unsafe { gpu.cp_async_b128(target, source, exists, Line::ONCE) };
        }
    }
    #[inline(always)]
    unsafe fn scale<G: Gpu>(gpu: G, raw: u32, chunk: u32) -> f32 {
        let at = raw + fp8_ds::SCALES_AT + chunk / (fp8_ds::GROUP / 16) * 4;
        // SAFETY: a scale of the entry, which is visible: the contract of `scale`.
        f32::from_bits(unsafe { gpu.ld_shared_b32(at) })
    }
    #[inline(always)]
    unsafe fn in_memory<G: Gpu>(
        gpu: G,
        block: u64,
        offset: u32,
        list: &EntryList,
        value: u32,
    ) -> (u64, f32) {
        let values = block + offset as u64 * list.stride_slot as u64;
        let at = values + (fp8_ds::SCALES_AT + value / fp8_ds::GROUP * 4) as u64;
        // SAFETY: the value's scale in a slot of the cache: the contract of `in_memory`.
        (values, f32::from_bits(unsafe { gpu.ld_global_b32(at) }))
    }
}

/// 584 bytes: see [`v4`].
#[derive(Clone, Copy, Debug)]
pub struct V4;

impl MlaEntry for V4 {
    const FORM: EntryForm = EntryForm::V4;
    const LATENTS: u32 = v4::VALUES;
    // The scales come after the values.
    const RAW_BYTES: u32 = v4::VALUE_BYTES + 16;
    const ROPE_AT: u32 = v4::VALUES;
    const PARTS: usize = 10;

    #[inline(always)]
    fn source<G: Gpu>(gpu: G, block: u64, offset: u32, list: &EntryList) -> Source {
        let quad = gpu.black_box(gpu.lane()) % 4;
        let values = list.block_size.divisor() as u64 * v4::VALUE_BYTES as u64;
        Source {
            values: block + (offset * v4::VALUE_BYTES + quad * 16) as u64,
            scales: block + values + (offset * v4::SCALE_BYTES + quad * 4) as u64,
        }
    }
    #[inline(always)]
    unsafe fn copy<G: Gpu>(gpu: G, part: usize, target: u32, source: Source, exists: bool) {
        let quad = gpu.black_box(gpu.lane()) % 4;
        if part < 9 {
            let (target, source) = (target + part as u32 * 64, source.values + part as u64 * 64);
            // SAFETY: 16 bytes of the entry, read only if it exists; the target is this lane's: the contract of `copy`.
            unsafe { gpu.cp_async_b128(target, source, exists, Line::ONCE) };
        } else if quad < 2 {
            // SAFETY: half of the entry's scales. `target` is `quad` times 16 bytes into it.
            unsafe {
                gpu.cp_async_b32(target + v4::VALUE_BYTES - quad * 12, source.scales, exists)
            };
        }
    }
    #[inline(always)]
    unsafe fn scale<G: Gpu>(gpu: G, raw: u32, chunk: u32) -> f32 {
        let group = chunk / (v4::GROUP / 16);
        // SAFETY: scales of the entry, which is visible: the contract of `scale`.
        let word = unsafe { gpu.ld_shared_b32(raw + v4::VALUE_BYTES + group / 4 * 4) };
        power_of_two((word >> (group % 4 * 8)) as u8)
    }
    #[inline(always)]
    unsafe fn in_memory<G: Gpu>(
        gpu: G,
        block: u64,
        offset: u32,
        list: &EntryList,
        value: u32,
    ) -> (u64, f32) {
        let scales = block + list.block_size.divisor() as u64 * v4::VALUE_BYTES as u64;
        let at = scales + (offset * v4::SCALE_BYTES + value / v4::GROUP) as u64;
        // SAFETY: the value's scale in a slot of the cache: the contract of `in_memory`.
        let scale = power_of_two(unsafe { gpu.ld_global_b8(at) });
        (block + (offset * v4::VALUE_BYTES) as u64, scale)
    }
}

/// Addresses of what a lane copies of an entry.
#[derive(Clone, Copy, Debug)]
pub struct Source {
    values: u64,
    /// Of a form that keeps its scales elsewhere.
    scales: u64,
}

/// Bytes of a row of a tile: latents and RoPE values in bf16.
pub(crate) const fn tile_row_bytes<E: MlaEntry>() -> u32 {
    E::LATENTS * 2 + ROPE_BYTES
}
/// Bytes of an entry's RoPE values, in all forms.
const ROPE_BYTES: u32 = fp8_ds::ROPE * 2;
const _: () = assert!(fp8_ds::ROPE == v4::ROPE);

/// Bytes of an entry in the ring.
pub const fn raw_bytes(form: EntryForm) -> u32 {
    match form {
        EntryForm::Fp8Ds => Fp8Ds::RAW_BYTES,
        EntryForm::V4 => V4::RAW_BYTES,
    }
}
