//! The paged cache: position in the sequence → block table → address.
//!
//! Tokens are looked up in groups of 8: cache blocks hold a multiple of 8 tokens, so a group never
//! straddles two blocks.

use crate::gpu::{Gpu, WARP, div};

/// Tokens that are looked up together.
const GROUP: u32 = 8;
/// Groups that a window holds: one per lane.
const WINDOW: u32 = WARP;

/// The block-table entries of the next 32 groups of one warp, one in each lane's registers, and those of
/// the 32 groups after them, which are already on their way.
#[derive(Clone, Copy, Debug)]
pub struct BlockWindow {
    /// This sequence's row of the block table.
    row: u64,
    block_size: u32,
    /// First token of this lane's group in the window after `next`.
    next_token: u32,
    /// From a window to the one after it, in tokens.
    step: u32,
    /// Tokens from here on are not looked up.
    end: u32,
    current: Location,
    next: Location,
}

/// Block id and first slot of one group.
#[derive(Clone, Copy, Debug)]
struct Location {
    block: u32,
    slot: u32,
}

impl BlockWindow {
    /// Starts looking up a warp's tiles of `tile_groups` groups each: tile `i` begins at token
    /// `first_token + i * tile_step`. Tokens from `end` on are not looked up.
    ///
    /// # Safety
    /// `row` holds an entry for every block that begins before `end`; `block_size` is not 0.
    #[inline(always)]
    pub unsafe fn new<G: Gpu>(
        gpu: G,
        row: u64,
        block_size: u32,
        first_token: u32,
        tile_step: u32,
        tile_groups: u32,
        end: u32,
    ) -> Self {
        let lane = gpu.lane();
        let token = first_token + (lane / tile_groups) * tile_step + (lane % tile_groups) * GROUP;
        let none = Location { block: 0, slot: 0 };
        let mut window = Self {
            row,
            block_size,
            next_token: token,
            step: WINDOW / tile_groups * tile_step,
            end,
            current: none,
            next: none,
        };
        // SAFETY: the row names every token below `end`, as this function's contract has it; twice, so that both
        // halves are filled.
        unsafe {
            window.advance(gpu);
            window.advance(gpu);
        }
        window
    }

    /// Moves on to the next 32 groups and starts loading those after them.
    ///
    /// # Safety
    /// As [`BlockWindow::new`].
    #[inline(always)]
    pub unsafe fn advance<G: Gpu>(&mut self, gpu: G) {
        self.current = self.next;
        let token = self.next_token;
        self.next_token += self.step;
        if token < self.end {
            // SAFETY: `block_size` is not 0: the contract of `new`.
            let block_idx = unsafe { div(token, self.block_size) };
            // SAFETY: the block begins before `end`, so the row has an entry for it.
            let block = unsafe { gpu.ld_global_b32(self.row + 4 * block_idx as u64) };
            self.next = Location {
                block,
                slot: token - block_idx * self.block_size,
            };
        }
    }

    /// Address of the first slot of this lane's group of the current window.
    #[inline(always)]
    pub fn own(&self, cache: CacheHead) -> u64 {
        cache.slot(self.current.block, self.current.slot)
    }

    /// Block id and first slot of group `group < 32` of the current window.
    ///
    /// # Safety
    /// Converged.
    #[inline(always)]
    pub unsafe fn locate<G: Gpu>(&self, gpu: G, group: u32) -> (u32, u32) {
        // SAFETY: converged, as this function's contract has it.
        unsafe {
            (
                gpu.shfl(self.current.block, group),
                gpu.shfl(self.current.slot, group),
            )
        }
    }
}

/// One KV head of a key or value cache.
#[derive(Clone, Copy, Debug)]
pub struct CacheHead {
    /// Address of slot 0 of block 0.
    base: u64,
    stride_block: u64,
    stride_slot: u32,
}

impl CacheHead {
    /// Head `head` of a cache.
    #[inline(always)]
    pub fn new(
        cache: u64,
        head: u32,
        stride_block: i64,
        stride_slot: i64,
        stride_head: i64,
    ) -> Self {
        Self {
            base: cache + head as u64 * stride_head as u64,
            stride_block: stride_block as u64,
            stride_slot: stride_slot as u32,
        }
    }

    /// Address of a slot.
    #[inline(always)]
    pub fn slot(&self, block: u32, slot: u32) -> u64 {
        // Block ids are signed on the wire; a checked launch has none below zero.
        self.base + block as u64 * self.stride_block + slot as u64 * self.stride_slot as u64
    }

    /// Bytes from one slot of a block to the next.
    #[inline(always)]
    pub fn stride_slot(&self) -> u32 {
        self.stride_slot
    }
}

/// One KV head's scales of every token: `[num_blocks, block_size, num_kv_heads]` f32.
#[derive(Clone, Copy, Debug)]
pub struct TokenScales {
    /// Address of slot 0 of block 0.
    base: u64,
    stride_block: u64,
    stride_slot: u64,
}

impl TokenScales {
    /// Head `head` of scales at `scales`.
    #[inline(always)]
    pub fn new(
        scales: u64,
        head: u32,
        stride_block: i64,
        stride_slot: i64,
        stride_head: i64,
    ) -> Self {
        Self {
            base: scales + head as u64 * stride_head as u64,
            stride_block: stride_block as u64,
            stride_slot: stride_slot as u64,
        }
    }

    /// Address of a slot's scale.
    #[inline(always)]
    pub fn slot(&self, block: u32, slot: u32) -> u64 {
        self.base + block as u64 * self.stride_block + slot as u64 * self.stride_slot
    }
}
