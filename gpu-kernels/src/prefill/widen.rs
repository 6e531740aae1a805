//! Values of bytes as the f16 that tensor cores multiply: each is widened once, by the lane that copied it, in the room
//! that it was copied into.

use crate::attention::tile::row_bytes;
use crate::dtype::CacheFormat;
use crate::gpu::unroll::unroll;
use crate::gpu::{Gpu, WARP};
use crate::prefill::places::{first_place, place, wide_bytes};
use crate::prefill::stream::SharedStream;

/// What a lane copied of a tile's values of bytes: 16 bytes of up to four parts of each eight.
#[derive(Clone, Copy, Debug)]
pub struct ValueBytes([[[u32; 4]; 4]; 2]);

impl ValueBytes {
    /// Of 16-bit values.
    pub const NONE: Self = Self([[[0; 4]; 4]; 2]);
}

impl<C: CacheFormat, const K_STEPS: usize, const V_STEPS: usize>
    SharedStream<'_, C, K_STEPS, V_STEPS>
{
    /// Waits for the next tile's values that this lane copied, and takes them, if they are bytes.
    ///
    /// # Safety
    /// Nobody has widened them.
    #[inline(always)]
    pub unsafe fn take_values<G: Gpu>(&self, gpu: G) -> ValueBytes {
        let ValueBytes(mut bytes) = ValueBytes::NONE;
        if C::BYTES == 1 {
            gpu.cp_async_wait::<0>();
            let (lane, values) = self.next_values(gpu);
            unroll!([2] i in 0..2 {
                if i < Self::EIGHTS {
                    unroll!([4] part in 0..4 {
                        if let Some(at) = widened_at::<C, V_STEPS>(lane, values, i, part) {
                            // SAFETY: this lane's copy, which has arrived.
                            bytes[i][part] = unsafe { gpu.ld_shared_b128(at) };
                        }
                    });
                }
            });
        }
        ValueBytes(bytes)
    }

    /// Puts what they are as f16 in their place.
    ///
    /// # Safety
    /// They were taken of this next tile.
    #[inline(always)]
    pub unsafe fn widen_values<G: Gpu>(&self, gpu: G, ValueBytes(bytes): ValueBytes) {
        if C::BYTES == 1 {
            let (lane, values) = self.next_values(gpu);
            unroll!([2] i in 0..2 {
                if i < Self::EIGHTS {
                    unroll!([4] part in 0..4 {
                        if let Some(at) = widened_at::<C, V_STEPS>(lane, values, i, part) {
                            let [first, second] = C::widen16(gpu, bytes[i][part]);
                            // SAFETY: where the bytes were, and the place of their second half, this lane's too.
                            unsafe {
                                gpu.st_shared_b128(at, first);
                                gpu.st_shared_b128(at ^ (place::<C, V_STEPS>(1) * 16), second);
                            }
                        }
                    });
                }
            });
        }
    }

    /// This lane, and where the values of its warp's eights of the next tile begin.
    #[inline(always)]
    fn next_values<G: Gpu>(&self, gpu: G) -> (u32, u32) {
        let thread = gpu.black_box(gpu.thread_idx());
        let row = thread / WARP * Self::EIGHTS as u32 * 8;
        let tile = Self::tile(gpu, self.load_token - Self::SHAPE.tile_kv);
        let values = tile.values + row * wide_bytes::<V_STEPS>();
        (thread % WARP, values)
    }
}

/// Where a lane's chunk number `part` of a group of eight rows is, if there are so many.
#[inline(always)]
const fn widened_at<C: CacheFormat, const STEPS: usize>(
    lane: u32,
    rows: u32,
    group: usize,
    part: usize,
) -> Option<u32> {
    let chunks = row_bytes::<C, STEPS>() / 16;
    let item = part as u32 * WARP + lane;
    if part as u32 * WARP >= 8 * chunks || item >= 8 * chunks {
        return None;
    }
    if WARP.is_multiple_of(chunks) {
        // A part has whole rows: the next part's differ in bits of their own, and so in constants.
        let (row, chunk) = (lane / chunks, lane % chunks);
        let first = rows + row * wide_bytes::<STEPS>() + first_place::<C, STEPS>(row, chunk) * 16;
        let below = part as u32 * (WARP / chunks);
        return Some((first ^ (below * 16)) + (group as u32 * 8 + below) * wide_bytes::<STEPS>());
    }
    let (row, chunk) = (item / chunks, item % chunks);
    let row_at = rows + (group as u32 * 8 + row) * wide_bytes::<STEPS>();
    Some(row_at + first_place::<C, STEPS>(row, chunk) * 16)
}
