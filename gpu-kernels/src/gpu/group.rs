//! The products of a warp group, for machines that have none: what each of its warps has of them, by its own
//! instructions.

use crate::gpu::unroll::unroll;
use crate::gpu::{Matrices, Memory, Numbers, Threads};

/// Sums of products that a warp group has begun, in the accumulator layout of `mma`, 16 columns after the other: nobody
/// looks at them before `WarpGroup::group_wait`.
#[derive(Clone, Copy, Debug)]
pub struct Pending<const STEPS: usize>(pub(super) [[[f32; 4]; 2]; STEPS]);

impl<const STEPS: usize> Pending<STEPS> {
    /// Nothing was added up yet.
    pub(super) const ZERO: Self = Self([[[0.0; 4]; 2]; STEPS]);
}

/// Bytes of a panel's row, and of a panel of 64 rows.
pub const PANEL_ROW_BYTES: u32 = 128;
/// See [`PANEL_ROW_BYTES`].
pub const PANEL_BYTES: u32 = 64 * PANEL_ROW_BYTES;

/// Where 16-byte chunk `chunk` of row `row` lies in panels that are side by side: a row has eight chunks in each, and
/// the tensor cores want chunk `c` of row `r` at place `c ^ (r % 8)` (PTX ISA, "Asynchronous warpgroup-level matrix
/// shared memory layout", 128-byte swizzling).
#[inline(always)]
pub const fn in_panels(row: u32, chunk: u32) -> u32 {
    chunk / 8 * PANEL_BYTES + row * PANEL_ROW_BYTES + ((chunk % 8) ^ (row % 8)) * 16
}

/// Where 16-byte chunk `chunk` of a line of 128 bytes, of row `row`, lies in a panel until it is widened into that one and the
/// next: rows side by side have what becomes theirs of one panel in different halves of the line, and so in different banks.
#[inline(always)]
pub const fn bytes_in_panel(row: u32, chunk: u32) -> u32 {
    row * PANEL_ROW_BYTES + (chunk ^ (row % 2 * 4)) * 16
}

/// Stores sixteen values of 16 bits into a panel's row: the second eight are beside the first ones, which belong at `at`.
///
/// # Safety
/// An even chunk of the row and the next one are this lane's to write.
#[inline(always)]
#[track_caller]
pub unsafe fn store_sixteen<G: Memory>(gpu: G, at: u32, [low, high]: [[u32; 4]; 2]) {
    // SAFETY: this function's contract.
    unsafe {
        gpu.st_shared_b128(at, low);
        gpu.st_shared_b128(at ^ 16, high);
    }
}

/// # Safety
/// Converged.
#[inline(always)]
#[track_caller]
unsafe fn mma<G: Matrices, const BF16: bool>(
    gpu: G,
    acc: [f32; 4],
    a: [u32; 4],
    b: [u32; 2],
) -> [f32; 4] {
    // SAFETY: converged: this function's contract.
    unsafe {
        if BF16 {
            gpu.mma_bf16(acc, a, b)
        } else {
            gpu.mma_f16(acc, a, b)
        }
    }
}

/// See `WarpGroup::group_more_scores_bf16`: of bf16 or, with `BF16` false, of f16.
///
/// # Safety
/// As there.
#[inline(always)]
#[track_caller]
pub(super) unsafe fn scores<G: Threads + Matrices, const BF16: bool, const STEPS: usize>(
    gpu: G,
    Pending(mut acc): Pending<4>,
    queries: u32,
    keys: u32,
) -> Pending<4> {
    let lane = gpu.lane();
    let query = gpu.warp() % 4 * 16 + lane % 16;
    let key = lane % 8 + lane / 16 * 8;
    unroll!([16] step in 0..STEPS {
        let chunk = 2 * step as u32;
        // SAFETY: the four warps come here together, with visible panels in bounds: this function's contract.
        let a = unsafe { gpu.ldmatrix_x4(queries + in_panels(query, chunk + lane / 16)) };
        unroll!([4] pair in 0..4 {
            let at = keys + in_panels(pair as u32 * 16 + key, chunk + lane / 8 % 2);
            // SAFETY: as above.
            acc[pair] = unsafe {
                let [b0, b1, b2, b3] = gpu.ldmatrix_x4(at);
                [
                    mma::<G, BF16>(gpu, acc[pair][0], a, [b0, b1]),
                    mma::<G, BF16>(gpu, acc[pair][1], a, [b2, b3]),
                ]
            };
        });
    });
    Pending(acc)
}

/// See `WarpGroup::group_scores_e4m3`. Bytes are widened, and those of a word multiplied two by two.
///
/// # Safety
/// As there.
#[inline(always)]
#[track_caller]
pub(super) unsafe fn scores_e4m3<G: Threads + Matrices + Numbers, const STEPS: usize>(
    gpu: G,
    queries: u32,
    keys: u32,
) -> Pending<4> {
    let lane = gpu.lane();
    let query = gpu.warp() % 4 * 16 + lane % 16;
    let key = lane % 8 + lane / 16 * 8;
    let mut acc = [[[0.0; 4]; 2]; 4];
    unroll!([4] step in 0..(STEPS / 2) {
        let chunk = 2 * step as u32;
        // SAFETY: the four warps come here together, with visible panels in bounds: this function's contract.
        let a = unsafe { gpu.ldmatrix_x4(queries + in_panels(query, chunk + lane / 16)) };
        let a = a.map(|word| gpu.widen_e4m3x4(word));
        unroll!([4] pair in 0..4 {
            let at = keys + in_panels(pair as u32 * 16 + key, chunk + lane / 8 % 2);
            // SAFETY: as above.
            let b = unsafe { gpu.ldmatrix_x4(at) }.map(|word| gpu.widen_e4m3x4(word));
            unroll!([2] two in 0..2 {
                let a = a.map(|words| words[two]);
                unroll!([2] half in 0..2 {
                    // SAFETY: converged: this function's contract.
                    acc[pair][half] = unsafe {
                        gpu.mma_f16( acc[pair][half], a, [b[2 * half][two], b[2 * half + 1][two]])
                    };
                });
            });
        });
    });
    Pending(acc)
}

/// See `WarpGroup::group_values_bf16`: of bf16 or, with `BF16` false, of f16.
///
/// # Safety
/// As there.
#[inline(always)]
#[track_caller]
pub(super) unsafe fn values<G: Threads + Matrices, const BF16: bool, const STEPS: usize>(
    gpu: G,
    mut acc: [[[f32; 4]; 2]; STEPS],
    probs: [[u32; 4]; 4],
    values: u32,
) -> Pending<STEPS> {
    let lane = gpu.lane();
    unroll!([4] pair in 0..4 {
        let token = pair as u32 * 16 + lane % 16;
        unroll!([16] step in 0..STEPS {
            let at = values + in_panels(token, 2 * step as u32 + lane / 16);
            // SAFETY: the four warps come here together, with visible panels in bounds: this function's contract.
            acc[step] = unsafe {
                let [b0, b1, b2, b3] = gpu.ldmatrix_x4_trans(at);
                [
                    mma::<G, BF16>(gpu, acc[step][0], probs[pair], [b0, b1]),
                    mma::<G, BF16>(gpu, acc[step][1], probs[pair], [b2, b3]),
                ]
            };
        });
    });
    Pending(acc)
}
