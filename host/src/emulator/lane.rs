//! [`Gpu`] for one lane: every operation notes the line of the kernel it comes from, then does its work or
//! waits for other lanes in [`LaneState`].

use std::panic::Location;

use gpu_kernels::gpu::{Gpu, Line, Matrices, Memory, Numbers, Threads, WarpGroup, fp8};
use half::{bf16, f16};

use super::memory::Access;
use super::shared::SHARED_BASE;
use super::state::{LaneState, Request};
use super::warp::{Factors, WarpOp};

/// One lane of an emulated thread block.
#[derive(Clone, Copy)]
pub struct Lane<'a>(pub(super) &'a LaneState<'a>);

/// Notes where in the kernel the lane is.
macro_rules! here {
    ($lane:ident) => {
        $lane.0.begin(Location::caller())
    };
}

// SAFETY: each method keeps the contract or stops the lane with a fault.
unsafe impl Threads for Lane<'_> {
    #[inline]
    fn thread_idx(self) -> u32 {
        self.0.thread()
    }
    #[inline]
    fn cta_idx_x(self) -> u32 {
        self.0.cta().block[0]
    }
    #[inline]
    fn cta_idx_y(self) -> u32 {
        self.0.cta().block[1]
    }
    #[inline]
    fn cta_idx_z(self) -> u32 {
        self.0.cta().block[2]
    }
    #[inline]
    fn grid_dim_x(self) -> u32 {
        self.0.cta().spec.grid[0]
    }
    #[inline]
    fn shared_base(self) -> u32 {
        SHARED_BASE
    }

    #[track_caller]
    unsafe fn sync_cta(self) {
        here!(self);
        self.0.wait(Request::Cta);
    }
    #[track_caller]
    unsafe fn barrier_sync(self, barrier: u32, threads: u32) {
        here!(self);
        self.0.come(barrier, threads, true);
    }
    #[track_caller]
    unsafe fn barrier_arrive(self, barrier: u32, threads: u32) {
        here!(self);
        self.0.come(barrier, threads, false);
    }
    #[track_caller]
    unsafe fn sync_warp(self) {
        here!(self);
        self.0.meet(WarpOp::Sync);
    }
    #[track_caller]
    unsafe fn shfl_xor(self, bits: u32, lane_mask: u32) -> u32 {
        here!(self);
        self.0.check_lane("lane_mask", lane_mask);
        self.0.meet(WarpOp::ShflXor { bits, lane_mask })[0]
    }
    #[track_caller]
    unsafe fn shfl(self, bits: u32, source: u32) -> u32 {
        here!(self);
        self.0.check_lane("source", source);
        self.0.meet(WarpOp::Shfl { bits, source })[0]
    }
    #[track_caller]
    unsafe fn any(self, says: bool) -> bool {
        here!(self);
        self.0.meet(WarpOp::Any(says))[0] != 0
    }
}

// SAFETY: each method keeps the contract or stops the lane with a fault.
unsafe impl Memory for Lane<'_> {
    #[track_caller]
    unsafe fn ld_global_b8(self, address: u64) -> u8 {
        here!(self);
        self.0.global(address, 1, Access::Read).load_part() as u8
    }
    #[track_caller]
    unsafe fn ld_global_b16(self, address: u64) -> u16 {
        here!(self);
        self.0.global(address, 2, Access::Read).load_part() as u16
    }
    #[track_caller]
    unsafe fn ld_global_b32(self, address: u64) -> u32 {
        here!(self);
        self.0.global(address, 4, Access::Read).load_part()
    }
    #[track_caller]
    unsafe fn ld_global_b64(self, address: u64) -> u64 {
        here!(self);
        let [low, high] = self.0.global(address, 8, Access::Read).load();
        u64::from(low) | u64::from(high) << 32
    }
    #[track_caller]
    unsafe fn ld_global_b128(self, address: u64) -> [u32; 4] {
        here!(self);
        self.0.global(address, 16, Access::Read).load()
    }
    #[track_caller]
    unsafe fn st_global_b8(self, address: u64, value: u8) {
        here!(self);
        let place = self.0.global(address, 1, Access::Write);
        place.store_part(u32::from(value), 1);
    }
    #[track_caller]
    unsafe fn st_global_b16(self, address: u64, value: u16) {
        here!(self);
        let place = self.0.global(address, 2, Access::Write);
        place.store_part(u32::from(value), 2);
    }
    #[track_caller]
    unsafe fn st_global_b32(self, address: u64, value: u32) {
        here!(self);
        self.0.global(address, 4, Access::Write).store([value]);
    }
    #[track_caller]
    unsafe fn st_global_b64(self, address: u64, value: u64) {
        here!(self);
        let place = self.0.global(address, 8, Access::Write);
        place.store([value as u32, (value >> 32) as u32]);
    }
    #[track_caller]
    unsafe fn st_global_b128(self, address: u64, value: [u32; 4]) {
        here!(self);
        self.0.global(address, 16, Access::Write).store(value);
    }
    #[track_caller]
    unsafe fn atomic_cas_global_b32(self, address: u64, expected: u32, value: u32) -> u32 {
        here!(self);
        self.0.compare_and_swap(address, expected, value)
    }

    #[track_caller]
    unsafe fn ld_shared_b32(self, address: u32) -> u32 {
        here!(self);
        let [value] = self.0.load_shared(address);
        value
    }
    #[track_caller]
    unsafe fn ld_shared_b64(self, address: u32) -> u64 {
        here!(self);
        let [low, high] = self.0.load_shared(address);
        u64::from(low) | u64::from(high) << 32
    }
    #[track_caller]
    unsafe fn ld_shared_b128(self, address: u32) -> [u32; 4] {
        here!(self);
        self.0.load_shared(address)
    }
    #[track_caller]
    unsafe fn st_shared_b32(self, address: u32, value: u32) {
        here!(self);
        self.0.store_shared(address, [value]);
    }
    #[track_caller]
    unsafe fn st_shared_b64(self, address: u32, value: u64) {
        here!(self);
        #[allow(clippy::cast_possible_truncation, reason = "each word by itself")]
        let words = [value as u32, (value >> 32) as u32];
        self.0.store_shared(address, words);
    }
    #[track_caller]
    unsafe fn st_shared_b128(self, address: u32, value: [u32; 4]) {
        here!(self);
        self.0.store_shared(address, value);
    }

    #[track_caller]
    unsafe fn cp_async_b128(self, target: u32, source: u64, valid: bool, _line: Line) {
        here!(self);
        self.0.begin_copy::<4>(target, valid.then_some(source));
    }
    #[track_caller]
    unsafe fn cp_async_b32(self, target: u32, source: u64, valid: bool) {
        here!(self);
        self.0.begin_copy::<1>(target, valid.then_some(source));
    }
    #[track_caller]
    fn cp_async_commit(self) {
        here!(self);
        self.0.commit_copies();
    }
    #[track_caller]
    fn cp_async_wait<const PENDING: u32>(self) {
        here!(self);
        self.0.wait_for_copies(PENDING);
    }
}

// SAFETY: each method keeps the contract or stops the lane with a fault.
unsafe impl Matrices for Lane<'_> {
    #[track_caller]
    unsafe fn ldmatrix_x4(self, row_address: u32) -> [u32; 4] {
        here!(self);
        self.0.load_matrices(row_address, false)
    }
    #[track_caller]
    unsafe fn ldmatrix_x4_trans(self, row_address: u32) -> [u32; 4] {
        here!(self);
        self.0.load_matrices(row_address, true)
    }
    #[track_caller]
    unsafe fn movmatrix_trans(self, fragment: u32) -> u32 {
        here!(self);
        self.0.meet(WarpOp::MovMatrix(fragment))[0]
    }
    #[track_caller]
    unsafe fn mma_bf16(self, acc: [f32; 4], a: [u32; 4], b: [u32; 2]) -> [f32; 4] {
        here!(self);
        self.0.multiply(Factors::Bf16, acc, a, b)
    }
    #[track_caller]
    unsafe fn mma_f16(self, acc: [f32; 4], a: [u32; 4], b: [u32; 2]) -> [f32; 4] {
        here!(self);
        self.0.multiply(Factors::F16, acc, a, b)
    }
}

// SAFETY: products of a group are those of its warps.
unsafe impl WarpGroup for Lane<'_> {}

// SAFETY: each method keeps the contract or stops the lane with a fault.
unsafe impl Numbers for Lane<'_> {
    #[inline]
    fn fma(self, a: f32, b: f32, c: f32) -> f32 {
        a.mul_add(b, c)
    }
    #[inline]
    fn max(self, a: f32, b: f32) -> f32 {
        a.max(b)
    }
    fn mul_down(self, a: f32, b: f32) -> f32 {
        // Exact: 24 bits times 24.
        let product = f64::from(a) * f64::from(b);
        #[allow(
            clippy::cast_possible_truncation,
            reason = "rounded, and then put right"
        )]
        let nearest = product as f32;
        if f64::from(nearest) > product {
            nearest.next_down()
        } else {
            nearest
        }
    }
    #[inline]
    fn min_or_nan(self, a: f32, b: f32) -> f32 {
        if a.is_nan() || b.is_nan() {
            f32::NAN
        } else {
            a.min(b)
        }
    }
    fn exp2(self, x: f32) -> f32 {
        flush(x.exp2())
    }
    fn log2(self, x: f32) -> f32 {
        x.log2()
    }
    #[inline]
    fn recip(self, x: f32) -> f32 {
        flush(1.0 / flush(x))
    }
    #[inline]
    fn pack_bf16(self, low: f32, high: f32) -> u32 {
        let [low, high] = [low, high].map(|x| u32::from(bf16::from_f32(x).to_bits()));
        low | high << 16
    }
    #[inline]
    fn pack_f16(self, low: f32, high: f32) -> u32 {
        let [low, high] = [low, high].map(|x| u32::from(f16::from_f32(x).to_bits()));
        low | high << 16
    }
    #[inline]
    fn widen_f16(self, bits: u16) -> f32 {
        f16::from_bits(bits).to_f32()
    }
    fn mul_f16x2(self, a: u32, b: u32) -> u32 {
        let half = |word: u32, shift: u32| f16::from_bits((word >> shift) as u16).to_f32();
        // A product of two f16 is an f32.
        let [low, high] = [0, 16].map(|shift| half(a, shift) * half(b, shift));
        self.pack_f16(low, high)
    }
    fn widen_e4m3x4(self, word: u32) -> [u32; 2] {
        let [a, b, c, d] = word
            .to_le_bytes()
            .map(|byte| u32::from(f16::from_f32(e4m3_to_f32(byte)).to_bits()));
        [a | b << 16, c | d << 16]
    }

    fn widen_i8x4(self, word: u32) -> [u32; 2] {
        let [a, b, c, d] = word
            .to_le_bytes()
            .map(|byte| u32::from(f16::from_f32(f32::from(byte.cast_signed())).to_bits()));
        [a | b << 16, c | d << 16]
    }
    fn permute_bytes(self, low: u32, high: u32, selector: u32) -> u32 {
        let bytes = (u64::from(low) | u64::from(high) << 32).to_le_bytes();
        u32::from_le_bytes([0, 4, 8, 12].map(|shift| bytes[(selector >> shift & 7) as usize]))
    }

    #[inline]
    fn pack_e4m3(self, low: f32, high: f32) -> u16 {
        u16::from_le_bytes([low, high].map(fp8::to_e4m3))
    }
    #[inline]
    fn pack_e5m2(self, low: f32, high: f32) -> u16 {
        u16::from_le_bytes([low, high].map(fp8::to_e5m2))
    }
}

// SAFETY: each method keeps the contract or stops the lane with a fault.
unsafe impl Gpu for Lane<'_> {
    /// Launches run one after the other, so there is nothing to wait for.
    fn wait_for_previous_kernels(self) {}
    /// Launches run one after the other, so there is nobody to let start.
    fn let_next_kernel_start(self) {}
}

/// Subnormals become zeros of their sign, as in the `.ftz` instructions.
#[inline]
fn flush(x: f32) -> f32 {
    if x.is_subnormal() {
        return 0.0f32.copysign(x);
    }
    x
}

/// The value of an e4m3 (OCP e4m3fn): bias 7, no infinity, NaN where all seven bits are set.
fn e4m3_to_f32(byte: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(byte >> 3 & 15), f32::from(byte & 7));
    let magnitude = match (exponent, byte & 7) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa / 8.0 * 2f32.powi(-6),
        _ => (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7),
    };
    if byte & 0x80 != 0 {
        -magnitude
    } else {
        magnitude
    }
}
