//! Measurements as records, and three ways to show them: a table, JSON, a plot.

mod environment;
mod json;
mod pairs;
mod svg;
mod table;

pub use environment::Environment;
pub use json::{PeerTimes, read_peers, read_report, write_report};
pub use pairs::pairs;
pub use svg::bar_chart;
pub use table::table;

use serde::{Deserialize, Serialize};

use crate::cases::{Accuracy, Case};

/// One run of the benchmarks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// On what.
    pub environment: Environment,
    /// How fast the GPU read memory in this run, in GB/s (1e9), if that was measured.
    pub read_ceiling_gbps: Option<f64>,
    /// The measurements.
    pub records: Vec<Record>,
}

/// One measured case.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The case, as a line that reads back.
    pub case: String,
    /// The case's name in tables of peers.
    pub peer_name: String,
    /// What was decided for it.
    pub plan: String,
    /// Whose PTX ran: "nvvm" or "nvptx". Reports of earlier versions do not say.
    #[serde(default)]
    pub ptx_route: Option<String>,
    /// Microseconds per launch of each replay: the replay's time over its launches.
    pub times_us: Vec<f64>,
    /// Median of `times_us`.
    pub median_us: f64,
    /// A tenth of `times_us` lies below.
    pub p10_us: f64,
    /// A tenth of `times_us` lies above.
    pub p90_us: f64,
    /// Launches of the operation per replay.
    pub launches: usize,
    /// Disjoint sets of inputs that the launches take in turn, so that none finds its own in the L2 cache.
    pub sets: usize,
    /// Bytes that any implementation has to move, counted from the shape.
    pub bytes: u64,
    /// Floating-point operations, counted from the shape.
    pub flops: u64,
    /// `bytes` per median, in 1e9 bytes per second.
    pub gbps: f64,
    /// `flops` per median, in 1e12 per second.
    pub tflops: f64,
    /// `gbps` in per cent of the run's read ceiling, if that was measured.
    pub pct_of_ceiling: Option<f64>,
    /// Largest relative Frobenius error of a sequence, measured before the timing.
    pub rel_frobenius: f64,
    /// Largest error of an element in units in the last place of its row's largest value.
    pub ulps: f64,
}

/// What a record is made from.
#[derive(Clone, Debug)]
pub struct Measurement {
    /// The plan, on one line.
    pub plan: String,
    /// See [`Record::times_us`].
    pub times_us: Vec<f64>,
    /// See [`Record::launches`].
    pub launches: usize,
    /// See [`Record::sets`].
    pub sets: usize,
    /// How near the output came.
    pub accuracy: Accuracy,
}

impl Record {
    /// A record of `case`, whose lengths were drawn with `seed`.
    #[allow(
        clippy::cast_precision_loss,
        reason = "counts of bytes and operations stay far below 2^53"
    )]
    pub fn new(
        case: &Case,
        seed: u64,
        measured: Measurement,
        read_ceiling_gbps: Option<f64>,
    ) -> Self {
        let mut sorted = measured.times_us.clone();
        sorted.sort_by(f64::total_cmp);
        let median_us = quantile(&sorted, 50);
        let (bytes, flops) = (case.unavoidable_bytes(seed), case.flops(seed));
        let gbps = bytes as f64 / median_us * 1e-3;
        Self {
            case: case.to_string(),
            peer_name: case.peer_name(),
            plan: measured.plan,
            ptx_route: None,
            median_us,
            p10_us: quantile(&sorted, 10),
            p90_us: quantile(&sorted, 90),
            times_us: measured.times_us,
            launches: measured.launches,
            sets: measured.sets,
            bytes,
            flops,
            gbps,
            tflops: flops as f64 / median_us * 1e-6,
            pct_of_ceiling: read_ceiling_gbps.map(|ceiling| 100.0 * gbps / ceiling),
            rel_frobenius: measured.accuracy.rel_frobenius,
            ulps: measured.accuracy.ulps,
        }
    }
}

/// The value below which `percent` of the sorted values lie; NaN if there is none.
fn quantile(sorted: &[f64], percent: usize) -> f64 {
    let at = sorted.len().saturating_sub(1) * percent / 100;
    sorted.get(at).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_counts_from_the_shape_and_the_median() {
        let case: Case =
            "decode bf16 heads=32/8 d=128 page=16 layout=nhd lens=uniform:1:1024 lse=off"
                .parse()
                .expect("a case");
        let measured = Measurement {
            plan: String::new(),
            times_us: vec![30.0, 10.0, 20.0],
            launches: 1,
            sets: 1,
            accuracy: Accuracy::default(),
        };
        let record = Record::new(&case, 0, measured, Some(1000.0));
        assert_eq!(record.median_us, 20.0);
        // Keys and values of 1024 tokens, query and output, 64 block ids and a length.
        let bytes = 1024 * 8 * 128 * 2 * 2 + 32 * 128 * 2 * 2 + 65 * 4;
        assert_eq!(record.bytes, bytes);
        assert_eq!(record.flops, 1024 * 32 * 256 * 2);
        assert!((record.gbps - bytes as f64 / 20e3).abs() < 1e-9);
        assert!((record.pct_of_ceiling.expect("a ceiling") - record.gbps / 10.0).abs() < 1e-9);
    }
}
