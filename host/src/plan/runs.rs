//! How a batch is cut into runs where the device decides, by the lengths that it finds.

use std::fmt;

use gpu_kernels::attention::schedule;

use super::splits::Cost;
use super::{DeviceInfo, MOST_CTAS_YZ, SplitShape};

/// What a schedule is made with: see [`gpu_kernels::attention::schedule`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Runs {
    /// Shares of equal work, as many as thread blocks of a tile of heads run side by side.
    pub num_runs: u32,
    /// Tokens that a thread block takes at a time; runs are multiples of it.
    pub tile_len: u32,
    /// What a sequence costs beside its tokens, in tiles.
    pub ends: u32,
    /// Fewest tiles of a part.
    pub least_tiles: u32,
    /// What merging costs, in tiles.
    pub merge_tiles: u32,
    /// How many parts of a sequence are merged in the time of a tile.
    pub parts_per_tile: u32,
}

/// How long a thread block takes before its first tile and after its last, where the kernel does not say.
const ENDS: f64 = 1500.0;

impl Runs {
    /// As many as fill the machine, however many sequences there are.
    pub fn choose(shape: &SplitShape, device: &DeviceInfo) -> Self {
        // What is computed hides behind what is read, or the other way round.
        let tile = shape
            .tile_nanoseconds
            .max(shape.tile_read_nanoseconds(device));
        let ends = in_tiles(shape.cta_nanoseconds.max(ENDS), tile);
        let most_tiles = shape.max_seq_len.div_ceil(shape.tile_len).max(1);
        let most = u64::from(shape.num_seqs) * u64::from(most_tiles);
        let fitting = MOST_CTAS_YZ.saturating_sub(shape.num_seqs);
        let most = u32::try_from(most).unwrap_or(u32::MAX).min(fitting);
        let filling = shape.slots(device) / shape.ctas_per_split.max(1);
        Self {
            num_runs: filling.clamp(1, most.max(1)),
            tile_len: shape.tile_len,
            ends,
            // Of less, a thread block would spend more of its time on the ends than on the tokens.
            least_tiles: ends.div_ceil(2),
            merge_tiles: in_tiles(Cost::MERGE, tile),
            parts_per_tile: in_tiles(tile, Cost::MERGE_MANY),
        }
    }

    /// Rows of the schedule of `num_seqs` sequences, a tensor `[rows, 4]` of i32: how many are merged, which, then items.
    pub fn schedule_rows(self, num_seqs: u32) -> usize {
        1 + self.most_merges(num_seqs) as usize + self.most_items(num_seqs) as usize
    }

    /// Sequences of several parts.
    pub fn most_merges(self, num_seqs: u32) -> u32 {
        schedule::most_merges(self.num_runs, num_seqs)
    }

    /// Thread blocks that attend, for each tile of heads.
    pub(crate) fn most_items(self, num_seqs: u32) -> u32 {
        schedule::most_items(self.num_runs, num_seqs)
    }

    /// Parts of sequences that the runs may leave.
    pub fn num_parts(self) -> u32 {
        2 * self.num_runs
    }
}

impl fmt::Display for Runs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} runs of tiles of {} tokens",
            self.num_runs, self.tile_len
        )
    }
}

/// How often `tile` fits into `time`, about; once at least.
fn in_tiles(time: f64, tile: f64) -> u32 {
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a small number, and not below 1"
    )]
    let tiles = (time / tile).round().clamp(1.0, 1024.0) as u32;
    tiles
}
