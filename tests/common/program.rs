//! The program, from outside.

use std::process::{Command, Output};

/// Runs it to its end.
pub fn ferroattn(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ferroattn"))
        .args(args)
        .output()
        .expect("the program runs")
}

/// What it printed.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

/// An error in words, and no panic.
pub fn assert_refused(output: &Output) {
    let stderr = text(&output.stderr);
    assert!(matches!(output.status.code(), Some(1 | 2)), "{output:?}");
    assert!(stderr.contains("error: "), "{stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
}
