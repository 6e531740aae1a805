//! Stage 1 of split-KV decode attention over a latent (MLA) cache: one KV split, some query heads.
//!
//! Grid: x = tile of rows (fastest, because all rows of a sequence want the same tokens), y = split,
//! z = sequence. A row is a query head of a query token. A thread block owns the tokens
//! `split_idx * split_len .. + split_len` of one sequence and up to `8 * HEAD_TILES` rows:
//!
//! ```text
//! for each tile of 32 or 64 tokens, one or more ahead in flight:      barrier: it is there, the last one is free
//!     scores = keys · queryᵀ       warps share out tokens, rows, maybe columns (then a barrier); tensor cores
//!     maxima of all token warps    barrier
//!     acc rescaled; probabilities  barrier
//!     acc   += valuesᵀ · probs     warps share out columns, tensor cores
//! a sequence of one split is finished: out, lse; else partial_out, partial_lse
//! ```

use super::careful::{CarefulRow, all_finite, careful_row, load_pair, load_query_pair, look};
use super::decode_gqa::seq_len;
use super::warp_merge::pack_out;
use crate::gpu::{Gpu, WARP, div};
use crate::kv::{CacheFormat, CacheHead};
use crate::latent::{Cut, LatentQuery, LatentStream, LatentWords, Running};
use crate::lse::Lse;
use crate::params::DecodeMlaParams;
use crate::tile::query_bytes;
use crate::unroll::unroll;

/// The kernel. `K_STEPS = head_size / 16`, `V_STEPS = head_size_v / 16`; a thread block takes `HEAD_TILES` tiles
/// of 8 rows; a warp takes `WARP_HEAD_TILES` of them and `WARP_TOKEN_TILES` tiles of 16 tokens of the scores, and
/// `WARP_DIM_TILES` tiles of 16 columns of the output.
///
/// # Safety
/// Launched on the grid above with [`Cut::threads`] threads and [`Cut::shared_bytes`] shared memory for
/// `params.stages`; `params` names tensors of the shapes it documents, valid for the launch.
#[inline(always)]
pub unsafe fn decode_mla<
    G: Gpu,
    C: CacheFormat,
    const K_STEPS: usize,
    const V_STEPS: usize,
    const HEAD_TILES: usize,
    const WARP_HEAD_TILES: usize,
    const WARP_TOKEN_TILES: usize,
    const WARP_DIM_TILES: usize,
    const WARP_GROUPS: usize,
>(
    gpu: G,
    params: &DecodeMlaParams,
) {
    // SAFETY: a valid check record, or none.
    if unsafe { super::check::found_fault(gpu, params.check) } {
        return;
    }
    let cut = const {
        let cut = Cut::of_kernel::<
            C,
            K_STEPS,
            HEAD_TILES,
            WARP_HEAD_TILES,
            WARP_TOKEN_TILES,
            WARP_DIM_TILES,
        >(V_STEPS as u32 * 16);
        assert!(cut.tile_len == cut.warps * WARP_GROUPS as u32 * 8);
        assert!(cut.tile_len.is_multiple_of(32) && cut.tile_len <= 64);
        cut
    };
    let cta = Cta::new(gpu, cut, params);
    // The query is under way before the length, on which all else depends, is waited for.
    // SAFETY: the rows exist.
    let words = unsafe {
        LatentWords::<K_STEPS, WARP_HEAD_TILES>::load::<G, C>(
            gpu,
            Running::<C, HEAD_TILES, WARP_HEAD_TILES, WARP_DIM_TILES>::first_tile(gpu, cut),
            |row| cta.query_row::<C>(params, row),
            cta.num_rows,
            params.query_dtype,
        )
    };
    // SAFETY: one length per sequence of the grid.
    let seq_len = unsafe {
        seq_len(
            gpu,
            params.seq_lens,
            params.stride_seq_lens,
            cta.seq,
            params.max_seq_len,
        )
    };
    let split_start = cta.split * params.split_len;
    if split_start >= seq_len {
        if cta.split == 0 {
            // SAFETY: rows of this thread block.
            unsafe { cta.store_empty(gpu, cut, params) };
        }
        return;
    }
    let split_end = seq_len.min(split_start + params.split_len);

    let cache = CacheHead::new::<C>(
        params.cache,
        0,
        params.stride_cache_block,
        params.stride_cache_slot,
        0,
    );
    // SAFETY: every warp comes here; the ring is as long as the launch promises; the block table names every
    // token below `seq_len`.
    let mut stream = unsafe {
        LatentStream::<C, K_STEPS, WARP_GROUPS>::start(
            gpu,
            cache,
            params.block_table + 4 * (cta.seq as u64 * params.stride_block_table as u64),
            params.block_size,
            split_start,
            split_end,
            cut,
            gpu.shared_base() + cut.ring(),
            params.stages,
        )
    };
    // SAFETY: the scales of an FP8 cache are readable.
    let (q_scale, k_scale) = unsafe { scales::<G, C>(gpu, params) };
    let mut running = Running::<C, HEAD_TILES, WARP_HEAD_TILES, WARP_DIM_TILES>::EMPTY;
    // SAFETY: every thread comes here.
    let query = unsafe {
        LatentQuery::<K_STEPS, WARP_HEAD_TILES>::of::<G, C>(
            gpu,
            cut,
            words,
            params.query_dtype,
            params.qk_scale_log2 * q_scale * k_scale,
        )
    };
    // What a row sees ends with its own token: `query_len - 1` before the end for the first one.
    let all_see = (seq_len + 1)
        .saturating_sub(params.query_len)
        .min(split_end);
    let mut token = split_start;
    while token < split_end {
        // SAFETY: every thread comes here; there is a tile for each step of this loop.
        let (tile, next) = unsafe { (stream.next(gpu), stream.next_rows(gpu)) };
        let len_of = |row: u32| {
            let query_token = cta.token_of(params, row);
            (seq_len + 1 + query_token)
                .saturating_sub(params.query_len)
                .min(split_end)
                .saturating_sub(token)
        };
        // SAFETY: every thread comes here; the tile was just handed out.
        unsafe {
            running.attend::<G, K_STEPS, WARP_TOKEN_TILES>(
                gpu,
                cut,
                &query,
                tile,
                token + cut.tile_len <= all_see,
                len_of,
                |step, steps| {
                    if let Some(rows) = next {
                        rows.copy_step(gpu, step, steps);
                    }
                },
                || stream.end_rows(gpu),
            )
        };
        token += cut.tile_len;
    }
    gpu.let_next_kernel_start();
    let is_whole = seq_len <= params.split_len;
    // SAFETY: every thread comes here, after the last tile; each row's lse is stored once.
    unsafe {
        let rows = running.finish(gpu, cut, k_scale, |row, lse| {
            cta.store_lse(gpu, params, row, lse, is_whole);
        });
        cta.store_out::<G, C, V_STEPS>(
            gpu,
            cut,
            params,
            rows,
            is_whole,
            |_| 1.0,
            |row| {
                // Found out again: the loop has no register to keep it in.
                let cta = Cta::again(gpu, cut, params);
                let stride = params.stride_seq_lens;
                let seq_len =
                    self::seq_len(gpu, params.seq_lens, stride, cta.seq, params.max_seq_len);
                let start = cta.split * params.split_len;
                let seen = cta.seen(
                    params,
                    row,
                    seq_len,
                    (start, seq_len.min(start + params.split_len)),
                );
                let cache = CacheHead::new::<C>(
                    params.cache,
                    0,
                    params.stride_cache_block,
                    gpu.opaque(params.stride_cache_slot as u32) as i64,
                    0,
                );
                let (q_scale, k_scale) = scales::<G, C>(gpu, params);
                let query = cta.query_row::<C>(params, row);
                let at = |token: u32, dim: u32| {
                    let block_idx = div(token, params.block_size);
                    let table = params.block_table
                        + 4 * (cta.seq as u64 * params.stride_block_table as u64
                            + block_idx as u64);
                    let slot = token - block_idx * params.block_size;
                    cache.slot(gpu.ld_global_b32(table), slot) + (C::BYTES * dim) as u64
                };
                careful_row::<G, K_STEPS, V_STEPS>(
                    gpu,
                    seen,
                    |dim| {
                        let at = query + query_bytes::<C>(params.query_dtype) * dim as u64;
                        load_query_pair::<G, C>(gpu, at, params.query_dtype)
                    },
                    |token, dim| load_pair::<G, C>(gpu, at(token, dim)),
                    |token, dim| {
                        load_pair::<G, C>(gpu, at(token, dim)).map(|value| value * k_scale)
                    },
                    |_, product| product * (params.qk_scale_log2 * q_scale * k_scale),
                    f32::NEG_INFINITY,
                )
            },
        );
    }
}

/// The scales of query and cache.
///
/// # Safety
/// Those of an FP8 cache are readable.
#[inline(always)]
unsafe fn scales<G: Gpu, C: CacheFormat>(gpu: G, params: &DecodeMlaParams) -> (f32, f32) {
    if C::BYTES == 2 {
        return (1.0, 1.0);
    }
    // SAFETY: as the caller promises.
    unsafe {
        let q_scale = if params.q_scale != 0 {
            f32::from_bits(gpu.ld_global_b32(params.q_scale))
        } else {
            1.0
        };
        (q_scale, f32::from_bits(gpu.ld_global_b32(params.k_scale)))
    }
}

/// What a thread block owns.
#[derive(Clone, Copy)]
pub(super) struct Cta {
    pub(super) split: u32,
    pub(super) seq: u32,
    /// First row, and how many.
    pub(super) first_row: u32,
    pub(super) num_rows: u32,
}

impl Cta {
    #[inline(always)]
    fn new<G: Gpu>(gpu: G, cut: Cut, params: &DecodeMlaParams) -> Self {
        let first_row = gpu.cta_idx_x() * cut.heads;
        Self {
            split: gpu.cta_idx_y(),
            seq: gpu.cta_idx_z(),
            first_row,
            num_rows: cut
                .heads
                .min(params.query_len * params.num_query_heads - first_row),
        }
    }

    /// The same, by numbers that the compiler does not take for those it has.
    #[inline(always)]
    fn again<G: Gpu>(gpu: G, cut: Cut, params: &DecodeMlaParams) -> Self {
        let first_row = gpu.opaque(gpu.cta_idx_x()) * cut.heads;
        Self {
            split: gpu.opaque(gpu.cta_idx_y()),
            seq: gpu.opaque(gpu.cta_idx_z()),
            first_row,
            num_rows: cut
                .heads
                .min(params.query_len * params.num_query_heads - first_row),
        }
    }

    /// The query token of a row of this thread block.
    #[inline(always)]
    pub(super) fn token_of(self, params: &DecodeMlaParams, row: u32) -> u32 {
        // SAFETY: the host refuses queries without heads.
        unsafe { div(self.first_row + row, params.num_query_heads) }
    }

    /// Elements from a tensor's first element to a row of this thread block.
    #[inline(always)]
    fn offset(self, params: &DecodeMlaParams, row: u32, [seq, token, head]: [i64; 3]) -> u64 {
        let token_idx = self.token_of(params, row);
        let head_idx = self.first_row + row - token_idx * params.num_query_heads;
        self.seq as u64 * seq as u64
            + token_idx as u64 * token as u64
            + head_idx as u64 * head as u64
    }

    #[inline(always)]
    pub(super) fn query_row<C: CacheFormat>(self, params: &DecodeMlaParams, row: u32) -> u64 {
        let strides = [
            params.stride_query_seq,
            params.stride_query_token,
            params.stride_query_head,
        ];
        params.query + query_bytes::<C>(params.query_dtype) * self.offset(params, row, strides)
    }

    #[inline(always)]
    fn out_row(self, params: &DecodeMlaParams, row: u32) -> u64 {
        let strides = [
            params.stride_out_seq,
            params.stride_out_token,
            params.stride_out_head,
        ];
        params.out + 2 * self.offset(params, row, strides)
    }

    /// Index of this split's part of a row.
    #[inline(always)]
    fn part(self, params: &DecodeMlaParams, row: u32) -> u64 {
        let rows = params.query_len * params.num_query_heads;
        let row = self.seq as u64 * rows as u64 + (self.first_row + row) as u64;
        row * params.num_kv_splits as u64 + self.split as u64
    }

    /// Stores the lse of a row, if there is such a row.
    #[inline(always)]
    pub(super) fn store_lse<G: Gpu>(
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
            let at = params.partial_lse + Lse::BYTES * self.part(params, row);
            // SAFETY: this split's element of the workspace.
            unsafe { gpu.st_global_b64(at, lse.to_bits()) };
        } else if params.lse != 0 {
            let strides = [
                params.stride_lse_seq,
                params.stride_lse_token,
                params.stride_lse_head,
            ];
            let at = params.lse + 4 * self.offset(params, row, strides);
            // SAFETY: this row's element.
            unsafe { gpu.st_global_b32(at, lse.natural(gpu).to_bits()) };
        }
    }

    /// The tokens of a split that a row sees.
    #[inline(always)]
    pub(super) fn seen(
        self,
        params: &DecodeMlaParams,
        row: u32,
        seq_len: u32,
        (start, end): (u32, u32),
    ) -> (u32, u32) {
        let len = (seq_len + 1 + self.token_of(params, row)).saturating_sub(params.query_len);
        (start, len.min(end).max(start))
    }

    /// Stores the output rows that lie in shared memory at `rows`, four columns at a time; those of a whole
    /// sequence times their `factor`. A row that is not finite is what `mend` makes of it.
    ///
    /// # Safety
    /// Every thread comes here, after the barrier that followed the writes of the rows.
    #[inline(always)]
    #[allow(clippy::too_many_arguments, reason = "each is one fact about the rows")]
    pub(super) unsafe fn store_out<G: Gpu, C: CacheFormat, const V_STEPS: usize>(
        self,
        gpu: G,
        cut: Cut,
        params: &DecodeMlaParams,
        rows: u32,
        is_whole: bool,
        factor: impl Fn(u32) -> f32,
        mend: impl Fn(u32) -> CarefulRow<V_STEPS>,
    ) {
        let quads_per_row = cut.head_size_v / 4;
        let mut seen = [0.0; 4];
        let mut quad = gpu.thread_idx();
        while quad < self.num_rows * quads_per_row {
            let (row, dim) = (quad / quads_per_row, quad % quads_per_row * 4);
            // SAFETY: written before the barrier.
            let words = unsafe { gpu.ld_shared_b128(rows + row * cut.out_row_bytes() + dim * 4) };
            if is_whole {
                let factor = factor(row);
                let values = words.map(|word| f32::from_bits(word) * factor);
                let packed = pack_out::<G, C>(gpu, values, params.out_dtype);
                // SAFETY: this row's columns; 8-byte aligned because strides are multiples of 4.
                unsafe { gpu.st_global_b64(self.out_row(params, row) + 2 * dim as u64, packed) };
            } else {
                let at = params.partial_out
                    + 4 * (self.part(params, row) * cut.head_size_v as u64 + dim as u64);
                // SAFETY: this split's part of the workspace, which is aligned.
                unsafe { gpu.st_global_b128(at, words) };
            }
            seen = look(gpu, seen, words.map(f32::from_bits));
            quad += cut.threads();
        }
        // SAFETY: converged.
        if !unsafe { gpu.any(!all_finite(seen)) } {
            return;
        }
        // A warp has 32 quads of one row at a time: rows have a multiple of 32.
        let mut quad = gpu.thread_idx();
        while quad < self.num_rows * quads_per_row {
            let (row, dim) = (quad / quads_per_row, quad % quads_per_row * 4);
            // SAFETY: written before the barrier.
            let words = unsafe { gpu.ld_shared_b128(rows + row * cut.out_row_bytes() + dim * 4) };
            let is_finite = all_finite(look(gpu, [0.0; 4], words.map(f32::from_bits)));
            // SAFETY: converged.
            if unsafe { gpu.any(!is_finite) } {
                let mended = mend(row);
                let columns = (dim / 128 * 128, dim / 128 * 128 + 128);
                // SAFETY: converged; all lanes' columns are stored before any is stored again.
                unsafe {
                    gpu.sync_warp();
                    self.store_mended::<G, C, V_STEPS>(
                        gpu, cut, params, row, columns, mended, is_whole,
                    );
                }
            }
            quad += cut.threads();
        }
    }

    /// Stores columns `columns` of a row that was computed again.
    ///
    /// # Safety
    /// The columns are this warp's.
    #[inline(always)]
    #[allow(clippy::too_many_arguments, reason = "each is one fact about the row")]
    unsafe fn store_mended<G: Gpu, C: CacheFormat, const V_STEPS: usize>(
        self,
        gpu: G,
        cut: Cut,
        params: &DecodeMlaParams,
        row: u32,
        columns: (u32, u32),
        mended: CarefulRow<V_STEPS>,
        is_whole: bool,
    ) {
        if columns.0 == 0 && gpu.lane() == 0 {
            self.store_lse(gpu, params, row, mended.lse, is_whole);
        }
        unroll!([8] i in 0..(V_STEPS.div_ceil(4)) {
            let dim = (i as u32 * WARP + gpu.lane()) * 2;
            let [a, b] = mended.values[i];
            let is_own = columns.0 <= dim && dim < columns.1;
            if is_own && is_whole {
                let packed = pack_out::<G, C>(gpu, [a, b, 0.0, 0.0], params.out_dtype);
                // SAFETY: this row's columns.
                unsafe { gpu.st_global_b32(self.out_row(params, row) + 2 * dim as u64, packed as u32) };
            } else if is_own {
                let at = params.partial_out
                    + 4 * (self.part(params, row) * cut.head_size_v as u64 + dim as u64);
                let pair = a.to_bits() as u64 | (b.to_bits() as u64) << 32;
                // SAFETY: this split's part of the workspace, which is aligned.
                unsafe { gpu.st_global_b64(at, pair) };
            }
        });
    }

    /// The output of a sequence without tokens: zero, and minus infinity.
    ///
    /// # Safety
    /// As the kernel.
    #[inline(always)]
    pub(super) unsafe fn store_empty<G: Gpu>(self, gpu: G, cut: Cut, params: &DecodeMlaParams) {
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
