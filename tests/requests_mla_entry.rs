//! Every way for MLA decode over FP8 entries to be refused, with its message. Nothing here is launched: the
//! addresses are made up.
#![allow(missing_docs, reason = "a test crate has no readers of its docs")]

mod common;

use common::parts::{Parts, Refusal, Untouched, parts};
use ferroattn::ops::{DecodeMlaEntryRequest, DecodeOptions, EntryForm, EntryTokens, WindowTokens};
use ferroattn::plan::{DeviceInfo, SplitPolicy};
use ferroattn::tensor::Dtype;

/// A request in parts: 3 sequences of 2 query tokens, 16 heads, blocks of 64.
#[derive(Clone, Debug)]
struct Sparse {
    query: Parts,
    form: EntryForm,
    cache: Parts,
    block_size: usize,
    indices: Option<Parts>,
    length: Option<Parts>,
    block_table: Option<Parts>,
    seq_lens: Parts,
    window: Option<(Parts, usize, Parts)>,
    sinks: Option<Parts>,
    out: Parts,
    lse: Option<Parts>,
    softmax_scale: f32,
    options: DecodeOptions<'static>,
}

impl Sparse {
    fn new() -> Self {
        Self {
            query: parts(Dtype::Bf16, &[3, 2, 16, 576]),
            form: EntryForm::Fp8Ds,
            cache: parts(Dtype::U8, &[10, 64, 656]),
            block_size: 64,
            indices: Some(parts(Dtype::I32, &[3, 2, 100])),
            length: Some(parts(Dtype::I32, &[3])),
            block_table: None,
            seq_lens: parts(Dtype::I32, &[3]),
            window: None,
            sinks: Some(parts(Dtype::F32, &[16])),
            out: parts(Dtype::Bf16, &[3, 2, 16, 512]),
            lse: Some(parts(Dtype::F32, &[3, 2, 16])),
            softmax_scale: 0.07,
            options: DecodeOptions::default(),
        }
    }

    fn v4() -> Self {
        let mut pages = parts(Dtype::U8, &[10, 64 * 584]);
        pages.strides[0] = 37_440;
        Self {
            query: parts(Dtype::Bf16, &[3, 2, 16, 512]),
            form: EntryForm::V4,
            cache: pages.clone(),
            window: Some((pages, 64, parts(Dtype::I32, &[3, 2, 128]))),
            ..Self::new()
        }
    }

    fn dense() -> Self {
        Self {
            indices: None,
            block_table: Some(parts(Dtype::I32, &[3, 4])),
            ..Self::new()
        }
    }

    fn request(&self) -> DecodeMlaEntryRequest<'static> {
        let block_table = self.block_table.as_ref().map(Parts::view);
        DecodeMlaEntryRequest {
            query: self.query.view(),
            form: self.form,
            cache: self.cache.view(),
            block_size: self.block_size,
            tokens: match &self.indices {
                None => EntryTokens::All {
                    block_table: block_table.expect("a block table"),
                    seq_lens: self.seq_lens.view(),
                },
                Some(indices) => EntryTokens::TopK {
                    topk_indices: indices.view(),
                    topk_length: self.length.as_ref().map(Parts::view),
                    block_table,
                    window: self
                        .window
                        .as_ref()
                        .map(|(cache, block_size, indices)| WindowTokens {
                            cache: cache.view(),
                            block_size: *block_size,
                            indices: indices.view(),
                            length: None,
                        }),
                },
            },
            sinks: self.sinks.as_ref().map(Parts::view),
            out: self.out.view_mut(),
            lse: self.lse.as_ref().map(Parts::view_mut),
            softmax_scale: self.softmax_scale,
            options: self.options,
        }
    }
}

fn assert_refused(good: impl Fn() -> Sparse, table: &[Refusal<Sparse>]) {
    good().request().check().expect("a good request");
    for (change, message) in table {
        let mut sparse = good();
        change(&mut sparse);
        let error = sparse.request().check().expect_err(message);
        assert_eq!(&error.to_string(), message);
    }
}

#[test]
fn tensors_that_do_not_fit_are_named() {
    assert_refused(
        Sparse::new,
        &[
            (
                |s| s.query.dtype = Dtype::F16,
                "`query` must be bf16, but its dtype is f16",
            ),
            (
                |s| s.query.shaped(&[3, 2, 16, 512]),
                "`query` must be [num_seqs, query_len, num_query_heads, head_size] = [3, 2, 16, 576], but its shape is [3, 2, 16, 512]",
            ),
            (
                |s| s.cache.shaped(&[10, 64, 584]),
                "`cache` must be [num_blocks, block_size, 656] = [10, 64, 656], but its shape is [10, 64, 584]",
            ),
            (
                |s| s.cache.address = 0x1008,
                "`cache` must be aligned to 16 bytes and not null, but its address is 0x1008",
            ),
            (
                |s| s.block_size = 0,
                "`block_size` must be at least 1, but it is 0",
            ),
            (
                |s| s.indices = Some(parts(Dtype::I64, &[3, 2, 100])),
                "`topk_indices` must be i32, but its dtype is i64",
            ),
            (
                |s| s.indices = Some(parts(Dtype::I32, &[3, 1, 100])),
                "`topk_indices` must be [num_seqs, query_len, topk], topk at least 1 = [3, 2, 100], but its shape is [3, 1, 100]",
            ),
            (
                |s| s.length = Some(parts(Dtype::I32, &[3, 3])),
                "`topk_length` must be [num_seqs] or [num_seqs, query_len] = [3, 2], but its shape is [3, 3]",
            ),
            (
                |s| s.block_table = Some(parts(Dtype::I32, &[2, 4])),
                "`block_table` must be [num_seqs, max_num_blocks_per_seq] = [3, 4], but its shape is [2, 4]",
            ),
            (
                |s| s.sinks = Some(parts(Dtype::F32, &[15])),
                "`sinks` must be [num_query_heads] = [16], but its shape is [15]",
            ),
            (
                |s| s.out.shaped(&[3, 2, 16, 576]),
                "`out` must be [num_seqs, query_len, num_query_heads, 512] = [3, 2, 16, 512], but its shape is [3, 2, 16, 576]",
            ),
            (
                |s| s.lse = Some(parts(Dtype::Bf16, &[3, 2, 16])),
                "`lse` must be f32, but its dtype is bf16",
            ),
            (
                |s| s.softmax_scale = f32::NAN,
                "`softmax_scale` must be positive and finite, but it is NaN",
            ),
            (
                |s| s.options.score_mods.softcap = Some(7.0),
                "`options.softcap` must be absent for MLA decode, but it is given",
            ),
            (
                |s| s.options.max_seq_len = Some(7),
                "`max_seq_len` must be absent with index lists, which have their own lengths, but it is 7",
            ),
        ],
    );
    assert_refused(
        Sparse::v4,
        &[
            (
                |s| s.cache.shaped(&[10, 64 * 583]),
                "`cache` must be [num_blocks, page_bytes] with pages of 37376 bytes at least, but its shape is [10, 37312]",
            ),
            (
                |s| s.window = Some((s.cache.clone(), 64, parts(Dtype::I32, &[3, 2]))),
                "`window.indices` must be [num_seqs, query_len, topk], topk at least 1, but its shape is [3, 2]",
            ),
            (
                |s| {
                    s.window = Some((
                        parts(Dtype::Bf16, &[9, 40_000]),
                        64,
                        parts(Dtype::I32, &[3, 2, 8]),
                    ))
                },
                "`window.cache` must be u8, but its dtype is bf16",
            ),
        ],
    );
    assert_refused(
        Sparse::dense,
        &[
            (
                |s| s.seq_lens.shaped(&[4]),
                "`seq_lens` must be [num_seqs] = [3], but its shape is [4]",
            ),
            (
                |s| s.options.max_seq_len = Some(257),
                "`max_seq_len` must be at most the 256 tokens that `block_table` can name, but it is 257",
            ),
        ],
    );
}

#[test]
fn a_small_workspace_and_a_small_machine_are_refused() {
    let sparse = Sparse::new();
    let checked = sparse.request().check().expect("a good request");
    let plan = checked.plan(&DeviceInfo::H200).expect("a plan");
    if plan.workspace_bytes() > 0 {
        let mut small = parts(Dtype::U8, &[plan.workspace_bytes() - 1]).view_mut();
        let error = checked
            .launch(&plan, &mut small, &Untouched)
            .expect_err("small");
        assert!(
            error.to_string().contains("the workspace must hold"),
            "{error}"
        );
    }
    let small = DeviceInfo {
        shared_bytes_per_cta: 40_000,
        ..DeviceInfo::H200
    };
    let error = checked.plan(&small).expect_err("small").to_string();
    assert!(
        error.starts_with("decode_mla_entry does not support"),
        "{error}"
    );
}

#[test]
fn plans_use_the_machine() {
    let shape = |num_seqs: usize, heads: usize, topk: usize| {
        let mut sparse = Sparse::new();
        sparse.query.shaped(&[num_seqs, 1, heads, 576]);
        sparse.indices = Some(parts(Dtype::I32, &[num_seqs, 1, topk]));
        sparse.length = None;
        sparse.sinks = None;
        sparse.out.shaped(&[num_seqs, 1, heads, 512]);
        sparse.lse = None;
        sparse
    };
    // Two thread blocks of 64 heads for each query token: the machine is full.
    let checked = shape(128, 128, 2048).request();
    let plan = checked
        .check()
        .expect("good")
        .plan(&DeviceInfo::H200)
        .expect("a plan");
    assert!(
        plan.to_string()
            .contains("decode_mla_entry_fp8_ds_h64_sm90a "),
        "{plan}"
    );
    // One query token is cut into many splits.
    let checked = shape(1, 128, 2048).request();
    let plan = checked
        .check()
        .expect("good")
        .plan(&DeviceInfo::H200)
        .expect("a plan");
    assert!(plan.splits().num_kv_splits >= 16, "{plan}");
    // A list longer than shared memory has room for.
    let mut long = shape(128, 16, 20_000);
    long.options.split_policy = SplitPolicy::Fixed(20_000);
    let plan = long
        .request()
        .check()
        .expect("good")
        .plan(&DeviceInfo::H200)
        .expect("a plan");
    assert_eq!(plan.splits().split_len, 4096);
}
