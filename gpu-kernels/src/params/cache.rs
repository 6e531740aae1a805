//! Arguments of the kernels that write new tokens into a cache.

use crate::gpu::fast_divmod::FastDivmod;
use crate::params::KernelParams;

/// One side of a cache write: keys or values; for MLA, latents or RoPE keys.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct CacheSide {
    /// `[num_layers, num_tokens or more, num_heads, head_size]`.
    pub source: u64,
    /// `[num_blocks, block_size, num_heads, head_size]`; with [`ReshapeAndCacheParams::cache_table`] an
    /// offset that is added to the table's addresses.
    pub target: u64,
    /// f32, where the kernel scales: `[num_heads]`, read at `stride_scale_head`; else 0. In
    /// [`PerTokenHeadParams`] `[num_blocks, block_size, num_heads]`, written.
    pub scale: u64,
    /// From a layer's tokens to the next layer's.
    pub stride_source_layer: i64,
    /// From a token to the next.
    pub stride_source_token: i64,
    /// From a head to the next in `source`.
    pub stride_source_head: i64,
    /// From a block to the next.
    pub stride_target_block: i64,
    /// From a slot to the next in its block.
    pub stride_target_slot: i64,
    /// From a head to the next in `target`.
    pub stride_target_head: i64,
    /// From a layer's scale to the next layer's.
    pub stride_scale_layer: i64,
    /// From a block's scales to the next; 0 where scales are given.
    pub stride_scale_block: i64,
    /// From a slot's scales to the next; 0 where scales are given.
    pub stride_scale_slot: i64,
    /// From a head's scale to the next; 0 if all heads share one.
    pub stride_scale_head: i64,
    /// Heads. Heads that lie side by side on both sides and share a scale may count as one long head.
    pub num_heads: u32,
    /// All heads' units together.
    pub units: u32,
    /// Units per head; what a unit is, the kernel's parameters say.
    pub head_units: FastDivmod,
    /// Zero; keeps the size a multiple of 8.
    pub reserved: u32,
}

const _: () = assert!(size_of::<CacheSide>() == 13 * 8 + 6 * 4);

/// Arguments of `reshape_and_cache_copy` and `reshape_and_cache_scaled_*`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ReshapeAndCacheParams {
    /// Keys, or latents.
    pub key: CacheSide,
    /// Values, or RoPE keys. Without heads there are none.
    pub value: CacheSide,
    /// `[num_layers, num_tokens]`, i64: `block * block_size + offset`; negative slots write nothing.
    pub slot_mapping: u64,
    /// `[num_layers]`, u64: the address of each layer's cache; 0 if there is one layer, whose cache is at
    /// [`CacheSide::target`].
    pub cache_table: u64,
    /// A [`super::CheckFault`] that stops the launch if it holds a fault; 0 if nothing was checked.
    pub check: u64,
    /// From a layer's slots to the next layer's.
    pub stride_slot_mapping_layer: i64,
    /// Tokens, the length of a row of `slot_mapping`.
    pub num_tokens: u32,
    /// Tokens per cache block.
    pub block_size: FastDivmod,
    /// Copy: bytes of a unit, a power of two up to 16 to which every address and stride is aligned. Scaled:
    /// values of a unit: 8, if source units are 16-byte and target units 8-byte aligned, else 1.
    pub unit: u32,
    /// Base-2 logarithm of the threads of a thread block that share a token.
    pub lanes_log2: u32,
    /// 1 if even thread blocks along z do keys and odd ones values, 0 if each does both.
    pub sides_log2: u32,
    /// Zero; keeps the size a multiple of 8.
    pub reserved: u32,
}

const _: () = assert!(size_of::<ReshapeAndCacheParams>() == 2 * 128 + 4 * 8 + 8 * 4);
// SAFETY: repr(C), Copy; the size above is the sum of the fields, so there is no padding.
unsafe impl KernelParams for ReshapeAndCacheParams {}

/// Arguments of `reshape_and_cache_per_token_head_*`. A unit of [`CacheSide::head_units`] is eight values if
/// `store_bytes` is not 0, else one.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct PerTokenHeadParams {
    /// Keys.
    pub key: CacheSide,
    /// Values.
    pub value: CacheSide,
    /// `[num_tokens]`, i64: `block * block_size + offset`; negative slots write nothing.
    pub slot_mapping: u64,
    /// A [`super::CheckFault`] that stops the launch if it holds a fault; 0 if nothing was checked.
    pub check: u64,
    /// Tokens, the length of `slot_mapping`.
    pub num_tokens: u32,
    /// Tokens per cache block.
    pub block_size: FastDivmod,
    /// Heads of keys and values together.
    pub rows_per_token: FastDivmod,
    /// Bytes of a store of eight values, 8 or 4, to which the targets are aligned; 0 if values go one by one.
    pub store_bytes: u32,
    /// Lanes that share a row (the values of one head of one token): a power of two up to 32; two units
    /// each, unless values go one by one.
    pub lanes_per_row: u32,
    /// Rows that a group of lanes has in flight: 1 or 2.
    pub rows_per_group: u32,
}

const _: () = assert!(size_of::<PerTokenHeadParams>() == 2 * 128 + 2 * 8 + 10 * 4);
// SAFETY: repr(C), Copy; the size above is the sum of the fields, so there is no padding.
unsafe impl KernelParams for PerTokenHeadParams {}
