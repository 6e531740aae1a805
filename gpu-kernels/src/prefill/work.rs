//! What a thread block of `prefill_gqa` and `merge_rows` owns: a tile of rows of one sequence and KV head.
//!
//! A row is a query token with one of the query heads that share a KV head. Sequence `s` has the tiles from
//! `query_start_loc[s] * num_queries_per_kv / tile_rows + s` on, which is room enough for all its rows, so a
//! thread block finds its sequence by itself and the host need not know the lengths. Tiles are taken in
//! reverse, because in a causal prefill the last ones see most keys and have to start first.

use crate::attention::check::found_fault;
use crate::attention::lse::Lse;
use crate::attention::mask::Visible;
use crate::attention::sequence::seq_len;
use crate::dtype::CacheFormat;
use crate::gpu::{Gpu, WARP, div};
use crate::params::{PrefillParams, ScoreParams};
use crate::prefill::PrefillTile;
use crate::prefill::rows::{RowView, WarpRows};

/// Bytes of a [`StashedWork`].
const PARKED_BYTES: u32 = 32;

/// The tile.
#[derive(Clone, Copy)]
pub(crate) struct RowWork {
    pub(crate) kv_head: u32,
    pub(crate) seq: u32,
    /// The sequence's first query token, and how many it has.
    pub(crate) query_start: u32,
    query_len: u32,
    /// First row, counted from the sequence's, and the sequence's rows.
    pub(crate) first_row: u32,
    pub(crate) num_rows: u32,
}

/// A range of keys, and how it is split.
#[derive(Clone, Copy)]
pub(crate) struct KeyRange {
    /// The first key that a row sees; memory before it may have been given back.
    pub(crate) begin: u32,
    /// Start of the KV tile that it lies in.
    first: u32,
    /// One past the last key.
    end: u32,
    /// The split that the first key lies in, and how many follow it up to the last key's, itself included.
    first_split: u32,
    pub(crate) num_splits: u32,
}

impl RowWork {
    /// The tile of this thread block; it has no rows if `first_row >= num_rows`.
    ///
    /// # Safety
    /// Converged; `query_start_loc` is readable.
    #[inline(always)]
    pub(crate) unsafe fn find<G: Gpu>(gpu: G, params: &PrefillParams, tile_rows: u32) -> Self {
        // SAFETY: a checked launch has KV heads, and its grid is a multiple of them.
        let (position, num_tiles) = unsafe {
            (
                div(gpu.cta_idx_x(), params.num_kv_heads),
                div(gpu.grid_dim_x(), params.num_kv_heads),
            )
        };
        let tile = num_tiles - 1 - position;
        // SAFETY: `seq` is at most the number of sequences, of which the host's check holds `query_start_loc` to one more.
        let start = |seq: u32| unsafe { query_start(gpu, params, seq) };
        let first_tile = |seq: u32| start(seq) * params.num_queries_per_kv / tile_rows + seq;
        // The last sequence that begins at or before this tile: in each round the lanes try 32 of them.
        let (mut seq, mut num_seqs) = (0, params.num_seqs);
        while num_seqs > 1 {
            let step = num_seqs.div_ceil(32);
            let tried = (gpu.lane() + 1) * step;
            let mut before = 0u32;
            if tried < num_seqs && first_tile(seq + tried) <= tile {
                before = 1;
            }
            for mask in [1, 2, 4, 8, 16] {
                // SAFETY: converged: the round's numbers are the same in all lanes.
                before += unsafe { gpu.shfl_xor(before, mask) };
            }
            seq += before * step;
            num_seqs = step.min(num_seqs - before * step);
        }
        let query_start = start(seq);
        // A table that does not increase gives an empty sequence.
        let query_len = start(seq + 1).max(query_start) - query_start;
        let num_rows = query_len * params.num_queries_per_kv;
        // Tiles before the first sequence, if it does not begin at token 0, have no rows.
        let first_tile = first_tile(seq);
        let first_row = if tile >= first_tile {
            (tile - first_tile) * tile_rows
        } else {
            num_rows
        };
        Self {
            kv_head: kv_head(gpu, params),
            seq,
            query_start,
            query_len,
            first_row,
            num_rows,
        }
    }

    /// The rows from `first` on.
    #[inline(always)]
    pub(crate) fn rows(self, params: &PrefillParams, first: u32) -> WarpRows {
        WarpRows {
            first,
            end: self.num_rows,
            num_queries_per_kv: params.num_queries_per_kv,
            by_queries_per_kv: params.by_queries_per_kv,
        }
    }

    /// The rows of this warp, one of those that have rows.
    #[inline(always)]
    pub(crate) fn warp_rows<G: Gpu>(
        self,
        gpu: G,
        params: &PrefillParams,
        shape: PrefillTile,
    ) -> WarpRows {
        let warp = gpu.black_box(gpu.thread_idx()) / WARP - shape.first_row_warp();
        self.rows(params, self.first_row + warp * shape.warp_rows())
    }

    /// First query head of the KV head.
    #[inline(always)]
    pub(crate) fn first_head(self, params: &PrefillParams) -> u32 {
        self.kv_head * params.num_queries_per_kv
    }

    /// What the sequence's queries see.
    ///
    /// # Safety
    /// Lengths are readable, and so are the sequences' flags, if there are any.
    #[inline(always)]
    pub(crate) unsafe fn visible<G: Gpu>(self, gpu: G, params: &PrefillParams) -> Visible {
        let (lens, stride) = (params.seq_lens, params.stride_seq_lens);
        // SAFETY: one length and one flag for each sequence: the host's check of `seq_lens` and `causal_flags`.
        let (seq_len, causal) = unsafe {
            (
                seq_len(gpu, lens, stride, self.seq, params.max_seq_len),
                if params.causal == 0 {
                    params.score.flags & ScoreParams::CAUSAL != 0
                } else {
                    gpu.ld_global_b8(params.causal + self.seq as u64) != 0
                },
            )
        };
        self.visible_of(params, seq_len, causal)
    }

    #[inline(always)]
    fn visible_of(self, params: &PrefillParams, seq_len: u32, causal: bool) -> Visible {
        Visible {
            seq_len,
            context_len: seq_len as i32 - self.query_len as i32,
            mask: params.score.mask,
            causal,
        }
    }

    /// The keys that some row of the tile sees, from the start of a KV tile of `tile_kv` tokens.
    #[inline(always)]
    pub(crate) fn keys(
        self,
        params: &PrefillParams,
        visible: Visible,
        tile_rows: u32,
        tile_kv: u32,
    ) -> KeyRange {
        let rows = self.rows(params, self.first_row);
        // One after the other, not an array and `map`: rust-cuda's LLVM would keep it in local memory.
        let first = visible.position(rows.token(self.first_row));
        let last = visible.position(rows.token(self.first_row + tile_rows - 1));
        let begin = visible.first(first);
        let first = begin / tile_kv * tile_kv;
        let end = visible.end(last);
        let nothing = end <= begin;
        // SAFETY: splits hold at least a tile.
        let split = |key: u32| unsafe { div(key, params.split_len) };
        let (first_split, last_split) = (split(first), split(end.max(1) - 1));
        KeyRange {
            begin,
            first,
            end,
            first_split,
            num_splits: if nothing {
                1
            } else {
                last_split - first_split + 1
            },
        }
    }
}

/// What a thread block computes: its rows, and their keys in one part.
#[derive(Clone, Copy)]
pub(crate) struct TileWork {
    pub(crate) work: RowWork,
    pub(crate) visible: Visible,
    /// The first key that a row sees; memory before it may have been given back.
    pub(crate) begin: u32,
    /// First KV tile of the part, and one past its last key.
    pub(crate) first_token: u32,
    pub(crate) end: u32,
    pub(crate) shape: PrefillTile,
}

impl TileWork {
    /// Finds it and parks it. `None` if there is nothing to do.
    ///
    /// # Safety
    /// Every thread of the thread block comes here, with shared memory of `shape`; the parameters name tensors of the
    /// shapes they document.
    #[inline(always)]
    pub(crate) unsafe fn find<G: Gpu, C: CacheFormat>(
        gpu: G,
        params: &PrefillParams,
        shape: PrefillTile,
    ) -> Option<Self> {
        // SAFETY: a valid check record, or none.
        if unsafe { found_fault(gpu, params.check) } {
            return None;
        }
        // What has to be read is asked for before anything is waited for.
        // SAFETY: the scales of a cache of bytes are readable.
        let scales = unsafe { KvScales::load::<G, C>(gpu, params) };
        // SAFETY: converged; the start of every sequence is readable.
        let work = unsafe { RowWork::find(gpu, params, shape.rows()) };
        // SAFETY: one length per sequence, and one flag or none.
        let visible = unsafe { work.visible(gpu, params) };
        if work.first_row >= work.num_rows {
            return None;
        }
        let keys = work.keys(params, visible, shape.rows(), shape.tile_kv);
        let part = gpu.cta_idx_y();
        if part >= keys.num_splits {
            return None;
        }
        let parked = StashedWork {
            work,
            visible,
            num_splits: keys.num_splits,
        };
        // SAFETY: the thread block's own memory; all come here.
        unsafe {
            parked.store(gpu, gpu.shared_base() + shape.work());
            scales.store::<G, C>(gpu, gpu.shared_base() + shape.work() + PARKED_BYTES);
            gpu.sync_cta();
        }
        let (first_token, end) = keys.part(part, params.split_len);
        Some(Self {
            work,
            visible,
            begin: keys.begin,
            first_token,
            end,
            shape,
        })
    }

    /// What products with the KV head's keys are multiplied by, and sums of its values.
    #[inline(always)]
    pub(crate) fn scales<G: Gpu, C: CacheFormat>(&self, gpu: G) -> (f32, f32) {
        // SAFETY: stored before the barrier in `find`.
        let scales = unsafe {
            KvScales::take::<G, C>(gpu, gpu.shared_base() + self.shape.work() + PARKED_BYTES)
        };
        (scales.query * scales.keys, scales.values)
    }

    /// What was parked.
    #[inline(always)]
    pub(crate) fn parked<G: Gpu>(&self, gpu: G, params: &PrefillParams) -> StashedWork {
        // SAFETY: stored before the barrier in `find`.
        unsafe { StashedWork::load(gpu, params, gpu.shared_base() + self.shape.work()) }
    }

    /// What this warp has to know of its rows.
    #[inline(always)]
    pub(crate) fn view<G: Gpu>(&self, gpu: G, params: &PrefillParams) -> RowView {
        self.parked(gpu, params).view(gpu, params, self.shape)
    }
}

/// What a thread block knows of its rows. Its loop has no registers for that and seldom needs it, so it waits in
/// shared memory.
#[derive(Clone, Copy)]
pub(crate) struct StashedWork {
    pub(crate) work: RowWork,
    pub(crate) visible: Visible,
    /// Splits of the tile's keys, fewer than 2^31.
    pub(crate) num_splits: u32,
}

impl StashedWork {
    /// Leaves it at `at`, in 32 bytes.
    ///
    /// # Safety
    /// The thread block's own memory, aligned to 16 bytes, that nobody touches until the next barrier.
    #[inline(always)]
    pub(crate) unsafe fn store<G: Gpu>(self, gpu: G, at: u32) {
        let work = self.work;
        if gpu.thread_idx() == 0 {
            // SAFETY: `at` is this thread block's own, and free until the next barrier: the contract of `store`.
            unsafe {
                gpu.st_shared_b128(
                    at,
                    [work.kv_head, work.seq, work.query_start, work.query_len],
                );
                let splits = self.num_splits << 1 | self.visible.causal as u32;
                let words = [work.first_row, work.num_rows, self.visible.seq_len, splits];
                gpu.st_shared_b128(at + 16, words);
            }
        }
    }

    /// Takes it from there.
    ///
    /// # Safety
    /// It was stored at `at` before a barrier.
    #[inline(always)]
    pub(crate) unsafe fn load<G: Gpu>(gpu: G, params: &PrefillParams, at: u32) -> Self {
        // SAFETY: stored at `at` before a barrier: the contract of `load`.
        let (words, more) = unsafe { (gpu.ld_shared_b128(at), gpu.ld_shared_b128(at + 16)) };
        let [kv_head, seq, query_start, query_len] = words;
        let [first_row, num_rows, seq_len, splits] = more;
        let work = RowWork {
            kv_head,
            seq,
            query_start,
            query_len,
            first_row,
            num_rows,
        };
        Self {
            work,
            visible: work.visible_of(params, seq_len, splits & 1 != 0),
            num_splits: splits >> 1,
        }
    }

    /// The keys that the thread block's tiles hold.
    #[inline(always)]
    pub(crate) fn keys<G: Gpu>(
        self,
        gpu: G,
        params: &PrefillParams,
        shape: PrefillTile,
    ) -> (u32, u32) {
        let keys = self
            .work
            .keys(params, self.visible, shape.rows(), shape.tile_kv);
        let (first, end) = keys.part(gpu.cta_idx_y(), params.split_len);
        (first.max(keys.begin), end)
    }

    /// What this warp has to know of its rows.
    #[inline(always)]
    pub(crate) fn view<G: Gpu>(
        self,
        gpu: G,
        params: &PrefillParams,
        shape: PrefillTile,
    ) -> RowView {
        RowView {
            rows: self.work.warp_rows(gpu, params, shape),
            visible: self.visible,
            first_head: self.work.first_head(params),
        }
    }
}

/// What queries, and a KV head's keys and values, were divided by, where a cache of bytes says so for all tokens.
#[derive(Clone, Copy)]
struct KvScales {
    query: f32,
    keys: f32,
    values: f32,
}

impl KvScales {
    const NONE: Self = Self {
        query: 1.0,
        keys: 1.0,
        values: 1.0,
    };

    /// Those of this thread block's KV head.
    ///
    /// # Safety
    /// The scales of a cache of bytes are readable.
    #[inline(always)]
    unsafe fn load<G: Gpu, C: CacheFormat>(gpu: G, params: &PrefillParams) -> Self {
        let mut scales = Self::NONE;
        if C::BYTES == 1 {
            // SAFETY: one scale for all KV heads, with stride 0, or one for each: the host's `check_scales`.
            let load = |at: u64| f32::from_bits(unsafe { gpu.ld_global_b32(at) });
            if params.q_scale != 0 {
                scales.query = load(params.q_scale);
            }
            if !C::TOKEN_SCALES {
                let head = kv_head(gpu, params) as u64;
                scales.keys = load(params.k_scale + 4 * (head * params.stride_k_scale as u64));
                scales.values = load(params.v_scale + 4 * (head * params.stride_v_scale as u64));
            }
        }
        scales
    }

    /// Leaves them at `at`, in 16 bytes, if there can be any.
    ///
    /// # Safety
    /// As [`StashedWork::store`].
    #[inline(always)]
    unsafe fn store<G: Gpu, C: CacheFormat>(self, gpu: G, at: u32) {
        if C::BYTES == 1 && gpu.thread_idx() == 0 {
            let words = [self.query, self.keys, self.values, 1.0].map(f32::to_bits);
            // SAFETY: `at` is this thread block's own, and free until the next barrier: the contract of `store`.
            unsafe { gpu.st_shared_b128(at, words) };
        }
    }

    /// Takes them from there.
    ///
    /// # Safety
    /// They were stored at `at` before a barrier.
    #[inline(always)]
    unsafe fn take<G: Gpu, C: CacheFormat>(gpu: G, at: u32) -> Self {
        if C::BYTES == 2 {
            return Self::NONE;
        }
        // SAFETY: stored at `at` before a barrier: the contract of `take`.
        let [query, keys, values, _] = unsafe { gpu.ld_shared_b128(at) };
        Self {
            query: f32::from_bits(query),
            keys: f32::from_bits(keys),
            values: f32::from_bits(values),
        }
    }
}

impl KeyRange {
    /// First KV tile and end of part `part`: splits begin at multiples of their length, wherever the range does.
    #[inline(always)]
    pub(crate) fn part(self, part: u32, split_len: u32) -> (u32, u32) {
        let start = (self.first_split + part) * split_len;
        (self.first.max(start), self.end.min(start + split_len))
    }
}

/// The KV head of this thread block.
#[inline(always)]
fn kv_head<G: Gpu>(gpu: G, params: &PrefillParams) -> u32 {
    // SAFETY: a checked launch has KV heads.
    let position = unsafe { div(gpu.cta_idx_x(), params.num_kv_heads) };
    gpu.cta_idx_x() - position * params.num_kv_heads
}

/// The first query token of sequence `seq`.
///
/// # Safety
/// `query_start_loc` is readable, and `seq` at most the number of sequences.
#[inline(always)]
unsafe fn query_start<G: Gpu>(gpu: G, params: &PrefillParams, seq: u32) -> u32 {
    // SAFETY: the host's check holds `query_start_loc` to one start more than there are sequences.
    unsafe { gpu.ld_global_b32(params.query_start_loc + 4 * seq as u64) }.min(params.num_tokens)
}

/// What the output is multiplied by before it is stored as bytes, or 1.
///
/// # Safety
/// An FP8 output has a scale.
#[inline(always)]
pub(crate) unsafe fn out_scale<G: Gpu>(gpu: G, params: &PrefillParams) -> f32 {
    if params.output_scale == 0 {
        return 1.0;
    }
    // SAFETY: the host's check holds `output_scale` to one f32.
    gpu.recip(f32::from_bits(unsafe {
        gpu.ld_global_b32(params.output_scale)
    }))
}

/// Stores the lse of a row, turned from base 2 to base e, if one is wanted.
///
/// # Safety
/// The row exists; one lane stores it.
#[inline(always)]
pub(crate) unsafe fn store_lse<G: Gpu>(
    gpu: G,
    params: &PrefillParams,
    token: u32,
    head: u32,
    lse: Lse,
) {
    if params.lse != 0 {
        let at = params.lse
            + 4 * (token as u64 * params.stride_lse_token as u64
                + head as u64 * params.stride_lse_head as u64);
        // SAFETY: `lse` has an element for each token and query head: the host's check of its shape; the row is this warp's.
        unsafe { gpu.st_global_b32(at, lse.natural(gpu).to_bits()) };
    }
}
