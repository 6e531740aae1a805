//! `ferroattn info`: its JSON, and the table that the README has from it.
#![allow(missing_docs, reason = "a test crate has no readers of its docs")]

mod common;

use common::program::{assert_refused, ferroattn, text};
use ferroattn::plan::support::{Operation, rows};
use serde_json::Value;

const README: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/README.md");
/// What stands before and after the table.
const MARKS: [&str; 2] = [
    "<!-- support: what `ferroattn info --markdown` prints -->\n",
    "<!-- end of support -->\n",
];
/// Writes the program's table into the README.
const MEND: &str = "UPDATE_README=1 cargo test --test cli_info";

/// The README before, within and after the marks.
fn readme() -> [String; 3] {
    let readme = std::fs::read_to_string(README).expect("a README");
    let (before, rest) = readme.split_once(MARKS[0]).expect("the first mark");
    let (table, after) = rest.split_once(MARKS[1]).expect("the second mark");
    [before, table, after].map(str::to_owned)
}

#[test]
fn the_readme_has_the_table_that_the_program_prints() {
    let output = ferroattn(&["info", "--markdown"]);
    assert!(output.status.success(), "{output:?}");
    let printed = text(&output.stdout);
    if std::env::var_os("UPDATE_README").is_some() {
        let ([before, _, after], [first, last]) = (readme(), MARKS);
        let mended = format!("{before}{first}{printed}{last}{after}");
        std::fs::write(README, mended).expect("the README is written");
    }
    let [_, table, _] = readme();
    // One line more on either side, so that a line that is missing differs from something.
    let lines =
        |text: &str| -> Vec<String> { text.lines().chain([""]).map(str::to_owned).collect() };
    for (written, printed) in lines(&table).iter().zip(&lines(&printed)) {
        assert_eq!(
            written, printed,
            "the README has another table than the program prints: run `{MEND}`"
        );
    }
    assert_eq!(table, printed, "run `{MEND}`");
}

#[test]
fn the_table_names_every_operation_and_fits_its_columns() {
    let printed = text(&ferroattn(&["info", "--markdown"]).stdout);
    let lines: Vec<_> = printed
        .lines()
        .filter(|line| line.starts_with('|'))
        .collect();
    assert_eq!(lines.len(), 2 + rows().len(), "{printed}");
    for line in lines {
        assert_eq!(line.matches('|').count(), 7, "{line}");
    }
    for operation in Operation::ALL {
        let name = operation.name();
        assert_eq!(
            printed.matches(&format!("| `{name}` |")).count(),
            1,
            "{name}"
        );
        assert_eq!(
            printed.matches(&format!("- `{name}`: ")).count(),
            1,
            "{name}"
        );
    }
}

#[test]
fn json_has_a_schema_and_every_row() {
    let output = ferroattn(&["info", "--json"]);
    let info: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let schema = info["schema"].as_u64().expect("a number");
    let help = text(&ferroattn(&["info", "--help"]).stdout);
    assert!(help.contains(&format!("`schema` {schema}.")), "{help}");
    for field in info.as_object().expect("an object").keys() {
        assert!(help.contains(field), "{field} in {help}");
    }
    let support = info["support"].as_array().expect("rows");
    assert_eq!(support.len(), rows().len());
    for (json, row) in support.iter().zip(rows()) {
        assert_eq!(json["operation"], row.operation.name());
        for (field, count) in [
            ("tensors", row.tensors.len()),
            ("cache", row.caches.len()),
            ("scales", row.scales.len()),
            ("sizes", row.sizes.len()),
        ] {
            assert_eq!(
                json[field].as_array().map(Vec::len),
                Some(count),
                "{field} in {json}"
            );
        }
    }
    let names: Vec<_> = info["operations"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|operation| operation["operation"].as_str())
        .collect();
    assert_eq!(
        names,
        Operation::ALL.map(|operation| Some(operation.name()))
    );
}

#[test]
fn json_says_that_decode_takes_fp8_and_i8_caches() {
    let output = ferroattn(&["info", "--json"]);
    let info: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let caches: Vec<_> = info["support"]
        .as_array()
        .expect("rows")
        .iter()
        .filter(|row| row["operation"] == "decode")
        .flat_map(|row| row["cache"].as_array().expect("a list").clone())
        .collect();
    for cache in ["the input's", "fp8_e4m3", "fp8_e5m2", "i8"] {
        assert!(caches.contains(&cache.into()), "{cache} in {caches:?}");
    }
}

#[test]
fn one_form_at_a_time() {
    assert_refused(&ferroattn(&["info", "--json", "--markdown"]));
}
