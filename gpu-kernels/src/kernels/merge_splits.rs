//! Stage 2 of split-KV decode attention: the parts of a sequence become its output.
//!
//! Grid: x = query head, y = sequence. A thread block owns one row of `out`; its warps share out the splits,
//! a lane takes four columns at a time:
//!
//! ```text
//! max = max of partial_lse                     base 2
//! for each split of this warp:
//!     weight = 2^(partial_lse - max)
//!     acc   += weight * partial_out;  sum += weight
//! acc and sum are added over the warps; out = acc / sum; lse = ln 2 * (max + log2 sum)
//! ```
//!
//! Sequences of one split were finished by stage 1.

use super::decode_gqa::seq_len;
use crate::dtype::Half;
use crate::gpu::{Gpu, WARP, div};
use crate::params::MergeParams;
use crate::unroll::unroll;

const WARPS: u32 = 4;
/// Threads per thread block.
pub const THREADS: u32 = WARPS * WARP;
/// Splits whose loads are in flight together.
const UNROLL: usize = 4;
/// Columns that a warp takes at a time.
const COLUMNS: u32 = WARP * 4;

/// Dynamic shared memory of a thread block: each warp's row of columns.
pub const fn shared_bytes(head_size_v: u32) -> u32 {
    WARPS * head_size_v.next_multiple_of(COLUMNS) * 4
}

/// The kernel.
///
/// # Safety
/// Launched on the grid above with [`THREADS`] threads and [`shared_bytes`] shared memory; `params` names
/// tensors of the shapes it documents, written by stage 1.
#[inline(always)]
pub unsafe fn merge_splits<G: Gpu, T: Half>(gpu: G, params: &MergeParams) {
    let (head, seq) = (gpu.cta_idx_x(), gpu.cta_idx_y());
    // SAFETY: one length per sequence of the grid; nobody writes lengths while kernels run.
    let seq_len = unsafe {
        seq_len(
            gpu,
            params.seq_lens,
            params.stride_seq_lens,
            seq,
            params.max_seq_len,
        )
    };
    if seq_len <= params.split_len {
        return;
    }
    gpu.wait_for_previous_kernels();
    // SAFETY: a valid check record, or none.
    if unsafe { super::check::found_fault(gpu, params.check) } {
        return;
    }
    // SAFETY: splits hold at least a tile.
    let num_splits = unsafe { div(seq_len - 1, params.split_len) } + 1;
    let row = seq as u64 * params.num_query_heads as u64 + head as u64;
    let partial_lse = params.partial_lse + 4 * (row * params.num_kv_splits as u64);
    // SAFETY: stage 1 wrote the lse of every split below `num_splits`.
    let (max, sum) = unsafe { weigh(gpu, partial_lse, num_splits) };
    let row_bytes = params.head_size_v * 4;
    let partial_out = params.partial_out + row * params.num_kv_splits as u64 * row_bytes as u64;

    let scale = gpu.recip(sum);
    let mut column = gpu.lane() * 4;
    while column < params.head_size_v {
        let mut acc = [0.0f32; 4];
        let mut split = gpu.warp();
        while split < num_splits {
            let mut parts = [[0u32; 4]; UNROLL];
            let mut lse_log2 = [f32::NEG_INFINITY; UNROLL];
            unroll!([4] i in 0..UNROLL {
                let split = split + i as u32 * WARPS;
                if split < num_splits {
                    let at = partial_out + split as u64 * row_bytes as u64 + column as u64 * 4;
                    // SAFETY: stage 1 wrote this split's part.
                    unsafe {
                        parts[i] = gpu.ld_global_b128(at);
                        lse_log2[i] =
                            f32::from_bits(gpu.ld_global_b32(partial_lse + split as u64 * 4));
                    }
                }
            });
            unroll!([4] i in 0..UNROLL {
                let weight = gpu.exp2(lse_log2[i] - max) * scale;
                unroll!([4] j in 0..4 {
                    acc[j] = gpu.fma(weight, f32::from_bits(parts[i][j]), acc[j]);
                });
            });
            split += UNROLL as u32 * WARPS;
        }
        let at = gpu.shared_base() + (gpu.warp() * params.head_size_v + column) * 4;
        let bits = [
            acc[0].to_bits(),
            acc[1].to_bits(),
            acc[2].to_bits(),
            acc[3].to_bits(),
        ];
        // SAFETY: this lane's columns of this warp's row.
        unsafe { gpu.st_shared_b128(at, bits) };
        column += COLUMNS;
    }
    // SAFETY: the whole thread block is here: what returns early does so for all threads.
    unsafe { gpu.sync_cta() };

    let out = params.out
        + 2 * (seq as u64 * params.stride_out_seq as u64
            + head as u64 * params.stride_out_head as u64);
    let column = gpu.thread_idx() * 4;
    if column < params.head_size_v {
        let mut total = [0.0f32; 4];
        for warp in 0..WARPS {
            let at = gpu.shared_base() + (warp * params.head_size_v + column) * 4;
            // SAFETY: written before the barrier.
            let part = unsafe { gpu.ld_shared_b128(at) };
            unroll!([4] j in 0..4 {
                total[j] += f32::from_bits(part[j]);
            });
        }
        let [a, b, c, d] = total;
        let packed = T::pack(gpu, a, b) as u64 | (T::pack(gpu, c, d) as u64) << 32;
        // SAFETY: this lane's columns of the row; strides are multiples of 4.
        unsafe { gpu.st_global_b64(out + 2 * column as u64, packed) };
    }
    if gpu.thread_idx() == 0 && params.lse != 0 {
        let lse = (max + gpu.log2(sum)) * core::f32::consts::LN_2;
        let at = params.lse
            + 4 * (seq as u64 * params.stride_lse_seq as u64
                + head as u64 * params.stride_lse_head as u64);
        // SAFETY: this row's element; one lane writes it.
        unsafe { gpu.st_global_b32(at, lse.to_bits()) };
    }
}

/// Maximum of the parts' lse, and the sum of `2^(lse - max)`, in every lane.
///
/// # Safety
/// Converged; `num_splits` elements are readable.
#[inline(always)]
unsafe fn weigh<G: Gpu>(gpu: G, partial_lse: u64, num_splits: u32) -> (f32, f32) {
    let mut max = f32::NEG_INFINITY;
    let mut split = gpu.lane();
    while split < num_splits {
        // SAFETY: as the caller promises.
        max = gpu.max(
            max,
            f32::from_bits(unsafe { gpu.ld_global_b32(partial_lse + 4 * split as u64) }),
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
        let lse_log2 = f32::from_bits(unsafe { gpu.ld_global_b32(partial_lse + 4 * split as u64) });
        sum += gpu.exp2(lse_log2 - max);
        split += WARP;
    }
    for mask in [1, 2, 4, 8, 16] {
        // SAFETY: converged.
        sum += f32::from_bits(unsafe { gpu.shfl_xor(sum.to_bits(), mask) });
    }
    (max, sum)
}
