//! Which requests a plan of attention fits. Nothing here runs: the addresses are made up, and launches are written down.
#![allow(missing_docs, reason = "a test crate has no readers of its docs")]

mod common;

use common::parts::{Parts, launched, parts, refused_plan};
use ferroattn::ops::{
    AlibiForm, AlibiSlopes, CheckMode, CheckedDecode, CheckedDecodeMla, CheckedDecodeMlaEntry,
    CheckedUnified, DecodeMlaEntryRequest, DecodeMlaRequest, DecodeOptions, DecodeRequest,
    EntryForm, EntryTokens, ScoreMods, UnifiedOptions, UnifiedRequest,
};
use ferroattn::plan::{DeviceInfo, SplitPolicy};
use ferroattn::runtime::Launch;
use ferroattn::tensor::Dtype;

/// The launches without their parameters.
fn kernels(launches: Vec<(Launch, Vec<u8>)>) -> Vec<Launch> {
    launches.into_iter().map(|(launch, _)| launch).collect()
}

fn decode(
    num_seqs: usize,
    blocks: usize,
    dtype: Dtype,
    options: DecodeOptions<'static>,
) -> CheckedDecode<'static> {
    let cache = parts(dtype, &[100, 16, 2, 64]);
    DecodeRequest {
        query: parts(dtype, &[num_seqs, 8, 64]).view(),
        key_cache: cache.view(),
        value_cache: cache.view(),
        block_table: parts(Dtype::I32, &[num_seqs, blocks]).view(),
        seq_lens: parts(Dtype::I32, &[num_seqs]).view(),
        out: parts(dtype, &[num_seqs, 8, 64]).view_mut(),
        lse: None,
        softmax_scale: 0.125,
        scales: None,
        options,
    }
    .check()
    .expect("a good request")
}

const FIXED: SplitPolicy = SplitPolicy::Fixed(64);

#[test]
fn a_decode_plan_fits_fewer_and_shorter_sequences() {
    let options = DecodeOptions::default()
        .split_policy(FIXED)
        .check(CheckMode::Device);
    let plan = decode(5, 40, Dtype::Bf16, options)
        .plan(&DeviceInfo::H200)
        .unwrap();
    let planned: Vec<_> = plan.launches().copied().collect();
    for num_seqs in [5, 2] {
        let request = decode(num_seqs, 20, Dtype::Bf16, options);
        let launches = kernels(launched(|workspace, to| {
            request.launch(&plan, workspace, to)
        }));
        let num_seqs = u32::try_from(num_seqs).unwrap();
        let grids: Vec<_> = launches.iter().map(|launch| launch.grid).collect();
        assert_eq!(
            grids,
            [[num_seqs, 1, 1], [2, 10, num_seqs], [8, num_seqs, 1]]
        );
        for (launch, planned) in launches.iter().zip(&planned) {
            assert_eq!(
                (launch.kernel, launch.shared_bytes),
                (planned.kernel, planned.shared_bytes)
            );
        }
    }
    let none = decode(0, 20, Dtype::Bf16, options);
    assert!(kernels(launched(|workspace, to| none.launch(&plan, workspace, to))).is_empty());
}

#[test]
fn a_decode_plan_fits_nothing_else() {
    let options = DecodeOptions::default();
    let plan = decode(3, 20, Dtype::Bf16, options)
        .plan(&DeviceInfo::H200)
        .unwrap();
    let slopes = AlibiSlopes {
        slopes: parts(Dtype::F32, &[8]).view(),
        form: AlibiForm::Linear,
    };
    let table = [
        (
            decode(4, 20, Dtype::Bf16, options),
            "num_seqs of at most 3, but the request has 4",
        ),
        (
            decode(1, 21, Dtype::Bf16, options),
            "max_seq_len of at most 320, but the request has 336",
        ),
        (
            decode(3, 20, Dtype::F16, options),
            "kernel decode_gqa_bf16_d64_h8, but the request has decode_gqa_f16_d64_h8",
        ),
        (
            decode(
                3,
                20,
                Dtype::Bf16,
                options.score_mods(ScoreMods::default().alibi(slopes)),
            ),
            "kernel decode_gqa_bf16_d64_h8, but the request has decode_gqa_bf16_d64_h8_rule",
        ),
        (
            decode(3, 20, Dtype::Bf16, options.split_policy(FIXED)),
            "split_policy Auto, but the request has Fixed(64)",
        ),
        (
            decode(3, 20, Dtype::Bf16, options.check(CheckMode::Device)),
            "check Off, but the request has Device",
        ),
    ];
    for (request, message) in table {
        let message = format!("the plan was made for {message}");
        assert_eq!(
            refused_plan(|workspace, to| request.launch(&plan, workspace, to)),
            message
        );
    }
    // A window of one sort of layers is no window of another.
    let window = |keys| ScoreMods::default().sliding_window(keys);
    let windowed = |keys| decode(3, 20, Dtype::Bf16, options.score_mods(window(keys)));
    let plan = windowed(100).plan(&DeviceInfo::H200).unwrap();
    let message = refused_plan(|workspace, to| windowed(200).launch(&plan, workspace, to));
    assert_eq!(
        message,
        "the plan was made for sliding_window 100, but the request has 200"
    );
}

fn unified(
    num_tokens: usize,
    num_seqs: usize,
    options: UnifiedOptions<'static>,
) -> CheckedUnified<'static> {
    unified_at(parts(Dtype::Bf16, &[num_tokens, 8, 64]), num_seqs, options)
}

fn unified_at(
    query: Parts,
    num_seqs: usize,
    options: UnifiedOptions<'static>,
) -> CheckedUnified<'static> {
    let cache = parts(Dtype::Bf16, &[100, 16, 2, 64]);
    UnifiedRequest {
        query: query.view(),
        key_cache: cache.view(),
        value_cache: cache.view(),
        block_table: parts(Dtype::I32, &[num_seqs, 40]).view(),
        query_start_loc: parts(Dtype::I32, &[num_seqs + 1]).view(),
        seq_lens: parts(Dtype::I32, &[num_seqs]).view(),
        out: parts(Dtype::Bf16, &query.shape).view_mut(),
        lse: None,
        softmax_scale: 0.125,
        scales: None,
        options,
    }
    .check()
    .expect("a good request")
}

fn unified_options(change: impl FnOnce(&mut UnifiedOptions<'static>)) -> UnifiedOptions<'static> {
    let mut options = UnifiedOptions::default();
    options.split_policy = FIXED;
    change(&mut options);
    options
}

#[test]
fn a_unified_plan_fits_fewer_tokens_and_sequences() {
    for check in [CheckMode::Off, CheckMode::Device] {
        let options = unified_options(|options| options.check = check);
        let plan = unified(400, 5, options).plan(&DeviceInfo::H200).unwrap();
        for (num_tokens, num_seqs) in [(400, 5), (40, 2), (3, 3)] {
            let request = unified(num_tokens, num_seqs, options);
            let own = request.plan(&DeviceInfo::H200).unwrap();
            let own = kernels(launched(|workspace, to| {
                request.launch(&own, workspace, to)
            }));
            let launches = kernels(launched(|workspace, to| {
                request.launch(&plan, workspace, to)
            }));
            assert_eq!(launches, own, "{num_tokens} tokens of {num_seqs} sequences");
        }
    }
    // Decodes, fewer of them, and none.
    let decodes = |count| unified_options(|options| options.num_decodes = count);
    let plan = unified(400, 5, decodes(3)).plan(&DeviceInfo::H200).unwrap();
    for (count, num_kernels) in [(3, 4), (1, 4), (0, 2)] {
        let request = unified(40, 4, decodes(count));
        let launches = kernels(launched(|workspace, to| {
            request.launch(&plan, workspace, to)
        }));
        assert_eq!(launches.len(), num_kernels, "{count} decodes");
    }
    let alone = unified(3, 3, decodes(3));
    let launches = kernels(launched(|workspace, to| alone.launch(&plan, workspace, to)));
    assert_eq!(launches.len(), 2, "no rows but decodes");
}

#[test]
fn a_unified_plan_fits_nothing_else() {
    let options = unified_options(|_| ());
    let plan = unified(40, 3, options).plan(&DeviceInfo::H200).unwrap();
    let odd = Parts {
        address: 0x1008,
        ..parts(Dtype::Bf16, &[40, 8, 64])
    };
    let table = [
        (
            unified(400, 3, options),
            "num_tokens of at most 40, but the request has 400",
        ),
        (
            unified(40, 4, options),
            "num_seqs of at most 3, but the request has 4",
        ),
        (
            unified_at(odd, 3, options),
            "rows aligned to 16 bytes true, but the request has false",
        ),
        (
            unified(40, 3, unified_options(|options| options.f32_scores = true)),
            "f32_scores false, but the request has true",
        ),
        (
            unified(
                40,
                3,
                unified_options(|options| options.score_mods.sliding_window = Some(9)),
            ),
            "sliding_window 0, but the request has 9",
        ),
        (
            unified(
                40,
                3,
                unified_options(|options| options.check = CheckMode::Device),
            ),
            "check Off, but the request has Device",
        ),
        (
            unified(40, 3, unified_options(|options| options.num_decodes = 2)),
            "num_decodes 0, but the request has 2",
        ),
    ];
    for (request, message) in table {
        let message = format!("the plan was made for {message}");
        assert_eq!(
            refused_plan(|workspace, to| request.launch(&plan, workspace, to)),
            message
        );
    }
    let decodes = unified(5, 5, unified_options(|options| options.num_decodes = 5));
    let plan = decodes.plan(&DeviceInfo::H200).unwrap();
    let request = unified(5, 4, options);
    let message = refused_plan(|workspace, to| request.launch(&plan, workspace, to));
    assert!(message.ends_with("4 others"), "{message}");
}

fn mla(num_seqs: usize, query_len: usize, blocks: usize) -> CheckedDecodeMla<'static> {
    DecodeMlaRequest {
        query: parts(Dtype::Bf16, &[num_seqs, query_len, 16, 576]).view(),
        cache: parts(Dtype::Bf16, &[100, 16, 576]).view(),
        block_table: parts(Dtype::I32, &[num_seqs, blocks]).view(),
        seq_lens: parts(Dtype::I32, &[num_seqs]).view(),
        out: parts(Dtype::Bf16, &[num_seqs, query_len, 16, 512]).view_mut(),
        lse: None,
        softmax_scale: 0.07,
        scales: None,
        options: DecodeOptions::default().split_policy(FIXED),
    }
    .check()
    .expect("a good request")
}

fn entries(num_seqs: usize, topk: Option<usize>) -> CheckedDecodeMlaEntry<'static> {
    DecodeMlaEntryRequest {
        query: parts(Dtype::Bf16, &[num_seqs, 2, 16, 576]).view(),
        form: EntryForm::Fp8Ds,
        cache: parts(Dtype::U8, &[100, 64, 656]).view(),
        block_size: 64,
        tokens: match topk {
            Some(topk) => EntryTokens::TopK {
                topk_indices: parts(Dtype::I32, &[num_seqs, 2, topk]).view(),
                topk_length: None,
                block_table: None,
                window: None,
            },
            None => EntryTokens::All {
                block_table: parts(Dtype::I32, &[num_seqs, 8]).view(),
                seq_lens: parts(Dtype::I32, &[num_seqs]).view(),
            },
        },
        sinks: None,
        out: parts(Dtype::Bf16, &[num_seqs, 2, 16, 512]).view_mut(),
        lse: None,
        softmax_scale: 0.07,
        options: DecodeOptions::default().split_policy(FIXED),
    }
    .check()
    .expect("a good request")
}

#[test]
fn plans_of_mla_decode() {
    let device = &DeviceInfo::H200;
    let (plan, lists) = (
        mla(4, 2, 20).plan(device).unwrap(),
        entries(4, Some(512)).plan(device).unwrap(),
    );
    let all = entries(4, None).plan(device).unwrap();
    let grids = |launches: Vec<Launch>| launches[0].grid;
    assert_eq!(
        grids(kernels(launched(|w, to| mla(3, 2, 7).launch(&plan, w, to))))[2],
        3
    );
    assert_eq!(
        grids(kernels(launched(
            |w, to| entries(3, Some(100)).launch(&lists, w, to)
        )))[2],
        6
    );
    assert_eq!(
        grids(kernels(launched(
            |w, to| entries(3, None).launch(&all, w, to)
        )))[2],
        3
    );
    let messages = [
        refused_plan(|w, to| mla(5, 2, 20).launch(&plan, w, to)),
        refused_plan(|w, to| mla(4, 1, 20).launch(&plan, w, to)),
        refused_plan(|w, to| mla(4, 2, 21).launch(&plan, w, to)),
        refused_plan(|w, to| entries(5, Some(512)).launch(&lists, w, to)),
        refused_plan(|w, to| entries(4, Some(513)).launch(&lists, w, to)),
        refused_plan(|w, to| entries(4, None).launch(&lists, w, to)),
    ];
    let expected = [
        "num_seqs of at most 4, but the request has 5",
        "query_len 2, but the request has 1",
        "max_seq_len of at most 320, but the request has 336",
        "num_seqs of at most 4, but the request has 5",
        "max_seq_len of at most 512, but the request has 513",
        "index lists true, but the request has false",
    ];
    for (message, expected) in messages.iter().zip(expected) {
        assert_eq!(message, &format!("the plan was made for {expected}"));
    }
    // Plans of all decodes have one type.
    refused_plan(|w, to| mla(4, 2, 20).launch(&lists, w, to));
    refused_plan(|w, to| entries(4, None).launch(&plan, w, to));
    let decode = decode(
        4,
        20,
        Dtype::Bf16,
        DecodeOptions::default().split_policy(FIXED),
    );
    refused_plan(|w, to| decode.launch(&plan, w, to));
}
