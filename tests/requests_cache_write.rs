//! Every way for a cache write to be refused, with its message. Nothing here is launched.
#![allow(missing_docs, reason = "a test crate has no readers of its docs")]

mod common;

use common::parts::{Parts, Refusal, Untouched, parts};
use ferroattn::ops::{CHECK_BYTES, CacheScales, CacheWriteRequest, CheckMode};
use ferroattn::tensor::Dtype;

/// A cache write in parts: 6 tokens, 2 heads of 64, blocks of 16.
#[derive(Clone, Debug)]
struct Write {
    key: Parts,
    value: Parts,
    key_cache: Parts,
    value_cache: Parts,
    slot_mapping: Parts,
    block_size: usize,
    /// Given, or one per token and head.
    scales: Option<(Parts, Parts)>,
    scale_per_token: bool,
    check: CheckMode,
}

impl Write {
    fn new() -> Self {
        let cache = parts(Dtype::Bf16, &[10, 16, 2, 64]);
        let new = parts(Dtype::Bf16, &[6, 2, 64]);
        Self {
            key: new.clone(),
            value: new,
            key_cache: cache.clone(),
            value_cache: cache,
            slot_mapping: parts(Dtype::I64, &[6]),
            block_size: 16,
            scales: None,
            scale_per_token: false,
            check: CheckMode::Off,
        }
    }

    fn request(&self) -> CacheWriteRequest<'static> {
        CacheWriteRequest {
            key: self.key.view(),
            value: self.value.view(),
            key_cache: self.key_cache.view_mut(),
            value_cache: self.value_cache.view_mut(),
            slot_mapping: self.slot_mapping.view(),
            block_size: self.block_size,
            scales: match &self.scales {
                None => CacheScales::None,
                Some((k, v)) if self.scale_per_token => CacheScales::PerTokenHead {
                    k_scale: k.view_mut(),
                    v_scale: v.view_mut(),
                },
                Some((k, v)) => CacheScales::Given {
                    k_scale: k.view(),
                    v_scale: v.view(),
                },
            },
            check: self.check,
        }
    }

    /// Into a cache of bytes, with scales of this shape.
    fn scaled(&mut self, shape: &[usize]) {
        self.key_cache.dtype = Dtype::F8E4m3;
        self.value_cache.dtype = Dtype::F8E4m3;
        let scales = parts(Dtype::F32, shape);
        self.scales = Some((scales.clone(), scales));
    }
}

#[test]
fn a_cache_write_refuses_what_does_not_fit() {
    Write::new().request().check().expect("a good request");
    let table: [Refusal<Write>; 28] = [
        (
            |w| {
                w.key_cache.shaped(&[1 << 28, 16, 2, 64]);
                w.value_cache.shaped(&[1 << 28, 16, 2, 64]);
            },
            "`num_blocks * block_size` must be at most 2147483647, but it is 4294967296",
        ),
        (
            |w| w.slot_mapping.dtype = Dtype::I32,
            "`slot_mapping` must be i64, but its dtype is i32",
        ),
        (
            |w| w.slot_mapping.shaped(&[6, 1]),
            "`slot_mapping` must be [num_tokens], but its shape is [6, 1]",
        ),
        (
            |w| w.slot_mapping.strides = vec![2],
            "`slot_mapping` must have a contiguous last dimension and no negative stride, but its strides \
             are [2] (in elements)",
        ),
        (
            |w| w.slot_mapping.address = 0x1004,
            "`slot_mapping` must be aligned to 8 bytes and not null, but its address is 0x1004",
        ),
        (
            |w| w.key.dtype = Dtype::I8,
            "`key` must be bf16 or f16 or f32 or fp8_e4m3 or fp8_e5m2, but its dtype is i8",
        ),
        (
            |w| w.key.shaped(&[6, 128]),
            "`key` must be [num_tokens, num_kv_heads, head_size], but its shape is [6, 128]",
        ),
        (
            |w| w.key.shaped(&[5, 2, 64]),
            "`key` must be [num_tokens, num_kv_heads, head_size] with at least 6 tokens, but its shape is \
             [5, 2, 64]",
        ),
        (
            |w| w.key.strides[0] = -128,
            "`key` must have a contiguous last dimension and no negative stride, but its strides are \
             [-128, 64, 1] (in elements)",
        ),
        (
            |w| w.key.address = 0,
            "`key` must be aligned to 2 bytes and not null, but its address is 0x0",
        ),
        (
            |w| w.value.dtype = Dtype::F16,
            "`value` must be bf16, but its dtype is f16",
        ),
        (
            |w| w.value.shaped(&[6, 3, 64]),
            "`value` must be [num_tokens, num_kv_heads, head_size_v] with at least 6 tokens and 2 heads, \
             but its shape is [6, 3, 64]",
        ),
        (
            |w| w.value.address = 0x1001,
            "`value` must be aligned to 2 bytes and not null, but its address is 0x1001",
        ),
        (
            |w| w.key_cache.dtype = Dtype::F16,
            "`key_cache` must be bf16, but its dtype is f16",
        ),
        (
            |w| w.key_cache.shaped(&[160, 2, 64]),
            "`key_cache` must be [num_blocks, block_size, num_kv_heads, head_size], but its shape is \
             [160, 2, 64]",
        ),
        (
            |w| w.key_cache.shaped(&[10, 16, 2, 32]),
            "`key_cache` must be [num_blocks, block_size, num_kv_heads, head_size] = [10, 16, 2, 64], but \
             its shape is [10, 16, 2, 32]",
        ),
        (
            |w| w.block_size = 0,
            "`block_size` must be at least 1, but it is 0",
        ),
        (
            |w| w.block_size = 32,
            "`key_cache` must be [num_blocks, block_size, num_kv_heads, head_size] = [10, 32, 2, 64], but \
             its shape is [10, 16, 2, 64]",
        ),
        (
            |w| w.key_cache.strides[3] = 2,
            "`key_cache` must have a contiguous last dimension and no negative stride, but its strides are \
             [2048, 128, 64, 2] (in elements)",
        ),
        (
            |w| w.key_cache.address = 0,
            "`key_cache` must be aligned to 2 bytes and not null, but its address is 0x0",
        ),
        (
            |w| w.value_cache.shaped(&[9, 16, 2, 64]),
            "`value_cache` must be [num_blocks, block_size, num_kv_heads, head_size_v] = [10, 16, 2, 64], \
             but its shape is [9, 16, 2, 64]",
        ),
        (
            |w| w.value_cache.dtype = Dtype::U8,
            "`value_cache` must be bf16, but its dtype is u8",
        ),
        (
            |w| w.key_cache.dtype = Dtype::F8E4m3,
            "`key_cache` must be bf16, but its dtype is fp8_e4m3",
        ),
        (
            |w| w.scales = Some((parts(Dtype::F32, &[1]), parts(Dtype::F32, &[1]))),
            "`key_cache` must be fp8_e4m3 or fp8_e5m2, but its dtype is bf16",
        ),
        (
            |w| w.scaled(&[3]),
            "`k_scale` must be [1] or [num_kv_heads] = [2], but its shape is [3]",
        ),
        (
            |w| {
                w.scaled(&[2]);
                w.scale_per_token = true;
            },
            "`k_scale` must be [num_blocks, block_size, num_kv_heads] = [10, 16, 2], but its shape is [2]",
        ),
        (
            |w| {
                w.scaled(&[10, 16, 2]);
                w.scale_per_token = true;
                w.key.dtype = Dtype::F8E4m3;
                w.value.dtype = Dtype::F8E4m3;
            },
            "`key` must be bf16 or f16 or f32, to have a scale per token and head, but its dtype is fp8_e4m3",
        ),
        (
            |w| {
                w.scaled(&[1]);
                w.scales.as_mut().expect("scales").1.dtype = Dtype::F16;
            },
            "`v_scale` must be f32, but its dtype is f16",
        ),
    ];
    for (change, message) in table {
        let mut write = Write::new();
        change(&mut write);
        match write.request().check() {
            Ok(_) => panic!("accepted: {write:?}"),
            Err(error) => assert_eq!(error.to_string(), message),
        }
    }
}

#[test]
fn a_checked_cache_write_needs_room_for_the_record() {
    let mut write = Write::new();
    write.check = CheckMode::Device;
    let checked = write.request().check().expect("a good request");
    let plan = checked.plan();
    // A table of its six tokens, twice as large and then a power of two, of words.
    assert_eq!(plan.workspace_bytes(), CHECK_BYTES + 4 * 16);
    let mut small = parts(Dtype::U8, &[CHECK_BYTES + 4 * 16 - 1]).view_mut();
    let refused = checked.launch(&plan, &mut small, &Untouched);
    assert_eq!(
        refused.expect_err("refused").to_string(),
        "the workspace must hold 320 bytes, but it holds 319"
    );
}
