//! Stage 1 of split-KV decode attention over a latent (MLA) cache of 16-bit values, by the products of warp groups: what
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
use crate::attention::sequence::seq_len;
use crate::dtype::CacheFormat;
use crate::entry::Variant;
use crate::gpu::{Gpu, Line, WARP, div, in_panels};
use crate::kernel::{Dims, Kernel};
use crate::mla::MlaTile;
use crate::mla::cta::Cta;
use crate::mla::group_loader::Loader;
use crate::mla::group_softmax::GroupSoftmax;
use crate::mla::group_tile::{GROUP_WARPS, GROUPS, ROWS, TOGETHER, group_cut};
use crate::params::DecodeMlaParams;

/// Registers of a thread that loads, and of one that multiplies: together what a multiprocessor has.
const LOAD_REGISTERS: u32 = 72;
const REGISTERS: u32 = 216;
const _: () = assert!((LOAD_REGISTERS + GROUPS * REGISTERS) * GROUP_WARPS * WARP <= 65_536);

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
            Loader::run(gpu, cut, params, cta.seq, tokens);
        }
        return;
    }
    // SAFETY: each group comes here together, and those that load leave as many registers; rows of this thread block.
    unsafe {
        gpu.take_registers::<REGISTERS>();
        load_queries::<G, K_STEPS>(gpu, params, cta);
        if gpu.warp() < 2 * GROUP_WARPS {
            attend::<G, C, K_STEPS, V_STEPS, 0>(gpu, cut, params, cta, seq_len, tokens);
        } else {
            attend::<G, C, K_STEPS, V_STEPS, 1>(gpu, cut, params, cta, seq_len, tokens);
        }
    }
}

/// Copies the thread block's rows of the query into panels; rows past the end become zero.
///
/// # Safety
/// Both groups that multiply come here; the rows exist.
#[inline(always)]
unsafe fn load_queries<G: Gpu, const K_STEPS: usize>(gpu: G, params: &DecodeMlaParams, cta: Cta) {
    let warps = GROUPS * GROUP_WARPS;
    let chunks = K_STEPS as u32 * 2;
    let places = params.query
        | params.stride_query_seq as u64
        | params.stride_query_token as u64
        | params.stride_query_head as u64;
    let mut row = gpu.warp() - GROUP_WARPS;
    while row < ROWS {
        let is_valid = row < cta.num_rows;
        let source = if is_valid {
            cta.query_row(params, row)
        } else {
            params.query
        };
        if places.is_multiple_of(16) {
            let mut chunk = gpu.lane();
            while chunk < chunks {
                let target = gpu.shared_base() + in_panels(row, chunk);
                // SAFETY: 16 bytes of a row that is read only if it exists; this lane's part of the panels.
                unsafe {
                    gpu.cp_async_b128(target, source + 16 * chunk as u64, is_valid, Line::ONCE);
                }
                chunk += WARP;
            }
        } else {
            let mut word = gpu.lane();
            while word < chunks * 4 {
                let target = gpu.shared_base() + in_panels(row, word / 4) + word % 4 * 4;
                // SAFETY: as above; values are aligned two by two: the host's check.
                unsafe { gpu.cp_async_b32(target, source + 4 * word as u64, is_valid) };
                word += WARP;
            }
        }
        row += warps;
    }
    gpu.cp_async_commit();
    gpu.cp_async_wait::<0>();
    gpu.fence_warpgroup();
    let (barrier, threads) = TOGETHER;
    // SAFETY: both groups come here.
    unsafe { gpu.barrier_sync(barrier, threads) };
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
        softmax.consume::<G, C>(
            gpu,
            cut,
            (start, end),
            all_see,
            params.qk_scale_log2,
            |row| {
                let (cta, seq_len, tokens) = work();
                cta.seen(params, row, seq_len, tokens).1
            },
        );
    }
    gpu.let_next_kernel_start();
    let (cta, seq_len, (start, end)) = work();
    let is_whole = start == 0 && end == seq_len;
    // SAFETY: both groups come here, after the last tile; each row's lse is stored once.
    unsafe {
        softmax.finish::<G, C>(gpu, cut, |row, lse| {
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
                let query = cta.query_row(params, row);
                careful_row::<G, _, K_STEPS, V_STEPS>(
                    gpu,
                    cta.seen(params, row, seq_len, tokens),
                    |dim| load_query_pair::<G, C>(gpu, query + 2 * dim as u64, params.query_dtype),
                    |token| {
                        let block_idx = div(token, params.block_size);
                        let table = params.block_table
                            + cta.seq as u64 * params.stride_block_table as u64
                            + 4 * block_idx as u64;
                        let slot = token - block_idx * params.block_size;
                        cache.slot(gpu.ld_global_b32(table), slot)
                    },
                    |row, dim| load_pair::<G, C>(gpu, row + (C::BYTES * dim) as u64),
                    |row, dim| load_pair::<G, C>(gpu, row + (C::BYTES * dim) as u64),
                    |_, _, product| product * params.qk_scale_log2,
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
        const { assert!(C::BYTES == 2, "rows are multiplied as they lie") };
        // SAFETY: the contract of `run` is that of `decode_mla_group`.
        unsafe { decode_mla_group::<G, C, K_STEPS, V_STEPS>(gpu, params) }
    }
}
