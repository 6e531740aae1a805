//! How the keys of a step of unified attention are split over thread blocks.

use super::{DeviceInfo, MOST_CTAS_YZ, SplitPolicy, Splits};

/// What the choice depends on: numbers that the host knows, not the lengths of single sequences.
#[derive(Clone, Copy, Debug)]
pub struct RowSplitShape {
    /// Thread blocks that share out the rows.
    pub ctas: u32,
    /// The most keys that a row tile sees.
    pub max_keys: u32,
    /// Tokens of a KV tile; splits are multiples of it.
    pub tile_kv: u32,
    /// Shared memory of a thread block: how many fit on a multiprocessor, if registers allow it.
    pub shared_bytes: u32,
    /// The most that fit beside each other by their registers.
    pub most_ctas_per_sm: u32,
    /// Bytes of workspace for each split: a part of every row.
    pub part_bytes: u64,
}

/// Fewest keys of a split that the planner makes: below, starting up and merging cost more than is gained.
const SHORTEST_SPLIT: u32 = 512;
/// Splits longer than this are cut further though the machine is full: one long sequence among short ones must not
/// keep a few multiprocessors busy long after the others.
const LONGEST_SPLIT: u32 = 8192;
/// Most splits that are made against that, and most workspace for their parts. Rows that would need more are a
/// prefill's, which fill the machine to the end by their number.
const MOST_EXTRA_SPLITS: u32 = 8;
const MOST_PART_BYTES: u64 = 64 << 20;

impl Splits {
    /// Chooses for rows that share their thread blocks with the rows of other tokens.
    ///
    /// Rows are split if they leave more than half of the machine idle, or if they are few and may see many keys: a
    /// prefill of some length fills the machine by itself, and its parts would have to go through memory.
    /// [`SplitPolicy::BatchInvariant`] never splits, so that what a row sees is added up in the same order in every
    /// batch and chunk.
    pub fn choose_rows(shape: &RowSplitShape, device: &DeviceInfo, policy: SplitPolicy) -> Self {
        let keys = shape.max_keys.max(1);
        let wanted = match policy {
            SplitPolicy::BatchInvariant => keys,
            SplitPolicy::Fixed(len) => len,
            SplitPolicy::Auto | SplitPolicy::Scheduled => {
                let ctas_per_sm = device.shared_bytes_per_sm / shape.shared_bytes.max(1);
                let slots = device.num_sms * ctas_per_sm.clamp(1, shape.most_ctas_per_sm);
                let filling = (slots / shape.ctas.max(1)).max(1);
                let affordable = MOST_PART_BYTES / shape.part_bytes.max(1);
                let even = u64::from(keys.div_ceil(LONGEST_SPLIT).min(MOST_EXTRA_SPLITS));
                #[allow(clippy::cast_possible_truncation, reason = "at most 8")]
                let splits = filling.max(even.min(affordable) as u32);
                keys.div_ceil(splits).max(SHORTEST_SPLIT)
            }
        };
        let split_len = wanted
            .clamp(keys.div_ceil(MOST_CTAS_YZ - 1), keys)
            .next_multiple_of(shape.tile_kv);
        Self {
            num_kv_splits: keys.div_ceil(split_len),
            split_len,
        }
    }
}
