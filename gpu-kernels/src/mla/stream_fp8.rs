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
use crate::gpu::unroll::unroll;
use crate::gpu::{Gpu, WARP};
use crate::mla::MlaTile;
use crate::mla::cache_format::{EntryForm, dequantise8};
use crate::mla::entry_form::{MlaEntry, Source, raw_bytes, tile_row_bytes};
use crate::mla::slot_list::{SECOND_LIST, find};
use crate::params::EntryList;

/// Tokens of a tile that a warp copies and converts.
pub(crate) const WARP_TOKENS: u32 = 8;
/// Fewest and most tiles of raw entries in the ring.
pub const RAW_STAGES: (u32, u32) = (1, 3);

impl MlaTile {
    /// Dynamic shared memory with one tile, a ring of `stages` raw ones, and a list of `split_len` slots.
    pub const fn entry_shared_bytes(self, form: EntryForm, stages: u32, split_len: u32) -> u32 {
        if self.products.is_group() {
            return self.group_shared_bytes();
        }
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
    cut: MlaTile,
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
    /// Every thread of the thread block comes here. The ring holds `stages` tiles, and the list of slots `count`, each
    /// in the cache of one of `lists`.
    #[inline(always)]
    pub(crate) unsafe fn start<G: Gpu>(
        gpu: G,
        cut: MlaTile,
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
            // SAFETY: `lists` and `stages` are our own; the stage is empty.
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
    /// Every thread of the thread block comes here, done with the tile of before; there is a next one. `lists` and
    /// `stages` are those of [`EntryStream::start`].
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
        // SAFETY: `lists` and `stages` are those of `start`: the contract of `next`.
        let next = unsafe { self.next_entry(gpu, lists, stages) };
        // SAFETY: all come here. It shows the tile to all, and means that the warp has read its entries.
        unsafe { gpu.sync_cta() };
        next
    }

    /// What this lane copies for the next tile, and goes on to the next stage. Past the end these are zeros, so that
    /// groups and tiles stay in step.
    ///
    /// # Safety
    /// `lists` and `stages` are those of [`EntryStream::start`].
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
            // SAFETY: one of the list's `count` slots: the contract of `start`.
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
    let (block, offset) = find(list, slot);
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
                // SAFETY: nobody reads the stage: the contract of `copy_step`.
                unsafe { self.copy(gpu, part) };
            }
        });
    }

    /// # Safety
    /// Nobody reads the entry's stage.
    #[inline(always)]
    unsafe fn copy<G: Gpu>(self, gpu: G, part: usize) {
        // SAFETY: a slot of the cache, as `start` wants the list; nobody reads the stage: the contract of `copy`.
        unsafe { E::copy(gpu, part, self.target, self.source, self.exists) };
    }
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
                // SAFETY: the entry is visible: the contract of `convert`.
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
