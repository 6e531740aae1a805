//! What the two warp groups that multiply do: each computes the scores of every second tile, and half of the output's
//! columns of all tiles. So each hands the other its probabilities, and one's softmax runs under the other's products:
//!
//! ```text
//! group 0                                 group 1
//! scores of tile n                        scores of tile n + 1
//! softmax; probabilities handed on   -->
//! left  += probs · values of tile n       right += probs · values of tile n, under it the softmax
//!                                    <--  probabilities of tile n + 1 handed on
//! left  += probs · values of tile n + 1   right += probs · values of tile n + 1
//! ```
//!
//! A lane's probabilities are operands of the same lane of the other group. Maxima go with them, so both know after each
//! tile what is subtracted from scores, and what they have accumulated is always of the same unit.

use crate::attention::group_products::{group_more_scores, group_scores, group_values};
use crate::attention::lse::{Lse, finite, is_far};
use crate::dtype::{CacheFormat, Half};
use crate::gpu::unroll::unroll;
use crate::gpu::{Gpu, PANEL_BYTES, Pending};
use crate::mla::MlaTile;
use crate::mla::group_tile::{
    AMONG_FIRST, GROUP_THREADS, GROUP_WARPS, GROUPS, Part, ROWS, TOGETHER, handed_on,
};
use crate::prefill::{OnlineSoftmax, Rise, pack};

/// 16 tokens each, in a tile.
const PAIRS: usize = 4;
/// Steps of 16 columns that are multiplied at a time, and how often a group's columns are that many.
const STEPS: usize = 8;
const TIMES: usize = 2;

/// Probabilities of a warp's 16 rows and a tile, as left factors.
type Probs = [[u32; 4]; PAIRS];
/// Sums that are under way, of all of a group's columns.
type Values = [Pending<STEPS>; TIMES];
/// Scores of a warp's 16 rows and a tile, in the accumulator layout of `mma`.
type Scores = [[[f32; 4]; 2]; PAIRS];

/// What the rows of a thread block see of its tokens, and what makes scores of their products.
pub(super) struct View<Scale, Len, There> {
    /// Every row sees the tokens below this one that there are,
    pub(super) all_see: u32,
    /// and row `r` of the thread block those below `len_of(r)`.
    pub(super) len_of: Len,
    /// Its products times `scale_of(r)` are its scores, base 2.
    pub(super) scale_of: Scale,
    /// Which tokens of the tile in a stage there are: a bit for each.
    pub(super) there: There,
}

/// What group `GROUP` has seen so far. A lane holds rows `lane / 4` and `+ 8` of its warp's 16.
pub(super) struct GroupSoftmax<const GROUP: u32> {
    /// The maxima of all tiles, the sums of the group's own tiles. Its accumulators are not used.
    rows: OnlineSoftmax<0, 1>,
    /// `[row, column]` of the group's half of the columns, in the accumulator layout of `mma`.
    acc: [[[[f32; 4]; 2]; STEPS]; TIMES],
}

impl<const GROUP: u32> GroupSoftmax<GROUP> {
    /// The other group.
    const OTHER: u32 = 1 - GROUP;

    /// No token seen.
    pub(super) const EMPTY: Self = Self {
        rows: OnlineSoftmax::EMPTY,
        acc: [[[[0.0; 4]; 2]; STEPS]; TIMES],
    };

    /// Takes the tokens `start .. end`, at least one. The rests of rows are multiplied as `Rest`.
    ///
    /// # Safety
    /// The four warps of the group come here, the other group to its own, and the group that loads to
    /// [`super::group_loader::Loader::run`] or its like, all with the same tokens. The queries' panels are visible.
    #[inline(always)]
    pub(super) unsafe fn consume<G: Gpu, C: CacheFormat, Rest: Half>(
        &mut self,
        gpu: G,
        cut: MlaTile,
        (start, end): (u32, u32),
        view: &View<impl Fn(u32) -> f32, impl Fn(u32) -> u32, impl Fn(u32) -> u64>,
    ) {
        let mut token = start;
        while token < end {
            // The pair of tiles: the first one is group 0's, the second, if there is one, group 1's.
            let second = token + ROWS;
            // SAFETY: the groups come here together, with the tiles that are loaded; see each step.
            unsafe {
                if GROUP == 0 {
                    let scores = self.begin_scores::<G, C, Rest>(gpu, cut);
                    let scores = [gpu.group_wait::<4, 0>(scores)];
                    let (probs, rise) = self.softmax::<G, C>(gpu, scores, token, view);
                    self.rescale_acc(rise);
                    self.hand_on(gpu, cut, probs);
                    let values = self.begin_values::<G, C>(gpu, cut, 0, probs);
                    self.end_values(gpu, values);
                    self.hand_back(gpu, 0, token, end);
                    if second < end {
                        let probs = self.take(gpu, cut);
                        let values = self.begin_values::<G, C>(gpu, cut, 1, probs);
                        self.end_values(gpu, values);
                        self.hand_back(gpu, 1, second, end);
                    }
                } else if second < end {
                    let scores = self.begin_scores::<G, C, Rest>(gpu, cut);
                    let probs = self.take(gpu, cut);
                    let values = self.begin_values::<G, C>(gpu, cut, 0, probs);
                    // All but the youngest two, which are the values.
                    let scores = [gpu.group_wait::<4, 2>(scores)];
                    let (probs, rise) = self.softmax::<G, C>(gpu, scores, second, view);
                    // The half is wanted more urgently than the probabilities.
                    self.end_values(gpu, values);
                    self.hand_back(gpu, 0, token, end);
                    self.hand_on(gpu, cut, probs);
                    self.rescale_acc(rise);
                    let values = self.begin_values::<G, C>(gpu, cut, 1, probs);
                    self.end_values(gpu, values);
                    self.hand_back(gpu, 1, second, end);
                } else {
                    let probs = self.take(gpu, cut);
                    let values = self.begin_values::<G, C>(gpu, cut, 0, probs);
                    self.end_values(gpu, values);
                    self.hand_back(gpu, 0, token, end);
                }
            }
            token += GROUPS * ROWS;
        }
    }

    /// Begins the scores of the tile in the group's own stage, part by part as it arrives: the group's own half was handed
    /// back first, so it is there first.
    ///
    /// # Safety
    /// The four warps of the group come here; the group that loads brings the tile.
    #[inline(always)]
    unsafe fn begin_scores<G: Gpu, C: CacheFormat, Rest: Half>(
        &self,
        gpu: G,
        cut: MlaTile,
    ) -> Pending<4> {
        let queries = gpu.shared_base();
        let keys = queries + cut.group_stage(GROUP);
        let wait = |half: u32, go: u32| {
            let part = Part { stage: GROUP, half };
            // SAFETY: the four warps come here, and a warp that loads.
            unsafe { gpu.barrier_sync(part.full(go), Part::THREADS) };
            gpu.fence_warpgroup();
        };
        // Two panels of each half at a time, and the rest, which comes with the half of the other group.
        let at = |half: u32, go: u32| half * cut.half_bytes() + go * (2 * PANEL_BYTES);
        let (own, other) = (GROUP, Self::OTHER);
        wait(own, 0);
        // SAFETY: the four warps come here, and the panels are there.
        unsafe {
            let first = at(own, 0);
            let scores = group_scores::<G, C::Math, STEPS>(gpu, queries + first, keys + first);
            let more = |scores, at| {
                group_more_scores::<G, C::Math, STEPS>(gpu, scores, queries + at, keys + at)
            };
            wait(own, 1);
            let scores = more(scores, at(own, 1));
            wait(other, 0);
            let scores = more(scores, at(other, 0));
            wait(other, 1);
            let scores = more(scores, at(other, 1));
            let at = cut.rest();
            group_more_scores::<G, Rest, 4>(gpu, scores, queries + at, keys + at)
        }
    }

    /// The probabilities of the tile at `token`, which are added to the sums; and how much `acc` has to shrink.
    ///
    /// # Safety
    /// Converged.
    #[inline(always)]
    unsafe fn softmax<G: Gpu, C: CacheFormat>(
        &mut self,
        gpu: G,
        mut scores: [Scores; 1],
        token: u32,
        view: &View<impl Fn(u32) -> f32, impl Fn(u32) -> u32, impl Fn(u32) -> u64>,
    ) -> (Probs, Rise<1>) {
        let scale_of = |half| (view.scale_of)(row_of(gpu, half));
        let scale = [[scale_of(0), scale_of(1)]];
        if token + ROWS > view.all_see {
            mask(gpu, &mut scores[0], token, &view.len_of);
        }
        let there = (view.there)(GROUP);
        if there != u64::MAX {
            mask_missing(gpu, &mut scores[0], there);
        }
        // SAFETY: converged: this function's contract.
        let rise = unsafe { self.rows.raise_max(gpu, &scores, &scale) };
        self.rows.rescale_sum(rise);
        let top = self.rows.top::<C>();
        let mut probs = [[0u32; 4]; PAIRS];
        unroll!([4] pair in 0..PAIRS {
            let weights = self.rows.weights(gpu, 0, &scores[0][pair], scale[0], top[0]);
            probs[pair] = pack::<G, C>(gpu, weights, [[1.0; 2]; 2]);
        });
        (probs, rise)
    }

    /// Gives the other group the probabilities of the group's tile, and the maxima.
    ///
    /// # Safety
    /// The four warps of the group come here, done with the tile's scores; the other one takes them.
    #[inline(always)]
    unsafe fn hand_on<G: Gpu>(&self, gpu: G, cut: MlaTile, probs: Probs) {
        if GROUP == 0 {
            let (barrier, threads) = AMONG_FIRST;
            // SAFETY: the four warps come here. The tensor cores of all have read the rest of the rows, over which the
            // probabilities are written.
            unsafe { gpu.barrier_sync(barrier, threads) };
        }
        // What is written here the other group has read the last time: it has handed on something since, which this one
        // has taken.
        let at = gpu.shared_base() + cut.group_letter(GROUP) + own_bytes(gpu);
        unroll!([4] pair in 0..PAIRS {
            // SAFETY: this lane's part of the letter.
            unsafe { gpu.st_shared_b128(at + pair as u32 * (GROUP_THREADS * 16), probs[pair]) };
        });
        if gpu.lane().is_multiple_of(4) {
            unroll!([2] half in 0..2 {
                let at = row_at(gpu, half, cut.group_maxima(GROUP));
                // SAFETY: one lane for each row.
                unsafe { gpu.st_shared_b32(at, self.rows.max[0][half].to_bits()) };
            });
        }
        let (barrier, threads) = handed_on(GROUP);
        // SAFETY: converged; the other group waits there.
        unsafe { gpu.barrier_arrive(barrier, threads) };
    }

    /// The other group's probabilities of its tile; what was accumulated is of its unit then.
    ///
    /// # Safety
    /// The four warps of the group come here, with no sums under way; the other one hands them on.
    #[inline(always)]
    unsafe fn take<G: Gpu>(&mut self, gpu: G, cut: MlaTile) -> Probs {
        let (barrier, threads) = handed_on(Self::OTHER);
        // SAFETY: converged; the other group comes there.
        unsafe { gpu.barrier_sync(barrier, threads) };
        let at = gpu.shared_base() + cut.group_letter(Self::OTHER) + own_bytes(gpu);
        let mut probs = [[0u32; 4]; PAIRS];
        unroll!([4] pair in 0..PAIRS {
            // SAFETY: written before the barrier.
            probs[pair] = unsafe { gpu.ld_shared_b128(at + pair as u32 * (GROUP_THREADS * 16)) };
        });
        let mut max = [[0.0; 2]];
        unroll!([2] half in 0..2 {
            let at = row_at(gpu, half, cut.group_maxima(Self::OTHER));
            // SAFETY: written before the barrier.
            max[0][half] = f32::from_bits(unsafe { gpu.ld_shared_b32(at) });
        });
        // SAFETY: converged: this function's contract.
        let rise = unsafe { self.rows.raise_to(gpu, max) };
        self.rows.rescale_sum(rise);
        self.rescale_acc(rise);
        probs
    }

    /// Begins to add probabilities times the group's half of the values in stage `stage`.
    ///
    /// # Safety
    /// The four warps of the group come here; the values are visible, and no sums are under way.
    #[inline(always)]
    unsafe fn begin_values<G: Gpu, C: CacheFormat>(
        &self,
        gpu: G,
        cut: MlaTile,
        stage: u32,
        probs: Probs,
    ) -> Values {
        let values = gpu.shared_base() + cut.group_stage(stage) + GROUP * cut.half_bytes();
        let [first, second] = self.acc;
        // SAFETY: the four warps come here; a half is four panels.
        unsafe {
            [
                group_values::<G, C::Math, STEPS>(gpu, first, probs, values),
                group_values::<G, C::Math, STEPS>(gpu, second, probs, values + 2 * PANEL_BYTES),
            ]
        }
    }

    /// Waits for them.
    ///
    /// # Safety
    /// The four warps of the group come here.
    #[inline(always)]
    unsafe fn end_values<G: Gpu>(&mut self, gpu: G, [first, second]: Values) {
        // SAFETY: the four warps come here.
        self.acc = unsafe {
            [
                gpu.group_wait::<STEPS, 0>(first),
                gpu.group_wait::<STEPS, 0>(second),
            ]
        };
    }

    /// Lets the group's half of stage `stage`, in which the tile at `token` is, be filled again, if a tile is to come.
    ///
    /// # Safety
    /// The four warps of the group come here, done with the half.
    #[inline(always)]
    unsafe fn hand_back<G: Gpu>(&self, gpu: G, stage: u32, token: u32, end: u32) {
        if token + GROUPS * ROWS < end {
            let part = Part { stage, half: GROUP };
            // SAFETY: converged; the warp that loads waits there.
            unsafe { gpu.barrier_arrive(part.empty(), Part::THREADS) };
        }
    }

    /// Rescales what was accumulated.
    #[inline(always)]
    fn rescale_acc(&mut self, rise: Rise<1>) {
        if rise.any {
            unroll!([2] time in 0..TIMES {
                rise.shrink(0, &mut self.acc[time]);
            });
        }
    }

    /// After the last tile: brings the output of the group's columns, normalised, into rows of
    /// [`MlaTile::out_row_bytes`] that begin with the shared memory, times `v_scale`, and hands `store_lse` the lse of each
    /// row, one group for both. A row that saw no token gets zeros and minus infinity.
    ///
    /// # Safety
    /// Both groups come here, once. Nobody uses the memory of queries and ring any more.
    #[inline(always)]
    pub(super) unsafe fn finish<G: Gpu, C: CacheFormat>(
        mut self,
        gpu: G,
        cut: MlaTile,
        v_scale: f32,
        store_lse: impl Fn(u32, Lse),
    ) {
        // SAFETY: converged.
        unsafe { self.rows.reduce(gpu) };
        if gpu.lane().is_multiple_of(4) {
            unroll!([2] half in 0..2 {
                let at = row_at(gpu, half, cut.group_sums(GROUP));
                // SAFETY: one lane for each row; nobody reads it before the barrier.
                unsafe { gpu.st_shared_b32(at, self.rows.sum[0][half].to_bits()) };
            });
        }
        let (barrier, threads) = TOGETHER;
        // SAFETY: both groups come here, and their products are complete: queries and ring may be overwritten.
        unsafe { gpu.barrier_sync(barrier, threads) };
        let first_column = GROUP * (cut.head_size_v / 2) + gpu.lane() % 4 * 2;
        unroll!([2] half in 0..2 {
            let at = row_at(gpu, half, cut.group_sums(Self::OTHER));
            // SAFETY: written before the barrier.
            let other = f32::from_bits(unsafe { gpu.ld_shared_b32(at) });
            let (max, sum) = (self.rows.max[0][half], self.rows.sum[0][half] + other);
            // A row that saw nothing: 0 and -inf. One whose scores are too large for a tile: NaN, until it is mended.
            let scale = if is_far(finite(max)) {
                f32::NAN
            } else if sum == 0.0 {
                0.0
            } else {
                gpu.recip(sum) * v_scale
            };
            let row = row_of(gpu, half);
            if GROUP == 0 && gpu.lane().is_multiple_of(4) {
                store_lse(
                    row,
                    Lse {
                        max,
                        sum: sum * OnlineSoftmax::<0, 1>::unit::<C>(),
                    },
                );
            }
            let at = gpu.shared_base() + row * cut.out_row_bytes() + first_column * 4;
            unroll!([2] time in 0..TIMES {
                unroll!([8] step in 0..STEPS {
                    unroll!([2] i in 0..2 {
                        let values = self.acc[time][step][i];
                        let pair = [values[2 * half] * scale, values[2 * half + 1] * scale].map(f32::to_bits);
                        let column = ((time * STEPS + step) * 16 + i * 8) as u32;
                        // SAFETY: this lane's columns of its row.
                        unsafe {
                            gpu.st_shared_b64(at + column * 4, pair[0] as u64 | (pair[1] as u64) << 32);
                        }
                    });
                });
            });
        });
        // SAFETY: both groups come here.
        unsafe { gpu.barrier_sync(barrier, threads) };
    }
}

/// Minus infinity for tokens from `token` on that a row does not see.
#[inline(always)]
fn mask<G: Gpu>(gpu: G, scores: &mut Scores, token: u32, len_of: impl Fn(u32) -> u32) {
    let first = token + gpu.lane() % 4 * 2;
    unroll!([2] half in 0..2 {
        let len = len_of(row_of(gpu, half));
        unroll!([4] pair in 0..PAIRS {
            unroll!([2] i in 0..2 {
                unroll!([2] j in 0..2 {
                    if first + (pair * 16 + i * 8 + j) as u32 >= len {
                        scores[pair][i][2 * half + j] = f32::NEG_INFINITY;
                    }
                });
            });
        });
    });
}

/// Minus infinity for tokens of a tile that are not `there`.
#[inline(always)]
fn mask_missing<G: Gpu>(gpu: G, scores: &mut Scores, there: u64) {
    let there = there >> (gpu.lane() % 4 * 2);
    unroll!([4] pair in 0..PAIRS {
        unroll!([2] i in 0..2 {
            unroll!([2] j in 0..2 {
                if there >> (pair * 16 + i * 8 + j) & 1 == 0 {
                    scores[pair][i][j] = f32::NEG_INFINITY;
                    scores[pair][i][2 + j] = f32::NEG_INFINITY;
                }
            });
        });
    });
}

/// The lane's first row of the thread block, or the one 8 behind.
#[inline(always)]
fn row_of<G: Gpu>(gpu: G, half: usize) -> u32 {
    gpu.warp() % GROUP_WARPS * 16 + gpu.lane() / 4 + half as u32 * 8
}

/// Where this thread's first 16 bytes of a letter are, which the thread of the same number of the other group reads.
#[inline(always)]
fn own_bytes<G: Gpu>(gpu: G) -> u32 {
    gpu.thread_idx() % GROUP_THREADS * 16
}

/// Where that row's number is, of those at `offset` in shared memory.
#[inline(always)]
fn row_at<G: Gpu>(gpu: G, half: usize, offset: u32) -> u32 {
    gpu.shared_base() + offset + row_of(gpu, half) * 4
}
