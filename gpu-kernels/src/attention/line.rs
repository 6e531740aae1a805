//! The line on which the sequences of a batch lie end to end: see [`crate::attention::schedule`].

use crate::attention::sequence::{first_key, query_row, seq_len};
use crate::attention::tile::TILE_GROUP;
use crate::gpu::lanes::sum_up_to_lane;
use crate::gpu::{Gpu, WARP, div};
use crate::params::ScheduleParams;

/// Warps of the thread block that measures it.
pub(crate) const WARPS: u32 = 16;
/// Most sequences for which it lies in shared memory.
pub(crate) const MOST_IN_SHARED: u32 = 1024;
/// Shared memory: what each warp tells the others, and an element more than there are sequences, in whole lots of 16
/// bytes.
pub(crate) const LINE_BYTES: u32 = SUMS + (MOST_IN_SHARED + 2) * 8;
const SUMS: u32 = WARPS * 16;

/// What is measured of sequences: all of it, the most of one, and how many have any.
#[derive(Clone, Copy)]
pub(crate) struct Measure {
    pub(crate) total: u64,
    pub(crate) longest: u32,
    pub(crate) count: u32,
}

/// Where each sequence begins on the line: in shared memory, if there is room.
#[derive(Clone, Copy)]
pub(crate) struct Line {
    global: u64,
    shared: Option<u32>,
    num_seqs: u32,
}

impl Line {
    #[inline(always)]
    pub(crate) fn of<G: Gpu>(gpu: G, params: &ScheduleParams) -> Self {
        Self {
            global: params.line,
            shared: (params.num_seqs <= MOST_IN_SHARED).then(|| gpu.shared_base() + SUMS),
            num_seqs: params.num_seqs,
        }
    }

    /// Where sequence `seq` begins, or the last one ends.
    ///
    /// # Safety
    /// There is such a sequence, or one before it, and the line is complete.
    #[inline(always)]
    pub(crate) unsafe fn at<G: Gpu>(self, gpu: G, seq: u32) -> u64 {
        // SAFETY: this function's contract; the line has an element more than there are sequences.
        unsafe {
            match self.shared {
                Some(shared) => gpu.ld_shared_b64(shared + 8 * seq),
                None => gpu.ld_global_b64(self.global + 8 * seq as u64),
            }
        }
    }

    /// # Safety
    /// As for [`Line::at`], but for the line, of which this thread alone writes the element.
    #[inline(always)]
    unsafe fn set<G: Gpu>(self, gpu: G, seq: u32, place: u64) {
        // SAFETY: this function's contract.
        unsafe {
            match self.shared {
                Some(shared) => gpu.st_shared_b64(shared + 8 * seq, place),
                None => gpu.st_global_b64(self.global + 8 * seq as u64, place),
            }
        }
    }

    /// Where a sequence begins and ends.
    ///
    /// # Safety
    /// There is such a sequence, and the line is complete.
    #[inline(always)]
    pub(crate) unsafe fn ends<G: Gpu>(self, gpu: G, seq: u32) -> (u64, u64) {
        // SAFETY: this function's contract.
        unsafe { (self.at(gpu, seq), self.at(gpu, seq + 1)) }
    }

    /// The last sequence that begins at `place` or before it, and ends behind it.
    ///
    /// # Safety
    /// There is one; the line is complete.
    #[inline(always)]
    pub(crate) unsafe fn seq_at<G: Gpu>(self, gpu: G, place: u64) -> u32 {
        let (mut seq, mut behind) = (0, self.num_seqs);
        while behind - seq > 1 {
            let middle = seq + (behind - seq) / 2;
            // SAFETY: a sequence; the line is complete.
            if unsafe { self.at(gpu, middle) } <= place {
                seq = middle;
            } else {
                behind = middle;
            }
        }
        seq
    }

    /// Lays the sequences end to end, each as long as `length` says.
    ///
    /// # Safety
    /// Every thread comes here; `length` is sound to call for every sequence.
    #[inline(always)]
    pub(crate) unsafe fn lay<G: Gpu>(self, gpu: G, length: impl Fn(u32) -> u64) -> Measure {
        // SAFETY: this function's contract. The line has an element for each sequence, and one more, which one thread
        // writes; `length` may have read the elements, but a barrier lies between.
        unsafe {
            let all = sum_up(gpu, self.num_seqs, length, |seq, ahead, _| {
                self.set(gpu, seq, ahead);
            });
            if gpu.thread_idx() == 0 {
                self.set(gpu, self.num_seqs, all.total);
            }
            gpu.sync_cta();
            all
        }
    }
}

/// Tells `take` of each sequence: what lies ahead of it, if each has as much as `own` says, and its own.
///
/// # Safety
/// Every thread comes here; both are sound to call for every sequence; all calls of `own` in a lot of so many sequences as
/// threads are ahead of those of `take`, with a barrier in between.
#[inline(always)]
pub(crate) unsafe fn sum_up<G: Gpu>(
    gpu: G,
    num_seqs: u32,
    own: impl Fn(u32) -> u64,
    take: impl Fn(u32, u64, u64),
) -> Measure {
    let mut all = Measure {
        total: 0,
        longest: 0,
        count: 0,
    };
    let mut chunk = 0;
    // Once at least: whether to begin must not be for the compiler to know of some threads and not of others.
    loop {
        let seq = chunk + gpu.thread_idx();
        // To the compiler another fact than that there is somebody to tell, below: of one fact it would make two ways from
        // here to there, each with barriers of its own, and the threads would wait for each other forever.
        let is_there = gpu.black_box((seq < num_seqs) as u32) != 0;
        let own = if is_there { own(seq) } else { 0 };
        // SAFETY: every thread comes here.
        let (ahead, lot) = unsafe { sum_ahead(gpu, own) };
        if seq < num_seqs {
            take(seq, all.total + ahead, own);
        }
        all.total += lot.total;
        all.longest = all.longest.max(lot.longest);
        all.count += lot.count;
        chunk += WARPS * WARP;
        if chunk >= num_seqs {
            return all;
        }
    }
}

/// How long a sequence is on the line, in tiles: nothing if it has no query token.
///
/// # Safety
/// The sequence has a length, and a start if there are starts.
#[inline(always)]
pub(crate) unsafe fn length<G: Gpu>(gpu: G, params: &ScheduleParams, seq: u32) -> u64 {
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

/// The sum of what threads before this one have, and the measure of all.
///
/// # Safety
/// Every thread of the thread block comes here.
#[inline(always)]
unsafe fn sum_ahead<G: Gpu>(gpu: G, own: u64) -> (u64, Measure) {
    // SAFETY: every thread comes here.
    let up_to = unsafe { sum_up_to_lane(gpu, own) };
    let (mut longest, mut count) = (own as u32, (own != 0) as u32);
    for mask in [1, 2, 4, 8, 16] {
        // SAFETY: converged.
        unsafe {
            longest = longest.max(gpu.shfl_xor(longest, mask));
            count += gpu.shfl_xor(count, mask);
        }
    }
    let mut ahead = up_to - own;
    let mut all = Measure {
        total: 0,
        longest: 0,
        count: 0,
    };
    let words = [up_to as u32, (up_to >> 32) as u32, longest, count];
    // SAFETY: every thread comes here. The last lane's sum is the warp's.
    unsafe {
        hear_all(gpu, words, |warp, [low, high, longest, count]| {
            let sum = low as u64 | (high as u64) << 32;
            ahead += if warp < gpu.warp() { sum } else { 0 };
            all.total += sum;
            all.longest = all.longest.max(longest);
            all.count += count;
        });
    }
    (ahead, all)
}

/// Tells every thread what each warp found for itself: the warp, and the words of its last lane.
///
/// # Safety
/// Every thread comes here.
#[inline(always)]
pub(crate) unsafe fn hear_all<G: Gpu>(gpu: G, own: [u32; 4], mut hear: impl FnMut(u32, [u32; 4])) {
    let sums = gpu.shared_base();
    // SAFETY: every thread comes here; a warp writes its own words, all read them between the barriers.
    unsafe {
        if gpu.lane() == WARP - 1 {
            gpu.st_shared_b128(sums + 16 * gpu.warp(), own);
        }
        gpu.sync_cta();
        for warp in 0..WARPS {
            hear(warp, gpu.ld_shared_b128(sums + 16 * warp));
        }
        gpu.sync_cta();
    }
}
