//! Which rows a warp has, which keys they see, and where those stand relative to them.

use crate::gpu::Gpu;
use crate::gpu::fast_divmod::FastDivmod;
use crate::params::ScoreParams;

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

/// The keys that the queries of one sequence see. Positions are signed: a sequence that is shorter than its
/// query begins before position 0.
#[derive(Clone, Copy, Debug)]
pub struct Visible {
    /// Keys of the sequence.
    pub seq_len: u32,
    /// Position of its first query token.
    pub context_len: i32,
    /// As in the parameters.
    pub sliding_window: u32,
    /// No key after the query's own.
    pub causal: bool,
}

impl Visible {
    /// What the one query token of a sequence sees: it is the last of `seq_len` tokens, so that nothing follows
    /// it.
    #[inline(always)]
    pub fn of_last(seq_len: u32, sliding_window: u32) -> Self {
        Self {
            seq_len,
            context_len: seq_len as i32 - 1,
            sliding_window,
            causal: true,
        }
    }

    /// The position of query token `token`.
    #[inline(always)]
    pub fn position(self, token: u32) -> i32 {
        self.context_len + token as i32
    }

    /// The first key that the query at `position` may see.
    #[inline(always)]
    pub fn first(self, position: i32) -> u32 {
        match self.sliding_window {
            0 => 0,
            window => (position - window as i32 + 1).max(0) as u32,
        }
    }

    /// One past the last key that the query at `position` sees.
    #[inline(always)]
    pub fn end(self, position: i32) -> u32 {
        let all = self.seq_len as i32;
        let end = match (self.causal, self.sliding_window) {
            (true, _) => position + 1,
            (false, 0) => all,
            (false, window) => position + window as i32,
        };
        end.min(all).max(0) as u32
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

/// The bias of a row that grows with the distance to a key.
#[derive(Clone, Copy, Debug)]
pub struct Alibi {
    /// Of the row's head, times log2 e.
    pub(crate) slope_log2: f32,
    /// The bias is `-slope * sqrt(distance)`, not `slope * (key - context_len)`.
    pub(crate) is_sqrt: bool,
}

impl Alibi {
    /// The bias of query head `head`.
    ///
    /// # Safety
    /// The parameters name slopes, one for each head.
    #[inline(always)]
    pub unsafe fn of_head<G: Gpu>(gpu: G, params: &ScoreParams, head: u32) -> Self {
        // SAFETY: as the caller promises.
        let slope = unsafe { gpu.ld_global_b32(params.alibi_slopes + 4 * head as u64) };
        Self {
            slope_log2: f32::from_bits(slope) * core::f32::consts::LOG2_E,
            is_sqrt: params.flags & ScoreParams::ALIBI_SQRT != 0,
        }
    }

    /// What is added to the score of key `key` for the query at `position`, in powers of two.
    #[inline(always)]
    pub fn bias_log2<G: Gpu>(self, gpu: G, key: u32, position: i32, context_len: i32) -> f32 {
        if self.is_sqrt {
            let distance = (position - key as i32).max(0) as f32;
            // The root by its logarithm: 0 gives 2^-inf.
            -self.slope_log2 * gpu.exp2(0.5 * gpu.log2(distance))
        } else {
            self.slope_log2 * (key as i32 - context_len) as f32
        }
    }
}
