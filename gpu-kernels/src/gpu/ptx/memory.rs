//! Global and shared memory, by address.
//!
//! Loads go through `asm!` rather than through pointers, because the two compilers infer address spaces
//! and vector widths differently; PTX written here is the same on both.

use core::arch::asm;

use crate::gpu::ptx::{PtxLane, four_words};
use crate::gpu::{Line, Memory};

macro_rules! load {
    ($method:ident, $address:ty, $aclass:ident, $value:ty, $class:ident, $instruction:literal) => {
        #[inline(always)]
        unsafe fn $method(self, address: $address) -> $value {
            let value;
            // SAFETY: an aligned address in bounds: this method's contract.
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

macro_rules! store {
    ($method:ident, $address:ty, $aclass:ident, $value:ty, $class:ident, $instruction:literal) => {
        #[inline(always)]
        unsafe fn $method(self, address: $address, value: $value) {
            // SAFETY: an aligned address in bounds, which no other lane touches unless ordered: this method's contract.
            unsafe { asm!(concat!($instruction, " [{0}], {1};"), in($aclass) address, in($class) value, options(nostack)) };
        }
    };
}

macro_rules! store_four_words {
    ($method:ident, $address:ty, $class:ident, $instruction:literal) => {
        #[inline(always)]
        unsafe fn $method(self, address: $address, value: [u32; 4]) {
            let [a, b, c, d] = value;
            // SAFETY: an aligned address in bounds, which no other lane touches unless ordered: this method's contract.
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

// SAFETY: each method is the PTX instruction whose semantics the contract restates.
unsafe impl Memory for PtxLane {
    #[inline(always)]
    unsafe fn ld_global_b8(self, address: u64) -> u8 {
        let value: u16;
        // SAFETY: in bounds: this method's contract.
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
        // SAFETY: in bounds, and no other lane touches it unless ordered: this method's contract.
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
        // SAFETY: in bounds, aligned, and accessed by atomics alone: this method's contract.
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
            // SAFETY: both in bounds and aligned: this method's contract; with a source size of 0 nothing is read.
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
        // SAFETY: both in bounds and aligned: this method's contract; with a source size of 0 nothing is read.
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
        // SAFETY: both in bounds and aligned: this method's contract; with a source size of 0 nothing is read.
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
}
