//! Arguments of `concat_and_cache_mla_fp8_ds` and `concat_and_cache_mla_v4`.

use crate::gpu::fast_divmod::FastDivmod;
use crate::params::KernelParams;

/// Arguments of `concat_and_cache_mla_fp8_ds` and `concat_and_cache_mla_v4`. Every address and stride is a
/// multiple of 16.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct MlaEntryParams {
    /// `[num_tokens or more, 512]`, bf16: latents; V4: `[num_tokens or more, 448]`.
    pub kv_c: u64,
    /// `[num_tokens or more, 64]`, bf16: RoPE key; 0 for a model without one, whose entries get zeros.
    pub k_pe: u64,
    /// `[num_blocks, block_size, 656]` bytes; V4: `[num_blocks]` pages. See [`crate::mla::cache_format`].
    pub kv_cache: u64,
    /// `[num_tokens]`, i64: `block * block_size + offset`; negative slots write nothing.
    pub slot_mapping: u64,
    /// A [`super::CheckFault`] that stops the launch if it holds a fault; 0 if nothing was checked.
    pub check: u64,
    /// From a token's latents to the next one's.
    pub stride_kv_c_token: i64,
    /// From a token's RoPE key to the next one's.
    pub stride_k_pe_token: i64,
    /// From a block of the cache to the next.
    pub stride_cache_block: i64,
    /// From a slot to the next in its block; V4: unused.
    pub stride_cache_slot: i64,
    /// Tokens, the length of `slot_mapping`.
    pub num_tokens: u32,
    /// Tokens per cache block.
    pub block_size: FastDivmod,
    /// 1 if the scales of the 656-byte form are rounded up to powers of two; V4's always are.
    pub power_of_two_scales: u32,
    /// Zero; keeps the size a multiple of 8.
    pub reserved: u32,
}

const _: () = assert!(size_of::<MlaEntryParams>() == 9 * 8 + 6 * 4);
// SAFETY: repr(C), Copy; the size above is the sum of the fields, so there is no padding.
unsafe impl KernelParams for MlaEntryParams {}
