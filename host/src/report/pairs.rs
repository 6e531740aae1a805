//! A report of two PTX sets as a table: each case's times side by side.

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};

use super::{Record, Report};
use crate::runtime::Route;

/// The cases that were measured with both sets, one per row: median times and how many times as long
/// rust-cuda's kernels take as stock rustc's.
pub fn pairs(report: &Report) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::ASCII_MARKDOWN)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(["case", "µs nvvm", "µs nvptx", "nvvm / nvptx"]);
    let of = |route: Route| {
        report
            .records
            .iter()
            .filter(move |record| record.ptx_route.as_deref() == Some(route.name()))
    };
    let same = |nvvm: &Record| of(Route::Nvptx).find(|nvptx| nvptx.case == nvvm.case);
    for nvvm in of(Route::Nvvm) {
        let Some(nvptx) = same(nvvm) else { continue };
        table.add_row([
            nvvm.peer_name.clone(),
            format!("{:.2}", nvvm.median_us),
            format!("{:.2}", nvptx.median_us),
            format!("{:.3}", nvvm.median_us / nvptx.median_us),
        ]);
    }
    for column in 1..4 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cases::{Accuracy, Case};
    use crate::report::{Environment, Measurement};

    #[test]
    fn a_row_per_case_with_both_times() {
        let record = |line: &str, route: Route, us: f64| {
            let case: Case = line.parse().expect("a case");
            let measured = Measurement {
                plan: String::new(),
                times_us: vec![us],
                launches: 1,
                sets: 1,
                accuracy: Accuracy::default(),
            };
            let mut record = Record::new(&case, 0, measured, None);
            record.ptx_route = Some(route.name().into());
            record
        };
        let one = "decode bf16 heads=32/8 d=128 page=16 layout=nhd lens=uniform:1:1024 lse=off";
        let two = "decode bf16 heads=32/8 d=64 page=16 layout=nhd lens=uniform:1:1024 lse=off";
        let report = Report {
            environment: Environment::default(),
            read_ceiling_gbps: None,
            records: vec![
                record(one, Route::Nvvm, 30.0),
                record(one, Route::Nvptx, 20.0),
                record(two, Route::Nvvm, 1.0),
            ],
        };
        let text = pairs(&report);
        let rows: Vec<&str> = text.lines().skip(2).collect();
        let [row] = rows[..] else { panic!("{text}") };
        for cell in ["30.00", "20.00", "1.500"] {
            assert!(row.contains(cell), "{row}");
        }
    }
}
