//! Cache writes and gathers against the reference, on every machine that is here: every byte of the caches.
#![allow(missing_docs, reason = "a test crate has no readers of its docs")]

mod common;

use common::{assert_pass, case, judge, listed, machines};
use ferroattn::cases::fill::{self, Amount};
use ferroattn::cases::{Case, DeviceCacheWrite, Layout};
use ferroattn::emulator::Emulator;
use ferroattn::error::CheckError;
use ferroattn::ops::{CHECK_BYTES, check_result};
use ferroattn::runtime::Buffer;
use ferroattn::tensor::Dtype;
use proptest::prelude::*;

fn is_exact(case: &Case) -> bool {
    !matches!(case, Case::Decode(_))
}

#[test]
fn smoke() {
    assert_pass(&listed("smoke", is_exact), 1);
}

#[test]
fn edges() {
    assert_pass(&listed("edges", is_exact), 2);
}

#[test]
fn a_checked_request_reports_a_bad_slot_and_writes_nothing() {
    let line =
        "reshape_and_cache_flash bf16 heads=2 d=64 page=16 layout=nhd tokens=40 check=device";
    let Case::CacheWrite(case) = case(line) else {
        panic!("{line} is no cache write")
    };
    let good = fill::cache_write(&case, 0, Amount::WHOLE);
    let num_slots = i64::try_from(good.key_cache.shape[0] * 16).expect("few slots");
    for machine in machines() {
        for (token, slot) in [(0, num_slots), (39, i64::MAX), (17, num_slots + 5)] {
            let mut tensors = good.clone();
            let mut bytes = good.slot_mapping.storage.bytes.clone();
            bytes[8 * token..8 * token + 8].copy_from_slice(&slot.to_le_bytes());
            tensors.slot_mapping = good.slot_mapping.with_bytes(bytes);
            let mut device = DeviceCacheWrite::new(machine.as_ref(), tensors).expect("uploaded");
            let request = device
                .request(0, case.num_tokens, case.check)
                .expect("views");
            let checked = request.check().expect("a good request");
            let plan = checked.plan();
            let bytes = [plan.workspace_bytes()];
            let mut workspace = Buffer::uninit(machine.as_ref(), "workspace", Dtype::U8, &bytes)
                .expect("a workspace");
            checked
                .launch(&plan, &mut workspace.view_mut(), machine.as_ref())
                .expect("launched");
            let expected = CheckError::Slot {
                layer: None,
                token: u32::try_from(token).expect("small"),
                value: slot,
                num_slots,
            };
            let record = workspace.read().expect("read");
            assert_eq!(check_result(&record[..CHECK_BYTES]), Err(expected));
            let (keys, values) = device.results().expect("read");
            assert!(keys.storage.bytes == good.key_cache.storage.bytes);
            assert!(values.storage.bytes == good.value_cache.storage.bytes);
        }
    }
}

fn any_case() -> impl Strategy<Value = Case> {
    (
        (1usize..=9, 1usize..=70, 1usize..=70, 1usize..=40),
        prop::sample::select(Layout::ALL.to_vec()),
        (0usize..60, 0usize..4, 0usize..5),
        prop::sample::select(vec!["", " from=qkv"]),
        prop::sample::select(vec!["", " check=device"]),
        prop::sample::select(vec![
            "",
            " kv=fp8_e4m3",
            " kv=fp8_e5m2 scales=head",
            " kv=fp8_e4m3 scales=token",
            " kv=i8 scales=token",
        ]),
    )
        .prop_map(|((heads, d, dv, page), layout, (tokens, extra, skip), from, check, kv)| {
            case(&format!(
                "reshape_and_cache_flash f16 heads={heads} d={d} dv={dv} page={page} layout={layout} \
                 tokens={tokens} extra_rows={extra} skip={skip}{from}{check}{kv}"
            ))
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_shape_agrees_with_the_reference(case in any_case(), seed in 0u64..1000) {
        let emulator = Emulator::with_seed(seed);
        prop_assert_eq!(judge(&case, &emulator, seed), Ok(()), "{} seed {}", case, seed);
    }

    #[test]
    fn any_case_reads_back(case in any_case()) {
        prop_assert_eq!(case.to_string().parse::<Case>(), Ok(case));
    }
}
