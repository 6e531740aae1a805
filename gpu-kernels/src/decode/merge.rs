//! Stage 2 of split-KV decode attention: the parts of a sequence become its output.
//!
//! Grid: x = tiles of 128 columns of query heads, y = sequence, z = query token. A thread block owns one such tile of a row
//! of `out`, or four; its warps share out the splits, a lane has four columns:
//!
//! ```text
//! the first parts of this warp's splits are under way
//! lse = all of partial_lse                      a maximum, base 2, and a sum each
//! for each batch of this warp's splits, the next under way:
//!     acc += weight of its partial_lse * partial_out
//! acc is added over the warps; out = acc / (lse's sum + 2^(sink - max)); lse without or with the sink in the sum
//! ```
//!
//! Thread blocks of four tiles are for rows of at most four splits: each warp has a tile, so that none waits for another.
//! Both ways add in the same order. Sequences of one split were finished by stage 1.
//!
//! `merge_scheduled` is the same where stage 1 attended by a [`schedule`](crate::attention::schedule): y counts what that one
//! says is to be merged. There may be more of it than the grid has, so a thread block goes on to the next one that is a grid
//! further; and of four tiles it takes one after the other, with all warps, where there are more parts than four.

use core::marker::PhantomData;

use crate::attention::item::MergeItem;
use crate::attention::lse::Lse;
use crate::attention::out::recip_of_sum;
use crate::decode::parts::{Divided, Part, Parts, UNROLL, total_of};
use crate::dtype::Half;
use crate::entry::Variant;
use crate::gpu::unroll::unroll;
use crate::gpu::{Gpu, WARP};
use crate::kernel::Kernel;
use crate::params::MergeParams;

const WARPS: u32 = 4;
/// Threads per thread block.
pub const THREADS: u32 = WARPS * WARP;
/// Columns of a warp.
const COLUMNS: u32 = WARP * 4;

/// Dynamic shared memory of a thread block: each warp's columns.
pub const SHARED_BYTES: u32 = WARPS * COLUMNS * 4;

/// Tiles of columns of a row: a power of two.
pub const fn column_tiles(head_size_v: u32) -> u32 {
    head_size_v.div_ceil(COLUMNS).next_power_of_two()
}

/// Units of a row: tiles of columns of its heads.
pub const fn units(num_query_heads: u32, head_size_v: u32) -> u32 {
    num_query_heads * column_tiles(head_size_v)
}

/// Most units of a thread block: one for each warp.
pub const MOST_UNITS: u32 = WARPS;
/// Splits of which a warp takes all of its unit's, where a thread block has several units.
pub const FEW_SPLITS: u32 = UNROLL as u32;

/// The kernel.
///
/// # Safety
/// Launched on a grid of so many thread blocks along x as units of a row need, [`THREADS`] threads and [`SHARED_BYTES`]
/// shared memory; `params` names tensors of the shapes it documents, and several units only with at most [`FEW_SPLITS`].
/// Stage 1, the kernel ahead, wrote the parts of every sequence that has more than one split; no two sequences have one
/// row; no kernel that may still run writes lengths, or starts.
#[inline(always)]
pub unsafe fn merge_splits<G: Gpu, T: Half>(gpu: G, params: &MergeParams) {
    // SAFETY: this function's contract.
    let divided = unsafe { Divided::of_seq(gpu, params, gpu.cta_idx_y()) };
    // Also where there is nothing to merge: a kernel behind this one may begin when all of it has, and stage 1 has to be
    // done by then.
    gpu.wait_for_previous_kernels();
    let Some(divided) = divided else { return };
    // SAFETY: `check` is 0 or a finished check's record: the host's `launch`.
    if unsafe { crate::attention::check::found_fault(gpu, params.check) } {
        return;
    }
    if params.units == 1 {
        // SAFETY: x counts units; every thread comes here; stage 1 has written the sequence's parts.
        unsafe { merge_together::<G, T>(gpu, params, divided, gpu.cta_idx_x()) };
        return;
    }
    let unit = gpu.cta_idx_x() * params.units + gpu.warp();
    if unit < units(params.num_query_heads, params.head_size_v) {
        // SAFETY: a unit; stage 1 has written the sequence's parts, which are few: this function's contract.
        unsafe { merge_few::<G, T>(gpu, params, divided, unit) };
    }
}

/// The kernel behind a stage 1 that attended by a schedule.
///
/// # Safety
/// As for [`merge_splits`], with any number of parts; no kernel that may still run writes the schedule.
#[inline(always)]
pub unsafe fn merge_scheduled<G: Gpu, T: Half>(gpu: G, params: &MergeParams) {
    // SAFETY: this function's contract.
    let count = unsafe { MergeItem::load_count(gpu, params.merges) };
    gpu.wait_for_previous_kernels();
    // SAFETY: `check` is 0 or a finished check's record: the host's `launch`.
    if unsafe { crate::attention::check::found_fault(gpu, params.check) } {
        return;
    }
    let first = gpu.cta_idx_x() * params.units;
    let behind = units(params.num_query_heads, params.head_size_v).min(first + params.units);
    // Whatever the schedule says, nothing is read or written that there is not.
    let count = count.min(params.num_seqs);
    let mut y = gpu.cta_idx_y();
    while y < count {
        // SAFETY: one of those that there are.
        let divided = unsafe { Divided::of_item(gpu, params, y) };
        y += params.ctas_y;
        let Some(divided) = divided else { continue };
        if params.units > 1 && divided.num_parts <= FEW_SPLITS {
            let unit = first + gpu.warp();
            if unit < behind {
                // SAFETY: a unit; stage 1 has written the sequence's parts, which are few.
                unsafe { merge_few::<G, T>(gpu, params, divided, unit) };
            }
            continue;
        }
        let mut unit = first;
        while unit < behind {
            // SAFETY: a unit, the same for all threads, which all come here and to the barrier, behind which shared memory
            // may be written again; stage 1 has written the sequence's parts.
            unsafe {
                merge_together::<G, T>(gpu, params, divided, unit);
                gpu.sync_cta();
            }
            unit += 1;
        }
    }
}

/// A unit of a sequence of few parts, by a warp.
///
/// # Safety
/// The unit exists, and stage 1 has written the parts.
#[inline(always)]
unsafe fn merge_few<G: Gpu, T: Half>(gpu: G, params: &MergeParams, divided: Divided, unit: u32) {
    let (row, parts) = Row::of(gpu, params, divided, unit);
    // SAFETY: this function's contract: the row's head exists, stage 1 wrote every part and its lse.
    unsafe {
        let batch = parts.load(gpu, 0, 1);
        let splits = Softmax::of(gpu, total_of(gpu, &batch), row.sink(gpu, params));
        let mut total = [0.0f32; 4];
        unroll!([4] i in 0..UNROLL {
            let acc = splits.add(gpu, [0.0; 4], batch[i]);
            unroll!([4] j in 0..4 {
                total[j] += acc[j];
            });
        });
        row.store::<G, T>(gpu, params, total);
        if gpu.lane() == 0 && row.column == 0 {
            row.store_lse(gpu, params, splits);
        }
    }
}

/// A unit by all warps.
///
/// # Safety
/// Every thread comes here with the same unit, which exists; stage 1 has written the sequence's parts; nobody uses shared
/// memory.
#[inline(always)]
unsafe fn merge_together<G: Gpu, T: Half>(
    gpu: G,
    params: &MergeParams,
    divided: Divided,
    unit: u32,
) {
    let (row, parts) = Row::of(gpu, params, divided, unit);
    // SAFETY: this function's contract: the row's head exists, stage 1 wrote every part and its lse; all come to the
    // barriers, which lie between what is written to shared memory and what is read of it.
    unsafe {
        let mut split = gpu.warp();
        // What the loop below begins with is under way before the lse, on which its weights depend, is waited for.
        let mut batch = parts.load(gpu, split, WARPS);
        let splits = Softmax::of(gpu, parts.total(gpu), row.sink(gpu, params));
        let mut acc = [0.0f32; 4];
        while split < divided.num_parts {
            split += UNROLL as u32 * WARPS;
            let next = parts.load(gpu, split, WARPS);
            unroll!([4] i in 0..UNROLL {
                acc = splits.add(gpu, acc, batch[i]);
            });
            batch = next;
        }
        let at = gpu.shared_base() + gpu.thread_idx() * 16;
        gpu.st_shared_b128(at, acc.map(f32::to_bits));
        gpu.sync_cta();
        if gpu.warp() == 0 {
            let mut total = [0.0f32; 4];
            for warp in 0..WARPS {
                let part = gpu.ld_shared_b128(at + warp * WARP * 16);
                unroll!([4] j in 0..4 {
                    total[j] += f32::from_bits(part[j]);
                });
            }
            row.store::<G, T>(gpu, params, total);
        }
        if gpu.thread_idx() == 0 && row.column == 0 {
            row.store_lse(gpu, params, splits);
        }
    }
}

/// What parts are weighed by.
#[derive(Clone, Copy)]
struct Softmax {
    splits: Lse,
    with_sink: Lse,
    /// One over the sum, with the sink; of a row that sees no token, whose every part is empty, 0.
    scale: f32,
}

impl Softmax {
    #[inline(always)]
    fn of<G: Gpu>(gpu: G, splits: Lse, sink_log2: f32) -> Self {
        let mut with_sink = splits;
        if sink_log2 != f32::NEG_INFINITY {
            with_sink = splits.with(gpu, Lse::of_score(sink_log2));
        }
        Self {
            splits,
            with_sink,
            scale: recip_of_sum(gpu, with_sink.sum),
        }
    }

    /// `acc` and the share of a part.
    #[inline(always)]
    fn add<G: Gpu>(self, gpu: G, acc: [f32; 4], (part, lse): Part) -> [f32; 4] {
        let weight = lse.weight(gpu, self.with_sink.max) * self.scale;
        let mut sum = acc;
        unroll!([4] j in 0..4 {
            sum[j] = gpu.fma(weight, f32::from_bits(part[j]), acc[j]);
        });
        sum
    }
}

/// A row of the output, and the first of a lane's four columns.
#[derive(Clone, Copy)]
struct Row {
    out_row: u32,
    token: u32,
    head: u32,
    column: u32,
}

impl Row {
    /// A lane's columns of a unit of a sequence: where they go, and their parts.
    #[inline(always)]
    fn of<G: Gpu>(gpu: G, params: &MergeParams, divided: Divided, unit: u32) -> (Self, Parts) {
        let tiles = column_tiles(params.head_size_v);
        let (token, head) = (gpu.cta_idx_z(), unit >> tiles.trailing_zeros());
        let column = (unit & (tiles - 1)) * COLUMNS + gpu.lane() * 4;
        let row = Self {
            out_row: divided.out_row,
            token,
            head,
            column,
        };
        let index = token * params.num_query_heads + head;
        (row, Parts::of(params, divided, index, column))
    }

    /// The head's sink, base 2; minus infinity if there are none.
    ///
    /// # Safety
    /// The head exists.
    #[inline(always)]
    unsafe fn sink<G: Gpu>(self, gpu: G, params: &MergeParams) -> f32 {
        if params.sink == 0 {
            return f32::NEG_INFINITY;
        }
        // SAFETY: sinks are one for each query head: the host's check of the request.
        let sink = f32::from_bits(unsafe { gpu.ld_global_b32(params.sink + 4 * self.head as u64) });
        sink * core::f32::consts::LOG2_E
    }

    /// Stores a lane's columns, if the row has them.
    ///
    /// # Safety
    /// The row exists, and so does the output that `params` names; no other lane writes its columns.
    #[inline(always)]
    unsafe fn store<G: Gpu, T: Half>(self, gpu: G, params: &MergeParams, [a, b, c, d]: [f32; 4]) {
        if self.column < params.head_size_v {
            let packed = T::pack(gpu, a, b) as u64 | (T::pack(gpu, c, d) as u64) << 32;
            let out = params.out
                + self.out_row as u64 * params.stride_out_seq as u64
                + self.token as u64 * params.stride_out_token as u64
                + self.head as u64 * params.stride_out_head as u64
                + 2 * self.column as u64;
            // SAFETY: columns that the row has, this lane's: this function's contract; 8-byte aligned, as strides are
            // multiples of 4 values.
            unsafe { gpu.st_global_b64(out, packed) };
        }
    }

    /// Stores the row's lse, if it is wanted.
    ///
    /// # Safety
    /// The row exists, and so does its element of the lse that `params` names, if any; one lane calls this.
    #[inline(always)]
    unsafe fn store_lse<G: Gpu>(self, gpu: G, params: &MergeParams, softmax: Softmax) {
        if params.lse == 0 {
            return;
        }
        let lse = if params.sink_in_lse != 0 {
            softmax.with_sink
        } else {
            softmax.splits
        };
        let at = params.lse
            + self.out_row as u64 * params.stride_lse_seq as u64
            + self.token as u64 * params.stride_lse_token as u64
            + self.head as u64 * params.stride_lse_head as u64;
        // SAFETY: the row's element, which this lane alone writes: this function's contract.
        unsafe { gpu.st_global_b32(at, lse.natural(gpu).to_bits()) };
    }
}

/// [`merge_splits`] into outputs of `T`.
#[derive(Debug)]
pub struct MergeSplits<T>(PhantomData<T>);

impl<T: Half> Kernel for MergeSplits<T> {
    type Params = MergeParams;
    const VARIANT: Variant = Variant::MergeSplits { dtype: T::HALF };
    const THREADS: u32 = THREADS;
    // What it does is wait for memory.
    const MIN_CTAS: u32 = 7;

    #[inline(always)]
    unsafe fn run<G: Gpu>(gpu: G, params: &MergeParams) {
        // SAFETY: launched as `merge_splits` asks, on tensors of its shapes: the contract of `Kernel::run`.
        unsafe { merge_splits::<G, T>(gpu, params) }
    }
}

/// [`merge_scheduled`] into outputs of `T`.
#[derive(Debug)]
pub struct MergeScheduled<T>(PhantomData<T>);

impl<T: Half> Kernel for MergeScheduled<T> {
    type Params = MergeParams;
    const VARIANT: Variant = Variant::MergeScheduled { dtype: T::HALF };
    const THREADS: u32 = THREADS;
    const MIN_CTAS: u32 = 5;

    #[inline(always)]
    unsafe fn run<G: Gpu>(gpu: G, params: &MergeParams) {
        // SAFETY: launched as `merge_scheduled` asks, on tensors of its shapes: the contract of `Kernel::run`.
        unsafe { merge_scheduled::<G, T>(gpu, params) }
    }
}
