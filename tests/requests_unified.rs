//! Every way for unified attention to be refused, with its message. Nothing here is launched: the addresses are
//! made up.
#![allow(missing_docs, reason = "a test crate has no readers of its docs")]

mod common;

use common::parts::{Parts, Refusal, Untouched, parts};
use ferroattn::Error;
use ferroattn::ops::{
    AlibiForm, AlibiSlopes, CheckMode, KvScales, ScoreMods, UnifiedOptions, UnifiedRequest,
};
use ferroattn::plan::{DeviceInfo, SplitPolicy};
use ferroattn::tensor::Dtype;

/// A request in parts: 3 sequences, 20 query tokens, 8 query heads, 2 KV heads of 64, blocks of 16.
#[derive(Clone, Debug)]
struct Unified {
    query: Parts,
    key_cache: Parts,
    value_cache: Parts,
    block_table: Parts,
    query_start_loc: Parts,
    seq_lens: Parts,
    out: Parts,
    lse: Parts,
    softmax_scale: f32,
    q_scale: Option<Parts>,
    kv_scales: Option<(Parts, Parts)>,
    options: UnifiedOptions<'static>,
}

impl Unified {
    fn new() -> Self {
        let cache = parts(Dtype::Bf16, &[10, 16, 2, 64]);
        Self {
            query: parts(Dtype::Bf16, &[20, 8, 64]),
            key_cache: cache.clone(),
            value_cache: cache,
            block_table: parts(Dtype::I32, &[3, 4]),
            query_start_loc: parts(Dtype::I32, &[4]),
            seq_lens: parts(Dtype::I32, &[3]),
            out: parts(Dtype::Bf16, &[20, 8, 64]),
            lse: parts(Dtype::F32, &[20, 8]),
            softmax_scale: 0.125,
            q_scale: None,
            kv_scales: None,
            options: UnifiedOptions::default(),
        }
    }

    /// Over an FP8 cache with one scale each.
    fn fp8() -> Self {
        let mut unified = Self::new();
        unified.key_cache.dtype = Dtype::F8E4m3;
        unified.value_cache.dtype = Dtype::F8E4m3;
        let scale = parts(Dtype::F32, &[1]);
        unified.kv_scales = Some((scale.clone(), scale));
        unified
    }

    fn request(&self) -> UnifiedRequest<'static> {
        UnifiedRequest {
            query: self.query.view(),
            key_cache: self.key_cache.view(),
            value_cache: self.value_cache.view(),
            block_table: self.block_table.view(),
            query_start_loc: self.query_start_loc.view(),
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
fn refusal(mut unified: Unified, change: impl FnOnce(&mut Unified)) -> String {
    change(&mut unified);
    match unified.request().check() {
        Ok(_) => panic!("accepted: {unified:?}"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn the_unchanged_requests_are_accepted() {
    Unified::new().request().check().expect("a good request");
    Unified::fp8().request().check().expect("a good request");
}

#[test]
fn tensors_that_do_not_fit_are_named() {
    let table: &[Refusal<Unified>] = &[
        (
            |u| u.query.dtype = Dtype::F32,
            "`query` must be bf16 or f16 or fp8_e4m3, but its dtype is f32",
        ),
        (
            |u| u.query.dtype = Dtype::F8E4m3,
            "`key_cache` must be fp8_e4m3 or fp8_e5m2 or i8, but its dtype is bf16",
        ),
        (
            |u| u.query.shaped(&[20, 64]),
            "`query` must be [num_tokens, num_query_heads, head_size], but its shape is [20, 64]",
        ),
        (
            |u| u.query.shaped(&[20, 7, 64]),
            "`num_query_heads` must be a multiple of num_kv_heads = 2, but it is 7",
        ),
        (
            |u| u.key_cache.shaped(&[10, 12, 2, 64]),
            "`block_size` must be a multiple of 8, at least 8, but it is 12",
        ),
        (
            |u| u.value_cache.shaped(&[10, 16, 1, 64]),
            "`value_cache` must be [num_blocks, block_size, num_kv_heads, head_size_v] = [10, 16, 2, 64], but its \
             shape is [10, 16, 1, 64]",
        ),
        (
            |u| u.block_table.shaped(&[2, 4]),
            "`block_table` must be [num_seqs, max_num_blocks_per_seq] = [3, 4], but its shape is [2, 4]",
        ),
        (
            |u| u.query_start_loc.dtype = Dtype::I64,
            "`query_start_loc` must be i32, but its dtype is i64",
        ),
        (
            |u| u.query_start_loc.shaped(&[3]),
            "`query_start_loc` must be [num_seqs + 1] = [4], but its shape is [3]",
        ),
        (
            |u| u.query_start_loc.strides = vec![2],
            "`query_start_loc` must have a contiguous last dimension and no negative stride, but its strides are [2] (in elements)",
        ),
        (
            |u| u.seq_lens.shaped(&[3, 1]),
            "`seq_lens` must be [num_seqs], but its shape is [3, 1]",
        ),
        (
            |u| u.out.shaped(&[19, 8, 64]),
            "`out` must be [num_tokens, num_query_heads, head_size_v] = [20, 8, 64], but its shape is [19, 8, 64]",
        ),
        (
            |u| u.out.dtype = Dtype::F8E4m3,
            "`output_scale` must be given for an output of fp8_e4m3, but it is missing",
        ),
        (
            |u| u.out.dtype = Dtype::F16,
            "`out` must be bf16 or fp8_e4m3, but its dtype is f16",
        ),
        (
            |u| u.lse.shaped(&[8, 20]),
            "`lse` must be [num_tokens, num_query_heads], but its shape is [8, 20]",
        ),
        (
            |u| u.softmax_scale = f32::NAN,
            "`softmax_scale` must be positive and finite, but it is NaN",
        ),
    ];
    for (change, message) in table {
        assert_eq!(&refusal(Unified::new(), change), message);
    }
}

#[test]
fn options_that_do_not_fit_are_named() {
    let one = || parts(Dtype::F32, &[1]).view();
    type Change<'a> = &'a dyn Fn(&mut UnifiedOptions<'static>);
    let table: [(Change<'_>, &str); 10] = [
        (
            &|o| o.score_mods.sliding_window = Some(0),
            "`sliding_window` must be between 1 and 1073741823, but it is 0",
        ),
        (
            &|o| o.score_mods.softcap = Some(-1.0),
            "`softcap` must be positive and finite, but it is -1",
        ),
        (
            &|o| o.score_mods.sinks = Some(one()),
            "`sinks` must be [num_query_heads] = [8], but its shape is [1]",
        ),
        (
            &|o| {
                let slopes = parts(Dtype::F32, &[2]).view();
                let form = AlibiForm::Linear;
                o.score_mods.alibi = Some(AlibiSlopes { slopes, form });
            },
            "`alibi_slopes` must be [num_query_heads] = [8], but its shape is [2]",
        ),
        (
            &|o| o.output_scale = Some(one()),
            "`output_scale` must be absent for an output of bf16, but it is given",
        ),
        (
            &|o| o.causal_flags = Some(parts(Dtype::I32, &[3]).view()),
            "`causal_flags` must be u8, but its dtype is i32",
        ),
        (
            &|o| o.causal_flags = Some(parts(Dtype::U8, &[2]).view()),
            "`causal_flags` must be [num_seqs] = [3], but its shape is [2]",
        ),
        (
            &|o| o.num_decodes = 4,
            "`num_decodes` must be at most num_seqs = 3, but it is 4",
        ),
        (
            &|o| o.max_seq_len = Some(65),
            "`block_table` must be [num_seqs, max_num_blocks_per_seq] with at least 5 blocks of 16 tokens for \
             max_seq_len 65, but its shape is [3, 4]",
        ),
        (
            &|o| o.max_seq_len = Some(u32::MAX),
            "`block_table` must be [num_seqs, max_num_blocks_per_seq] with at least 268435456 blocks of 16 tokens \
             for max_seq_len 4294967295, but its shape is [3, 4]",
        ),
    ];
    for (change, message) in table {
        assert_eq!(refusal(Unified::new(), |u| change(&mut u.options)), message);
    }
}

#[test]
fn scales_that_do_not_fit_are_named() {
    let table: &[Refusal<Unified>] = &[
        (
            |u| u.kv_scales = None,
            "`scales` must be given for a cache of bytes, but it is missing",
        ),
        (
            |u| u.q_scale = Some(parts(Dtype::F32, &[1])),
            "`q_scale` must be absent for a query of 16-bit values, but it is given",
        ),
        (
            |u| u.query.dtype = Dtype::F8E4m3,
            "`q_scale` must be given for an fp8_e4m3 query, but it is missing",
        ),
        (
            |u| u.kv_scales.as_mut().expect("given").1.shaped(&[3]),
            "`v_scale` must be [1], [num_kv_heads] = [2], or [num_blocks, block_size, num_kv_heads] = \
             [10, 16, 2], but its shape is [3]",
        ),
    ];
    for (change, message) in table {
        assert_eq!(&refusal(Unified::fp8(), change), message);
    }
    let message = refusal(Unified::new(), |u| u.kv_scales = Unified::fp8().kv_scales);
    assert_eq!(
        message,
        "`scales` must be absent for a cache of 16-bit values, but it is given"
    );
}

#[test]
fn a_head_size_that_was_not_compiled_is_unsupported() {
    let mut unified = Unified::new();
    for cache in [&mut unified.key_cache, &mut unified.value_cache] {
        cache.shaped(&[10, 16, 2, 48]);
    }
    unified.query.shaped(&[20, 8, 48]);
    unified.out.shaped(&[20, 8, 48]);
    let error = unified.request().check().expect_err("48 is not compiled");
    assert!(matches!(error, Error::Unsupported { .. }), "{error}");
    assert!(
        error.to_string().contains("bf16 (48, 48); supported: "),
        "{error}"
    );
}

#[test]
fn a_plan_says_what_runs() {
    let plan = |change: &dyn Fn(&mut Unified)| {
        let mut unified = Unified::new();
        change(&mut unified);
        let checked = unified.request().check().expect("a good request");
        let plan = checked.plan(&DeviceInfo::H200).expect("a plan");
        (plan.to_string(), plan.launches().count())
    };
    // 20 tokens of 4 heads, 192 rows a tile, and a tile for each sequence's rest.
    let tiles = "tiles of 192 rows, 1 splits of 64 tokens; prefill_gqa_bf16_d64_sm90a grid [6, 1, 1] x 512 threads";
    assert_eq!(plan(&|_| {}), (format!("{tiles}; workspace 0 B"), 1));
    // Of wide heads, two groups multiply.
    let (text, _) = plan(&|u| {
        for cache in [&mut u.key_cache, &mut u.value_cache] {
            cache.shaped(&[10, 16, 2, 256]);
        }
        u.query.shaped(&[20, 8, 256]);
        u.out.shaped(&[20, 8, 256]);
    });
    let tiles = "tiles of 128 rows, 1 splits of 64 tokens; prefill_gqa_bf16_d256_sm90a grid [6, 1, 1] x 384 threads";
    assert_eq!(text, format!("{tiles}; workspace 0 B"));
    let (text, launches) = plan(&|u| u.options.num_decodes = 2);
    assert!(
        text.starts_with("decodes: 1 splits of 64 tokens; decode_gqa_bf16_d64_h8"),
        "{text}"
    );
    assert!(
        text.contains("prefill_gqa_bf16_d64_sm90a grid [2, 1, 1]"),
        "{text}"
    );
    assert_eq!(launches, 2);
    // A rule takes other kernels.
    let rules: [&dyn Fn(&mut Unified); 2] =
        [&|u| u.options.score_mods.softcap = Some(30.0), &|u| {
            u.options.score_mods.sliding_window = Some(30)
        }];
    for rule in rules {
        let (text, launches) = plan(&|u| {
            u.options.num_decodes = 2;
            rule(u);
        });
        assert!(
            text.starts_with("decodes: 1 splits of 64 tokens; decode_gqa_bf16_d64_h8_rule"),
            "{text}"
        );
        assert_eq!(launches, 2);
    }
    // With at most one query token each, all sequences take one kernel, which looks up their rows; those that the host
    // knows to be one each do without. A check comes with it.
    for (num_decodes, kernel) in [
        (0, "decode_gqa_bf16_d64_h8_rule"),
        (3, "decode_gqa_bf16_d64_h8"),
    ] {
        let (text, launches) = plan(&|u| {
            u.options.num_decodes = num_decodes;
            u.options.max_query_len = Some(1);
            u.options.check = CheckMode::Device;
        });
        assert_eq!(
            text,
            format!(
                "decodes: 1 splits of 64 tokens; check_paged grid [3, 1, 1] x 128 threads; {kernel} grid [2, 1, 3] x 128 \
                 threads; workspace 256 B"
            )
        );
        assert_eq!(launches, 2);
    }
    // What the decode kernels do not compute, they do not get; nor if every sequence is to be treated alike.
    let others: [&dyn Fn(&mut Unified); 3] = [
        &|u| u.options.split_policy = SplitPolicy::BatchInvariant,
        &|u| (u.options.check, u.options.max_query_len) = (CheckMode::Device, Some(2)),
        &|u| {
            u.options.output_scale = Some(parts(Dtype::F32, &[1]).view());
            u.out.dtype = Dtype::F8E4m3;
        },
    ];
    for other in others {
        let (text, _) = plan(&|u| {
            (u.options.num_decodes, u.options.max_query_len) = (2, Some(1));
            other(u);
        });
        assert!(!text.contains("decodes"), "{text}");
    }
}

#[test]
fn a_workspace_too_small_is_refused_before_anything_is_launched() {
    let mut unified = Unified::new();
    unified.options.split_policy = SplitPolicy::Fixed(1);
    unified.block_table.shaped(&[3, 20]);
    let checked = unified.request().check().expect("a good request");
    let plan = checked.plan(&DeviceInfo::H200).expect("a plan");
    assert!(plan.workspace_bytes() > 1000, "{plan}");
    let mut workspace = parts(Dtype::U8, &[1000]).view_mut();
    let error = checked
        .launch(&plan, &mut workspace, &Untouched)
        .expect_err("too small");
    assert!(error.to_string().contains("1000"), "{error}");
}

#[test]
fn options_are_built_one_by_one() {
    let tensor = |dtype| parts(dtype, &[1]).view();
    let slopes = AlibiSlopes {
        slopes: tensor(Dtype::F32),
        form: AlibiForm::Sqrt,
    };
    let built = UnifiedOptions::default()
        .causal(false)
        .causal_flags(tensor(Dtype::U8))
        .score_mods(
            ScoreMods::default()
                .sliding_window(1)
                .softcap(2.0)
                .alibi(slopes)
                .sinks(tensor(Dtype::F16)),
        )
        .output_scale(tensor(Dtype::Bf16))
        .num_decodes(3)
        .max_query_len(4)
        .max_seq_len(5)
        .f32_scores(true)
        .split_policy(SplitPolicy::Fixed(6))
        .check(CheckMode::Device);
    let mut set = UnifiedOptions::default();
    set.causal = false;
    set.causal_flags = Some(tensor(Dtype::U8));
    set.score_mods.sliding_window = Some(1);
    set.score_mods.softcap = Some(2.0);
    set.score_mods.alibi = Some(slopes);
    set.score_mods.sinks = Some(tensor(Dtype::F16));
    set.output_scale = Some(tensor(Dtype::Bf16));
    set.num_decodes = 3;
    set.max_query_len = Some(4);
    set.max_seq_len = Some(5);
    set.f32_scores = true;
    set.split_policy = SplitPolicy::Fixed(6);
    set.check = CheckMode::Device;
    assert_eq!(format!("{built:?}"), format!("{set:?}"));
}
