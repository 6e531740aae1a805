//! `ferroattn run` of gathers, copies and compaction of blocks: exactly the bytes that are named.
#![allow(missing_docs, reason = "a test crate has no readers of its docs")]
#![allow(clippy::cast_possible_truncation, reason = "small test data")]

mod common;
mod gather_case;
mod tensors;

use common::files::{file, results, run};
use common::program::{assert_refused, text};
use ferroattn::reference::HostTensor;
use ferroattn::tensor::Dtype;
use gather_case::{Cache, Form, SCALE};
use tensors::*;

/// Bytes as a tensor, each different from its neighbours.
fn bytes(name: &'static str, shape: &[usize], first: usize) -> HostTensor {
    let len: usize = shape.iter().product();
    let data = (first..first + len).map(|at| (at % 251) as u8).collect();
    tensor(name, Dtype::U8, shape, data)
}

fn pairs(list: &[[i64; 2]]) -> HostTensor {
    let mut pairs = longs("pairs", list.as_flattened());
    (pairs.shape, pairs.strides) = (vec![list.len(), 2], vec![2, 1]);
    pairs
}

fn le_bytes(values: &[i32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

/// Four blocks of two tokens of 16 bytes.
fn small_cache(name: &'static str) -> (HostTensor, Vec<u8>) {
    let cache = bytes(name, &[4, 2, 16], 0);
    let data = cache.storage.bytes.clone();
    (cache, data)
}

#[test]
fn rows_by_every_way_to_name_them() {
    let (cache, data) = small_cache("cache");
    let rows = |slots: &[Option<usize>]| -> Vec<u8> {
        let row = |slot: &Option<usize>| match slot {
            Some(slot) => data[16 * slot..16 * (slot + 1)].to_vec(),
            None => vec![0; 16],
        };
        slots.iter().flat_map(row).collect()
    };
    let out = |tensors: &[(&str, &HostTensor)], metadata: &str| {
        let all = [&[("cache", &cache)], tensors].concat();
        results("gather", &all, metadata)["out"].clone()
    };
    let slots = ints("slots", &[3], &[5, -1, 0]);
    let expected = rows(&[Some(5), None, Some(0)]);
    assert_eq!(out(&[("slots", &slots)], ""), expected);

    // Sequence 0 has slots 6, 7, 0, 1; sequence 1 has 2, 3.
    let table = ints("block_table", &[2, 2], &[3, 0, 1, -1]);
    let table = ("block_table", &table);
    let starts = ints("row_starts", &[3], &[0, 3, 4]);
    let starts = ("row_starts", &starts);
    let expected = rows(&[Some(6), Some(7), Some(0), Some(2)]);
    assert_eq!(out(&[table, starts], ""), expected);
    let first = ints("first_tokens", &[2], &[1, 1]);
    let expected = rows(&[Some(7), Some(0), Some(1), Some(3)]);
    assert_eq!(
        out(&[table, starts, ("first_tokens", &first)], ""),
        expected
    );

    let indices = ints("topk_indices", &[2, 2], &[2, 0, -1, 1]);
    let indices = ("topk_indices", &indices);
    let expected = rows(&[Some(0), Some(6), None, Some(3)]);
    assert_eq!(out(&[table, indices], ""), expected);
    let seqs = ints("seqs", &[2], &[0, 0]);
    let expected = rows(&[Some(0), Some(6), None, Some(7)]);
    assert_eq!(out(&[table, indices, ("seqs", &seqs)], ""), expected);

    let seq_lens = ints("seq_lens", &[2], &[3, 1]);
    let seq_lens = ("seq_lens", &seq_lens);
    let expected = rows(&[Some(6), Some(7), Some(0), Some(2), None, None]);
    assert_eq!(out(&[table, seq_lens], "rows_per_seq=3"), expected);
    let lens = ints("lens", &[2], &[2, 0]);
    let expected = rows(&[Some(7), Some(0), None, None]);
    let last = out(&[table, seq_lens, ("lens", &lens)], "rows_per_seq=2");
    assert_eq!(last, expected);
}

#[test]
fn rows_of_quantised_caches() {
    let random = &mut Random::new(1);
    let (block_size, num_blocks) = (16, 2);
    let scale = floats("scale", &[1], &[SCALE]);
    let slots = [5, -1, 0, 31, 16];
    let named = ints("slots", &[slots.len()], &slots);
    // What `out_dtype` is if the metadata does not have it comes first.
    for (form, metadata) in [
        (Form::Fp8(Dtype::F8E4m3, Dtype::Bf16), ""),
        (Form::Fp8(Dtype::F8E4m3, Dtype::F32), "out_dtype=f32"),
        (Form::Fp8(Dtype::F8E5m2, Dtype::F16), "out_dtype=f16"),
        (Form::Fp8Ds, "form=fp8_ds_mla"),
        (Form::V4, "form=v4 block_size=16"),
    ] {
        let mut cache = Cache::new(form, 160, block_size, num_blocks, random);
        let mut inputs = vec![("slots", &named)];
        if let Form::Fp8(stored, _) = form {
            // Of NaN, the bits are not promised.
            let finite = finite_values(stored, cache.tensor.num_elements(), random);
            cache.tensor = cache.tensor.with_bytes(finite);
            inputs.push(("scale", &scale));
        }
        inputs.push(("cache", &cache.tensor));
        let got = results("gather", &inputs, metadata);
        let (dtype, row) = cache.out();
        let rows = slots.map(|slot| match usize::try_from(slot) {
            Ok(slot) => cache.row(slot),
            Err(_) => vec![0; row * dtype.size()],
        });
        assert_same_bytes(&got["out"], &rows.concat(), &format!("{form:?}"));
    }
}

#[test]
fn blocks_are_copied_within_a_cache_and_between_two() {
    let (target, mut expected) = small_cache("target");
    let list = pairs(&[[0, 3], [-1, 1]]);
    let target = ("target", &target);
    let within = results("copy_blocks", &[target, ("pairs", &list)], "");
    expected.copy_within(..32, 96);
    assert_eq!(within["target"], expected);

    let (source, list) = (bytes("source", &[6, 2, 16], 100), pairs(&[[5, 0], [2, 3]]));
    let inputs = [target, ("source", &source), ("pairs", &list)];
    let between = results("copy_blocks", &inputs, "");
    let (mut expected, source) = (small_cache("target").1, &source.storage.bytes);
    expected[..32].copy_from_slice(&source[160..]);
    expected[96..].copy_from_slice(&source[64..96]);
    assert_eq!(between.len(), 1, "the source is not written");
    assert_eq!(between["target"], expected);
}

#[test]
fn blocks_of_many_caches_are_copied() {
    // Three caches of four blocks, and three of two.
    let targets = bytes("targets", &[3, 4, 2, 16], 0);
    let sources = bytes("sources", &[3, 2, 2, 16], 100);
    for (sources, list) in [(None, [[0, 3], [1, 2]]), (Some(&sources), [[1, 0], [0, 2]])] {
        let pairs = pairs(&list.map(|pair| pair.map(|block| block as i64)));
        let mut inputs = vec![("targets", &targets), ("pairs", &pairs)];
        inputs.extend(sources.map(|sources| ("sources", sources)));
        let got = results("copy_blocks", &inputs, "");
        let source = sources.unwrap_or(&targets);
        let block = |tensor: &HostTensor, cache: usize, block: usize| {
            let start = tensor.position(&[cache, block, 0, 0]);
            start..start + 32
        };
        let mut expected = targets.storage.bytes.clone();
        for cache in 0..3 {
            for [from, to] in list {
                let bytes = &source.storage.bytes[block(source, cache, from)];
                expected[block(&targets, cache, to)].copy_from_slice(bytes);
            }
        }
        assert_eq!(got.len(), 1, "sources are not written");
        assert_same_bytes(&got["targets"], &expected, source.storage.name);
    }
}

#[test]
fn caches_in_one_tensor_are_some_at_addresses_that_kernels_can_use() {
    let folder = tempfile::tempdir().expect("a folder");
    let pairs = pairs(&[[0, 1]]);
    let refusal = |shape: &[usize]| {
        let targets = bytes("targets", shape, 0);
        let input = file(&[("targets", &targets), ("pairs", &pairs)], "");
        let output = run("copy_blocks", folder.path(), &input);
        assert_refused(&output);
        text(&output.stderr)
    };
    assert!(refusal(&[0, 4, 16]).contains("1 to 65535 caches, not [0, 4, 16]"));
    assert!(refusal(&[]).contains("1 to 65535 caches, not []"));
    assert!(refusal(&[3, 3, 8]).contains("a cache of `targets` has 24 bytes"));
}

#[test]
fn blocks_that_are_referred_to_are_compacted() {
    let (cache, data) = small_cache("cache");
    let slots = ints("slots", &[3], &[6, -1, 1]);
    let inputs = [("cache", &cache), ("slots", &slots)];
    let by_slots = results("compact", &inputs, "num_compact_blocks=2");
    assert_eq!(by_slots["compact"], [&data[..32], &data[96..]].concat());
    assert_eq!(by_slots["renamed"], le_bytes(&[2, -1, 1]));
    assert_eq!(by_slots["num_wanted"], le_bytes(&[2]));

    // Block 0 is named past a sequence's tokens, so nobody wants it.
    let table = ints("block_table", &[2, 2], &[3, 1, 1, 0]);
    let lens = ints("seq_lens", &[2], &[3, 2]);
    let inputs = [
        ("cache", &cache),
        ("block_table", &table),
        ("seq_lens", &lens),
    ];
    let by_tables = results("compact", &inputs, "num_compact_blocks=3");
    let unused = vec![POISON; 32];
    let expected = [&data[32..64], &data[96..], &unused].concat();
    assert_eq!(by_tables["compact"], expected);
    assert_eq!(by_tables["renamed"], le_bytes(&[1, 0, 0, -1]));
    assert_eq!(by_tables["num_wanted"], le_bytes(&[2]));
}
