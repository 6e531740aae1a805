//! From a slot number to its place in a paged cache.

use crate::gpu::fast_divmod::FastDivmod;

/// Block and offset of a slot that is not negative.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slot {
    pub(crate) block: u64,
    pub(crate) offset: u64,
}

impl Slot {
    /// Slot `slot` of a cache of blocks of `block_size` tokens; `None` if it is negative, which is padding, or not
    /// below 2^31, as those of every cache are.
    #[inline(always)]
    pub(crate) fn new(slot: u64, block_size: &FastDivmod) -> Option<Self> {
        if slot >> 31 != 0 {
            return None;
        }
        let slot = slot as u32;
        let block = block_size.divide(slot);
        let offset = slot - block * block_size.divisor();
        Some(Self {
            block: block as u64,
            offset: offset as u64,
        })
    }

    /// Bytes from the start of a tensor with these strides.
    #[inline(always)]
    pub(crate) fn at(self, stride_block: i64, stride_slot: i64) -> u64 {
        self.block * stride_block as u64 + self.offset * stride_slot as u64
    }
}
