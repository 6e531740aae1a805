//! The plan of the kernel that merges what the splits of a decode step left.

use gpu_kernels::decode::merge;
use gpu_kernels::entry::Variant;

use super::shape::AttentionShape;
use crate::plan::{DeviceInfo, Runs, variants};
use crate::runtime::Launch;

/// Thread blocks of one unit each that a merge of what a schedule says may have for each multiprocessor: of more, those
/// of several units take less time, on an H200.
const MOST_OF_ONE_UNIT: u32 = 38;
/// Units of a row up to which those of many parts are merged by thread blocks of several teams: of more, thread blocks of one
/// team take less time, on an H200. It is no matter of the batch, so that a row's bits are none either.
const MOST_OF_TEAMS: u32 = 256;
/// Thread blocks of a merge of what a schedule says, for each multiprocessor: several times what runs side by side.
const MOST_BY_SCHEDULE: u32 = 31;

/// The merge of each row's splits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct MergePlan {
    /// Its kernel, on a grid for as many sequences as the plan is for.
    pub(super) launch: Launch,
    /// Units of a thread block.
    units: u32,
    /// How the device cuts the batch, if it does.
    runs: Option<Runs>,
}

/// How a merge's units are shared out: what its kernel is told of its grid.
#[derive(Clone, Copy, Debug)]
pub(super) struct MergeShare {
    /// Units of a thread block.
    pub(super) units: u32,
    /// Thread blocks along y.
    pub(super) ctas_y: u32,
}

impl MergeShare {
    /// Of a launch without a merge.
    pub(super) const NONE: Self = Self {
        units: 1,
        ctas_y: 1,
    };
}

impl MergePlan {
    /// Chooses the kernel by how many parts a row may have: `num_kv_splits`, unless the device decides.
    pub(super) fn new(
        (shape, device): (&AttentionShape, &DeviceInfo),
        query_len: u32,
        num_kv_splits: u32,
        runs: Option<Runs>,
    ) -> Self {
        let of_row = merge::units(shape.num_query_heads, shape.head_size_v);
        let merges = runs.map_or(shape.num_seqs, |runs| runs.most_merges(shape.num_seqs));
        let dtype = shape.half_out();
        let (variant, units, shared_bytes) = match runs {
            Some(_) => {
                let all = u64::from(of_row) * u64::from(merges) * u64::from(query_len);
                let most = u64::from(MOST_OF_ONE_UNIT.saturating_mul(device.num_sms));
                let units = if all > most { merge::MOST_UNITS } else { 1 };
                (
                    Variant::MergeScheduled { dtype },
                    units,
                    merge::SHARED_BYTES,
                )
            }
            None if num_kv_splits <= merge::FEW_PARTS => {
                (Variant::MergeFew { dtype }, merge::MOST_UNITS, 0)
            }
            None if num_kv_splits <= merge::SOME_PARTS || of_row > MOST_OF_TEAMS => {
                (Variant::MergeSplits { dtype }, 1, merge::SHARED_BYTES)
            }
            None => (Variant::MergeMany { dtype }, 1, merge::SHARED_BYTES_OF_MANY),
        };
        let x = of_row.div_ceil(units);
        let y = match runs {
            Some(_) => {
                let most = MOST_BY_SCHEDULE.saturating_mul(device.num_sms);
                (most / x.saturating_mul(query_len).max(1)).clamp(1, merges.max(1))
            }
            None => merges,
        };
        let launch = Launch {
            kernel: variants::entry(variant).id,
            grid: [x, y, query_len],
            shared_bytes,
            overlaps_previous: true,
        };
        Self {
            launch,
            units,
            runs,
        }
    }

    /// What is merged of `num_seqs` sequences, and by how many thread blocks.
    pub(super) fn share(&self, num_seqs: u32) -> MergeShare {
        let [_, most, _] = self.launch.grid;
        MergeShare {
            units: self.units,
            ctas_y: match self.runs {
                Some(runs) => runs.most_merges(num_seqs).min(most),
                None => num_seqs,
            },
        }
    }
}
