//! Where a sequence's tokens are in the cache.

use crate::attention::paged_kv::TokenScales;
use crate::dtype::CacheFormat;
use crate::gpu::Gpu;
use crate::params::PrefillParams;

/// Of a sequence and a KV head.
#[derive(Clone, Copy, Debug)]
pub struct KvAddresses {
    /// Addresses of the KV head in slot 0 of block 0.
    pub(crate) keys: u64,
    pub(crate) values: u64,
    /// The sequence's row of the block table.
    block_row: u64,
    /// Bytes from a token to the next in its block.
    pub(crate) key_stride: u32,
    pub(crate) value_stride: u32,
    pub(crate) kv_head: u32,
}

/// One token, looked up by itself.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Addresses of its key and value.
    pub key: u64,
    pub value: u64,
    /// Addresses of their scales, if tokens have them.
    scales: [u64; 2],
}

impl Place {
    /// What products with the key are multiplied by besides what all tokens' are.
    ///
    /// # Safety
    /// The token's scales are readable, if tokens have them.
    #[inline(always)]
    pub unsafe fn key_scale<G: Gpu, C: CacheFormat>(self, gpu: G) -> f32 {
        // SAFETY: the scales' address is of a token of the sequence: the contract of `key_scale`.
        unsafe { scale::<G, C>(gpu, self.scales[0]) }
    }

    /// The same for the value.
    ///
    /// # Safety
    /// As [`Place::key_scale`].
    #[inline(always)]
    pub unsafe fn value_scale<G: Gpu, C: CacheFormat>(self, gpu: G) -> f32 {
        // SAFETY: the scales' address is of a token of the sequence: the contract of `value_scale`.
        unsafe { scale::<G, C>(gpu, self.scales[1]) }
    }
}

/// # Safety
/// As [`Place::key_scale`].
#[inline(always)]
unsafe fn scale<G: Gpu, C: CacheFormat>(gpu: G, address: u64) -> f32 {
    if !C::TOKEN_SCALES {
        return 1.0;
    }
    // SAFETY: scales beside the cache are of its shape: the host's `check_scales`.
    f32::from_bits(unsafe { gpu.ld_global_b32(address) })
}

/// Eight tokens that lie side by side in a block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Eight {
    pub(crate) block: u32,
    /// The first one's slot in the block.
    pub(crate) slot: u32,
    /// The first one's key and value.
    pub(crate) keys: u64,
    pub(crate) values: u64,
    /// Those from `begin` to `end` exist.
    begin: u32,
    end: u32,
}

impl Eight {
    /// Whether token `row` of them exists.
    #[inline(always)]
    pub(crate) fn has(self, row: u32) -> bool {
        self.begin <= row && row < self.end
    }
}

impl KvAddresses {
    /// Those of sequence `seq` and KV head `kv_head`.
    #[inline(always)]
    pub fn new(params: &PrefillParams, seq: u32, kv_head: u32) -> Self {
        Self {
            keys: params.key_cache + kv_head as u64 * params.stride_key_head as u64,
            values: params.value_cache + kv_head as u64 * params.stride_value_head as u64,
            block_row: params.block_table + seq as u64 * params.stride_block_table as u64,
            key_stride: params.stride_key_slot as u32,
            value_stride: params.stride_value_slot as u32,
            kv_head,
        }
    }

    /// The block of token `token`.
    ///
    /// # Safety
    /// The sequence has that token.
    #[inline(always)]
    pub(crate) unsafe fn block<G: Gpu>(self, gpu: G, params: &PrefillParams, token: u32) -> u32 {
        let block_idx = params.by_block_size.divide(token);
        // SAFETY: so its row of the table has an entry for it.
        unsafe { gpu.ld_global_b32(self.block_row + 4 * block_idx as u64) }
    }

    /// Token `token`.
    ///
    /// # Safety
    /// The sequence has that token.
    #[inline(always)]
    pub unsafe fn token<G: Gpu>(self, gpu: G, params: &PrefillParams, token: u32) -> Place {
        // SAFETY: the sequence has the token, so its row of the block table names the block: the host's bound on lengths.
        let block = unsafe { self.block(gpu, params, token) };
        let one = self.eight(params, block, token, (token, token + 1));
        let scales = |scales, block_stride, slot_stride, head_stride| {
            TokenScales::new(scales, self.kv_head, block_stride, slot_stride, head_stride)
                .slot(block, one.slot)
        };
        Place {
            key: one.keys,
            value: one.values,
            scales: [
                scales(
                    params.k_scale,
                    params.stride_k_scale_block,
                    params.stride_k_scale_slot,
                    params.stride_k_scale,
                ),
                scales(
                    params.v_scale,
                    params.stride_v_scale_block,
                    params.stride_v_scale_slot,
                    params.stride_v_scale,
                ),
            ],
        }
    }

    /// The eight tokens from `token` on, in block `block`, of which those from `begin` to `end` exist. Past the end the
    /// block means nothing.
    #[inline(always)]
    pub(crate) fn eight(
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
                + block as u64 * params.stride_key_block as u64
                + slot as u64 * params.stride_key_slot as u64,
            values: self.values
                + block as u64 * params.stride_value_block as u64
                + slot as u64 * params.stride_value_slot as u64,
            begin: begin.max(token) - token,
            end: end.max(token) - token,
        }
    }

    /// Leaves them at `at`, in 36 bytes.
    ///
    /// # Safety
    /// Nobody else touches the memory until the next barrier.
    #[inline(always)]
    pub(crate) unsafe fn store<G: Gpu>(self, gpu: G, at: u32) {
        let halves = |word: u64| [word as u32, (word >> 32) as u32];
        let ([a, b], [c, d], [e, f]) = (
            halves(self.keys),
            halves(self.values),
            halves(self.block_row),
        );
        if gpu.thread_idx() == 0 {
            // SAFETY: `at` is this thread block's own, and free until the next barrier: the contract of `store`.
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
    pub(crate) unsafe fn load<G: Gpu>(gpu: G, at: u32, with_head: bool) -> Self {
        let mut kv_head = 0;
        if with_head {
            // SAFETY: stored at `at` before a barrier: the contract of `load`.
            kv_head = unsafe { gpu.ld_shared_b32(at + 32) };
        }
        let word = |low: u32, high: u32| low as u64 | (high as u64) << 32;
        // SAFETY: as above.
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
