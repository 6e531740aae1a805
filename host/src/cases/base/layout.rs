//! How a cache lies in memory.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::text::{CaseError, Fields, MAX_BLOCK_SIZE, MAX_HEADS, check_size};
use crate::reference::{HostTensor, Storage};
use crate::tensor::Dtype;

/// The order of a paged cache's dimensions in memory. Kernels see `[num_blocks, block_size, num_kv_heads,
/// head_size]` with strides, whatever the order is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Keys and values apart: block, slot, head.
    Nhd,
    /// Keys and values apart: block, head, slot.
    Hnd,
    /// One tensor, a head's key and value side by side: block, slot, head.
    PackedNhd,
    /// One tensor, a head's key and value side by side: block, head, slot.
    PackedHnd,
    /// As `Nhd`, the blocks of three layers interleaved; this is the middle layer.
    CrossLayer,
}

impl Layout {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Nhd,
        Self::Hnd,
        Self::PackedNhd,
        Self::PackedHnd,
        Self::CrossLayer,
    ];

    /// Whether keys and values share a storage.
    pub fn is_packed(self) -> bool {
        matches!(self, Self::PackedNhd | Self::PackedHnd)
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Nhd => "nhd",
            Self::Hnd => "hnd",
            Self::PackedNhd => "packed",
            Self::PackedHnd => "packed-hnd",
            Self::CrossLayer => "cross-layer",
        })
    }
}

impl FromStr for Layout {
    type Err = CaseError;

    fn from_str(text: &str) -> Result<Self, CaseError> {
        Self::ALL
            .into_iter()
            .find(|layout| layout.to_string() == text)
            .ok_or_else(|| {
                CaseError("layouts are nhd, hnd, packed, packed-hnd, cross-layer".into())
            })
    }
}

/// The shape of a paged cache, without the number of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheShape {
    /// Element type.
    pub dtype: Dtype,
    /// KV heads.
    pub num_kv_heads: usize,
    /// Values per key head.
    pub head_size: usize,
    /// Values per value head.
    pub head_size_v: usize,
    /// Tokens per block.
    pub block_size: usize,
    /// Order in memory.
    pub layout: Layout,
}

/// Where the elements of the keys or the values lie in their storage, in elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Placement {
    pub(crate) offset: usize,
    /// Along `[num_blocks, block_size, num_kv_heads, head_size]`.
    pub(crate) strides: [usize; 4],
}

impl CacheShape {
    /// Bytes of one token's keys and values.
    pub fn token_bytes(&self) -> usize {
        self.num_kv_heads * (self.head_size + self.head_size_v) * self.dtype.size()
    }

    /// The placement of a tensor of heads of `size` values: the keys', or the values'.
    pub(crate) fn placement(&self, values: bool) -> Placement {
        let size = if values {
            self.head_size_v
        } else {
            self.head_size
        };
        let (slots, heads) = (self.block_size, self.num_kv_heads);
        let row = if self.layout.is_packed() {
            self.head_size + self.head_size_v
        } else {
            size
        };
        let block = slots * heads * row;
        let offset = if self.layout.is_packed() && values {
            self.head_size
        } else {
            0
        };
        match self.layout {
            Layout::Nhd | Layout::PackedNhd => Placement {
                offset,
                strides: [block, heads * row, row, 1],
            },
            Layout::Hnd | Layout::PackedHnd => Placement {
                offset,
                strides: [block, row, slots * row, 1],
            },
            Layout::CrossLayer => Placement {
                offset: block,
                strides: [3 * block, heads * row, row, 1],
            },
        }
    }

    pub(crate) fn read(fields: &mut Fields<'_>, num_kv_heads: usize) -> Result<Self, CaseError> {
        let head_size = fields.size("d", MAX_HEADS)?;
        Ok(Self {
            dtype: fields.dtype(),
            num_kv_heads,
            head_size,
            head_size_v: match fields.optional("dv")? {
                Some(size) => check_size("dv", size, MAX_HEADS)?,
                None => head_size,
            },
            block_size: fields.size("page", MAX_BLOCK_SIZE)?,
            layout: fields.required("layout")?,
        })
    }

    pub(crate) fn write(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, " d={}", self.head_size)?;
        if self.head_size_v != self.head_size {
            write!(f, " dv={}", self.head_size_v)?;
        }
        write!(f, " page={} layout={}", self.block_size, self.layout)
    }
}

/// Key and value cache over storages that `storage` makes: two, or one if they are packed.
pub(crate) fn place(
    cache: &CacheShape,
    num_blocks: usize,
    storage: impl Fn(&'static str, &Placement) -> Arc<Storage>,
) -> (HostTensor, HostTensor) {
    let tensor = |storage: Arc<Storage>, placement: &Placement, size| HostTensor {
        storage,
        offset: placement.offset,
        dtype: cache.dtype,
        shape: vec![num_blocks, cache.block_size, cache.num_kv_heads, size],
        strides: placement.strides.to_vec(),
    };
    let (keys, values) = (cache.placement(false), cache.placement(true));
    let (key_storage, value_storage) = if cache.layout.is_packed() {
        let both = storage("kv_cache", &keys);
        (both.clone(), both)
    } else {
        (storage("key_cache", &keys), storage("value_cache", &values))
    };
    (
        tensor(key_storage, &keys, cache.head_size),
        tensor(value_storage, &values, cache.head_size_v),
    )
}
