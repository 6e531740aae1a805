//! What a decode step is refused for though its tensors fit each other: sizes and scales that no kernel takes, workspaces,
//! machines; and views that are none. Nothing here is launched: the addresses are made up.
#![allow(missing_docs, reason = "a test crate has no readers of its docs")]

mod common;
mod decode_request;

use common::parts::{Parts, Untouched, parts};
use decode_request::{Decode, refusal};
use ferroattn::Error;
use ferroattn::ops::DecodeOptions;
use ferroattn::plan::{DeviceInfo, SplitPolicy};
use ferroattn::tensor::{Dtype, TensorView};

/// A change that borrows something.
type Change<'a> = &'a dyn Fn(&mut Decode);

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
