//! What the decodes over latent caches, of rows and of entries, launch beside their own kernels.

use gpu_kernels::latent::Cut;
use gpu_kernels::params::{
    CheckFault, CheckPagedParams, DecodeMlaParams, MergeParams, ScaleList, TokenScaleList,
};

/// The check of block table, lengths and scales.
pub(super) fn checks(rows: &DecodeMlaParams, num_seqs: u32, num_blocks: i64) -> CheckPagedParams {
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
        num_blocks,
        stride_seq_lens: rows.stride_seq_lens,
        query_start_loc: 0,
        scales: [
            scale(CheckFault::Q_SCALE, rows.q_scale),
            scale(CheckFault::K_SCALE, rows.k_scale),
            ScaleList::NONE,
            ScaleList::NONE,
        ],
        token_scales: [TokenScaleList::NONE; 2],
        num_seqs,
        block_size: rows.block_size,
        max_seq_len: rows.max_seq_len,
        num_kv_heads: 1,
        num_tokens: 0,
        max_query_len: rows.query_len,
        query_len: rows.query_len,
        num_decodes: 0,
        sliding_window: 0,
        num_parts: 1,
    }
}

/// The merge of the splits; `sink` is the address of the sinks, or 0.
pub(super) fn merge(rows: &DecodeMlaParams, head_size_v: u32, sink: u64) -> MergeParams {
    MergeParams {
        partial_out: rows.partial_out,
        partial_lse: rows.partial_lse,
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
        sliding_window: 0,
        sink_in_lse: 0,
        num_tokens: 0,
        reserved: 0,
    }
}

/// How long a thread block takes to load its rows of the query and to store those of the output, measured on an H200.
pub(super) fn cta_nanoseconds(cut: Cut) -> f64 {
    300.0 * f64::from(cut.heads)
}

/// How long a thread block takes for a tile, measured on an H200: a part for the barriers, a part for the products.
pub(super) fn tile_nanoseconds(cut: Cut, head_size: u32) -> f64 {
    let products = f64::from(cut.tile_len * cut.heads * (head_size + cut.head_size_v));
    1000.0 + products / 1400.0
}
