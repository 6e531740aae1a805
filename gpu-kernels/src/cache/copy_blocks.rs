//! Copies whole blocks, from a cache to itself or to another one, of many layers at once.
//!
//! Grid: x = slab of 1,024 units, y = pair of blocks, z = cache. A thread block copies one slab, and a thread
//! has its four loads in flight before the first store:
//!
//! ```text
//! from, to = pairs[pair]; done if one is negative or outside its cache
//! for i in 0..4:  data[i] = source[from, unit i]
//! for i in 0..4:  target[to, unit i] = data[i]
//! ```
//!
//! Either cache may be pinned host memory: the GPU reaches it by its address.
//!
//! `check_pairs` has a thread for each pair, which looks at all the others: that no target is the target, or (if both
//! caches are one) the source of another pair.

use crate::attention::check::{found_fault, report};
use crate::cache::reshape_and_cache_flash::{load, store};
use crate::entry::Variant;
use crate::gpu::Gpu;
use crate::gpu::unroll::unroll;
use crate::kernel::Kernel;
use crate::params::{CheckFault, CopyBlocksParams};

/// Threads per thread block.
pub const THREADS: u32 = 256;
/// Units of a thread.
const UNITS: usize = 4;
/// Units of a thread block.
pub const SLAB: u32 = UNITS as u32 * THREADS;

/// Thread blocks for `num_pairs` pairs of blocks of `units` units in each of `num_caches` caches; `None` if
/// they are too many for a grid.
pub fn grid(units: u32, num_pairs: u32, num_caches: u32) -> Option<[u32; 3]> {
    (num_pairs <= 0xffff && num_caches <= 0xffff && units <= i32::MAX as u32)
        .then(|| [units.div_ceil(SLAB), num_pairs, num_caches].map(|n| n.max(1)))
}

/// The kernel.
///
/// # Safety
/// Launched on [`grid`] with [`THREADS`] threads, for a pair and a cache at least; `params` names tensors of the shapes
/// and the alignment it documents; no target is another pair's target, or its source in the same cache.
#[inline(always)]
pub unsafe fn copy_blocks<G: Gpu>(gpu: G, params: &CopyBlocksParams) {
    gpu.wait_for_previous_kernels();
    gpu.let_next_kernel_start();
    // SAFETY: the grid has a pair along y and a cache along z, one of each at least: this function's contract.
    let Some([source, target]) = (unsafe { blocks(gpu, params) }) else {
        return;
    };
    // No `match`: it would become a table of jumps.
    // SAFETY: blocks that `blocks` found inside the caches, aligned to `unit`, the target no other pair's: this
    // function's contract.
    unsafe {
        if params.unit >= 16 {
            copy::<G, 16>(gpu, params, source, target);
        } else if params.unit >= 8 {
            copy::<G, 8>(gpu, params, source, target);
        } else if params.unit >= 4 {
            copy::<G, 4>(gpu, params, source, target);
        } else if params.unit >= 2 {
            copy::<G, 2>(gpu, params, source, target);
        } else {
            copy::<G, 1>(gpu, params, source, target);
        }
    }
}

/// Where this thread block's blocks are.
///
/// # Safety
/// As [`copy_blocks`].
#[inline(always)]
unsafe fn blocks<G: Gpu>(gpu: G, params: &CopyBlocksParams) -> Option<[u64; 2]> {
    // SAFETY: a pair and a cache of the grid: this function's contract; `check` is 0 or a finished check's record: the
    // host's `launch`.
    let (pair, [source, target], is_refused) = unsafe {
        (
            read_pair(gpu, params, gpu.cta_idx_y()),
            caches(gpu, params, gpu.cta_idx_z()),
            found_fault(gpu, params.check),
        )
    };
    if is_refused {
        return None;
    }
    let [from, to] = pair?;
    if from >= params.num_blocks_source as u64 || to >= params.num_blocks_target as u64 {
        return None;
    }
    Some([
        source + from * params.stride_source as u64,
        target + to * params.stride_target as u64,
    ])
}

/// Source and target of a pair, unless one is negative.
///
/// # Safety
/// `pair` is below `num_pairs`.
#[inline(always)]
unsafe fn read_pair<G: Gpu>(gpu: G, params: &CopyBlocksParams, pair: u32) -> Option<[u64; 2]> {
    let at = params.pairs + pair as u64 * params.stride_pairs as u64;
    // SAFETY: `pair` is one of the pairs: this function's contract; each has two ids: the host's
    // `CopyBlocksRequest::check`.
    let (from, to) = unsafe { (gpu.ld_global_b64(at), gpu.ld_global_b64(at + 8)) };
    if (from as i64) < 0 || (to as i64) < 0 {
        return None;
    }
    Some([from, to])
}

/// The addresses of source and target.
///
/// # Safety
/// `cache` is below `num_caches`.
#[inline(always)]
unsafe fn caches<G: Gpu>(gpu: G, params: &CopyBlocksParams, cache: u32) -> [u64; 2] {
    let at = 8 * cache as u64;
    // SAFETY: a table has an address for each cache: the host's `check_tables`.
    unsafe {
        [
            if params.source_table == 0 {
                params.source
            } else {
                gpu.ld_global_b64(params.source_table + at)
            },
            if params.target_table == 0 {
                params.target
            } else {
                gpu.ld_global_b64(params.target_table + at)
            },
        ]
    }
}

/// Checks the blocks of a pair, and its target against all other pairs.
///
/// # Safety
/// Launched with a thread for each pair, [`THREADS`] a thread block; `params` names tensors of the shapes it documents,
/// and a record that was all 0 before the launch.
#[inline(always)]
pub unsafe fn check_pairs<G: Gpu>(gpu: G, params: &CopyBlocksParams) {
    let pair = gpu.cta_idx_x() * THREADS + gpu.thread_idx();
    if pair >= params.num_pairs {
        return;
    }
    // SAFETY: `pair` is below `num_pairs`: the lines before.
    let Some([from, to]) = (unsafe { read_pair(gpu, params, pair) }) else {
        return;
    };
    let (sources, targets) = (
        params.num_blocks_source as u64,
        params.num_blocks_target as u64,
    );
    if from >= sources || to >= targets {
        let is_target = from < sources;
        let fault = CheckFault {
            kind: CheckFault::PAIR,
            row: pair,
            position: is_target as u32,
            value: if is_target { to } else { from } as i64,
            limit: if is_target { targets } else { sources } as i64,
            ..CheckFault::NONE
        };
        // SAFETY: a record, which only `report` touches: this function's contract.
        unsafe { report(gpu, params.check, fault) };
        return;
    }
    let mut is_one_cache = false;
    let mut cache = 0;
    while cache < params.num_caches {
        // SAFETY: `cache` is below `num_caches`: the loop's condition.
        let [source, target] = unsafe { caches(gpu, params, cache) };
        is_one_cache |= source == target;
        cache += 1;
    }
    let mut other = 0;
    while other < params.num_pairs {
        // SAFETY: `other` is below `num_pairs`: the loop's condition.
        if let Some([source, target]) = unsafe { read_pair(gpu, params, other) } {
            let kind = if other > pair && target == to {
                CheckFault::SAME_TARGET
            } else if other != pair && is_one_cache && source == to {
                CheckFault::TARGET_IS_SOURCE
            } else {
                0
            };
            if kind != 0 {
                let fault = CheckFault {
                    kind,
                    row: pair,
                    position: other,
                    value: to as i64,
                    ..CheckFault::NONE
                };
                // SAFETY: a record, which only `report` touches: this function's contract.
                unsafe { report(gpu, params.check, fault) };
            }
        }
        other += 1;
    }
}

/// # Safety
/// `source` and `target` are addresses of blocks of `params.units` units of `BYTES` bytes, aligned to `BYTES`; the
/// target is this pair's alone, and neither is changed by others.
#[inline(always)]
unsafe fn copy<G: Gpu, const BYTES: u32>(
    gpu: G,
    params: &CopyBlocksParams,
    source: u64,
    target: u64,
) {
    let first = gpu.cta_idx_x() * SLAB + gpu.thread_idx();
    let mut data = [[0u32; 4]; UNITS];
    unroll!([4] i in 0..UNITS {
        let unit = first + i as u32 * THREADS;
        if unit < params.units {
            // SAFETY: `unit < units`, a unit of the block, aligned: this function's contract.
            data[i] = unsafe { load::<G, BYTES>(gpu, source + unit as u64 * BYTES as u64) };
        }
    });
    unroll!([4] i in 0..UNITS {
        let unit = first + i as u32 * THREADS;
        if unit < params.units {
            // SAFETY: as above; the pair's target is this thread block's, and the unit this thread's.
            unsafe { store::<G, BYTES>(gpu, target + unit as u64 * BYTES as u64, data[i]) };
        }
    });
}

/// [`copy_blocks`].
#[derive(Debug)]
pub enum CopyBlocks {}

impl Kernel for CopyBlocks {
    type Params = CopyBlocksParams;
    const VARIANT: Variant = Variant::Only("copy_blocks");
    const THREADS: u32 = THREADS;

    #[inline(always)]
    unsafe fn run<G: Gpu>(gpu: G, params: &CopyBlocksParams) {
        // SAFETY: launched as `copy_blocks` asks, on tensors of its shapes: the contract of `Kernel::run`.
        unsafe { copy_blocks(gpu, params) }
    }
}

/// [`check_pairs`].
#[derive(Debug)]
pub enum CheckPairs {}

impl Kernel for CheckPairs {
    type Params = CopyBlocksParams;
    const VARIANT: Variant = Variant::Only("check_pairs");
    const THREADS: u32 = THREADS;

    #[inline(always)]
    unsafe fn run<G: Gpu>(gpu: G, params: &CopyBlocksParams) {
        // SAFETY: launched as `check_pairs` asks, on tensors of its shapes: the contract of `Kernel::run`.
        unsafe { check_pairs(gpu, params) }
    }
}
