//! What a thread block of `prefill_gqa` and `merge_rows` owns: a tile of rows of one sequence and KV head.
//!
//! A row is a query token with one of the query heads that share a KV head. Sequence `s` has the tiles from
//! `query_start_loc[s] * num_queries_per_kv / tile_rows + s` on, which is room enough for all its rows, so a
//! thread block finds its sequence by itself and the host need not know the lengths. Tiles are taken in
//! reverse, because in a causal prefill the last ones see most keys and have to start first.

use crate::attention::mask::Visible;
use crate::attention::sequence::seq_len;
use crate::gpu::{Gpu, WARP, div};
use crate::params::{PrefillParams, ScoreParams};
use crate::prefill::PrefillTile;
use crate::prefill::rows::WarpRows;

/// The tile.
#[derive(Clone, Copy)]
pub(crate) struct RowWork {
    pub(crate) kv_head: u32,
    pub(crate) seq: u32,
    /// The sequence's first query token, and how many it has.
    pub(crate) query_start: u32,
    pub(super) query_len: u32,
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

impl KeyRange {
    /// First KV tile and end of part `part`: splits begin at multiples of their length, wherever the range does.
    #[inline(always)]
    pub(crate) fn part(self, part: u32, split_len: u32) -> (u32, u32) {
        let start = (self.first_split + part) * split_len;
        (self.first.max(start), self.end.min(start + split_len))
    }
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
    pub(super) fn visible_of(self, params: &PrefillParams, seq_len: u32, causal: bool) -> Visible {
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

/// The KV head of this thread block.
#[inline(always)]
pub(super) fn kv_head<G: Gpu>(gpu: G, params: &PrefillParams) -> u32 {
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
