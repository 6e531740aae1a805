//! Reports and peers' times as JSON.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use serde::Deserialize;

use super::Report;

/// Measured times of other implementations: for each case's peer name, implementation and microseconds,
/// fastest first.
pub type PeerTimes = BTreeMap<String, Vec<(String, f64)>>;

/// Writes a report.
///
/// # Errors
/// The file cannot be written.
pub fn write_report(report: &Report, path: &Path) -> io::Result<()> {
    let mut text = serde_json::to_string_pretty(report)?;
    text.push('\n');
    fs::write(path, text)
}

/// Reads a report that [`write_report`] wrote.
///
/// # Errors
/// The file cannot be read, or is no report.
pub fn read_report(path: &Path) -> io::Result<Report> {
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}

/// Reads peers' times: a list of rows, or an object with a list `rows`; each row an object with `case`,
/// `impl` and `us`. Where an implementation has several rows for a case, its fastest counts.
///
/// # Errors
/// The file cannot be read, or is of another form.
pub fn read_peers(path: &Path) -> io::Result<PeerTimes> {
    let file: PeerFile = serde_json::from_slice(&fs::read(path)?)?;
    let (PeerFile::Object { rows } | PeerFile::Rows(rows)) = file;
    let mut times = PeerTimes::new();
    for row in rows {
        let Some(us) = row.us.filter(|us| us.is_finite() && *us > 0.0) else {
            continue;
        };
        let peers = times.entry(row.case).or_default();
        match peers
            .iter_mut()
            .find(|(name, _)| *name == row.implementation)
        {
            Some((_, fastest)) => *fastest = fastest.min(us),
            None => peers.push((row.implementation, us)),
        }
    }
    for peers in times.values_mut() {
        peers.sort_by(|a, b| a.1.total_cmp(&b.1));
    }
    Ok(times)
}

#[derive(Deserialize)]
#[serde(untagged)]
enum PeerFile {
    Object { rows: Vec<PeerRow> },
    Rows(Vec<PeerRow>),
}

#[derive(Deserialize)]
struct PeerRow {
    case: String,
    #[serde(rename = "impl")]
    implementation: String,
    /// Missing where a peer could not run the case.
    us: Option<f64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_are_read_from_either_form_fastest_first() {
        let rows = r#"[{"case": "c", "impl": "slow", "us": 3, "gbps": 1.0},
                       {"case": "c", "impl": "fast", "us": 2.5},
                       {"case": "c", "impl": "slow", "us": 2.75},
                       {"case": "c", "impl": "none", "us": null}]"#;
        for text in [rows.to_owned(), format!(r#"{{"meta": 1, "rows": {rows}}}"#)] {
            let file = tempfile::NamedTempFile::new().expect("a file");
            fs::write(file.path(), text).expect("written");
            let peers = read_peers(file.path()).expect("peers");
            assert_eq!(peers["c"], [("fast".into(), 2.5), ("slow".into(), 2.75)]);
        }
    }
}
