//! What a thread block of `prefill_gqa` computes, and that there is something to compute.

use crate::attention::check::found_fault;
use crate::attention::mask::Visible;
use crate::dtype::CacheFormat;
use crate::gpu::Gpu;
use crate::params::PrefillParams;
use crate::prefill::stash::{KvScales, PARKED_BYTES, StashedWork};
use crate::prefill::work::RowWork;
use crate::prefill::{PrefillTile, RowView};

/// What a thread block computes: its rows, and their keys in one part.
#[derive(Clone, Copy)]
pub(crate) struct TileWork {
    pub(crate) work: RowWork,
    pub(crate) visible: Visible,
    /// The first key that a row sees; memory before it may have been given back.
    pub(crate) begin: u32,
    /// First KV tile of the part, and one past its last key.
    pub(crate) first_token: u32,
    pub(crate) end: u32,
    pub(crate) shape: PrefillTile,
}

impl TileWork {
    /// Finds it and parks it. `None` if there is nothing to do.
    ///
    /// # Safety
    /// Every thread of the thread block comes here, with shared memory of `shape`; the parameters name tensors of the
    /// shapes they document.
    #[inline(always)]
    pub(crate) unsafe fn find<G: Gpu, C: CacheFormat>(
        gpu: G,
        params: &PrefillParams,
        shape: PrefillTile,
    ) -> Option<Self> {
        // SAFETY: `check` is 0 or a finished check's record: the host's `launch`.
        if unsafe { found_fault(gpu, params.check) } {
            return None;
        }
        // What has to be read is asked for before anything is waited for.
        // SAFETY: the scales of a cache of bytes are readable.
        let scales = unsafe { KvScales::load::<G, C>(gpu, params) };
        // SAFETY: converged; the start of every sequence is readable.
        let work = unsafe { RowWork::find(gpu, params, shape.rows()) };
        // SAFETY: one length per sequence, and one flag or none.
        let visible = unsafe { work.visible(gpu, params) };
        if work.first_row >= work.num_rows {
            return None;
        }
        let keys = work.keys(params, visible, shape.rows(), shape.tile_kv);
        let part = gpu.cta_idx_y();
        if part >= keys.num_splits {
            return None;
        }
        let parked = StashedWork {
            work,
            visible,
            num_splits: keys.num_splits,
        };
        // SAFETY: the thread block's own memory; all come here.
        unsafe {
            parked.store(gpu, gpu.shared_base() + shape.work());
            scales.store::<G, C>(gpu, gpu.shared_base() + shape.work() + PARKED_BYTES);
            gpu.sync_cta();
        }
        let (first_token, end) = keys.part(part, params.split_len);
        Some(Self {
            work,
            visible,
            begin: keys.begin,
            first_token,
            end,
            shape,
        })
    }

    /// What products with the KV head's keys are multiplied by, and sums of its values.
    #[inline(always)]
    pub(crate) fn scales<G: Gpu, C: CacheFormat>(&self, gpu: G) -> (f32, f32) {
        // SAFETY: stored before the barrier in `find`.
        let scales = unsafe {
            KvScales::take::<G, C>(gpu, gpu.shared_base() + self.shape.work() + PARKED_BYTES)
        };
        (scales.query * scales.keys, scales.values)
    }

    /// What was parked.
    #[inline(always)]
    pub(crate) fn parked<G: Gpu>(&self, gpu: G, params: &PrefillParams) -> StashedWork {
        // SAFETY: stored before the barrier in `find`.
        unsafe { StashedWork::load(gpu, params, gpu.shared_base() + self.shape.work()) }
    }

    /// What this warp has to know of its rows.
    #[inline(always)]
    pub(crate) fn view<G: Gpu>(&self, gpu: G, params: &PrefillParams) -> RowView {
        self.parked(gpu, params).view(gpu, params, self.shape)
    }
}
