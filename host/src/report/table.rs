//! A report as a table for a terminal or a Markdown file.

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};

use super::{PeerTimes, Report};

/// The records, one per row, with the fastest peer beside each if peers are given.
pub fn table(report: &Report, peers: &PeerTimes) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::ASCII_MARKDOWN)
        .set_content_arrangement(ContentArrangement::Disabled);
    let mut header = vec!["case", "µs", "p10", "p90", "GB/s", "TFLOP/s", "% of read"];
    if !peers.is_empty() {
        header.extend(["fastest peer", "its µs", "speed-up"]);
    }
    let columns = header.len();
    table.set_header(header);
    for record in &report.records {
        let mut row = vec![
            record.peer_name.clone(),
            format!("{:.2}", record.median_us),
            format!("{:.2}", record.p10_us),
            format!("{:.2}", record.p90_us),
            format!("{:.0}", record.gbps),
            format!("{:.1}", record.tflops),
            record
                .pct_of_ceiling
                .map_or_else(|| "-".into(), |percent| format!("{percent:.1}")),
        ];
        if !peers.is_empty() {
            match peers.get(&record.peer_name).and_then(|peers| peers.first()) {
                Some((name, us)) => row.extend([
                    name.clone(),
                    format!("{us:.2}"),
                    format!("{:.2}", us / record.median_us),
                ]),
                None => row.extend(["-".into(), "-".into(), "-".into()]),
            }
        }
        table.add_row(row);
    }
    for column in 1..columns {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.to_string()
}
