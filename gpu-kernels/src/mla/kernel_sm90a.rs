//! Stage 1 of split-KV decode attention over a latent (MLA) cache, by the products of warp groups: what
//! `decode_mla` computes, for compute capability 9.0 and many rows.
//!
//! Grid: as of `decode_mla`. A thread block owns 64 rows and the tokens of one split, or of one item of a schedule. Of
//! its three groups of four warps one loads; each of the others computes the scores of every second tile of 64 tokens,
//! and half of the output's columns.
//!
//! ```text
//! each warp that loads, for every second tile:
//!     wait until its half of the stage is empty; copy it; tell the group that computes the tile's scores
//! the groups, for each pair of tiles: see `group_softmax`
//! a sequence that was seen whole is finished: out, lse; else partial_out, partial_lse
//! ```

use core::marker::PhantomData;

use crate::attention::careful::{careful_row, load_pair, load_query_pair};
use crate::attention::item::Item;
use crate::attention::paged_kv::CacheHead;
use crate::attention::query::query_bytes;
use crate::attention::sequence::seq_len;
use crate::dtype::CacheFormat;
use crate::entry::Variant;
use crate::gpu::{Gpu, WARP, div};
use crate::kernel::{Dims, Kernel};
use crate::mla::MlaTile;
use crate::mla::cta::Cta;
use crate::mla::group_loader::Loader;
use crate::mla::group_loader_fp8::load_bytes;
use crate::mla::group_query::{load_queries, row_scale};
use crate::mla::group_softmax::{GroupSoftmax, View};
use crate::mla::group_tile::{GROUP_WARPS, GROUPS, group_cut};
use crate::mla::kernel::scales;
use crate::params::DecodeMlaParams;

/// Registers of a thread that loads, and of one that multiplies.
pub(super) const LOAD_REGISTERS: u32 = 72;
pub(super) const REGISTERS: u32 = 216;
/// Those of each when the thread block begins: a multiple of 8. Groups that take more than the other leaves wait for ever.
const REGISTERS_AT_START: u32 = 65_536 / ((1 + GROUPS) * GROUP_WARPS * WARP) / 8 * 8;
const _: () = assert!(LOAD_REGISTERS + GROUPS * REGISTERS <= (1 + GROUPS) * REGISTERS_AT_START);

/// The kernel. `K_STEPS = head_size / 16`, `V_STEPS = head_size_v / 16`.
///
/// # Safety
/// Launched on the grid above with [`MlaTile::threads`] threads and [`MlaTile::shared_bytes`] shared memory; `params`
/// names tensors of the shapes it documents, valid for the launch; the block table names blocks of the cache for the
/// tokens of each sequence.
#[inline(always)]
pub unsafe fn decode_mla_group<
    G: Gpu,
    C: CacheFormat,
    const K_STEPS: usize,
    const V_STEPS: usize,
>(
    gpu: G,
    params: &DecodeMlaParams,
) {
    // SAFETY: `check` is 0 or a finished check's record: the host's `launch`.
    if unsafe { crate::attention::check::found_fault(gpu, params.check) } {
        return;
    }
    let cut = const { group_cut(K_STEPS, V_STEPS) };
    // SAFETY: y is a split, or one of the items: the plan.
    let item = unsafe {
        Item::of(
            gpu,
            params.items,
            (gpu.cta_idx_z(), gpu.cta_idx_y()),
            (params.split_len, params.num_kv_splits),
        )
    };
    if item.seq >= params.num_seqs {
        return;
    }
    let cta = Cta::new(gpu, cut, params, (item.seq, item.part));
    // SAFETY: one length per sequence of the grid.
    let seq_len = unsafe {
        seq_len(
            gpu,
            params.seq_lens,
            params.stride_seq_lens,
            cta.seq,
            params.max_seq_len,
        )
    };
    let tokens = item.tokens(0, seq_len);
    if tokens.0 >= tokens.1 {
        if item.is_first() {
            // SAFETY: rows of this thread block.
            unsafe { cta.store_empty(gpu, cut, params) };
        }
        return;
    }
    if gpu.warp() < GROUP_WARPS {
        // SAFETY: the group comes here together; the block table and the cache have the tokens: the kernel's contract.
        unsafe {
            gpu.leave_registers::<LOAD_REGISTERS>();
            if C::BYTES == 2 {
                Loader::run(gpu, cut, params, cta.seq, tokens);
            } else {
                load_bytes::<G, C>(gpu, cut, params, cta.seq, tokens);
            }
        }
        return;
    }
    // SAFETY: each group comes here together, and those that load leave as many registers; rows of this thread block.
    unsafe {
        gpu.take_registers::<REGISTERS>();
        let (q_scale, k_scale) = scales::<G, C>(gpu, params);
        let qk_scale_log2 = params.qk_scale_log2 * q_scale * k_scale;
        load_queries::<G, C, K_STEPS>(gpu, cut, params, cta, qk_scale_log2);
        if gpu.warp() < 2 * GROUP_WARPS {
            attend::<G, C, K_STEPS, V_STEPS, 0>(gpu, cut, params, cta, seq_len, tokens);
        } else {
            attend::<G, C, K_STEPS, V_STEPS, 1>(gpu, cut, params, cta, seq_len, tokens);
        }
    }
}

/// What group `GROUP` of those that multiply does once the queries are there.
///
/// # Safety
/// The group comes here together; the tokens are those of the thread block, of which there is one at least.
#[inline(always)]
unsafe fn attend<
    G: Gpu,
    C: CacheFormat,
    const K_STEPS: usize,
    const V_STEPS: usize,
    const GROUP: u32,
>(
    gpu: G,
    cut: MlaTile,
    params: &DecodeMlaParams,
    cta: Cta,
    seq_len: u32,
    (start, end): (u32, u32),
) {
    let owned = gpu.shared_base() + cut.group_owned() + GROUP * 16;
    if gpu.thread_idx().is_multiple_of(GROUP_WARPS * WARP) {
        // SAFETY: one thread of the group; it is read behind barriers.
        unsafe { gpu.st_shared_b128(owned, [cta.seq, cta.part, start, end]) };
    }
    // What a row sees ends with its own token: `query_len - 1` before the end for the first one.
    let all_see = (seq_len + 1).saturating_sub(params.query_len).min(end);
    // The thread block's work, found out again: the loop has no register to keep it in.
    let work = || {
        // SAFETY: written before the barriers of the first tile; one length per sequence of the grid.
        unsafe {
            let [seq, part, start, end] = gpu.ld_shared_b128(owned);
            let (stride, max) = (params.stride_seq_lens, params.max_seq_len);
            let seq_len = self::seq_len(gpu, params.seq_lens, stride, seq, max);
            (
                Cta::new(gpu, cut, params, (seq, part)),
                seq_len,
                (start, end),
            )
        }
    };
    let mut softmax = GroupSoftmax::<GROUP>::EMPTY;
    // SAFETY: the groups come here with the tokens of the group that loads.
    unsafe {
        softmax.consume::<G, C, C::Math>(
            gpu,
            cut,
            (start, end),
            &View {
                all_see,
                len_of: |row| {
                    let (cta, seq_len, tokens) = work();
                    cta.seen(params, row, seq_len, tokens).1
                },
                scale_of: |row| {
                    if C::BYTES == 2 {
                        params.qk_scale_log2
                    } else {
                        row_scale(gpu, cut, row)
                    }
                },
                there: |_| u64::MAX,
            },
        );
    }
    gpu.let_next_kernel_start();
    let (cta, seq_len, (start, end)) = work();
    let is_whole = start == 0 && end == seq_len;
    // SAFETY: both groups come here, after the last tile; each row's lse is stored once.
    unsafe {
        let (_, k_scale) = scales::<G, C>(gpu, params);
        softmax.finish::<G, C>(gpu, cut, k_scale, |row, lse| {
            cta.store_lse(gpu, params, row, lse, is_whole);
        });
        cta.store_out::<G, C, V_STEPS, GROUP_WARPS>(
            gpu,
            cut,
            params,
            gpu.shared_base(),
            is_whole,
            |_| 1.0,
            |row| {
                let (cta, seq_len, tokens) = work();
                let cache = CacheHead::new(
                    params.cache,
                    0,
                    params.stride_cache_block,
                    gpu.black_box(params.stride_cache_slot as u32) as i64,
                    0,
                );
                let (q_scale, k_scale) = scales::<G, C>(gpu, params);
                let query = cta.query_row(params, row);
                let query_bytes = query_bytes::<C>(params.query_dtype);
                careful_row::<G, _, K_STEPS, V_STEPS>(
                    gpu,
                    cta.seen(params, row, seq_len, tokens),
                    |dim| {
                        let at = query + query_bytes * dim as u64;
                        load_query_pair::<G, C>(gpu, at, params.query_dtype)
                    },
                    |token| {
                        let block_idx = div(token, params.block_size);
                        let table = params.block_table
                            + cta.seq as u64 * params.stride_block_table as u64
                            + 4 * block_idx as u64;
                        let slot = token - block_idx * params.block_size;
                        cache.slot(gpu.ld_global_b32(table), slot)
                    },
                    |row, dim| load_pair::<G, C>(gpu, row + (C::BYTES * dim) as u64),
                    |row, dim| {
                        let values = load_pair::<G, C>(gpu, row + (C::BYTES * dim) as u64);
                        values.map(|value| value * k_scale)
                    },
                    |_, _, product| product * (params.qk_scale_log2 * q_scale * k_scale),
                    f32::NEG_INFINITY,
                )
            },
        );
    }
}

/// [`decode_mla_group`] for a cache format and row sizes.
#[derive(Debug)]
pub struct DecodeMlaSm90a<C, Dims>(PhantomData<(C, Dims)>);

impl<C: CacheFormat, const K_STEPS: usize, const V_STEPS: usize> Kernel
    for DecodeMlaSm90a<C, Dims<K_STEPS, V_STEPS>>
{
    type Params = DecodeMlaParams;
    const VARIANT: Variant = Variant::DecodeMla {
        cache: C::CACHE,
        head_size: K_STEPS as u32 * 16,
        cut: group_cut(K_STEPS, V_STEPS),
    };
    const THREADS: u32 = group_cut(K_STEPS, V_STEPS).threads();

    #[inline(always)]
    unsafe fn run<G: Gpu>(gpu: G, params: &DecodeMlaParams) {
        // SAFETY: the contract of `run` is that of `decode_mla_group`.
        unsafe { decode_mla_group::<G, C, K_STEPS, V_STEPS>(gpu, params) }
    }
}
