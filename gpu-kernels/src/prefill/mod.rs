//! What one warp of a thread block that shares its KV tiles computes: 16 or 32 rows against every tile.
//!
//! A row is a query token and one of the query heads of a KV head: row `r` of a sequence is head
//! `r % num_queries_per_kv` of token `r / num_queries_per_kv`, so any group size fills the tiles. Rows are
//! the 16 rows of the tensor-core tile, tokens (and value dims) its 8 columns; what the first product leaves
//! in a lane's registers is what the second wants as its left factor.

mod attend;
mod consumer;
mod epilogue;
pub mod kernel;
pub mod kernel_sm90a;
mod kv_addresses;
mod lane_token;
mod mend;
pub mod merge;
mod out;
mod places;
mod producer;
mod query;
mod row;
mod rows;
mod score_mods;
mod softmax;
mod stages;
mod stash;
mod stream;
mod tile_work;
pub mod wide;
mod widen;
mod work;

pub use consumer::Group;
pub use kv_addresses::KvAddresses;
pub use producer::Producer;
pub use query::{GroupQueries, RowQueries};
pub use rows::{RowView, WarpRows};
pub use score_mods::PrefillMods;
pub use softmax::OnlineSoftmax;
pub(crate) use softmax::{Rise, pack};
pub use stream::SharedStream;

use crate::dtype::CacheFormat;
use crate::gpu::{PANEL_ROW_BYTES, WARP};

/// Who multiplies, and who loads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MmaKind {
    /// Each warp for itself (`mma`); all load.
    Warp,
    /// Groups of four warps together (`wgmma`, which compute capability 9.0 alone has); one more group loads.
    WarpGroup,
    /// As `WarpGroup`, where queries are FP8 as the cache is: queries and keys are multiplied as they are. The tensor
    /// cores add up products of bytes with fewer bits than those of 16-bit values.
    WarpGroupOfBytes,
}

impl MmaKind {
    /// The ones of warp groups, of keys of bytes or of 16-bit values.
    pub(crate) const fn of_groups(byte_keys: bool) -> Self {
        if byte_keys {
            Self::WarpGroupOfBytes
        } else {
            Self::WarpGroup
        }
    }
    /// Whether warp groups multiply.
    pub const fn is_group(self) -> bool {
        !matches!(self, Self::Warp)
    }
}

/// Warps that load a tile: all of a thread block, or its first group. As many multiply for themselves, or as a group.
pub const WARPS: u32 = 4;
/// Warp groups that multiply, beside the one that loads: as many as the registers are for. Of heads beyond 128 they are
/// [`wide::GROUPS`].
pub const GROUPS: u32 = 3;
/// Bytes of the stream's sources, and of a thread block's work, where they wait in shared memory.
const SOURCE_BYTES: u32 = 48;
const WORK_BYTES: u32 = 48;
/// What panels of a warp group's operands are aligned to: the period of their swizzle.
const PANEL_ALIGN: u32 = 1024;
/// Bytes of what products are multiplied by: four words for each quad of lanes.
const SCALE_BYTES: u32 = WARPS * 8 * 16;

/// How a thread block is cut for a pair of head sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrefillTile {
    /// Tensor-core tiles of 16 rows per warp: as many as the accumulators leave registers for.
    pub row_tiles: u32,
    /// Who multiplies.
    pub products: MmaKind,
    /// Warps that have rows.
    row_warps: u32,
    /// KV tiles in shared memory. Of a warp: one that is worked on, and one that is on its way. Of groups: two that are
    /// worked on, for scores and for values, and two that are ready or on their way; of wide heads, keys and values are
    /// filled apart, so two are enough.
    pub(crate) stages: u32,
    /// Tokens of a KV tile.
    pub tile_kv: u32,
    /// Bytes of the queries.
    pub query_bytes: u32,
    /// Bytes of the keys of one KV tile, which lie before its values.
    pub key_bytes: u32,
    /// Bytes of its keys and values, which lie before their scales.
    pub kv_bytes: u32,
    /// Bytes of one KV tile.
    pub tile_bytes: u32,
    /// Bytes of what waits to be widened for a warp group.
    pub raw_bytes: u32,
}

impl PrefillTile {
    /// The cut for heads of `head_size` and `head_size_v` values of `value_bytes` bytes in the cache, with or without
    /// scales of their own; values are widened to 16 bits in shared memory, and so are keys for a warp group. Of those
    /// whose warps multiply for themselves, two thread blocks fit on a multiprocessor of an H100 or H200, and one on
    /// the smallest supported (compute capability 8.6 and 8.9); of the others one fits.
    pub const fn of(
        head_size: u32,
        head_size_v: u32,
        value_bytes: u32,
        token_scales: bool,
        products: MmaKind,
    ) -> Self {
        let is_group = products.is_group();
        let byte_keys = matches!(products, MmaKind::WarpGroupOfBytes);
        let is_wide = head_size_v > 128;
        let row_tiles = if is_group || is_wide { 1 } else { 2 };
        let (row_warps, stages) = match (is_group, is_wide) {
            (false, _) => (WARPS, 2),
            (true, false) => (GROUPS * WARPS, 4),
            (true, true) => (wide::GROUPS * WARPS, wide::STAGES),
        };
        let tile_kv = if head_size > 128 && !is_group { 32 } else { 64 };
        // A row of bytes has a row of a panel to itself, however short it is.
        let (query_row, key_row) = if byte_keys {
            (PANEL_ROW_BYTES, PANEL_ROW_BYTES)
        } else {
            let key_bytes = if is_group { 2 } else { value_bytes };
            (head_size * 2, head_size * key_bytes)
        };
        let key_bytes = tile_kv * key_row;
        let kv_bytes = key_bytes + tile_kv * head_size_v * 2;
        let tile_bytes = kv_bytes + if token_scales { tile_kv * 2 * 4 } else { 0 };
        let shape = Self {
            row_tiles,
            products,
            row_warps,
            stages,
            tile_kv,
            query_bytes: 0,
            key_bytes,
            kv_bytes,
            tile_bytes: if is_group {
                tile_bytes.next_multiple_of(PANEL_ALIGN)
            } else {
                tile_bytes
            },
            raw_bytes: match (products, value_bytes) {
                // Bytes of wide heads are widened where they are copied to.
                _ if is_wide => 0,
                (MmaKind::WarpGroup, 1) => 2 * tile_kv * (head_size + head_size_v),
                (MmaKind::WarpGroupOfBytes, 1) => 2 * tile_kv * head_size_v,
                _ => 0,
            },
        };
        Self {
            query_bytes: shape.rows() * query_row,
            ..shape
        }
    }
    /// The cut for a kernel's generics.
    pub(crate) const fn of_kernel<C: CacheFormat, const K_STEPS: usize, const V_STEPS: usize>(
        products: MmaKind,
    ) -> Self {
        Self::of(
            K_STEPS as u32 * 16,
            V_STEPS as u32 * 16,
            C::BYTES,
            C::TOKEN_SCALES,
            products,
        )
    }
    /// The first of the warps that have rows: those before only load.
    pub(crate) const fn first_row_warp(self) -> u32 {
        match self.products {
            MmaKind::Warp => 0,
            MmaKind::WarpGroup | MmaKind::WarpGroupOfBytes => WARPS,
        }
    }
    /// Rows of each of them.
    pub(crate) const fn warp_rows(self) -> u32 {
        self.row_tiles * 16
    }
    /// Threads per thread block.
    pub const fn threads(self) -> u32 {
        (self.first_row_warp() + self.row_warps) * WARP
    }
    /// Rows that a thread block owns.
    pub const fn rows(self) -> u32 {
        self.row_warps * self.warp_rows()
    }
    /// Dynamic shared memory of a thread block: the queries, the ring, and what waits behind it.
    pub const fn shared_bytes(self) -> u32 {
        self.scales() + SCALE_BYTES
    }
    /// The tile that begins at `token`, in stage `stage` of a ring in the shared memory at `base`.
    #[inline(always)]
    pub(crate) const fn tile(self, base: u32, token: u32, stage: u32) -> SharedTile {
        let keys = base + self.query_bytes + stage * self.tile_bytes;
        SharedTile {
            token,
            keys,
            values: keys + self.key_bytes,
            scales: keys + self.kv_bytes,
        }
    }
    /// Where a warp group's bytes wait to be widened: two tiles of them.
    pub(crate) const fn raw(self) -> u32 {
        self.query_bytes + self.stages * self.tile_bytes
    }
    /// Where the stream's sources wait.
    const fn sources(self) -> u32 {
        self.raw() + self.raw_bytes
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

/// A tile in shared memory.
#[derive(Clone, Copy, Debug)]
pub struct SharedTile {
    /// Position of its first token.
    pub token: u32,
    /// `[tile_kv, head_size]`, swizzled.
    pub keys: u32,
    /// `[tile_kv, head_size_v]`, swizzled.
    pub values: u32,
    /// Scales of the keys, then of the values: `[2, tile_kv]` f32, if the format has them.
    pub scales: u32,
}
