//! Which rows a warp has, and where those stand in their sequence.

use crate::attention::mask::Visible;
use crate::gpu::fast_divmod::FastDivmod;

/// The rows of one warp: consecutive rows of one sequence and KV head.
#[derive(Clone, Copy, Debug)]
pub struct WarpRows {
    /// The warp's first row, counted from the sequence's.
    pub first: u32,
    /// Rows of the sequence, at least 1.
    pub end: u32,
    /// Query heads that share a KV head.
    pub num_queries_per_kv: u32,
    /// Divides by it.
    pub by_queries_per_kv: FastDivmod,
}

impl WarpRows {
    /// Row `lane / 4 + 8 * half` of row tile `tile`: what a lane holds of an accumulator. It may lie past
    /// the end.
    #[inline(always)]
    pub fn of_lane(self, lane: u32, tile: usize, half: usize) -> u32 {
        self.first + tile as u32 * 16 + half as u32 * 8 + lane / 4
    }

    /// The query token of a row, counted from the sequence's first; of the last row if it lies past the end.
    #[inline(always)]
    pub fn token(self, row: u32) -> u32 {
        self.by_queries_per_kv.divide(row.min(self.end - 1))
    }

    /// The query head of a row, counted from the KV head's first.
    #[inline(always)]
    pub fn head(self, row: u32) -> u32 {
        row.min(self.end - 1) - self.token(row) * self.num_queries_per_kv
    }
}

/// What a warp has to know of its rows where it does not see every key as it is.
#[derive(Clone, Copy, Debug)]
pub struct RowView {
    /// The rows.
    pub rows: WarpRows,
    /// What their sequence's queries see.
    pub visible: Visible,
    /// Query head of the KV head's first.
    pub first_head: u32,
}
