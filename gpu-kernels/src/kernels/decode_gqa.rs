//! Stage 1 of split-KV decode attention: one KV split, all query heads of one KV head.
//!
//! Grid: x = KV head and head tile (fastest, because the heads of a token lie side by side in an NHD
//! cache), y = split, z = sequence. A thread block owns the tokens
//! `split_idx * split_len .. + split_len` of one sequence and up to `8 * HEAD_TILES` query heads. Its warps
//! take tiles of 16 tokens in turn and never wait for each other:
//!
//! ```text
//! for each tile of this warp, four or so ahead in flight:
//!     scores  = keys · queryᵀ                      16 tokens x 8 heads, tensor cores
//!     max, sum, acc rescaled                       online softmax, base 2
//!     acc    += valuesᵀ · probs                    head_size_v x 8 heads, tensor cores
//! partials of the warps are merged through shared memory
//! a sequence of one split is finished: out, lse; else partial_out, partial_lse
//! ```

use core::marker::PhantomData;

use crate::dtype::{Bf16, F16, Half};
use crate::gpu::{Gpu, WARP, div};
use crate::kv::{CacheFormat, CacheHead, TokenScales};
use crate::params::DecodeParams;
use crate::tile::{HEADS, KvStream, Partial, QueryDtype, QueryWords, Shape, TILE_KV, query_bytes};
use crate::unroll::unroll;

/// Threads per thread block for a kernel's generics.
pub const fn threads<C: CacheFormat, const K_STEPS: usize, const V_STEPS: usize>() -> u32 {
    Shape::of_kernel::<C, K_STEPS, V_STEPS>().threads()
}

/// The kernel. `K_STEPS = head_size / 16`, `V_STEPS = head_size_v / 16`.
///
/// # Safety
/// Launched on the grid above with [`threads`] threads and `Shape::shared_bytes` shared memory; `params`
/// names tensors of the shapes it documents, valid for the launch.
#[inline(always)]
pub unsafe fn decode_gqa<
    G: Gpu,
    C: CacheFormat,
    const K_STEPS: usize,
    const V_STEPS: usize,
    const HEAD_TILES: usize,
>(
    gpu: G,
    params: &DecodeParams,
) {
    // SAFETY: a valid check record, or none.
    if unsafe { super::check::found_fault(gpu, params.check) } {
        return;
    }
    let shape = const { Shape::of_kernel::<C, K_STEPS, V_STEPS>() };
    let cta = Cta::<C, V_STEPS, HEAD_TILES>::new(gpu, params);
    let len_at = params.seq_lens + 4 * (cta.seq as u64 * params.stride_seq_lens as u64);
    // SAFETY: one length per sequence of the grid.
    let seq_len = unsafe { gpu.ld_global_b32(len_at) };
    // The query and the scales are under way before the length, on which all else depends, is waited for.
    let query_row = |head: u32| {
        let head = (cta.first_head + head) as u64;
        let at = cta.seq as u64 * params.stride_query_seq as u64
            + head * params.stride_query_head as u64;
        params.query + query_bytes::<C>(params.query_dtype) * at
    };
    // SAFETY: the query's `num_heads` heads of this sequence.
    let query = unsafe {
        QueryWords::<K_STEPS, HEAD_TILES>::load::<G, C>(
            gpu,
            query_row,
            cta.num_heads,
            params.query_dtype,
        )
    };
    // SAFETY: this head's scales.
    let (k_scale, v_scale) = unsafe { cta.kv_scales(gpu, params) };
    let seq_len = clamp_len(seq_len, params.max_seq_len);
    let split_start = cta.split * params.split_len;
    if split_start >= seq_len {
        if cta.split == 0 {
            // SAFETY: rows of this thread block's heads.
            unsafe { cta.store_empty(gpu, params) };
        }
        return;
    }
    let split_end = seq_len.min(split_start + params.split_len);

    let keys = CacheHead::new::<C>(
        params.key_cache,
        cta.kv_head,
        params.stride_key_block,
        params.stride_key_slot,
        params.stride_key_head,
    );
    let values = CacheHead::new::<C>(
        params.value_cache,
        cta.kv_head,
        params.stride_value_block,
        params.stride_value_slot,
        params.stride_value_head,
    );
    let row = params.block_table + 4 * (cta.seq as u64 * params.stride_block_table as u64);
    let first_token = split_start + gpu.warp() * TILE_KV;
    let ring = gpu.shared_base() + gpu.warp() * (shape.stages * shape.tile_bytes);
    // SAFETY: converged; the ring is this warp's; the block table names every token below `seq_len`.
    let mut stream = unsafe {
        KvStream::<C, K_STEPS, V_STEPS>::start(
            gpu,
            keys,
            values,
            cta.token_scales(params),
            row,
            params.block_size,
            first_token,
            shape.tokens_per_cta(),
            split_end,
            ring,
        )
    };
    // SAFETY: converged.
    let query =
        unsafe { query.into_tile::<G, C>(gpu, params.query_dtype, params.qk_scale_log2 * k_scale) };

    let mut partial = Partial::<V_STEPS, HEAD_TILES>::EMPTY;
    // SAFETY: converged; each tile is used up before the next is asked for.
    while let Some(tile) = unsafe { stream.next(gpu) } {
        // SAFETY: converged; the tile was just handed out.
        unsafe { partial.attend::<G, C, K_STEPS>(gpu, &query, tile) };
    }
    gpu.let_next_kernel_start();
    // SAFETY: converged.
    unsafe { partial.reduce(gpu) };
    // SAFETY: every warp comes here with no copy in flight that it has not waited for.
    unsafe {
        cta.merge_warps(
            gpu,
            params,
            &partial,
            shape.warps,
            v_scale,
            seq_len <= params.split_len,
        )
    };
}

/// The length of sequence `seq`, between 0 and what its row of the block table can name.
///
/// # Safety
/// `seq_lens` has an element for it.
#[inline(always)]
pub(super) unsafe fn seq_len<G: Gpu>(
    gpu: G,
    seq_lens: u64,
    stride: i64,
    seq: u32,
    max: u32,
) -> u32 {
    // SAFETY: as the caller promises.
    clamp_len(
        unsafe { gpu.ld_global_b32(seq_lens + 4 * (seq as u64 * stride as u64)) },
        max,
    )
}

/// A length as it is stored: a negative one (padding of a captured graph) is an empty sequence.
#[inline(always)]
fn clamp_len(seq_len: u32, max: u32) -> u32 {
    if (seq_len as i32) < 0 {
        0
    } else {
        seq_len.min(max)
    }
}

/// What a thread block owns.
#[derive(Clone, Copy)]
struct Cta<C, const V_STEPS: usize, const HEAD_TILES: usize> {
    kv_head: u32,
    split: u32,
    seq: u32,
    /// First query head, and how many.
    first_head: u32,
    num_heads: u32,
    format: PhantomData<C>,
}

impl<C: CacheFormat, const V_STEPS: usize, const HEAD_TILES: usize> Cta<C, V_STEPS, HEAD_TILES> {
    const HEAD_SIZE_V: u32 = V_STEPS as u32 * 16;
    /// Heads that the tiles have room for.
    const MAX_HEADS: u32 = HEAD_TILES as u32 * HEADS;
    /// Bytes of a head's row in shared memory; 16 more than its values, so that heads fall into different
    /// banks.
    const ROW_BYTES: u32 = Self::HEAD_SIZE_V * 4 + 16;

    #[inline(always)]
    fn new<G: Gpu>(gpu: G, params: &DecodeParams) -> Self {
        // SAFETY: there is at least one head tile.
        let kv_head = unsafe { div(gpu.cta_idx_x(), params.head_tiles) };
        let head_tile = gpu.cta_idx_x() - kv_head * params.head_tiles;
        let skipped = head_tile * Self::MAX_HEADS;
        Self {
            kv_head,
            split: gpu.cta_idx_y(),
            seq: gpu.cta_idx_z(),
            first_head: kv_head * params.num_queries_per_kv + skipped,
            num_heads: Self::MAX_HEADS.min(params.num_queries_per_kv - skipped),
            format: PhantomData,
        }
    }

    /// Scales of single tokens, of keys and of values: meaningless if the format has none.
    #[inline(always)]
    fn token_scales(self, params: &DecodeParams) -> [TokenScales; 2] {
        [
            TokenScales::new(
                params.k_scale,
                self.kv_head,
                params.stride_k_scale_block,
                params.stride_k_scale_slot,
                params.stride_k_scale,
            ),
            TokenScales::new(
                params.v_scale,
                self.kv_head,
                params.stride_v_scale_block,
                params.stride_v_scale_slot,
                params.stride_v_scale,
            ),
        ]
    }

    /// What products with keys, and sums of values, have to be multiplied by.
    ///
    /// # Safety
    /// The scales of an FP8 cache are readable.
    #[inline(always)]
    unsafe fn kv_scales<G: Gpu>(self, gpu: G, params: &DecodeParams) -> (f32, f32) {
        if C::BYTES == 2 {
            return (1.0, 1.0);
        }
        let load = |scales: u64, stride: i64| {
            let at = scales + 4 * (self.kv_head as u64 * stride as u64);
            // SAFETY: one value for all heads or one for each, as the caller promises.
            f32::from_bits(unsafe { gpu.ld_global_b32(at) })
        };
        let q_scale = if params.q_scale != 0 {
            load(params.q_scale, 0)
        } else {
            1.0
        };
        if C::TOKEN_SCALES {
            return (q_scale, 1.0);
        }
        let k_scale = load(params.k_scale, params.stride_k_scale);
        (
            q_scale * k_scale,
            load(params.v_scale, params.stride_v_scale),
        )
    }

    /// Merges the warps' partials and stores the result, as `out` if the sequence has one split, else as
    /// this split's part.
    ///
    /// In shared memory: `[warp, head]` pairs of maximum and sum, then `[warp, head, dim]` accumulators,
    /// each already multiplied by its share of the whole.
    ///
    /// # Safety
    /// Every thread of the thread block comes here; the rings are no longer used.
    #[inline(always)]
    unsafe fn merge_warps<G: Gpu>(
        self,
        gpu: G,
        params: &DecodeParams,
        partial: &Partial<V_STEPS, HEAD_TILES>,
        warps: u32,
        v_scale: f32,
        is_whole: bool,
    ) {
        let stats = gpu.shared_base();
        let rows = stats + warps * Self::MAX_HEADS * 8;
        let (group, pair) = (gpu.lane() / 4, gpu.lane() % 4);
        let (low_dim, high_dim) = C::value_dims(group);
        gpu.cp_async_wait::<0>();
        // SAFETY: all come here; from now on the rings may be overwritten.
        unsafe { gpu.sync_cta() };
        if group == 0 {
            unroll!([2] tile in 0..HEAD_TILES {
                unroll!([2] i in 0..2 {
                    let head = tile as u32 * HEADS + pair * 2 + i as u32;
                    let at = stats + (gpu.warp() * Self::MAX_HEADS + head) * 8;
                    // SAFETY: this warp's pair of this head.
                    unsafe {
                        gpu.st_shared_b32(at, partial.max[tile][i].to_bits());
                        gpu.st_shared_b32(at + 4, partial.sum[tile][i].to_bits());
                    }
                });
            });
        }
        // SAFETY: all come here.
        unsafe { gpu.sync_cta() };
        unroll!([2] tile in 0..HEAD_TILES {
            unroll!([2] i in 0..2 {
                let head = tile as u32 * HEADS + pair * 2 + i as u32;
                // SAFETY: written before the barrier.
                let (max, sum) =
                    unsafe { total(gpu, stats + head * 8, Self::MAX_HEADS * 8, warps) };
                // A warp without a tile has a maximum of -inf and hence a share of 0.
                let mut share = gpu.exp2(partial.max[tile][i] - max) * gpu.recip(sum) * v_scale;
                if C::TOKEN_SCALES {
                    share *= partial.value_unit;
                }
                let row = rows + (gpu.warp() * Self::MAX_HEADS + head) * Self::ROW_BYTES;
                unroll!([16] step in 0..V_STEPS {
                    let [low, high] = [partial.acc[tile][step][i], partial.acc[tile][step][i + 2]];
                    let at = row + step as u32 * 64;
                    // SAFETY: this lane's dims of this warp's row of this head.
                    unsafe {
                        gpu.st_shared_b32(at + low_dim * 4, (low * share).to_bits());
                        gpu.st_shared_b32(at + high_dim * 4, (high * share).to_bits());
                    }
                });
                if gpu.warp() == 0 && group == 0 && head < self.num_heads {
                    let lse_log2 = max - C::Math::PROB_SHIFT + gpu.log2(sum);
                    // SAFETY: this head's element; one lane writes it.
                    unsafe { self.store_lse(gpu, params, head, lse_log2, is_whole) };
                }
            });
        });
        // SAFETY: all come here.
        unsafe { gpu.sync_cta() };
        let quads = self.num_heads * (Self::HEAD_SIZE_V / 4);
        let mut quad = gpu.thread_idx();
        while quad < quads {
            let head = quad / (Self::HEAD_SIZE_V / 4);
            let dim = quad % (Self::HEAD_SIZE_V / 4) * 4;
            let mut sum = [0.0; 4];
            for warp in 0..warps {
                let at = rows + (warp * Self::MAX_HEADS + head) * Self::ROW_BYTES + dim * 4;
                // SAFETY: written before the barrier.
                let part = unsafe { gpu.ld_shared_b128(at) };
                unroll!([4] i in 0..4 {
                    sum[i] += f32::from_bits(part[i]);
                });
            }
            // SAFETY: four dims of this head; one lane writes them.
            unsafe { self.store_quad(gpu, params, head, dim, sum, is_whole) };
            quad += warps * WARP;
        }
    }

    /// Stores the log of the sum of exponentials of one head.
    #[inline(always)]
    unsafe fn store_lse<G: Gpu>(
        self,
        gpu: G,
        params: &DecodeParams,
        head: u32,
        lse_log2: f32,
        is_whole: bool,
    ) {
        let head = self.first_head + head;
        if is_whole {
            // SAFETY: as the caller promises.
            unsafe { store_natural_lse(gpu, params, self.seq, head, lse_log2) };
        } else {
            // SAFETY: this split's element, as the caller promises.
            unsafe {
                gpu.st_global_b32(
                    params.partial_lse + 4 * self.part(params, head),
                    lse_log2.to_bits(),
                )
            };
        }
    }

    /// Stores four output values of one head.
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
                + 2 * (self.seq as u64 * params.stride_out_seq as u64
                    + head as u64 * params.stride_out_head as u64
                    + dim as u64);
            let packed = pack_out::<G, C>(gpu, [a, b, c, d], params.out_dtype);
            // SAFETY: as the caller promises; 8-byte aligned because strides and dims are multiples of 4.
            unsafe { gpu.st_global_b64(at, packed) };
        } else {
            let at = params.partial_out
                + 4 * (self.part(params, head) * Self::HEAD_SIZE_V as u64 + dim as u64);
            // SAFETY: as the caller promises; the workspace is aligned and rows are multiples of 16 values.
            unsafe { gpu.st_global_b128(at, [a.to_bits(), b.to_bits(), c.to_bits(), d.to_bits()]) };
        }
    }

    /// Index of this split's part of a head.
    #[inline(always)]
    fn part(self, params: &DecodeParams, head: u32) -> u64 {
        let row = self.seq as u64 * params.num_query_heads as u64 + head as u64;
        row * params.num_kv_splits as u64 + self.split as u64
    }

    /// The output of a sequence without tokens: zero, and minus infinity.
    ///
    /// # Safety
    /// As the kernel.
    #[inline(always)]
    unsafe fn store_empty<G: Gpu>(self, gpu: G, params: &DecodeParams) {
        if gpu.warp() != 0 {
            return;
        }
        for head in 0..self.num_heads {
            let row = params.out
                + 2 * (self.seq as u64 * params.stride_out_seq as u64
                    + (self.first_head + head) as u64 * params.stride_out_head as u64);
            let mut dim = gpu.lane() * 4;
            while dim < Self::HEAD_SIZE_V {
                // SAFETY: four dims of this thread block's head.
                unsafe { gpu.st_global_b64(row + 2 * dim as u64, 0) };
                dim += WARP * 4;
            }
            if gpu.lane() == 0 {
                // SAFETY: this thread block's head; one lane writes it.
                unsafe {
                    store_natural_lse(
                        gpu,
                        params,
                        self.seq,
                        self.first_head + head,
                        f32::NEG_INFINITY,
                    )
                };
            }
        }
    }
}

/// Four output values; `out_dtype` is only looked at if the cache is of bytes.
#[inline(always)]
pub(super) fn pack_out<G: Gpu, C: CacheFormat>(
    gpu: G,
    [a, b, c, d]: [f32; 4],
    out_dtype: u32,
) -> u64 {
    let pack = |low, high| match (C::BYTES, out_dtype == QueryDtype::F16 as u32) {
        (2, _) => C::Math::pack(gpu, low, high),
        (_, true) => F16::pack(gpu, low, high),
        (_, false) => Bf16::pack(gpu, low, high),
    };
    pack(a, b) as u64 | (pack(c, d) as u64) << 32
}

/// Maximum and sum of a head over all warps; `stats` is warp 0's pair, `stride` the step to the next warp's.
#[inline(always)]
unsafe fn total<G: Gpu>(gpu: G, stats: u32, stride: u32, warps: u32) -> (f32, f32) {
    let (mut max, mut sum) = (f32::NEG_INFINITY, 0.0);
    for warp in 0..warps {
        // SAFETY: written before the barrier, as the caller promises.
        max = gpu.max(
            max,
            f32::from_bits(unsafe { gpu.ld_shared_b32(stats + warp * stride) }),
        );
    }
    for warp in 0..warps {
        let at = stats + warp * stride;
        // SAFETY: as above.
        let (m, s) = unsafe { (gpu.ld_shared_b32(at), gpu.ld_shared_b32(at + 4)) };
        sum = gpu.fma(gpu.exp2(f32::from_bits(m) - max), f32::from_bits(s), sum);
    }
    (max, sum)
}

/// Stores an lse, turned from base 2 to base e, if one is wanted.
#[inline(always)]
unsafe fn store_natural_lse<G: Gpu>(
    gpu: G,
    params: &DecodeParams,
    seq: u32,
    head: u32,
    lse_log2: f32,
) {
    if params.lse != 0 {
        let at = params.lse
            + 4 * (seq as u64 * params.stride_lse_seq as u64
                + head as u64 * params.stride_lse_head as u64);
        // SAFETY: this head's element, as the caller promises.
        unsafe { gpu.st_global_b32(at, (lse_log2 * core::f32::consts::LN_2).to_bits()) };
    }
}
