//! How a thread block whose warp groups multiply lies in shared memory, and where its warps meet.
//!
//! ```text
//! queries   64 rows, as panels
//! stage 0   the tiles 0, 2, 4 ...: 64 rows of the cache, as panels: left half of the values, right half, the rest
//! stage 1   the tiles 1, 3, 5 ...
//! maxima    of each group, 64; then sums, as many; then what the thread block owns, once for each group
//! factors   of 64 rows, whose queries were brought into the range of an f16
//! letters   probabilities on their way from group 1 to group 0
//! ```
//!
//! Group `g` computes the scores of stage `g`, and half `g` of the output's columns. So half `h` of a stage is read last,
//! and handed back, by group `h`. The rest of a row, its rotary part, is done with once there are scores: for the other
//! letters, from group 0 to group 1, there is no room but there, and it is handed back by the one that reads them.

use crate::gpu::{PANEL_BYTES, WARP};
use crate::mla::MlaTile;
use crate::prefill::MmaKind;

/// Rows of a thread block, and tokens of a tile.
pub(super) const ROWS: u32 = 64;
/// Warps of a group.
pub(super) const GROUP_WARPS: u32 = 4;
/// Threads of a group.
pub(super) const GROUP_THREADS: u32 = GROUP_WARPS * WARP;
/// Groups that multiply, and stages of the ring: a tile for each.
pub(super) const GROUPS: u32 = 2;
/// Threads that multiply.
const BOTH: u32 = GROUPS * GROUP_THREADS;

/// How a thread block is cut whose warp groups multiply rows of `k_steps * 16` values, of which the first
/// `v_steps * 16` are values.
pub(super) const fn group_cut(k_steps: usize, v_steps: usize) -> MlaTile {
    assert!(
        v_steps == 32 && k_steps == v_steps + 4,
        "one panel more than values"
    );
    let row_bytes = k_steps as u32 * 32;
    MlaTile {
        // One group more, which loads.
        warps: (1 + GROUPS) * GROUP_WARPS,
        token_warps: 1,
        heads: ROWS,
        tile_len: ROWS,
        tile_bytes: ROWS * row_bytes,
        query_bytes: ROWS * row_bytes,
        head_size_v: v_steps as u32 * 16,
        key_halves: false,
        products: MmaKind::WarpGroup,
    }
}

impl MlaTile {
    /// Where stage `stage` of the ring of a thread block whose groups multiply begins.
    pub(super) const fn group_stage(self, stage: u32) -> u32 {
        self.query_bytes + stage * self.tile_bytes
    }
    /// Bytes of half of a tile's values.
    pub(super) const fn half_bytes(self) -> u32 {
        self.head_size_v / 2 / 64 * PANEL_BYTES
    }
    /// From a stage to the rest of its rows, behind both halves.
    pub(super) const fn rest(self) -> u32 {
        2 * self.half_bytes()
    }
    /// Where a group's maxima are.
    pub(super) const fn group_maxima(self, group: u32) -> u32 {
        self.group_stage(GROUPS) + group * ROWS * 4
    }
    /// Where a group's sums are.
    pub(super) const fn group_sums(self, group: u32) -> u32 {
        self.group_maxima(GROUPS + group)
    }
    /// Where it is written what the thread block owns: sequence, part, first token, end; once for each group.
    pub(super) const fn group_owned(self) -> u32 {
        self.group_maxima(2 * GROUPS)
    }
    /// Where it is written which tokens of the tile in a stage there are, if some are missing: a bit for each.
    pub(super) const fn group_there(self, stage: u32) -> u32 {
        self.group_owned() + stage * 16
    }
    /// Where it is what a row's products are multiplied by, if each row has a factor of its own.
    pub(super) const fn group_factors(self) -> u32 {
        self.group_owned() + GROUPS * 16
    }
    /// Where a group's probabilities wait for the other one: 16 bytes of each thread, four times.
    pub(super) const fn group_letter(self, group: u32) -> u32 {
        if group == 0 {
            self.group_stage(0) + self.rest()
        } else {
            self.group_factors() + ROWS * 4
        }
    }
    /// Shared memory of a thread block whose groups multiply. The output rows lie over queries and ring.
    pub(super) const fn group_shared_bytes(self) -> u32 {
        self.group_letter(1) + 4 * 16 * GROUP_THREADS
    }
}

/// Which warp brings half `half` of stage `stage`: this one of the group that loads.
pub(super) const fn loader(stage: u32, half: u32) -> u32 {
    stage * 2 + half
}

/// A half of a stage, as barriers know it. It is filled in two goes: behind [`Part::full`] each is there for the group
/// that computes the stage's scores. Behind [`Part::empty`] all of it may be filled again.
#[derive(Clone, Copy)]
pub(super) struct Part {
    pub(super) stage: u32,
    pub(super) half: u32,
}

impl Part {
    /// Threads that come to its barriers: the warp that loads, and a group.
    pub(super) const THREADS: u32 = WARP + GROUP_THREADS;

    /// Whether it is brought and handed back together with the rest of the stage's rows: the half of the group that does
    /// not compute the stage's scores, which takes their probabilities.
    pub(super) const fn has_rest(self) -> bool {
        self.stage != self.half
    }
    /// The barrier of go `go`.
    pub(super) const fn full(self, go: u32) -> u32 {
        1 + 2 * loader(self.stage, self.half) + go
    }
    /// Its barrier.
    pub(super) const fn empty(self) -> u32 {
        9 + loader(self.stage, self.half)
    }
}

/// The barrier behind which a group's probabilities and maxima are there for the other one, and how many come to it.
pub(super) const fn handed_on(group: u32) -> (u32, u32) {
    (13 + group, BOTH)
}

/// The barrier at which the four warps of group 0 meet.
pub(super) const AMONG_FIRST: (u32, u32) = (15, GROUP_THREADS);

/// The barrier at which all who multiply meet.
pub(super) const TOGETHER: (u32, u32) = (0, BOTH);
