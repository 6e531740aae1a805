//! Memory that graphs may refer to: it stays until they are gone.
//!
//! A graph holds addresses and nothing tells which, so that all memory counts that was there when one was captured.
//! Whoever frees it meanwhile is told that it waits; what was allocated after the last capture is not kept.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// An allocation, by its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Memory {
    /// Of the device.
    Device(u64),
    /// Page-locked memory of the host.
    Host(u64),
}

/// What is kept on a machine.
#[derive(Debug, Default)]
pub(super) struct Kept(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Graphs that can be replayed, and the capture under way.
    graphs: usize,
    is_capturing: bool,
    /// Allocated since the last capture: no graph knows it.
    young: HashSet<Memory>,
    /// Freed by their owners.
    waiting: Vec<Memory>,
}

impl Kept {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A capture begins: from here on there is a graph to be.
    pub(super) fn begin_capture(&self) {
        let mut state = self.state();
        state.graphs += 1;
        state.is_capturing = true;
        state.young.clear();
    }

    /// It has ended.
    pub(super) fn end_capture(&self) {
        self.state().is_capturing = false;
    }

    /// The graph is gone, or the capture failed. Returns what nobody refers to any more.
    pub(super) fn forget_graph(&self) -> Vec<Memory> {
        let mut state = self.state();
        state.graphs -= 1;
        if state.graphs > 0 {
            return Vec::new();
        }
        state.young.clear();
        std::mem::take(&mut state.waiting)
    }

    /// Notes an allocation.
    pub(super) fn allocated(&self, memory: Memory) {
        let mut state = self.state();
        if state.graphs > 0 && !state.is_capturing {
            state.young.insert(memory);
        }
    }

    /// Whether memory that its owner frees has to wait; if so, it is freed later.
    pub(super) fn keeps(&self, memory: Memory) -> bool {
        let mut state = self.state();
        let keeps = state.graphs > 0 && !state.young.remove(&memory);
        if keeps {
            state.waiting.push(memory);
        }
        keeps
    }
}
