//! The stages of the ring that a warp group fills and others multiply with, and how they take turns.
//!
//! A stage has two kinds of barriers: [`full`], one for each group that multiplies, so that none waits for another, and
//! [`empty`], which all of them come to when they are done with it.

use crate::gpu::WARP;
use crate::prefill::{GROUPS, WARPS};

/// Threads of a warp group.
const GROUP_THREADS: u32 = WARPS * WARP;

/// Warps that bring a tile of heads of `K_STEPS * 16` values.
pub(crate) const fn team_warps<const K_STEPS: usize>() -> u32 {
    if K_STEPS == 8 { WARPS / 2 } else { WARPS }
}

/// Threads that come to a [`full`] barrier: those that bring the tile, and a group that multiplies.
pub(crate) const fn full_threads<const K_STEPS: usize>() -> u32 {
    team_warps::<K_STEPS>() * WARP + GROUP_THREADS
}

/// The barrier behind which stage `stage` is filled for group `group`.
#[inline(always)]
pub(crate) fn full(stage: u32, group: u32) -> u32 {
    stage * GROUPS + group
}

/// The barrier behind which stage `stage` of `stages` may be filled again.
#[inline(always)]
pub(crate) fn empty(stage: u32, stages: u32) -> u32 {
    stages * GROUPS + stage
}

/// The stage after `stage`.
#[inline(always)]
pub(crate) fn next_stage(stage: u32, stages: u32) -> u32 {
    if stage + 1 == stages { 0 } else { stage + 1 }
}

/// Threads that come to an [`empty`] barrier, if `groups` multiply.
#[inline(always)]
pub(crate) fn empty_threads<const K_STEPS: usize>(groups: u32) -> u32 {
    team_warps::<K_STEPS>() * WARP + groups * GROUP_THREADS
}
