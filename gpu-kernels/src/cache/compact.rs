//! Numbers the blocks that block tables or slots refer to, in order, and renames the references; the blocks
//! themselves are then gathered by `gather_copy`. Three kernels, one after the other:
//!
//! ```text
//! compact_mark     grid x = row:    for each reference of the row: marks[block] = 1
//! compact_number   grid x = chunk:  before = marks ahead of the chunk
//!                                   for each marked block: id = before + marks ahead of it in the chunk
//!                                                          new_ids[block] = id; old_ids[id] = block
//! compact_rename   grid x = row:    for each reference of the row: renamed = new_ids[block]
//! ```
//!
//! `check_compact` walks as they do. Behind a fault that it has found, nothing of what the caller gave is written.
//!
//! A row is a sequence's part of the block table, or 1,024 slots. Ids follow the order of the blocks, so they
//! do not depend on who comes first.

use crate::attention::check::found_fault;
use crate::entry::Variant;
use crate::gpu::lanes::sum_up_to_lane;
use crate::gpu::{Gpu, WARP};
use crate::kernel::Kernel;
use crate::params::CompactParams;

/// Threads per thread block.
pub const THREADS: u32 = 256;
const WARPS: u32 = THREADS / WARP;
/// Slots that a thread block walks.
const SLOTS: u32 = 1024;
/// Blocks that a thread numbers.
const BLOCKS: u32 = 16;
/// Blocks that a thread block numbers.
const CHUNK: u32 = BLOCKS * THREADS;
/// Shared memory of `compact_number`: marks ahead of the chunk and in it, as each warp has counted them.
pub const SHARED_BYTES: u32 = 2 * 4 * WARPS;

/// Thread blocks of `compact_mark` and `compact_rename`.
pub fn walk_grid(num_rows: u32, are_slots: bool) -> [u32; 3] {
    let ctas = if are_slots {
        num_rows.div_ceil(SLOTS)
    } else {
        num_rows
    };
    [ctas.max(1), 1, 1]
}

/// Thread blocks of `compact_number`.
pub fn number_grid(num_blocks: u32) -> [u32; 3] {
    [num_blocks.div_ceil(CHUNK).max(1), 1, 1]
}

/// Marks what is referred to.
///
/// # Safety
/// Launched on [`walk_grid`] with [`THREADS`] threads, for a row at least; `params` names tensors of the shapes it
/// documents, the marks all 0 before the launch, and no record or that of a finished check.
#[inline(always)]
pub unsafe fn mark<G: Gpu>(gpu: G, params: &CompactParams) {
    // SAFETY: as `walk` asks: this function's contract; blocks that it finds have marks, which atomics alone touch.
    unsafe {
        walk(gpu, params, |block, _, _| {
            if let Some(block) = block {
                gpu.atomic_cas_global_b32(params.marks + 4 * block as u64, 0, 1);
            }
        });
    }
}

/// Writes each reference by its new name, −1 if it has none.
///
/// # Safety
/// As [`mark`], after [`number`].
#[inline(always)]
pub unsafe fn rename<G: Gpu>(gpu: G, params: &CompactParams) {
    // SAFETY: as `walk` asks: this function's contract; `mark` marked the same blocks, so `number` named them; each
    // reference has a place of its own among the renamed.
    unsafe {
        walk(gpu, params, |block, offset, renamed| {
            let id = match block {
                Some(block) => gpu.ld_global_b32(params.new_ids + 4 * block as u64),
                None => u32::MAX,
            };
            let is_slot = params.seq_lens == 0;
            let name = if is_slot && (id as i32) >= 0 {
                id * params.block_size.divisor() + offset
            } else {
                id
            };
            gpu.st_global_b32(renamed, name);
        });
    }
}

/// Calls `visit` with the block of each of this thread's references (`None` if it is padding or outside the
/// cache), the offset in the block, and the address of the new name; with none if a check has found a fault.
///
/// # Safety
/// Launched on [`walk_grid`] with [`THREADS`] threads, for a row at least; `params` names tensors of the shapes it
/// documents, and no record or that of a finished check. `visit` may be called with each block below `num_blocks`.
#[inline(always)]
unsafe fn walk<G: Gpu>(gpu: G, params: &CompactParams, visit: impl Fn(Option<u32>, u32, u64)) {
    // SAFETY: no record, or a finished check's: this function's contract.
    if unsafe { found_fault(gpu, params.check) } {
        return;
    }
    // SAFETY: a row of the grid, and its tensors: this function's contract.
    let row = unsafe { Row::of(gpu, params) };
    let mut at = row.first + gpu.thread_idx();
    while at < row.end {
        // SAFETY: `at` is one of the row's references, which `Row::of` counted.
        let found = unsafe { gpu.ld_global_b32(row.references + 4 * at as u64) };
        let (block, offset) = if params.seq_lens != 0 || found as i32 <= -1 {
            (found, 0)
        } else {
            let block = params.block_size.divide(found);
            (block, found - block * params.block_size.divisor())
        };
        let block = (block < params.num_blocks).then_some(block);
        visit(block, offset, row.renamed + 4 * at as u64);
        at += THREADS;
    }
}

/// The references of a thread block.
#[derive(Clone, Copy)]
pub(super) struct Row {
    /// Number of the first one.
    pub(super) first: u32,
    /// Number behind the last one.
    pub(super) end: u32,
    /// Where number 0 is.
    pub(super) references: u64,
    /// Where its new name goes.
    renamed: u64,
}

impl Row {
    /// This thread block's.
    ///
    /// # Safety
    /// Launched on [`walk_grid`], for a row at least; `params` names tensors of the shapes it documents.
    #[inline(always)]
    pub(super) unsafe fn of<G: Gpu>(gpu: G, params: &CompactParams) -> Self {
        let row = gpu.cta_idx_x();
        if params.seq_lens == 0 {
            let first = row * SLOTS;
            let end = first + SLOTS;
            return Self {
                first,
                end: if end < params.num_rows {
                    end
                } else {
                    params.num_rows
                },
                references: params.references,
                renamed: params.renamed,
            };
        }
        // SAFETY: a thread block has a row, each of which has a length: the host's `CompactRequest::references`.
        let len = unsafe { gpu.ld_global_b32(params.seq_lens + 4 * row as u64) } as i32;
        let len = if len > 0 { len as u32 } else { 0 };
        // Not `(len + block_size - 1) / block_size`, which can exceed what a divider divides.
        let blocks = params.block_size.divide(len);
        let blocks = blocks + (blocks * params.block_size.divisor() < len) as u32;
        let width = params.max_num_blocks_per_seq;
        Self {
            first: 0,
            end: if blocks < width { blocks } else { width },
            references: params.references + row as u64 * params.stride_references as u64,
            renamed: params.renamed + row as u64 * params.stride_renamed as u64,
        }
    }
}

/// Gives the marked blocks their numbers.
///
/// # Safety
/// Launched on [`number_grid`] with [`THREADS`] threads and [`SHARED_BYTES`] of shared memory, after
/// [`mark`]; `params` names tensors of the shapes it documents, and no record or that of a finished check.
#[inline(always)]
pub unsafe fn number<G: Gpu>(gpu: G, params: &CompactParams) {
    // All threads go on, or none; they meet at a barrier, so compilers are not to know by what they decide.
    // SAFETY: no record, or a finished check's: this function's contract.
    let is_refused = unsafe { found_fault(gpu, params.check) };
    if gpu.black_box(is_refused as u32) != 0 {
        return;
    }
    let (thread, warp) = (gpu.thread_idx(), gpu.warp());
    let chunk = gpu.cta_idx_x() * CHUNK;
    let first = chunk + thread * BLOCKS;
    let (mut ahead, mut own) = (0, 0);
    // SAFETY: chunks ahead are whole, as `number_grid` ends with the last block; all threads come here; each word of
    // shared memory has one writer, and is read behind the barrier.
    let (id, end) = unsafe {
        // Whole chunks lie ahead, so that there are always four.
        let mut block = 4 * thread;
        while block < chunk {
            let [a, b, c, d] = gpu.ld_global_b128(params.marks + 4 * block as u64);
            ahead += a + b + c + d;
            block += 4 * THREADS;
        }
        let mut i = 0;
        while i < BLOCKS {
            own += marked(gpu, params, first + i) as u32;
            i += 1;
        }
        let up_to = sum_up_to_lane(gpu, own);
        let warp_ahead = gpu.shfl(sum_up_to_lane(gpu, ahead), WARP - 1);
        let warp_own = gpu.shfl(up_to, WARP - 1);
        if gpu.lane() == 0 {
            gpu.st_shared_b32(gpu.shared_base() + 8 * warp, warp_ahead);
            gpu.st_shared_b32(gpu.shared_base() + 8 * warp + 4, warp_own);
        }
        gpu.sync_cta();
        let (mut id, mut end) = (up_to - own, 0);
        let mut other = 0;
        while other < WARPS {
            let other_ahead = gpu.ld_shared_b32(gpu.shared_base() + 8 * other);
            let other_own = gpu.ld_shared_b32(gpu.shared_base() + 8 * other + 4);
            id += other_ahead + if other < warp { other_own } else { 0 };
            end += other_ahead + other_own;
            other += 1;
        }
        (id, end)
    };
    // SAFETY: `id` counts all marked blocks ahead of the thread's own, so no other thread has their ids; those from
    // `end` on the last chunk writes, each once.
    unsafe {
        assign(gpu, params, first, id);
        // The last chunk knows how many there are.
        if chunk + CHUNK >= params.num_blocks {
            if thread == 0 {
                gpu.st_global_b32(params.num_wanted, end);
            }
            let mut id = end + thread;
            while id < params.num_compact_blocks {
                gpu.st_global_b32(params.old_ids + 4 * id as u64, u32::MAX);
                id += THREADS;
            }
        }
    }
}

/// Names the marked ones of a thread's blocks from `id` on.
///
/// # Safety
/// As [`number`]; blocks `first .. first + BLOCKS` are this thread's alone, and so are as many ids from `id` on as are
/// marked.
#[inline(always)]
unsafe fn assign<G: Gpu>(gpu: G, params: &CompactParams, first: u32, mut id: u32) {
    let mut i = 0;
    while i < BLOCKS {
        let block = first + i;
        // SAFETY: a block below `num_blocks` and an id below `num_compact_blocks`, both this thread's: this function's
        // contract.
        unsafe {
            if marked(gpu, params, block) {
                let fits = id < params.num_compact_blocks;
                let name = if fits { id } else { u32::MAX };
                gpu.st_global_b32(params.new_ids + 4 * block as u64, name);
                if fits {
                    gpu.st_global_b32(params.old_ids + 4 * id as u64, block);
                }
                id += 1;
            }
        }
        i += 1;
    }
}

/// # Safety
/// `params.marks` holds a mark for each block, and nobody writes marks.
#[inline(always)]
unsafe fn marked<G: Gpu>(gpu: G, params: &CompactParams, block: u32) -> bool {
    // SAFETY: each block below `num_blocks` has a mark: this function's contract.
    block < params.num_blocks && unsafe { gpu.ld_global_b32(params.marks + 4 * block as u64) } != 0
}

/// [`mark`].
#[derive(Debug)]
pub enum CompactMark {}

impl Kernel for CompactMark {
    type Params = CompactParams;
    const VARIANT: Variant = Variant::Only("compact_mark");
    const THREADS: u32 = THREADS;

    #[inline(always)]
    unsafe fn run<G: Gpu>(gpu: G, params: &CompactParams) {
        // SAFETY: launched as `mark` asks, on tensors of its shapes: the contract of `Kernel::run`.
        unsafe { mark(gpu, params) }
    }
}

/// [`number`].
#[derive(Debug)]
pub enum CompactNumber {}

impl Kernel for CompactNumber {
    type Params = CompactParams;
    const VARIANT: Variant = Variant::Only("compact_number");
    const THREADS: u32 = THREADS;

    #[inline(always)]
    unsafe fn run<G: Gpu>(gpu: G, params: &CompactParams) {
        // SAFETY: launched as `number` asks, on tensors of its shapes: the contract of `Kernel::run`.
        unsafe { number(gpu, params) }
    }
}

/// [`rename`].
#[derive(Debug)]
pub enum CompactRename {}

impl Kernel for CompactRename {
    type Params = CompactParams;
    const VARIANT: Variant = Variant::Only("compact_rename");
    const THREADS: u32 = THREADS;

    #[inline(always)]
    unsafe fn run<G: Gpu>(gpu: G, params: &CompactParams) {
        // SAFETY: launched as `rename` asks, on tensors of its shapes: the contract of `Kernel::run`.
        unsafe { rename(gpu, params) }
    }
}
