//! Attention of any number of query tokens per sequence over a paged cache, by the products of warp groups: what
//! `prefill_gqa` computes, for compute capability 9.0.
//!
//! Queries and output are read and written 16 bytes at a time.
//!
//! Grid: as of `prefill_gqa`. A thread block owns `PrefillTile::rows` rows of one sequence and KV head, 64 for each group
//! of four warps that multiplies, and of their keys the ones in one split. One more group loads.
//!
//! ```text
//! find the sequence and the first row; done if the sequence has fewer rows, or they fewer splits
//! the group that loads, for each KV tile of the split:
//!     wait until the tile's stage is empty; copy keys and values
//!     widen them to f16, if they are bytes, but keys only if queries are not
//!     tell every group that the stage is full
//! each group with rows, for each KV tile:
//!     wait until its stage is full
//!     scores  = queries · keysᵀ, begun, and after them
//!     acc    += probs · values of the tile before
//!     softcap, ALiBi, masks, softmax as in `prefill_gqa` when the scores are there, under the values
//!     tell that the stage of the tile before is empty, when the values are there
//!     acc rescaled, seldom
//! rows of one split are finished: out = acc / (sum + sink), lse; else partial_out, partial_lse
//! ```

use core::marker::PhantomData;

use crate::dtype::CacheFormat;
use crate::entry::Variant;
use crate::gpu::{Gpu, WARP};
use crate::kernel::{Dims, Kernel};
use crate::params::PrefillParams;
use crate::prefill::epilogue::store_rows;
use crate::prefill::score_mods::PrefillMods;
use crate::prefill::tile_work::TileWork;
use crate::prefill::{
    GROUPS, Group, GroupQueries, MmaKind, OnlineSoftmax, PrefillTile, Producer, WARPS,
};

/// Registers of a thread that loads, and of one that multiplies: together what a multiprocessor has.
const LOAD_REGISTERS: u32 = 56;
const REGISTERS: u32 = 152;
const _: () = assert!((LOAD_REGISTERS + GROUPS * REGISTERS) * WARPS * WARP <= 65_536);

/// The kernel. `K_STEPS = head_size / 16`, `V_STEPS = head_size_v / 16`, 4 or 8. With `BYTE_KEYS`, query and cache are
/// both e4m3.
///
/// # Safety
/// Launched on the grid above with [`Kernel::THREADS`] threads and `PrefillTile::shared_bytes` shared memory; `params`
/// names tensors of the shapes it documents, valid for the launch; the block table names blocks of the caches for the
/// tokens that each sequence's queries see.
#[inline(always)]
pub unsafe fn prefill_gqa_group<
    G: Gpu,
    C: CacheFormat,
    const K_STEPS: usize,
    const V_STEPS: usize,
    const BYTE_KEYS: bool,
>(
    gpu: G,
    params: &PrefillParams,
) {
    let shape =
        const { PrefillTile::of_kernel::<C, K_STEPS, V_STEPS>(MmaKind::of_groups(BYTE_KEYS)) };
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
                let tokens = (tile_work.begin, end);
                Producer::<C, K_STEPS, V_STEPS, BYTE_KEYS>::run(
                    gpu,
                    params,
                    head,
                    first_token,
                    tokens,
                    num_groups,
                );
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
    let mut partial = OnlineSoftmax::<V_STEPS, 1>::EMPTY;
    if first_token < end {
        let (qk_scale, _) = tile_work.scales::<G, C>(gpu);
        let rows = work.warp_rows(gpu, params, shape);
        // SAFETY: converged; rows of this sequence; the memory is this warp's.
        let query = unsafe {
            GroupQueries::load::<G, C, K_STEPS, BYTE_KEYS>(
                gpu,
                params,
                rows,
                (work.query_start, work.first_head(params)),
                group,
                params.score.qk_scale_log2 * qk_scale,
            )
        };
        let mods = PrefillMods::new(&params.score, rows, shape.warp_rows(), tile_work.visible);
        let view = || tile_work.view(gpu, params);
        // SAFETY: the group comes here, with the tokens of the group that loads.
        unsafe {
            partial.consume::<G, C, K_STEPS, BYTE_KEYS>(
                gpu,
                query,
                (first_token, end),
                Group {
                    group,
                    groups: num_groups,
                },
                &mods,
                view,
            )
        };
    }
    // SAFETY: converged; this thread block's work.
    unsafe { store_rows::<G, C, K_STEPS, V_STEPS, 1>(gpu, params, &mut partial, &tile_work) };
}

/// [`prefill_gqa_group`] for a cache format and head sizes; with `BYTE_KEYS`, for FP8 queries too.
#[derive(Debug)]
pub struct PrefillGqaSm90a<C, Dims, const BYTE_KEYS: bool = false>(PhantomData<(C, Dims)>);

impl<C, const K_STEPS: usize, const V_STEPS: usize, const BYTE_KEYS: bool> Kernel
    for PrefillGqaSm90a<C, Dims<K_STEPS, V_STEPS>, BYTE_KEYS>
where
    C: CacheFormat,
{
    type Params = PrefillParams;
    const VARIANT: Variant = Variant::PrefillGqa {
        cache: C::CACHE,
        head_size: K_STEPS as u32 * 16,
        head_size_v: V_STEPS as u32 * 16,
        products: MmaKind::of_groups(BYTE_KEYS),
    };
    const THREADS: u32 =
        PrefillTile::of_kernel::<C, K_STEPS, V_STEPS>(MmaKind::of_groups(BYTE_KEYS)).threads();

    #[inline(always)]
    unsafe fn run<G: Gpu>(gpu: G, params: &PrefillParams) {
        // SAFETY: whoever launches keeps the kernel's conditions.
        unsafe { prefill_gqa_group::<G, C, K_STEPS, V_STEPS, BYTE_KEYS>(gpu, params) }
    }
}
