//! Schedules that the device makes of lengths: every token is attended to once, and thread blocks have equal shares.
#![allow(missing_docs, reason = "a test crate has no readers of its docs")]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "small test data"
)]

mod common;
mod tensors;

use common::parts::{parts, refused_launch};
use ferroattn::Result;
use ferroattn::ops::{
    CheckedDecode, CheckedDecodeMla, DecodeMlaRequest, DecodeOptions, DecodePlan, DecodeRequest,
    ScoreMods,
};
use ferroattn::plan::{DeviceInfo, Runs, SplitPolicy};
use ferroattn::runtime::Launcher;
use ferroattn::tensor::{Dtype, TensorView, TensorViewMut};
use tensors::*;

const BOUND: usize = 131_072;
const OPTIONS: fn() -> DecodeOptions<'static> =
    || DecodeOptions::default().split_policy(SplitPolicy::Scheduled);

/// 32 query heads on 8 KV heads, of 128 values.
fn gqa(seq_lens: TensorView<'static>, options: DecodeOptions<'static>) -> CheckedDecode<'static> {
    let num_seqs = seq_lens.shape()[0];
    let cache = parts(Dtype::Bf16, &[100, 16, 8, 128]);
    DecodeRequest {
        query: parts(Dtype::Bf16, &[num_seqs, 32, 128]).view(),
        key_cache: cache.view(),
        value_cache: cache.view(),
        block_table: parts(Dtype::I32, &[num_seqs, BOUND / 16]).view(),
        seq_lens,
        out: parts(Dtype::Bf16, &[num_seqs, 32, 128]).view_mut(),
        lse: None,
        softmax_scale: 0.1,
        scales: None,
        options,
    }
    .check()
    .expect("a good request")
}

fn mla(seq_lens: TensorView<'static>, heads: usize, bound: usize) -> CheckedDecodeMla<'static> {
    let num_seqs = seq_lens.shape()[0];
    DecodeMlaRequest {
        query: parts(Dtype::Bf16, &[num_seqs, 1, heads, 576]).view(),
        cache: parts(Dtype::Bf16, &[100, 64, 576]).view(),
        block_table: parts(Dtype::I32, &[num_seqs, bound / 64]).view(),
        seq_lens,
        out: parts(Dtype::Bf16, &[num_seqs, 1, heads, 512]).view_mut(),
        lse: None,
        softmax_scale: 0.07,
        scales: None,
        options: OPTIONS(),
    }
    .check()
    .expect("a good request")
}

type Row = [u32; 4];

/// What is merged, and the items, that `schedule` makes on the emulator.
fn made(
    machine: &Machine,
    plan: &DecodePlan,
    num_seqs: usize,
    schedule: impl FnOnce(&mut TensorViewMut<'_>, &mut TensorViewMut<'_>, &dyn Launcher) -> Result<()>,
) -> (Vec<Row>, Vec<Row>) {
    let runs = plan.runs().expect("a schedule");
    let rows = runs.schedule_rows(num_seqs as u32);
    let out = poisoned_tensor("schedule", Dtype::I32, &[rows, 4]);
    let mut workspace = machine.workspace(plan.workspace_bytes());
    schedule(
        &mut machine.view_mut(&out),
        &mut workspace,
        &machine.emulator,
    )
    .expect("made");
    let bytes = machine.read(&out);
    let words: Vec<u32> = bytes
        .chunks_exact(4)
        .map(|word| u32::from_le_bytes(word.try_into().expect("four bytes")))
        .collect();
    let mut rows = words
        .chunks_exact(4)
        .map(|row| row.try_into().expect("four words"));
    let [num_merges, ..]: Row = rows.next().expect("a count");
    let most = runs.most_merges(num_seqs as u32) as usize;
    let mut merges: Vec<Row> = rows.by_ref().take(most).collect();
    assert!(num_merges as usize <= merges.len());
    merges.truncate(num_merges as usize);
    (merges, rows.collect())
}

/// That the items are all tokens of all sequences, each once; that parts are told apart, and found by those who merge.
fn check_items(lens: &[u32], runs: Runs, merges: &[Row], items: &[Row]) {
    let mut parts_seen = vec![false; runs.num_parts() as usize];
    for (seq, &len) in lens.iter().enumerate() {
        let mut own: Vec<Row> = items
            .iter()
            .filter(|item| item[0] == seq as u32)
            .copied()
            .collect();
        own.sort_by_key(|item| item[1]);
        let mut next = 0;
        for &[_, from, to, _] in &own {
            assert_eq!(from, next, "sequence {seq} of {len} tokens: {own:?}");
            assert!(from % runs.tile_len == 0 && (from < len || own.len() == 1));
            next = to;
        }
        assert!(next >= len, "sequence {seq} of {len} tokens: {own:?}");
        let merged: Vec<&Row> = merges.iter().filter(|row| row[0] == seq as u32).collect();
        if own.len() == 1 {
            assert!(merged.is_empty(), "nothing to merge of sequence {seq}");
            continue;
        }
        let &[&[_, first_part, num_parts, step]] = &merged[..] else {
            panic!("sequence {seq} is merged {} times", merged.len());
        };
        assert_eq!(num_parts as usize, own.len());
        for (at, item) in own.iter().enumerate() {
            let back = if at == 0 { 0 } else { step as usize - 1 };
            let part = first_part as usize + step as usize * at - back;
            assert_eq!(item[3] as usize, part, "part {at} of sequence {seq}");
            assert!(!parts_seen[part], "part {part} is there twice");
            parts_seen[part] = true;
        }
    }
}

/// How long the items take, one after the other by whoever is free first, in shares of what a run has.
fn busiest(lens: &[u32], runs: Runs, items: &[Row]) -> f64 {
    let mut until = vec![0u64; runs.num_runs as usize];
    let mut total = 0;
    for &[seq, from, to, _] in items {
        let Some(&len) = lens.get(seq as usize) else {
            continue;
        };
        let tiles = (to.min(len) - from.min(len)).div_ceil(runs.tile_len);
        let cost = u64::from(tiles + runs.ends);
        total += cost;
        *until.iter_mut().min().expect("a run") += cost;
    }
    let most = *until.iter().max().expect("a run");
    most as f64 / (total as f64 / f64::from(runs.num_runs))
}

/// Batches of unequal lengths, and of equal ones.
fn batches() -> Vec<(&'static str, Vec<u32>)> {
    let mut random = Random::new(7);
    let mut ragged = |count: usize, most: usize| -> Vec<u32> {
        (0..count)
            .map(|_| 64 + random.below(most - 63) as u32)
            .collect()
    };
    let zipf = |count: u32| (1..=count).map(|rank| 131_072 / rank).collect();
    let mut long = vec![1024; 63];
    long.insert(20, 131_072);
    vec![
        ("one of 1", vec![1]),
        ("one of 8192", vec![8192]),
        ("one of 131072", vec![131_072]),
        ("8 of 8192", vec![8192; 8]),
        ("64 of 8192", vec![8192; 64]),
        ("100 of 8192", vec![8192; 100]),
        ("128 of 1024", vec![1024; 128]),
        ("64 up to 8192", ragged(64, 8192)),
        ("200 up to 4096", ragged(200, 4096)),
        ("1500 up to 300", ragged(1500, 300)),
        ("zipf", zipf(64)),
        ("one long", long),
        ("empty", vec![0; 5]),
        (
            "padding",
            [vec![0; 100], vec![5000; 3], vec![0; 25]].concat(),
        ),
    ]
}

#[test]
fn every_token_is_attended_to_once_and_shares_are_equal() {
    for (name, lens) in batches() {
        let machine = Machine::new();
        let values: Vec<i32> = lens.iter().map(|&len| len as i32).collect();
        let seq_lens = machine.view(&ints("seq_lens", &[lens.len()], &values));
        let check = |what: &str, plan: &DecodePlan, (merges, items): (Vec<Row>, Vec<Row>)| {
            let runs = plan.runs().expect("a schedule");
            check_items(&lens, runs, &merges, &items);
            let share = busiest(&lens, runs, &items);
            // What cannot be cut is a tile: it counts where a run has few.
            let tiles: u32 = lens.iter().map(|len| len.div_ceil(runs.tile_len)).sum();
            let run = f64::from(tiles + runs.ends) / f64::from(runs.num_runs);
            let most = 1.1 + f64::from(runs.ends + 1) / run;
            assert!(
                share <= most,
                "{name}, {what}: {share:.3} of a share, {run:.1} tiles"
            );
            println!("{name}, {what}: {share:.3} of a share of {run:.1} tiles");
        };
        let decode = gqa(seq_lens, OPTIONS());
        let plan = decode.plan(&DeviceInfo::H200).expect("planned");
        let rows = made(&machine, &plan, lens.len(), |out, workspace, to| {
            decode.schedule(&plan, out, workspace, to)
        });
        check("decode", &plan, rows);
        for heads in [16, 128] {
            let decode = mla(seq_lens, heads, BOUND);
            let plan = decode.plan(&DeviceInfo::H200).expect("planned");
            let rows = made(&machine, &plan, lens.len(), |out, workspace, to| {
                decode.schedule(&plan, out, workspace, to)
            });
            check(&format!("MLA of {heads} heads"), &plan, rows);
        }
    }
}

/// Sequences of one length have pieces of one length, no more than there are runs; and stay whole where cuts would cost more.
#[test]
fn sequences_of_one_length_are_cut_alike() {
    for (num_seqs, len, heads, pieces) in [
        (64, 1024, 16, 4),
        (128, 1024, 16, 2),
        (8, 8192, 16, 32),
        (1, 8192, 128, 64),
        (64, 1024, 128, 1),
        (128, 1024, 128, 1),
    ] {
        let machine = Machine::new();
        let lens = vec![len; num_seqs];
        let seq_lens = machine.view(&ints("seq_lens", &[num_seqs], &lens));
        let decode = mla(seq_lens, heads, BOUND);
        let plan = decode.plan(&DeviceInfo::H200).expect("planned");
        let (merges, items) = made(&machine, &plan, num_seqs, |out, workspace, to| {
            decode.schedule(&plan, out, workspace, to)
        });
        let name = format!("{num_seqs} of {len}, {heads} heads");
        let counts =
            (0..num_seqs as u32).map(|seq| items.iter().filter(|item| item[0] == seq).count());
        assert_eq!(counts.collect::<Vec<_>>(), vec![pieces; num_seqs], "{name}");
        let merged = if pieces > 1 { num_seqs } else { 0 };
        assert_eq!(merges.len(), merged, "{name}");
        for &[_, from, to, _] in items.iter().filter(|item| item[0] != u32::MAX) {
            let own = to.min(len as u32) - from;
            assert_eq!(own as usize, len as usize / pieces, "{name}");
        }
    }
}

/// Tokens before a window are nobody's, and none is left out that it holds.
#[test]
fn a_window_leaves_little_to_do() {
    let machine = Machine::new();
    let lens = [100_000, 50, 1000, 0, 131_072];
    let seq_lens = machine.view(&ints("seq_lens", &[lens.len()], &lens));
    let window = OPTIONS().score_mods(ScoreMods::default().sliding_window(1024));
    let decode = gqa(seq_lens, window);
    let plan = decode.plan(&DeviceInfo::H200).expect("planned");
    let (merges, items) = made(&machine, &plan, lens.len(), |out, workspace, to| {
        decode.schedule(&plan, out, workspace, to)
    });
    // From the first group of 8 on: 1,024 tokens, and those that share the first one's group.
    let seen = lens.map(|len| {
        let first = (len - 1024).max(0) / 8 * 8;
        (len - first) as u32
    });
    check_items(&seen, plan.runs().expect("a schedule"), &merges, &items);
}

/// Whatever the host's bound is: what is in flight, for as many rows as thread blocks have.
#[test]
fn the_workspace_is_bounded_by_the_machine() {
    let device = &DeviceInfo::H200;
    for bound in [1 << 10, 1 << 17, 1 << 20] {
        for num_seqs in [1, 64, 256] {
            for heads in [16, 64, 128] {
                let plan = mla(parts(Dtype::I32, &[num_seqs]).view(), heads, bound)
                    .plan(device)
                    .expect("planned");
                let bytes = plan.workspace_bytes();
                assert!(
                    bytes <= 64 << 20,
                    "{num_seqs} x {bound}, {heads} heads: {bytes}"
                );
                // Two parts of each run, of all rows, and the schedule.
                let runs = plan.runs().expect("a schedule");
                let parts = runs.num_parts() as usize * heads * (512 * 4 + 8);
                let schedule = 16 * runs.schedule_rows(num_seqs as u32) + 8 * (num_seqs + 1);
                assert!(bytes <= parts + schedule + 3 * 256);
            }
        }
    }
}

/// A schedule of another plan, or where there is none, is refused.
#[test]
fn a_schedule_that_is_not_the_plans_is_refused() {
    let lens = || parts(Dtype::I32, &[3]).view();
    let device = &DeviceInfo::H200;
    let scheduled = gqa(lens(), OPTIONS());
    let plan = scheduled.plan(device).expect("planned");
    let rows = plan.runs().expect("a schedule").schedule_rows(3);
    let given = |shape: &[usize], dtype| {
        let schedule = parts(dtype, shape).view();
        let request = gqa(lens(), OPTIONS().schedule(schedule));
        refused_launch(|workspace, to| request.launch(&plan, workspace, to))
    };
    assert_eq!(
        given(&[rows - 1, 4], Dtype::I32),
        format!(
            "`schedule` must be [rows, 4] = [{rows}, 4], but its shape is [{}, 4]",
            rows - 1
        )
    );
    assert!(given(&[rows, 4], Dtype::F32).starts_with("`schedule` must be i32"));
    let auto = gqa(lens(), DecodeOptions::default());
    let without = auto.plan(device).expect("planned");
    assert!(without.runs().is_none());
    let request = gqa(
        lens(),
        DecodeOptions::default().schedule(parts(Dtype::I32, &[rows, 4]).view()),
    );
    assert_eq!(
        refused_launch(|workspace, to| request.launch(&without, workspace, to)),
        "`schedule` must be none, as `split_policy` is not Scheduled, but it is given"
    );
    let mut out = parts(Dtype::I32, &[rows, 4]).view_mut();
    assert_eq!(
        refused_launch(|workspace, to| auto.schedule(&without, &mut out, workspace, to)),
        "`split_policy` must be Scheduled, but it is another"
    );
}
