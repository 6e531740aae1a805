//! How fast this machine reads: the yardstick of the benchmarks.
//!
//! Grid: x = thread blocks, all resident. Every thread reads 16 bytes at a time, several loads in flight,
//! stepping by the whole grid; what it read is folded into one word so that no load can be dropped:
//!
//! ```text
//! for each stride of the grid: fold ^= 8 independent 16-byte loads
//! sink[thread] = fold
//! ```

use crate::entry::Variant;
use crate::gpu::unroll::unroll;
use crate::gpu::{Gpu, WARP};
use crate::kernel::Kernel;
use crate::params::ReadCeilingParams;

/// Threads per thread block.
pub const THREADS: u32 = 16 * WARP;
/// Loads in flight per thread.
const UNROLL: usize = 8;

/// The kernel.
///
/// # Safety
/// Launched with [`THREADS`] threads on a one-dimensional grid; `params` names memory as it documents.
#[inline(always)]
pub unsafe fn read_ceiling<G: Gpu>(gpu: G, params: &ReadCeilingParams) {
    let thread = gpu.cta_idx_x() as u64 * THREADS as u64 + gpu.thread_idx() as u64;
    let step = 16 * gpu.grid_dim_x() as u64 * THREADS as u64;
    let mut fold = 0;
    let mut offset = 16 * thread;
    while offset + (UNROLL as u64 - 1) * step + 16 <= params.bytes {
        let mut words = [[0; 4]; UNROLL];
        unroll!([8] i in 0..UNROLL {
            // SAFETY: the loop's condition: the last load ends within the `bytes` of the source, a part of this
            // function's contract.
            words[i] = unsafe { gpu.ld_global_b128(params.source + offset + i as u64 * step) };
        });
        for [a, b, c, d] in words {
            fold ^= a ^ b ^ c ^ d;
        }
        offset += UNROLL as u64 * step;
    }
    // SAFETY: `sink` has a word for each thread of the grid: this function's contract.
    unsafe { gpu.st_global_b32(params.sink + 4 * thread, fold) };
}

/// [`read_ceiling`].
#[derive(Debug)]
pub enum ReadCeiling {}

impl Kernel for ReadCeiling {
    type Params = ReadCeilingParams;
    const VARIANT: Variant = Variant::ReadCeiling;
    const THREADS: u32 = THREADS;

    #[inline(always)]
    unsafe fn run<G: Gpu>(gpu: G, params: &ReadCeilingParams) {
        // SAFETY: launched as `read_ceiling` asks: the contract of `Kernel::run`.
        unsafe { read_ceiling(gpu, params) }
    }
}
