//! What one warp of a thread block that shares its KV tiles computes: 16 or 32 rows against every tile.
//!
//! A row is a query token and one of the query heads of a KV head: row `r` of a sequence is head
//! `r % num_queries_per_kv` of token `r / num_queries_per_kv`, so any group size fills the tiles. Rows are
//! the 16 rows of the tensor-core tile, tokens (and value dims) its 8 columns; what the first product leaves
//! in a lane's registers is what the second wants as its left factor.

mod attend;
mod query;
mod rule;
mod stream;
mod visible;
mod warpgroup;
mod widen;

pub use attend::RowPartial;
pub use query::RowQueries;
pub use rule::ScoreRule;
pub(super) use rule::cap;
pub use stream::{SharedStream, SharedTile};
pub use visible::{Alibi, RowView, Visible, WarpRows};
pub use warpgroup::attend_group;

use crate::kv::CacheFormat;

/// Who multiplies: each warp for itself (`mma`), or the four warps of a thread block together (`wgmma`, which compute
/// capability 9.0 alone has).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Products {
    /// Each warp.
    Warp,
    /// The warp group.
    WarpGroup,
}

impl Products {
    /// For a kernel's generics: warps take all their rows at once, a warp group takes them in units.
    pub(crate) const fn of_units(units: usize) -> Self {
        if units > 1 {
            Self::WarpGroup
        } else {
            Self::Warp
        }
    }
}

/// Warps of a thread block.
pub const WARPS: u32 = 4;
/// KV tiles in shared memory: one that is worked on, one that is on its way.
const STAGES: u32 = 2;
/// Bytes of the stream's sources, and of a thread block's work, where they wait in shared memory.
const SOURCE_BYTES: u32 = 48;
const WORK_BYTES: u32 = 32;
/// What panels of a warp group's operands are aligned to: the period of their swizzle.
const PANEL_ALIGN: u32 = 1024;
/// Bytes of what products are multiplied by: four words for each quad of lanes.
const SCALE_BYTES: u32 = WARPS * 8 * 16;

/// How a thread block is cut for a pair of head sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowShape {
    /// Tensor-core tiles of 16 rows per warp: as many as the accumulators leave registers for.
    pub row_tiles: u32,
    /// Tokens of a KV tile.
    pub tile_kv: u32,
    /// Bytes of the queries.
    pub query_bytes: u32,
    /// Bytes of one KV tile.
    pub tile_bytes: u32,
}

impl RowShape {
    /// The cut for heads of `head_size` and `head_size_v` values of `value_bytes` bytes in the cache, with or
    /// without scales of their own; values are widened to 16 bits in shared memory, and so are keys for a warp group.
    /// Two thread blocks fit on a multiprocessor of an H100 or H200, and one on the smallest supported (compute
    /// capability 8.6 and 8.9).
    pub const fn of(
        head_size: u32,
        head_size_v: u32,
        value_bytes: u32,
        token_scales: bool,
        products: Products,
    ) -> Self {
        let row_tiles = if head_size_v > 128 { 1 } else { 2 };
        let tile_kv = if head_size > 128 { 32 } else { 64 };
        let scales = if token_scales { 2 * 4 } else { 0 };
        let key_bytes = match products {
            Products::Warp => value_bytes,
            Products::WarpGroup => 2,
        };
        let tile_bytes = tile_kv * (head_size * key_bytes + head_size_v * 2 + scales);
        Self {
            row_tiles,
            tile_kv,
            query_bytes: WARPS * row_tiles * 16 * head_size * 2,
            tile_bytes: match products {
                Products::Warp => tile_bytes,
                Products::WarpGroup => tile_bytes.next_multiple_of(PANEL_ALIGN),
            },
        }
    }
    /// The cut for a kernel's generics.
    pub(crate) const fn of_kernel<C: CacheFormat, const K_STEPS: usize, const V_STEPS: usize>(
        products: Products,
    ) -> Self {
        Self::of(
            K_STEPS as u32 * 16,
            V_STEPS as u32 * 16,
            C::BYTES,
            C::TOKEN_SCALES,
            products,
        )
    }
    /// Threads per thread block.
    pub const fn threads(self) -> u32 {
        WARPS * 32
    }
    /// Rows that a thread block owns.
    pub const fn rows(self) -> u32 {
        WARPS * self.row_tiles * 16
    }
    /// Dynamic shared memory of a thread block: the queries, the ring, and what waits behind it.
    pub const fn shared_bytes(self) -> u32 {
        self.scales() + SCALE_BYTES
    }
    /// Where the stream's sources wait.
    const fn sources(self) -> u32 {
        self.query_bytes + STAGES * self.tile_bytes
    }
    /// Where a thread block's work waits.
    pub(crate) const fn work(self) -> u32 {
        self.sources() + SOURCE_BYTES
    }
    /// Where what products are multiplied by waits, over a cache of bytes.
    pub(crate) const fn scales(self) -> u32 {
        self.work() + WORK_BYTES
    }
}

/// Bytes of a row of `STEPS * 16` values of 16 bits.
#[inline(always)]
const fn wide_bytes<const STEPS: usize>() -> u32 {
    STEPS as u32 * 32
}

/// Which place in a row of `STEPS * 16` values the 16-byte chunk `chunk` of 16-bit values has, before places are
/// swizzled. Rows of bytes are copied, and then widened where they are: the two chunks that one becomes lie so far
/// apart that a line of the cache is copied into one line of shared memory, which is several times faster than into
/// two.
#[inline(always)]
const fn place<C: CacheFormat, const STEPS: usize>(chunk: u32) -> u32 {
    if C::BYTES == 2 {
        return chunk;
    }
    let apart = match STEPS as u32 * 2 {
        chunks if chunks.is_multiple_of(16) => 8,
        chunks if chunks.is_multiple_of(8) => 4,
        _ => 2,
    };
    chunk / (2 * apart) * (2 * apart) + chunk % 2 * apart + chunk % (2 * apart) / 2
}

/// Address of the first of two 16-byte chunks that make up an `mma` step of a row of `chunks` chunks: it is at place
/// `place`; `first` is the address for place 0, swizzled. Rows begin at multiples of the swizzle's period, so the
/// place flips bits of the address, which costs one instruction and no register per step.
#[inline(always)]
const fn step_address(first: u32, place: u32, chunks: u32) -> u32 {
    let period = if chunks.is_multiple_of(8) {
        8
    } else if chunks.is_multiple_of(4) {
        4
    } else {
        2
    };
    (first ^ (place % period * 16)) + place / period * period * 16
}
