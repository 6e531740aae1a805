//! Requests larger than any machine: what kernels cannot count to is a typed error, and nothing wraps around. Nothing here
//! runs.
#![allow(missing_docs, reason = "a test crate has no readers of its docs")]

mod common;

use common::parts::{Untouched, parts};
use ferroattn::error::RequestError;
use ferroattn::ops::{
    DecodeMlaRequest, DecodeOptions, DecodeRequest, UnifiedOptions, UnifiedRequest,
};
use ferroattn::plan::{DeviceInfo, SplitPolicy};
use ferroattn::tensor::Dtype;
use ferroattn::{Error, Result};

/// A step with a head of 64 values for each KV head, whose block table names 16 tokens a sequence.
fn unified(
    num_tokens: usize,
    num_seqs: usize,
    num_kv_heads: usize,
    queries: usize,
) -> UnifiedRequest<'static> {
    let mut cache = parts(Dtype::Bf16, &[10, 16, num_kv_heads, 64]);
    // Heads before slots.
    cache.strides = vec![num_kv_heads as i64 * 1024, 64, 1024, 1];
    let query = parts(Dtype::Bf16, &[num_tokens, num_kv_heads * queries, 64]);
    UnifiedRequest {
        query: query.view(),
        key_cache: cache.view(),
        value_cache: cache.view(),
        block_table: parts(Dtype::I32, &[num_seqs, 1]).view(),
        query_start_loc: parts(Dtype::I32, &[num_seqs + 1]).view(),
        seq_lens: parts(Dtype::I32, &[num_seqs]).view(),
        out: query.view_mut(),
        lse: None,
        softmax_scale: 0.125,
        scales: None,
        options: UnifiedOptions::default(),
    }
}

fn message<T>(result: Result<T>) -> String {
    match result {
        Err(error @ Error::Request(RequestError::Value { .. })) => error.to_string(),
        Err(other) => panic!("another error: {other:?}"),
        Ok(_) => panic!("it is accepted"),
    }
}

#[test]
fn thread_blocks_of_unified_attention_are_counted() {
    // 2^25 tiles of sequences, for each of 64 heads: as many as a grid has, and one more for the tokens.
    let full = (1 << 25) - 1;
    let plan = unified(2, full, 64, 1)
        .check()
        .expect("it fits")
        .plan(&DeviceInfo::H200)
        .expect("a plan");
    let grids: Vec<_> = plan.launches().map(|launch| launch.grid[0]).collect();
    assert_eq!(grids, [(1 << 31) - 64]);
    assert_eq!(
        message(unified(2, full + 1, 64, 1).check()),
        "`num_seqs` must be few enough for one launch with 64 KV heads, but it is 33554432"
    );
    // 2^32 of them are none in 32 bits.
    assert_eq!(
        message(unified(2, 1 << 26, 64, 1).check()),
        "`num_seqs` must be few enough for one launch with 64 KV heads, but it is 67108864"
    );
    assert_eq!(
        message(unified(1 << 28, 2, 1 << 12, 4).check()),
        "`num_tokens` must be few enough for one launch with 4096 KV heads, but it is 268435456"
    );
    assert_eq!(
        message(unified(1 << 28, 2, 1, 8).check()),
        "`num_tokens * num_queries_per_kv` must be at most 2147483647, but it is 2147483648"
    );
}

#[test]
fn a_workspace_that_cannot_be_counted_is_refused() {
    // 2^16 sequences, 2^27 heads and 2^15 splits leave 2^58 parts of 264 bytes.
    let (num_seqs, heads) = (65_535, 1 << 27);
    let cache = parts(Dtype::Bf16, &[10, 16, 1, 64]).view();
    let query = parts(Dtype::Bf16, &[num_seqs, heads, 64]);
    let decode = DecodeRequest {
        query: query.view(),
        key_cache: cache,
        value_cache: cache,
        block_table: parts(Dtype::I32, &[num_seqs, 1 << 17]).view(),
        seq_lens: parts(Dtype::I32, &[num_seqs]).view(),
        out: query.view_mut(),
        lse: None,
        softmax_scale: 0.125,
        scales: None,
        options: DecodeOptions::default().split_policy(SplitPolicy::Fixed(64)),
    }
    .check()
    .expect("it can be counted");
    let plan = decode.plan(&DeviceInfo::H200).expect("a plan");
    assert_eq!(plan.workspace_bytes(), usize::MAX);
    let got = 1 << 40;
    let mut workspace = parts(Dtype::U8, &[got]).view_mut();
    let error = decode.launch(&plan, &mut workspace, &Untouched);
    let needed = usize::MAX;
    assert!(
        matches!(error, Err(Error::Request(RequestError::Workspace { needed: n, got: g })) if (n, g) == (needed, got)),
        "{error:?}"
    );
}

#[test]
fn a_bound_of_lengths_that_kernels_cannot_count_to_is_refused() {
    let mut step = unified(4, 2, 1, 1);
    step.block_table = parts(Dtype::I32, &[2, 1 << 28]).view();
    step.options.max_seq_len = Some(u32::MAX);
    assert_eq!(
        message(step.check()),
        "`max_seq_len` must be at most 2147483647, but it is 4294967295"
    );
}

#[test]
fn query_tokens_beyond_a_grid_are_refused() {
    let decode = |query_len: usize| {
        DecodeMlaRequest {
            query: parts(Dtype::Bf16, &[1, query_len, 2, 576]).view(),
            cache: parts(Dtype::Bf16, &[10, 16, 576]).view(),
            block_table: parts(Dtype::I32, &[1, 256]).view(),
            seq_lens: parts(Dtype::I32, &[1]).view(),
            out: parts(Dtype::Bf16, &[1, query_len, 2, 512]).view_mut(),
            lse: None,
            softmax_scale: 0.07,
            scales: None,
            options: DecodeOptions::default().split_policy(SplitPolicy::Fixed(64)),
        }
        .check()
    };
    let plan = decode(65_535).and_then(|decode| decode.plan(&DeviceInfo::H200));
    let plan = plan.expect("it fits");
    let merge = plan.launches().last().expect("a merge");
    assert_eq!(merge.grid[2], 65_535, "{merge:?}");
    assert_eq!(
        message(decode(65_536)),
        "`query_len` must be at most 65535, but it is 65536"
    );
}
