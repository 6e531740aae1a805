//! Where the chunks of a row lie in a tile of 16-bit values.

use crate::attention::tile::swizzle;
use crate::dtype::CacheFormat;

/// Bytes of a row of `STEPS * 16` values of 16 bits.
#[inline(always)]
pub(crate) const fn wide_bytes<const STEPS: usize>() -> u32 {
    STEPS as u32 * 32
}

/// Which place in a row of `STEPS * 16` values the 16-byte chunk `chunk` of 16-bit values has, before places are
/// swizzled. Rows of bytes are copied, and then widened where they are: the two chunks that one becomes lie so far
/// apart that a line of the cache is copied into one line of shared memory, which is several times faster than into
/// two.
#[inline(always)]
pub(crate) const fn place<C: CacheFormat, const STEPS: usize>(chunk: u32) -> u32 {
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

/// Where in its row a chunk of the cache is copied to, which is where the first chunk that it becomes belongs.
#[inline(always)]
pub(crate) const fn first_place<C: CacheFormat, const STEPS: usize>(row: u32, chunk: u32) -> u32 {
    let place = place::<C, STEPS>(if C::BYTES == 1 { 2 * chunk } else { chunk });
    swizzle(row, place, wide_bytes::<STEPS>() / 16)
}

/// Address of the first of two 16-byte chunks that make up an `mma` step of a row of `chunks` chunks: it is at place
/// `place`; `first` is the address for place 0, swizzled. Rows begin at multiples of the swizzle's period, so the
/// place flips bits of the address, which costs one instruction and no register per step.
#[inline(always)]
pub(crate) const fn step_address(first: u32, place: u32, chunks: u32) -> u32 {
    let period = if chunks.is_multiple_of(8) {
        8
    } else if chunks.is_multiple_of(4) {
        4
    } else {
        2
    };
    (first ^ (place % period * 16)) + place / period * period * 16
}
