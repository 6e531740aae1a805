//! Where a sequence's tokens are in the cache.

use crate::gpu::Gpu;
use crate::params::PrefillParams;

/// Of a sequence and a KV head.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sources {
    /// Addresses of the KV head in slot 0 of block 0.
    pub(super) keys: u64,
    pub(super) values: u64,
    /// The sequence's row of the block table.
    block_row: u64,
    /// Bytes from a token to the next in its block.
    pub(super) key_stride: u32,
    pub(super) value_stride: u32,
    pub(super) kv_head: u32,
}

/// Eight tokens that lie side by side in a block.
#[derive(Clone, Copy, Debug)]
pub(super) struct Eight {
    pub(super) block: u32,
    /// The first one's slot in the block.
    pub(super) slot: u32,
    /// The first one's key and value.
    pub(super) keys: u64,
    pub(super) values: u64,
    /// Those from `begin` to `end` exist.
    begin: u32,
    end: u32,
}

impl Eight {
    /// Whether token `row` of them exists.
    #[inline(always)]
    pub(super) fn has(self, row: u32) -> bool {
        self.begin <= row && row < self.end
    }
}

impl Sources {
    /// Those of sequence `seq` and KV head `kv_head`.
    #[inline(always)]
    pub(super) fn new(params: &PrefillParams, seq: u32, kv_head: u32) -> Self {
        Self {
            keys: params.key_cache + kv_head as u64 * params.stride_key_head_bytes as u64,
            values: params.value_cache + kv_head as u64 * params.stride_value_head_bytes as u64,
            block_row: params.block_table + 4 * (seq as u64 * params.stride_block_table as u64),
            key_stride: params.stride_key_slot_bytes as u32,
            value_stride: params.stride_value_slot_bytes as u32,
            kv_head,
        }
    }

    /// The block of token `token`.
    ///
    /// # Safety
    /// The sequence has that token.
    #[inline(always)]
    pub(super) unsafe fn block<G: Gpu>(self, gpu: G, params: &PrefillParams, token: u32) -> u32 {
        let block_idx = params.by_block_size.divide(token);
        // SAFETY: so its row of the table has an entry for it.
        unsafe { gpu.ld_global_b32(self.block_row + 4 * block_idx as u64) }
    }

    /// The eight tokens from `token` on, in block `block`, of which those from `begin` to `end` exist. Past the end the
    /// block means nothing.
    #[inline(always)]
    pub(super) fn eight(
        self,
        params: &PrefillParams,
        block: u32,
        token: u32,
        (begin, end): (u32, u32),
    ) -> Eight {
        let slot = token - params.by_block_size.divide(token) * params.block_size;
        Eight {
            block,
            slot,
            keys: self.keys
                + block as u64 * params.stride_key_block_bytes as u64
                + slot as u64 * params.stride_key_slot_bytes as u64,
            values: self.values
                + block as u64 * params.stride_value_block_bytes as u64
                + slot as u64 * params.stride_value_slot_bytes as u64,
            begin: begin.max(token) - token,
            end: end.max(token) - token,
        }
    }

    /// Leaves them at `at`, in 36 bytes.
    ///
    /// # Safety
    /// Nobody else touches the memory until the next barrier.
    #[inline(always)]
    pub(super) unsafe fn store<G: Gpu>(self, gpu: G, at: u32) {
        let halves = |word: u64| [word as u32, (word >> 32) as u32];
        let ([a, b], [c, d], [e, f]) = (
            halves(self.keys),
            halves(self.values),
            halves(self.block_row),
        );
        if gpu.thread_idx() == 0 {
            // SAFETY: as the caller promises.
            unsafe {
                gpu.st_shared_b128(at, [a, b, c, d]);
                gpu.st_shared_b128(at + 16, [e, f, self.key_stride, self.value_stride]);
                gpu.st_shared_b32(at + 32, self.kv_head);
            }
        }
    }

    /// Takes them from there, the KV head only if it is asked for.
    ///
    /// # Safety
    /// They were stored at `at` before a barrier.
    #[inline(always)]
    pub(super) unsafe fn load<G: Gpu>(gpu: G, at: u32, with_head: bool) -> Self {
        let mut kv_head = 0;
        if with_head {
            // SAFETY: as the caller promises.
            kv_head = unsafe { gpu.ld_shared_b32(at + 32) };
        }
        let word = |low: u32, high: u32| low as u64 | (high as u64) << 32;
        // SAFETY: as the caller promises.
        let ([a, b, c, d], [e, f, key_stride, value_stride]) =
            unsafe { (gpu.ld_shared_b128(at), gpu.ld_shared_b128(at + 16)) };
        Self {
            keys: word(a, b),
            values: word(c, d),
            block_row: word(e, f),
            key_stride,
            value_stride,
            kv_head,
        }
    }
}
