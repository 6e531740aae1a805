//! Decode attention against the reference, on every machine that is here.
#![allow(missing_docs, reason = "a test crate has no readers of its docs")]

mod common;

use common::{assert_pass, case, decode_case, judge, listed, machines};
use ferroattn::cases::fill::{self, Amount, DecodeTensors, NO_BLOCK, POISON};
use ferroattn::cases::{Case, DecodeCase, DeviceDecode, Layout, compare_decode};
use ferroattn::emulator::Emulator;
use ferroattn::error::{CheckError, Error};
use ferroattn::ops::{CHECK_BYTES, CheckMode, DecodeOptions, DecodeRequest, check_result};
use ferroattn::plan::{SplitPolicy, variants};
use ferroattn::reference::HostTensor;
use ferroattn::runtime::{Buffer, DeviceMemory, Launcher, Runtime};
use ferroattn::tensor::{Dtype, TensorView, TensorViewMut};
use proptest::prelude::*;

fn is_decode(case: &Case) -> bool {
    matches!(case, Case::Decode(_))
}

#[test]
fn smoke() {
    assert_pass(&listed("smoke", is_decode), 1);
}

#[test]
fn edges() {
    assert_pass(&listed("edges", is_decode), 2);
}

/// A case that `line` describes, and its tensors.
fn tensors(line: &str) -> (DecodeCase, DecodeTensors) {
    let case = decode_case(line);
    let tensors = fill::decode(&case, 3, Amount::WHOLE);
    (case, tensors)
}

/// Output and lse of the sequences `first ..= last`, as bytes of the whole tensors, run as one batch.
fn attend(
    machine: &dyn Runtime,
    case: &DecodeCase,
    mut tensors: DecodeTensors,
    options: DecodeOptions<'_>,
    (first, last): (usize, usize),
) -> Result<(HostTensor, HostTensor), Error> {
    for tensor in [
        &mut tensors.query,
        &mut tensors.block_table,
        &mut tensors.seq_lens,
    ] {
        *tensor = tensor.slice(first, last - first + 1);
    }
    tensors.out = tensors.out.slice(first, last - first + 1);
    tensors.lse = tensors.lse.map(|lse| lse.slice(first, last - first + 1));
    tensors.num_seqs = last - first + 1;
    let mut device = DeviceDecode::new(machine, tensors)?;
    let checked = device.request(0, case.scale(), options)?.check()?;
    let plan = checked.plan(&machine.device())?;
    let bytes = plan.workspace_bytes().max(CHECK_BYTES);
    let mut workspace = Buffer::uninit(machine, "workspace", Dtype::U8, &[bytes])?;
    checked.launch(&plan, &mut workspace.view_mut(), machine)?;
    machine.synchronize()?;
    let (out, lse) = device.results()?;
    if options.check == CheckMode::Device
        && let Err(fault) = check_result(&workspace.read()?[..CHECK_BYTES])
    {
        // Nothing may have been written.
        assert!(out.storage.bytes.iter().all(|&byte| byte == POISON));
        return Err(fault.into());
    }
    Ok((out, lse.expect("these cases have an lse")))
}

/// Where the poison is does not matter, and neither does what it is.
#[test]
fn the_output_has_the_same_bits_whatever_lies_beyond_the_end() {
    let (case, tensors) =
        tensors("decode bf16 heads=8/2 d=64 page=16 layout=nhd lens=1,17,100,33 split=64");
    let infinity = 0x7f80u16.to_le_bytes();
    let huge = 0x7f00u16.to_le_bytes();
    let zero = [0; 2];
    for machine in machines() {
        let all = (0, 3);
        let expected = attend(
            machine.as_ref(),
            &case,
            tensors.clone(),
            case.options(),
            all,
        )
        .expect("attended");
        for junk in [infinity, huge, zero] {
            let mut other = tensors.clone();
            for cache in [&mut other.key_cache, &mut other.value_cache] {
                let mut bytes = cache.storage.bytes.clone();
                let mut replaced = 0;
                for element in bytes.chunks_exact_mut(2) {
                    if element == [POISON; 2] {
                        element.copy_from_slice(&junk);
                        replaced += 1;
                    }
                }
                assert!(replaced > 0, "there was poison");
                *cache = cache.with_bytes(bytes);
            }
            let got =
                attend(machine.as_ref(), &case, other, case.options(), all).expect("attended");
            assert_eq!(got.0.storage.bytes, expected.0.storage.bytes);
            assert_eq!(got.1.storage.bytes, expected.1.storage.bytes);
        }
    }
}

/// Bits of one row of a tensor.
fn row(tensor: &HostTensor, at: usize) -> Vec<u8> {
    let size = tensor.dtype.size();
    let start = (tensor.offset + at * tensor.strides[0]) * size;
    tensor.storage.bytes[start..start + tensor.strides[0] * size].to_vec()
}

#[test]
fn a_batch_invariant_sequence_has_the_same_bits_in_every_batch() {
    let (case, tensors) = tensors(
        "decode bf16 heads=4/1 d=64 page=16 layout=nhd lens=700,2100,5,1025 split=invariant",
    );
    for machine in machines() {
        let machine = machine.as_ref();
        let whole =
            attend(machine, &case, tensors.clone(), case.options(), (0, 3)).expect("attended");
        let lens = [700, 2100, 5, 1025];
        for batch in [(0, 0), (1, 1), (2, 2), (3, 3), (0, 1), (1, 3)] {
            let longest = lens[batch.0..=batch.1].iter().copied().max();
            // The host may know a bound, and a tight one.
            for bound in [None, longest] {
                let mut options =
                    DecodeOptions::default().split_policy(SplitPolicy::BatchInvariant);
                options.max_seq_len = bound;
                let part =
                    attend(machine, &case, tensors.clone(), options, batch).expect("attended");
                for (at, seq) in (batch.0..=batch.1).enumerate() {
                    assert_eq!(
                        row(&part.0, at),
                        row(&whole.0, seq),
                        "{batch:?} {bound:?} {seq}"
                    );
                    assert_eq!(
                        row(&part.1, at),
                        row(&whole.1, seq),
                        "{batch:?} {bound:?} {seq}"
                    );
                }
            }
        }
    }
}

/// Replaces one i32 of a tensor.
fn plant(tensor: &HostTensor, index: &[usize], value: i32) -> HostTensor {
    let mut bytes = tensor.storage.bytes.clone();
    let at = 4 * tensor.position(index);
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
    tensor.with_bytes(bytes)
}

#[test]
fn a_checked_request_reports_bad_indices_and_writes_nothing() {
    let (case, good) =
        tensors("decode bf16 heads=4/2 d=64 page=16 layout=nhd lens=40,33,20 check=device");
    let num_blocks = i64::try_from(good.key_cache.shape[0]).expect("few blocks");
    // Every row of the table names 3 blocks and one more that is garbage.
    let limit = 64;
    let blocks = [
        (1, 0, -1),
        (0, 2, i32::try_from(num_blocks).expect("few")),
        (1, 2, NO_BLOCK),
    ];
    for machine in machines() {
        let run = |tensors: DecodeTensors| {
            attend(machine.as_ref(), &case, tensors, case.options(), (0, 2))
        };
        run(good.clone())
            .expect("nothing to find: garbage past a row's last block is not looked at");
        for (seq, position, id) in blocks {
            let mut bad = good.clone();
            bad.block_table = plant(&good.block_table, &[seq, position], id);
            let Err(Error::Check(fault)) = run(bad) else {
                panic!("block {id} was accepted")
            };
            let expected = CheckError::BlockId {
                seq: u32::try_from(seq).expect("small"),
                position: u32::try_from(position).expect("small"),
                value: id.into(),
                num_blocks,
            };
            assert_eq!(fault, expected);
        }
        for (seq, len) in [(0, -1), (2, 65), (1, i32::MAX), (1, i32::MIN)] {
            let mut bad = good.clone();
            bad.seq_lens = plant(&good.seq_lens, &[seq], len);
            let Err(Error::Check(fault)) = run(bad) else {
                panic!("length {len} was accepted")
            };
            let expected = CheckError::SeqLen {
                seq: u32::try_from(seq).expect("small"),
                value: len.into(),
                limit,
            };
            assert_eq!(fault, expected);
        }
    }
}

/// A cache of more than 2^31 elements, which the emulator need not hold: only the blocks that are named.
#[test]
fn blocks_beyond_two_to_the_31_elements_are_found() {
    let (case, small) =
        tensors("decode bf16 heads=4/2 d=64 page=16 layout=nhd lens=40,100 split=64");
    let first_block = (1usize << 32) / small.key_cache.strides[0];
    let num_blocks = first_block + small.key_cache.shape[0];
    let emulator = Emulator::new();
    let mut buffers = Vec::new();
    for cache in [&small.key_cache, &small.value_cache] {
        let mut shape = cache.shape.clone();
        shape[0] = num_blocks;
        let buffer = Buffer::uninit(&emulator, "large cache", Dtype::Bf16, &shape).expect("sparse");
        let offset = 2 * (first_block * cache.strides[0]) as u64;
        // SAFETY: the last `small` blocks of the buffer.
        unsafe { emulator.copy_in(buffer.view().address() + offset, &cache.storage.bytes) }
            .expect("copied");
        buffers.push(buffer);
    }
    let ids: Vec<u8> = small
        .block_table
        .storage
        .bytes
        .chunks_exact(4)
        .map(|id| i32::from_le_bytes(id.try_into().expect("four bytes")))
        .map(|id| {
            if id == NO_BLOCK {
                id
            } else {
                id + i32::try_from(first_block).expect("fits")
            }
        })
        .flat_map(i32::to_le_bytes)
        .collect();
    let upload = |tensor: &HostTensor, bytes: &[u8]| {
        Buffer::new(&emulator, "input", tensor.dtype, &tensor.shape, bytes).expect("uploaded")
    };
    let query = upload(&small.query, &small.query.storage.bytes);
    let block_table = upload(&small.block_table, &ids);
    let seq_lens = upload(&small.seq_lens, &small.seq_lens.storage.bytes);
    let mut out = upload(&small.out, &small.out.storage.bytes);
    let request = DecodeRequest {
        query: query.view(),
        key_cache: buffers[0].view(),
        value_cache: buffers[1].view(),
        block_table: block_table.view(),
        seq_lens: seq_lens.view(),
        out: out.view_mut(),
        lse: None,
        softmax_scale: case.scale(),
        scales: None,
        options: case.options(),
    };
    let checked = request.check().expect("a good request");
    let plan = checked.plan(&emulator.device()).expect("a plan");
    let mut workspace =
        Buffer::uninit(&emulator, "workspace", Dtype::U8, &[plan.workspace_bytes()])
            .expect("a workspace");
    checked
        .launch(&plan, &mut workspace.view_mut(), &emulator)
        .expect("launched");
    let got = small.out.with_bytes(out.read().expect("read"));
    compare_decode(&case, &small, &got, None, &[0, 1]).expect("as the reference says");
}

/// A batch without sequences is no launch, and no error.
#[test]
fn an_empty_batch_does_nothing() {
    let emulator = Emulator::new();
    // SAFETY: nothing is read or written through views without elements, and the caches are not looked at.
    let view = |dtype, shape: &[usize]| unsafe { TensorView::contiguous(256, dtype, shape) };
    let cache = view(Dtype::Bf16, &[1, 16, 1, 64]).expect("a view");
    let request = DecodeRequest {
        query: view(Dtype::Bf16, &[0, 4, 64]).expect("a view"),
        key_cache: cache,
        value_cache: cache,
        block_table: view(Dtype::I32, &[0, 1]).expect("a view"),
        seq_lens: view(Dtype::I32, &[0]).expect("a view"),
        // SAFETY: no elements.
        out: unsafe { TensorViewMut::contiguous(256, Dtype::Bf16, &[0, 4, 64]) }.expect("a view"),
        lse: None,
        softmax_scale: 1.0,
        scales: None,
        options: DecodeOptions::default(),
    };
    let checked = request.check().expect("a good request");
    let plan = checked.plan(&emulator.device()).expect("a plan");
    let mut workspace =
        Buffer::uninit(&emulator, "workspace", Dtype::U8, &[256]).expect("a workspace");
    checked
        .launch(&plan, &mut workspace.view_mut(), &emulator)
        .expect("nothing to do");
}

fn any_case() -> impl Strategy<Value = Case> {
    let head_sizes = variants::decode_support();
    let shape = (
        prop::sample::select(vec!["bf16", "f16"]),
        1usize..=20,
        1usize..=3,
        prop::sample::select(head_sizes),
        prop::sample::select(vec![8, 16, 24, 40, 64]),
        prop::sample::select(Layout::ALL.to_vec()),
    );
    let rest = (
        prop::collection::vec(-1i32..200, 1..4),
        prop::sample::select(vec!["", " split=invariant", " split=1", " split=100"]),
        prop::sample::select(vec!["", " lse=off", " lse=heads-first"]),
        (0usize..3, 0usize..3, 0usize..3),
        prop::option::of(1u32..220),
    );
    (shape, rest).prop_map(|((dtype, group, kv, (d, dv), page, layout), rest)| {
        let (lens, split, lse, (query, out, table), bound) = rest;
        let lens: Vec<_> = lens.iter().map(i32::to_string).collect();
        let bound = bound.map_or(String::new(), |bound| format!(" max_len={bound}"));
        case(&format!(
            "decode {dtype} heads={}/{kv} d={d} dv={dv} page={page} layout={layout} lens={} pad={}/{}/{table}{split}{lse}{bound}",
            group * kv,
            lens.join(","),
            2 * query,
            4 * out,
        ))
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_supported_shape_agrees_with_the_reference(case in any_case(), seed in 0u64..1000) {
        let emulator = Emulator::with_seed(seed);
        prop_assert_eq!(judge(&case, &emulator, seed), Ok(()), "{} seed {}", case, seed);
    }

    #[test]
    fn any_case_reads_back(case in any_case()) {
        prop_assert_eq!(case.to_string().parse::<Case>(), Ok(case));
    }

    #[test]
    fn no_line_makes_the_parser_panic(line in "(decode|reshape_and_cache_flash)( bf16)?( (heads|d|page|layout|lens|pad|scale)=[a-z0-9:/,.-]{0,12}){0,8}") {
        let _ = line.parse::<Case>();
    }
}
