//! Rows of a prefill that are computed again: their output is not finite, their scores are too large for a tile, or of a
//! softcap so large that tiles have no registers for it.

use crate::attention::careful::{careful_row, load_pair, load_query_pair};
use crate::attention::out::sink_log2;
use crate::attention::query::query_bytes;
use crate::attention::score_mods::score_of_key;
use crate::dtype::CacheFormat;
use crate::gpu::Gpu;
use crate::gpu::unroll::unroll;
use crate::params::PrefillParams;
use crate::prefill::KvAddresses;
use crate::prefill::out::out_scale;
use crate::prefill::row::{Row, store_pair};
use crate::prefill::tile_work::TileWork;

/// Of the rows that a warp has in `row_tiles` tiles, those that `broken` has a bit for in the lanes that hold them.
///
/// # Safety
/// Converged; the thread block found `tile_work`, and the warp stored the rows.
#[inline(always)]
pub(crate) unsafe fn mend_rows<
    G: Gpu,
    C: CacheFormat,
    const K_STEPS: usize,
    const V_STEPS: usize,
>(
    gpu: G,
    params: &PrefillParams,
    tile_work: &TileWork,
    row_tiles: usize,
    broken: u32,
) {
    let (qk_scale, v_scale) = tile_work.scales::<G, C>(gpu);
    let parked = tile_work.parked(gpu, params);
    let view = parked.view(gpu, params, tile_work.shape);
    let sources = KvAddresses::new(params, parked.work.seq, parked.work.kv_head);
    let part = (parked.num_splits > 1).then(|| gpu.cta_idx_y());
    let loaded = parked.keys(gpu, params, tile_work.shape);
    // Not unrolled: it is seldom taken.
    let num_rows = gpu.black_box(row_tiles as u32 * 16);
    for in_warp in 0..num_rows {
        let is_own = gpu.lane() / 4 == in_warp % 8 && broken >> (in_warp / 8) & 1 != 0;
        let index = view.rows.first + in_warp;
        let position = view.visible.position(view.rows.token(index));
        let tokens = (
            view.visible.first(position).max(loaded.0),
            view.visible.end(position).min(loaded.1),
        );
        // SAFETY: converged.
        if !unsafe { gpu.any(is_own) } {
            continue;
        }
        let row = Row {
            token: parked.work.query_start + view.rows.token(index),
            head: view.first_head + view.rows.head(index),
            part,
        };
        let query_bytes = query_bytes::<C>(params.query_dtype);
        let query = params.query
            + row.token as u64 * params.stride_query_token as u64
            + row.head as u64 * params.stride_query_head as u64;
        // SAFETY: converged. The row exists, and the block table names the keys that it sees.
        unsafe {
            let (mut sink, mut scale) = (f32::NEG_INFINITY, v_scale);
            if part.is_none() {
                sink = sink_log2(gpu, &params.score, row.head);
                scale *= out_scale(gpu, params);
            }
            let mended = careful_row::<G, _, K_STEPS, V_STEPS>(
                gpu,
                tokens,
                |dim| {
                    let at = query + query_bytes * dim as u64;
                    load_query_pair::<G, C>(gpu, at, params.query_dtype)
                },
                |token| sources.token(gpu, params, token),
                |place, dim| load_pair::<G, C>(gpu, place.key + (C::BYTES * dim) as u64),
                |place, dim| {
                    let scale = place.value_scale::<G, C>(gpu);
                    load_pair::<G, C>(gpu, place.value + (C::BYTES * dim) as u64)
                        .map(|value| value * scale)
                },
                |token, place, product| {
                    let scale = place.key_scale::<G, C>(gpu);
                    let score = product * scale * (params.score.qk_scale_log2 * qk_scale);
                    score_of_key(
                        gpu,
                        &params.score,
                        view.visible,
                        row.head,
                        (position, token),
                        score,
                    )
                },
                sink,
            );
            if gpu.lane() == 0 {
                row.store_lse(gpu, params, mended.lse);
            }
            let at = row.address::<V_STEPS>(params, 2 * gpu.lane());
            unroll!([8] i in 0..(V_STEPS.div_ceil(4)) {
                if i as u32 * 64 + 2 * gpu.lane() < V_STEPS as u32 * 16 {
                    let pair = mended.values[i].map(|value| value * scale);
                    store_pair::<G, C>(gpu, params, (at, i as u64 * 64), pair, part.is_some());
                }
            });
        }
    }
}
