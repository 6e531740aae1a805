//! Stage 2 of split-KV decode attention: the parts of a sequence become its output. A row's units are tiles of 128 columns of
//! its heads; a lane has four columns of one. Four kernels, which add in the same order:
//!
//! `merge_few` is for rows of at most four parts. Grid: x = fours of units, y = sequence, z = query token. A thread block owns
//! four units, a warp each, so that none waits for another:
//!
//! ```text
//! all parts and their partial_lse are under way
//! lse = all of partial_lse                      a maximum, base 2, and a sum each
//! for each part: acc += weight of its partial_lse * partial_out
//! out = acc / (lse's sum + 2^(sink - max)); lse without or with the sink in the sum
//! ```
//!
//! `merge_splits` is for any number. Grid: x = unit, y = sequence, z = query token. A thread block owns a unit; four warps share
//! out each chunk of 32 parts:
//!
//! ```text
//! the first parts of this warp are under way
//! lse = all of partial_lse
//! for each batch of this warp's parts: acc += weight of its partial_lse * partial_out
//! acc is added over the warps; out and lse as above
//! ```
//!
//! `merge_many` is the same for more than a chunk, of which each of four teams of four warps takes one at a time, whole: rows
//! of so many parts are few, so that time goes by waiting.
//!
//! Sequences of one part were finished by stage 1.
//!
//! `merge_scheduled` is for those that the device cut, by a [`schedule`](crate::attention::schedule), so that nobody else knows
//! how many parts there are. Grid: x = unit, or fours of units, y = what that one says is to be merged, z = query token. There
//! may be more of it than the grid has:
//!
//! ```text
//! for each sequence, as many further as the grid has:
//!     of few parts: this warp's unit            as merge_few
//!     of more, for each unit: by all warps      as merge_splits
//! ```

use core::marker::PhantomData;

use crate::attention::item::MergeItem;
use crate::decode::merge_row::{COLUMNS, Row, Softmax, column_tiles};
use crate::decode::parts::{Divided, UNROLL, total_of};
use crate::dtype::Half;
use crate::entry::Variant;
use crate::gpu::unroll::unroll;
use crate::gpu::{Gpu, WARP};
use crate::kernel::Kernel;
use crate::params::MergeParams;

/// Warps of a team.
const WARPS: u32 = 4;
/// Threads of a team: all of a thread block but of `merge_many`.
pub const THREADS: u32 = WARPS * WARP;

/// Dynamic shared memory of a thread block of `merge_splits` and `merge_scheduled`: each warp's columns.
pub const SHARED_BYTES: u32 = shared_bytes(1);
/// The same of `merge_many`.
pub const SHARED_BYTES_OF_MANY: u32 = shared_bytes(TEAMS);

/// Each warp's columns.
const fn shared_bytes(teams: u32) -> u32 {
    teams * WARPS * COLUMNS * 4
}

/// Units of a row: tiles of columns of its heads.
pub const fn units(num_query_heads: u32, head_size_v: u32) -> u32 {
    num_query_heads * column_tiles(head_size_v)
}

/// Most units of a thread block: one for each warp.
pub const MOST_UNITS: u32 = WARPS;
/// Parts of which a warp takes all of its unit's: so many loads are under way at once.
pub const FEW_PARTS: u32 = UNROLL as u32;
/// Parts of a chunk, of which each warp of a team takes two batches.
const CHUNK: u32 = 2 * WARPS * FEW_PARTS;
/// Parts that one team is enough for.
pub const SOME_PARTS: u32 = CHUNK;
/// Teams of a thread block of `merge_many`.
const TEAMS: u32 = 4;

/// The kernel for rows of few parts.
///
/// # Safety
/// Launched on a grid of so many thread blocks along x as fours of units of a row need and [`THREADS`] threads; `params`
/// names tensors of the shapes it documents, of sequences of at most [`FEW_PARTS`] parts. Stage 1, the kernel ahead, wrote
/// the parts of every sequence that has more than one split; no two sequences have one row; no kernel that may still run
/// writes lengths, or starts.
#[inline(always)]
pub unsafe fn merge_few<G: Gpu, T: Half>(gpu: G, params: &MergeParams) {
    // SAFETY: this function's contract.
    let Some(divided) = (unsafe { divided(gpu, params) }) else {
        return;
    };
    let unit = gpu.cta_idx_x() * MOST_UNITS + gpu.warp();
    if unit < units(params.num_query_heads, params.head_size_v) {
        // SAFETY: a unit; stage 1 has written the sequence's parts, which are few: this function's contract.
        unsafe { merge_alone::<G, T>(gpu, params, divided.of_splits(), unit) };
    }
}

/// The kernel for rows of any number of parts, by `TEAMS` teams.
///
/// # Safety
/// As for [`merge_few`], but with as many thread blocks along x as a row has units, `TEAMS` times [`THREADS`] threads and
/// [`shared_bytes`] of shared memory; and sequences may have any number of parts.
#[inline(always)]
pub unsafe fn merge_splits<G: Gpu, T: Half, const TEAMS: u32>(gpu: G, params: &MergeParams) {
    // SAFETY: this function's contract.
    let Some(divided) = (unsafe { divided(gpu, params) }) else {
        return;
    };
    // SAFETY: x counts units; every thread comes here; stage 1 has written the sequence's parts.
    unsafe {
        merge_together::<G, T, TEAMS>(gpu, params, divided.of_splits(), gpu.cta_idx_x());
    }
}

/// The sequence of a thread block, if there is anything to merge: the kernels ahead are done.
///
/// # Safety
/// Every thread comes here; y counts sequences; lengths and starts are there, and nobody writes them.
#[inline(always)]
unsafe fn divided<G: Gpu>(gpu: G, params: &MergeParams) -> Option<Divided> {
    // SAFETY: this function's contract.
    let divided = unsafe { Divided::of_seq(gpu, params, gpu.cta_idx_y()) };
    // Also where there is nothing to merge: a kernel behind this one may begin when all of it has, and stage 1 has to be
    // done by then.
    gpu.wait_for_previous_kernels();
    let divided = divided?;
    // SAFETY: `check` is 0 or a finished check's record: the host's `launch`.
    let is_fault = unsafe { crate::attention::check::found_fault(gpu, params.check) };
    (!is_fault).then_some(divided)
}

/// The kernel behind a stage 1 that attended by a schedule.
///
/// # Safety
/// As for [`merge_splits`], but with as many thread blocks along x as a row has lots of `params.units` units, and any number
/// along y; no kernel that may still run writes the schedule.
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
        if params.units > 1 && divided.num_parts <= FEW_PARTS {
            let unit = first + gpu.warp();
            if unit < behind {
                // SAFETY: a unit; stage 1 has written the sequence's parts, which are few.
                unsafe { merge_alone::<G, T>(gpu, params, divided, unit) };
            }
            continue;
        }
        let mut unit = first;
        while unit < behind {
            // SAFETY: a unit, the same for all threads, which all come here and to the barrier, behind which shared memory
            // may be written again; stage 1 has written the sequence's parts.
            unsafe {
                merge_together::<G, T, 1>(gpu, params, divided.again(gpu), unit);
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
unsafe fn merge_alone<G: Gpu, T: Half>(gpu: G, params: &MergeParams, divided: Divided, unit: u32) {
    let (row, parts) = Row::of(gpu, params, divided, unit);
    // SAFETY: this function's contract: the row's head exists, stage 1 wrote every part and its lse.
    unsafe {
        let batch = parts.load(gpu, 0, 1);
        let lses = parts.load_lses(gpu, 0, 1);
        let splits = Softmax::of(gpu, total_of(gpu, lses), row.sink(gpu, params));
        if gpu.lane() == 0 && row.column == 0 {
            row.store_lse(gpu, params, splits);
        }
        let mut total = [0.0f32; 4];
        unroll!([4] i in 0..UNROLL {
            let acc = splits.add(gpu, [0.0; 4], batch[i], lses[i]);
            unroll!([4] j in 0..4 {
                total[j] += acc[j];
            });
        });
        row.store::<G, T>(gpu, params, total);
    }
}

/// A unit by `TEAMS` teams. One keeps a batch of each warp under way, since more thread blocks then fit side by side; several
/// keep a chunk's both.
///
/// # Safety
/// Every thread comes here with the same unit, which exists; stage 1 has written the sequence's parts; nobody uses shared
/// memory.
#[inline(always)]
unsafe fn merge_together<G: Gpu, T: Half, const TEAMS: u32>(
    gpu: G,
    params: &MergeParams,
    divided: Divided,
    unit: u32,
) {
    const BATCH: u32 = WARPS * UNROLL as u32;
    let is_alone = TEAMS == 1;
    let (row, parts) = Row::of(gpu, params, divided, unit);
    // SAFETY: this function's contract: the row's head exists, stage 1 wrote every part and its lse; all come to the
    // barriers, which lie between what is written to shared memory and what is read of it.
    unsafe {
        let (team, warp) = (gpu.warp() / WARPS, gpu.warp() % WARPS);
        let mut split = team * CHUNK + warp;
        let load = |split| {
            let first = parts.load(gpu, split, WARPS);
            if is_alone {
                return [first; 2];
            }
            [first, parts.load(gpu, split + BATCH, WARPS)]
        };
        // What the loop below begins with is under way before the lse, on which its weights depend, is waited for.
        let mut batches = load(split);
        let total = if is_alone {
            parts.total::<G, 2>(gpu)
        } else {
            parts.total::<G, 3>(gpu)
        };
        let splits = Softmax::of(gpu, total, row.sink(gpu, params));
        if gpu.thread_idx() == 0 && row.column == 0 {
            row.store_lse(gpu, params, splits);
        }
        let mut acc = [0.0f32; 4];
        loop {
            // Read a second time, of memory that is near by now: held since the first, they would take the registers of a
            // whole part.
            let lses = parts.load_lses(gpu, split, WARPS);
            unroll!([4] i in 0..UNROLL {
                acc = splits.add(gpu, acc, batches[0][i], lses[i]);
            });
            if !is_alone {
                let lses = parts.load_lses(gpu, split + BATCH, WARPS);
                unroll!([4] i in 0..UNROLL {
                    acc = splits.add(gpu, acc, batches[1][i], lses[i]);
                });
            }
            // Not to be known for a sum, of which each load's address would have a register of its own from turn to turn.
            split = gpu.black_box(split + if is_alone { BATCH } else { TEAMS * CHUNK });
            if split >= divided.num_parts {
                break;
            }
            batches = load(split);
        }
        let at = gpu.shared_base() + gpu.thread_idx() * 16;
        gpu.st_shared_b128(at, acc.map(f32::to_bits));
        gpu.sync_cta();
        if gpu.warp() == 0 {
            let mut total = [0.0f32; 4];
            for warp in 0..WARPS {
                let mut of_warp = [0.0f32; 4];
                for team in 0..TEAMS {
                    let part = gpu.ld_shared_b128(at + (team * WARPS + warp) * WARP * 16);
                    unroll!([4] j in 0..4 {
                        of_warp[j] += f32::from_bits(part[j]);
                    });
                }
                unroll!([4] j in 0..4 {
                    total[j] += of_warp[j];
                });
            }
            row.store::<G, T>(gpu, params, total);
        }
    }
}

/// [`merge_few`] into outputs of `T`.
#[derive(Debug)]
pub struct MergeFew<T>(PhantomData<T>);

impl<T: Half> Kernel for MergeFew<T> {
    type Params = MergeParams;
    const VARIANT: Variant = Variant::MergeFew { dtype: T::HALF };
    const THREADS: u32 = THREADS;
    // 48 registers. What it does is wait for memory, of which each warp asks for all that it needs at once: as many as fit.
    const MIN_CTAS: u32 = 10;

    #[inline(always)]
    unsafe fn run<G: Gpu>(gpu: G, params: &MergeParams) {
        // SAFETY: launched as `merge_few` asks, on tensors of its shapes: the contract of `Kernel::run`.
        unsafe { merge_few::<G, T>(gpu, params) }
    }
}

/// [`merge_splits`] into outputs of `T`, for rows of at most [`SOME_PARTS`] parts.
#[derive(Debug)]
pub struct MergeSplits<T>(PhantomData<T>);

impl<T: Half> Kernel for MergeSplits<T> {
    type Params = MergeParams;
    const VARIANT: Variant = Variant::MergeSplits { dtype: T::HALF };
    const THREADS: u32 = THREADS;
    // 48 registers, for 10 thread blocks side by side on an H200. With 72, for 7, a step of MLA of 64 sequences of four parts
    // took 6 % longer, likely for that.
    const MIN_CTAS: u32 = 10;

    #[inline(always)]
    unsafe fn run<G: Gpu>(gpu: G, params: &MergeParams) {
        // SAFETY: launched as `merge_splits` asks, on tensors of its shapes: the contract of `Kernel::run`.
        unsafe { merge_splits::<G, T, 1>(gpu, params) }
    }
}

/// [`merge_splits`] into outputs of `T`, for rows of more parts.
#[derive(Debug)]
pub struct MergeMany<T>(PhantomData<T>);

impl<T: Half> Kernel for MergeMany<T> {
    type Params = MergeParams;
    const VARIANT: Variant = Variant::MergeMany { dtype: T::HALF };
    const THREADS: u32 = TEAMS * THREADS;
    // 64 registers: so many that a chunk's batches are both under way, and so few that two thread blocks fit. On other GPUs than
    // compute capability 9.0 stock rustc's PTX leaves a few words in memory with them.
    const MIN_CTAS: u32 = 2;

    #[inline(always)]
    unsafe fn run<G: Gpu>(gpu: G, params: &MergeParams) {
        // SAFETY: launched as `merge_splits` asks, on tensors of its shapes: the contract of `Kernel::run`.
        unsafe { merge_splits::<G, T, TEAMS>(gpu, params) }
    }
}

/// [`merge_scheduled`] into outputs of `T`.
#[derive(Debug)]
pub struct MergeScheduled<T>(PhantomData<T>);

impl<T: Half> Kernel for MergeScheduled<T> {
    type Params = MergeParams;
    const VARIANT: Variant = Variant::MergeScheduled { dtype: T::HALF };
    const THREADS: u32 = THREADS;
    // 64 registers: those of the longer way and of the loop around both, of which none then is kept in memory.
    const MIN_CTAS: u32 = 8;

    #[inline(always)]
    unsafe fn run<G: Gpu>(gpu: G, params: &MergeParams) {
        // SAFETY: launched as `merge_scheduled` asks, on tensors of its shapes: the contract of `Kernel::run`.
        unsafe { merge_scheduled::<G, T>(gpu, params) }
    }
}
