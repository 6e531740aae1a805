//! The plan of the kernel that merges what the splits of a decode step left.

use gpu_kernels::decode::merge as merge_splits;
use gpu_kernels::entry::Variant;

use super::shape::AttentionShape;
use crate::plan::{DeviceInfo, Runs, variants};
use crate::runtime::Launch;

/// Thread blocks of one unit each that a merge may have for each multiprocessor: of more, those of several units take less
/// time, on an H200.
const MOST_OF_ONE_UNIT: u32 = 38;
/// Thread blocks of a merge of what a schedule says, for each multiprocessor: several times what runs side by side.
const MOST_BY_SCHEDULE: u32 = 31;

/// The merge of each row's splits, and how many units a thread block of it has.
pub(super) fn merge_launch(
    (shape, device): (&AttentionShape, &DeviceInfo),
    query_len: u32,
    num_kv_splits: u32,
    runs: Option<Runs>,
) -> (Launch, u32) {
    let of_row = merge_splits::units(shape.num_query_heads, shape.head_size_v);
    let merges = runs.map_or(shape.num_seqs, |runs| runs.most_merges(shape.num_seqs));
    let all = u64::from(of_row) * u64::from(merges) * u64::from(query_len);
    let may_be_few = runs.is_some() || num_kv_splits <= merge_splits::FEW_SPLITS;
    let units = if may_be_few && all > u64::from(MOST_OF_ONE_UNIT.saturating_mul(device.num_sms)) {
        merge_splits::MOST_UNITS
    } else {
        1
    };
    let x = of_row.div_ceil(units);
    let y = match runs {
        Some(_) => {
            let most = MOST_BY_SCHEDULE.saturating_mul(device.num_sms);
            (most / x.saturating_mul(query_len).max(1)).clamp(1, merges.max(1))
        }
        None => merges,
    };
    let dtype = shape.half_out();
    let variant = match runs {
        Some(_) => Variant::MergeScheduled { dtype },
        None => Variant::MergeSplits { dtype },
    };
    let launch = Launch {
        kernel: variants::entry(variant).id,
        grid: [x, y, query_len],
        shared_bytes: merge_splits::SHARED_BYTES,
        overlaps_previous: true,
    };
    (launch, units)
}
