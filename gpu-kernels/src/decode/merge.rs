//! Stage 2 of split-KV decode attention: the parts of a sequence become its output.
//!
//! Grid: x = query head, y = sequence, z = query token and tile of 128 columns. A thread block owns these columns of
//! one row of `out`; its warps share out the splits, a lane has four columns:
//!
//! ```text
//! lse = all of partial_lse                     a maximum, base 2, and a sum each
//! for each split of this warp:
//!     acc += weight of its partial_lse * partial_out
//! acc is added over the warps; out = acc / (lse's sum + 2^(sink - max)); lse without or with the sink in the sum
//! ```
//!
//! Sequences of one split were finished by stage 1.

use core::marker::PhantomData;

use crate::attention::lse::Lse;
use crate::attention::out::recip_of_sum;
use crate::attention::sequence::{first_key, query_row, seq_len};
use crate::attention::tile::TILE_GROUP;
use crate::dtype::Half;
use crate::entry::Variant;
use crate::gpu::unroll::unroll;
use crate::gpu::{Gpu, WARP, div};
use crate::kernel::Kernel;
use crate::params::MergeParams;

const WARPS: u32 = 4;
/// Threads per thread block.
pub const THREADS: u32 = WARPS * WARP;
/// Splits whose loads are in flight together.
const UNROLL: usize = 4;
/// Columns of a thread block.
const COLUMNS: u32 = WARP * 4;

/// Dynamic shared memory of a thread block: each warp's columns.
pub const SHARED_BYTES: u32 = WARPS * COLUMNS * 4;

/// Thread blocks that share out the columns of a row: a power of two.
pub const fn column_tiles(head_size_v: u32) -> u32 {
    head_size_v.div_ceil(COLUMNS).next_power_of_two()
}

/// The kernel.
///
/// # Safety
/// Launched on the grid above with [`THREADS`] threads and [`SHARED_BYTES`] shared memory; `params` names
/// tensors of the shapes it documents, written by stage 1.
#[inline(always)]
pub unsafe fn merge_splits<G: Gpu, T: Half>(gpu: G, params: &MergeParams) {
    let (head, seq) = (gpu.cta_idx_x(), gpu.cta_idx_y());
    let tiles = column_tiles(params.head_size_v);
    let token = gpu.cta_idx_z() >> tiles.trailing_zeros();
    let tile = gpu.cta_idx_z() & (tiles - 1);
    let seq_len = if params.seq_lens == 0 {
        params.max_seq_len
    } else {
        // SAFETY: one length per sequence of the grid; nobody writes lengths while kernels run.
        unsafe {
            seq_len(
                gpu,
                params.seq_lens,
                params.stride_seq_lens,
                seq,
                params.max_seq_len,
            )
        }
    };
    // Stage 1's splits begin at the window's first group of tokens.
    let first = first_key(seq_len, params.sliding_window) / TILE_GROUP * TILE_GROUP;
    // SAFETY: the start of every sequence of the grid, and the end of the last, are readable.
    let out_row = unsafe { query_row(gpu, params.query_start_loc, params.num_tokens, seq) };
    // Also where there is nothing to merge: a kernel behind this one may begin when all of it has, and stage 1 has to be
    // done by then.
    gpu.wait_for_previous_kernels();
    if seq_len - first <= params.split_len {
        return;
    }
    let Some(out_row) = out_row else { return };
    // SAFETY: a valid check record, or none.
    if unsafe { crate::attention::check::found_fault(gpu, params.check) } {
        return;
    }
    // SAFETY: splits hold at least a tile.
    let num_splits = unsafe { div(seq_len - first - 1, params.split_len) } + 1;
    let row = seq as u64 * params.num_rows as u64 + (token * params.num_query_heads + head) as u64;
    let partial_lse = params.partial_lse + Lse::BYTES * (row * params.num_kv_splits as u64);
    // SAFETY: stage 1 wrote the lse of every split below `num_splits`.
    let splits = unsafe { total(gpu, partial_lse, num_splits) };
    let row_bytes = params.head_size_v * 4;
    let partial_out = params.partial_out + row * params.num_kv_splits as u64 * row_bytes as u64;

    let mut with_sink = splits;
    if params.sink != 0 {
        // SAFETY: one sink for each head.
        let sink = f32::from_bits(unsafe { gpu.ld_global_b32(params.sink + 4 * head as u64) });
        with_sink = splits.with(gpu, Lse::of_score(sink * core::f32::consts::LOG2_E));
    }
    // Of a row that sees no token, every part is empty.
    let scale = recip_of_sum(gpu, with_sink.sum);
    let column = tile * COLUMNS + gpu.lane() * 4;
    let mut acc = [0.0f32; 4];
    let mut split = gpu.warp();
    while split < num_splits && column < params.head_size_v {
        let mut parts = [[0u32; 4]; UNROLL];
        let mut lses = [Lse::EMPTY; UNROLL];
        unroll!([4] i in 0..UNROLL {
            let split = split + i as u32 * WARPS;
            if split < num_splits {
                let at = partial_out + split as u64 * row_bytes as u64 + column as u64 * 4;
                // SAFETY: stage 1 wrote this split's part.
                unsafe {
                    parts[i] = gpu.ld_global_b128(at);
                    lses[i] = Lse::load(gpu, partial_lse, split as u64);
                }
            }
        });
        unroll!([4] i in 0..UNROLL {
            let weight = lses[i].weight(gpu, with_sink.max) * scale;
            unroll!([4] j in 0..4 {
                acc[j] = gpu.fma(weight, f32::from_bits(parts[i][j]), acc[j]);
            });
        });
        split += UNROLL as u32 * WARPS;
    }
    let at = gpu.shared_base() + gpu.thread_idx() * 16;
    // SAFETY: this lane's columns of this warp's row.
    unsafe { gpu.st_shared_b128(at, acc.map(f32::to_bits)) };
    // SAFETY: the whole thread block is here: what returns early does so for all threads.
    unsafe { gpu.sync_cta() };

    if gpu.warp() == 0 && column < params.head_size_v {
        let mut total = [0.0f32; 4];
        for warp in 0..WARPS {
            // SAFETY: written before the barrier.
            let part = unsafe { gpu.ld_shared_b128(at + warp * WARP * 16) };
            unroll!([4] j in 0..4 {
                total[j] += f32::from_bits(part[j]);
            });
        }
        let [a, b, c, d] = total;
        let packed = T::pack(gpu, a, b) as u64 | (T::pack(gpu, c, d) as u64) << 32;
        let out = params.out
            + 2 * (out_row as u64 * params.stride_out_seq as u64
                + token as u64 * params.stride_out_token as u64
                + head as u64 * params.stride_out_head as u64
                + column as u64);
        // SAFETY: this lane's columns of the row; strides are multiples of 4.
        unsafe { gpu.st_global_b64(out, packed) };
    }
    if gpu.thread_idx() == 0 && tile == 0 && params.lse != 0 {
        let lse = if params.sink_in_lse != 0 {
            with_sink
        } else {
            splits
        };
        let at = params.lse
            + 4 * (out_row as u64 * params.stride_lse_seq as u64
                + token as u64 * params.stride_lse_token as u64
                + head as u64 * params.stride_lse_head as u64);
        // SAFETY: this row's element; one lane writes it.
        unsafe { gpu.st_global_b32(at, lse.natural(gpu).to_bits()) };
    }
}

/// The lse of all parts, in every lane.
///
/// # Safety
/// Converged; `num_splits` elements are readable.
#[inline(always)]
unsafe fn total<G: Gpu>(gpu: G, partial_lse: u64, num_splits: u32) -> Lse {
    let mut max = f32::NEG_INFINITY;
    let mut split = gpu.lane();
    while split < num_splits {
        // SAFETY: as the caller promises.
        max = gpu.max(
            max,
            unsafe { Lse::load(gpu, partial_lse, split as u64) }.max,
        );
        split += WARP;
    }
    for mask in [1, 2, 4, 8, 16] {
        // SAFETY: converged.
        max = gpu.max(
            max,
            f32::from_bits(unsafe { gpu.shfl_xor(max.to_bits(), mask) }),
        );
    }
    let mut sum = 0.0;
    let mut split = gpu.lane();
    while split < num_splits {
        // SAFETY: as the caller promises.
        sum += unsafe { Lse::load(gpu, partial_lse, split as u64) }.weight(gpu, max);
        split += WARP;
    }
    for mask in [1, 2, 4, 8, 16] {
        // SAFETY: converged.
        sum += f32::from_bits(unsafe { gpu.shfl_xor(sum.to_bits(), mask) });
    }
    Lse { max, sum }
}

/// [`merge_splits`] into outputs of `T`.
#[derive(Debug)]
pub struct MergeSplits<T>(PhantomData<T>);

impl<T: Half> Kernel for MergeSplits<T> {
    type Params = MergeParams;
    const VARIANT: Variant = Variant::MergeSplits { dtype: T::HALF };
    const THREADS: u32 = THREADS;

    #[inline(always)]
    unsafe fn run<G: Gpu>(gpu: G, params: &MergeParams) {
        // SAFETY: as the caller promises.
        unsafe { merge_splits::<G, T>(gpu, params) }
    }
}
