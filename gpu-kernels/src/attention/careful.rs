//! Attention of one row by one warp, a key at a time: the slow way, for rows that went wrong.
//!
//! Tiles are multiplied whole: a key that a row does not see has a probability of 0 there, and 0 times infinity or NaN
//! is NaN. And a score beyond 2^22 cannot be told from its maximum by the one `fma` that there is time for. Both show
//! at the end, where looking costs next to nothing; then the row is computed again from the keys that it sees, and no
//! others:
//!
//! ```text
//! for each key that the row sees, until nothing can become finite any more:
//!     score     = query · key                         lanes share out the dims
//!     max, sum, acc rescaled; acc += 2^(score - max) * value
//! out = acc / (sum + sink)
//! ```

use crate::attention::lse::{Lse, finite};
use crate::dtype::{Bf16, CacheFormat, F16, Half, QueryDtype};
use crate::gpu::unroll::unroll;
use crate::gpu::{Gpu, WARP};

/// Dims that a warp takes at a time, two a lane.
const DIMS: u32 = 2 * WARP;

/// A row, done.
#[derive(Clone, Copy)]
pub(crate) struct CarefulRow<const V_STEPS: usize> {
    /// Its values, normalised: two for each lane of every 64, in the first quarter of the array.
    pub(crate) values: [[f32; 2]; V_STEPS],
    /// With the sink.
    pub(crate) lse: Lse,
}

/// One row: `place` finds a token of `tokens`, `score` makes a score, base 2, of its product with a key; `sink_log2` is -inf
/// if there is none.
///
/// # Safety
/// Converged, with the same `tokens` and functions for all lanes. `query`, `key` and `value` load two dims, the first
/// of which is even and below `16 * K_STEPS` or `16 * V_STEPS`, of the row or of a token's place.
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "each is one fact about the row")]
pub(crate) unsafe fn careful_row<G: Gpu, P: Copy, const K_STEPS: usize, const V_STEPS: usize>(
    gpu: G,
    tokens: (u32, u32),
    query: impl Fn(u32) -> [f32; 2],
    place: impl Fn(u32) -> P,
    key: impl Fn(P, u32) -> [f32; 2],
    value: impl Fn(P, u32) -> [f32; 2],
    score: impl Fn(u32, P, f32) -> f32,
    sink_log2: f32,
) -> CarefulRow<V_STEPS> {
    let mut own = Lse::EMPTY;
    let mut acc = [[0.0f32; 2]; V_STEPS];
    let mut token = tokens.0;
    while token < tokens.1 {
        let place = place(token);
        let mut product = 0.0;
        let mut first = 0;
        while first < K_STEPS as u32 * 16 {
            let dim = first + 2 * gpu.lane();
            if dim < K_STEPS as u32 * 16 {
                let ([q0, q1], [k0, k1]) = (query(dim), key(place, dim));
                product = gpu.fma(q0, k0, gpu.fma(q1, k1, product));
            }
            first += DIMS;
        }
        for mask in [1, 2, 4, 8, 16] {
            // SAFETY: converged: this function's contract, and all lanes have the same tokens.
            product += f32::from_bits(unsafe { gpu.shfl_xor(f32::to_bits(product), mask) });
        }
        let score_log2 = score(token, place, product);
        let max = gpu.max(own.max, score_log2);
        let shrinks = gpu.exp2(own.max - finite(max));
        let weight = gpu.exp2(score_log2 - finite(max));
        own = Lse {
            max,
            sum: gpu.fma(own.sum, shrinks, weight),
        };
        let mut all_nan = true;
        unroll!([8] i in 0..(V_STEPS.div_ceil(4)) {
            let dim = i as u32 * DIMS + 2 * gpu.lane();
            if dim < V_STEPS as u32 * 16 {
                let values = value(place, dim);
                unroll!([2] j in 0..2 {
                    // Of a key that does not count, its value does not either.
                    let more = if weight == 0.0 { 0.0 } else { weight * values[j] };
                    acc[i][j] = acc[i][j] * shrinks + more;
                    all_nan &= acc[i][j].is_nan();
                });
            }
        });
        // SAFETY: converged: as above.
        if !unsafe { gpu.any(!all_nan) } {
            break;
        }
        token += 1;
    }
    let lse = own.with(gpu, Lse::of_score(sink_log2));
    let scale = if lse.sum == 0.0 {
        0.0
    } else {
        gpu.exp2(own.max - finite(lse.max)) * gpu.recip(lse.sum)
    };
    unroll!([8] i in 0..(V_STEPS.div_ceil(4)) {
        acc[i] = acc[i].map(|value| value * scale);
    });
    CarefulRow { values: acc, lse }
}

/// Two values of a cache of format `C`, at `address`.
///
/// # Safety
/// Both are readable, and the address is aligned to both together.
#[inline(always)]
pub(crate) unsafe fn load_pair<G: Gpu, C: CacheFormat>(gpu: G, address: u64) -> [f32; 2] {
    // SAFETY: two values, readable and aligned: this function's contract.
    unsafe {
        if C::BYTES == 2 {
            return widen_pair::<G, C::Math>(gpu, gpu.ld_global_b32(address));
        }
        let bytes = gpu.ld_global_b16(address) as u32;
        widen_pair::<G, C::Math>(gpu, C::widen16(gpu, [bytes, 0, 0, 0])[0][0])
    }
}

/// Two values of a query of type `dtype` over a cache of format `C`, at `address`.
///
/// # Safety
/// As [`load_pair`].
#[inline(always)]
pub(crate) unsafe fn load_query_pair<G: Gpu, C: CacheFormat>(
    gpu: G,
    address: u64,
    dtype: u32,
) -> [f32; 2] {
    // SAFETY: two values, readable and aligned: this function's contract.
    unsafe {
        if C::BYTES == 2 {
            return load_pair::<G, C>(gpu, address);
        }
        if dtype == QueryDtype::F8E4m3 as u32 {
            let bytes = gpu.ld_global_b16(address) as u32;
            return widen_pair::<G, F16>(gpu, gpu.widen_e4m3x4(bytes)[0]);
        }
        let words = gpu.ld_global_b32(address);
        if dtype == QueryDtype::F16 as u32 {
            widen_pair::<G, F16>(gpu, words)
        } else {
            widen_pair::<G, Bf16>(gpu, words)
        }
    }
}

#[inline(always)]
fn widen_pair<G: Gpu, H: Half>(gpu: G, words: u32) -> [f32; 2] {
    [
        H::widen(gpu, words as u16),
        H::widen(gpu, (words >> 16) as u16),
    ]
}

/// Sums of products of two values each, which are not finite if a value is not: two, so that a product seldom waits for
/// the one before. They overflow where values are beyond 2^63, too: then a row is computed again that need not be.
pub(crate) type Seen = [f32; 2];

/// Adds these values to them.
#[inline(always)]
pub(crate) fn look<G: Gpu>(gpu: G, seen: Seen, [a, b, c, d]: [f32; 4]) -> Seen {
    [gpu.fma(a, b, seen[0]), gpu.fma(c, d, seen[1])]
}

/// Whether all of them were finite.
#[inline(always)]
pub(crate) fn all_finite([a, b]: Seen) -> bool {
    (a + b).abs() < f32::INFINITY
}
