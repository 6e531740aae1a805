//! What a warp that multiplies for itself does with one KV tile after the other.
//!
//! The formats of the cache name key operands by the order of a left factor, of which the right factors here are
//! the halves. The four matrices of an `ldmatrix` are read in the order that puts each half into neighbouring
//! registers, which the tensor cores want, and renamed. Keys of bytes are widened in registers: the first product
//! leaves time for it. The second has the softmax beside it, and finds its values widened in shared memory.

use crate::attention::tile::{row_bytes, swizzle};
use crate::dtype::{CacheFormat, Half};
use crate::gpu::unroll::unroll;
use crate::gpu::{Gpu, WARP};
use crate::prefill::places::{place, step_address, wide_bytes};
use crate::prefill::rows::RowView;
use crate::prefill::score_mods::{PrefillMods, Scores};
use crate::prefill::softmax::{OnlineSoftmax, pack};
use crate::prefill::widen::ValueBytes;
use crate::prefill::{MmaKind, PrefillTile, RowQueries, SharedStream, SharedTile};

impl<const V_STEPS: usize, const ROW_TILES: usize> OnlineSoftmax<V_STEPS, ROW_TILES> {
    /// Takes one tile of a stream, and widens this warp's part of the next one's values on the way. `view` finds out
    /// what is seldom needed of the rows.
    ///
    /// # Safety
    /// Converged; the tile is visible to the warp.
    #[inline(always)]
    pub unsafe fn attend<G: Gpu, C: CacheFormat, const K_STEPS: usize, const PAIRS: usize>(
        &mut self,
        gpu: G,
        query: &RowQueries<K_STEPS, ROW_TILES>,
        tile: SharedTile,
        mods: &PrefillMods<'_>,
        view: impl Fn() -> RowView,
        stream: &SharedStream<'_, C, K_STEPS, V_STEPS>,
    ) {
        const {
            assert!(
                PAIRS as u32 * 16
                    == PrefillTile::of_kernel::<C, K_STEPS, V_STEPS>(MmaKind::Warp).tile_kv
            );
        }
        // SAFETY: converged, and the stream handed the tile out: the contract of `attend`.
        let mut scores = unsafe { scores::<G, C, K_STEPS, PAIRS, ROW_TILES>(gpu, tile.keys) };
        if C::TOKEN_SCALES {
            // SAFETY: the tile is visible.
            unsafe {
                scale_keys(gpu, &mut scores, tile.scales);
                self.grow_unit(gpu, tile.scales + PAIRS as u32 * 64, PAIRS as u32 * 16);
            }
        }
        let scales = gpu.shared_base()
            + PrefillTile::of_kernel::<C, K_STEPS, V_STEPS>(MmaKind::Warp).scales();
        // SAFETY: converged; this warp's words of the scales, which it wrote when it loaded its queries; the rows' heads exist.
        let scale_log2 = unsafe {
            let scale_log2 = query.scales_log2::<G, C>(gpu, scales);
            let scale_log2 = Self::apply(gpu, mods, &mut scores, scale_log2, tile.token, view);
            let rise = self.raise_max(gpu, &scores, &scale_log2);
            self.rescale_sum(rise);
            self.rescale_acc(rise);
            scale_log2
        };
        // SAFETY: converged, and the stream handed the tile out: the contract of `attend`.
        unsafe { self.add_values::<G, C, K_STEPS, PAIRS>(gpu, &scores, &scale_log2, tile, stream) };
    }

    /// `acc += probs values`, 16 tokens after the other.
    #[inline(always)]
    unsafe fn add_values<G: Gpu, C: CacheFormat, const K_STEPS: usize, const PAIRS: usize>(
        &mut self,
        gpu: G,
        scores: &Scores<PAIRS, ROW_TILES>,
        scale_log2: &[[f32; 2]; ROW_TILES],
        tile: SharedTile,
        stream: &SharedStream<'_, C, K_STEPS, V_STEPS>,
    ) {
        let bytes = wide_bytes::<V_STEPS>();
        let chunks = bytes / 16;
        let lane = gpu.black_box(gpu.lane());
        let row = lane % 16;
        let second = lane / 16 * place::<C, V_STEPS>(1);
        let first = tile.values + row * bytes + swizzle(row, second, chunks) * 16;
        let top = self.top::<C>();
        let mut next_values = ValueBytes::NONE;
        unroll!([4] pair in 0..PAIRS {
            // SAFETY: the tile is visible.
            let shares = unsafe { self.shares::<G, C>(gpu, tile.scales + PAIRS as u32 * 64, pair) };
            let mut probs = [[0u32; 4]; ROW_TILES];
            unroll!([2] tile in 0..ROW_TILES {
                let weights = self.weights(gpu, tile, &scores[tile][pair], scale_log2[tile], top[tile]);
                probs[tile] = pack::<G, C>(gpu, weights, shares);
            });
            if pair + 1 == PAIRS {
                // There are registers for them now, and they come while the tensor cores work.
                // SAFETY: they are widened below.
                next_values = unsafe { stream.take_values(gpu) };
            }
            unroll!([16] step in 0..V_STEPS {
                let place = place::<C, V_STEPS>(2 * step as u32);
                let at = step_address(first, place, chunks) + pair as u32 * 16 * bytes;
                // SAFETY: converged; a row of the tile.
                let [v0, v1, v2, v3] = unsafe { gpu.ldmatrix_x4_trans(at) };
                unroll!([2] tile in 0..ROW_TILES {
                    let acc = self.acc[tile][step];
                    // SAFETY: converged.
                    self.acc[tile][step] = unsafe {
                        [
                            C::Math::mma(gpu, acc[0], probs[tile], [v0, v1]),
                            C::Math::mma(gpu, acc[1], probs[tile], [v2, v3]),
                        ]
                    };
                });
            });
        });
        // SAFETY: they were taken above.
        unsafe { stream.widen_values(gpu, next_values) };
    }

    /// What the probabilities of the tokens that a lane holds of a pair of 8 are multiplied by.
    ///
    /// # Safety
    /// The tile with these value scales is visible, if tokens have them.
    #[inline(always)]
    unsafe fn shares<G: Gpu, C: CacheFormat>(
        &self,
        gpu: G,
        scales: u32,
        pair: usize,
    ) -> [[f32; 2]; 2] {
        if !C::TOKEN_SCALES {
            return [[1.0; 2]; 2];
        }
        let per_unit = inverse_of_power(self.value_unit);
        // SAFETY: scales of a tile that was handed out: the contract of `shares`.
        unsafe { token_scales(gpu, scales, pair) }.map(|pair| pair.map(|scale| scale * per_unit))
    }

    /// Makes the unit larger than this tile's value scales, whoever sees their tokens; what was accumulated shrinks by a
    /// power of two. Rows of which that leaves too little are found at the end: see [`OnlineSoftmax::lost_shares`].
    #[inline(always)]
    unsafe fn grow_unit<G: Gpu>(&mut self, gpu: G, scales: u32, tile_kv: u32) {
        let mut largest = 0.0f32;
        unroll!([2] i in 0..2 {
            let token = gpu.lane() + i as u32 * WARP;
            if token < tile_kv {
                // SAFETY: scales of a tile that `attend` was handed.
                let scale = f32::from_bits(unsafe { gpu.ld_shared_b32(scales + token * 4) });
                // One that is not finite has no power of two above it, and belongs to a token that rows may not see.
                let scale = if scale < f32::INFINITY { scale } else { 0.0 };
                if scale > 0.0 && scale < self.least_scale {
                    self.least_scale = scale;
                }
                largest = gpu.max(largest, if scale < LARGEST_UNIT { scale } else { LARGEST_UNIT });
            }
        });
        unroll!([8] i in 0..5 {
            // SAFETY: converged.
            let other = unsafe { gpu.shfl_xor(largest.to_bits(), 1 << i) };
            largest = gpu.max(largest, f32::from_bits(other));
        });
        if largest >= self.value_unit {
            // The next power of two.
            let unit = f32::from_bits((largest.to_bits() & 0x7f80_0000) + 0x80_0000);
            let shrinks = self.value_unit * inverse_of_power(unit);
            self.value_unit = unit;
            unroll!([2] tile in 0..ROW_TILES {
                unroll!([16] step in 0..V_STEPS {
                    unroll!([2] i in 0..2 {
                        let [a0, a1, a2, a3] = self.acc[tile][step][i];
                        self.acc[tile][step][i] =
                            [a0 * shrinks, a1 * shrinks, a2 * shrinks, a3 * shrinks];
                    });
                });
            });
        }
    }
}

/// `query keysᵀ`, unscaled.
#[inline(always)]
unsafe fn scores<
    G: Gpu,
    C: CacheFormat,
    const K_STEPS: usize,
    const PAIRS: usize,
    const ROW_TILES: usize,
>(
    gpu: G,
    keys: u32,
) -> Scores<PAIRS, ROW_TILES> {
    let bytes = row_bytes::<C, K_STEPS>();
    let chunks = bytes / 16;
    let thread = gpu.black_box(gpu.thread_idx());
    let lane = thread % WARP;
    let words = RowQueries::<K_STEPS, ROW_TILES>::words(thread, gpu.shared_base());
    let row = lane % 8 + lane / 16 * 8;
    let first = keys + row * bytes + swizzle(row, lane / 8 % 2, chunks) * 16;
    let mut scores = [[[[0.0; 4]; 2]; PAIRS]; ROW_TILES];
    unroll!([16] unit in 0..K_STEPS {
        if unit * C::STEPS < K_STEPS {
            let mut queries = [[[0u32; 4]; ROW_TILES]; 2];
            unroll!([2] half in 0..2 {
                if half < C::STEPS {
                    unroll!([2] tile in 0..ROW_TILES {
                        queries[half][tile] = RowQueries::<K_STEPS, ROW_TILES>::operand(gpu, words, tile, unit * C::STEPS + half);
                    });
                }
            });
            unroll!([4] pair in 0..PAIRS {
                let at = step_address(first, 2 * unit as u32, chunks) + pair as u32 * 16 * bytes;
                // SAFETY: converged; a row of the tile.
                let [a, b, c, d] = unsafe { gpu.ldmatrix_x4(at) };
                let operands = C::keys(gpu, [a, c, b, d]);
                unroll!([2] half in 0..2 {
                    if half < C::STEPS {
                        let [k0, k1, k2, k3] = operands[half];
                        unroll!([2] tile in 0..ROW_TILES {
                            let acc = scores[tile][pair];
                            // SAFETY: converged.
                            scores[tile][pair] = unsafe {
                                [
                                    C::Math::mma(gpu, acc[0], queries[half][tile], [k0, k2]),
                                    C::Math::mma(gpu, acc[1], queries[half][tile], [k1, k3]),
                                ]
                            };
                        });
                    }
                });
            });
        }
    });
    scores
}

/// 2^125: the next power has an inverse.
const LARGEST_UNIT: f32 = f32::from_bits(252 << 23);

/// `1 / power`, exactly.
#[inline(always)]
fn inverse_of_power(power: f32) -> f32 {
    f32::from_bits((254 << 23) - power.to_bits())
}

/// Multiplies scores by their token's key scale.
#[inline(always)]
unsafe fn scale_keys<G: Gpu, const PAIRS: usize, const ROW_TILES: usize>(
    gpu: G,
    scores: &mut Scores<PAIRS, ROW_TILES>,
    scales: u32,
) {
    unroll!([4] pair in 0..PAIRS {
        // SAFETY: scales of a tile that `attend` was handed.
        let scales = unsafe { token_scales(gpu, scales, pair) };
        unroll!([2] tile in 0..ROW_TILES {
            unroll!([2] i in 0..2 {
                let [s0, s1, s2, s3] = scores[tile][pair][i];
                let [k0, k1] = scales[i];
                scores[tile][pair][i] = [s0 * k0, s1 * k1, s2 * k0, s3 * k1];
            });
        });
    });
}

/// The scales of the tokens that a lane holds of a pair of 8: those of its two columns, twice.
#[inline(always)]
unsafe fn token_scales<G: Gpu>(gpu: G, scales: u32, pair: usize) -> [[f32; 2]; 2] {
    let at = scales + pair as u32 * 64 + gpu.lane() % 4 * 8;
    // SAFETY: scales of a tile that `attend` was handed.
    unsafe {
        [
            [gpu.ld_shared_b32(at), gpu.ld_shared_b32(at + 4)],
            [gpu.ld_shared_b32(at + 32), gpu.ld_shared_b32(at + 36)],
        ]
    }
    .map(|pair| pair.map(f32::from_bits))
}
