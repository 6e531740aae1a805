//! Every way for a decode step to be refused by its tensors and numbers, with its message. Nothing here is launched: the
//! addresses are made up.
#![allow(missing_docs, reason = "a test crate has no readers of its docs")]

mod common;
mod decode_request;

use common::parts::{Parts, Refusal, parts};
use decode_request::{Decode, refusal};
use ferroattn::tensor::Dtype;

#[test]
fn the_unchanged_request_is_accepted() {
    Decode::new().request().check().expect("a good request");
}

#[test]
fn decode_refuses_wrong_dtypes() {
    let table: [Refusal<Decode>; 9] = [
        (
            |d| d.query.dtype = Dtype::F32,
            "`query` must be bf16 or f16 or fp8_e4m3, but its dtype is f32",
        ),
        (
            |d| d.key_cache.dtype = Dtype::F16,
            "`key_cache` must be bf16 or fp8_e4m3 or fp8_e5m2 or i8, but its dtype is f16",
        ),
        (
            |d| d.value_cache.dtype = Dtype::U8,
            "`value_cache` must be bf16, but its dtype is u8",
        ),
        (
            |d| d.block_table.dtype = Dtype::I64,
            "`block_table` must be i32, but its dtype is i64",
        ),
        (
            |d| d.seq_lens.dtype = Dtype::I64,
            "`seq_lens` must be i32, but its dtype is i64",
        ),
        (
            |d| d.out.dtype = Dtype::F16,
            "`out` must be bf16, but its dtype is f16",
        ),
        (
            |d| d.lse.dtype = Dtype::Bf16,
            "`lse` must be f32, but its dtype is bf16",
        ),
        (
            |d| {
                d.query.dtype = Dtype::F8E4m3;
                d.query.address = 0x1000;
            },
            "`key_cache` must be fp8_e4m3 or fp8_e5m2 or i8, but its dtype is bf16",
        ),
        (
            |d| d.key_cache.dtype = Dtype::F8E4m3Fnuz,
            "`key_cache` is fp8_e4m3fnuz, an FP8 format of AMD GPUs with another exponent bias: the same \
             bytes mean half the value, and NVIDIA GPUs cannot convert them; use fp8_e4m3 or fp8_e5m2 (OCP) \
             instead",
        ),
    ];
    for (change, message) in table {
        assert_eq!(refusal(change), message);
    }
}

#[test]
fn decode_refuses_wrong_shapes() {
    let table: [Refusal<Decode>; 13] = [
        (
            |d| d.query.shaped(&[24, 64]),
            "`query` must be [num_seqs, num_query_heads, head_size], but its shape is [24, 64]",
        ),
        (
            |d| d.key_cache.shaped(&[160, 2, 64]),
            "`key_cache` must be [num_blocks, block_size, num_kv_heads, head_size], but its shape is \
             [160, 2, 64]",
        ),
        (
            |d| d.key_cache.shaped(&[10, 16, 2, 128]),
            "`key_cache` must be [num_blocks, block_size, num_kv_heads, head_size] = [10, 16, 2, 64], but \
             its shape is [10, 16, 2, 128]",
        ),
        (
            |d| d.value_cache.shaped(&[10, 16, 64]),
            "`value_cache` must be [num_blocks, block_size, num_kv_heads, head_size_v], but its shape is \
             [10, 16, 64]",
        ),
        (
            |d| d.value_cache.shaped(&[10, 16, 4, 64]),
            "`value_cache` must be [num_blocks, block_size, num_kv_heads, head_size_v] = [10, 16, 2, 64], \
             but its shape is [10, 16, 4, 64]",
        ),
        (
            |d| d.block_table.shaped(&[4]),
            "`block_table` must be [num_seqs, max_num_blocks_per_seq], but its shape is [4]",
        ),
        (
            |d| d.block_table.shaped(&[2, 4]),
            "`block_table` must be [num_seqs, max_num_blocks_per_seq] = [3, 4], but its shape is [2, 4]",
        ),
        (
            |d| d.options.max_seq_len = Some(65),
            "`block_table` must be [num_seqs, max_num_blocks_per_seq] with at least 5 blocks of 16 tokens \
             for max_seq_len 65, but its shape is [3, 4]",
        ),
        (
            |d| d.seq_lens.shaped(&[4]),
            "`seq_lens` must be [num_seqs] = [3], but its shape is [4]",
        ),
        (
            |d| d.seq_lens.shaped(&[3, 1]),
            "`seq_lens` must be [num_seqs] = [3], but its shape is [3, 1]",
        ),
        (
            |d| d.out.shaped(&[3, 8, 128]),
            "`out` must be [num_seqs, num_query_heads, head_size_v] = [3, 8, 64], but its shape is \
             [3, 8, 128]",
        ),
        (
            |d| d.out.shaped(&[3, 512]),
            "`out` must be [num_seqs, num_query_heads, head_size_v] = [3, 8, 64], but its shape is [3, 512]",
        ),
        (
            |d| d.lse.shaped(&[8, 3]),
            "`lse` must be [num_seqs, num_query_heads] = [3, 8], but its shape is [8, 3]",
        ),
    ];
    for (change, message) in table {
        assert_eq!(refusal(change), message);
    }
}

#[test]
fn decode_refuses_strides_that_it_cannot_follow() {
    let table: [Refusal<Decode>; 10] = [
        (
            |d| d.query.strides = vec![513, 64, 1],
            "`query` must have a contiguous last dimension and other strides that are multiples of 2, but \
             its strides are [513, 64, 1] (in elements)",
        ),
        (
            |d| d.query.strides = vec![1024, 128, 2],
            "`query` must have a contiguous last dimension and other strides that are multiples of 2, but \
             its strides are [1024, 128, 2] (in elements)",
        ),
        (
            |d| d.query.strides = vec![-512, 64, 1],
            "`query` must have a contiguous last dimension and other strides that are multiples of 2, but \
             its strides are [-512, 64, 1] (in elements)",
        ),
        (
            |d| d.key_cache.strides[1] = 132,
            "`key_cache` must have a contiguous last dimension and other strides that are multiples of 8, \
             but its strides are [2048, 132, 64, 1] (in elements)",
        ),
        (
            |d| d.value_cache.strides[2] = 68,
            "`value_cache` must have a contiguous last dimension and other strides that are multiples of \
             8, but its strides are [2048, 128, 68, 1] (in elements)",
        ),
        (
            |d| d.key_cache.strides[1] = 1 << 27,
            "`key_cache` must have at most 67108863 elements from slot to slot, but its strides are \
             [2048, 134217728, 64, 1] (in elements)",
        ),
        (
            |d| d.value_cache.strides[1] = 1 << 27,
            "`value_cache` must have at most 67108863 elements from slot to slot, but its strides are \
             [2048, 134217728, 64, 1] (in elements)",
        ),
        (
            |d| d.block_table.strides = vec![8, 2],
            "`block_table` must have a contiguous last dimension and no negative stride, but its strides \
             are [8, 2] (in elements)",
        ),
        (
            |d| d.seq_lens.strides = vec![2],
            "`seq_lens` must have a contiguous last dimension and no negative stride, but its strides are \
             [2] (in elements)",
        ),
        (
            |d| d.out.strides = vec![512, 66, 1],
            "`out` must have a contiguous last dimension and other strides that are multiples of 4, but \
             its strides are [512, 66, 1] (in elements)",
        ),
    ];
    for (change, message) in table {
        assert_eq!(refusal(change), message);
    }
}

#[test]
fn slots_may_be_as_many_bytes_apart_whatever_their_values_are() {
    const MOST_BYTES: i64 = i32::MAX as i64 / 16 / 16 * 16;
    for dtype in [Dtype::Bf16, Dtype::F8E4m3] {
        let mut d = Decode::new();
        for cache in [&mut d.key_cache, &mut d.value_cache] {
            cache.dtype = dtype;
        }
        if dtype == Dtype::F8E4m3 {
            d.kv_scales = Some((parts(Dtype::F32, &[1]), parts(Dtype::F32, &[1])));
        }
        let value_bytes = if dtype == Dtype::Bf16 { 2 } else { 1 };
        d.key_cache.strides[1] = MOST_BYTES / value_bytes;
        d.request().check().expect("as far apart as may be");
        d.key_cache.strides[1] = (MOST_BYTES + 16) / value_bytes;
        d.request().check().expect_err("too far apart");
    }
}

#[test]
fn decode_refuses_null_and_misaligned_addresses() {
    type Pick = fn(&mut Decode) -> &mut Parts;
    let table: [(&str, usize, Pick); 7] = [
        ("query", 4, |d| &mut d.query),
        ("key_cache", 16, |d| &mut d.key_cache),
        ("value_cache", 16, |d| &mut d.value_cache),
        ("block_table", 4, |d| &mut d.block_table),
        ("seq_lens", 4, |d| &mut d.seq_lens),
        ("out", 8, |d| &mut d.out),
        ("lse", 4, |d| &mut d.lse),
    ];
    for (tensor, alignment, pick) in table {
        for address in [0, 0x1000 + alignment as u64 / 2] {
            assert_eq!(
                refusal(|d| pick(d).address = address),
                format!(
                    "`{tensor}` must be aligned to {alignment} bytes and not null, but its address is \
                     {address:#x}"
                )
            );
        }
    }
}

#[test]
fn decode_refuses_numbers_out_of_range() {
    let heads = |d: &mut Decode, query: usize, kv: usize| {
        d.query.shaped(&[3, query, 64]);
        d.key_cache.shaped(&[10, 16, kv, 64]);
        d.value_cache.shaped(&[10, 16, kv, 64]);
    };
    assert_eq!(
        refusal(|d| heads(d, 7, 2)),
        "`num_query_heads` must be a positive multiple of num_kv_heads = 2, but it is 7"
    );
    assert_eq!(
        refusal(|d| heads(d, 8, 0)),
        "`num_query_heads` must be a positive multiple of num_kv_heads = 0, but it is 8"
    );
    assert_eq!(
        refusal(|d| heads(d, 0, 2)),
        "`num_query_heads` must be a positive multiple of num_kv_heads = 2, but it is 0"
    );
    for block_size in [0, 4, 12] {
        let message = refusal(|d| d.key_cache.shaped(&[10, block_size, 2, 64]));
        assert_eq!(
            message,
            format!("`block_size` must be a multiple of 8, at least 8, but it is {block_size}")
        );
    }
    for (scale, name) in [
        (f32::NAN, "NaN"),
        (f32::INFINITY, "inf"),
        (0.0, "0"),
        (-0.5, "-0.5"),
    ] {
        assert_eq!(
            refusal(|d| d.softmax_scale = scale),
            format!("`softmax_scale` must be positive and finite, but it is {name}")
        );
    }
    assert_eq!(
        refusal(|d| {
            d.query.shaped(&[70_000, 8, 64]);
            d.out.shaped(&[70_000, 8, 64]);
            d.lse.shaped(&[70_000, 8]);
            d.block_table.shaped(&[70_000, 4]);
            d.seq_lens.shaped(&[70_000]);
        }),
        "`num_seqs` must be at most 65535, but it is 70000"
    );
    assert_eq!(
        refusal(|d| d.block_table.shaped(&[3, 1 << 28])),
        "`max_num_blocks_per_seq * block_size` must be at most 2147483647, but it is 4294967296"
    );
    assert_eq!(
        refusal(|d| {
            d.key_cache.shaped(&[1 << 31, 16, 2, 64]);
            d.value_cache.shaped(&[1 << 31, 16, 2, 64]);
        }),
        "`num_blocks` must be at most 2147483647, but it is 2147483648"
    );
}
