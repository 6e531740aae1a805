//! The queries of a warp's rows, as operands of the tensor cores, kept in shared memory.

use super::{WARPS, WarpRows};
use crate::gpu::{Gpu, PANEL_BYTES, PANEL_ROW_BYTES, WARP, in_panels};
use crate::kv::CacheFormat;
use crate::params::PrefillParams;
use crate::tile::QueryDtype;
use crate::tile::query::to_f16;
use crate::unroll::unroll;

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
            // SAFETY: as the caller promises.
            let (halves, unscale) =
                unsafe { read_tile::<G, C, K_STEPS>(gpu, params, rows, tile, (first_token, first_head), dims) };
            scale_log2[tile] = unscale.map(|unscale| qk_scale_log2 * unscale);
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
    pub(super) fn scales_log2<G: Gpu, C: CacheFormat>(
        &self,
        gpu: G,
        scales: u32,
    ) -> [[f32; 2]; ROW_TILES] {
        let mut scales_log2 = [[self.scale_log2; 2]; ROW_TILES];
        if C::BYTES == 1 {
            let at = Self::scales_at(gpu.opaque(gpu.thread_idx()), scales);
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
    pub(super) fn words(thread: u32, shared: u32) -> u32 {
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
    pub(super) fn operand<G: Gpu>(gpu: G, words: u32, tile: usize, step: usize) -> [u32; 4] {
        // SAFETY: this lane's words, which it wrote.
        unsafe { gpu.ld_shared_b128(words + Self::offset(tile, step)) }
    }
}

/// The queries of the 64 rows of a warp group, as panels.
#[derive(Clone, Copy, Debug)]
pub struct GroupQueries {
    /// Where the panels begin.
    pub(super) panels: u32,
    /// What turns products of rows `lane / 4` and `+ 8` of a warp into scores in powers of two.
    pub(super) scale_log2: [f32; 2],
}

impl GroupQueries {
    /// Loads those of a warp's `rows`, as [`RowQueries::load`] does, for group `group` of the thread block.
    ///
    /// # Safety
    /// As there.
    #[inline(always)]
    pub unsafe fn load<G: Gpu, C: CacheFormat, const K_STEPS: usize>(
        gpu: G,
        params: &PrefillParams,
        rows: WarpRows,
        first: (u32, u32),
        group: u32,
        qk_scale_log2: f32,
    ) -> Self {
        let (lane, quad) = (gpu.lane(), gpu.lane() % 4);
        let dims = (2 * quad, 2 * quad + 8);
        // SAFETY: as the caller promises.
        let (halves, unscale) =
            unsafe { read_tile::<G, C, K_STEPS>(gpu, params, rows, 0, first, dims) };
        let panels = gpu.shared_base() + group * const { K_STEPS as u32 / 4 * PANEL_BYTES };
        let words = panels + gpu.warp() % WARPS * 16 * PANEL_ROW_BYTES + 4 * quad;
        unroll!([16] step in 0..K_STEPS {
            unroll!([2] half in 0..2 {
                let row = lane / 4 + half as u32 * 8;
                unroll!([2] i in 0..2 {
                    let at = words + in_panels(row, 2 * step as u32 + i as u32);
                    // SAFETY: this lane's word.
                    unsafe { gpu.st_shared_b32(at, halves[half][step][i]) };
                });
            });
        });
        gpu.fence_warpgroup();
        Self {
            panels,
            scale_log2: unscale.map(|unscale| qk_scale_log2 * unscale),
        }
    }
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
    (first_token, first_head): (u32, u32),
    (first, second): (u32, u32),
) -> ([[[u32; 2]; K_STEPS]; 2], [f32; 2]) {
    let bytes = if C::BYTES == 1 && params.query_dtype == QueryDtype::E4m3 as u32 {
        1
    } else {
        2
    };
    let mut halves = [[[0u32; 2]; K_STEPS]; 2];
    let mut unscale = [1.0f32; 2];
    unroll!([2] half in 0..2 {
        let row = rows.of_lane(gpu.lane(), tile, half);
        if row < rows.end {
            let token = first_token as u64 + rows.token(row) as u64;
            let head = first_head as u64 + rows.head(row) as u64;
            let at = params.query
                + bytes
                    * (token * params.stride_query_token as u64
                        + head * params.stride_query_head as u64);
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
            unscale[half] = unsafe { to_f16(gpu, &mut halves[half], params.query_dtype) };
        });
    }
    (halves, unscale)
}
