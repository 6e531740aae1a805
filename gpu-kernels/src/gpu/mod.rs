//! The machine: everything a kernel may ask of the hardware that runs it.
//!
//! [`Gpu`] is one lane's view of a CUDA-like machine. A kernel is a generic function over it, so the very
//! same source runs on three machines: two compilers' PTX (a zero-sized type behind the `gpu_route` cfg)
//! and the emulator's `Lane`, which lives on the host because it needs `std`. Only what differs between
//! machines is here; tiles, softmax and kernels are written once above it.
//!
//! # The contract every implementation keeps
//!
//! - Global addresses are 64-bit byte addresses; shared addresses are 32-bit byte offsets into the shared
//!   memory of the thread block (`cta`), beginning at [`Gpu::shared_base`], which is 128-byte aligned, and 1,024-byte
//!   aligned for a warp group.
//! - An access of `N` bytes is aligned to `N`.
//! - "Converged" means that all 32 lanes of the warp make the call together. Every operation marked so
//!   also orders nothing but what it says: plain memory is ordered by [`Gpu::sync_warp`] within a warp and
//!   by [`Gpu::sync_cta`], and between some of its warps [`Gpu::barrier_sync`], within a thread block.
//! - Asynchronous copies are visible to the lane that issued them after [`Gpu::cp_async_wait`], and to
//!   other lanes after a `sync_warp` or `sync_cta` that follows it.
//! - Arithmetic written with [`Gpu::fma`] is fused on every machine; other arithmetic never is.

pub mod fast_divmod;
pub mod fp8;
mod group;
pub(crate) mod unroll;
pub use group::{PANEL_BYTES, PANEL_ROW_BYTES, in_panels};
#[cfg(target_arch = "nvptx64")]
mod ptx;
#[cfg(any(target_feature = "sm_90a", target_feature = "compute_90a"))]
mod wgmma;
#[cfg(target_arch = "nvptx64")]
pub use ptx::PtxLane;
#[cfg(target_arch = "nvptx64")]
pub(crate) use ptx::trap;

use crate::dtype::Half;

/// Lanes in a warp.
pub const WARP: u32 = 32;

/// `a / b` without the branch to a panic that a kernel could not report.
///
/// # Safety
/// `b` is not 0.
#[inline(always)]
pub unsafe fn div(a: u32, b: u32) -> u32 {
    // SAFETY: the caller promises it.
    unsafe { core::hint::assert_unchecked(b != 0) };
    a / b
}

/// What is known of the 128-byte line that a copy comes from, and where it shall stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line {
    /// Others are about to read the rest of it, which shall come into the L2 as well.
    pub is_whole: bool,
    /// It will be read again soon. One that is not is the first to leave the L2.
    pub stays: bool,
}

impl Line {
    /// A line of a cache, which is larger than the L2 and read once per step.
    pub const ONCE: Self = Self {
        is_whole: false,
        stays: false,
    };
}

/// Sums of products that a warp group has begun, in the accumulator layout of `mma`, 16 columns after the other: nobody
/// looks at them before [`Gpu::group_wait`].
#[derive(Clone, Copy, Debug)]
pub struct Pending<const STEPS: usize>([[[f32; 4]; 2]; STEPS]);

/// One lane's view of the machine.
///
/// # Safety
/// An implementation keeps the contract in the [module documentation](self).
pub unsafe trait Gpu: Copy {
    // ---- where am I ------------------------------------------------------------------------------

    /// Index of this thread in its thread block, `0..threads`; thread blocks are one-dimensional.
    fn thread_idx(self) -> u32;
    /// Index of this thread block in the grid, x fastest.
    fn cta_idx_x(self) -> u32;
    /// See [`Gpu::cta_idx_x`].
    fn cta_idx_y(self) -> u32;
    /// See [`Gpu::cta_idx_x`].
    fn cta_idx_z(self) -> u32;
    /// Thread blocks along x.
    fn grid_dim_x(self) -> u32;
    /// First byte of this thread block's dynamic shared memory.
    fn shared_base(self) -> u32;

    /// Index of this lane in its warp, `0..32`.
    #[inline(always)]
    fn lane(self) -> u32 {
        self.thread_idx() % WARP
    }
    /// Index of this lane's warp in its thread block.
    #[inline(always)]
    fn warp(self) -> u32 {
        self.thread_idx() / WARP
    }

    /// `value`, of which the compiler no longer knows where it came from: what is computed from it is computed
    /// where it is needed, instead of once ahead of a loop that has no register to keep it in.
    #[inline(always)]
    fn black_box(self, value: u32) -> u32 {
        value
    }

    /// `value`, which is the same in all lanes, and which the compiler now knows to be.
    ///
    /// # Safety
    /// Converged.
    #[inline(always)]
    unsafe fn uniform(self, value: u32) -> u32 {
        value
    }

    // ---- meeting the other lanes -----------------------------------------------------------------

    /// Waits for every thread of the thread block and orders their global and shared accesses.
    ///
    /// # Safety
    /// Every thread of the thread block calls it the same number of times.
    #[track_caller]
    unsafe fn sync_cta(self);
    /// Waits at barrier `barrier`, 0 to 15, until `threads` threads have come to it, those that wait there and those
    /// that only [arrive](Gpu::barrier_arrive). Orders what they did before it ahead of what those that waited do
    /// after it.
    ///
    /// # Safety
    /// Converged; whoever comes names the same number of threads, a multiple of 32, and comes once. Barrier 0 is that
    /// of [`Gpu::sync_cta`] too, which nobody comes to meanwhile.
    #[track_caller]
    unsafe fn barrier_sync(self, barrier: u32, threads: u32);
    /// Comes to a barrier and goes on.
    ///
    /// # Safety
    /// As [`Gpu::barrier_sync`].
    #[track_caller]
    unsafe fn barrier_arrive(self, barrier: u32, threads: u32);
    /// Waits for the lanes of this warp and orders their accesses.
    ///
    /// # Safety
    /// Converged.
    #[track_caller]
    unsafe fn sync_warp(self);
    /// `bits` of the lane whose index differs in `lane_mask`.
    ///
    /// # Safety
    /// Converged, with one `lane_mask < 32` for all.
    #[track_caller]
    unsafe fn shfl_xor(self, bits: u32, lane_mask: u32) -> u32;
    /// `bits` of lane `source`.
    ///
    /// # Safety
    /// Converged, `source < 32`.
    #[track_caller]
    unsafe fn shfl(self, bits: u32, source: u32) -> u32;
    /// Whether any lane of the warp says so.
    ///
    /// # Safety
    /// Converged.
    #[track_caller]
    unsafe fn any(self, says: bool) -> bool;

    // ---- global memory ---------------------------------------------------------------------------

    /// Loads one byte.
    ///
    /// # Safety
    /// In bounds, written before this launch or by a lane ordered before this one.
    #[track_caller]
    unsafe fn ld_global_b8(self, address: u64) -> u8;
    /// Loads 2 bytes.
    ///
    /// # Safety
    /// As [`Gpu::ld_global_b8`], aligned.
    #[track_caller]
    unsafe fn ld_global_b16(self, address: u64) -> u16;
    /// Loads 4 bytes.
    ///
    /// # Safety
    /// As [`Gpu::ld_global_b16`].
    #[track_caller]
    unsafe fn ld_global_b32(self, address: u64) -> u32;
    /// Loads 8 bytes.
    ///
    /// # Safety
    /// As [`Gpu::ld_global_b16`].
    #[track_caller]
    unsafe fn ld_global_b64(self, address: u64) -> u64;
    /// Loads 16 bytes as four little-endian words.
    ///
    /// # Safety
    /// As [`Gpu::ld_global_b16`].
    #[track_caller]
    unsafe fn ld_global_b128(self, address: u64) -> [u32; 4];
    /// Stores one byte.
    ///
    /// # Safety
    /// In bounds, and no other lane touches these bytes unless ordered.
    #[track_caller]
    unsafe fn st_global_b8(self, address: u64, value: u8);
    /// Stores 2 bytes.
    ///
    /// # Safety
    /// As [`Gpu::st_global_b8`], aligned.
    #[track_caller]
    unsafe fn st_global_b16(self, address: u64, value: u16);
    /// Stores 4 bytes.
    ///
    /// # Safety
    /// As [`Gpu::st_global_b16`].
    #[track_caller]
    unsafe fn st_global_b32(self, address: u64, value: u32);
    /// Stores 8 bytes.
    ///
    /// # Safety
    /// As [`Gpu::st_global_b16`].
    #[track_caller]
    unsafe fn st_global_b64(self, address: u64, value: u64);
    /// Stores 16 bytes as four little-endian words.
    ///
    /// # Safety
    /// As [`Gpu::st_global_b16`].
    #[track_caller]
    unsafe fn st_global_b128(self, address: u64, value: [u32; 4]);
    /// Writes `value` if the 4 bytes at `address` equal `expected`; returns what was there. Relaxed, at
    /// the scope of the device.
    ///
    /// # Safety
    /// In bounds, aligned; the word is accessed by atomics alone during the launch.
    #[track_caller]
    unsafe fn atomic_cas_global_b32(self, address: u64, expected: u32, value: u32) -> u32;

    // ---- shared memory ---------------------------------------------------------------------------

    /// Loads 4 bytes.
    ///
    /// # Safety
    /// In bounds, aligned, written before, and no unordered writer.
    #[track_caller]
    unsafe fn ld_shared_b32(self, address: u32) -> u32;
    /// Loads 8 bytes.
    ///
    /// # Safety
    /// As [`Gpu::ld_shared_b32`].
    #[track_caller]
    unsafe fn ld_shared_b64(self, address: u32) -> u64;
    /// Loads 16 bytes.
    ///
    /// # Safety
    /// As [`Gpu::ld_shared_b32`].
    #[track_caller]
    unsafe fn ld_shared_b128(self, address: u32) -> [u32; 4];
    /// Stores 4 bytes.
    ///
    /// # Safety
    /// In bounds, aligned, and no unordered reader or writer.
    #[track_caller]
    unsafe fn st_shared_b32(self, address: u32, value: u32);
    /// Stores 8 bytes.
    ///
    /// # Safety
    /// As [`Gpu::st_shared_b32`].
    #[track_caller]
    unsafe fn st_shared_b64(self, address: u32, value: u64);
    /// Stores 16 bytes.
    ///
    /// # Safety
    /// As [`Gpu::st_shared_b32`].
    #[track_caller]
    unsafe fn st_shared_b128(self, address: u32, value: [u32; 4]);

    // ---- asynchronous copies, global to shared ---------------------------------------------------

    /// Starts copying 16 bytes past the L1; with `valid` false writes 16 zero bytes and reads nothing.
    /// `line`, a constant, says what to do with the line in the L2.
    ///
    /// # Safety
    /// Both addresses in bounds and 16-byte aligned (`source` only if `valid`); nobody touches the target
    /// before the copy was waited for.
    #[track_caller]
    unsafe fn cp_async_b128(self, target: u32, source: u64, valid: bool, line: Line);
    /// Starts copying 4 bytes; with `valid` false writes 4 zero bytes and reads nothing.
    ///
    /// # Safety
    /// As [`Gpu::cp_async_b128`], 4-byte aligned.
    #[track_caller]
    unsafe fn cp_async_b32(self, target: u32, source: u64, valid: bool);
    /// Closes the group of copies that this lane started since the last call (maybe none).
    #[track_caller]
    fn cp_async_commit(self);
    /// Waits until at most `PENDING` of this lane's groups, the youngest ones, are unfinished.
    #[track_caller]
    fn cp_async_wait<const PENDING: u32>(self);

    // ---- matrices --------------------------------------------------------------------------------

    /// Loads four 8x8 matrices of 16-bit values. Lane `8 i + r` names the 16-byte row `r` of matrix `i`;
    /// lane `l` receives, of each matrix, row `l / 4`, columns `2 (l % 4)` and `+ 1` (PTX ISA,
    /// "ldmatrix").
    ///
    /// # Safety
    /// Converged; each address as in [`Gpu::ld_shared_b128`].
    #[track_caller]
    unsafe fn ldmatrix_x4(self, row_address: u32) -> [u32; 4];
    /// The same, each matrix transposed.
    ///
    /// # Safety
    /// As [`Gpu::ldmatrix_x4`].
    #[track_caller]
    unsafe fn ldmatrix_x4_trans(self, row_address: u32) -> [u32; 4];
    /// Transposes an 8x8 matrix of 16-bit values held as one `ldmatrix` fragment.
    ///
    /// # Safety
    /// Converged.
    #[track_caller]
    unsafe fn movmatrix_trans(self, fragment: u32) -> u32;
    /// `acc + a b` with a 16x16 bf16 `a`, a 16x8 bf16 `b` and f32 accumulators, in the fragment layout of
    /// `mma.m16n8k16` (PTX ISA, "Matrix Fragments for mma.m16n8k16").
    ///
    /// # Safety
    /// Converged.
    #[track_caller]
    unsafe fn mma_bf16(self, acc: [f32; 4], a: [u32; 4], b: [u32; 2]) -> [f32; 4];
    /// The same with f16 factors.
    ///
    /// # Safety
    /// Converged.
    #[track_caller]
    unsafe fn mma_f16(self, acc: [f32; 4], a: [u32; 4], b: [u32; 2]) -> [f32; 4];

    // ---- matrices that four warps multiply together -----------------------------------------------

    /// Has `REGISTERS` registers from here on, more than before.
    ///
    /// # Safety
    /// The four warps of the group call it together; others leave it as many.
    #[inline(always)]
    unsafe fn take_registers<const REGISTERS: u32>(self) {}
    /// Has `REGISTERS` registers from here on, fewer than before.
    ///
    /// # Safety
    /// The four warps of the group call it together.
    #[inline(always)]
    unsafe fn leave_registers<const REGISTERS: u32>(self) {}

    /// Lets a warp group's products see what this thread wrote to shared memory, and copied there, once the threads
    /// have met at a barrier.
    #[inline(always)]
    fn fence_warpgroup(self) {}
    /// Begins `queries keysᵀ` of 64 queries and 64 keys of `STEPS * 16` values, which lie as panels (see
    /// [`in_panels`]) side by side. Warp `w` of the group has queries `16 w ..`, as of [`Half::mma`]; of the keys
    /// 16 side by side, twice 8.
    ///
    /// # Safety
    /// The four warps of the group call it together; panels are visible to them, in bounds, and 1,024-byte aligned.
    #[track_caller]
    #[inline(always)]
    unsafe fn group_scores<H: Half, const STEPS: usize>(
        self,
        queries: u32,
        keys: u32,
    ) -> Pending<4> {
        // SAFETY: as the caller promises.
        unsafe { group::scores::<Self, H, STEPS>(self, queries, keys) }
    }
    /// As [`Gpu::group_scores`], of e4m3 values, whose rows of bytes lie in one panel.
    ///
    /// # Safety
    /// As there.
    #[track_caller]
    #[inline(always)]
    unsafe fn group_scores_e4m3<const STEPS: usize>(self, queries: u32, keys: u32) -> Pending<4> {
        // SAFETY: as the caller promises.
        unsafe { group::scores_e4m3::<Self, STEPS>(self, queries, keys) }
    }
    /// Begins `acc + probs values` of 64 rows and 64 tokens, whose `STEPS * 16` values lie as panels side by side. A
    /// warp has rows as in [`Gpu::group_scores`]; its left factors are those of [`Half::mma`], of 16 tokens each.
    ///
    /// # Safety
    /// As [`Gpu::group_scores`].
    #[track_caller]
    #[inline(always)]
    unsafe fn group_values<H: Half, const STEPS: usize>(
        self,
        acc: [[[f32; 4]; 2]; STEPS],
        probs: [[u32; 4]; 4],
        values: u32,
    ) -> Pending<STEPS> {
        // SAFETY: as the caller promises.
        unsafe { group::values::<Self, H, STEPS>(self, acc, probs, values) }
    }

    /// What a warp group's products gave, once all but the `YOUNGER` youngest ones that it began are complete.
    ///
    /// # Safety
    /// As [`Gpu::group_scores`]; `pending` is not younger than that.
    #[inline(always)]
    unsafe fn group_wait<const STEPS: usize, const YOUNGER: u32>(
        self,
        Pending(acc): Pending<STEPS>,
    ) -> [[[f32; 4]; 2]; STEPS] {
        acc
    }

    // ---- numbers ---------------------------------------------------------------------------------

    /// `a * b + c`, rounded once.
    fn fma(self, a: f32, b: f32, c: f32) -> f32;
    /// `a * b`, rounded towards minus infinity.
    fn mul_down(self, a: f32, b: f32) -> f32;
    /// The larger; the other one if one is NaN.
    fn max(self, a: f32, b: f32) -> f32;
    /// The smaller; NaN if one is NaN.
    fn min_or_nan(self, a: f32, b: f32) -> f32;
    /// `2^x`, relative error below 2^-22, subnormal results flushed to zero; `exp2(-inf)` is 0.
    fn exp2(self, x: f32) -> f32;
    /// Base-2 logarithm, absolute error below 2^-22 on (0.5, 2), relative 2^-22 elsewhere.
    fn log2(self, x: f32) -> f32;
    /// `1 / x`, relative error below 2^-23.
    fn recip(self, x: f32) -> f32;
    /// Two f32 rounded to nearest even bf16, `low` in bits 0..16.
    fn pack_bf16(self, low: f32, high: f32) -> u32;
    /// Two f32 rounded to nearest even f16, `low` in bits 0..16.
    fn pack_f16(self, low: f32, high: f32) -> u32;
    /// The f16 in bits 0..16, widened.
    fn widen_f16(self, bits: u16) -> f32;
    /// Two f32 rounded to nearest even e4m3, `low` in bits 0..8; beyond ±448 they become ±448, NaN 0x7f.
    fn pack_e4m3(self, low: f32, high: f32) -> u16;
    /// Two f32 rounded to nearest even e5m2, `low` in bits 0..8; beyond ±57344 they become ±57344, NaN 0x7f.
    fn pack_e5m2(self, low: f32, high: f32) -> u16;
    /// Four e4m3 as f16, exactly: bytes 0 and 1, then bytes 2 and 3. NaN stays NaN.
    fn widen_e4m3x4(self, word: u32) -> [u32; 2];
    /// Four signed bytes as f16, exactly: bytes 0 and 1, then bytes 2 and 3.
    fn widen_i8x4(self, word: u32) -> [u32; 2];
    /// Picks four of the eight bytes of `low` (0..=3) and `high` (4..=7): nibble `i` of `selector` says
    /// which becomes byte `i` (PTX `prmt`).
    fn permute_bytes(self, low: u32, high: u32, selector: u32) -> u32;

    // ---- overlap with the kernels before and after -----------------------------------------------

    /// Waits until the kernels this one depends on have finished and their writes are visible. A no-op
    /// where launches never overlap. Every thread calls it before it reads what those kernels wrote.
    fn wait_for_previous_kernels(self);
    /// Lets the next kernel of the stream be launched early, up to its own wait.
    fn let_next_kernel_start(self);
}
