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
//! [`merge_scheduled`](crate::decode::merge::merge_scheduled) merges them, as a [`MergeItem`] says. A run has at most two
//! parts: of the sequence in whose middle it begins, and of the one in whose middle it ends. So there are no more than
//! twice as many parts as runs, whatever the lengths are.
//!
//! Sequences of about the same length are better off with pieces of their own: `pieces` says how, and when.
//!
//! `schedule` makes the items. Grid: one thread block.
//!
//! ```text
//! for each sequence, a thread each:  line[sequence] = what lies before it           a sum over the thread block
//! if pieces cost less: items of pieces; else
//! for each run, a thread each:       the sequence in whose middle it begins, by bisection of the line; its token
//!                                    the item that begins with it
//! for each sequence, a thread each:  where it begins in its run
//!                                    how many begin before: its place among the items
//! ```

use core::num::NonZeroU64;

use crate::attention::item::{Item, MergeItem};
use crate::attention::line::{LINE_BYTES, Line, MOST_IN_SHARED, Measure, WARPS, length, sum_up};
use crate::attention::pieces;
use crate::entry::Variant;
use crate::gpu::{Gpu, WARP};
use crate::kernel::Kernel;
use crate::params::ScheduleParams;

/// Threads of the thread block.
pub const THREADS: u32 = WARPS * WARP;
/// Most sequences that are put in order. Of more, each is a small share of a run, and any order will do.
const MOST_ORDERED: u32 = MOST_IN_SHARED;
/// Its shared memory: the line, and where each sequence begins in its run.
pub const SHARED_BYTES: u32 = STARTS + MOST_ORDERED * 4;
const STARTS: u32 = LINE_BYTES;

/// Most items of so many runs and sequences: the grid's y of those who attend.
pub const fn most_items(num_runs: u32, num_seqs: u32) -> u32 {
    num_runs.saturating_add(num_seqs)
}

/// Most sequences of several parts, of so many runs and sequences: each has a cut of its own.
pub const fn most_merges(num_runs: u32, num_seqs: u32) -> u32 {
    let most = num_runs.saturating_sub(1);
    if num_seqs < most { num_seqs } else { most }
}

/// Makes the items.
///
/// # Safety
/// Launched as one thread block of [`THREADS`] threads with [`SHARED_BYTES`] of shared memory; `params` names tensors of
/// the shapes it documents.
#[inline(always)]
pub unsafe fn schedule<G: Gpu>(gpu: G, params: &ScheduleParams) {
    let line = Line::of(gpu, params);
    // SAFETY: this function's contract; every thread comes here. `seq_lens` and `query_start_loc` have the length and the
    // start of each sequence: the host's check.
    unsafe {
        let all = line.lay(gpu, |seq| length(gpu, params, seq));
        if let Some(len) = pieces::choose(gpu, params, line, all) {
            pieces::store(gpu, params, line, len);
            return;
        }
        let runs = Runs::of(params, all);
        let mut index = gpu.thread_idx();
        while index < params.num_runs {
            begin_run(gpu, params, line, runs, index);
            index += THREADS;
        }
        begin_sequences(gpu, params, line, runs);
        store_merges(gpu, params, line, runs);
    }
}

/// Stores the item that run `index` begins with.
///
/// # Safety
/// There is such a run; the line is complete; no other thread calls this for the run.
#[inline(always)]
unsafe fn begin_run<G: Gpu>(gpu: G, params: &ScheduleParams, line: Line, runs: Runs, index: u32) {
    // SAFETY: this function's contract.
    let cut = unsafe { runs.cut(gpu, params, line, index) };
    let mut item = Item::NONE;
    if let Some(Cut { seq, begin, last }) = cut {
        item = Item {
            seq,
            from: runs.token(params, begin, index),
            to: if index + 1 == last {
                u32::MAX
            } else {
                runs.token(params, begin, index + 1)
            },
            part: 2 * index,
        };
    }
    // SAFETY: an item for each run, which is this thread's.
    unsafe { item.store(gpu, params.items, index) };
}

/// Stores the items that sequences begin with, behind those that begin runs.
///
/// # Safety
/// Every thread comes here, and the line is complete.
#[inline(always)]
unsafe fn begin_sequences<G: Gpu>(gpu: G, params: &ScheduleParams, line: Line, runs: Runs) {
    let starts = gpu.shared_base() + STARTS;
    let is_ordered = params.num_seqs <= MOST_ORDERED;
    if is_ordered {
        let mut seq = gpu.thread_idx();
        while seq < params.num_seqs.next_multiple_of(4) {
            // SAFETY: a sequence; the line is complete. Each word has one writer.
            unsafe {
                let start = if seq < params.num_seqs {
                    runs.start(params, line.ends(gpu, seq))
                } else {
                    u32::MAX
                };
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
            let mut other = 0;
            while other < params.num_seqs {
                // SAFETY: written before the barrier, in whole fours.
                let four = unsafe { gpu.ld_shared_b128(starts + 4 * other) };
                for start in four {
                    place += (start < own || (start == own && other < seq)) as u32;
                    other += 1;
                }
            }
        }
        // SAFETY: a sequence; the line is complete. There is an item for each sequence behind those of the runs, and no two
        // have one place.
        unsafe {
            let (begin, end) = line.ends(gpu, seq);
            let mut item = Item::NONE;
            if begin != end {
                let (first, last) = runs.inside(params, (begin, end));
                item = Item {
                    seq,
                    from: 0,
                    to: u32::MAX,
                    // Of the run before the cut, if there is a cut.
                    part: (2 * first).wrapping_sub(1),
                };
                if first < last {
                    item.to = runs.token(params, begin, first);
                }
            }
            item.store(gpu, params.items, params.num_runs + place);
        }
        seq += THREADS;
    }
}

/// Stores what is to be merged.
///
/// # Safety
/// Every thread comes here, and the line is complete.
#[inline(always)]
unsafe fn store_merges<G: Gpu>(gpu: G, params: &ScheduleParams, line: Line, runs: Runs) {
    // SAFETY: a sequence for each call; the line is complete.
    let inside = |seq| unsafe { runs.inside(params, line.ends(gpu, seq)) };
    // SAFETY: every thread comes here. No more sequences are cut than there is room for, and each has its own number.
    unsafe {
        let cut = sum_up(
            gpu,
            params.num_seqs,
            |seq| {
                let (first, last) = inside(seq);
                (first < last) as u64
            },
            |seq, number, is_cut| {
                let (first, last) = inside(seq);
                if is_cut != 0 {
                    MergeItem::of(seq, first, last).store(gpu, params.merges, number as u32);
                }
            },
        );
        if gpu.thread_idx() == 0 {
            MergeItem::store_count(gpu, params.merges, cut.total as u32);
        }
    }
}

/// A cut inside of a sequence.
#[derive(Clone, Copy)]
struct Cut {
    seq: u32,
    /// Where the sequence begins on the line.
    begin: u64,
    /// One past the last cut inside of it.
    last: u32,
}

/// How the line is cut.
#[derive(Clone, Copy)]
struct Runs {
    total: u64,
    /// Runs that are not empty: never more than the line has tiles, so that no two cuts fall on the same tile.
    count: u64,
}

impl Runs {
    #[inline(always)]
    fn of(params: &ScheduleParams, all: Measure) -> Self {
        let most = match NonZeroU64::new(pieces::shortest(params, all.longest) as u64) {
            Some(shortest) => all.total / shortest,
            None => 0,
        };
        Self {
            total: all.total,
            count: (params.num_runs as u64).min(most.max((all.total != 0) as u64)),
        }
    }

    /// The first cut at `place` or behind it.
    #[inline(always)]
    fn from(self, place: u64) -> u32 {
        match NonZeroU64::new(self.total) {
            Some(total) => ((place * self.count + (self.total - 1)) / total) as u32,
            None => 0,
        }
    }

    /// Where cut `index` lies.
    #[inline(always)]
    fn place(self, index: u32) -> u64 {
        match NonZeroU64::new(self.count) {
            Some(count) => index as u64 * self.total / count,
            None => 0,
        }
    }

    /// The token at cut `index` of a sequence that begins at `begin`, in which it lies.
    #[inline(always)]
    fn token(self, params: &ScheduleParams, begin: u64, index: u32) -> u32 {
        (self.place(index) - begin - params.ends as u64) as u32 * params.tile_len
    }

    /// Cut `index`, if it lies inside of a sequence.
    ///
    /// # Safety
    /// The line is complete.
    #[inline(always)]
    unsafe fn cut<G: Gpu>(
        self,
        gpu: G,
        params: &ScheduleParams,
        line: Line,
        index: u32,
    ) -> Option<Cut> {
        if index as u64 >= self.count {
            return None;
        }
        let place = self.place(index);
        // SAFETY: the place is on the line; a sequence; the line is complete.
        let (seq, (begin, end)) = unsafe {
            let seq = line.seq_at(gpu, place);
            (seq, line.ends(gpu, seq))
        };
        let (first, last) = self.inside(params, (begin, end));
        (first <= index && index < last).then_some(Cut { seq, begin, last })
    }

    /// The cuts inside of a sequence that lies between these ends: the first, and one past the last. One that would leave
    /// less than a part on one side is not inside, but at that side's end.
    #[inline(always)]
    fn inside(self, params: &ScheduleParams, (begin, end): (u64, u64)) -> (u32, u32) {
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
    const VARIANT: Variant = Variant::Only("schedule");
    const THREADS: u32 = THREADS;

    #[inline(always)]
    unsafe fn run<G: Gpu>(gpu: G, params: &ScheduleParams) {
        // SAFETY: whoever launches keeps the kernel's conditions.
        unsafe { schedule(gpu, params) }
    }
}
