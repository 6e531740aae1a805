//! One side of a cache write, keys or values: from views to the bytes a kernel steps by.

use gpu_kernels::gpu::fast_divmod::FastDivmod;
use gpu_kernels::params::CacheSide;

use crate::ops::layout::{alignment, byte_stride, byte_strides};
use crate::tensor::TensorView;

/// Where rows of `head_size` values are read and written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Side {
    /// Units are filled in by [`Side::in_units`].
    params: CacheSide,
    /// Values per head.
    head_size: u32,
    source_bytes: usize,
    target_bytes: usize,
}

impl Side {
    /// From `[num_tokens, num_heads, head_size]` to `[num_blocks, block_size, num_heads, head_size]`. Both
    /// were checked: the last dimension is contiguous and counts fit 32 bits.
    pub(super) fn new(source: &TensorView<'_>, target: &TensorView<'_>) -> Self {
        let [token, head] = byte_strides(source);
        let [block, slot, target_head] = byte_strides(target);
        Self::single(source, target, token, block, slot, [head, target_head])
    }

    /// From `[num_tokens, num_heads, head_size]` to the same shape: token `t` is slot `t` of block 0.
    pub(super) fn rows(source: &TensorView<'_>, target: &TensorView<'_>) -> Self {
        let [token, head] = byte_strides(source);
        let [slot, target_head] = byte_strides(target);
        Self::single(source, target, token, 0, slot, [head, target_head])
    }

    /// From `[num_tokens, size]` (or a layer's part of `[num_layers, num_tokens, size]`) to `size` values of
    /// `[num_blocks, block_size, entry]` that begin at `first`: a single head.
    pub(super) fn latent(source: &TensorView<'_>, target: &TensorView<'_>, first: usize) -> Self {
        let [block, slot] = byte_strides(target);
        let token = byte_stride(source, source.shape().len() - 2);
        let mut side = Self::single(source, target, token, block, slot, [0; 2]);
        side.params.target += (first * target.dtype().size()) as u64;
        side.params.num_heads = 1;
        side
    }

    /// No rows at all.
    pub(super) fn none() -> Self {
        Self {
            params: CacheSide {
                source: 0,
                target: 0,
                scale: 0,
                stride_source_layer: 0,
                stride_source_token: 0,
                stride_source_head: 0,
                stride_target_block: 0,
                stride_target_slot: 0,
                stride_target_head: 0,
                stride_scale_layer: 0,
                stride_scale_block: 0,
                stride_scale_slot: 0,
                stride_scale_head: 0,
                num_heads: 0,
                units: 0,
                head_units: FastDivmod::new(1),
                reserved: 0,
            },
            head_size: 0,
            source_bytes: 1,
            target_bytes: 1,
        }
    }

    fn single(
        source: &TensorView<'_>,
        target: &TensorView<'_>,
        token: i64,
        block: i64,
        slot: i64,
        [source_head, target_head]: [i64; 2],
    ) -> Self {
        let (shape, rank) = (source.shape(), source.shape().len());
        let count = |n: usize| u32::try_from(n).expect("checked to fit");
        let none = Self::none();
        Self {
            params: CacheSide {
                source: source.address(),
                target: target.address(),
                stride_source_token: token,
                stride_source_head: source_head,
                stride_target_block: block,
                stride_target_slot: slot,
                stride_target_head: target_head,
                num_heads: if rank == 3 { count(shape[1]) } else { 1 },
                ..none.params
            },
            head_size: count(shape[rank - 1]),
            source_bytes: source.dtype().size(),
            target_bytes: target.dtype().size(),
        }
    }

    /// With scales that were given, one for all heads or one each.
    pub(super) fn with_scales(mut self, scales: &TensorView<'_>) -> Self {
        self.params.scale = scales.address();
        self.params.stride_scale_head = byte_stride(scales, 0);
        self
    }

    /// With a place for the scale of each row: `[num_blocks, block_size, num_heads]`.
    pub(super) fn with_scale_cache(mut self, scales: &TensorView<'_>) -> Self {
        self.params.scale = scales.address();
        [
            self.params.stride_scale_block,
            self.params.stride_scale_slot,
            self.params.stride_scale_head,
        ] = byte_strides(scales);
        self
    }

    /// With tokens and a scale of its own for each layer, at these distances in bytes.
    pub(super) fn with_layers(mut self, source: i64, scale: i64) -> Self {
        self.params.stride_source_layer = source;
        self.params.stride_scale_layer = scale;
        self.params.stride_scale_head = 0;
        self
    }

    /// As one long head, if all heads lie side by side on both sides and have one scale: fewer divisions.
    pub(super) fn flattened(mut self) -> Self {
        let (params, head_size) = (&mut self.params, self.head_size);
        let side_by_side = |stride: i64, value_bytes: usize| {
            usize::try_from(stride) == Ok(head_size as usize * value_bytes)
        };
        if params.num_heads > 1
            && params.stride_scale_head == 0
            && side_by_side(params.stride_source_head, self.source_bytes)
            && side_by_side(params.stride_target_head, self.target_bytes)
            && let Some(values) = head_size.checked_mul(params.num_heads)
        {
            self.head_size = values;
            params.num_heads = 1;
        }
        self
    }

    /// The power of two up to 16 to which every row of the source is aligned, its length included.
    pub(super) fn source_alignment(&self) -> u32 {
        let params = &self.params;
        alignment(&[
            params.source,
            params.stride_source_layer.cast_unsigned(),
            params.stride_source_token.cast_unsigned(),
            params.stride_source_head.cast_unsigned(),
            u64::from(self.head_size) * self.source_bytes as u64,
        ])
    }

    /// The power of two up to 16 to which every row of the target is aligned, its length included.
    pub(super) fn target_alignment(&self) -> u32 {
        let params = &self.params;
        alignment(&[
            params.target,
            params.stride_target_block.cast_unsigned(),
            params.stride_target_slot.cast_unsigned(),
            params.stride_target_head.cast_unsigned(),
            u64::from(self.head_size) * self.target_bytes as u64,
        ])
    }

    /// Values per head.
    pub(super) fn head_size(&self) -> u32 {
        self.head_size
    }

    /// Whether there is nothing to write.
    pub(super) fn is_empty(&self) -> bool {
        self.params.num_heads == 0 || self.head_size == 0
    }

    /// The parameters, with units of `bytes` bytes of the source; `None` if they do not fit the kernels'
    /// 32-bit counters.
    pub(super) fn in_units(&self, bytes: u32) -> Option<CacheSide> {
        let head_bytes = u64::from(self.head_size) * self.source_bytes as u64;
        self.counting(u32::try_from(head_bytes / u64::from(bytes)).ok()?)
    }

    /// The parameters, with units of `values` values; `None` as above.
    pub(super) fn in_units_of(&self, values: u32) -> Option<CacheSide> {
        self.counting(self.head_size / values)
    }

    /// The parameters, with `units` units per head; `None` as above.
    pub(super) fn counting(&self, head_units: u32) -> Option<CacheSide> {
        let units = self.params.num_heads.checked_mul(head_units);
        Some(CacheSide {
            units: units.filter(|&units| units <= i32::MAX as u32)?,
            head_units: FastDivmod::new(head_units),
            ..self.params
        })
    }
}
