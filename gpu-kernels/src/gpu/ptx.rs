//! [`Gpu`] for PTX: inline assembly that both compilers accept.
//!
//! Loads go through `asm!` rather than through pointers, because the two compilers infer address spaces
//! and vector widths differently; PTX written here is the same on both.

use core::arch::asm;

#[cfg(any(target_feature = "sm_90a", target_feature = "compute_90a"))]
use crate::dtype::Half;
use crate::gpu::{Gpu, Line, fp8};
#[cfg(any(target_feature = "sm_90a", target_feature = "compute_90a"))]
use crate::gpu::{Pending, wgmma};

/// A lane of a real GPU.
#[derive(Clone, Copy, Debug)]
pub struct PtxLane;

/// Stops the grid with an error.
pub(crate) fn trap() -> ! {
    loop {
        // SAFETY: `trap` ends the thread.
        unsafe { asm!("trap;", options(nostack)) };
    }
}

#[cfg(not(any(target_feature = "sm_90a", target_feature = "compute_90a")))]
core::arch::global_asm!(".extern .shared .align 128 .b8 ferroattn_shared[];");
#[cfg(any(target_feature = "sm_90a", target_feature = "compute_90a"))]
core::arch::global_asm!(".extern .shared .align 1024 .b8 ferroattn_shared[];");

macro_rules! special_register {
    ($($method:ident = $register:literal;)*) => {$(
        #[inline(always)]
        fn $method(self) -> u32 {
            let value: u32;
            // SAFETY: reads a special register.
            unsafe { asm!(concat!("mov.u32 {0}, ", $register, ";"), out(reg32) value, options(pure, nomem, nostack)) };
            value
        }
    )*};
}

macro_rules! load {
    ($method:ident, $address:ty, $aclass:ident, $value:ty, $class:ident, $instruction:literal) => {
        #[inline(always)]
        unsafe fn $method(self, address: $address) -> $value {
            let value;
            // SAFETY: the caller promises an aligned address in bounds.
            unsafe {
                asm!(
                    concat!($instruction, " {0}, [{1}];"),
                    out($class) value, in($aclass) address,
                    options(readonly, nostack)
                )
            };
            value
        }
    };
}

macro_rules! four_words {
    ($method:ident, $address:ty, $class:ident, $instruction:literal) => {
        #[inline(always)]
        unsafe fn $method(self, address: $address) -> [u32; 4] {
            let (a, b, c, d);
            // SAFETY: the caller promises an aligned address in bounds (and convergence where required).
            unsafe {
                asm!(
                    concat!($instruction, " {{{0}, {1}, {2}, {3}}}, [{4}];"),
                    out(reg32) a, out(reg32) b, out(reg32) c, out(reg32) d, in($class) address,
                    options(readonly, nostack)
                )
            };
            [a, b, c, d]
        }
    };
}

macro_rules! store {
    ($method:ident, $address:ty, $aclass:ident, $value:ty, $class:ident, $instruction:literal) => {
        #[inline(always)]
        unsafe fn $method(self, address: $address, value: $value) {
            // SAFETY: the caller promises an aligned address in bounds that nobody else touches.
            unsafe { asm!(concat!($instruction, " [{0}], {1};"), in($aclass) address, in($class) value, options(nostack)) };
        }
    };
}

macro_rules! store_four_words {
    ($method:ident, $address:ty, $class:ident, $instruction:literal) => {
        #[inline(always)]
        unsafe fn $method(self, address: $address, value: [u32; 4]) {
            let [a, b, c, d] = value;
            // SAFETY: the caller promises an aligned address in bounds that nobody else touches.
            unsafe {
                asm!(
                    concat!($instruction, " [{0}], {{{1}, {2}, {3}, {4}}};"),
                    in($class) address, in(reg32) a, in(reg32) b, in(reg32) c, in(reg32) d,
                    options(nostack)
                )
            };
        }
    };
}

macro_rules! mma {
    ($method:ident, $instruction:literal) => {
        #[inline(always)]
        unsafe fn $method(self, acc: [f32; 4], a: [u32; 4], b: [u32; 2]) -> [f32; 4] {
            let [mut c0, mut c1, mut c2, mut c3] = acc;
            // SAFETY: the caller promises convergence; registers only.
            unsafe {
                asm!(
                    concat!($instruction, " {{{0}, {1}, {2}, {3}}}, {{{4}, {5}, {6}, {7}}}, {{{8}, {9}}}, {{{0}, {1}, {2}, {3}}};"),
                    inout(reg32) c0, inout(reg32) c1, inout(reg32) c2, inout(reg32) c3,
                    in(reg32) a[0], in(reg32) a[1], in(reg32) a[2], in(reg32) a[3],
                    in(reg32) b[0], in(reg32) b[1],
                    // Not `pure`: that would let it sink into a branch that not all lanes take.
                    options(nomem, nostack)
                )
            };
            [c0, c1, c2, c3]
        }
    };
}

macro_rules! unary_f32 {
    ($method:ident, $instruction:literal) => {
        #[inline(always)]
        fn $method(self, x: f32) -> f32 {
            let y: f32;
            // SAFETY: registers only.
            unsafe { asm!(concat!($instruction, " {0}, {1};"), out(reg32) y, in(reg32) x, options(pure, nomem, nostack)) };
            y
        }
    };
}

macro_rules! pack {
    ($method:ident, $instruction:literal) => {
        #[inline(always)]
        fn $method(self, low: f32, high: f32) -> u32 {
            let packed: u32;
            // The first source of the PTX instruction is the upper half.
            // SAFETY: registers only.
            unsafe {
                asm!(concat!($instruction, " {0}, {1}, {2};"), out(reg32) packed, in(reg32) high, in(reg32) low, options(pure, nomem, nostack))
            };
            packed
        }
    };
}

/// Whether the architecture converts FP8 by instruction; those after sm_89 have its features too.
const HAS_FP8: bool = cfg!(any(target_feature = "sm_89", target_feature = "compute_89"));

macro_rules! pack_fp8 {
    ($method:ident, $instruction:literal, $software:path) => {
        #[inline(always)]
        fn $method(self, low: f32, high: f32) -> u16 {
            if !HAS_FP8 {
                return $software(low) as u16 | ($software(high) as u16) << 8;
            }
            let packed: u16;
            // The first source of the PTX instruction is the upper half.
            // SAFETY: registers only.
            unsafe {
                asm!(concat!($instruction, " {0}, {1}, {2};"), out(reg16) packed, in(reg32) high, in(reg32) low, options(pure, nomem, nostack))
            };
            packed
        }
    };
}

// SAFETY: each method is the PTX instruction whose semantics the contract restates.
unsafe impl Gpu for PtxLane {
    special_register! {
        thread_idx = "%tid.x";
        cta_idx_x = "%ctaid.x";
        cta_idx_y = "%ctaid.y";
        cta_idx_z = "%ctaid.z";
        grid_dim_x = "%nctaid.x";
        shared_base = "ferroattn_shared";
    }

    #[inline(always)]
    fn black_box(self, mut value: u32) -> u32 {
        // SAFETY: does nothing; not `pure`, so that it stays where it is.
        unsafe { asm!("// {0}", inout(reg32) value, options(nomem, nostack, preserves_flags)) };
        value
    }
    #[inline(always)]
    unsafe fn sync_cta(self) {
        // SAFETY: all threads of the thread block come here, as the caller promises.
        unsafe { asm!("bar.sync 0;", options(nostack)) };
    }
    #[inline(always)]
    unsafe fn barrier_sync(self, barrier: u32, threads: u32) {
        // SAFETY: that many come there, as the caller promises.
        unsafe {
            asm!("bar.sync {0}, {1};", in(reg32) barrier, in(reg32) threads, options(nostack))
        };
    }
    #[inline(always)]
    unsafe fn barrier_arrive(self, barrier: u32, threads: u32) {
        // SAFETY: that many come there, as the caller promises.
        unsafe {
            asm!("bar.arrive {0}, {1};", in(reg32) barrier, in(reg32) threads, options(nostack))
        };
    }
    #[inline(always)]
    unsafe fn sync_warp(self) {
        // SAFETY: converged, as the caller promises.
        unsafe { asm!("bar.warp.sync 0xffffffff;", options(nostack)) };
    }
    #[inline(always)]
    unsafe fn shfl_xor(self, bits: u32, lane_mask: u32) -> u32 {
        let value: u32;
        // SAFETY: converged, as the caller promises.
        unsafe {
            asm!("shfl.sync.bfly.b32 {0}, {1}, {2}, 0x1f, 0xffffffff;", out(reg32) value, in(reg32) bits, in(reg32) lane_mask, options(nomem, nostack))
        };
        value
    }
    #[inline(always)]
    unsafe fn shfl(self, bits: u32, source: u32) -> u32 {
        let value: u32;
        // SAFETY: converged, as the caller promises.
        unsafe {
            asm!("shfl.sync.idx.b32 {0}, {1}, {2}, 0x1f, 0xffffffff;", out(reg32) value, in(reg32) bits, in(reg32) source, options(nomem, nostack))
        };
        value
    }
    #[inline(always)]
    unsafe fn any(self, says: bool) -> bool {
        let value: u32;
        // SAFETY: converged, as the caller promises.
        unsafe {
            asm!(
                "{{ .reg .pred p, q; setp.ne.u32 p, {1}, 0; vote.sync.any.pred q, p, 0xffffffff; selp.u32 {0}, 1, 0, q; }}",
                out(reg32) value, in(reg32) says as u32, options(nomem, nostack)
            )
        };
        value != 0
    }

    #[inline(always)]
    unsafe fn ld_global_b8(self, address: u64) -> u8 {
        let value: u16;
        // SAFETY: in bounds, as the caller promises.
        unsafe {
            asm!("ld.global.u8 {0}, [{1}];", out(reg16) value, in(reg64) address, options(readonly, nostack))
        };
        value as u8
    }
    load!(ld_global_b16, u64, reg64, u16, reg16, "ld.global.u16");
    load!(ld_global_b32, u64, reg64, u32, reg32, "ld.global.b32");
    load!(ld_global_b64, u64, reg64, u64, reg64, "ld.global.b64");
    four_words!(ld_global_b128, u64, reg64, "ld.global.v4.b32");
    #[inline(always)]
    unsafe fn st_global_b8(self, address: u64, value: u8) {
        // SAFETY: in bounds and nobody else's, as the caller promises.
        unsafe {
            asm!("st.global.u8 [{0}], {1};", in(reg64) address, in(reg16) value as u16, options(nostack))
        };
    }
    store!(st_global_b16, u64, reg64, u16, reg16, "st.global.u16");
    store!(st_global_b32, u64, reg64, u32, reg32, "st.global.b32");
    store!(st_global_b64, u64, reg64, u64, reg64, "st.global.b64");
    store_four_words!(st_global_b128, u64, reg64, "st.global.v4.b32");
    #[inline(always)]
    unsafe fn atomic_cas_global_b32(self, address: u64, expected: u32, value: u32) -> u32 {
        let old: u32;
        // SAFETY: in bounds and touched by atomics alone, as the caller promises.
        unsafe {
            asm!("atom.relaxed.gpu.global.cas.b32 {0}, [{1}], {2}, {3};", out(reg32) old, in(reg64) address, in(reg32) expected, in(reg32) value, options(nostack))
        };
        old
    }

    load!(ld_shared_b32, u32, reg32, u32, reg32, "ld.shared.b32");
    load!(ld_shared_b64, u32, reg32, u64, reg64, "ld.shared.b64");
    four_words!(ld_shared_b128, u32, reg32, "ld.shared.v4.b32");
    store!(st_shared_b32, u32, reg32, u32, reg32, "st.shared.b32");
    store!(st_shared_b64, u32, reg32, u64, reg64, "st.shared.b64");
    store_four_words!(st_shared_b128, u32, reg32, "st.shared.v4.b32");

    #[inline(always)]
    unsafe fn cp_async_b128(self, target: u32, source: u64, valid: bool, line: Line) {
        let source_bytes = if valid { 16u32 } else { 0 };
        if line.stays {
            // SAFETY: both in bounds, as the caller promises; with a source size of 0 nothing is read.
            unsafe {
                if line.is_whole {
                    asm!(
                        "cp.async.cg.shared.global.L2::128B [{0}], [{1}], 16, {2};",
                        in(reg32) target, in(reg64) source, in(reg32) source_bytes,
                        options(nostack)
                    )
                } else {
                    asm!(
                        "cp.async.cg.shared.global [{0}], [{1}], 16, {2};",
                        in(reg32) target, in(reg64) source, in(reg32) source_bytes,
                        options(nostack)
                    )
                }
            };
            return;
        }
        let policy: u64;
        // SAFETY: registers only. Pure, so that it is made once per kernel.
        unsafe {
            asm!("createpolicy.fractional.L2::evict_first.b64 {0}, 1.0;", out(reg64) policy, options(pure, nomem, nostack))
        };
        // Never `.L2::256B`: on an H200 that cost 7 % of the bandwidth.
        // SAFETY: both in bounds, as the caller promises; with a source size of 0 nothing is read.
        unsafe {
            if line.is_whole {
                asm!(
                    "cp.async.cg.shared.global.L2::cache_hint.L2::128B [{0}], [{1}], 16, {2}, {3};",
                    in(reg32) target, in(reg64) source, in(reg32) source_bytes, in(reg64) policy,
                    options(nostack)
                )
            } else {
                asm!(
                    "cp.async.cg.shared.global.L2::cache_hint [{0}], [{1}], 16, {2}, {3};",
                    in(reg32) target, in(reg64) source, in(reg32) source_bytes, in(reg64) policy,
                    options(nostack)
                )
            }
        };
    }
    #[inline(always)]
    unsafe fn cp_async_b32(self, target: u32, source: u64, valid: bool) {
        let source_bytes = if valid { 4u32 } else { 0 };
        // SAFETY: both in bounds, as the caller promises; with a source size of 0 nothing is read.
        unsafe {
            asm!(
                "cp.async.ca.shared.global [{0}], [{1}], 4, {2};",
                in(reg32) target, in(reg64) source, in(reg32) source_bytes,
                options(nostack)
            )
        };
    }
    #[inline(always)]
    fn cp_async_commit(self) {
        // SAFETY: touches no memory by itself.
        unsafe { asm!("cp.async.commit_group;", options(nostack)) };
    }
    #[inline(always)]
    fn cp_async_wait<const PENDING: u32>(self) {
        // SAFETY: waits.
        unsafe { asm!("cp.async.wait_group {0};", const PENDING, options(nostack)) };
    }

    four_words!(
        ldmatrix_x4,
        u32,
        reg32,
        "ldmatrix.sync.aligned.m8n8.x4.shared.b16"
    );
    four_words!(
        ldmatrix_x4_trans,
        u32,
        reg32,
        "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16"
    );
    #[inline(always)]
    unsafe fn movmatrix_trans(self, fragment: u32) -> u32 {
        let value: u32;
        // SAFETY: converged, as the caller promises.
        unsafe {
            asm!("movmatrix.sync.aligned.m8n8.trans.b16 {0}, {1};", out(reg32) value, in(reg32) fragment, options(nomem, nostack))
        };
        value
    }
    mma!(
        mma_bf16,
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32"
    );
    mma!(mma_f16, "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32");

    #[cfg(any(target_feature = "sm_90a", target_feature = "compute_90a"))]
    #[inline(always)]
    unsafe fn uniform(self, value: u32) -> u32 {
        // SAFETY: converged, as the caller promises.
        unsafe { self.shfl(value, 0) }
    }
    #[cfg(any(target_feature = "sm_90a", target_feature = "compute_90a"))]
    #[inline(always)]
    unsafe fn take_registers<const REGISTERS: u32>(self) {
        // SAFETY: the four warps come here, as the caller promises.
        unsafe { asm!("setmaxnreg.inc.sync.aligned.u32 {0};", const REGISTERS, options(nostack)) };
    }
    #[cfg(any(target_feature = "sm_90a", target_feature = "compute_90a"))]
    #[inline(always)]
    unsafe fn leave_registers<const REGISTERS: u32>(self) {
        // SAFETY: the four warps come here, as the caller promises.
        unsafe { asm!("setmaxnreg.dec.sync.aligned.u32 {0};", const REGISTERS, options(nostack)) };
    }
    #[cfg(any(target_feature = "sm_90a", target_feature = "compute_90a"))]
    #[inline(always)]
    fn fence_warpgroup(self) {
        // SAFETY: orders.
        unsafe { asm!("fence.proxy.async.shared::cta;", options(nostack)) };
    }
    #[cfg(any(target_feature = "sm_90a", target_feature = "compute_90a"))]
    #[inline(always)]
    unsafe fn group_scores<H: Half, const STEPS: usize>(
        self,
        queries: u32,
        keys: u32,
    ) -> Pending<4> {
        // SAFETY: as the caller promises.
        Pending(unsafe { wgmma::scores::<H, STEPS>(queries, keys) })
    }
    #[cfg(any(target_feature = "sm_90a", target_feature = "compute_90a"))]
    #[inline(always)]
    unsafe fn group_scores_e4m3<const STEPS: usize>(self, queries: u32, keys: u32) -> Pending<4> {
        // SAFETY: as the caller promises.
        Pending(unsafe { wgmma::scores_of_bytes::<STEPS>(queries, keys) })
    }
    #[cfg(any(target_feature = "sm_90a", target_feature = "compute_90a"))]
    #[inline(always)]
    unsafe fn group_values<H: Half, const STEPS: usize>(
        self,
        acc: [[[f32; 4]; 2]; STEPS],
        probs: [[u32; 4]; 4],
        values: u32,
    ) -> Pending<STEPS> {
        // SAFETY: as the caller promises.
        Pending(unsafe { wgmma::values::<H, STEPS>(acc, probs, values) })
    }
    #[cfg(any(target_feature = "sm_90a", target_feature = "compute_90a"))]
    #[inline(always)]
    unsafe fn group_wait<const STEPS: usize, const YOUNGER: u32>(
        self,
        Pending(acc): Pending<STEPS>,
    ) -> [[[f32; 4]; 2]; STEPS] {
        // SAFETY: as the caller promises.
        unsafe { wgmma::wait::<STEPS, YOUNGER>(acc) }
    }

    #[inline(always)]
    fn fma(self, a: f32, b: f32, c: f32) -> f32 {
        let value: f32;
        // SAFETY: registers only.
        unsafe {
            asm!("fma.rn.f32 {0}, {1}, {2}, {3};", out(reg32) value, in(reg32) a, in(reg32) b, in(reg32) c, options(pure, nomem, nostack))
        };
        value
    }
    #[inline(always)]
    fn max(self, a: f32, b: f32) -> f32 {
        let value: f32;
        // SAFETY: registers only.
        unsafe {
            asm!("max.f32 {0}, {1}, {2};", out(reg32) value, in(reg32) a, in(reg32) b, options(pure, nomem, nostack))
        };
        value
    }
    #[inline(always)]
    fn mul_down(self, a: f32, b: f32) -> f32 {
        let value: f32;
        // SAFETY: registers only.
        unsafe {
            asm!("mul.rm.f32 {0}, {1}, {2};", out(reg32) value, in(reg32) a, in(reg32) b, options(pure, nomem, nostack))
        };
        value
    }
    #[inline(always)]
    fn min_or_nan(self, a: f32, b: f32) -> f32 {
        let value: f32;
        // SAFETY: registers only.
        unsafe {
            asm!("min.NaN.f32 {0}, {1}, {2};", out(reg32) value, in(reg32) a, in(reg32) b, options(pure, nomem, nostack))
        };
        value
    }
    unary_f32!(exp2, "ex2.approx.ftz.f32");
    unary_f32!(log2, "lg2.approx.f32");
    unary_f32!(recip, "rcp.approx.ftz.f32");
    pack!(pack_bf16, "cvt.rn.bf16x2.f32");
    pack!(pack_f16, "cvt.rn.f16x2.f32");
    #[inline(always)]
    fn widen_f16(self, bits: u16) -> f32 {
        let value: f32;
        // SAFETY: registers only.
        unsafe {
            asm!("cvt.f32.f16 {0}, {1};", out(reg32) value, in(reg16) bits, options(pure, nomem, nostack))
        };
        value
    }

    pack_fp8!(pack_e4m3, "cvt.rn.satfinite.e4m3x2.f32", fp8::to_e4m3);
    pack_fp8!(pack_e5m2, "cvt.rn.satfinite.e5m2x2.f32", fp8::to_e5m2);
    #[inline(always)]
    fn widen_e4m3x4(self, word: u32) -> [u32; 2] {
        widen_e4m3x4(self, word)
    }
    #[inline(always)]
    fn widen_i8x4(self, word: u32) -> [u32; 2] {
        // 0x6400 + u is the f16 1024 + u; with the sign bit flipped, u is the value plus 128.
        let flipped = word ^ 0x8080_8080;
        let widen = |selector| {
            let biased = self.permute_bytes(flipped, 0x6464_6464, selector);
            let value: u32;
            // SAFETY: registers only; the difference is exact.
            unsafe {
                asm!("sub.rn.f16x2 {0}, {1}, {2};", out(reg32) value, in(reg32) biased, in(reg32) 0x6480_6480u32, options(pure, nomem, nostack))
            };
            value
        };
        [widen(0x4140), widen(0x4342)]
    }
    #[inline(always)]
    fn permute_bytes(self, low: u32, high: u32, selector: u32) -> u32 {
        let value: u32;
        // SAFETY: registers only.
        unsafe {
            asm!(
                "prmt.b32 {0}, {1}, {2}, {3};",
                out(reg32) value, in(reg32) low, in(reg32) high, in(reg32) selector,
                options(pure, nomem, nostack)
            )
        };
        value
    }

    #[inline(always)]
    fn wait_for_previous_kernels(self) {
        // SAFETY: waits.
        #[cfg(any(target_feature = "sm_90", target_feature = "compute_90"))]
        unsafe {
            asm!("griddepcontrol.wait;", options(nostack))
        };
    }
    #[inline(always)]
    fn let_next_kernel_start(self) {
        // SAFETY: gives a hint to the scheduler.
        #[cfg(any(target_feature = "sm_90", target_feature = "compute_90"))]
        unsafe {
            asm!("griddepcontrol.launch_dependents;", options(nostack))
        };
    }
}

/// From compute capability 8.9 on the hardware widens two values at a time.
#[cfg(any(target_feature = "sm_89", target_feature = "compute_89"))]
#[inline(always)]
fn widen_e4m3x4(_gpu: PtxLane, word: u32) -> [u32; 2] {
    let (low, high);
    // SAFETY: registers only.
    unsafe {
        asm!(
            "{{ .reg .b16 l, h; mov.b32 {{l, h}}, {2}; cvt.rn.f16x2.e4m3x2 {0}, l; cvt.rn.f16x2.e4m3x2 {1}, h; }}",
            out(reg32) low, out(reg32) high, in(reg32) word,
            options(pure, nomem, nostack)
        )
    };
    [low, high]
}

/// Before, the bits are moved into place: an e4m3 is an f16 whose exponent is 8 too small.
#[cfg(not(any(target_feature = "sm_89", target_feature = "compute_89")))]
#[inline(always)]
fn widen_e4m3x4(gpu: PtxLane, word: u32) -> [u32; 2] {
    let widen = |bytes: u32| {
        let bits = (bytes & 0x8000_8000) | ((bytes & 0x7f00_7f00) >> 1);
        let value: u32;
        // Exact: a product with 2^8 only moves the exponent, subnormals included.
        // SAFETY: registers only.
        unsafe {
            asm!("mul.rn.f16x2 {0}, {1}, {2};", out(reg32) value, in(reg32) bits, in(reg32) 0x5c00_5c00u32, options(pure, nomem, nostack))
        };
        // 0x7f alone carries into bit 7: NaN, whose exponent becomes all ones.
        let nan = ((bytes & 0x7f00_7f00) + 0x0100_0100) & 0x8000_8000;
        value | (nan - (nan >> 5))
    };
    [
        widen(gpu.permute_bytes(word, 0, 0x1404)),
        widen(gpu.permute_bytes(word, 0, 0x3424)),
    ]
}
