//! From a slot number to its place in a paged cache.

use crate::gpu::{Gpu, div};

/// Block and offset of a slot that is not negative.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slot {
    pub(super) block: u64,
    pub(super) offset: u64,
}

impl Slot {
    /// Slot `slot >= 0` of a cache of blocks of `block_size` tokens.
    ///
    /// # Safety
    /// `block_size` is not 0.
    #[inline(always)]
    pub(super) unsafe fn new(slot: u64, block_size: u32) -> Self {
        // 64-bit divisions are slow, and most caches have fewer than 2^32 slots.
        let block = if slot >> 32 == 0 {
            // SAFETY: as the caller promises.
            unsafe { div(slot as u32, block_size) as u64 }
        } else {
            // SAFETY: as the caller promises.
            unsafe { core::hint::assert_unchecked(block_size != 0) };
            slot / block_size as u64
        };
        let offset = slot - block * block_size as u64;
        Self { block, offset }
    }

    /// The slot that a token was given, `None` if it is padding.
    ///
    /// # Safety
    /// `address` holds an i64; `block_size` is not 0.
    #[inline(always)]
    #[track_caller]
    pub(super) unsafe fn load<G: Gpu>(gpu: G, address: u64, block_size: u32) -> Option<Self> {
        // SAFETY: as the caller promises.
        let slot = unsafe { gpu.ld_global_b64(address) };
        if (slot as i64) < 0 {
            return None;
        }
        // SAFETY: as the caller promises.
        Some(unsafe { Self::new(slot, block_size) })
    }

    /// Bytes from the start of a tensor with these strides.
    #[inline(always)]
    pub(super) fn at(self, stride_block: i64, stride_slot: i64) -> u64 {
        self.block * stride_block as u64 + self.offset * stride_slot as u64
    }
}
