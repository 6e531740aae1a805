//! FP8 entries on their way to a tile: copied as they are into a ring of shared memory, and from there, as bf16,
//! into the one tile that all warps attend to.
//!
//! An entry has a scale for each group of values, so scales cannot be taken out of the products, as those of
//! other FP8 caches are: a value is `e4m3 * scale`, rounded to bf16. That is exact for scales that are powers of
//! two, which writers make; others round every value once more.
//!
//! A warp copies and converts the same 8 tokens of every tile: it need not wait for other warps' copies.

use core::marker::PhantomData;

use crate::attention::tile::swizzle;
use crate::dtype::{Bf16, Half};
use crate::gpu::unroll::unroll;
use crate::gpu::{Gpu, Line, WARP};
use crate::mla::Cut;
use crate::mla::cache_format::{EntryForm, dequantise8, fp8_ds, power_of_two, v4};
use crate::params::EntryList;

/// Tokens of a tile that a warp copies and converts.
pub(crate) const WARP_TOKENS: u32 = 8;
/// Fewest and most tiles of raw entries in the ring.
pub const RAW_STAGES: (u32, u32) = (1, 3);
/// Which of the two lists a slot belongs to.
const SECOND_LIST: u32 = 1 << 31;

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
    /// The source is an entry's if `exists` says so; nobody touches the target.
    unsafe fn copy<G: Gpu>(gpu: G, part: usize, target: u32, source: Source, exists: bool);
    /// The scale of the 16 values `16 chunk ..` of the entry at `raw`.
    ///
    /// # Safety
    /// The entry is visible.
    unsafe fn scale<G: Gpu>(gpu: G, raw: u32, chunk: u32) -> f32;
    /// Where the values of slot `offset` of the block at `block` begin, and the scale of FP8 value `value`.
    ///
    /// # Safety
    /// The slot holds an entry.
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
            // SAFETY: bytes of the entry, as the caller promises.
            unsafe { gpu.cp_async_b128(target, source, exists, Line::ONCE) };
        }
    }
    #[inline(always)]
    unsafe fn scale<G: Gpu>(gpu: G, raw: u32, chunk: u32) -> f32 {
        let at = raw + fp8_ds::SCALES_AT + chunk / (fp8_ds::GROUP / 16) * 4;
        // SAFETY: as the caller promises.
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
        // SAFETY: as the caller promises.
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
            // SAFETY: bytes of the entry, as the caller promises.
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
        // SAFETY: as the caller promises.
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
        // SAFETY: as the caller promises.
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

impl Cut {
    /// Dynamic shared memory with one tile, a ring of `stages` raw ones, and a list of `split_len` slots.
    pub const fn entry_shared_bytes(self, form: EntryForm, stages: u32, split_len: u32) -> u32 {
        let loop_bytes = self.slot_list(form, stages) + 4 * split_len;
        let least = self.shared_bytes(1);
        if loop_bytes > least {
            loop_bytes
        } else {
            least
        }
    }
    /// Where the scratch begins: behind the tile.
    pub(crate) const fn entry_scratch(self) -> u32 {
        self.ring() + self.tile_bytes
    }
    /// Where the ring of raw tiles begins.
    pub(crate) const fn raw_ring(self) -> u32 {
        self.entry_scratch() + self.scratch_bytes()
    }
    /// Where the list of slots begins.
    pub(crate) const fn slot_list(self, form: EntryForm, stages: u32) -> u32 {
        self.raw_ring() + stages * self.tile_len * raw_bytes(form)
    }
}

/// The tiles of a list of slots, in order.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EntryStream<E> {
    cut: Cut,
    /// Slots of the list.
    count: u32,
    /// First token of the next tile to load.
    load_token: u32,
    /// The stage of the next tile to convert. What is loaded then takes its place.
    stage: u32,
    /// Where this lane's part of its entry is in that stage. Counted along instead of computed from the stage:
    /// see `LatentStream`.
    row: u32,
    form: PhantomData<E>,
}

impl<E: MlaEntry> EntryStream<E> {
    /// Starts streaming the `count` slots of the list: `stages` tiles are on their way when this returns.
    ///
    /// # Safety
    /// Every thread comes here. The ring holds `stages` tiles, and `lists` the caches of the slots.
    #[inline(always)]
    pub(crate) unsafe fn start<G: Gpu>(
        gpu: G,
        cut: Cut,
        lists: &[EntryList; 2],
        count: u32,
        stages: u32,
    ) -> Self {
        let raw = gpu.shared_base() + cut.raw_ring() + gpu.warp() * WARP_TOKENS * E::RAW_BYTES;
        let mut stream = Self {
            cut,
            count,
            load_token: 0,
            stage: 0,
            row: raw + Self::own_part(gpu),
            form: PhantomData,
        };
        for _ in 0..stages {
            // SAFETY: as the caller promises; the stage is empty.
            unsafe {
                let next = stream.next_entry(gpu, lists, stages);
                unroll!([16] part in 0..(E::PARTS) {
                    next.copy(gpu, part);
                });
            }
            gpu.cp_async_commit();
        }
        stream
    }

    /// Brings the next tile, in bf16, to `tile`. What is returned takes its place in the ring, and has to be copied
    /// and committed before the next call.
    ///
    /// # Safety
    /// Every thread comes here, done with the tile of before; there is a next one. `lists` and `stages` are as
    /// before.
    #[inline(always)]
    pub(crate) unsafe fn next<G: Gpu>(
        &mut self,
        gpu: G,
        lists: &[EntryList; 2],
        stages: u32,
        tile: u32,
    ) -> NextEntry<E> {
        // All but the youngest `stages - 1` groups.
        match stages {
            1 => gpu.cp_async_wait::<0>(),
            2 => gpu.cp_async_wait::<1>(),
            _ => gpu.cp_async_wait::<2>(),
        }
        // SAFETY: all come here. It means that the warp's entries are there, and all are done with the last tile.
        unsafe { gpu.sync_cta() };
        // SAFETY: so the tile may be overwritten.
        unsafe { convert::<G, E>(gpu, self.row - Self::own_part(gpu), tile) };
        // SAFETY: as the caller promises.
        let next = unsafe { self.next_entry(gpu, lists, stages) };
        // SAFETY: all come here. It shows the tile to all, and means that the warp has read its entries.
        unsafe { gpu.sync_cta() };
        next
    }

    /// What this lane copies for the next tile, and goes on to the next stage. Past the end these are zeros, so that
    /// groups and tiles stay in step.
    #[inline(always)]
    unsafe fn next_entry<G: Gpu>(
        &mut self,
        gpu: G,
        lists: &[EntryList; 2],
        stages: u32,
    ) -> NextEntry<E> {
        let token = self.load_token + gpu.black_box(gpu.thread_idx()) / 4;
        let exists = token < self.count;
        let list = gpu.shared_base() + self.cut.slot_list(E::FORM, stages);
        let mut slot = 0;
        if exists {
            // SAFETY: a slot of the list.
            slot = unsafe { gpu.ld_shared_b32(list + token * 4) };
        }
        let source = if slot & SECOND_LIST == 0 {
            source::<G, E>(gpu, &lists[0], slot)
        } else {
            source::<G, E>(gpu, &lists[1], slot & !SECOND_LIST)
        };
        let target = self.row;
        self.load_token += self.cut.tile_len;
        self.stage += 1;
        self.row += self.cut.tile_len * E::RAW_BYTES;
        if self.stage == stages {
            self.stage = 0;
            self.row -= stages * self.cut.tile_len * E::RAW_BYTES;
        }
        NextEntry {
            source,
            target,
            exists,
            form: PhantomData,
        }
    }

    /// Where this lane's part is among the warp's entries of a stage.
    #[inline(always)]
    fn own_part<G: Gpu>(gpu: G) -> u32 {
        let lane = gpu.black_box(gpu.lane());
        lane / 4 * E::RAW_BYTES + lane % 4 * 16
    }
}

/// Where this lane finds its bytes of a slot.
#[inline(always)]
fn source<G: Gpu, E: MlaEntry>(gpu: G, list: &EntryList, slot: u32) -> Source {
    let block = list.block_size.divide(slot);
    let offset = slot - block * list.block_size.divisor();
    let block = list.cache + block as u64 * list.stride_block as u64;
    E::source(gpu, block, offset, list)
}

/// A lane's part of an entry that is to be loaded: copied a chunk at a time between other work, since eleven copies
/// in a row fill the queue to the memory, and all warps would stand before it at once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NextEntry<E> {
    source: Source,
    target: u32,
    exists: bool,
    form: PhantomData<E>,
}

impl<E: MlaEntry> NextEntry<E> {
    /// Starts copying the chunks for step `step` of `steps`.
    ///
    /// # Safety
    /// Nobody reads the entry's stage; each step is called once before the group is committed.
    #[inline(always)]
    pub(crate) unsafe fn copy_step<G: Gpu>(self, gpu: G, step: usize, steps: usize) {
        unroll!([16] part in 0..(E::PARTS) {
            if step * E::PARTS / steps <= part && part < (step + 1) * E::PARTS / steps {
                // SAFETY: as the caller promises.
                unsafe { self.copy(gpu, part) };
            }
        });
    }

    #[inline(always)]
    unsafe fn copy<G: Gpu>(self, gpu: G, part: usize) {
        // SAFETY: the slot was checked; as the caller promises.
        unsafe { E::copy(gpu, part, self.target, self.source, self.exists) };
    }
}

/// Two values of the entry that a word of the slot list names, from `dim` on, an even one: as they would be in a tile.
///
/// # Safety
/// The slot is one of its list's cache.
#[inline(always)]
pub(crate) unsafe fn entry_pair<G: Gpu, E: MlaEntry>(
    gpu: G,
    lists: &[EntryList; 2],
    slot: u32,
    dim: u32,
) -> [f32; 2] {
    if slot & SECOND_LIST == 0 {
        // SAFETY: as the caller promises.
        unsafe { pair_of_list::<G, E>(gpu, &lists[0], slot, dim) }
    } else {
        // SAFETY: as the caller promises.
        unsafe { pair_of_list::<G, E>(gpu, &lists[1], slot & !SECOND_LIST, dim) }
    }
}

/// The same of a list.
///
/// # Safety
/// The slot is one of the list's cache.
#[inline(always)]
unsafe fn pair_of_list<G: Gpu, E: MlaEntry>(
    gpu: G,
    list: &EntryList,
    slot: u32,
    dim: u32,
) -> [f32; 2] {
    let block = list.block_size.divide(slot);
    let offset = slot - block * list.block_size.divisor();
    let block = list.cache + block as u64 * list.stride_block as u64;
    let words = |word: u32| [word as u16, (word >> 16) as u16].map(|bits| Bf16::widen(gpu, bits));
    // SAFETY: as the caller promises; the scale of the last value is nobody's that is read.
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

/// The word of the slot list for a slot of the second list.
#[inline(always)]
pub(crate) fn of_second_list(slot: u32) -> u32 {
    slot | SECOND_LIST
}

/// Converts the warp's entries, the first at `raw`, into its rows of `tile`. A lane takes 16 latents of each
/// entry, then a chunk of RoPE values of every fourth.
///
/// # Safety
/// The entries are visible to the warp; nobody else touches its rows.
#[inline(always)]
unsafe fn convert<G: Gpu, E: MlaEntry>(gpu: G, raw: u32, tile: u32) {
    // Addresses are computed here and not ahead of the loop, which has no registers to keep them in.
    let thread = gpu.black_box(gpu.thread_idx());
    let (warp, lane) = (thread / WARP, thread % WARP);
    let row_bytes = tile_row_bytes::<E>();
    let rows = tile + warp * WARP_TOKENS * row_bytes;
    let chunk_at =
        |row: u32, chunk: u32| rows + row * row_bytes + swizzle(row, chunk, row_bytes / 16) * 16;
    if lane < E::LATENTS / 16 {
        // Every other group of four lanes writes its second chunk first: eight lanes in a row then write to
        // eight different bank groups.
        let second_first = lane >> 2 & 1;
        unroll!([2] half in 0..2 {
            let first_row = half as u32 * 4;
            let mut words = [[0; 4]; 4];
            let mut scales = [0.0; 4];
            unroll!([4] i in 0..4 {
                let entry = raw + (first_row + i as u32) * E::RAW_BYTES;
                // SAFETY: the entry is visible, as the caller promises.
                unsafe {
                    words[i] = gpu.ld_shared_b128(entry + lane * 16);
                    scales[i] = E::scale(gpu, entry, lane);
                }
            });
            unroll!([4] i in 0..4 {
                let [a, b, c, d] = words[i];
                let (first, second) = if second_first == 1 {
                    ([c, d], [a, b])
                } else {
                    ([a, b], [c, d])
                };
                let row = first_row + i as u32;
                let chunk = 2 * lane + second_first;
                // SAFETY: chunks of the warp's row.
                unsafe {
                    gpu.st_shared_b128(chunk_at(row, chunk), dequantise8(gpu, first, scales[i]));
                    gpu.st_shared_b128(chunk_at(row, chunk ^ 1), dequantise8(gpu, second, scales[i]));
                }
            });
        });
    }
    let (row, chunk) = (lane / 8, lane % 8);
    unroll!([2] half in 0..2 {
        let row = row + half as u32 * (WARP / 8);
        let entry = raw + row * E::RAW_BYTES;
        // SAFETY: a chunk of a visible entry, and of the warp's row.
        unsafe {
            let rope = gpu.ld_shared_b128(entry + E::ROPE_AT + chunk * 16);
            gpu.st_shared_b128(chunk_at(row, E::LATENTS / 8 + chunk), rope);
        }
    });
}
