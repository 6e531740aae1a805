//! The tile that all attention is made of, and where its rows lie in shared memory.

use crate::dtype::CacheFormat;

/// Tokens of a tile: the rows of one `mma`.
pub const TILE_KV: u32 = 16;
/// Tokens that lie side by side in a cache block: tiles begin at multiples of it.
pub const TILE_GROUP: u32 = 8;
/// Query heads of a head tile: the columns of one `mma`.
pub const HEADS: u32 = 8;

/// Which 16-byte chunk of a row a chunk is stored in, so that the eight rows of an `ldmatrix` fall into
/// different banks. Rows of `chunks` chunks begin in the same bank (whole multiples of 128 bytes), in two
/// banks in turn (odd multiples of 64) or in four (odd multiples of 32): what does not differ by itself is
/// XORed into the chunk.
#[inline(always)]
pub(crate) const fn swizzle(row: u32, chunk: u32, chunks: u32) -> u32 {
    if chunks.is_multiple_of(8) {
        chunk ^ (row & 7)
    } else if chunks.is_multiple_of(4) {
        chunk ^ ((row >> 1) & 3)
    } else {
        chunk ^ ((row >> 2) & 1)
    }
}

/// Bytes of a row of `STEPS * 16` values.
pub(crate) const fn row_bytes<C: CacheFormat, const STEPS: usize>() -> u32 {
    STEPS as u32 * 16 * C::BYTES
}
