//! The end of `decode_gqa`: the warps of a thread block merge what they have, and store it.

use crate::attention::lse::{LOWEST, Lse};
use crate::attention::out::{pack_out, recip_of_sum, sink_log2};
use crate::attention::tile::HEADS;
use crate::decode::kernel::Cta;
use crate::decode::{OnlineSoftmax, STATS_BYTES, merge_row_bytes};
use crate::dtype::{CacheFormat, Half};
use crate::gpu::unroll::unroll;
use crate::gpu::{Gpu, WARP};
use crate::params::DecodeParams;

impl<C: CacheFormat, const V_STEPS: usize, const HEAD_TILES: usize, const RULED: bool>
    Cta<C, V_STEPS, HEAD_TILES, RULED>
{
    const HEAD_SIZE_V: u32 = V_STEPS as u32 * 16;

    /// Merges the warps' partials and stores the result, as `out` if the sequence has one split, else as
    /// this split's part.
    ///
    /// In shared memory: `[warp, head]` pairs of maximum and sum, then `[warp, head, dim]` accumulators,
    /// each already multiplied by its share of the whole.
    ///
    /// # Safety
    /// Every thread of the thread block comes here, and its shared memory has room for what is described above; the
    /// rings are no longer used. `params` are the kernel's, as it asks.
    #[inline(always)]
    pub(crate) unsafe fn merge_warps<G: Gpu>(
        self,
        gpu: G,
        params: &DecodeParams,
        partial: &OnlineSoftmax<V_STEPS, HEAD_TILES>,
        warps: u32,
        v_scale: f32,
        is_whole: bool,
    ) {
        let stats = gpu.shared_base();
        let rows = stats + warps * Self::MAX_HEADS * STATS_BYTES;
        let (group, pair) = (gpu.lane() / 4, gpu.lane() % 4);
        let (low_dim, high_dim) = C::value_dims(group);
        gpu.cp_async_wait::<0>();
        // SAFETY: all threads come here: this function's contract. From now on the rings may be overwritten.
        unsafe { gpu.sync_cta() };
        if group == 0 {
            unroll!([2] tile in 0..HEAD_TILES {
                unroll!([2] i in 0..2 {
                    let head = tile as u32 * HEADS + pair * 2 + i as u32;
                    let at = stats + (gpu.warp() * Self::MAX_HEADS + head) * STATS_BYTES;
                    // SAFETY: this warp's pair of this head, within shared memory: this function's contract; of a
                    // pair's lanes only one is in group 0.
                    unsafe {
                        gpu.st_shared_b32(at, partial.max[tile][i].to_bits());
                        gpu.st_shared_b32(at + 4, partial.sum[tile][i].to_bits());
                    }
                });
            });
        }
        // SAFETY: all threads come here: this function's contract.
        unsafe { gpu.sync_cta() };
        unroll!([2] tile in 0..HEAD_TILES {
            unroll!([2] i in 0..2 {
                let head = tile as u32 * HEADS + pair * 2 + i as u32;
                // SAFETY: each warp wrote its pair of this head before the barrier.
                let mut lse = unsafe {
                    total::<G, C>(gpu, stats + head * STATS_BYTES, Self::MAX_HEADS * STATS_BYTES, warps)
                };
                if RULED && is_whole {
                    // SAFETY: sinks, if there are any, are one for each query head: the host's `ScoreMods::check`.
                    lse = unsafe { self.add_sink(gpu, params, head, lse) };
                }
                // A warp without a tile has the lowest maximum: a share of 0, or of a sum of 0.
                let mut share = gpu.exp2(partial.max[tile][i] - lse.max)
                    * (C::Math::PROB_UNIT * recip_of_sum(gpu, lse.sum))
                    * v_scale;
                if C::TOKEN_SCALES {
                    share *= partial.value_unit;
                }
                let row = rows + (gpu.warp() * Self::MAX_HEADS + head) * merge_row_bytes(Self::HEAD_SIZE_V);
                unroll!([16] step in 0..V_STEPS {
                    let [low, high] = [partial.acc[tile][step][i], partial.acc[tile][step][i + 2]];
                    let at = row + step as u32 * 64;
                    // SAFETY: this lane's dims of this warp's row of this head, within shared memory: this function's
                    // contract.
                    unsafe {
                        gpu.st_shared_b32(at + low_dim * 4, (low * share).to_bits());
                        gpu.st_shared_b32(at + high_dim * 4, (high * share).to_bits());
                    }
                });
                if gpu.warp() == 0 && group == 0 && head < self.num_heads {
                    // SAFETY: `head` is one of this thread block's; one lane of it comes here.
                    unsafe { self.store_lse(gpu, params, head, lse, is_whole) };
                }
            });
        });
        // SAFETY: all threads come here: this function's contract.
        unsafe { gpu.sync_cta() };
        let quads = self.num_heads * (Self::HEAD_SIZE_V / 4);
        let mut quad = gpu.thread_idx();
        while quad < quads {
            let head = quad / (Self::HEAD_SIZE_V / 4);
            let dim = quad % (Self::HEAD_SIZE_V / 4) * 4;
            let mut sum = [0.0; 4];
            for warp in 0..warps {
                let at = rows
                    + (warp * Self::MAX_HEADS + head) * merge_row_bytes(Self::HEAD_SIZE_V)
                    + dim * 4;
                // SAFETY: four dims, which each warp wrote before the barrier.
                let part = unsafe { gpu.ld_shared_b128(at) };
                unroll!([4] i in 0..4 {
                    sum[i] += f32::from_bits(part[i]);
                });
            }
            // SAFETY: `head` is one of this thread block's; one thread has this quad.
            unsafe { self.store_quad(gpu, params, head, dim, sum, is_whole) };
            quad += warps * WARP;
        }
    }

    /// That of a head with its sink, if it has one: what takes its share and has no value.
    ///
    /// # Safety
    /// The kernel's: sinks, if there are any, are one for each query head.
    #[inline(always)]
    unsafe fn add_sink<G: Gpu>(self, gpu: G, params: &DecodeParams, head: u32, lse: Lse) -> Lse {
        if params.score.sinks == 0 || head >= self.num_heads {
            return lse;
        }
        // SAFETY: `head < num_heads`, so it is a query head, and there are sinks, one for each: this function's
        // contract.
        let sink = unsafe { sink_log2(gpu, &params.score, self.first_head + head) };
        lse.with(gpu, Lse::of_score(sink))
    }

    /// Stores the lse of one head.
    ///
    /// # Safety
    /// `head` is one of this thread block's, whose outputs `params` names; one lane of the thread block calls this for
    /// it.
    #[inline(always)]
    unsafe fn store_lse<G: Gpu>(
        self,
        gpu: G,
        params: &DecodeParams,
        head: u32,
        lse: Lse,
        is_whole: bool,
    ) {
        let head = self.first_head + head;
        if is_whole {
            // SAFETY: this thread block's head, by one lane: this function's contract; it is the sequence's only split.
            unsafe { store_natural_lse(gpu, params, self.row, head, lse) };
        } else {
            let at = params.partial_lse + Lse::BYTES * self.part_row(params, head);
            // SAFETY: this split's element, by one lane: this function's contract; the workspace has one for each
            // (`Partials` on the host).
            unsafe { gpu.st_global_b64(at, lse.to_bits()) };
        }
    }

    /// Stores four output values of one head.
    ///
    /// # Safety
    /// `head` is one of this thread block's, whose outputs `params` names, and `dim` a multiple of 4 below the head
    /// size; one lane of the thread block calls this for both.
    #[inline(always)]
    unsafe fn store_quad<G: Gpu>(
        self,
        gpu: G,
        params: &DecodeParams,
        head: u32,
        dim: u32,
        [a, b, c, d]: [f32; 4],
        is_whole: bool,
    ) {
        let head = self.first_head + head;
        if is_whole {
            let at = params.out
                + self.row as u64 * params.stride_out_seq as u64
                + head as u64 * params.stride_out_head as u64
                + 2 * dim as u64;
            let packed = pack_out::<G, C>(gpu, [a, b, c, d], params.out_dtype);
            // SAFETY: this lane's dims: this function's contract; 8-byte aligned, as the host's `Query::outputs` wants
            // strides of 4 values.
            unsafe { gpu.st_global_b64(at, packed) };
        } else {
            let at = params.partial_out
                + 4 * (self.part_row(params, head) * Self::HEAD_SIZE_V as u64 + dim as u64);
            // SAFETY: this lane's dims of this split's part: this function's contract; 16-byte aligned, as `Partials`
            // on the host and rows of 16 values are.
            unsafe { gpu.st_global_b128(at, [a.to_bits(), b.to_bits(), c.to_bits(), d.to_bits()]) };
        }
    }

    /// Index of a head's row of the part.
    #[inline(always)]
    fn part_row(self, params: &DecodeParams, head: u32) -> u64 {
        self.part as u64 * params.num_query_heads as u64 + head as u64
    }

    /// The output of a sequence without tokens: zero, and minus infinity or the sink.
    ///
    /// # Safety
    /// The thread block is the first split's, and the sequence has no tokens; `params` are the kernel's, as it asks.
    #[inline(always)]
    pub(crate) unsafe fn store_empty<G: Gpu>(self, gpu: G, params: &DecodeParams) {
        if gpu.warp() != 0 {
            return;
        }
        for head in 0..self.num_heads {
            let row = params.out
                + self.row as u64 * params.stride_out_seq as u64
                + (self.first_head + head) as u64 * params.stride_out_head as u64;
            let mut dim = gpu.lane() * 4;
            while dim < Self::HEAD_SIZE_V {
                // SAFETY: four dims of this thread block's head, which no other split writes: this function's contract;
                // aligned as in `store_quad`.
                unsafe { gpu.st_global_b64(row + 2 * dim as u64, 0) };
                dim += WARP * 4;
            }
            if gpu.lane() == 0 {
                let head = self.first_head + head;
                let mut lse = Lse::EMPTY;
                if RULED {
                    // SAFETY: `head` is a query head, and sinks, if there are any, are one for each: this function's
                    // contract.
                    lse = Lse::of_score(unsafe { sink_log2(gpu, &params.score, head) });
                }
                // SAFETY: this thread block's head, which no other split writes: this function's contract; one lane
                // writes it.
                unsafe { store_natural_lse(gpu, params, self.row, head, lse) };
            }
        }
    }
}

/// A head's lse over all warps; `stats` is warp 0's pair, `stride` the step to the next warp's.
///
/// # Safety
/// The pairs of `warps` warps are visible.
#[inline(always)]
unsafe fn total<G: Gpu, C: CacheFormat>(gpu: G, stats: u32, stride: u32, warps: u32) -> Lse {
    let (mut max, mut sum) = (LOWEST, 0.0);
    for warp in 0..warps {
        // SAFETY: a visible pair: this function's contract.
        max = gpu.max(
            max,
            f32::from_bits(unsafe { gpu.ld_shared_b32(stats + warp * stride) }),
        );
    }
    for warp in 0..warps {
        let at = stats + warp * stride;
        // SAFETY: a visible pair: this function's contract.
        let (m, s) = unsafe { (gpu.ld_shared_b32(at), gpu.ld_shared_b32(at + 4)) };
        let weight = gpu.exp2(f32::from_bits(m) - max);
        sum = gpu.fma(weight, f32::from_bits(s), sum);
    }
    Lse {
        max,
        sum: sum * C::Math::PROB_UNIT,
    }
}

/// Stores an lse, turned from base 2 to base e, if one is wanted.
///
/// # Safety
/// The host's tensor, if there is one, has an element for `row` and `head`, which no other lane writes.
#[inline(always)]
unsafe fn store_natural_lse<G: Gpu>(gpu: G, params: &DecodeParams, row: u32, head: u32, lse: Lse) {
    if params.lse != 0 {
        let at = params.lse
            + row as u64 * params.stride_lse_seq as u64
            + head as u64 * params.stride_lse_head as u64;
        // SAFETY: the element of `row` and `head`, which no other lane writes: this function's contract.
        unsafe { gpu.st_global_b32(at, lse.natural(gpu).to_bits()) };
    }
}
