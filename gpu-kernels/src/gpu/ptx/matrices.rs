//! Matrices, by `ldmatrix` and `mma`.

use core::arch::asm;

use crate::gpu::Matrices;
use crate::gpu::ptx::{PtxLane, four_words};

macro_rules! mma {
    ($method:ident, $instruction:literal) => {
        #[inline(always)]
        unsafe fn $method(self, acc: [f32; 4], a: [u32; 4], b: [u32; 2]) -> [f32; 4] {
            let [mut c0, mut c1, mut c2, mut c3] = acc;
            // SAFETY: converged: this method's contract; registers only.
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

// SAFETY: each method is the PTX instruction whose semantics the contract restates.
unsafe impl Matrices for PtxLane {
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
        // SAFETY: converged: this method's contract; registers only.
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
}
