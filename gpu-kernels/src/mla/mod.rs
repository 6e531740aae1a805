//! What one thread block computes over a latent (MLA) cache: one row per token, which is the key of all query
//! heads, and whose first columns are their value.
//!
//! A row is too wide for a warp to own, and every head wants it. So here warps share a tile of tokens, copied
//! once into shared memory, and each takes a part of both products:
//!
//! ```text
//! scores  tokens x heads    cut into token warps x head warps, all key columns
//! output  columns x heads   cut by columns, all tokens and heads
//! ```
//!
//! Between them the maxima of the token warps, then the probabilities, cross through shared memory.
//! As in [`crate::decode`], tokens and columns are the rows of the tensor-core tile, heads its columns.

mod attend;
pub mod cache_format;
pub mod check_lists;
mod chunks;
pub(crate) mod cta;
mod entry_form;
mod entry_pair;
mod entry_places;
mod entry_rows;
mod group_entry_rows;
mod group_entry_values;
mod group_loader;
mod group_loader_entry;
mod group_loader_fp8;
mod group_query;
mod group_softmax;
mod group_tile;
pub mod kernel;
pub mod kernel_entry_sm90a;
pub mod kernel_fp8;
pub mod kernel_sm90a;
mod query;
mod scores;
mod slot_list;
mod stream;
mod stream_fp8;

pub use attend::OnlineSoftmax;
use chunks::RowChunks;
pub(crate) use entry_form::tile_row_bytes;
pub use entry_form::{Fp8Ds, MlaEntry, V4, raw_bytes};
pub(crate) use entry_pair::entry_pair;
pub use query::{LatentQuery, LatentWords};
pub(crate) use slot_list::list_slots;
pub use stream::LatentStream;
pub use stream_fp8::RAW_STAGES;
pub(crate) use stream_fp8::{EntryStream, WARP_TOKENS};

use crate::attention::tile::{HEADS, TILE_KV, row_bytes};
use crate::dtype::CacheFormat;
use crate::prefill::MmaKind;

/// How a thread block is cut: shared by all warps unless said otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MlaTile {
    /// Warps per thread block.
    pub warps: u32,
    /// Warps that share out a tile's tokens; the others share out the heads.
    pub token_warps: u32,
    /// Query heads (rows of the query) of a thread block.
    pub heads: u32,
    /// Tokens of a tile.
    pub tile_len: u32,
    /// Bytes of a tile.
    pub tile_bytes: u32,
    /// Bytes of shared memory that the query takes.
    pub query_bytes: u32,
    /// Values of an output row.
    pub head_size_v: u32,
    /// Whether warps take half of the key columns each, and swap.
    pub key_halves: bool,
    /// Who multiplies.
    pub products: MmaKind,
}

impl MlaTile {
    /// The cut for a kernel's generics; see [`crate::mla::kernel::decode_mla`].
    pub const fn of_kernel<
        C: CacheFormat,
        const K_STEPS: usize,
        const HEAD_TILES: usize,
        const WARP_HEAD_TILES: usize,
        const WARP_TOKEN_TILES: usize,
        const WARP_DIM_TILES: usize,
    >(
        head_size_v: u32,
    ) -> Self {
        let warps = head_size_v / 16 / WARP_DIM_TILES as u32;
        let token_warps = warps * WARP_HEAD_TILES as u32 / HEAD_TILES as u32;
        let tile_len = token_warps * WARP_TOKEN_TILES as u32 * TILE_KV;
        let heads = HEAD_TILES as u32 * HEADS;
        assert!(
            HEAD_TILES as u32 <= warps,
            "each tile of heads is loaded by a warp"
        );
        Self {
            warps,
            token_warps,
            heads,
            tile_len,
            tile_bytes: tile_len * row_bytes::<C, K_STEPS>(),
            // One tile of heads a warp is kept in registers.
            query_bytes: if WARP_HEAD_TILES == 1 {
                0
            } else {
                heads * K_STEPS as u32 * 32
            },
            head_size_v,
            key_halves: WARP_HEAD_TILES == 2 && K_STEPS.is_multiple_of(4),
            products: MmaKind::Warp,
        }
    }
    /// Bytes that warps swap partial scores through: 64 a lane.
    pub const fn scratch_bytes(self) -> u32 {
        if self.key_halves {
            self.warps * 32 * 64
        } else {
            0
        }
    }
    /// First row of a tile that lies in the scratch memory of the tile before: it is loaded late.
    pub(crate) const fn late_row(self) -> u32 {
        let row_bytes = self.tile_bytes / self.tile_len;
        self.tile_len - self.scratch_bytes().div_ceil(row_bytes).next_multiple_of(8)
    }
    /// Threads per thread block.
    pub const fn threads(self) -> u32 {
        self.warps * 32
    }
    /// Dynamic shared memory with a ring of `stages` tiles.
    pub const fn shared_bytes(self, stages: u32) -> u32 {
        if self.products.is_group() {
            return self.group_shared_bytes();
        }
        let loop_bytes = self.ring() + stages * self.tile_bytes;
        let end_bytes = self.stats_bytes() + self.heads * self.out_row_bytes();
        if loop_bytes > end_bytes {
            loop_bytes
        } else {
            end_bytes
        }
    }

    // From the first byte of shared memory: statistics, probabilities, query, ring; at the end, statistics and
    // output rows.

    /// Of each head a maximum or a sum of each token warp (there is room for 4); then of each head its scale, at the
    /// end its maximum; what its output has to be rescaled by; of each group of heads, whether it has to be; and what the
    /// thread block owns: sequence, part, first token, end.
    /// Whole lines, so that the rows of the ring lie in whole lines too.
    pub(crate) const fn stats_bytes(self) -> u32 {
        (self.owned() + 16).next_multiple_of(128)
    }
    pub(crate) const fn stats_of(head: u32) -> u32 {
        head * 4 * 4
    }
    pub(crate) const fn scales(self) -> u32 {
        self.heads * 4 * 4
    }
    pub(crate) const fn factors(self) -> u32 {
        self.heads * 5 * 4
    }
    pub(crate) const fn grew(self) -> u32 {
        self.heads * 6 * 4
    }
    pub(crate) const fn owned(self) -> u32 {
        self.grew() + 16
    }
    pub(crate) const fn probs(self) -> u32 {
        self.stats_bytes()
    }
    pub(crate) const fn query(self) -> u32 {
        self.probs() + self.heads * self.tile_len * 2
    }
    pub(crate) const fn ring(self) -> u32 {
        self.query() + self.query_bytes
    }
    /// Bytes of an output row in shared memory; 16 more than its values, so that heads fall into different
    /// banks.
    pub(crate) const fn out_row_bytes(self) -> u32 {
        self.head_size_v * 4 + 16
    }
}

/// Fewest and most tiles of a ring.
pub const STAGES: (u32, u32) = (2, 5);
