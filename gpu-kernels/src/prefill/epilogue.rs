//! What becomes of a row at the end of a prefill: its output and lse, or its part of them.

use crate::attention::careful::{all_finite, look};
use crate::attention::lse::{Lse, finite, is_far};
use crate::attention::out::{recip_of_sum, sink_log2};
use crate::dtype::{CacheFormat, QueryDtype};
use crate::gpu::Gpu;
use crate::gpu::unroll::unroll;
use crate::params::PrefillParams;
use crate::prefill::OnlineSoftmax;
use crate::prefill::mend::mend_rows;
use crate::prefill::out::out_scale;
use crate::prefill::row::{Row, pack, store_pair};
use crate::prefill::tile_work::TileWork;

/// Stores what a warp has of its rows: of one of several parts, or finished.
///
/// # Safety
/// Converged; the thread block found `tile_work`. If warp groups multiply, the output is aligned to 16 bytes.
#[inline(always)]
pub(crate) unsafe fn store_rows<
    G: Gpu,
    C: CacheFormat,
    const K_STEPS: usize,
    const V_STEPS: usize,
    const ROW_TILES: usize,
>(
    gpu: G,
    params: &PrefillParams,
    partial: &mut OnlineSoftmax<V_STEPS, ROW_TILES>,
    tile_work: &TileWork,
) {
    let (_, v_scale) = tile_work.scales::<G, C>(gpu);
    let parked = tile_work.parked(gpu, params);
    let view = parked.view(gpu, params, tile_work.shape);
    let part = (parked.num_splits > 1).then(|| gpu.cta_idx_y());
    let whole_chunks = tile_work.shape.products.is_group()
        && part.is_none()
        && params.out_dtype != QueryDtype::F8E4m3 as u32;
    let is_high = is_high(gpu);
    // Of scores that tiles have no registers for, every row.
    let is_long = !params.score.is_transform_short();
    // A bit for each of a lane's rows that has to be mended.
    let mut broken = 0;
    // All rows are finished before one is stored, so that what they load is waited for together.
    let mut finished = [[Finished::NOTHING; 2]; ROW_TILES];
    // SAFETY: converged.
    let are_far_apart = unsafe {
        partial.reduce(gpu);
        C::TOKEN_SCALES && partial.scales_are_far_apart(gpu)
    };
    unroll!([2] tile in 0..ROW_TILES {
        unroll!([2] half in 0..2 {
            let row = view.rows.of_lane(gpu.lane(), tile, half);
            let exists = row < view.rows.end;
            let mut seen = [0.0; 2];
            unroll!([16] step in 0..V_STEPS {
                let [low, high] = partial.acc[tile][step];
                let sums = [low[2 * half], low[2 * half + 1], high[2 * half], high[2 * half + 1]];
                seen = look(gpu, seen, sums);
            });
            let is_broken = is_long
                || !all_finite(seen)
                || !all_finite([partial.sum[tile][half], 0.0])
                || is_far(finite(partial.max[tile][half]))
                || (are_far_apart && partial.lost_shares(gpu, (tile, half)));
            broken |= ((exists && is_broken) as u32) << (2 * tile + half);
            let row = Row {
                token: parked.work.query_start + view.rows.token(row),
                head: view.first_head + view.rows.head(row),
                part,
            };
            // SAFETY: past the end it is the last row.
            finished[tile][half] = unsafe {
                row.finish::<G, C, V_STEPS, ROW_TILES>(gpu, params, partial, (tile, half), v_scale)
            };
            finished[tile][half].exists = exists;
        });
    });
    unroll!([2] tile in 0..ROW_TILES {
        unroll!([2] half in 0..2 {
            let Finished { row, exists, scale, lse } = finished[tile][half];
            // SAFETY: what a warp has of a row is stored only if it exists.
            unsafe {
                if exists && gpu.lane().is_multiple_of(4) {
                    row.store_lse(gpu, params, lse);
                }
                let values = |step: usize| {
                    let [low, high] = partial.acc[tile][step];
                    let [a, b] = [low[2 * half], low[2 * half + 1]];
                    let [c, d] = [high[2 * half], high[2 * half + 1]];
                    [a * scale, b * scale, c * scale, d * scale]
                };
                if whole_chunks {
                    let at = row.address::<V_STEPS>(params, gpu.lane() % 4 * 8);
                    unroll!([8] steps in 0..(V_STEPS / 2) {
                        let chunk = pack_chunk::<G, C>(gpu, params, is_high, values(2 * steps), values(2 * steps + 1));
                        if exists {
                            gpu.st_global_b128(at + steps as u64 * 64, chunk);
                        }
                    });
                } else if exists {
                    let at = row.address::<V_STEPS>(params, gpu.lane() % 4 * 2);
                    unroll!([16] step in 0..V_STEPS {
                        let [a, b, c, d] = values(step);
                        let offset = step as u64 * 16;
                        store_pair::<G, C>(gpu, params, (at, offset), [a, b], part.is_some());
                        store_pair::<G, C>(gpu, params, (at, offset + 8), [c, d], part.is_some());
                    });
                }
            }
        });
    });
    // SAFETY: converged.
    if unsafe { gpu.any(broken != 0) } {
        // SAFETY: converged; the rows were stored, all lanes' values before any is stored again.
        unsafe {
            gpu.sync_warp();
            mend_rows::<G, C, K_STEPS, V_STEPS>(gpu, params, tile_work, ROW_TILES, broken);
        }
    }
}

/// A row that is ready to be stored.
#[derive(Clone, Copy)]
struct Finished {
    row: Row,
    /// Whether there is such a row: past the end of a tile there is none.
    exists: bool,
    /// What its sums are multiplied by to become its output.
    scale: f32,
    lse: Lse,
}

impl Finished {
    const NOTHING: Self = Self {
        row: Row {
            token: 0,
            head: 0,
            part: None,
        },
        exists: false,
        scale: 0.0,
        lse: Lse::EMPTY,
    };
}

impl Row {
    /// Normalises what a warp has of the row, which is `(tile, half)` of a lane.
    ///
    /// # Safety
    /// The row exists; the sums are complete.
    #[inline(always)]
    unsafe fn finish<G: Gpu, C: CacheFormat, const V_STEPS: usize, const ROW_TILES: usize>(
        self,
        gpu: G,
        params: &PrefillParams,
        partial: &OnlineSoftmax<V_STEPS, ROW_TILES>,
        (tile, half): (usize, usize),
        v_scale: f32,
    ) -> Finished {
        // Sinks and the output's scale are for whoever finishes the row.
        let (mut sink, mut out) = (f32::NEG_INFINITY, 1.0);
        if self.part.is_none() {
            // SAFETY: one for each head, if there are any; a scale, if the output is of bytes.
            (sink, out) = unsafe {
                (
                    sink_log2(gpu, &params.score, self.head),
                    out_scale(gpu, params),
                )
            };
        }
        let unit = OnlineSoftmax::<V_STEPS, ROW_TILES>::unit::<C>();
        let own = Lse {
            max: partial.max[tile][half],
            sum: partial.sum[tile][half] * unit,
        };
        let lse = own.with(gpu, Lse::of_score(sink));
        // A row that saw nothing, and has no sink: 0 and -inf.
        let share = gpu.exp2(own.max - lse.max) * unit;
        let mut scale = share * recip_of_sum(gpu, lse.sum) * v_scale * out;
        if C::TOKEN_SCALES {
            scale *= partial.value_unit;
        }
        Finished {
            row: self,
            exists: true,
            scale,
            lse,
        }
    }
}

/// Masks of ones in the lanes that are the higher of two neighbours, and of two pairs. Words are chosen by them: of
/// conditions the compiler would make branches, in which lanes do not meet.
#[inline(always)]
fn is_high<G: Gpu>(gpu: G) -> (u32, u32) {
    let mask = |lane_mask| gpu.black_box(0u32.wrapping_sub((gpu.lane() & lane_mask != 0) as u32));
    (mask(1), mask(2))
}

/// Of two steps, in which the lanes of a quad have pairs of dims of each eight: lane `q` gets eight `q`, whole. `is_high`
/// is that of the lanes.
///
/// # Safety
/// Converged.
#[inline(always)]
unsafe fn pack_chunk<G: Gpu, C: CacheFormat>(
    gpu: G,
    params: &PrefillParams,
    is_high: (u32, u32),
    [a, b, c, d]: [f32; 4],
    [e, f, g, h]: [f32; 4],
) -> [u32; 4] {
    let first = (
        pack::<G, C>(gpu, params, a, b),
        pack::<G, C>(gpu, params, c, d),
    );
    let second = (
        pack::<G, C>(gpu, params, e, f),
        pack::<G, C>(gpu, params, g, h),
    );
    let choose = |mask: u32, yes: u32, no: u32| no ^ ((no ^ yes) & mask);
    let swap = |(low, high): (u32, u32), lane_mask: u32, is_high: u32| {
        let (own, sent) = (choose(is_high, high, low), choose(is_high, low, high));
        // SAFETY: converged: the contract of `pack_chunk`.
        let got = unsafe { gpu.shfl_xor(sent, lane_mask) };
        (choose(is_high, got, own), choose(is_high, own, got))
    };
    // Neighbours swap one of each two eights, pairs of neighbours one of what is left.
    let (first, second) = (swap(first, 1, is_high.0), swap(second, 1, is_high.0));
    let (low, high) = (
        swap((first.0, second.0), 2, is_high.1),
        swap((first.1, second.1), 2, is_high.1),
    );
    [low.0, high.0, low.1, high.1]
}
