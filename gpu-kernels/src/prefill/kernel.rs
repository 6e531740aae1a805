//! Attention of any number of query tokens per sequence over a paged cache: prefills, chunks, decodes.
//!
//! Grid: x = tile and KV head (KV heads fastest, because those of a token lie side by side in an NHD cache), y
//! = part of the tile's keys. A thread block owns `PrefillTile::rows` rows of one sequence and KV head, as
//! `work` says, and of their keys the ones in one split.
//!
//! ```text
//! find the sequence and the first row; done if the sequence has fewer rows, or they fewer splits
//! for each KV tile of the split from the first to the last that a row sees, the next one in flight:
//!     scores  = queries · keysᵀ               rows x tokens, tensor cores
//!     softcap, ALiBi; masked only in tiles that some row sees a part of
//!     max raised and acc rescaled, seldom      online softmax, base 2
//!     acc    += probs · values                 rows x head_size_v, tensor cores
//!     values of the next tile widened to f16, if they are bytes
//! rows of one split are finished: out = acc / (sum + sink), lse; else partial_out, partial_lse
//! ```

use core::marker::PhantomData;

use crate::dtype::CacheFormat;
use crate::entry::Variant;
use crate::gpu::Gpu;
use crate::kernel::{Dims, Kernel};
use crate::params::PrefillParams;
use crate::prefill::epilogue::store_rows;
use crate::prefill::score_mods::PrefillMods;
use crate::prefill::tile_work::TileWork;
use crate::prefill::{MmaKind, OnlineSoftmax, PrefillTile, RowQueries, SharedStream};

/// The kernel. `K_STEPS = head_size / 16`, `V_STEPS = head_size_v / 16`; `ROW_TILES` and `16 * PAIRS` are
/// those of [`PrefillTile`].
///
/// # Safety
/// Launched on the grid above with [`Kernel::THREADS`] threads and `PrefillTile::shared_bytes` shared memory; `params`
/// names tensors of the shapes it documents, valid for the launch; the block table names blocks of the caches for the
/// tokens that each sequence's queries see.
#[inline(always)]
pub unsafe fn prefill_gqa<
    G: Gpu,
    C: CacheFormat,
    const K_STEPS: usize,
    const V_STEPS: usize,
    const ROW_TILES: usize,
    const PAIRS: usize,
>(
    gpu: G,
    params: &PrefillParams,
) {
    let shape = const { PrefillTile::of_kernel::<C, K_STEPS, V_STEPS>(MmaKind::Warp) };
    // SAFETY: the launch is on this kernel's grid, with its shared memory: the host's `launch`.
    let Some(tile_work) = (unsafe { TileWork::find::<G, C>(gpu, params, shape) }) else {
        return;
    };
    let TileWork {
        work,
        first_token,
        end,
        ..
    } = tile_work;
    let mut partial = OnlineSoftmax::<V_STEPS, ROW_TILES>::EMPTY;
    if first_token < end {
        // SAFETY: all come here; the block table names every token below `seq_len`, which `end` does not exceed.
        let mut stream = unsafe {
            SharedStream::<C, K_STEPS, V_STEPS>::start(
                gpu,
                params,
                (work.seq, work.kv_head),
                first_token,
                (tile_work.begin, end),
            )
        };
        let (qk_scale, _) = tile_work.scales::<G, C>(gpu);
        let rows = work.warp_rows(gpu, params, shape);
        // SAFETY: converged; rows of this sequence; the memory is this warp's.
        let query = unsafe {
            RowQueries::<K_STEPS, ROW_TILES>::load::<G, C>(
                gpu,
                params,
                rows,
                (work.query_start, work.first_head(params)),
                (gpu.shared_base(), gpu.shared_base() + shape.scales()),
                params.score.qk_scale_log2 * qk_scale,
            )
        };
        let mods = PrefillMods::new(&params.score, rows, shape.warp_rows(), tile_work.visible);
        // SAFETY: the first tile's bytes.
        unsafe { stream.widen_values(gpu, stream.take_values(gpu)) };
        // SAFETY: every thread waits for every tile, done with the tile before.
        while let Some(tile) = unsafe { stream.next(gpu) } {
            // SAFETY: converged; the tile was just handed out.
            unsafe {
                if rows.first < rows.end {
                    let view = || tile_work.view(gpu, params);
                    partial.attend::<G, C, K_STEPS, PAIRS>(gpu, &query, tile, &mods, view, &stream);
                } else {
                    // A warp without rows only helps to load.
                    stream.widen_values(gpu, stream.take_values(gpu));
                }
            }
        }
    }
    // SAFETY: converged; this thread block's work.
    unsafe {
        store_rows::<G, C, K_STEPS, V_STEPS, ROW_TILES>(gpu, params, &mut partial, &tile_work)
    };
}

/// [`prefill_gqa`] for a cache format and head sizes.
#[derive(Debug)]
pub struct PrefillGqa<C, Dims, const ROW_TILES: usize, const PAIRS: usize>(PhantomData<(C, Dims)>);

impl<C, const K_STEPS: usize, const V_STEPS: usize, const ROW_TILES: usize, const PAIRS: usize>
    Kernel for PrefillGqa<C, Dims<K_STEPS, V_STEPS>, ROW_TILES, PAIRS>
where
    C: CacheFormat,
{
    type Params = PrefillParams;
    const VARIANT: Variant = Variant::PrefillGqa {
        cache: C::CACHE,
        head_size: K_STEPS as u32 * 16,
        head_size_v: V_STEPS as u32 * 16,
        products: MmaKind::Warp,
    };
    const THREADS: u32 = PrefillTile::of_kernel::<C, K_STEPS, V_STEPS>(MmaKind::Warp).threads();
    const MIN_CTAS: u32 = 2;

    #[inline(always)]
    unsafe fn run<G: Gpu>(gpu: G, params: &PrefillParams) {
        // SAFETY: whoever launches keeps the kernel's conditions.
        unsafe { prefill_gqa::<G, C, K_STEPS, V_STEPS, ROW_TILES, PAIRS>(gpu, params) }
    }
}
