//! What the decodes over latent caches, of rows and of entries, share: how they choose a kernel, and what they launch
//! beside it.

use gpu_kernels::entry::Entry;
use gpu_kernels::mla::MlaTile;
use gpu_kernels::params::{
    CheckFault, CheckPagedParams, DecodeMlaParams, MaskParams, MergeParams, ScaleList,
    TokenScaleList,
};

use super::shape::AttentionShape;
use super::split_plan::DecodePlan;
use crate::error::{Error, Result};
use crate::plan::DeviceInfo;

/// What a decode over latents needs of its kernel.
pub(super) struct Need<F> {
    pub(super) operation: &'static str,
    /// Rows of the query that a thread block may take together.
    pub(super) rows: u32,
    /// Fewest and most tiles of a ring.
    pub(super) stages: (u32, u32),
    /// Of a kernel's thread block with so many tiles in its ring.
    pub(super) shared_bytes: F,
}

/// A kernel and how many tiles its ring has on a machine.
#[derive(Clone, Copy)]
pub(super) struct Choice {
    pub(super) entry: &'static Entry,
    pub(super) cut: MlaTile,
    pub(super) stages: u32,
}

impl<F: Fn(MlaTile, u32) -> u32> Need<F> {
    /// The last kernel that the rows fill and that fits the machine: few rows leave shared memory for more thread
    /// blocks. `kernels` are for ever more rows, those whose warp groups multiply behind the others.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the machine has too little shared memory for any.
    pub(super) fn choose(
        &self,
        kernels: &'static [(&'static Entry, MlaTile)],
        device: &DeviceInfo,
    ) -> Result<Choice> {
        let fits = |&(entry, cut): &(&'static Entry, MlaTile)| self.fit(entry, cut, device);
        let narrow = kernels.first().map_or(0, |(_, cut)| cut.heads);
        let is_filled = |&&(_, cut): &&(&'static Entry, MlaTile)| {
            // Groups take as long for few rows as for many, but less time than two thread blocks for few rows.
            let fewest = if cut.products.is_group() {
                narrow
            } else {
                cut.heads / 2
            };
            cut.heads == narrow || self.rows > fewest
        };
        let runs = |&&(entry, _): &&(&'static Entry, MlaTile)| device.runs(entry);
        let mut last_first = kernels.iter().rev().filter(runs).filter(is_filled);
        let chosen = last_first.find_map(fits);
        chosen.ok_or_else(|| Error::Unsupported {
            operation: self.operation,
            what: "a device with shared memory per thread block of",
            got: format!("{} bytes", device.shared_bytes_per_cta),
            supported: kernels.first().map_or_else(String::new, |&(_, cut)| {
                format!("at least {} bytes", (self.shared_bytes)(cut, self.stages.0))
            }),
        })
    }

    /// As many tiles as leave room for as many thread blocks on a multiprocessor as the kernel is made for, or for one.
    fn fit(&self, entry: &'static Entry, cut: MlaTile, device: &DeviceInfo) -> Option<Choice> {
        let per_cta = device.shared_bytes_per_cta;
        let per_sm = (device.shared_bytes_per_sm / entry.min_ctas).saturating_sub(1024);
        // A ring of groups has a tile for each.
        let most_stages = if cut.products.is_group() {
            self.stages.0
        } else {
            self.stages.1
        };
        let most = |limit| {
            (self.stages.0..=most_stages)
                .rev()
                .find(|&stages| (self.shared_bytes)(cut, stages) <= limit)
        };
        let stages = most(per_sm.min(per_cta)).or_else(|| most(per_cta))?;
        Some(Choice { entry, cut, stages })
    }
}

/// The check of block table, lengths and scales.
pub(super) fn checks(rows: &DecodeMlaParams, shape: &AttentionShape) -> CheckPagedParams {
    let scale = |tensor, address| ScaleList {
        address,
        count: u32::from(address != 0),
        tensor,
        ..ScaleList::NONE
    };
    CheckPagedParams {
        block_table: rows.block_table,
        seq_lens: rows.seq_lens,
        check: rows.check,
        stride_block_table: rows.stride_block_table,
        num_blocks: shape.num_blocks.into(),
        stride_seq_lens: rows.stride_seq_lens,
        query_start_loc: 0,
        scales: [
            scale(CheckFault::Q_SCALE, rows.q_scale),
            scale(CheckFault::K_SCALE, rows.k_scale),
            ScaleList::NONE,
            ScaleList::NONE,
        ],
        token_scales: [TokenScaleList::NONE; 2],
        num_seqs: shape.num_seqs,
        block_size: rows.block_size,
        max_seq_len: rows.max_seq_len,
        num_kv_heads: 1,
        num_tokens: 0,
        max_query_len: rows.query_len,
        query_len: rows.query_len,
        num_decodes: 0,
        mask: MaskParams::ALL,
        num_parts: 1,
        reserved: Default::default(),
    }
}

/// The merge of the splits; `sink` is the address of the sinks, or 0.
pub(super) fn merge(
    rows: &DecodeMlaParams,
    plan: &DecodePlan,
    head_size_v: u32,
    sink: u64,
) -> MergeParams {
    let share = plan.merge_share(rows.num_seqs);
    MergeParams {
        partial_out: rows.partial_out,
        partial_lse: rows.partial_lse,
        merges: 0,
        seq_lens: rows.seq_lens,
        out: rows.out,
        lse: rows.lse,
        check: rows.check,
        sink,
        stride_seq_lens: rows.stride_seq_lens,
        stride_out_seq: rows.stride_out_seq,
        stride_out_token: rows.stride_out_token,
        stride_out_head: rows.stride_out_head,
        stride_lse_seq: rows.stride_lse_seq,
        stride_lse_token: rows.stride_lse_token,
        stride_lse_head: rows.stride_lse_head,
        num_rows: rows.query_len * rows.num_query_heads,
        num_query_heads: rows.num_query_heads,
        head_size_v,
        max_seq_len: rows.max_seq_len,
        split_len: rows.split_len,
        num_kv_splits: rows.num_kv_splits,
        query_start_loc: 0,
        mask: MaskParams::ALL,
        sink_in_lse: 0,
        num_tokens: 0,
        num_seqs: rows.num_seqs,
        units: share.units,
        ctas_y: share.ctas_y,
        reserved: Default::default(),
    }
}

/// How long a thread block takes to load its rows of the query and to store those of the output, measured on an H200.
pub(super) fn cta_nanoseconds(cut: MlaTile) -> f64 {
    300.0 * f64::from(cut.heads)
}

/// How long a thread block takes for a tile, measured on an H200: a part for the barriers, a part for the products.
pub(super) fn tile_nanoseconds(cut: MlaTile, head_size: u32) -> f64 {
    let products = f64::from(cut.tile_len * cut.heads * (head_size + cut.head_size_v));
    1000.0 + products / 1400.0
}
