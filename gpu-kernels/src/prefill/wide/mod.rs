//! Prefill by the products of warp groups where heads are so wide, 256 values, that accumulators leave registers for two
//! groups only, and shared memory has room for two tiles only.
//!
//! So keys and values come and go apart: keys are done with when there are scores, values when they are added up. What a
//! group wants at a time comes in one turn, the keys of a tile with the values of the tile before:
//!
//! ```text
//! turn 0   keys 0
//! turn 1   keys 1, values 0
//! turn 2   keys 2, values 1
//! ...
//! last     values of the last tile
//! ```
//!
//! Keys of a turn are in stage `turn % 2`, values, which are those of the tile before, in the other one. Behind barrier `full`
//! a turn is there for a group, behind `keys_empty` and `values_empty` all groups are done with a stage's keys or values.

mod consumer;
pub mod kernel;
mod producer;
mod widen;

use crate::gpu::WARP;
use crate::prefill::WARPS;

/// Warp groups that multiply, beside the one that loads.
pub const GROUPS: u32 = 2;
/// KV tiles in shared memory.
pub(crate) const STAGES: u32 = 2;

/// Steps of 16 values of a head.
const STEPS: usize = 16;
/// Tokens of a tile.
const TILE_KV: u32 = 64;
/// Threads of a warp group.
const GROUP_THREADS: u32 = WARPS * WARP;
/// Threads that come to a [`full`] barrier: the group that loads, and one that multiplies.
const FULL_THREADS: u32 = 2 * GROUP_THREADS;

/// The stage that is not `stage`.
#[inline(always)]
const fn other(stage: u32) -> u32 {
    STAGES - 1 - stage
}

/// The barrier behind which a turn is there for group `group`, if its keys are in stage `stage`. Barrier 0 is that of the
/// thread block.
#[inline(always)]
const fn full(stage: u32, group: u32) -> u32 {
    1 + stage * GROUPS + group
}

/// The barrier behind which the keys of stage `stage` may be overwritten.
#[inline(always)]
const fn keys_empty(stage: u32) -> u32 {
    full(STAGES, 0) + stage
}

/// The barrier behind which its values may be.
#[inline(always)]
const fn values_empty(stage: u32) -> u32 {
    keys_empty(STAGES) + stage
}

/// Threads that come to those two, if `groups` multiply.
#[inline(always)]
const fn empty_threads(groups: u32) -> u32 {
    (1 + groups) * GROUP_THREADS
}

const _: () = assert!(values_empty(STAGES) <= 16, "a thread block has 16 barriers");
