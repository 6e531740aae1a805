//! `ferroattn run` and what its check looks at: freed blocks, scales and numbers that are not true.
#![allow(missing_docs, reason = "a test crate has no readers of its docs")]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "small test data"
)]

mod common;
mod run_corner;
mod run_input;
mod tensors;

use ferroattn::tensor::Dtype::{Bf16, F8E4m3, F32, I64};
use run_corner::*;
use run_input::*;
use tensors::{ints, tensor};

const NOT_A_SCALE: [f32; 5] = [0.0, -0.0, -1.0, f32::NAN, f32::INFINITY];

#[test]
fn blocks_left_of_a_window_may_be_freed() {
    // The second and the third block have the fifteen tokens that are seen.
    let decode = uniform([Bf16, Bf16], 64, 24, [0.0, 0.0, 1.0])
        .with(ints("block_table", &[1, 3], &[-1, 1, 2]))
        .entry("sliding_window", 15);
    both(&decode, "a freed block", |what, out, _| {
        assert_all(out, 1.0, what);
    });
    for input in [decode.clone(), as_unified(&decode)] {
        let seen = input.with(ints("block_table", &[1, 3], &[-1, -1, 2]));
        let op = seen.op;
        refused_everywhere(&seen, op, &["`block_table[0, 1]` is -1"]);
    }
}

#[test]
fn rows_of_sequences_without_queries_are_not_read() {
    let input = unified(&[8, 8], &[1, 0])
        .with(ints("block_table", &[2, 1], &[0, -1]))
        .with(ints("seq_lens", &[2], &[8, 1_000_000]));
    everywhere(&input, "a stale row", |results| {
        assert_all(&results["out"], 3.5, "the other row");
    });
}

#[test]
fn sequences_counted_as_decodes_have_one_query() {
    let input = unified(&[2, 2], &[2, 1]).entry("num_decodes", 1);
    let words = ["`num_decodes` is 1", "sequence 0"];
    refused_everywhere(&input, "two query tokens", &words);
}

#[test]
fn scales_are_positive_and_finite_wherever_they_are_read() {
    let quantised = || {
        let write = cache_write(F8E4m3);
        write.with(ones("k_scale", 1)).with(ones("v_scale", 1))
    };
    let queries = filled("query", Bf16, &[2, 1, 16], |_| 1.0);
    let fp8_queries = filled("query", F8E4m3, &[1, 1, 64], |_| 1.0);
    let wide = |name| filled(name, F8E4m3, &[1, BLOCK_SIZE, 2, 16], |_| 0.0);
    let two_heads = quantised()
        .with(filled("key", Bf16, &[2, 2, 16], |_| 1.0))
        .with(filled("value", Bf16, &[2, 2, 16], |_| 1.0))
        .with(wide("key_cache"))
        .with(wide("value_cache"))
        .with(ones("k_scale", 2))
        .with(ones("v_scale", 2));
    let mut targets = vec![
        (decode(F8E4m3), "k_scale", 1),
        (decode(F8E4m3), "v_scale", 1),
        (as_unified(&decode(F8E4m3)), "k_scale", 1),
        (as_unified(&decode(F8E4m3)), "v_scale", 1),
        (
            decode(F8E4m3).with(fp8_queries).entry("out_dtype", "bf16"),
            "q_scale",
            1,
        ),
        (
            unified(&[5], &[2]).entry("out_dtype", "fp8_e4m3"),
            "output_scale",
            1,
        ),
        (decode_mla(F8E4m3), "k_scale", 1),
        (quantised(), "k_scale", 1),
        (quantised(), "v_scale", 1),
        (two_heads.clone(), "k_scale", 2),
        (two_heads, "v_scale", 2),
        (rope(quantised()), "k_scale", 1),
        (rope(quantised()).with(queries), "q_scale", 1),
    ];
    let of = |op: &str, name: &'static str| {
        let has = |input: &Input| {
            let mut tensors = input.tensors.iter();
            let found = tensors.find(|tensor| tensor.storage.name == name);
            found.map(|tensor| (input.clone(), name, tensor.num_elements()))
        };
        let mut inputs = inputs().into_iter().filter(|input| input.op == op);
        inputs.find_map(|input| has(&input)).expect("a scale")
    };
    targets.extend([
        of("gather", "scale"),
        of("concat_and_cache_mla", "scale"),
        of("concat_and_cache_mla_grouped", "scales"),
    ]);
    for (input, name, count) in targets {
        for bad in NOT_A_SCALE {
            // The last one of several.
            let scale = |at| if at + 1 == count { bad } else { 1.0 };
            let input = input.clone().with(filled(name, F32, &[count], scale));
            let what = format!("{} with a {name} of {bad}", input.op);
            refused_everywhere(&input, &what, &[name]);
        }
    }
}

#[test]
fn positions_lie_in_the_table() {
    for (position, shown) in [(4, "4"), (-1, "-1"), (1 << 40, "1099511627776")] {
        let bytes = [0i64, position].map(i64::to_le_bytes).concat();
        let input = rope(cache_write(Bf16)).with(tensor("positions", I64, &[2], bytes));
        let words = ["`positions[1]`", shown, "0..4"];
        refused_everywhere(&input, "a position", &words);
    }
}

#[test]
fn two_tokens_for_one_slot() {
    for (input, op) in [
        (cache_write(Bf16), "reshape_and_cache_flash"),
        (rope(cache_write(Bf16)), "rope_and_cache"),
    ] {
        let input = input.with(slot_mapping(&[5, 5]));
        refused_everywhere(&input, op, &["`slot_mapping`", "slot 5", "[0]", "[1]"]);
    }
}

#[test]
fn indices_and_lengths_are_those_of_lists_and_tables() {
    let of = |op: &str, name: &str| {
        let has = |input: &Input| input.tensors.iter().any(|t| t.storage.name == name);
        let mut inputs = inputs().into_iter().filter(|input| input.op == op);
        inputs.find(has).expect("an input")
    };
    let listed = of("decode_mla_entry", "topk_indices");
    let index = listed
        .clone()
        .with(ints("topk_indices", &[1, 1, 3], &[3, 8, 0]));
    refused_everywhere(
        &index,
        "an index",
        &["`topk_indices[0, 0, 1]` is 8", "0..8"],
    );
    let length = listed.with(ints("window_length", &[1], &[4]));
    refused_everywhere(&length, "a length", &["`window.length`", "is 4", "0..=3"]);
    let length = of("compact", "seq_lens").with(ints("seq_lens", &[4], &[1, 1, 1 << 20, 1]));
    refused_everywhere(&length, "a length", &["`seq_lens[2]` is 1048576"]);
}
