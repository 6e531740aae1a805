//! The planner: numbers in, numbers out.
#![allow(missing_docs, reason = "a test crate has no readers of its docs")]

use ferroattn::Error;
use ferroattn::plan::{
    DeviceInfo, SplitPolicy, SplitShape, Splits, variants, warp_tile_nanoseconds,
};
use gpu_kernels::dtype::{CacheDtype, Dtype};
use proptest::prelude::*;

/// 128-value heads in bf16.
fn shape(num_seqs: u32, num_kv_heads: u32, max_seq_len: u32) -> SplitShape {
    SplitShape {
        num_seqs,
        ctas_per_split: num_kv_heads,
        max_seq_len,
        token_bytes: 512,
        tile_nanoseconds: warp_tile_nanoseconds(128),
        cta_nanoseconds: 0.0,
        tile_len: 64,
        shared_bytes: 96 * 1024,
    }
}

#[test]
fn fixed_splits_are_whole_tiles() {
    // (asked for, longest sequence) -> (splits, tokens per split)
    let table = [
        ((64, 1000), (16, 64)),
        ((1, 1000), (16, 64)),
        ((65, 1000), (8, 128)),
        ((500, 9000), (18, 512)),
        ((u32::MAX, 9000), (1, 9024)),
        ((0, 100), (2, 64)),
        ((64, 0), (1, 64)),
    ];
    for ((len, max_seq_len), expected) in table {
        let splits = Splits::choose(
            &shape(3, 8, max_seq_len),
            &DeviceInfo::H200,
            SplitPolicy::Fixed(len),
        );
        assert_eq!(
            (splits.num_kv_splits, splits.split_len),
            expected,
            "{len} of {max_seq_len}"
        );
    }
}

#[test]
fn automatic_splits_fill_the_machine_and_no_more() {
    // (sequences, longest) -> the fewest and the most splits that make sense on 132 multiprocessors
    let table = [
        ((1, 64), (1, 1)),
        ((1, 8192), (16, 64)),
        ((1, 131_072), (16, 66)),
        ((8, 8192), (2, 16)),
        ((200, 100), (1, 1)),
    ];
    for ((num_seqs, max_seq_len), (fewest, most)) in table {
        let splits = Splits::choose(
            &shape(num_seqs, 8, max_seq_len),
            &DeviceInfo::H200,
            SplitPolicy::Auto,
        );
        assert!(
            (fewest..=most).contains(&splits.num_kv_splits),
            "{num_seqs} x {max_seq_len}: {splits}"
        );
    }
}

/// The host knows the longest sequence only: however many there are, none may keep one multiprocessor busy long after
/// the others.
#[test]
fn a_long_sequence_is_split_though_its_batch_fills_the_machine() {
    for num_seqs in [64, 256, 1000] {
        for max_seq_len in [16_384, 131_072] {
            let shape = shape(num_seqs, 8, max_seq_len);
            let splits = Splits::choose(&shape, &DeviceInfo::H200, SplitPolicy::Auto);
            assert!(
                splits.split_len <= 8192 && splits.num_kv_splits > 1,
                "{num_seqs} x {max_seq_len}: {splits}"
            );
        }
    }
}

/// A split against stragglers is an insurance: not made where its thread blocks' ends cost more than it is worth.
#[test]
fn extra_splits_have_to_be_cheap() {
    // Two waves of MLA's thread blocks for 64 heads.
    let shape = |cta_nanoseconds| SplitShape {
        num_seqs: 128,
        ctas_per_split: 2,
        max_seq_len: 8192,
        token_bytes: 1152,
        tile_nanoseconds: 4000.0,
        cta_nanoseconds,
        tile_len: 64,
        shared_bytes: 220 * 1024,
    };
    let splits = |cta_nanoseconds| {
        Splits::choose(
            &shape(cta_nanoseconds),
            &DeviceInfo::H200,
            SplitPolicy::Auto,
        )
        .num_kv_splits
    };
    assert_eq!(splits(0.0), 3);
    assert_eq!(splits(20_000.0), 1);
}

proptest! {
    #[test]
    fn splits_cover_the_longest_sequence_and_none_is_empty(
        num_seqs in 1u32..300,
        ctas in 1u32..65,
        max_seq_len in 1u32..200_000,
        tile_len in prop::sample::select(vec![16u32, 32, 64, 128]),
        sms in 1u32..200,
        policy in prop::sample::select(vec![
            SplitPolicy::Auto,
            SplitPolicy::BatchInvariant,
            SplitPolicy::Fixed(100),
            SplitPolicy::Fixed(u32::MAX),
        ]),
    ) {
        let device = DeviceInfo { num_sms: sms, ..DeviceInfo::H200 };
        let shape = SplitShape { ctas_per_split: ctas, tile_len, ..shape(num_seqs, 1, max_seq_len) };
        let splits = Splits::choose(&shape, &device, policy);
        prop_assert_eq!(splits.split_len % tile_len, 0);
        let (count, len) = (u64::from(splits.num_kv_splits), u64::from(splits.split_len));
        prop_assert!(count * len >= u64::from(max_seq_len));
        prop_assert!((count - 1) * len < u64::from(max_seq_len));
    }

    #[test]
    fn batch_invariant_splits_depend_on_the_sequence_alone(
        num_seqs in 1u32..300,
        heads in 1u32..65,
        longest in 1u32..20_000,
        sms in 1u32..200,
        len in 1u32..20_000,
    ) {
        let device = DeviceInfo { num_sms: sms, ..DeviceInfo::H200 };
        let len = len.min(longest);
        let cuts = |splits: Splits| -> Vec<u32> {
            (0..len).step_by(splits.split_len as usize).collect()
        };
        let alone = Splits::choose(&shape(1, 1, len), &DeviceInfo::H200, SplitPolicy::BatchInvariant);
        let batch =
            Splits::choose(&shape(num_seqs, heads, longest), &device, SplitPolicy::BatchInvariant);
        prop_assert_eq!(cuts(alone), cuts(batch));
    }
}

#[test]
fn every_supported_head_size_has_a_kernel_for_every_group() {
    for (head_size, head_size_v) in variants::decode_support() {
        for dtype in [Dtype::F16, Dtype::Bf16].map(CacheDtype::of) {
            for group in 1..=64 {
                for ruled in [false, true] {
                    variants::decode_entry(dtype, (head_size, head_size_v), group, ruled)
                        .unwrap_or_else(|error| panic!("{head_size} x {group}: {error}"));
                }
            }
        }
    }
    let refused = variants::decode_entry(CacheDtype::of(Dtype::Bf16), (80, 80), 4, false);
    assert!(matches!(refused, Err(Error::Unsupported { .. })));
}
