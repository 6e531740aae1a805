//! Where tokens are in the cache, as the warps that load know it: each lane of one token at a time, and of its key or of
//! its value.

use crate::gpu::Gpu;
use crate::params::PrefillParams;

/// A lane's token.
#[derive(Clone, Copy, Debug)]
pub(super) struct LaneToken<'p> {
    params: &'p PrefillParams,
    /// The KV head's key, or value, in slot 0 of block 0.
    cache: u64,
    /// Bytes from a block to the next, and from a slot to the next.
    block_stride: u64,
    slot_stride: u32,
    /// The sequence's row of the block table.
    block_row: u64,
    /// The token, and its block.
    token: u32,
    block: u32,
    /// Tokens from here to there exist.
    begin: u32,
    end: u32,
}

impl<'p> LaneToken<'p> {
    /// Token `token` of a sequence and KV head, of which tokens `begin .. end` exist: its key if `is_key`, or its value.
    #[inline(always)]
    pub(super) fn new<G: Gpu>(
        gpu: G,
        params: &'p PrefillParams,
        (seq, kv_head): (u32, u32),
        is_key: bool,
        token: u32,
        (begin, end): (u32, u32),
    ) -> Self {
        let keys = (
            params.key_cache + kv_head as u64 * params.stride_key_head as u64,
            params.stride_key_block as u64,
            params.stride_key_slot as u32,
        );
        let values = (
            params.value_cache + kv_head as u64 * params.stride_value_head as u64,
            params.stride_value_block as u64,
            params.stride_value_slot as u32,
        );
        let (cache, block_stride, slot_stride) = if is_key { keys } else { values };
        let mut lane_token = Self {
            params,
            cache,
            block_stride,
            slot_stride,
            block_row: params.block_table + seq as u64 * params.stride_block_table as u64,
            token,
            block: 0,
            begin,
            end,
        };
        lane_token.look_up(gpu);
        lane_token
    }

    /// Goes `tokens` further.
    #[inline(always)]
    pub(super) fn advance<G: Gpu>(&mut self, gpu: G, tokens: u32) {
        self.token += tokens;
        self.look_up(gpu);
    }

    /// Whether the token exists.
    #[inline(always)]
    fn exists(&self) -> bool {
        self.begin <= self.token && self.token < self.end
    }

    /// Finds the token's block.
    #[inline(always)]
    fn look_up<G: Gpu>(&mut self, gpu: G) {
        if self.exists() {
            let block_idx = self.params.by_block_size.divide(self.token);
            // SAFETY: the sequence has the token, so its row of the table has an entry for it.
            self.block = unsafe { gpu.ld_global_b32(self.block_row + 4 * block_idx as u64) };
        }
    }

    /// Where it is, or 0 if it does not exist.
    #[inline(always)]
    pub(super) fn source(&self) -> u64 {
        if !self.exists() {
            return 0;
        }
        let token = self.token;
        let slot = token - self.params.by_block_size.divide(token) * self.params.block_size;
        self.cache + self.block as u64 * self.block_stride + slot as u64 * self.slot_stride as u64
    }
}
