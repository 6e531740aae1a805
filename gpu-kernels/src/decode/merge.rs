//! Stage 2 of split-KV decode attention: the parts of a sequence become its output.
//!
//! Grid: x = query head, y = sequence, z = query token and tile of 128 columns. A thread block owns these columns of
//! one row of `out`; its warps share out the splits, a lane has four columns:
//!
//! ```text
//! the first parts of this warp's splits are under way
//! lse = all of partial_lse                      a maximum, base 2, and a sum each
//! for each batch of this warp's splits, the next under way:
//!     acc += weight of its partial_lse * partial_out
//! acc is added over the warps; out = acc / (lse's sum + 2^(sink - max)); lse without or with the sink in the sum
//! ```
//!
//! Of at most four splits a warp takes all, so that no warp waits for another: then a thread block owns such tiles of a
//! query token, one a warp; x counts thread blocks, and z is the query token. Both ways add in the same order.
//!
//! Sequences of one split were finished by stage 1. If stage 1 attended by [`schedule`](crate::attention::schedule), y is a
//! cut, of whose sequence all is merged if it is that one's first.

use core::marker::PhantomData;

use crate::attention::lse::Lse;
use crate::attention::out::recip_of_sum;
use crate::decode::parts::{Divided, Part, Parts, UNROLL, total_of};
use crate::dtype::Half;
use crate::entry::Variant;
use crate::gpu::unroll::unroll;
use crate::gpu::{Gpu, WARP};
use crate::kernel::Kernel;
use crate::params::MergeParams;

const WARPS: u32 = 4;
/// Threads per thread block.
pub const THREADS: u32 = WARPS * WARP;
/// Columns of a warp.
const COLUMNS: u32 = WARP * 4;

/// Dynamic shared memory of a thread block: each warp's columns.
pub const SHARED_BYTES: u32 = WARPS * COLUMNS * 4;

/// Tiles of columns of a row: a power of two.
pub const fn column_tiles(head_size_v: u32) -> u32 {
    head_size_v.div_ceil(COLUMNS).next_power_of_two()
}

/// Whether a warp takes all splits of its columns, of which there are `num_kv_splits` at most.
const fn is_warp_alone(num_kv_splits: u32) -> bool {
    num_kv_splits <= UNROLL as u32
}

/// Thread blocks for the heads, and for the columns, of `query_len` tokens of one sequence: x and z of the grid.
pub const fn grid(
    num_query_heads: u32,
    head_size_v: u32,
    query_len: u32,
    num_kv_splits: u32,
) -> (u32, u32) {
    let tiles = column_tiles(head_size_v);
    if is_warp_alone(num_kv_splits) {
        ((num_query_heads * tiles).div_ceil(WARPS), query_len)
    } else {
        (num_query_heads, query_len * tiles)
    }
}

/// The kernel.
///
/// # Safety
/// Launched on the [`grid`] with [`THREADS`] threads and [`SHARED_BYTES`] shared memory; `params` names tensors of the
/// shapes it documents. Stage 1, the kernel ahead, wrote the parts of every sequence that has more than one split; no
/// two sequences have one row; no kernel that may still run writes lengths, or starts.
#[inline(always)]
pub unsafe fn merge_splits<G: Gpu, T: Half>(gpu: G, params: &MergeParams) {
    let is_alone = is_warp_alone(params.num_kv_splits);
    let tiles = column_tiles(params.head_size_v);
    let (head, tile, token) = if is_alone {
        let index = gpu.cta_idx_x() * WARPS + gpu.warp();
        (
            index >> tiles.trailing_zeros(),
            index & (tiles - 1),
            gpu.cta_idx_z(),
        )
    } else {
        (
            gpu.cta_idx_x(),
            gpu.cta_idx_z() & (tiles - 1),
            gpu.cta_idx_z() >> tiles.trailing_zeros(),
        )
    };
    // SAFETY: this function's contract.
    let divided = unsafe { Divided::of(gpu, params, gpu.cta_idx_y()) };
    // Also where there is nothing to merge: a kernel behind this one may begin when all of it has, and stage 1 has to be
    // done by then.
    gpu.wait_for_previous_kernels();
    let Some(divided) = divided else { return };
    if head >= params.num_query_heads {
        return;
    }
    // SAFETY: `check` is 0 or a finished check's record: the host's `launch`.
    if unsafe { crate::attention::check::found_fault(gpu, params.check) } {
        return;
    }
    let row = Row {
        out_row: divided.out_row,
        token,
        head,
        column: tile * COLUMNS + gpu.lane() * 4,
    };
    let parts = Parts::of(
        params,
        divided,
        token * params.num_query_heads + head,
        row.column,
    );
    let sink = if params.sink == 0 {
        f32::NEG_INFINITY
    } else {
        // SAFETY: `head` is a query head, and sinks are one for each: the host's check of the request.
        let sink = f32::from_bits(unsafe { gpu.ld_global_b32(params.sink + 4 * head as u64) });
        sink * core::f32::consts::LOG2_E
    };
    // SAFETY: stage 1 wrote every part below `num_splits`, and its lse; the whole thread block comes to a barrier, as what
    // returns early does so for all threads unless warps are alone.
    unsafe {
        if is_alone {
            let batch = parts.load(gpu, 0, 1);
            let splits = Softmax::of(gpu, total_of(gpu, &batch), sink);
            let mut total = [0.0f32; 4];
            unroll!([4] i in 0..UNROLL {
                let acc = splits.add(gpu, [0.0; 4], batch[i]);
                unroll!([4] j in 0..4 {
                    total[j] += acc[j];
                });
            });
            row.store::<G, T>(gpu, params, total);
            if gpu.lane() == 0 && row.column == 0 {
                row.store_lse(gpu, params, splits);
            }
            return;
        }
        let mut split = gpu.warp();
        // What the loop below begins with is under way before the lse, on which its weights depend, is waited for.
        let mut batch = parts.load(gpu, split, WARPS);
        let splits = Softmax::of(gpu, parts.total(gpu), sink);
        let mut acc = [0.0f32; 4];
        while split < divided.num_parts {
            split += UNROLL as u32 * WARPS;
            let next = parts.load(gpu, split, WARPS);
            unroll!([4] i in 0..UNROLL {
                acc = splits.add(gpu, acc, batch[i]);
            });
            batch = next;
        }
        let at = gpu.shared_base() + gpu.thread_idx() * 16;
        gpu.st_shared_b128(at, acc.map(f32::to_bits));
        gpu.sync_cta();
        if gpu.warp() == 0 {
            let mut total = [0.0f32; 4];
            for warp in 0..WARPS {
                let part = gpu.ld_shared_b128(at + warp * WARP * 16);
                unroll!([4] j in 0..4 {
                    total[j] += f32::from_bits(part[j]);
                });
            }
            row.store::<G, T>(gpu, params, total);
        }
        if gpu.thread_idx() == 0 && tile == 0 {
            row.store_lse(gpu, params, splits);
        }
    }
}

/// What parts are weighed by.
#[derive(Clone, Copy)]
struct Softmax {
    splits: Lse,
    with_sink: Lse,
    /// One over the sum, with the sink; of a row that sees no token, whose every part is empty, 0.
    scale: f32,
}

impl Softmax {
    #[inline(always)]
    fn of<G: Gpu>(gpu: G, splits: Lse, sink_log2: f32) -> Self {
        let mut with_sink = splits;
        if sink_log2 != f32::NEG_INFINITY {
            with_sink = splits.with(gpu, Lse::of_score(sink_log2));
        }
        Self {
            splits,
            with_sink,
            scale: recip_of_sum(gpu, with_sink.sum),
        }
    }

    /// `acc` and the share of a part.
    #[inline(always)]
    fn add<G: Gpu>(self, gpu: G, acc: [f32; 4], (part, lse): Part) -> [f32; 4] {
        let weight = lse.weight(gpu, self.with_sink.max) * self.scale;
        let mut sum = acc;
        unroll!([4] j in 0..4 {
            sum[j] = gpu.fma(weight, f32::from_bits(part[j]), acc[j]);
        });
        sum
    }
}

/// A row of the output, and the first of a lane's four columns.
#[derive(Clone, Copy)]
struct Row {
    out_row: u32,
    token: u32,
    head: u32,
    column: u32,
}

impl Row {
    /// Stores a lane's columns, if the row has them.
    ///
    /// The row exists, and so does the output that `params` names; no other lane writes its columns.
    /// The row exists, and no other lane writes its columns.
    #[inline(always)]
    unsafe fn store<G: Gpu, T: Half>(self, gpu: G, params: &MergeParams, [a, b, c, d]: [f32; 4]) {
        if self.column < params.head_size_v {
            let packed = T::pack(gpu, a, b) as u64 | (T::pack(gpu, c, d) as u64) << 32;
            let out = params.out
                + self.out_row as u64 * params.stride_out_seq as u64
                + self.token as u64 * params.stride_out_token as u64
                + self.head as u64 * params.stride_out_head as u64
                + 2 * self.column as u64;
            // SAFETY: columns that the row has, this lane's: this function's contract; 8-byte aligned, as strides are
            // multiples of 4 values.
            unsafe { gpu.st_global_b64(out, packed) };
        }
    }

    /// Stores the row's lse, if it is wanted.
    ///
    /// # Safety
    /// The row exists, and so does its element of the lse that `params` names, if any; one lane calls this.
    #[inline(always)]
    unsafe fn store_lse<G: Gpu>(self, gpu: G, params: &MergeParams, softmax: Softmax) {
        if params.lse == 0 {
            return;
        }
        let lse = if params.sink_in_lse != 0 {
            softmax.with_sink
        } else {
            softmax.splits
        };
        let at = params.lse
            + self.out_row as u64 * params.stride_lse_seq as u64
            + self.token as u64 * params.stride_lse_token as u64
            + self.head as u64 * params.stride_lse_head as u64;
        // SAFETY: the row's element, which this lane alone writes: this function's contract.
        unsafe { gpu.st_global_b32(at, lse.natural(gpu).to_bits()) };
    }
}

/// [`merge_splits`] into outputs of `T`.
#[derive(Debug)]
pub struct MergeSplits<T>(PhantomData<T>);

impl<T: Half> Kernel for MergeSplits<T> {
    type Params = MergeParams;
    const VARIANT: Variant = Variant::MergeSplits { dtype: T::HALF };
    const THREADS: u32 = THREADS;
    // What it does is wait for memory.
    const MIN_CTAS: u32 = 7;

    #[inline(always)]
    unsafe fn run<G: Gpu>(gpu: G, params: &MergeParams) {
        // SAFETY: launched as `merge_splits` asks, on tensors of its shapes: the contract of `Kernel::run`.
        unsafe { merge_splits::<G, T>(gpu, params) }
    }
}
