//! The queries of a warp's rows, as operands of the tensor cores, kept in shared memory.

use crate::attention::query::{query_bytes, score_scale, to_f16};
use crate::dtype::CacheFormat;
use crate::gpu::unroll::unroll;
use crate::gpu::{Gpu, PANEL_BYTES, PANEL_ROW_BYTES, WARP, in_panels};
use crate::params::PrefillParams;
use crate::prefill::WARPS;
use crate::prefill::rows::WarpRows;

/// `ROW_TILES` tiles of 16 rows. Their operands are too many for registers; each lane keeps its own words in
/// shared memory, where no other lane looks, so nobody waits for them. Over a cache of bytes, what a row's products
/// are multiplied by waits there too.
#[derive(Clone, Copy, Debug)]
pub struct RowQueries<const K_STEPS: usize, const ROW_TILES: usize> {
    /// Turns a product into a score in powers of two, if it is the same for all rows.
    scale_log2: f32,
}

impl<const K_STEPS: usize, const ROW_TILES: usize> RowQueries<K_STEPS, ROW_TILES> {
    /// Loads the queries of `rows`. Their sequence begins at query token `first_token`, and their KV head at query head
    /// `first_head`. Rows past the end are zero. `shared` is the thread block's memory for them, and `scales` that for
    /// what their products are multiplied by.
    ///
    /// # Safety
    /// Converged. The queries are in bounds and aligned to two values.
    #[inline(always)]
    pub unsafe fn load<G: Gpu, C: CacheFormat>(
        gpu: G,
        params: &PrefillParams,
        rows: WarpRows,
        (first_token, first_head): (u32, u32),
        (shared, scales): (u32, u32),
        qk_scale_log2: f32,
    ) -> Self {
        let words = Self::words(gpu.thread_idx(), shared);
        let mut scale_log2 = [[0.0f32; 2]; 2];
        let dims = C::key_dims(gpu.lane() % 4);
        unroll!([2] tile in 0..ROW_TILES {
            // SAFETY: rows of this sequence, so tokens and heads of the query: the contract of `load`.
            let (halves, unscale) =
                unsafe { read_tile::<G, C, K_STEPS>(gpu, params, rows, tile, (first_token, first_head), dims) };
            scale_log2[tile] = unscale.map(|unscale| score_scale(qk_scale_log2 * unscale));
            unroll!([16] step in 0..K_STEPS {
                let [a, c] = halves[0][step];
                let [b, d] = halves[1][step];
                // SAFETY: this lane's words.
                unsafe { gpu.st_shared_b128(words + Self::offset(tile, step), [a, b, c, d]) };
            });
        });
        if C::BYTES == 1 && gpu.lane().is_multiple_of(4) {
            let [[a, b], [c, d]] = scale_log2.map(|halves| halves.map(f32::to_bits));
            // SAFETY: the quad's words; nobody reads them before the next barrier.
            unsafe { gpu.st_shared_b128(Self::scales_at(gpu.thread_idx(), scales), [a, b, c, d]) };
        }
        Self {
            scale_log2: qk_scale_log2,
        }
    }

    /// What turns products of rows `lane / 4` and `+ 8` of each tile into scores in powers of two.
    #[inline(always)]
    pub(crate) fn scales_log2<G: Gpu, C: CacheFormat>(
        &self,
        gpu: G,
        scales: u32,
    ) -> [[f32; 2]; ROW_TILES] {
        let mut scales_log2 = [[self.scale_log2; 2]; ROW_TILES];
        if C::BYTES == 1 {
            let at = Self::scales_at(gpu.black_box(gpu.thread_idx()), scales);
            // SAFETY: stored before the barrier of the first tile.
            let words = unsafe { gpu.ld_shared_b128(at) };
            unroll!([2] tile in 0..ROW_TILES {
                scales_log2[tile] = [words[2 * tile], words[2 * tile + 1]].map(f32::from_bits);
            });
        }
        scales_log2
    }

    /// Address of a thread's 16 bytes of scales, which the four lanes of a quad share.
    #[inline(always)]
    fn scales_at(thread: u32, scales: u32) -> u32 {
        scales + thread / 4 * 16
    }

    /// Address of a thread's first 16 bytes.
    #[inline(always)]
    pub(crate) fn words(thread: u32, shared: u32) -> u32 {
        let warp_bytes = const { (ROW_TILES * K_STEPS) as u32 * 512 };
        shared + thread / WARP * warp_bytes + thread % WARP * 16
    }

    /// From there to its 16 bytes of a step.
    #[inline(always)]
    fn offset(tile: usize, step: usize) -> u32 {
        (tile * K_STEPS + step) as u32 * 512
    }

    /// The left operand of one step: 16 rows by 16 dims, in the cache format's order of dims.
    #[inline(always)]
    pub(crate) fn operand<G: Gpu>(gpu: G, words: u32, tile: usize, step: usize) -> [u32; 4] {
        // SAFETY: this lane's words, which it wrote.
        unsafe { gpu.ld_shared_b128(words + Self::offset(tile, step)) }
    }
}

/// The queries of the 64 rows of a warp group, as panels.
#[derive(Clone, Copy, Debug)]
pub struct GroupQueries {
    /// Where the panels begin.
    pub(crate) panels: u32,
    /// What turns products of rows `lane / 4` and `+ 8` of a warp into scores in powers of two.
    pub(crate) scale_log2: [f32; 2],
}

impl GroupQueries {
    /// Loads those of a warp's `rows`, as [`RowQueries::load`] does, for group `group` of the thread block. The four
    /// lanes of a quad share out the 16-byte chunks of their rows.
    ///
    /// # Safety
    /// As there, but that the queries are aligned to 16 bytes.
    #[inline(always)]
    pub unsafe fn load<G: Gpu, C: CacheFormat, const K_STEPS: usize, const BYTE_KEYS: bool>(
        gpu: G,
        params: &PrefillParams,
        rows: WarpRows,
        first: (u32, u32),
        group: u32,
        qk_scale_log2: f32,
    ) -> Self {
        let num_panels = if BYTE_KEYS { 1 } else { K_STEPS as u32 / 4 };
        let panels = gpu.shared_base() + group * (num_panels * PANEL_BYTES);
        let warp_panel = panels + gpu.warp() % WARPS * 16 * PANEL_ROW_BYTES;
        let at = |half: usize, chunk: u32| {
            warp_panel + in_panels(gpu.lane() / 4 + half as u32 * 8, chunk)
        };
        let quad = gpu.lane() % 4;
        let mut unscale = [1.0f32; 2];
        if BYTE_KEYS || query_bytes::<C>(params.query_dtype) == 1 {
            let mut bytes = [[[0u32; 4]; 4]; 2];
            unroll!([2] half in 0..2 {
                if let Some(row) = row_address(gpu, params, rows, (0, half), first) {
                    unroll!([4] i in 0..(K_STEPS / 4) {
                        // SAFETY: 16 dims of a row that exists.
                        bytes[half][i] = unsafe { gpu.ld_global_b128(row + (16 * quad + 64 * i as u32) as u64) };
                    });
                }
            });
            unroll!([2] half in 0..2 {
                unroll!([4] i in 0..(K_STEPS / 4) {
                    // SAFETY: this lane's chunks.
                    unsafe {
                        if BYTE_KEYS {
                            gpu.st_shared_b128(at(half, quad + 4 * i as u32), bytes[half][i]);
                        } else {
                            let [low, high] = widen(gpu, bytes[half][i]);
                            let chunk = 2 * quad + 8 * i as u32;
                            gpu.st_shared_b128(at(half, chunk), low);
                            gpu.st_shared_b128(at(half, chunk + 1), high);
                        }
                    }
                });
            });
        } else {
            let mut words = [[[0u32; 2]; K_STEPS]; 2];
            unroll!([2] half in 0..2 {
                if let Some(row) = row_address(gpu, params, rows, (0, half), first) {
                    unroll!([8] i in 0..(K_STEPS / 2) {
                        // SAFETY: eight dims of a row that exists.
                        let [a, b, c, d] = unsafe { gpu.ld_global_b128(row + (16 * quad + 64 * i as u32) as u64) };
                        words[half][2 * i] = [a, b];
                        words[half][2 * i + 1] = [c, d];
                    });
                }
            });
            unroll!([2] half in 0..2 {
                if C::BYTES == 1 {
                    // SAFETY: converged; the quad has all of the row.
                    unscale[half] = unsafe { to_f16::<G, _, 2>(gpu, &mut words[half], params.query_dtype) };
                }
                unroll!([8] i in 0..(K_STEPS / 2) {
                    let ([a, b], [c, d]) = (words[half][2 * i], words[half][2 * i + 1]);
                    // SAFETY: this lane's chunk.
                    unsafe { gpu.st_shared_b128(at(half, quad + 4 * i as u32), [a, b, c, d]) };
                });
            });
        }
        gpu.fence_warpgroup();
        Self {
            panels,
            scale_log2: unscale.map(|unscale| {
                let scale_log2 = qk_scale_log2 * unscale;
                if C::BYTES == 1 {
                    score_scale(scale_log2)
                } else {
                    scale_log2
                }
            }),
        }
    }
}

/// 16 e4m3 as f16.
#[inline(always)]
fn widen<G: Gpu>(gpu: G, [a, b, c, d]: [u32; 4]) -> [[u32; 4]; 2] {
    let (a, b) = (gpu.widen_e4m3x4(a), gpu.widen_e4m3x4(b));
    let (c, d) = (gpu.widen_e4m3x4(c), gpu.widen_e4m3x4(d));
    [[a[0], a[1], b[0], b[1]], [c[0], c[1], d[0], d[1]]]
}

/// Where the query of row `lane / 4 + 8 * half` of a row tile is, if there is such a row.
#[inline(always)]
fn row_address<G: Gpu>(
    gpu: G,
    params: &PrefillParams,
    rows: WarpRows,
    (tile, half): (usize, usize),
    (first_token, first_head): (u32, u32),
) -> Option<u64> {
    let row = rows.of_lane(gpu.lane(), tile, half);
    if row >= rows.end {
        return None;
    }
    let token = first_token as u64 + rows.token(row) as u64;
    let head = first_head as u64 + rows.head(row) as u64;
    let row = token * params.stride_query_token as u64 + head * params.stride_query_head as u64;
    Some(params.query + row)
}

/// Two pairs of dims of each step, beginning at `dims`, of rows `lane / 4` and `+ 8` of a row tile; and what their
/// products have to be multiplied by. Rows past the end are zero.
///
/// # Safety
/// As [`RowQueries::load`].
#[inline(always)]
unsafe fn read_tile<G: Gpu, C: CacheFormat, const K_STEPS: usize>(
    gpu: G,
    params: &PrefillParams,
    rows: WarpRows,
    tile: usize,
    first_row: (u32, u32),
    (first, second): (u32, u32),
) -> ([[[u32; 2]; K_STEPS]; 2], [f32; 2]) {
    let bytes = query_bytes::<C>(params.query_dtype);
    let mut halves = [[[0u32; 2]; K_STEPS]; 2];
    let mut unscale = [1.0f32; 2];
    unroll!([2] half in 0..2 {
        if let Some(at) = row_address(gpu, params, rows, (tile, half), first_row) {
            unroll!([16] step in 0..K_STEPS {
                let dims = at + bytes * step as u64 * 16;
                let (first, second) = (dims + bytes * first as u64, dims + bytes * second as u64);
                // SAFETY: two pairs of dims of a row that exists.
                halves[half][step] = unsafe {
                    if bytes == 1 {
                        [gpu.ld_global_b16(first) as u32, gpu.ld_global_b16(second) as u32]
                    } else {
                        [gpu.ld_global_b32(first), gpu.ld_global_b32(second)]
                    }
                };
            });
        }
    });
    if C::BYTES == 1 {
        unroll!([2] half in 0..2 {
            // SAFETY: converged.
            unscale[half] = unsafe { to_f16::<G, _, 2>(gpu, &mut halves[half], params.query_dtype) };
        });
    }
    (halves, unscale)
}
