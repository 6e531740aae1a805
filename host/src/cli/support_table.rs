//! The support matrix as a table: for a terminal, and for the README.

use std::fmt::Display;

use comfy_table::{ContentArrangement, Table, presets};

use crate::plan::support::{self, Operation, Output, Support};

const HEADER: [&str; 6] = ["operation", "input", "output", "cache", "scales", "sizes"];

/// How to read it.
const LEGEND: &str = "An operation takes every combination within a row, but the output's dtype follows from the \
                      input's, as the notes say. Sizes are values per head, or per row of a cache without heads: \
                      192/128 are those of keys and of values, 512 + 64 latents and RoPE values.";

/// Characters of a line of prose.
const WIDTH: usize = 118;

/// For a terminal, as wide as that is.
pub(super) fn text() -> String {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_header(HEADER);
    for row in cells() {
        table.add_row(row);
    }
    let mut text = format!("{}\n\n{}\n", table.trim_fmt(), wrapped(LEGEND, ""));
    for operation in Operation::ALL {
        let note = format!("{}: {}", operation.name(), operation.note());
        text += &format!("\n{}", wrapped(&note, "  "));
    }
    text
}

/// For the README.
pub(super) fn markdown() -> String {
    let mut text = format!("| {} |\n", HEADER.join(" | "));
    text += &format!("|{}\n", "---|".repeat(HEADER.len()));
    for [operation, cells @ ..] in cells() {
        let operation = match operation {
            name if name.is_empty() => name,
            name => format!("`{name}`"),
        };
        text += &format!("| {operation} | {} |\n", cells.join(" | "));
    }
    text += &format!("\n{}\n\n", wrapped(LEGEND, ""));
    for operation in Operation::ALL {
        let note = format!("- `{}`: {}", operation.name(), operation.note());
        text += &format!("{}\n", wrapped(&note, "  "));
    }
    text
}

/// The rows, each operation named once.
fn cells() -> impl Iterator<Item = [String; HEADER.len()]> {
    let mut last = None;
    support::rows().iter().map(move |row| {
        let is_first = last.replace(row.operation) != Some(row.operation);
        let name = if is_first { row.operation.name() } else { "" };
        let [input, output] = tensors(row);
        [
            name.to_owned(),
            input,
            output,
            listed(&row.caches, ", "),
            listed(&row.scales, " or "),
            listed(&row.sizes, ", "),
        ]
    })
}

/// Inputs and outputs, each once, bytes last.
fn tensors(row: &Support) -> [String; 2] {
    let mut inputs = Vec::new();
    let mut outputs = Vec::new();
    for tensors in &row.tensors {
        let input = tensors.input.map_or(Output::None, Output::Dtype);
        for (all, one) in [(&mut inputs, input), (&mut outputs, tensors.output)] {
            if !all.contains(&one) {
                all.push(one);
            }
        }
    }
    let is_bytes = |one: &Output| matches!(one, Output::Dtype(dtype) if dtype.size() == 1);
    [inputs, outputs].map(|mut all| {
        all.sort_by_key(is_bytes);
        listed(&all, ", ")
    })
}

fn listed(all: &[impl Display], between: &str) -> String {
    let words: Vec<String> = all.iter().map(ToString::to_string).collect();
    words.join(between)
}

/// Prose in lines, `indent` before each but the first.
fn wrapped(prose: &str, indent: &str) -> String {
    let mut text = String::new();
    let mut line_chars = 0;
    for word in prose.split_whitespace() {
        let word_chars = word.chars().count();
        if line_chars > 0 && line_chars + 1 + word_chars > WIDTH {
            text += &format!("\n{indent}");
            line_chars = indent.len();
        } else if line_chars > 0 {
            text.push(' ');
            line_chars += 1;
        }
        text.push_str(word);
        line_chars += word_chars;
    }
    text
}
