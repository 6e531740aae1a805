//! What one warp computes: a tile of 16 tokens at a time, all by itself.
//!
//! Warps do not share tiles. Each streams its own tokens through its own ring of shared memory and keeps
//! its own running softmax, so the loop has no barrier wider than a warp; partial results meet once, at the
//! end of the thread block.
//!
//! The products are computed transposed: tokens (and value columns) are the 16 rows of the tensor-core
//! tile, query heads its 8 columns, so a group of up to 8 query heads wastes no half of the tile.

mod attend;
mod epilogue;
pub mod kernel;
pub mod merge;
mod merge_row;
pub(crate) mod parts;
mod query;
mod score_mods;
mod stream;

pub use attend::OnlineSoftmax;
pub use query::{QueryTile, QueryWords};
pub use score_mods::DecodeMods;
pub use stream::{KvStream, KvTile};

use crate::attention::tile::{HEADS, TILE_KV};
use crate::dtype::CacheFormat;

/// How a thread block is cut for a pair of head sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecodeTile {
    /// Warps per thread block.
    pub warps: u32,
    /// Tiles in a warp's ring.
    pub stages: u32,
    /// Bytes of one tile, keys and values.
    pub tile_bytes: u32,
}

/// Shared memory that a thread block may use: two of them fit on an A100, H100 or H200 multiprocessor, and
/// one on the smallest supported (compute capability 8.6 and 8.9).
const RING_BYTES: u32 = 96 * 1024;
/// Most tiles in a ring. Small tiles gain more from a further thread block than from a longer ring, and the
/// waits of [`KvStream`] are counted up to here.
const MOST_STAGES: u32 = 6;

impl DecodeTile {
    /// The cut for heads of `head_size` and `head_size_v` values of `value_bytes` bytes, with or without
    /// scales of their own.
    pub const fn of(
        head_size: u32,
        head_size_v: u32,
        value_bytes: u32,
        token_scales: bool,
    ) -> Self {
        let scales = if token_scales { 2 * 4 } else { 0 };
        let tile_bytes = TILE_KV * ((head_size + head_size_v) * value_bytes + scales);
        let warps = if head_size > 128 { 2 } else { 4 };
        let stages = RING_BYTES / (warps * tile_bytes);
        Self {
            warps,
            stages: if stages < MOST_STAGES {
                stages
            } else {
                MOST_STAGES
            },
            tile_bytes,
        }
    }
    /// The cut for a kernel's generics.
    pub(crate) const fn of_kernel<C: CacheFormat, const K_STEPS: usize, const V_STEPS: usize>()
    -> Self {
        Self::of(
            K_STEPS as u32 * 16,
            V_STEPS as u32 * 16,
            C::BYTES,
            C::TOKEN_SCALES,
        )
    }
    /// Threads per thread block.
    pub const fn threads(self) -> u32 {
        self.warps * 32
    }
    /// Tokens that all warps together take at a time.
    pub const fn tokens_per_cta(self) -> u32 {
        self.warps * TILE_KV
    }
    /// Dynamic shared memory of a thread block.
    pub const fn shared_bytes(self) -> u32 {
        self.warps * self.stages * self.tile_bytes
    }
    /// Tiles that a warp's ring needs room for, if a thread block has at most `split_len` tokens.
    pub const fn ring_tiles(self, split_len: u32) -> u32 {
        let tiles = split_len.div_ceil(self.tokens_per_cta());
        if tiles < self.stages {
            tiles
        } else {
            self.stages
        }
    }
    /// Dynamic shared memory of a thread block with rings of `ring_tiles` tiles and one head tile: the rings, or what
    /// the warps leave in their place for each other at the end.
    pub const fn shared_bytes_of(self, ring_tiles: u32, head_size_v: u32) -> u32 {
        let rings = self.warps * ring_tiles * self.tile_bytes;
        let merge = self.merge_bytes(1, head_size_v);
        if rings > merge { rings } else { merge }
    }
    /// What the warps leave for each other at the end, of `head_tiles` tiles of heads.
    pub(crate) const fn merge_bytes(self, head_tiles: u32, head_size_v: u32) -> u32 {
        self.warps * head_tiles * HEADS * (STATS_BYTES + merge_row_bytes(head_size_v))
    }
}

/// Bytes of a head's maximum and sum, where warps merge their parts.
pub(crate) const STATS_BYTES: u32 = 8;

/// Bytes of a head's row where warps merge their parts; 16 more than its values, so that heads fall into different
/// banks.
pub(crate) const fn merge_row_bytes(head_size_v: u32) -> u32 {
    head_size_v * 4 + 16
}
