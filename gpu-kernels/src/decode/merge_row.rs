//! A row of the output of split-KV decode attention, as a warp makes it: what its parts are weighed by, and where it goes.

use crate::attention::lse::Lse;
use crate::attention::out::recip_of_sum;
use crate::decode::parts::{Divided, Parts};
use crate::dtype::Half;
use crate::gpu::unroll::unroll;
use crate::gpu::{Gpu, WARP};
use crate::params::MergeParams;

/// Columns of a warp.
pub(super) const COLUMNS: u32 = WARP * 4;

/// Tiles of columns of a row: a power of two.
pub(super) const fn column_tiles(head_size_v: u32) -> u32 {
    head_size_v.div_ceil(COLUMNS).next_power_of_two()
}

/// What parts are weighed by.
#[derive(Clone, Copy)]
pub(super) struct Softmax {
    splits: Lse,
    with_sink: Lse,
    /// One over the sum, with the sink; of a row that sees no token, whose every part is empty, 0.
    scale: f32,
}

impl Softmax {
    #[inline(always)]
    pub(super) fn of<G: Gpu>(gpu: G, splits: Lse, sink_log2: f32) -> Self {
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
    pub(super) fn add<G: Gpu>(self, gpu: G, acc: [f32; 4], part: [u32; 4], lse: Lse) -> [f32; 4] {
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
pub(super) struct Row {
    out_row: u32,
    token: u32,
    head: u32,
    pub(super) column: u32,
}

impl Row {
    /// A lane's columns of a unit of a sequence: where they go, and their parts.
    #[inline(always)]
    pub(super) fn of<G: Gpu>(
        gpu: G,
        params: &MergeParams,
        divided: Divided,
        unit: u32,
    ) -> (Self, Parts) {
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
    pub(super) unsafe fn sink<G: Gpu>(self, gpu: G, params: &MergeParams) -> f32 {
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
    pub(super) unsafe fn store<G: Gpu, T: Half>(
        self,
        gpu: G,
        params: &MergeParams,
        [a, b, c, d]: [f32; 4],
    ) {
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
    pub(super) unsafe fn store_lse<G: Gpu>(self, gpu: G, params: &MergeParams, softmax: Softmax) {
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
