//! What a thread block of MLA attention owns, and what it writes in the end.

use crate::attention::careful::{CarefulRow, all_finite, look};
use crate::attention::lse::Lse;
use crate::attention::out::pack_out;
use crate::dtype::CacheFormat;
use crate::gpu::unroll::unroll;
use crate::gpu::{Gpu, WARP, div};
use crate::mla::MlaTile;
use crate::params::DecodeMlaParams;

/// What a thread block owns of a sequence.
#[derive(Clone, Copy)]
pub(crate) struct Cta {
    pub(crate) seq: u32,
    /// The workspace's part that is its own, if it does not finish the sequence.
    pub(crate) part: u32,
    /// First row, and how many.
    pub(crate) first_row: u32,
    pub(crate) num_rows: u32,
}

impl Cta {
    #[inline(always)]
    pub(crate) fn new<G: Gpu>(
        gpu: G,
        cut: MlaTile,
        params: &DecodeMlaParams,
        (seq, part): (u32, u32),
    ) -> Self {
        let first_row = gpu.cta_idx_x() * cut.heads;
        Self {
            seq,
            part,
            first_row,
            num_rows: cut
                .heads
                .min(params.query_len * params.num_query_heads - first_row),
        }
    }

    /// The query token of a row of this thread block.
    #[inline(always)]
    pub(crate) fn token_of(self, params: &DecodeMlaParams, row: u32) -> u32 {
        // SAFETY: the host refuses queries without heads.
        unsafe { div(self.first_row + row, params.num_query_heads) }
    }

    /// From a tensor's address to a row of this thread block.
    #[inline(always)]
    pub(crate) fn offset(
        self,
        params: &DecodeMlaParams,
        row: u32,
        [seq, token, head]: [i64; 3],
    ) -> u64 {
        let token_idx = self.token_of(params, row);
        let head_idx = self.first_row + row - token_idx * params.num_query_heads;
        self.seq as u64 * seq as u64
            + token_idx as u64 * token as u64
            + head_idx as u64 * head as u64
    }

    #[inline(always)]
    pub(crate) fn query_row(self, params: &DecodeMlaParams, row: u32) -> u64 {
        let strides = [
            params.stride_query_seq,
            params.stride_query_token,
            params.stride_query_head,
        ];
        params.query + self.offset(params, row, strides)
    }

    #[inline(always)]
    fn out_row(self, params: &DecodeMlaParams, row: u32) -> u64 {
        let strides = [
            params.stride_out_seq,
            params.stride_out_token,
            params.stride_out_head,
        ];
        params.out + self.offset(params, row, strides)
    }

    /// Index of a row of the part.
    #[inline(always)]
    fn part_row(self, params: &DecodeMlaParams, row: u32) -> u64 {
        let rows = params.query_len * params.num_query_heads;
        self.part as u64 * rows as u64 + (self.first_row + row) as u64
    }

    /// Where this split's values of a row are, `head_size_v` of them.
    #[inline(always)]
    fn partial_row(self, head_size_v: u32, params: &DecodeMlaParams, row: u32) -> u64 {
        params.partial_out + 4 * (self.part_row(params, row) * head_size_v as u64)
    }

    /// Stores the lse of a row, if there is such a row.
    #[inline(always)]
    pub(crate) fn store_lse<G: Gpu>(
        self,
        gpu: G,
        params: &DecodeMlaParams,
        row: u32,
        lse: Lse,
        is_whole: bool,
    ) {
        if row >= self.num_rows {
            return;
        }
        if !is_whole {
            let at = params.partial_lse + Lse::BYTES * self.part_row(params, row);
            // SAFETY: this split's element of the workspace.
            unsafe { gpu.st_global_b64(at, lse.to_bits()) };
        } else if params.lse != 0 {
            let strides = [
                params.stride_lse_seq,
                params.stride_lse_token,
                params.stride_lse_head,
            ];
            let at = params.lse + self.offset(params, row, strides);
            // SAFETY: this row's element.
            unsafe { gpu.st_global_b32(at, lse.natural(gpu).to_bits()) };
        }
    }

    /// The tokens of a split that a row sees.
    #[inline(always)]
    pub(crate) fn seen(
        self,
        params: &DecodeMlaParams,
        row: u32,
        seq_len: u32,
        (start, end): (u32, u32),
    ) -> (u32, u32) {
        let len = (seq_len + 1 + self.token_of(params, row)).saturating_sub(params.query_len);
        (start, len.min(end).max(start))
    }

    /// Stores the output rows that lie in shared memory at `rows`, a row by a warp; those of a whole sequence times their
    /// `factor`. A row that is not finite is what `mend` makes of it.
    ///
    /// # Safety
    /// Every thread of the warps from `FIRST_WARP` on comes here, after the barrier that followed the writes of the rows.
    #[inline(always)]
    #[allow(clippy::too_many_arguments, reason = "each is one fact about the rows")]
    pub(crate) unsafe fn store_out<
        G: Gpu,
        C: CacheFormat,
        const V_STEPS: usize,
        const FIRST_WARP: u32,
    >(
        self,
        gpu: G,
        cut: MlaTile,
        params: &DecodeMlaParams,
        rows: u32,
        is_whole: bool,
        factor: impl Fn(u32) -> f32,
        mend: impl Fn(u32) -> CarefulRow<V_STEPS>,
    ) {
        let mut row = gpu.warp() - FIRST_WARP;
        while row < self.num_rows {
            let at = rows + row * cut.out_row_bytes() + gpu.lane() * 16;
            // Four columns of every 128, in the first eighth of the array.
            let mut values = [[0.0; 4]; V_STEPS];
            let mut seen = [0.0; 2];
            unroll!([4] i in 0..(V_STEPS / 8) {
                // SAFETY: written before the barrier.
                let words = unsafe { gpu.ld_shared_b128(at + i as u32 * (WARP * 16)) };
                values[i] = words.map(f32::from_bits);
                seen = look(gpu, seen, values[i]);
            });
            // SAFETY: converged.
            if unsafe { gpu.any(!all_finite(seen)) } {
                // SAFETY: this warp's row.
                unsafe {
                    self.store_mended::<G, C, V_STEPS>(gpu, params, row, mend(row), is_whole)
                };
            } else if is_whole {
                let factor = factor(row);
                let out = self.out_row(params, row) + 8 * gpu.lane() as u64;
                unroll!([4] i in 0..(V_STEPS / 8) {
                    let packed =
                        pack_out::<G, C>(gpu, values[i].map(|value| value * factor), params.out_dtype);
                    // SAFETY: this row's columns; 8-byte aligned: strides are of 4 values (`Query::outputs`).
                    unsafe { gpu.st_global_b64(out + i as u64 * (WARP as u64 * 8), packed) };
                });
            } else {
                let out = self.partial_row(cut.head_size_v, params, row) + 16 * gpu.lane() as u64;
                unroll!([4] i in 0..(V_STEPS / 8) {
                    // SAFETY: this split's part of the workspace, which is aligned.
                    unsafe {
                        gpu.st_global_b128(out + i as u64 * (WARP as u64 * 16), values[i].map(f32::to_bits));
                    }
                });
            }
            row += cut.warps - FIRST_WARP;
        }
    }

    /// Stores a row that was computed again.
    ///
    /// # Safety
    /// The row is this warp's, and exists.
    #[inline(always)]
    unsafe fn store_mended<G: Gpu, C: CacheFormat, const V_STEPS: usize>(
        self,
        gpu: G,
        params: &DecodeMlaParams,
        row: u32,
        mended: CarefulRow<V_STEPS>,
        is_whole: bool,
    ) {
        if gpu.lane() == 0 {
            self.store_lse(gpu, params, row, mended.lse, is_whole);
        }
        unroll!([8] i in 0..(V_STEPS / 4) {
            let dim = (i as u32 * WARP + gpu.lane()) as u64 * 2;
            let [a, b] = mended.values[i];
            if is_whole {
                let packed = pack_out::<G, C>(gpu, [a, b, 0.0, 0.0], params.out_dtype);
                // SAFETY: this row's columns.
                unsafe { gpu.st_global_b32(self.out_row(params, row) + 2 * dim, packed as u32) };
            } else {
                let at = self.partial_row(V_STEPS as u32 * 16, params, row) + 4 * dim;
                let pair = a.to_bits() as u64 | (b.to_bits() as u64) << 32;
                // SAFETY: this split's part of the workspace, which is aligned.
                unsafe { gpu.st_global_b64(at, pair) };
            }
        });
    }

    /// The output of a sequence without tokens: zero, and minus infinity.
    ///
    /// # Safety
    /// Every thread of the thread block comes here; output and lse have its rows.
    #[inline(always)]
    pub(crate) unsafe fn store_empty<G: Gpu>(self, gpu: G, cut: MlaTile, params: &DecodeMlaParams) {
        let mut row = gpu.warp();
        while row < self.num_rows {
            let mut dim = gpu.lane() * 4;
            while dim < cut.head_size_v {
                // SAFETY: four columns of this warp's row.
                unsafe { gpu.st_global_b64(self.out_row(params, row) + 2 * dim as u64, 0) };
                dim += WARP * 4;
            }
            if gpu.lane() == 0 {
                self.store_lse(gpu, params, row, Lse::EMPTY, true);
            }
            row += cut.warps;
        }
    }
}
