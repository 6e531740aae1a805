//! Values that a row does not see, NaN and infinities among them, on the emulator: they do not reach its output.
#![allow(missing_docs, reason = "a test crate has no readers of its docs")]

mod attention_step;
mod common;
mod tensors;

use attention_step::{Operation, Step, gpus};
use common::{case, emulated};
use ferroattn::cases::fill::Amount;
use ferroattn::cases::{Case, DeviceUnified, ScoreSums, UnifiedTensors, compare_unified};
use ferroattn::emulator::Emulator;
use ferroattn::ops::{CHECK_BYTES, check_result};
use ferroattn::plan::SplitPolicy;
use ferroattn::runtime::{Buffer, DeviceMemory, Launcher};
use ferroattn::tensor::Dtype;

#[test]
fn values_that_a_row_does_not_see_do_not_reach_it() {
    let (nan, inf) = (f32::NAN, f32::INFINITY);
    for (operation, head_size) in [
        (Operation::Unified, 64),
        (Operation::Unified, 256),
        (Operation::Mla, 288),
    ] {
        for cache in [Dtype::Bf16, Dtype::F16, Dtype::F8E4m3, Dtype::F8E5m2] {
            for (len, tokens) in [(4, 4), (70, 5), (150, 40)] {
                for poison in [nan, inf, -inf] {
                    // What is too large for a byte is cut to its largest.
                    if cache.size() == 1 && !poison.is_nan() {
                        continue;
                    }
                    if operation == Operation::Mla && tokens > 8 {
                        continue;
                    }
                    // The last token but one.
                    let at = len - 2;
                    let mut step = Step::new(operation, cache, vec![0.5; len], vec![2.0; len]);
                    step.head_size = head_size;
                    step.values[at] = poison;
                    step.queries = vec![1.0; tokens];
                    for policy in [SplitPolicy::Auto, SplitPolicy::Fixed(64)] {
                        step.policy = policy;
                        for machine in gpus() {
                            let rows = step.run(&machine);
                            for (row, (out, lse)) in rows.into_iter().enumerate() {
                                let position = len - tokens + row / step.num_heads;
                                if position < at {
                                    assert_eq!(out, 2.0, "{step:?}, row {row}");
                                    assert!(lse.is_finite(), "{step:?}, row {row}: {lse}");
                                } else if operation == Operation::Mla || poison.is_nan() {
                                    // A latent is a part of its key, too.
                                    assert!(out.is_nan(), "{step:?}, row {row}: {out}");
                                } else {
                                    assert_eq!(out, poison, "{step:?}, row {row}");
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn values_left_of_a_window_do_not_reach_a_row() {
    for (cache, head_size) in [
        (Dtype::Bf16, 64),
        (Dtype::F8E4m3, 64),
        (Dtype::Bf16, 256),
        (Dtype::F8E4m3, 256),
    ] {
        let len = 90;
        let mut step = Step::new(Operation::Unified, cache, vec![0.5; len], vec![2.0; len]);
        step.head_size = head_size;
        step.values[60] = f32::NAN;
        step.queries = vec![1.0; 50];
        step.window = Some(7);
        step.softcap = Some(20.0);
        for machine in gpus() {
            for (row, (out, _)) in step.run(&machine).into_iter().enumerate() {
                let position = 40 + row / step.num_heads;
                let sees = (60..67).contains(&position);
                assert_eq!(out.is_nan(), sees, "{step:?}, position {position}: {out}");
                assert!(sees || out == 2.0, "{step:?}, position {position}: {out}");
            }
        }
    }
}

/// Probabilities are multiplied by their tokens' scales as shares of the largest, in 16 bits.
#[test]
fn scales_of_values_that_a_row_does_not_see_do_not_reach_it() {
    for operation in [Operation::Unified, Operation::Decode] {
        for cache in [Dtype::F8E4m3, Dtype::I8] {
            for unseen in [1e3, 1e6, 1e9, 1e30, f32::MAX] {
                let (len, tokens) = (150, 40);
                // The tokens seen count little but for one, so that shares of the unit are small.
                let mut keys = vec![0.0; len];
                keys[3] = 1.0;
                let mut step = Step::new(operation, cache, keys, vec![2.0; len]);
                let mut scales = vec![0.01; len];
                match operation {
                    // Left of the window, and in a tile with what is in it.
                    Operation::Decode => {
                        step.window = Some(70);
                        scales[len - 71] = unseen;
                    }
                    Operation::Unified | Operation::Mla => {
                        step.queries = vec![1.0; tokens];
                        scales[len - 2] = unseen;
                    }
                }
                step.value_scales = Some(scales);
                for policy in [SplitPolicy::Auto, SplitPolicy::Fixed(64)] {
                    step.policy = policy;
                    for machine in gpus() {
                        for (row, (out, _)) in step.run(&machine).into_iter().enumerate() {
                            let position = len - step.queries.len() + row / step.num_heads;
                            if operation == Operation::Decode || position < len - 2 {
                                let error = (out - 0.02).abs();
                                assert!(error < 1e-4, "{step:?}, {position}: {out}");
                            }
                        }
                    }
                }
            }
        }
    }
}

/// An engine that never had the blocks left of a window has not written their entries either. The emulator refuses to read
/// what nobody wrote.
#[test]
fn table_entries_left_of_a_window_may_never_have_been_written() {
    // The first tokens of the sequences see keys from 72 and 28 on, of blocks 4 and 1.
    let unwritten = [4, 1];
    let base = "page=16 layout=nhd lens=100,50 q_lens=9,3 window=20";
    for (form, kernel) in [
        ("bf16 heads=6/2 d=64", "prefill_gqa_bf16_d64_sm90a"),
        ("bf16 heads=6/2 d=96", "prefill_gqa_bf16_d96"),
        (
            "bf16 heads=6/2 kv=fp8_e4m3 d=64",
            "prefill_gqa_e4m3_d64_sm90a",
        ),
        (
            "bf16 heads=6/2 kv=fp8_e4m3 q=fp8_e4m3 d=128",
            "prefill_gqa_e4m3_qe4m3_d128_sm90a",
        ),
        ("bf16 heads=6/2 d=256", "prefill_gqa_bf16_d256_sm90a"),
        (
            "bf16 heads=6/2 kv=fp8_e5m2 d=256",
            "prefill_gqa_e5m2_d256_sm90a",
        ),
    ] {
        for check in ["", " check=device"] {
            let line = format!("unified {form} {base}{check}");
            let Case::Unified(case) = case(&line) else {
                panic!("{line} is no unified attention")
            };
            for (machine, has_groups) in [(Emulator::new(), false), (emulated((9, 0)), true)] {
                let tensors = UnifiedTensors::new(&case, 1, Amount::WHOLE).expect("few tokens");
                let table = &tensors.base.block_table;
                let written = Buffer::uninit(&machine, "block_table", Dtype::I32, &table.shape)
                    .expect("small");
                for (row, first) in unwritten.into_iter().enumerate() {
                    let (begin, end) = (
                        4 * table.position(&[row, first]),
                        4 * table.strides[0] * (row + 1),
                    );
                    let bytes = &table.storage.bytes[begin..end];
                    let address = written.view().address() + begin as u64;
                    // SAFETY: the rest of a row of the buffer, which has the table's shape.
                    unsafe { machine.copy_in(address, bytes) }.expect("in bounds");
                }
                let mut device = DeviceUnified::new(&machine, tensors.clone()).expect("memory");
                let mut request = device.request(&case, 1, 0).expect("views");
                request.block_table = written.view();
                let checked = request.check().expect("a good request");
                let plan = checked.plan(&machine.device()).expect("a plan");
                if has_groups {
                    let plan = plan.to_string();
                    assert!(plan.contains(&format!("{kernel} ")), "{kernel} of {plan}");
                }
                let bytes = plan.workspace_bytes().max(CHECK_BYTES);
                let mut workspace =
                    Buffer::uninit(&machine, "workspace", Dtype::U8, &[bytes]).expect("small");
                let launched = checked.launch(&plan, &mut workspace.view_mut(), &machine);
                launched.unwrap_or_else(|error| panic!("{line}: {error}"));
                if !check.is_empty() {
                    let record = workspace.read().expect("read");
                    assert_eq!(check_result(&record[..CHECK_BYTES]), Ok(()), "{line}");
                }
                let (out, lse) = device.results().expect("read");
                let tokens: Vec<usize> = (0..tensors.base.query.shape[0]).collect();
                compare_unified(&case, &tensors, &out, lse.as_ref(), &tokens, ScoreSums::F32)
                    .unwrap_or_else(|error| panic!("{line}: {error}"));
            }
        }
    }
}
