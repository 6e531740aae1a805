//! Where the tensors of a cache write are.

use gpu_kernels::params::ScaleList;

use crate::tensor::TensorView;

/// Where a write's tensors are: all that differs between requests that are alike.
#[derive(Clone, Copy, Debug)]
pub(super) struct Places {
    pub(super) query: SidePlaces,
    pub(super) key: SidePlaces,
    pub(super) value: SidePlaces,
    pub(super) slot_mapping: u64,
    /// Of the caches' addresses; 0 for one cache.
    pub(super) cache_table: u64,
    pub(super) positions: u64,
    pub(super) cos_sin: u64,
    /// Scales to check.
    pub(super) scales: [ScaleList; 3],
}

/// Where one side's rows come from and go to, and its scales; 0 for what it does not have.
#[derive(Clone, Copy, Debug)]
pub(super) struct SidePlaces {
    pub(super) source: u64,
    pub(super) target: u64,
    pub(super) scale: u64,
}

impl Places {
    /// Of a write of keys and values into one cache each, without rotation.
    pub(super) fn of_rows(
        key: SidePlaces,
        value: SidePlaces,
        slot_mapping: &TensorView<'_>,
        scales: [ScaleList; 3],
    ) -> Self {
        Self {
            query: SidePlaces::NONE,
            key,
            value,
            slot_mapping: slot_mapping.address(),
            cache_table: 0,
            positions: 0,
            cos_sin: 0,
            scales,
        }
    }
}

impl SidePlaces {
    /// Of a side that there is not.
    pub(super) const NONE: Self = Self {
        source: 0,
        target: 0,
        scale: 0,
    };

    pub(super) fn of(
        source: &TensorView<'_>,
        target: &TensorView<'_>,
        scale: Option<&TensorView<'_>>,
    ) -> Self {
        Self {
            source: source.address(),
            target: target.address(),
            scale: scale.map_or(0, TensorView::address),
        }
    }

    /// With the target so many bytes further on.
    pub(super) fn at_byte(self, first: usize) -> Self {
        Self {
            target: self.target + first as u64,
            ..self
        }
    }
}
