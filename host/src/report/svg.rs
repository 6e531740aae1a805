//! A report as a bar chart.

use std::io;
use std::path::Path;

use plotters::prelude::*;

use super::{PeerTimes, Record, Report};

const OURS: RGBColor = RGBColor(0xb7, 0x41, 0x0e);
const PEER: RGBColor = RGBColor(0x9a, 0xa5, 0xb1);
const INK: RGBColor = RGBColor(0x22, 0x22, 0x22);
const ROW: i32 = 34;
const LABELS: i32 = 360;
const BARS: i32 = 620;
const TOP: i32 = 60;

/// Draws a bar per record, as long as the bytes it moved per second, with the fastest peer's below it if
/// peers are given, and the read ceiling as a line.
///
/// # Errors
/// The file cannot be written.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "sizes of a picture of a few dozen rows"
)]
pub fn bar_chart(report: &Report, peers: &PeerTimes, path: &Path) -> io::Result<()> {
    let height = TOP + ROW * report.records.len() as i32 + 30;
    let size = ((LABELS + BARS + 120) as u32, height as u32);
    let root = SVGBackend::new(path, size).into_drawing_area();
    root.fill(&WHITE).map_err(refused)?;
    let text = |text: String, at: (i32, i32), size: i32| {
        root.draw(&Text::new(
            text,
            at,
            ("sans-serif", size).into_font().color(&INK),
        ))
        .map_err(refused)
    };
    let bar = |at: (i32, i32), end: (i32, i32), color: RGBColor| {
        root.draw(&Rectangle::new([at, end], color.filled()))
            .map_err(refused)
    };

    let fastest = |record: &Record| peers.get(&record.peer_name)?.first().cloned();
    let peer_gbps = |record: &Record| {
        fastest(record).map(|(name, us)| (name, record.gbps * record.median_us / us))
    };
    let longest = report
        .records
        .iter()
        .flat_map(|record| [Some(record.gbps), peer_gbps(record).map(|(_, gbps)| gbps)])
        .chain([report.read_ceiling_gbps])
        .flatten()
        .fold(1.0, f64::max);
    let x = |gbps: f64| LABELS + (gbps / longest * f64::from(BARS)) as i32;

    text(
        format!("GB/s of unavoidable bytes, {}", report.environment.gpu),
        (10, 12),
        18,
    )?;
    for (at, record) in report.records.iter().enumerate() {
        let y = TOP + ROW * at as i32;
        text(record.peer_name.clone(), (10, y + 6), 13)?;
        bar((LABELS, y), (x(record.gbps), y + 15), OURS)?;
        let percent = record
            .pct_of_ceiling
            .map_or_else(String::new, |percent| format!(" ({percent:.0} %)"));
        text(
            format!("{:.0}{percent}", record.gbps),
            (x(record.gbps) + 5, y + 1),
            12,
        )?;
        if let Some((name, gbps)) = peer_gbps(record) {
            bar((LABELS, y + 16), (x(gbps), y + 26), PEER)?;
            text(format!("{name} {gbps:.0}"), (x(gbps) + 5, y + 15), 11)?;
        }
    }
    if let Some(ceiling) = report.read_ceiling_gbps {
        let line = vec![(x(ceiling), TOP - 8), (x(ceiling), height - 20)];
        root.draw(&PathElement::new(line, INK.stroke_width(1)))
            .map_err(refused)?;
        text(
            format!("read ceiling {ceiling:.0}"),
            (x(ceiling) - 60, TOP - 22),
            12,
        )?;
    }
    root.present().map_err(refused)
}

fn refused(error: impl std::fmt::Display) -> io::Error {
    io::Error::other(error.to_string())
}
