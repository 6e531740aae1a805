//! Values that a row does not see, NaN and infinities among them, on the emulator: they do not reach its output.
#![allow(missing_docs, reason = "a test crate has no readers of its docs")]

mod attention_step;
mod common;
mod tensors;

use attention_step::{Operation, Step, gpus};
use ferroattn::plan::SplitPolicy;
use ferroattn::tensor::Dtype;

#[test]
fn values_that_a_row_does_not_see_do_not_reach_it() {
    let (nan, inf) = (f32::NAN, f32::INFINITY);
    for operation in [Operation::Unified, Operation::Mla] {
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
    for cache in [Dtype::Bf16, Dtype::F8E4m3] {
        let len = 90;
        let mut step = Step::new(Operation::Unified, cache, vec![0.5; len], vec![2.0; len]);
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
