//! Which thread block attends to which keys, decided on the device from the lengths of the sequences.
//!
//! The sequences of a batch lie end to end on a line, each as long as it has tiles of tokens, and a little more for what
//! a thread block does before its first tile and after its last. The line is cut into runs of the same length, as many as
//! thread blocks run side by side (for each tile of heads):
//!
//! ```text
//!   sequence 0         sequence 1  2  sequence 3
//!  |------------------|-----------|--|---------------------|
//!        run 0     ^     run 1     ^     run 2     ^ run 3
//! ```
//!
//! A thread block attends to what lies between two ends, of sequences or of runs: an [`Item`]. Items are in the order in
//! which each begins in its run, so that a multiprocessor that is done with one begins the next when a run would. A
//! sequence of one item is finished there; of others each item leaves a part, and
//! [`merge_splits`](crate::decode::merge::merge_splits) merges them. A run has at most two parts: of the sequence in
//! whose middle it begins, and of the one in whose middle it ends. So there are no more than twice as many parts as runs,
//! whatever the lengths are.
//!
//! `schedule` makes cuts and items. Grid: one thread block.
//!
//! ```text
//! for each sequence, a thread each:  line[sequence] = what lies before it           a sum over the thread block
//! for each cut, a thread each:       its sequence, by bisection of the line; its token; how many parts the sequence has
//!                                    the item that begins with it
//! for each sequence, a thread each:  where it begins in its run
//!                                    how many begin before: its place among the items
//! ```

use core::num::NonZeroU64;

use crate::attention::item::{Cut, Item};
use crate::attention::sequence::{first_key, query_row, seq_len};
use crate::attention::tile::TILE_GROUP;
use crate::entry::{EntryId, Variant};
use crate::gpu::{Gpu, WARP, div};
use crate::kernel::Kernel;
use crate::params::ScheduleParams;

const WARPS: u32 = 16;
/// Threads of the thread block.
pub const THREADS: u32 = WARPS * WARP;
/// Most sequences that are put in order. Of more, each is a small share of a run, and any order will do.
const MOST_ORDERED: u32 = 1024;
/// Its shared memory: a sum of each warp, and where each sequence begins in its run.
pub const SHARED_BYTES: u32 = STARTS + MOST_ORDERED * 4;
const STARTS: u32 = WARPS * 8;

/// Most items of so many runs and sequences: the grid's y of those who attend.
pub const fn most_items(num_runs: u32, num_seqs: u32) -> u32 {
    num_runs.saturating_add(num_seqs)
}

/// Makes cuts and items.
///
/// # Safety
/// Launched as one thread block of [`THREADS`] threads with [`SHARED_BYTES`] of shared memory; `params` names tensors of
/// the shapes it documents.
#[inline(always)]
pub unsafe fn schedule<G: Gpu>(gpu: G, params: &ScheduleParams) {
    let mut total = 0;
    let mut chunk = 0;
    while chunk < params.num_seqs {
        let seq = chunk + gpu.thread_idx();
        // SAFETY: a sequence that exists: `seq_lens` and `query_start_loc` have its length and start: the host's check.
        // Every thread comes here; `line` has an element for each sequence.
        unsafe {
            let own = if seq < params.num_seqs {
                length(gpu, params, seq)
            } else {
                0
            };
            let (ahead, sum) = sum_ahead(gpu, own);
            if seq < params.num_seqs {
                gpu.st_global_b64(params.line + 8 * seq as u64, total + ahead);
            }
            total += sum;
        }
        chunk += THREADS;
    }
    // SAFETY: every thread comes here; the line's last element, which one thread writes.
    unsafe {
        if gpu.thread_idx() == 0 {
            gpu.st_global_b64(params.line + 8 * params.num_seqs as u64, total);
        }
        gpu.sync_cta();
    }
    let runs = Runs::of(params, total);
    let mut index = gpu.thread_idx();
    while index <= params.num_runs {
        // SAFETY: the line is complete, as of the barrier; there is a cut at each end of a run, and an item for each run;
        // this thread writes these.
        unsafe {
            let cut = runs.cut(gpu, params, index);
            let words = [cut.seq, cut.token, cut.first_run, cut.num_parts];
            gpu.st_global_b128(params.cuts + Cut::BYTES * index as u64, words);
            if index < params.num_runs {
                let mut item = Item::NONE;
                if cut.num_parts != 0 {
                    let is_last = index - cut.first_run == cut.num_parts - 1;
                    let next = runs.cut(gpu, params, index + 1);
                    item = Item {
                        seq: cut.seq,
                        from: cut.token,
                        to: if is_last { u32::MAX } else { next.token },
                        part: 2 * index,
                    };
                }
                store(gpu, params, index, item);
            }
        }
        index += THREADS;
    }
    // SAFETY: every thread comes here, and the line is complete.
    unsafe { order(gpu, params, runs) };
}

/// Stores item `index`.
///
/// # Safety
/// There is room for it, and no other thread stores it.
#[inline(always)]
unsafe fn store<G: Gpu>(gpu: G, params: &ScheduleParams, index: u32, item: Item) {
    let at = params.items + Item::BYTES * index as u64;
    // SAFETY: this function's contract.
    unsafe { gpu.st_global_b128(at, [item.seq, item.from, item.to, item.part]) };
}

/// Stores the items that sequences begin with, behind those that begin runs.
///
/// # Safety
/// Every thread comes here, and the line is complete.
#[inline(always)]
unsafe fn order<G: Gpu>(gpu: G, params: &ScheduleParams, runs: Runs) {
    let starts = gpu.shared_base() + STARTS;
    let is_ordered = params.num_seqs <= MOST_ORDERED;
    if is_ordered {
        let mut seq = gpu.thread_idx();
        while seq < params.num_seqs {
            // SAFETY: a sequence; the line is complete. Each word has one writer.
            unsafe {
                let start = runs.start(params, ends(gpu, params, seq));
                gpu.st_shared_b32(starts + 4 * seq, start);
            }
            seq += THREADS;
        }
        // SAFETY: every thread comes here.
        unsafe { gpu.sync_cta() };
    }
    let mut seq = gpu.thread_idx();
    while seq < params.num_seqs {
        let mut place = if is_ordered { 0 } else { seq };
        if is_ordered {
            // SAFETY: written before the barrier.
            let own = unsafe { gpu.ld_shared_b32(starts + 4 * seq) };
            for other in 0..params.num_seqs {
                // SAFETY: written before the barrier.
                let start = unsafe { gpu.ld_shared_b32(starts + 4 * other) };
                place += (start < own || (start == own && other < seq)) as u32;
            }
        }
        // SAFETY: a sequence; the line is complete. There is an item for each sequence behind those of the runs, and no two
        // have one place.
        unsafe {
            let (begin, end) = ends(gpu, params, seq);
            let mut item = Item::NONE;
            if begin != end {
                let (first, last) = runs.inside(params, (begin, end));
                let mut to = u32::MAX;
                if first < last {
                    to = runs.cut(gpu, params, first as u32).token;
                }
                item = Item {
                    seq,
                    from: 0,
                    to,
                    // Of the run before the cut, if there is a cut.
                    part: (2 * first as u32).wrapping_sub(1),
                };
            }
            store(gpu, params, params.num_runs + place, item);
        }
        seq += THREADS;
    }
}

/// Where a sequence begins and ends on the line.
///
/// # Safety
/// There is such a sequence, and the line is complete.
#[inline(always)]
unsafe fn ends<G: Gpu>(gpu: G, params: &ScheduleParams, seq: u32) -> (u64, u64) {
    let at = params.line + 8 * seq as u64;
    // SAFETY: this function's contract; the line has an element more than there are sequences.
    unsafe { (gpu.ld_global_b64(at), gpu.ld_global_b64(at + 8)) }
}

/// How long a sequence is on the line, in tiles: nothing if it has no query token.
///
/// # Safety
/// The sequence has a length, and a start if there are starts.
#[inline(always)]
unsafe fn length<G: Gpu>(gpu: G, params: &ScheduleParams, seq: u32) -> u64 {
    // SAFETY: this function's contract.
    let (len, row) = unsafe {
        (
            seq_len(
                gpu,
                params.seq_lens,
                params.stride_seq_lens,
                seq,
                params.max_seq_len,
            ),
            query_row(gpu, params.query_start_loc, params.num_tokens, seq),
        )
    };
    if row.is_none() {
        return 0;
    }
    let seen = len - first_key(len, params.mask) / TILE_GROUP * TILE_GROUP;
    // SAFETY: the host's plan has tiles of some tokens.
    let whole = unsafe { div(seen, params.tile_len) };
    whole as u64 + (whole * params.tile_len < seen) as u64 + params.ends as u64
}

/// The sum of what threads before this one have, and that of all.
///
/// # Safety
/// Every thread of the thread block comes here.
#[inline(always)]
unsafe fn sum_ahead<G: Gpu>(gpu: G, own: u64) -> (u64, u64) {
    let mut up_to = own;
    let mut distance = 1;
    while distance < WARP {
        let has = gpu.lane() >= distance;
        let source = if has {
            gpu.lane() - distance
        } else {
            gpu.lane()
        };
        // SAFETY: converged.
        let other = unsafe {
            gpu.shfl(up_to as u32, source) as u64
                | (gpu.shfl((up_to >> 32) as u32, source) as u64) << 32
        };
        up_to += if has { other } else { 0 };
        distance *= 2;
    }
    let sums = gpu.shared_base();
    let (mut ahead, mut all) = (up_to - own, 0);
    // SAFETY: every thread comes here; a warp writes its own sum, all read them between the barriers.
    unsafe {
        if gpu.lane() == WARP - 1 {
            gpu.st_shared_b64(sums + 8 * gpu.warp(), up_to);
        }
        gpu.sync_cta();
        for warp in 0..WARPS {
            let sum = gpu.ld_shared_b64(sums + 8 * warp);
            all += sum;
            ahead += if warp < gpu.warp() { sum } else { 0 };
        }
        gpu.sync_cta();
    }
    (ahead, all)
}

/// The line, and how it is cut.
#[derive(Clone, Copy)]
struct Runs {
    total: u64,
    /// Runs that are not empty: never more than the line has tiles, so that no two cuts fall on the same tile.
    count: u64,
}

impl Runs {
    #[inline(always)]
    fn of(params: &ScheduleParams, total: u64) -> Self {
        Self {
            total,
            count: (params.num_runs as u64).min(total),
        }
    }

    /// The first cut at `place` or behind it.
    #[inline(always)]
    fn from(self, place: u64) -> u64 {
        match NonZeroU64::new(self.total) {
            Some(total) => (place * self.count + (self.total - 1)) / total,
            None => 0,
        }
    }

    /// Cut `index`.
    ///
    /// # Safety
    /// The line is complete.
    #[inline(always)]
    unsafe fn cut<G: Gpu>(self, gpu: G, params: &ScheduleParams, index: u32) -> Cut {
        let at_start = |seq| Cut {
            seq,
            token: 0,
            first_run: 0,
            num_parts: 0,
        };
        let count = NonZeroU64::new(self.count);
        let Some(count) = count.filter(|count| (index as u64) < count.get()) else {
            return at_start(params.num_seqs);
        };
        let place = index as u64 * self.total / count;
        // The last sequence that begins at the place or before it, and ends behind it.
        let (mut seq, mut behind) = (0, params.num_seqs);
        while behind - seq > 1 {
            let middle = seq + (behind - seq) / 2;
            // SAFETY: a sequence; the line is complete.
            if unsafe { gpu.ld_global_b64(params.line + 8 * middle as u64) } <= place {
                seq = middle;
            } else {
                behind = middle;
            }
        }
        // SAFETY: a sequence; the line is complete.
        let (begin, end) = unsafe { ends(gpu, params, seq) };
        let (first, last) = self.inside(params, (begin, end));
        if (index as u64) < first {
            return at_start(seq);
        }
        if index as u64 >= last {
            return at_start(seq + 1);
        }
        Cut {
            seq,
            token: (place - begin - params.ends as u64) as u32 * params.tile_len,
            first_run: first as u32 - 1,
            num_parts: (last - first) as u32 + 1,
        }
    }

    /// The cuts inside of a sequence that lies between these ends: the first, and one past the last. One that would leave
    /// less than a part on one side is not inside, but at that side's end.
    #[inline(always)]
    fn inside(self, params: &ScheduleParams, (begin, end): (u64, u64)) -> (u64, u64) {
        let least = params.least_tiles as u64;
        let first = begin + params.ends as u64 + least;
        let last = (end + 1).saturating_sub(least);
        // No cut, where both parts would be too short; then those in the first half are at its beginning.
        let last = if first < last { last } else { first };
        (self.from(first.min(end)), self.from(last.min(end)))
    }

    /// Where a sequence that lies between these ends begins in its run, as a share of a run: at its beginning too, if a
    /// cut moved there.
    #[inline(always)]
    fn start(self, params: &ScheduleParams, (begin, end): (u64, u64)) -> u32 {
        let (first, _) = self.inside(params, (begin, end));
        match NonZeroU64::new(self.total) {
            Some(total) if self.from(begin) == first => {
                ((begin * self.count % total) as f32 / self.total as f32 * 65536.0) as u32
            }
            Some(_) | None => 0,
        }
    }
}

/// [`schedule`].
#[derive(Debug)]
pub enum Schedule {}

impl Kernel for Schedule {
    type Params = ScheduleParams;
    const VARIANT: Variant = Variant::Only(EntryId::schedule);
    const THREADS: u32 = THREADS;

    #[inline(always)]
    unsafe fn run<G: Gpu>(gpu: G, params: &ScheduleParams) {
        // SAFETY: whoever launches keeps the kernel's conditions.
        unsafe { schedule(gpu, params) }
    }
}
