//! Attention of any number of query tokens per sequence over a paged cache with heads of 256, by the products of warp
//! groups: what `prefill_gqa` computes, for compute capability 9.0.
//!
//! Queries and output are read and written 16 bytes at a time.
//!
//! Grid: as of `prefill_gqa`. A thread block owns `PrefillTile::rows` rows of one sequence and KV head, 64 for each group
//! of four warps that multiplies, and of their keys the ones in one split. One more group loads.
//!
//! ```text
//! find the sequence and the first row; done if the sequence has fewer rows, or they fewer splits
//! the group that loads: see `producer`
//! each group with rows, for each turn:
//!     wait until it is there
//!     scores  = queries · keysᵀ, begun, and after them
//!     acc    += probs · values of the tile before
//!     tell that the keys' stage is empty, when the scores are there
//!     softcap, ALiBi, masks, softmax as in `prefill_gqa`, under the values
//!     tell that the values' stage is empty, when the values are there
//!     acc rescaled, seldom
//! rows of one split are finished: out = acc / (sum + sink), lse; else partial_out, partial_lse
//! ```

use core::marker::PhantomData;

use crate::dtype::CacheFormat;
use crate::entry::Variant;
use crate::gpu::{Gpu, WARP};
use crate::kernel::Kernel;
use crate::params::PrefillParams;
use crate::prefill::epilogue::store_rows;
use crate::prefill::score_mods::PrefillMods;
use crate::prefill::tile_work::TileWork;
use crate::prefill::wide::producer::Producer;
use crate::prefill::wide::{GROUPS, STEPS};
use crate::prefill::{Group, GroupQueries, MmaKind, OnlineSoftmax, PrefillTile, WARPS};

/// Registers of a thread that loads, and of one that multiplies.
const LOAD_REGISTERS: u32 = 40;
const REGISTERS: u32 = 232;
/// Those of each when the thread block begins: a multiple of 8. Groups that take more than the other leaves wait for ever.
const REGISTERS_AT_START: u32 = 65_536 / ((1 + GROUPS) * WARPS * WARP) / 8 * 8;
const _: () = assert!(LOAD_REGISTERS + GROUPS * REGISTERS <= (1 + GROUPS) * REGISTERS_AT_START);

/// The kernel.
///
/// # Safety
/// Launched on the grid above with [`Kernel::THREADS`] threads and `PrefillTile::shared_bytes` shared memory; `params`
/// names tensors of the shapes it documents, valid for the launch; the block table names blocks of the caches for the
/// tokens that each sequence's queries see.
#[inline(always)]
pub unsafe fn prefill_gqa_wide<G: Gpu, C: CacheFormat>(gpu: G, params: &PrefillParams) {
    let shape = const { PrefillTile::of_kernel::<C, STEPS, STEPS>(MmaKind::WarpGroup) };
    // SAFETY: the launch is on this kernel's grid, with its shared memory: the host's `launch`.
    let Some(tile_work) = (unsafe { TileWork::find::<G, C>(gpu, params, shape) }) else {
        return;
    };
    let TileWork {
        work,
        begin,
        first_token,
        end,
        ..
    } = tile_work;
    // Groups without rows have nothing to do.
    let num_groups = (work.num_rows - work.first_row)
        .div_ceil(WARPS * 16)
        .min(GROUPS);
    if gpu.warp() < shape.first_row_warp() {
        // SAFETY: the group comes here together; the block table names every token below `seq_len`, which `end` does
        // not exceed.
        unsafe {
            gpu.leave_registers::<LOAD_REGISTERS>();
            if first_token < end {
                let head = (work.seq, work.kv_head);
                Producer::<C>::run(gpu, params, head, first_token, (begin, end), num_groups);
            }
        }
        return;
    }
    let group = gpu.warp() / WARPS - 1;
    // SAFETY: the group comes here together, and those that load leave as many.
    unsafe { gpu.take_registers::<REGISTERS>() };
    if group >= num_groups {
        return;
    }
    let mut partial = OnlineSoftmax::<STEPS, 1>::EMPTY;
    if first_token < end {
        let (qk_scale, _) = tile_work.scales::<G, C>(gpu);
        let rows = work.warp_rows(gpu, params, shape);
        // SAFETY: converged; rows of this sequence; the memory is this warp's.
        let query = unsafe {
            GroupQueries::load::<G, C, STEPS, false>(
                gpu,
                params,
                rows,
                (work.query_start, work.first_head(params)),
                group,
                params.score.qk_scale_log2 * qk_scale,
            )
        };
        let mods = PrefillMods::new(&params.score, rows, shape.warp_rows(), tile_work.visible);
        let groups = Group {
            group,
            groups: num_groups,
        };
        let view = || tile_work.view(gpu, params);
        // SAFETY: the group comes here, with the tokens of the group that loads.
        unsafe {
            partial.consume_wide::<G, C>(gpu, query, (first_token, end), groups, &mods, view);
        }
    }
    // SAFETY: converged; this thread block's work.
    unsafe { store_rows::<G, C, STEPS, STEPS, 1>(gpu, params, &mut partial, &tile_work) };
}

/// [`prefill_gqa_wide`] for a cache format.
#[derive(Debug)]
pub struct PrefillGqaWideSm90a<C>(PhantomData<C>);

impl<C: CacheFormat> Kernel for PrefillGqaWideSm90a<C> {
    type Params = PrefillParams;
    const VARIANT: Variant = Variant::PrefillGqa {
        cache: C::CACHE,
        head_size: STEPS as u32 * 16,
        head_size_v: STEPS as u32 * 16,
        products: MmaKind::WarpGroup,
    };
    const THREADS: u32 = PrefillTile::of_kernel::<C, STEPS, STEPS>(MmaKind::WarpGroup).threads();

    #[inline(always)]
    unsafe fn run<G: Gpu>(gpu: G, params: &PrefillParams) {
        // SAFETY: whoever launches keeps the kernel's conditions.
        unsafe { prefill_gqa_wide::<G, C>(gpu, params) }
    }
}
