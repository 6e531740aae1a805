//! Products of matrices, by a warp.

#[cfg(doc)]
use crate::gpu::Memory;

/// What a warp's lanes do with matrices, of which each has fragments.
///
/// # Safety
/// An implementation keeps the contract in the [module documentation](crate::gpu).
pub unsafe trait Matrices: Copy {
    /// Loads four 8x8 matrices of 16-bit values. Lane `8 i + r` names the 16-byte row `r` of matrix `i`;
    /// lane `l` receives, of each matrix, row `l / 4`, columns `2 (l % 4)` and `+ 1` (PTX ISA,
    /// "ldmatrix").
    ///
    /// # Safety
    /// Converged; each address as in [`Memory::ld_shared_b128`].
    #[track_caller]
    unsafe fn ldmatrix_x4(self, row_address: u32) -> [u32; 4];
    /// The same, each matrix transposed.
    ///
    /// # Safety
    /// As [`Matrices::ldmatrix_x4`].
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
}
