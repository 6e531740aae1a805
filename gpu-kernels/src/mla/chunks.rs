//! Where the 16-byte chunks of a row of a tile lie.

use crate::attention::tile::swizzle;
use crate::gpu::unroll::unroll;

/// Every `step`th chunk of a row of `chunks`, from some chunk on. The swizzle repeats after a few chunks: a row
/// needs as many registers, and constants for the rest. `chunks` and `step` are constants of the kernel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RowChunks {
    /// Addresses of the chunks before the swizzle repeats.
    first: [u32; 4],
    chunks: u32,
    step: u32,
}

impl RowChunks {
    /// Of row `row`, from `address` on, which is whole periods of the swizzle into it: chunks `offset`,
    /// `offset + step`, ... from there; `offset` is less than `step`.
    #[inline(always)]
    pub(crate) fn new(address: u32, row: u32, offset: u32, step: u32, chunks: u32) -> Self {
        let mut row_chunks = Self {
            first: [0; 4],
            chunks,
            step,
        };
        unroll!([4] phase in 0..4 {
            if (phase as u32) < row_chunks.phases() {
                let chunk = phase as u32 * step + offset;
                row_chunks.first[phase] = address + swizzle(row, chunk, chunks) * 16;
            }
        });
        row_chunks
    }

    /// Registers in use: the swizzle repeats after 8, 4 or 2 chunks.
    #[inline(always)]
    fn phases(&self) -> u32 {
        let period: u32 = if self.chunks.is_multiple_of(8) {
            8
        } else if self.chunks.is_multiple_of(4) {
            4
        } else {
            2
        };
        period.div_ceil(self.step)
    }

    /// Address of number `index`, a constant.
    #[inline(always)]
    pub(crate) fn at(&self, index: usize) -> u32 {
        let (period, phase) = (index as u32 / self.phases(), index as u32 % self.phases());
        self.first[phase as usize] + period * self.phases() * self.step * 16
    }
}
