//! The program, from outside: what it prints, what it returns, and that nothing makes it panic.
#![allow(missing_docs, reason = "a test crate has no readers of its docs")]

mod common;

use std::collections::HashMap;
use std::io::Read;
use std::process::{Command, Stdio};

use common::program::{assert_refused, ferroattn, text};
use ferroattn::cases::Case;

/// Every field of a `sweep --json` line, and whether it may be null.
const SWEEP_FIELDS: [(&str, bool); 10] = [
    ("case", false),
    ("seed", false),
    ("runtime", false),
    ("passed", false),
    ("error", true),
    ("rel_frobenius", true),
    ("ulps", true),
    ("lse_abs", true),
    ("plan", true),
    ("milliseconds", false),
];

#[test]
fn sweep_prints_a_json_object_per_case() {
    let output = ferroattn(&[
        "sweep",
        "--list",
        "smoke",
        "--runtime",
        "emulator",
        "--json",
    ]);
    assert!(output.status.success(), "{output:?}");
    let lines = text(&output.stdout);
    let mut count = 0;
    for line in lines.lines() {
        let object: HashMap<String, serde_json::Value> =
            serde_json::from_str(line).expect("an object");
        assert_eq!(object.len(), SWEEP_FIELDS.len(), "{line}");
        for (field, nullable) in SWEEP_FIELDS {
            assert!(nullable || !object[field].is_null(), "{field} in {line}");
        }
        assert_eq!(object["passed"], true, "{line}");
        assert_eq!(object["runtime"], "emulator");
        object["case"]
            .as_str()
            .expect("text")
            .parse::<Case>()
            .expect("a case");
        count += 1;
    }
    assert_eq!(count, common::listed("smoke", |_| true).len());
    assert_eq!(
        text(&output.stderr).lines().last(),
        Some(format!("{count} passed, 0 failed").as_str())
    );
}

#[test]
fn sweep_goes_on_where_a_run_was_cut() {
    let output = ferroattn(&[
        "sweep",
        "--skip",
        "3",
        "--limit",
        "2",
        "--runtime",
        "emulator",
        "--json",
    ]);
    let lines = text(&output.stdout);
    let cases: Vec<_> = lines
        .lines()
        .map(|line| {
            let object: HashMap<String, serde_json::Value> =
                serde_json::from_str(line).expect("an object");
            let case = object["case"].as_str().expect("text");
            case.parse::<Case>().expect("a case")
        })
        .collect();
    assert_eq!(cases, common::listed("smoke", |_| true)[3..5]);
}

#[test]
fn sweep_fails_and_says_how_to_replay() {
    let case = "decode bf16 heads=4/2 d=80 page=16 layout=nhd lens=5";
    let output = ferroattn(&[
        "sweep",
        "--case",
        case,
        "--seed",
        "7",
        "--runtime",
        "emulator",
    ]);
    assert_eq!(output.status.code(), Some(1));
    let stdout = text(&output.stdout);
    assert!(stdout.contains("does not support head sizes"), "{stdout}");
    let replay = format!("replay: ferroattn sweep --case '{case}' --seed 7\n");
    assert!(stdout.ends_with(&replay), "{stdout}");
}

#[test]
fn wrong_arguments_are_refused() {
    for args in [
        &["sweep", "--case", "decode bf16 heads=4"][..],
        &["sweep", "--filter", "no such case", "--runtime", "emulator"],
        &["sweep", "--runtime", "abacus"],
        &["bench", "--replays", "0"],
        &["decode", "--head-size", "80", "--runtime", "emulator"],
        &["decode", "--num-seqs", "0", "--runtime", "emulator"],
        &["decode", "--steps", "99999999999", "--runtime", "emulator"],
        &["frobnicate"],
    ] {
        let output = ferroattn(args);
        assert_refused(&output);
    }
}

#[test]
fn help_says_which_machine_is_automatic() {
    for (command, auto) in [
        (
            "run",
            "- auto:     The GPU if there is one, else the emulator",
        ),
        (
            "decode",
            "- auto:     The GPU if there is one, else the emulator",
        ),
        (
            "sweep",
            "- auto:     The GPU if there is one, and the emulator",
        ),
    ] {
        let help = text(&ferroattn(&[command, "--help"]).stdout);
        assert!(help.contains(auto), "{help}");
        let told = help.lines().filter(|line| line.contains("if there is one"));
        assert_eq!(told.count(), 1, "{help}");
    }
}

#[test]
fn info_needs_no_gpu() {
    let output = ferroattn(&["info"]);
    assert!(output.status.success(), "{output:?}");
    assert!(text(&output.stdout).contains("reshape_and_cache_flash"));
    let output = ferroattn(&["info", "--json"]);
    let info: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(info["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(info["support"][0]["operation"], "decode");
}

#[test]
fn decode_demonstrates_on_the_emulator() {
    let output = ferroattn(&["decode", "--runtime", "emulator", "--steps", "2"]);
    assert!(output.status.success(), "{output:?}");
    let stdout = text(&output.stdout);
    assert!(stdout.starts_with("on emulator\n"), "{stdout}");
    assert!(
        stdout.contains("tokens/s") && stdout.contains("agrees with the reference"),
        "{stdout}"
    );
}

/// No split and no workspace, then several splits.
#[test]
fn decode_asks_its_plan_for_the_workspace() {
    let small = [
        "--num-seqs",
        "1",
        "--num-query-heads",
        "4",
        "--num-kv-heads",
        "1",
    ];
    for (context_len, splits, workspace) in [
        ("0", "plan: 1 splits of", true),
        ("700", "plan: 3 splits of", false),
    ] {
        let args = [
            "decode",
            "--runtime",
            "emulator",
            "--steps",
            "2",
            "--context-len",
            context_len,
        ];
        let output = ferroattn(&[&args[..], &small].concat());
        assert!(output.status.success(), "{output:?}");
        let stdout = text(&output.stdout);
        let plan = stdout.lines().find(|line| line.starts_with("plan: "));
        let plan = plan.expect("a plan");
        assert!(plan.contains(splits), "{plan}");
        assert_eq!(plan.ends_with("workspace 0 B"), workspace, "{plan}");
        assert!(stdout.contains("agrees with the reference"), "{stdout}");
    }
}

#[test]
fn bench_lists_its_cases_without_a_gpu() {
    let output = ferroattn(&[
        "bench",
        "--list",
        "--filter",
        "gqa32_8_128 kv=bf16 pg=16 b=1 ctx=131072",
    ]);
    assert!(output.status.success(), "{output:?}");
    let stdout = text(&output.stdout);
    assert_eq!(stdout.lines().count(), 1, "{stdout}");
    let (case, name) = stdout
        .trim_end()
        .split_once("  # ")
        .expect("a case and its name");
    assert_eq!(case.parse::<Case>().expect("a case").peer_name(), name);
}

#[test]
fn completions_are_printed_for_every_shell() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let output = ferroattn(&["completions", shell]);
        assert!(output.status.success(), "{output:?}");
        assert!(text(&output.stdout).contains("sweep"), "{shell}");
    }
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    for args in [
        &["sweep", "--list", "edges", "--runtime", "emulator"][..],
        &["completions", "bash"],
        &["info", "--json"],
    ] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_ferroattn"))
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program runs");
        drop(child.stdout.take());
        let mut stderr = String::new();
        let mut pipe = child.stderr.take().expect("piped");
        pipe.read_to_string(&mut stderr).expect("UTF-8");
        let status = child.wait().expect("it ends");
        assert!(status.success(), "{args:?}: {stderr}");
        assert!(!stderr.contains("panicked"), "{stderr}");
    }
}
