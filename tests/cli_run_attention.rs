//! `ferroattn run` of attention: what is written to the file, against the reference.
#![allow(missing_docs, reason = "a test crate has no readers of its docs")]

mod common;

use common::files::{decode_inputs, results};
use ferroattn::cases::fill::{self, Amount};
use ferroattn::cases::{
    Case, Causal, DecodeCase, EntryTensors, ScoreSums, UnifiedTensors, compare_decode,
    compare_entries, compare_unified,
};
use ferroattn::ops::EntryForm;
use ferroattn::plan::SplitPolicy;
use ferroattn::reference::HostTensor;

const SEED: u64 = 5;

/// The `split_policy` of a file's metadata.
fn split_policy(policy: SplitPolicy) -> String {
    match policy {
        SplitPolicy::BatchInvariant => "invariant".into(),
        SplitPolicy::Scheduled => "scheduled".into(),
        SplitPolicy::Fixed(tokens) => tokens.to_string(),
        _ => "auto".into(),
    }
}

/// What a case says in numbers, as a file's metadata says it.
fn metadata(case: &DecodeCase) -> String {
    let (scale, split) = (case.scale(), split_policy(case.split_policy));
    let mut metadata = format!("softmax_scale={scale} split_policy={split}");
    if let Some(tokens) = case.max_seq_len {
        metadata += &format!(" max_seq_len={tokens}");
    }
    if let Some(window) = case.scores.sliding_window {
        metadata += &format!(" sliding_window={window}");
    }
    if let Some(softcap) = case.scores.softcap {
        metadata += &format!(" softcap={softcap}");
    }
    metadata
}

/// Query tokens as a dimension of their own.
fn by_seq(rows: &HostTensor, num_seqs: usize) -> HostTensor {
    let mut rows = rows.clone();
    let query_len = rows.shape[0] / num_seqs;
    rows.shape.splice(..1, [num_seqs, query_len]);
    rows.strides.insert(0, query_len * rows.strides[0]);
    rows
}

/// Runs decode, or MLA decode, on a file, and compares output and lse.
fn judge_decode(line: &str) {
    let Case::Decode(case) = common::case(line) else {
        panic!("{line} is no decode")
    };
    let tensors = fill::decode(&case, SEED, Amount::WHOLE);
    let mut metadata = metadata(&case);
    if case.query_dtype != case.dtype {
        metadata += &format!(" out_dtype={}", case.dtype);
    }
    let got = if case.latent.is_some() {
        let query = by_seq(&tensors.query, tensors.num_seqs);
        let mut cache = tensors.key_cache.clone();
        cache.shape.remove(2);
        let mut inputs = vec![
            ("query", &query),
            ("cache", &cache),
            ("block_table", &tensors.block_table),
            ("seq_lens", &tensors.seq_lens),
        ];
        if let Some(scales) = &tensors.scales {
            inputs.push(("k_scale", &scales.k_scale));
            inputs.extend(scales.q_scale.iter().map(|scale| ("q_scale", scale)));
        }
        metadata += &format!(" kv_lora_rank={}", case.cache.head_size_v);
        results("decode_mla", &inputs, &metadata)
    } else {
        results("decode", &decode_inputs(&tensors), &metadata)
    };
    let out = tensors.out.with_bytes(got["out"].clone());
    let lse = tensors.lse.as_ref().expect("an lse");
    let lse = lse.with_bytes(got["lse"].clone());
    let seqs: Vec<usize> = (0..tensors.num_seqs).collect();
    compare_decode(&case, &tensors, &out, Some(&lse), &seqs)
        .unwrap_or_else(|mismatch| panic!("{line}: {mismatch}"));
}

#[test]
fn decode() {
    for line in [
        "decode bf16 heads=4/2 d=64 page=16 layout=nhd lens=20,0,33 split=64",
        "decode f16 heads=4/2 d=64 page=16 layout=nhd lens=20,33 split=invariant max_len=40",
        "decode bf16 heads=4/2 d=64 page=16 layout=nhd lens=20,33 window=9 softcap=20 alibi=linear sinks=on",
        "decode bf16 heads=4/2 kv=fp8_e4m3 q=fp8_e4m3 d=64 page=16 layout=nhd lens=20,33",
        "decode bf16 heads=4/2 kv=fp8_e5m2 scales=head d=64 page=16 layout=nhd lens=20,33",
        "decode bf16 heads=4/2 kv=i8 scales=token d=64 page=16 layout=nhd lens=20,33",
    ] {
        judge_decode(line);
    }
}

#[test]
fn decode_mla() {
    for line in [
        "decode_mla bf16 heads=3/1 d=576 dv=512 page=16 layout=nhd lens=20,5 q_len=2",
        "decode_mla f16 heads=2/1 d=288 dv=256 page=16 layout=nhd lens=0,18 split=16",
        "decode_mla bf16 heads=3/1 kv=fp8_e4m3 q=fp8_e4m3 d=576 dv=512 page=16 layout=nhd lens=20,5",
    ] {
        judge_decode(line);
    }
}

#[test]
fn unified() {
    for fields in [
        // One query token a sequence, first as any other, then known to be decodes.
        "lens=20,1,33 q_lens=each:1",
        "lens=20,5,33 q_lens=1,1,7 decodes_first=on",
        "lens=20,5,33 q_lens=3,5,0 extra=2 max_len=40 max_q_len=5",
        "lens=20,33 q_lens=all causal=off",
        "lens=20,33,9 q_lens=7,5,9 causal=mixed",
        "lens=20,33 q_lens=9,4 window=6 sinks=on",
        "lens=20,33 q_lens=9,4 softcap=20 alibi=linear",
        "lens=20,33 q_lens=9,4 output_scale=0.01",
        "kv=fp8_e4m3 q=fp8_e4m3 scales=head lens=20,33 q_lens=9,1",
        "kv=i8 scales=token lens=20,33 q_lens=9,1",
    ] {
        let line = format!("unified bf16 heads=4/2 d=64 page=16 layout=nhd {fields}");
        let Case::Unified(case) = common::case(&line) else {
            panic!("{line} is no unified attention")
        };
        let tensors = UnifiedTensors::new(&case, SEED, Amount::WHOLE).expect("few query tokens");
        let base = &tensors.base;
        let mut inputs = decode_inputs(base);
        inputs.push(("query_start_loc", &tensors.query_start_loc));
        let output_scale = tensors.output_scale.iter();
        inputs.extend(output_scale.map(|scale| ("output_scale", scale)));
        let flags = tensors.causal_flags.iter();
        inputs.extend(flags.map(|flags| ("causal_flags", flags)));
        let mut metadata = metadata(&case.base);
        metadata += &format!(
            " causal={} num_decodes={} out_dtype={}",
            case.causal == Causal::On,
            case.num_decodes(SEED),
            base.out.dtype
        );
        if let Some(tokens) = case.max_query_len {
            metadata += &format!(" max_query_len={tokens}");
        }
        let got = results("unified", &inputs, &metadata);
        let out = base.out.with_bytes(got["out"].clone());
        let lse = base.lse.as_ref().expect("an lse");
        let lse = lse.with_bytes(got["lse"].clone());
        let tokens: Vec<usize> = (0..case.num_query_tokens(SEED)).collect();
        compare_unified(&case, &tensors, &out, Some(&lse), &tokens, ScoreSums::F32)
            .unwrap_or_else(|mismatch| panic!("{line}: {mismatch}"));
    }
}

#[test]
fn decode_over_entries() {
    for fields in [
        "form=656 heads=3 page=16 lens=20,5",
        "form=656-any-scale heads=2 page=16 lens=20,5 q_len=2 sinks=on split=16",
        "form=656 heads=2 page=16 lens=20,5 q_len=2 topk=7 skip=3 lengths=drawn by=table",
        "form=584 heads=3 page=16 lens=20,5",
        "form=584 heads=2 page=16 lens=20,5 topk=7 swa=6 skip=3 lengths=drawn sinks=on",
    ] {
        // `run` checks indices: those that are skipped are negative.
        let line = format!("decode_mla_entry bf16 {fields} check=device");
        let Case::DecodeEntries(case) = common::case(&line) else {
            panic!("{line} is no decode over entries")
        };
        let tensors = EntryTensors::new(&case, SEED, Amount::WHOLE);
        let num_seqs = tensors.num_seqs;
        let query = by_seq(&tensors.query, num_seqs);
        // The gaps between V4's pages belong to them.
        let whole_pages = |cache: &HostTensor| {
            let mut cache = cache.clone();
            if case.form == EntryForm::V4 {
                cache.shape[1] = cache.strides[0];
            }
            cache
        };
        let cache = whole_pages(&tensors.cache);
        let window_cache = tensors.window.as_ref().map(|(cache, _)| whole_pages(cache));
        let lists = [
            ("topk_indices", "topk_length", tensors.topk.as_ref()),
            (
                "window_indices",
                "window_length",
                tensors.window.as_ref().map(|(_, list)| list),
            ),
        ];
        let mut lists_by_seq = Vec::new();
        for (indices, lengths, list) in lists {
            let Some(list) = list else { continue };
            lists_by_seq.push((indices, by_seq(&list.indices, num_seqs)));
            let list = list.lengths.iter();
            lists_by_seq.extend(list.map(|list| (lengths, by_seq(list, num_seqs))));
        }

        let mut inputs = vec![("query", &query), ("cache", &cache)];
        if case.topk.is_none_or(|topk| topk.by_table) {
            inputs.push(("block_table", &tensors.block_table));
        }
        if case.topk.is_none() {
            inputs.push(("seq_lens", &tensors.seq_lens));
        }
        inputs.extend(lists_by_seq.iter().map(|(name, list)| (*name, list)));
        inputs.extend(window_cache.iter().map(|cache| ("window_cache", cache)));
        inputs.extend(tensors.sinks.iter().map(|sinks| ("sinks", sinks)));
        let form = match case.form {
            EntryForm::Fp8Ds => "fp8_ds_mla",
            EntryForm::V4 => "v4",
        };
        let mut metadata = format!(
            "form={form} softmax_scale={} block_size={} split_policy={}",
            case.scale(),
            case.block_size,
            split_policy(case.split_policy)
        );
        if window_cache.is_some() {
            metadata += &format!(" window_block_size={}", case.block_size);
        }
        let got = results("decode_mla_entry", &inputs, &metadata);
        let out = tensors.out.with_bytes(got["out"].clone());
        let lse = tensors.lse.as_ref().expect("an lse");
        let lse = lse.with_bytes(got["lse"].clone());
        let rows: Vec<usize> = (0..num_seqs * case.query_len).collect();
        compare_entries(&case, &tensors, &out, Some(&lse), &rows)
            .unwrap_or_else(|mismatch| panic!("{line}: {mismatch}"));
    }
}
