//! Unified attention against the reference, on every machine that is here.
#![allow(missing_docs, reason = "a test crate has no readers of its docs")]

mod common;

use common::{assert_pass, case, emulated, judge, listed, machines};
use ferroattn::cases::fill::{Amount, POISON};
use ferroattn::cases::{
    Case, DeviceUnified, Mismatch, ScoreSums, UnifiedCase, UnifiedTensors, compare_unified,
    run_case, run_case_again,
};
use ferroattn::emulator::Emulator;
use ferroattn::error::{CheckError, Error};
use ferroattn::ops::{CHECK_BYTES, CheckMode, check_result};
use ferroattn::plan::{DeviceInfo, RowSplitShape, SplitPolicy, Splits};
use ferroattn::reference::HostTensor;
use ferroattn::runtime::{Buffer, Runtime};
use ferroattn::tensor::Dtype;
use proptest::prelude::*;

fn is_unified(case: &Case) -> bool {
    matches!(case, Case::Unified(_))
}

#[test]
fn smoke() {
    assert_pass(&listed("smoke", is_unified), 1);
}

#[test]
fn edges() {
    assert_pass(&listed("edges", is_unified), 2);
}

/// All machines, and the emulator that plans kernels of warp groups.
fn machines_and_groups() -> Vec<Box<dyn Runtime>> {
    let mut all = machines();
    all.push(Box::new(emulated((9, 0))));
    all
}

const SEED: u64 = 3;

/// A case that `line` describes, and its tensors.
fn tensors(line: &str) -> (UnifiedCase, UnifiedTensors) {
    let Case::Unified(case) = case(line) else {
        panic!("{line} is no unified attention")
    };
    let tensors = UnifiedTensors::new(&case, SEED, Amount::WHOLE).expect("few tokens");
    (case, tensors)
}

/// Output and lse.
fn attend(
    machine: &dyn Runtime,
    case: &UnifiedCase,
    tensors: UnifiedTensors,
) -> Result<(HostTensor, HostTensor), Error> {
    let mut device = DeviceUnified::new(machine, tensors)?;
    let checked = device.request(case, SEED, 0)?.check()?;
    let plan = checked.plan(&machine.device())?;
    let bytes = plan.workspace_bytes().max(256);
    let mut workspace = Buffer::uninit(machine, "workspace", Dtype::U8, &[bytes])?;
    checked.launch(&plan, &mut workspace.view_mut(), machine)?;
    machine.synchronize()?;
    let (out, lse) = device.results()?;
    if case.base.check == CheckMode::Device
        && let Err(fault) = check_result(&workspace.read()?[..CHECK_BYTES])
    {
        // Nothing may have been written.
        assert!(out.storage.bytes.iter().all(|&byte| byte == POISON));
        return Err(fault.into());
    }
    Ok((out, lse.expect("these cases have an lse")))
}

/// Bytes of one row of a contiguous tensor.
fn row(tensor: &HostTensor, at: usize) -> Vec<u8> {
    let size = tensor.dtype.size();
    let start = (tensor.offset + at * tensor.strides[0]) * size;
    tensor.storage.bytes[start..start + tensor.strides[0] * size].to_vec()
}

fn ints(name: &'static str, values: &[i32]) -> HostTensor {
    let bytes = values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    HostTensor::contiguous(name, Dtype::I32, &[values.len()], bytes)
}

fn one(name: &'static str, value: f32) -> HostTensor {
    HostTensor::contiguous(name, Dtype::F32, &[1], value.to_le_bytes().to_vec())
}

/// The first sequence of a batch, of which `tokens` are this step's.
fn chunk(whole: &UnifiedTensors, tokens: std::ops::Range<usize>) -> UnifiedTensors {
    let mut part = whole.clone();
    let base = &mut part.base;
    let (start, len) = (tokens.start, tokens.len());
    base.num_seqs = 1;
    base.query = base.query.slice(start, len);
    base.out = base.out.slice(start, len);
    base.lse = base.lse.as_ref().map(|lse| lse.slice(start, len));
    base.block_table = base.block_table.slice(0, 1);
    let int = |value: usize| i32::try_from(value).expect("small");
    base.seq_lens = ints("seq_lens", &[int(tokens.end)]);
    part.query_start_loc = ints("query_start_loc", &[0, int(len)]);
    part.num_tokens = len;
    part
}

#[test]
fn a_batch_invariant_token_has_the_same_bits_in_every_chunk_and_batch() {
    for line in [
        "unified bf16 heads=6/2 d=64 page=16 layout=nhd lens=150,40,33 split=invariant q_lens=150,1,33",
        "unified bf16 heads=6/2 d=64 page=16 layout=nhd lens=150,40 split=invariant q_lens=150,1 window=37",
        "unified bf16 heads=6/2 kv=fp8_e4m3 d=128 page=16 layout=nhd lens=150,40 split=invariant q_lens=150,1 \
         softcap=20 sinks=on decodes_first=on",
    ] {
        let (case, whole) = tensors(line);
        for machine in machines_and_groups() {
            let expected = attend(machine.as_ref(), &case, whole.clone()).expect("attended");
            for cuts in [
                &[0, 150][..],
                &[0, 37, 38, 101, 150],
                &[0, 64, 128, 149, 150],
            ] {
                for cut in cuts.windows(2) {
                    let part = chunk(&whole, cut[0]..cut[1]);
                    let got = attend(machine.as_ref(), &case, part).expect("attended");
                    for token in cut[0]..cut[1] {
                        let at = token - cut[0];
                        assert_eq!(row(&got.0, at), row(&expected.0, token), "{line}: {token}");
                        assert_eq!(row(&got.1, at), row(&expected.1, token), "{line}: {token}");
                    }
                }
            }
        }
    }
}

/// Keys that no query of the sequence sees: a serving stack may have given their blocks to others.
#[test]
fn the_output_has_the_same_bits_whatever_lies_before_the_window() {
    let (case, clean) = tensors(
        "unified bf16 heads=4/2 d=64 page=8 layout=nhd lens=200,131,90 q_lens=3,1,20 window=25",
    );
    let mut dirty = clean.clone();
    let mut replaced = 0;
    for (seq, (query_len, seq_len)) in [(3, 200), (1, 131), (20, 90)].into_iter().enumerate() {
        let first = seq_len - query_len + 1 - 25;
        for cache in [&mut dirty.base.key_cache, &mut dirty.base.value_cache] {
            let mut bytes = cache.storage.bytes.clone();
            for token in 0..first {
                let block = clean.base.block_table.integer(&[seq, token / 8]);
                let block = usize::try_from(block).expect("a block id");
                for head in 0..2 {
                    let at = 2 * cache.position(&[block, token % 8, head, 0]);
                    bytes[at..at + 2 * 64].fill(POISON);
                    replaced += 1;
                }
            }
            *cache = cache.with_bytes(bytes);
        }
        // Nor are their blocks named any more.
        let mut table = dirty.base.block_table.storage.bytes.clone();
        for block in 0..first / 8 {
            let at = 4 * clean.base.block_table.position(&[seq, block]);
            table[at..at + 4].copy_from_slice(&(-1_000_000i32).to_le_bytes());
        }
        dirty.base.block_table = dirty.base.block_table.with_bytes(table);
    }
    assert!(replaced > 0);
    for machine in machines_and_groups() {
        let expected = attend(machine.as_ref(), &case, clean.clone()).expect("attended");
        let got = attend(machine.as_ref(), &case, dirty.clone()).expect("attended");
        assert_eq!(got.0.storage.bytes, expected.0.storage.bytes);
        assert_eq!(got.1.storage.bytes, expected.1.storage.bytes);
    }
}

/// The scales of vLLM's tests. Each multiplies what the formula says, and nothing else.
#[test]
fn each_scale_alone_changes_the_result_as_the_formula_says() {
    let (case, plain) = tensors(
        "unified bf16 heads=4/2 kv=fp8_e4m3 q=fp8_e4m3 d=128 page=16 layout=nhd lens=90,40 q_lens=5,40",
    );
    let with = |q: f32, k: f32, v: f32| {
        let mut tensors = plain.clone();
        let scales = tensors.base.scales.as_mut().expect("a cache of bytes");
        // Bytes are spread over ±448: these bring scores to where a softmax is not one spike.
        scales.q_scale = Some(one("q_scale", q / 64.0));
        scales.k_scale = one("k_scale", k / 64.0);
        scales.v_scale = one("v_scale", v / 64.0);
        tensors
    };
    for machine in machines_and_groups() {
        let run = |q, k, v| {
            let tensors = with(q, k, v);
            let (out, lse) = attend(machine.as_ref(), &case, tensors.clone()).expect("attended");
            let tokens: Vec<usize> = (0..45).collect();
            compare_unified(&case, &tensors, &out, Some(&lse), &tokens, ScoreSums::F32)
                .unwrap_or_else(|wrong| panic!("scales {q} {k} {v}: {wrong}"));
            (out, lse)
        };
        let base = run(0.75, 0.5, 0.25);
        let (q, k, v) = (
            run(1.5, 0.5, 0.25),
            run(0.75, 1.0, 0.25),
            run(0.75, 0.5, 0.5),
        );
        assert_eq!(
            q.0.storage.bytes, k.0.storage.bytes,
            "q_scale and k_scale do the same"
        );
        assert_eq!(q.1.storage.bytes, k.1.storage.bytes);
        assert_ne!(q.0.storage.bytes, base.0.storage.bytes);
        assert_eq!(
            v.1.storage.bytes, base.1.storage.bytes,
            "v_scale leaves scores alone"
        );
        for token in 0..45 {
            for head in 0..4 {
                for dim in 0..128 {
                    let at = [token, head, dim];
                    assert_eq!(v.0.float(&at), 2.0 * base.0.float(&at), "{at:?}");
                }
            }
        }
    }
}

#[test]
fn a_checked_request_reports_bad_starts_and_writes_nothing() {
    let line = "unified bf16 heads=4/2 d=64 page=16 layout=nhd lens=40,33,20 check=device";
    let outside = |seq, start, end, num_tokens| CheckError::QueryStart {
        seq,
        start,
        end,
        num_tokens,
    };
    let too_many = CheckError::QueryLen {
        seq: 0,
        value: 2,
        limit: 1,
    };
    // By rows, and by a decode kernel.
    let (rows, decodes) = ("q_lens=3,1,2", "q_lens=1,0,1 max_q_len=1");
    let table = [
        (rows, [0, 3, 4, 6], None),
        (rows, [0, 3, 2, 6], Some(outside(1, 3, 2, 6))),
        (rows, [0, 3, 4, 7], Some(outside(2, 4, 7, 6))),
        (decodes, [0, 1, 1, 2], None),
        (decodes, [-1, 0, 1, 2], Some(outside(0, -1, 0, 2))),
        (
            decodes,
            [0, 1, 1, i32::MIN],
            Some(outside(2, 1, i32::MIN.into(), 2)),
        ),
        (decodes, [0, 2, 2, 2], Some(too_many)),
    ];
    for (q_lens, starts, expected) in table {
        let (case, mut tensors) = tensors(&format!("{line} {q_lens}"));
        tensors.query_start_loc = ints("query_start_loc", &starts);
        for machine in machines() {
            match (attend(machine.as_ref(), &case, tensors.clone()), &expected) {
                (Ok(_), None) => {}
                (Err(Error::Check(fault)), Some(expected)) => assert_eq!(&fault, expected),
                (other, _) => panic!("{q_lens} {starts:?}: {:?}", other.map(drop)),
            }
        }
    }
}

/// A part of each of 128 rows of 128 values.
const PART_BYTES_OF_CTA: u64 = 128 * (4 * 128 + 4);

#[test]
fn rows_are_split_where_they_leave_the_machine_idle_or_are_few_and_see_many_keys() {
    // (thread blocks, most keys) -> splits on 132 multiprocessors of two thread blocks each
    let table = [
        ((2048, 131_072), 1),
        ((264, 131_072), 3),
        ((264, 20_000), 3),
        ((264, 8192), 1),
        ((132, 8192), 2),
        ((132, 131_072), 7),
        ((8, 131_072), 33),
        ((8, 8192), 16),
        ((8, 1024), 2),
        ((8, 512), 1),
        ((1, 0), 1),
    ];
    for ((ctas, max_keys), expected) in table {
        let shape = RowSplitShape {
            ctas,
            max_keys,
            tile_kv: 64,
            shared_bytes: 96 * 1024,
            most_ctas_per_sm: 2,
            part_bytes: u64::from(ctas) * PART_BYTES_OF_CTA,
        };
        let splits = Splits::choose_rows(&shape, &DeviceInfo::H200, SplitPolicy::Auto);
        assert_eq!(
            splits.num_kv_splits, expected,
            "{ctas} {max_keys}: {splits}"
        );
        assert_eq!(splits.split_len % 64, 0);
        let whole = Splits::choose_rows(&shape, &DeviceInfo::H200, SplitPolicy::BatchInvariant);
        assert_eq!(whole.num_kv_splits, 1);
        let fixed = Splits::choose_rows(&shape, &DeviceInfo::H200, SplitPolicy::Fixed(1));
        assert!(fixed.num_kv_splits <= 65_534 && fixed.split_len >= 64);
    }
}

/// Batches around the sizes at which other planners change their minds: the number of thread blocks that run
/// never drops by more than half from one batch to the next larger.
#[test]
fn no_batch_size_falls_off_a_cliff() {
    let ctas = |num_seqs: u32| {
        let shape = RowSplitShape {
            ctas: num_seqs * 8,
            max_keys: 32_768,
            tile_kv: 64,
            shared_bytes: 96 * 1024,
            most_ctas_per_sm: 2,
            part_bytes: u64::from(num_seqs) * 8 * PART_BYTES_OF_CTA,
        };
        let splits = Splits::choose_rows(&shape, &DeviceInfo::H200, SplitPolicy::Auto);
        num_seqs * 8 * splits.num_kv_splits
    };
    for num_seqs in 1..200 {
        assert!(ctas(num_seqs) > 132, "{num_seqs}: {}", ctas(num_seqs));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn any_batch_is_what_the_reference_says(
        group in 1usize..40,
        kv_heads in 1usize..3,
        page in (1usize..6).prop_map(|groups| 8 * groups),
        lens in prop::collection::vec((0usize..90, 0usize..40), 1..6),
        window in prop::option::of(1u32..100),
        causal in prop::sample::select(vec!["", " causal=off", " causal=mixed"]),
        softcap in prop::option::of(5u32..60),
        sinks in any::<bool>(),
        split in prop::option::of(prop::sample::select(vec!["64", "100", "invariant"])),
        seed in 0u64..1000,
    ) {
        // Queries beyond the keys stand before position 0 and see nothing.
        let keys: Vec<_> = lens.iter().map(|(len, _)| len.to_string()).collect();
        let queries: Vec<_> = lens.iter().map(|(_, len)| len.to_string()).collect();
        let mut line = format!(
            "unified bf16 heads={}/{kv_heads} d=64 page={page} layout=nhd lens={}",
            group * kv_heads,
            keys.join(",")
        );
        if let Some(split) = split {
            line += &format!(" split={split}");
        }
        line += &format!(" q_lens={}", queries.join(","));
        line += causal;
        if let Some(window) = window {
            line += &format!(" window={window}");
        }
        if let Some(softcap) = softcap {
            line += &format!(" softcap={softcap}");
        }
        if sinks {
            line += " sinks=on";
        }
        let case = case(&line);
        for machine in machines() {
            if let Err(error) = judge(&case, machine.as_ref(), seed) {
                return Err(TestCaseError::fail(format!("{case} on {}: {error}", machine.name())));
            }
        }
    }
}

#[test]
fn a_verdict_is_taken_over_with_the_same_outputs_alone() {
    let case = case("unified bf16 heads=2/1 d=64 page=16 layout=nhd lens=20 q_lens=3");
    let machine = Emulator::new();
    let mut before = run_case(&case, &machine, SEED).expect("a case that runs");
    assert!(before.verdict.is_ok());
    let wrong = Mismatch::NonFinite {
        tensor: "out",
        at: vec![0, 0, 0],
        got: f64::NAN,
        expected: 1.0,
    };
    before.verdict = Err(wrong);
    let again = run_case_again(&case, &machine, SEED, Some(&before)).expect("it ran before");
    assert!(again.verdict.is_err());
    let mut bytes = before.outputs[0].storage.bytes.clone();
    bytes[0] ^= 1;
    before.outputs[0] = before.outputs[0].with_bytes(bytes);
    let again = run_case_again(&case, &machine, SEED, Some(&before)).expect("it ran before");
    assert!(again.verdict.is_ok());
}
