//! What waits in shared memory until it is needed: the loop over keys has no registers for it.

use crate::attention::mask::Visible;
use crate::dtype::CacheFormat;
use crate::gpu::Gpu;
use crate::params::PrefillParams;
use crate::prefill::work::{RowWork, kv_head};
use crate::prefill::{PrefillTile, RowView};

/// Bytes of a [`StashedWork`].
pub(super) const PARKED_BYTES: u32 = 32;

/// What a thread block knows of its rows. Its loop has no registers for that and seldom needs it, so it waits in
/// shared memory.
#[derive(Clone, Copy)]
pub(crate) struct StashedWork {
    pub(crate) work: RowWork,
    pub(crate) visible: Visible,
    /// Splits of the tile's keys, fewer than 2^31.
    pub(crate) num_splits: u32,
}

impl StashedWork {
    /// Leaves it at `at`, in 32 bytes.
    ///
    /// # Safety
    /// The thread block's own memory, aligned to 16 bytes, that nobody touches until the next barrier.
    #[inline(always)]
    pub(crate) unsafe fn store<G: Gpu>(self, gpu: G, at: u32) {
        let work = self.work;
        if gpu.thread_idx() == 0 {
            // SAFETY: nobody else touches the memory, which is aligned: the contract of `store`.
            unsafe {
                gpu.st_shared_b128(
                    at,
                    [work.kv_head, work.seq, work.query_start, work.query_len],
                );
                let splits = self.num_splits << 1 | self.visible.causal as u32;
                let words = [work.first_row, work.num_rows, self.visible.seq_len, splits];
                gpu.st_shared_b128(at + 16, words);
            }
        }
    }

    /// Takes it from there.
    ///
    /// # Safety
    /// It was stored at `at` before a barrier.
    #[inline(always)]
    pub(crate) unsafe fn load<G: Gpu>(gpu: G, params: &PrefillParams, at: u32) -> Self {
        // SAFETY: stored before a barrier: the contract of `load`.
        let (words, more) = unsafe { (gpu.ld_shared_b128(at), gpu.ld_shared_b128(at + 16)) };
        let [kv_head, seq, query_start, query_len] = words;
        let [first_row, num_rows, seq_len, splits] = more;
        let work = RowWork {
            kv_head,
            seq,
            query_start,
            query_len,
            first_row,
            num_rows,
        };
        Self {
            work,
            visible: work.visible_of(params, seq_len, splits & 1 != 0),
            num_splits: splits >> 1,
        }
    }

    /// The keys that the thread block's tiles hold.
    #[inline(always)]
    pub(crate) fn keys<G: Gpu>(
        self,
        gpu: G,
        params: &PrefillParams,
        shape: PrefillTile,
    ) -> (u32, u32) {
        let keys = self
            .work
            .keys(params, self.visible, shape.rows(), shape.tile_kv);
        let (first, end) = keys.part(gpu.cta_idx_y(), params.split_len);
        (first.max(keys.begin), end)
    }

    /// What this warp has to know of its rows.
    #[inline(always)]
    pub(crate) fn view<G: Gpu>(
        self,
        gpu: G,
        params: &PrefillParams,
        shape: PrefillTile,
    ) -> RowView {
        RowView {
            rows: self.work.warp_rows(gpu, params, shape),
            visible: self.visible,
            first_head: self.work.first_head(params),
        }
    }
}

/// What queries, and a KV head's keys and values, were divided by, where a cache of bytes says so for all tokens.
#[derive(Clone, Copy)]
pub(super) struct KvScales {
    pub(super) query: f32,
    pub(super) keys: f32,
    pub(super) values: f32,
}

impl KvScales {
    const NONE: Self = Self {
        query: 1.0,
        keys: 1.0,
        values: 1.0,
    };

    /// Those of this thread block's KV head.
    ///
    /// # Safety
    /// Over a cache of bytes the scales have the shapes that `params` documents.
    #[inline(always)]
    pub(super) unsafe fn load<G: Gpu, C: CacheFormat>(gpu: G, params: &PrefillParams) -> Self {
        let mut scales = Self::NONE;
        if C::BYTES == 1 {
            // SAFETY: one f32 for all heads, with stride 0, or one for each: the host's `check_scales`.
            let load = |at: u64| f32::from_bits(unsafe { gpu.ld_global_b32(at) });
            if params.q_scale != 0 {
                scales.query = load(params.q_scale);
            }
            if !C::TOKEN_SCALES {
                let head = kv_head(gpu, params) as u64;
                scales.keys = load(params.k_scale + head * params.stride_k_scale as u64);
                scales.values = load(params.v_scale + head * params.stride_v_scale as u64);
            }
        }
        scales
    }

    /// Leaves them at `at`, in 16 bytes, if there can be any.
    ///
    /// # Safety
    /// As [`StashedWork::store`].
    #[inline(always)]
    pub(super) unsafe fn store<G: Gpu, C: CacheFormat>(self, gpu: G, at: u32) {
        if C::BYTES == 1 && gpu.thread_idx() == 0 {
            let words = [self.query, self.keys, self.values, 1.0].map(f32::to_bits);
            // SAFETY: nobody else touches the memory, which is aligned: the contract of `store`.
            unsafe { gpu.st_shared_b128(at, words) };
        }
    }

    /// Takes them from there.
    ///
    /// # Safety
    /// They were stored at `at` before a barrier.
    #[inline(always)]
    pub(super) unsafe fn take<G: Gpu, C: CacheFormat>(gpu: G, at: u32) -> Self {
        if C::BYTES == 2 {
            return Self::NONE;
        }
        // SAFETY: stored before a barrier: the contract of `take`.
        let [query, keys, values, _] = unsafe { gpu.ld_shared_b128(at) };
        Self {
            query: f32::from_bits(query),
            keys: f32::from_bits(keys),
            values: f32::from_bits(values),
        }
    }
}
