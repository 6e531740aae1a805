//! Rotates queries and keys by their positions, and writes keys and values into a paged cache: to the bit
//! what rotating first and writing after would leave, with every value read once.
//!
//! Grid: as `reshape_and_cache_flash`, over the items of a token: two runs of eight values of one head. A
//! thread owns an item. In the rotated part the runs are those whose values turn together, so that a
//! rotation needs no other thread:
//!
//! ```text
//! slot = slot_mapping[token], position = positions[token]
//! a, b = two runs of query, key or value[token, head]
//! query, key: a, b = round(a cos - b sin), round(b cos + a sin)      in f32, past the rotated part as they are
//! query_out[token, head] = a, b
//! key_cache, value_cache[slot, head] = a, b                          unless slot is negative
//! ```

use core::marker::PhantomData;

use crate::attention::check::found_fault;
use crate::cache::reshape_and_cache_flash::{THREADS, THREADS_LOG2};
use crate::cache::slots::Slot;
use crate::dtype::stored::StoredAs;
use crate::dtype::{Element, F32};
use crate::entry::Variant;
use crate::gpu::Gpu;
use crate::gpu::unroll::unroll;
use crate::kernel::Kernel;
use crate::params::{CacheSide, RopeAndCacheParams};

/// The kernel: `In` is the type of queries, keys and values, `Cache` and `Query` are what is stored of them.
///
/// # Safety
/// Launched on the grid of [`super::reshape_and_cache_flash::spread`] over items, with [`THREADS`] threads; `params`
/// names tensors of the shapes and the alignment it documents; slots that are not negative are distinct and inside the
/// cache.
#[inline(always)]
pub unsafe fn rope_and_cache<G: Gpu, In, Cache, Query>(gpu: G, params: &RopeAndCacheParams)
where
    In: StoredAs<Cache> + StoredAs<Query>,
{
    // SAFETY: as `write` asks: this function's contract; runs are of eight where all is aligned:
    // `RopeAndCacheRequest::check`.
    unsafe {
        if params.run >= 8 {
            write::<G, In, Cache, Query, 8>(gpu, params);
        } else {
            write::<G, In, Cache, Query, 1>(gpu, params);
        }
    }
}

/// # Safety
/// As [`rope_and_cache`]; with a `RUN` of 8, all tensors are aligned to runs.
#[inline(always)]
unsafe fn write<G: Gpu, In, Cache, Query, const RUN: u32>(gpu: G, params: &RopeAndCacheParams)
where
    In: StoredAs<Cache> + StoredAs<Query>,
{
    let lanes = 1 << params.lanes_log2;
    let tokens_log2 = THREADS_LOG2 - params.lanes_log2;
    let token = (gpu.cta_idx_x() << tokens_log2) + (gpu.thread_idx() >> params.lanes_log2);
    let item = gpu.cta_idx_z() * THREADS + (gpu.thread_idx() & (lanes - 1));
    gpu.wait_for_previous_kernels();
    gpu.let_next_kernel_start();
    if token >= params.num_tokens {
        return;
    }
    let thread = Thread { gpu, params, token };
    let first_key = params.query.units;
    let first_value = first_key + params.key.units;
    // SAFETY: a token, and an item of it that no other thread has, by the lines before; the rest is this function's
    // contract.
    unsafe {
        if item < first_key {
            thread.query::<In, Query, RUN>(item);
        } else if item < first_value {
            thread.key::<In, Cache, RUN>(item - first_key);
        } else if item - first_value < params.value.units {
            thread.value::<In, Cache, RUN>(item - first_value);
        }
    }
}

#[derive(Clone, Copy)]
struct Thread<'p, G> {
    gpu: G,
    params: &'p RopeAndCacheParams,
    token: u32,
}

/// Two runs of one head.
#[derive(Clone, Copy)]
struct Item<'p> {
    side: &'p CacheSide,
    head: u64,
    /// In runs from the head's first.
    runs: [u32; 2],
    /// Whether there is a second run.
    is_whole: bool,
    /// Which of the rotated ones it is.
    rotated: Option<u32>,
}

/// The values of an item as they are stored, of runs of one value the low half of the first word.
type Runs = [[u32; 4]; 2];

impl<'p> Item<'p> {
    #[inline(always)]
    fn new(
        side: &'p CacheSide,
        item: u32,
        head_runs: u32,
        rotated_items: u32,
        is_interleaved: bool,
    ) -> Self {
        let head = side.head_units.divide(item);
        let in_head = item - head * side.head_units.divisor();
        let is_rotated = in_head < rotated_items;
        let runs = if !is_rotated {
            // Two halves, so that neighbouring lanes read neighbouring runs.
            let first = in_head + rotated_items;
            [first, first + (head_runs - 2 * rotated_items).div_ceil(2)]
        } else if is_interleaved {
            [2 * in_head, 2 * in_head + 1]
        } else {
            [in_head, in_head + rotated_items]
        };
        Self {
            side,
            head: head as u64,
            runs,
            is_whole: runs[1] < head_runs,
            rotated: is_rotated.then_some(in_head),
        }
    }

    /// # Safety
    /// `token` is one of the source's, whose rows are aligned to runs of `RUN`.
    #[inline(always)]
    #[track_caller]
    unsafe fn load<G: Gpu, In: Element, const RUN: u32>(self, gpu: G, token: u32) -> Runs {
        let row = self.side.source
            + token as u64 * self.side.stride_source_token as u64
            + self.head * self.side.stride_source_head as u64;
        let [first, second] = self.runs.map(|run| row + (run * RUN * In::BYTES) as u64);
        // SAFETY: runs of the token's head, the second if `is_whole`, aligned: this function's contract.
        unsafe {
            let a = load_run::<G, RUN>(gpu, first);
            let b = if self.is_whole {
                load_run::<G, RUN>(gpu, second)
            } else {
                [0; 4]
            };
            [a, b]
        }
    }

    /// The head's scale, if what is stored has one.
    ///
    /// # Safety
    /// Where values are divided by scales, the side has them.
    #[inline(always)]
    #[track_caller]
    unsafe fn scale<G: Gpu, In: StoredAs<Out>, Out>(self, gpu: G) -> f32 {
        if !<In as StoredAs<Out>>::IS_SCALED {
            return 1.0;
        }
        let at = self.side.scale + self.head * self.side.stride_scale_head as u64;
        // SAFETY: one for each head, or with stride 0 one for all: the host's `CacheScales::check`, of queries
        // `check_query`.
        f32::from_bits(unsafe { gpu.ld_global_b32(at) })
    }

    /// # Safety
    /// `slot` is one of the target's and no other token's, the item no other thread's, and rows are aligned to runs of
    /// `RUN`.
    #[inline(always)]
    #[track_caller]
    unsafe fn store<G: Gpu, In: StoredAs<Out>, Out, const RUN: u32>(
        self,
        gpu: G,
        slot: Slot,
        [a, b]: Runs,
        scale: f32,
    ) {
        let side = self.side;
        let row = side.target
            + slot.at(side.stride_target_block, side.stride_target_slot)
            + self.head * side.stride_target_head as u64;
        let bytes = RUN * <In as StoredAs<Out>>::BYTES;
        let [first, second] = self.runs.map(|run| row + (run * bytes) as u64);
        // SAFETY: the item's runs of the slot's head, aligned and this thread's: this function's contract.
        unsafe {
            store_run::<G, In, Out, RUN>(gpu, first, a, scale);
            if self.is_whole {
                store_run::<G, In, Out, RUN>(gpu, second, b, scale);
            }
        }
    }
}

impl<G: Gpu> Thread<'_, G> {
    /// # Safety
    /// As [`write()`]; `item` is below the queries' units, and no other thread's.
    #[inline(always)]
    unsafe fn query<In: StoredAs<Out>, Out, const RUN: u32>(self, item: u32) {
        let item = self.item_to_rotate(&self.params.query, item);
        // SAFETY: position, query and output of a token, and this thread's item: this function's contract; `check` is 0
        // or a finished check's record: the host's `launch`.
        unsafe {
            let position = self.position();
            let runs = item.load::<G, In, RUN>(self.gpu, self.token);
            let scale = item.scale::<G, In, Out>(self.gpu);
            if found_fault(self.gpu, self.params.check) {
                return;
            }
            let runs = self.rotate::<In, RUN>(item, position, runs);
            let row = Slot {
                block: 0,
                offset: self.token as u64,
            };
            item.store::<G, In, Out, RUN>(self.gpu, row, runs, scale);
        }
    }

    /// # Safety
    /// As [`write()`]; `item` is below the keys' units, and no other thread's.
    #[inline(always)]
    unsafe fn key<In: StoredAs<Out>, Out, const RUN: u32>(self, item: u32) {
        let item = self.item_to_rotate(&self.params.key, item);
        // SAFETY: slot, position and key of a token, and this thread's item: this function's contract; `check` is 0 or
        // a finished check's record: the host's `launch`.
        unsafe {
            let slot = self.slot();
            let position = self.position();
            let runs = item.load::<G, In, RUN>(self.gpu, self.token);
            let scale = item.scale::<G, In, Out>(self.gpu);
            if found_fault(self.gpu, self.params.check) {
                return;
            }
            let Some(slot) = Slot::new(slot, &self.params.block_size) else {
                return;
            };
            let runs = self.rotate::<In, RUN>(item, position, runs);
            item.store::<G, In, Out, RUN>(self.gpu, slot, runs, scale);
        }
    }

    /// # Safety
    /// As [`write()`]; `item` is below the values' units, and no other thread's.
    #[inline(always)]
    unsafe fn value<In: StoredAs<Out>, Out, const RUN: u32>(self, item: u32) {
        let item = Item::new(&self.params.value, item, self.params.head_runs_v, 0, false);
        // SAFETY: slot and value of a token, and this thread's item: this function's contract; `check` is 0 or a
        // finished check's record: the host's `launch`.
        unsafe {
            let slot = self.slot();
            let runs = item.load::<G, In, RUN>(self.gpu, self.token);
            let scale = item.scale::<G, In, Out>(self.gpu);
            if found_fault(self.gpu, self.params.check) {
                return;
            }
            if let Some(slot) = Slot::new(slot, &self.params.block_size) {
                item.store::<G, In, Out, RUN>(self.gpu, slot, runs, scale);
            }
        }
    }

    #[inline(always)]
    fn item_to_rotate<'p>(self, side: &'p CacheSide, item: u32) -> Item<'p> {
        let params = self.params;
        let is_interleaved = params.is_interleaved != 0;
        Item::new(
            side,
            item,
            params.head_runs,
            params.rotated_items,
            is_interleaved,
        )
    }

    /// # Safety
    /// `slot_mapping` has a slot for the token.
    #[inline(always)]
    #[track_caller]
    unsafe fn slot(self) -> u64 {
        // SAFETY: the token has a slot: this function's contract.
        unsafe {
            self.gpu
                .ld_global_b64(self.params.slot_mapping + 8 * self.token as u64)
        }
    }

    /// # Safety
    /// `positions` has a position for the token.
    #[inline(always)]
    #[track_caller]
    unsafe fn position(self) -> u64 {
        // SAFETY: the token has a position: this function's contract.
        unsafe {
            self.gpu
                .ld_global_b64(self.params.positions + 8 * self.token as u64)
        }
    }

    /// The runs as they are to be stored: turned, if the table has the position.
    ///
    /// # Safety
    /// The table's rows hold `rotated_items` runs of cosines and of sines, aligned to runs of `RUN`.
    #[inline(always)]
    #[track_caller]
    unsafe fn rotate<In: Element<Eight = [u32; 4]>, const RUN: u32>(
        self,
        item: Item<'_>,
        position: u64,
        [a, b]: Runs,
    ) -> Runs {
        let (gpu, params) = (self.gpu, self.params);
        let Some(at) = item.rotated else {
            return [a, b];
        };
        if position >= params.num_positions as u64 {
            return [a, b];
        }
        let row = params.cos_sin + position * params.stride_cos_sin as u64;
        // SAFETY: a row of the table, and this rotated item's runs of it, aligned: this function's contract.
        let (cos, sin) = unsafe {
            let first = (at * RUN) as u64;
            if params.table_is_f32 != 0 {
                let cosines = row + first * F32::BYTES as u64;
                (
                    angles::<G, F32, RUN>(gpu, cosines),
                    angles::<G, F32, RUN>(gpu, cosines + params.sines_at),
                )
            } else {
                let cosines = row + first * In::BYTES as u64;
                (
                    angles::<G, In, RUN>(gpu, cosines),
                    angles::<G, In, RUN>(gpu, cosines + params.sines_at),
                )
            }
        };
        let is_interleaved = RUN > 1 && params.is_interleaved != 0;
        let (a, b) = (In::widen8(gpu, a), In::widen8(gpu, b));
        let (x, y) = if is_interleaved { unzip(a, b) } else { (a, b) };
        let mut turned = (x, y);
        unroll!([8] i in 0..8 {
            turned.0[i] = gpu.fma(x[i], cos[i], -(y[i] * sin[i]));
            turned.1[i] = gpu.fma(y[i], cos[i], x[i] * sin[i]);
        });
        let (a, b) = if is_interleaved {
            zip(turned.0, turned.1)
        } else {
            turned
        };
        [In::narrow8(gpu, a), In::narrow8(gpu, b)]
    }
}

/// Values 0, 2, 4, .. of sixteen, and 1, 3, 5, ..
#[inline(always)]
fn unzip(a: [f32; 8], b: [f32; 8]) -> ([f32; 8], [f32; 8]) {
    (
        [a[0], a[2], a[4], a[6], b[0], b[2], b[4], b[6]],
        [a[1], a[3], a[5], a[7], b[1], b[3], b[5], b[7]],
    )
}

/// Back again.
#[inline(always)]
fn zip(x: [f32; 8], y: [f32; 8]) -> ([f32; 8], [f32; 8]) {
    (
        [x[0], y[0], x[1], y[1], x[2], y[2], x[3], y[3]],
        [x[4], y[4], x[5], y[5], x[6], y[6], x[7], y[7]],
    )
}

/// # Safety
/// A run of `RUN` values at `address` is readable, and aligned as [`Element::load8`] or [`Element::load1`] asks.
#[inline(always)]
#[track_caller]
unsafe fn angles<G: Gpu, Table: Element, const RUN: u32>(gpu: G, address: u64) -> [f32; 8] {
    // SAFETY: a run, aligned: this function's contract.
    unsafe {
        if RUN == 8 {
            Table::widen8(gpu, Table::load8(gpu, address))
        } else {
            let mut first = [0.0; 8];
            first[0] = Table::load1(gpu, address);
            first
        }
    }
}

/// # Safety
/// A run of `RUN` 16-bit values at `address` is readable, and aligned to the run.
#[inline(always)]
#[track_caller]
unsafe fn load_run<G: Gpu, const RUN: u32>(gpu: G, address: u64) -> [u32; 4] {
    // SAFETY: a run, aligned: this function's contract.
    unsafe {
        if RUN == 8 {
            gpu.ld_global_b128(address)
        } else {
            [gpu.ld_global_b16(address) as u32, 0, 0, 0]
        }
    }
}

/// # Safety
/// The place of a run of `RUN` values at `address` is this lane's, and aligned as [`StoredAs::store8_as`] or
/// [`StoredAs::store1_as`] asks.
#[inline(always)]
#[track_caller]
unsafe fn store_run<G: Gpu, In: StoredAs<Out>, Out, const RUN: u32>(
    gpu: G,
    address: u64,
    run: [u32; 4],
    scale: f32,
) {
    // SAFETY: the place of a run, this lane's and aligned: this function's contract.
    unsafe {
        if RUN == 8 {
            In::store8_as(gpu, address, run, scale);
        } else {
            In::store1_as(gpu, address, run[0] as u16, scale);
        }
    }
}

/// [`rope_and_cache`] for what is read, what is stored in the cache, and what of queries.
#[derive(Debug)]
pub struct RopeAndCache<In, Cache, Query>(PhantomData<(In, Cache, Query)>);

impl<In, Cache, Query> Kernel for RopeAndCache<In, Cache, Query>
where
    In: StoredAs<Cache> + StoredAs<Query>,
    Cache: Element,
    Query: Element,
{
    type Params = RopeAndCacheParams;
    const VARIANT: Variant = Variant::RopeAndCache {
        source: In::DTYPE,
        cache: Cache::DTYPE,
        query: Query::DTYPE,
    };
    const THREADS: u32 = THREADS;

    #[inline(always)]
    unsafe fn run<G: Gpu>(gpu: G, params: &RopeAndCacheParams) {
        // SAFETY: launched as `rope_and_cache` asks, on tensors of its shapes: the contract of `Kernel::run`.
        unsafe { rope_and_cache::<G, In, Cache, Query>(gpu, params) }
    }
}
