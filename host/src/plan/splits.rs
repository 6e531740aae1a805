//! How the KV range of a sequence is split over thread blocks.

use std::fmt;

use super::{DeviceInfo, MOST_CTAS_YZ, Runs};

/// Who decides how many tokens a split has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum SplitPolicy {
    /// The fastest by an estimate that depends on the batch, the heads, the longest sequence and the machine.
    #[default]
    Auto,
    /// A fixed split length: the bits of a sequence's output depend on nothing but that sequence. Slower
    /// for small batches. (Where a row shares a tile with a NaN, an infinity or a value scale far beyond its own that it does
    /// not see, it is computed again, key by key: its last bits may then depend on how its prefill was cut.)
    BatchInvariant,
    /// This many tokens per split, rounded up to whole tiles.
    Fixed(u32),
    /// The device decides, by the lengths that it finds: for plans that do not know them, as of captured graphs, and for
    /// batches of unequal lengths. A small kernel cuts the batch into runs of equal work, as many as fill the machine, or
    /// sequences of about one length into pieces of their own; the workspace does not grow with sequences or bound. Decode
    /// attention over keys and values, and over latents; others take it as [`SplitPolicy::Auto`].
    Scheduled,
}

impl SplitPolicy {
    /// How the device cuts a batch of this shape, if it does.
    pub(crate) fn runs(self, shape: &SplitShape, device: &DeviceInfo) -> Option<Runs> {
        match self {
            Self::Scheduled => Some(Runs::choose(shape, device)),
            Self::Auto | Self::BatchInvariant | Self::Fixed(_) => None,
        }
    }
}

/// What the choice depends on.
#[derive(Clone, Copy, Debug)]
pub struct SplitShape {
    /// Sequences.
    pub num_seqs: u32,
    /// Thread blocks per sequence and split: KV heads times head tiles.
    pub ctas_per_split: u32,
    /// Tokens of the longest sequence.
    pub max_seq_len: u32,
    /// Bytes of keys and values per token and KV head.
    pub token_bytes: u32,
    /// How long a thread block that waits for nothing takes for a tile: see [`warp_tile_nanoseconds`].
    pub tile_nanoseconds: f64,
    /// How long it takes before the first tile and after the last, if that counts.
    pub cta_nanoseconds: f64,
    /// Tokens that a thread block takes at a time; splits are multiples of it.
    pub tile_len: u32,
    /// Shared memory of a thread block: how many fit on a multiprocessor.
    pub shared_bytes: u32,
}

impl SplitShape {
    /// Thread blocks that are resident together.
    pub(super) fn slots(&self, device: &DeviceInfo) -> u32 {
        let ctas_per_sm = device.shared_bytes_per_sm / self.shared_bytes.max(1);
        device.num_sms * ctas_per_sm.clamp(1, MOST_CTAS_PER_SM)
    }

    /// How long a thread block waits for the bytes of a tile if all that are resident read.
    pub(super) fn tile_read_nanoseconds(&self, device: &DeviceInfo) -> f64 {
        let ctas_per_sm = self.slots(device) / device.num_sms.max(1);
        let bytes = self.tile_len.saturating_mul(self.token_bytes);
        f64::from(bytes) * f64::from(ctas_per_sm) / Cost::SM_RATE
    }
}

/// The choice. A sequence has `ceil(seq_len / split_len)` splits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Splits {
    /// Splits of the longest sequence, at least 1.
    pub num_kv_splits: u32,
    /// Tokens per split.
    pub split_len: u32,
}

/// Tokens per split under [`SplitPolicy::BatchInvariant`].
const INVARIANT_LEN: u32 = 1024;
/// Most tokens per split under [`SplitPolicy::Auto`]: one long sequence among short ones must not end up
/// on a few multiprocessors.
const LONGEST_SPLIT: u32 = 8192;

/// Splits up to this many tokens are not cut further against stragglers: merging would cost more.
const LONG_SPLIT: u32 = 2048;

/// Thread blocks of 128 threads that take a quarter of the registers each: what fits beside each other, however little
/// shared memory they need.
const MOST_CTAS_PER_SM: u32 = 4;
/// Most splits that are made only against stragglers, and what part of the time their thread blocks' ends may take.
const MOST_EXTRA_SPLITS: u32 = 8;
const MOST_EXTRA_ENDS: f64 = 0.03;

impl Splits {
    /// Chooses for a shape on a machine.
    pub fn choose(shape: &SplitShape, device: &DeviceInfo, policy: SplitPolicy) -> Self {
        match policy {
            SplitPolicy::Auto | SplitPolicy::Scheduled => Self::fastest(shape, device),
            SplitPolicy::BatchInvariant => Self::of_len(shape, INVARIANT_LEN),
            SplitPolicy::Fixed(len) => Self::of_len(shape, len),
        }
    }

    /// Splits of `len` tokens, rounded up to whole tiles.
    fn of_len(shape: &SplitShape, len: u32) -> Self {
        let longest = shape.max_seq_len.max(1);
        let split_len = len
            .clamp(longest.div_ceil(MOST_CTAS_YZ), longest)
            .next_multiple_of(shape.tile_len);
        Self {
            num_kv_splits: shape.max_seq_len.div_ceil(split_len).max(1),
            split_len,
        }
    }

    /// The number of splits with the least estimated time, the fewest if there are several.
    fn fastest(shape: &SplitShape, device: &DeviceInfo) -> Self {
        let cost = Cost::of(shape, device);
        let of = |num_kv_splits| Self::of_len(shape, shape.max_seq_len.div_ceil(num_kv_splits));
        let mut fewest = shape.max_seq_len.div_ceil(LONGEST_SPLIT).max(1);
        let most_ends = cost.ends(of(fewest)) + MOST_EXTRA_ENDS * cost.nanoseconds(of(fewest));
        while fewest < MOST_EXTRA_SPLITS
            && cost.may_straggle(of(fewest))
            && cost.ends(of(fewest + 1)) <= most_ends
        {
            fewest += 1;
        }
        // More splits than fill the machine twice only add work.
        let most = (2 * cost.slots).div_ceil(cost.ctas_per_split).max(fewest);
        let mut best = of(fewest);
        for num_kv_splits in fewest + 1..=most {
            let splits = of(num_kv_splits);
            if cost.nanoseconds(splits) < cost.nanoseconds(best) {
                best = splits;
            }
        }
        best
    }
}

/// Nanoseconds that warps which do not share tiles take for one each, of keys and values of up to `head_size`.
pub fn warp_tile_nanoseconds(head_size: u32) -> f64 {
    350.0 + 2.0 * f64::from(head_size)
}

/// An estimate of a decode step's time, for sequences that are all as long as the longest.
///
/// Thread blocks run in waves of as many as fit on the machine. A wave takes as long as its bytes take
/// through the memory, or its tiles through a warp, whichever is longer: a warp computes one tile after the
/// other, and that latency grows with the head size and does not shrink with smaller elements. Merging costs
/// a second kernel. The constants were fitted to measurements on an H200 (bf16 and FP8, batch 1 to 256,
/// context 128 to 131,072); only their ratios matter, so they serve for other GPUs too.
pub(super) struct Cost {
    /// Thread blocks that are resident together.
    slots: u32,
    ctas_per_split: u32,
    token_bytes: f64,
    /// Nanoseconds of a thread block per token, and before the first and after the last.
    token_time: f64,
    cta_ends: f64,
    /// Bytes per nanosecond through the whole memory.
    memory_rate: f64,
}

impl Cost {
    /// Bytes per nanosecond and multiprocessor, all reading.
    const SM_RATE: f64 = 34.8;
    /// Nanoseconds until a wave's first bytes arrive.
    const WAVE_START: f64 = 300.0;
    /// Nanoseconds of a second kernel, and of each split beyond the few that its warps take in one go.
    pub(super) const MERGE: f64 = 2500.0;
    pub(super) const MERGE_MANY: f64 = 30.0;

    fn of(shape: &SplitShape, device: &DeviceInfo) -> Self {
        Self {
            slots: shape.slots(device),
            ctas_per_split: shape.num_seqs.saturating_mul(shape.ctas_per_split).max(1),
            token_bytes: f64::from(shape.token_bytes),
            token_time: shape.tile_nanoseconds / f64::from(shape.tile_len),
            cta_ends: shape.cta_nanoseconds,
            memory_rate: f64::from(device.num_sms) * Self::SM_RATE,
        }
    }

    fn nanoseconds(&self, splits: Splits) -> f64 {
        let ctas = self.ctas_per_split.saturating_mul(splits.num_kv_splits);
        let (waves, rest) = (ctas / self.slots, ctas % self.slots);
        let merge = match splits.num_kv_splits {
            ..=1 => 0.0,
            splits => Self::MERGE + Self::MERGE_MANY * f64::from(splits.saturating_sub(32)),
        };
        f64::from(waves) * self.wave(self.slots, splits) + self.wave(rest, splits) + merge
    }

    /// What is left out of that: how long thread blocks take besides their tokens, one wave after the other.
    fn ends(&self, splits: Splits) -> f64 {
        let ctas = self.ctas_per_split.saturating_mul(splits.num_kv_splits);
        f64::from(ctas.div_ceil(self.slots)) * self.cta_ends
    }

    /// Whether, in a batch of unequal lengths, one thread block could still be busy long after the others:
    /// it is long, and takes more than a sixth of the whole, though the machine is full.
    fn may_straggle(&self, splits: Splits) -> bool {
        let ctas = self.ctas_per_split.saturating_mul(splits.num_kv_splits);
        splits.split_len > LONG_SPLIT
            && ctas >= self.slots
            && 6.0 * f64::from(splits.split_len) * self.token_time > self.nanoseconds(splits)
    }

    /// Time of `ctas` thread blocks that start together.
    fn wave(&self, ctas: u32, splits: Splits) -> f64 {
        if ctas == 0 {
            return 0.0;
        }
        let tokens = f64::from(splits.split_len);
        let through_memory = tokens * self.token_bytes * f64::from(ctas) / self.memory_rate;
        Self::WAVE_START + through_memory.max(tokens * self.token_time)
    }
}

impl fmt::Display for Splits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} splits of {} tokens",
            self.num_kv_splits, self.split_len
        )
    }
}
