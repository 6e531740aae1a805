//! Every way for a decode step to be refused, with its message. Nothing here is launched: the addresses are made up.
#![allow(missing_docs, reason = "a test crate has no readers of its docs")]

mod common;

use common::parts::{Parts, Refusal, Untouched, parts};
use ferroattn::Error;
use ferroattn::ops::{DecodeOptions, DecodeRequest, KvScales};
use ferroattn::plan::{DeviceInfo, SplitPolicy};
use ferroattn::tensor::{Dtype, TensorView};

/// A change that borrows something.
type Change<'a> = &'a dyn Fn(&mut Decode);

/// A decode request in parts: 3 sequences, 8 query heads, 2 KV heads of 64, blocks of 16.
#[derive(Clone, Debug)]
struct Decode {
    query: Parts,
    key_cache: Parts,
    value_cache: Parts,
    block_table: Parts,
    seq_lens: Parts,
    out: Parts,
    lse: Parts,
    softmax_scale: f32,
    q_scale: Option<Parts>,
    kv_scales: Option<(Parts, Parts)>,
    options: DecodeOptions<'static>,
}

impl Decode {
    fn new() -> Self {
        let cache = parts(Dtype::Bf16, &[10, 16, 2, 64]);
        Self {
            query: parts(Dtype::Bf16, &[3, 8, 64]),
            key_cache: cache.clone(),
            value_cache: cache,
            block_table: parts(Dtype::I32, &[3, 4]),
            seq_lens: parts(Dtype::I32, &[3]),
            out: parts(Dtype::Bf16, &[3, 8, 64]),
            lse: parts(Dtype::F32, &[3, 8]),
            softmax_scale: 0.125,
            q_scale: None,
            kv_scales: None,
            options: DecodeOptions::default(),
        }
    }

    fn request(&self) -> DecodeRequest<'static> {
        DecodeRequest {
            query: self.query.view(),
            key_cache: self.key_cache.view(),
            value_cache: self.value_cache.view(),
            block_table: self.block_table.view(),
            seq_lens: self.seq_lens.view(),
            out: self.out.view_mut(),
            lse: Some(self.lse.view_mut()),
            softmax_scale: self.softmax_scale,
            scales: self.kv_scales.as_ref().map(|(k, v)| KvScales {
                q_scale: self.q_scale.as_ref().map(Parts::view),
                k_scale: k.view(),
                v_scale: v.view(),
            }),
            options: self.options,
        }
    }
}

/// The message with which a changed request is refused.
fn refusal(change: impl FnOnce(&mut Decode)) -> String {
    let mut decode = Decode::new();
    change(&mut decode);
    match decode.request().check() {
        Ok(_) => panic!("accepted: {decode:?}"),
        Err(error) => error.to_string(),
    }
}

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

#[test]
fn decode_lists_what_it_supports() {
    let message = refusal(|d| {
        d.query.shaped(&[3, 8, 80]);
        d.key_cache.shaped(&[10, 16, 2, 80]);
        d.value_cache.shaped(&[10, 16, 2, 80]);
        d.out.shaped(&[3, 8, 80]);
    });
    assert_eq!(
        message,
        "decode does not support head sizes (of keys, of values) (80, 80); supported: (64, 64), (96, 96), \
         (128, 128), (192, 128), (192, 192), (256, 256)"
    );
}

#[test]
fn decode_wants_scales_exactly_where_there_is_fp8() {
    let scale = |len: usize| parts(Dtype::F32, &[len]);
    let fp8 = |d: &mut Decode| {
        for cache in [&mut d.key_cache, &mut d.value_cache] {
            cache.dtype = Dtype::F8E4m3;
        }
        d.kv_scales = Some((scale(1), scale(2)));
    };
    let mut good = Decode::new();
    fp8(&mut good);
    good.request()
        .check()
        .expect("scales of one and of two heads");

    assert_eq!(
        refusal(|d| d.kv_scales = Some((scale(1), scale(1)))),
        "`scales` must be absent for a cache of 16-bit values, but it is given"
    );
    let table: [(Change<'_>, &str); 10] = [
        (
            &|d| d.kv_scales = None,
            "`scales` must be given for a cache of bytes, but it is missing",
        ),
        (
            &|d| d.q_scale = Some(scale(1)),
            "`q_scale` must be absent for a query of 16-bit values, but it is given",
        ),
        (
            &|d| d.query.dtype = Dtype::F8E4m3,
            "`q_scale` must be given for an fp8_e4m3 query, but it is missing",
        ),
        (
            &|d| d.kv_scales = Some((scale(3), scale(1))),
            "`k_scale` must be [1], [num_kv_heads] = [2], or [num_blocks, block_size, num_kv_heads] = \
             [10, 16, 2], but its shape is [3]",
        ),
        (
            &|d| d.kv_scales = Some((scale(1), parts(Dtype::F32, &[2, 1]))),
            "`v_scale` must be [1], [num_kv_heads] = [2], or [num_blocks, block_size, num_kv_heads] = \
             [10, 16, 2], but its shape is [2, 1]",
        ),
        (
            &|d| d.kv_scales = Some((parts(Dtype::F16, &[1]), scale(1))),
            "`k_scale` must be f32, but its dtype is f16",
        ),
        (
            &|d| d.kv_scales = Some((parts(Dtype::F32, &[10, 16, 2]), scale(1))),
            "`v_scale` must be [1], [num_kv_heads] = [2], or [num_blocks, block_size, num_kv_heads] = \
             [10, 16, 2], but its shape is [1]",
        ),
        (
            &|d| {
                d.key_cache.dtype = Dtype::I8;
                d.value_cache.dtype = Dtype::I8;
            },
            "`k_scale` must be [num_blocks, block_size, num_kv_heads] = [10, 16, 2], but its shape is [1]",
        ),
        (
            &|d| {
                d.key_cache.dtype = Dtype::F8E5m2;
                d.value_cache.dtype = Dtype::F8E5m2;
                d.kv_scales = Some((scale(1), scale(3)));
            },
            "`v_scale` must be [1] or [num_kv_heads] = [2], but its shape is [3]",
        ),
        (
            &|d| d.value_cache.dtype = Dtype::F8E5m2,
            "`value_cache` must be fp8_e4m3, but its dtype is fp8_e5m2",
        ),
    ];
    for (change, message) in table {
        let refused = refusal(|d| {
            fp8(d);
            change(d);
        });
        assert_eq!(refused, message);
    }
}

#[test]
fn a_workspace_that_does_not_fit_is_refused_before_anything_is_launched() {
    let mut decode = Decode::new();
    decode.block_table.shaped(&[3, 32]);
    decode.options = DecodeOptions::default().split_policy(SplitPolicy::Fixed(1));
    let checked = decode.request().check().expect("a good request");
    let plan = checked.plan(&DeviceInfo::H200).expect("a plan");
    let needed = plan.workspace_bytes();
    assert_ne!(needed, 0, "splits need a workspace: {plan}");
    let refusal = |workspace: &Parts| {
        let launched = checked.launch(&plan, &mut workspace.view_mut(), &Untouched);
        launched.expect_err("refused").to_string()
    };
    let good = parts(Dtype::U8, &[needed]);
    assert_eq!(
        refusal(&parts(Dtype::U8, &[needed - 1])),
        format!(
            "the workspace must hold {needed} bytes, but it holds {}",
            needed - 1
        )
    );
    assert_eq!(
        refusal(&Parts {
            address: 0x1010,
            ..good.clone()
        }),
        "`workspace` must be aligned to 256 bytes and not null, but its address is 0x1010"
    );
    assert_eq!(
        refusal(&Parts { address: 0, ..good }),
        "`workspace` must be aligned to 256 bytes and not null, but its address is 0x0"
    );
    assert_eq!(
        refusal(&parts(Dtype::F32, &[needed])),
        "`workspace` must be u8, but its dtype is f32"
    );
    assert_eq!(
        refusal(&parts(Dtype::U8, &[1, needed])),
        format!("`workspace` must be [workspace_bytes], but its shape is [1, {needed}]")
    );
}

#[test]
fn a_machine_with_too_little_shared_memory_is_refused() {
    let checked = Decode::new().request().check().expect("a good request");
    let small = DeviceInfo {
        shared_bytes_per_cta: 48 * 1024,
        ..DeviceInfo::H200
    };
    let Err(error @ Error::Unsupported { .. }) = checked.plan(&small) else {
        panic!("planned")
    };
    let message = error.to_string();
    assert!(
        message.starts_with(
            "decode does not support a device with shared memory per thread block of 49152 bytes; \
             supported: at least "
        ),
        "{message}"
    );
}

#[test]
fn a_view_has_at_most_five_dimensions_and_as_many_strides() {
    // SAFETY: never handed to a kernel.
    let view = |shape: &[usize], strides: &[i64]| unsafe {
        TensorView::from_raw(256, Dtype::U8, shape, strides)
    };
    assert!(view(&[1; 5], &[1; 5]).is_ok());
    assert_eq!(
        view(&[1; 6], &[1; 6]).expect_err("refused").to_string(),
        "`view` must be at most 5 dimensions, each with a stride (6 given), but its shape is [1, 1, 1, 1, 1, 1]"
    );
    assert_eq!(
        view(&[2, 3], &[1]).expect_err("refused").to_string(),
        "`view` must be at most 5 dimensions, each with a stride (1 given), but its shape is [2, 3]"
    );
}
