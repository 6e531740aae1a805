//! What is supported: the combinations of dtypes, scales and sizes that kernels were compiled for.
//!
//! Everything that users read about it comes from here: `ferroattn info`, and the table of the README. Each compiled
//! kernel says what it adds ([`role()`]), and what differs along one axis alone is joined into one row ([`rows`]).

mod operation;
mod role;

use std::fmt;
use std::sync::LazyLock;

use gpu_kernels::entry::ENTRIES;
use gpu_kernels::mla::cache_format::{EntryForm, fp8_ds, v4};

pub use operation::Operation;
pub use role::{Role, role};

use crate::tensor::Dtype;

/// A row of the matrix: an operation takes each of `tensors` with each of `caches`, `scales` and `sizes`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Support {
    /// Which operation.
    pub operation: Operation,
    /// Dtypes of what is no cache.
    pub tensors: Vec<Tensors>,
    /// What the cache stores.
    pub caches: Vec<Cache>,
    /// What stored values were divided by.
    pub scales: Vec<Scales>,
    /// Values per head or row.
    pub sizes: Vec<Sizes>,
}

/// Dtypes of an input and of the output that it gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tensors {
    /// Queries, or new keys and values; none for an operation that only reads a cache.
    pub input: Option<Dtype>,
    /// Attention's output, rotated queries, or gathered rows.
    pub output: Output,
}

/// Dtype of an output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// There is none but the cache.
    None,
    /// This one.
    Dtype(Dtype),
    /// The cache's.
    Cache,
}

/// What a cache stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cache {
    /// Values of the input's dtype.
    Input,
    /// Values of this dtype.
    Dtype(Dtype),
    /// MLA entries with scales of their own.
    Entries(EntryForm),
    /// Any dtype: bytes are copied, whatever they mean.
    Any,
}

/// What the values of a cache were divided by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scales {
    /// Nothing; no scale may be given.
    None,
    /// Nothing; scales may be given and are not used.
    Unused,
    /// One scale for keys and one for values; one for both where the cache is one tensor.
    PerTensor,
    /// A scale for each KV head, for keys and for values.
    PerHead,
    /// A scale for each KV head of each token, for keys and for values, beside the cache.
    PerTokenHead,
    /// A scale for each of the layers that one launch writes.
    PerLayer,
    /// Scales in the cache's entries.
    InEntries,
}

/// Values per head, or per row of a cache without heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sizes {
    /// Of queries and keys, and of values (output rows).
    Heads {
        /// Values per query and key head.
        head_size: u32,
        /// Values per value head.
        head_size_v: u32,
    },
    /// Of latents and RoPE values, which an MLA entry has side by side.
    Latent {
        /// Latents of a token.
        kv_lora_rank: u32,
        /// RoPE values of a token.
        qk_rope_head_dim: u32,
    },
    /// Any up to this many.
    UpTo(u32),
    /// Any.
    Any,
}

/// The matrix, in the order of [`Operation::ALL`].
pub fn rows() -> &'static [Support] {
    static ROWS: LazyLock<Vec<Support>> = LazyLock::new(|| {
        let mut claims = Vec::new();
        for entry in ENTRIES {
            match role(entry.variant) {
                Role::Supports(supports) => claims.extend(supports),
                Role::Assists(_) | Role::Measures => {}
            }
        }
        // The sort is stable: within an operation the table's order stays.
        claims.sort_by_key(|claim| claim.operation);
        joined(claims)
    });
    &ROWS
}

/// Whether an operation takes these dtypes, scales and sizes. Ask for a cache and an output by dtype
/// ([`Cache::Dtype`], [`Output::Dtype`]), also where a row says [`Cache::Input`], [`Cache::Any`] or [`Output::Cache`].
pub fn supports(
    operation: Operation,
    tensors: Tensors,
    cache: Cache,
    scales: Scales,
    sizes: Sizes,
) -> bool {
    rows()
        .iter()
        .filter(|row| row.operation == operation)
        .any(|row| row.takes(tensors, cache, scales, sizes))
}

impl Support {
    fn takes(&self, tensors: Tensors, cache: Cache, scales: Scales, sizes: Sizes) -> bool {
        let is_stored = |stored: &Cache| match (*stored, cache) {
            (Cache::Input, Cache::Dtype(dtype)) => tensors.input == Some(dtype),
            (Cache::Any, Cache::Dtype(dtype)) => !dtype.is_fnuz(),
            (Cache::Dtype(stored), Cache::Dtype(dtype)) => stored == dtype,
            (Cache::Entries(stored), Cache::Entries(form)) => stored == form,
            (Cache::Dtype(_) | Cache::Entries(_) | Cache::Input | Cache::Any, _) => false,
        };
        let is_given = |taken: &Tensors| {
            let output = match taken.output {
                Output::None | Output::Dtype(_) => taken.output,
                Output::Cache => match cache {
                    Cache::Dtype(dtype) => Output::Dtype(dtype),
                    Cache::Input | Cache::Entries(_) | Cache::Any => Output::Cache,
                },
            };
            (taken.input, output) == (tensors.input, tensors.output)
        };
        self.caches.iter().any(is_stored)
            && self.tensors.iter().any(is_given)
            && self.scales.contains(&scales)
            && self.sizes.iter().any(|taken| taken.include(sizes))
    }

    /// Both in one row, if they differ along one axis alone.
    fn with(&self, other: &Self, axis: Axis) -> Option<Self> {
        if self.operation != other.operation {
            return None;
        }
        let alike = [
            (Axis::Sizes, same_set(&self.sizes, &other.sizes)),
            (Axis::Tensors, same_set(&self.tensors, &other.tensors)),
            (Axis::Caches, same_set(&self.caches, &other.caches)),
            (Axis::Scales, same_set(&self.scales, &other.scales)),
        ];
        if alike.iter().any(|&(along, same)| along != axis && !same) {
            return None;
        }
        let mut both = self.clone();
        match axis {
            Axis::Sizes => {
                extend(&mut both.sizes, &other.sizes);
                both.sizes.sort_unstable();
            }
            Axis::Tensors => extend(&mut both.tensors, &other.tensors),
            Axis::Caches => extend(&mut both.caches, &other.caches),
            Axis::Scales => extend(&mut both.scales, &other.scales),
        }
        Some(both)
    }
}

impl Sizes {
    fn include(self, other: Self) -> bool {
        match (self, other) {
            (Self::Any, _) => true,
            (
                Self::UpTo(most),
                Self::Heads {
                    head_size,
                    head_size_v,
                },
            ) => head_size.max(head_size_v) <= most,
            (Self::UpTo(_) | Self::Heads { .. } | Self::Latent { .. }, other) => self == other,
        }
    }
}

/// An axis along which rows are joined.
#[derive(Clone, Copy, PartialEq)]
enum Axis {
    Sizes,
    Tensors,
    Caches,
    Scales,
}

/// As few rows as joining gives, sizes first: the same combinations as all `claims` together.
fn joined(mut claims: Vec<Support>) -> Vec<Support> {
    for axis in [Axis::Sizes, Axis::Tensors, Axis::Caches, Axis::Scales] {
        let mut rows: Vec<Support> = Vec::new();
        for claim in claims {
            let place = rows
                .iter_mut()
                .find_map(|row| row.with(&claim, axis).map(|both| (row, both)));
            match place {
                Some((row, both)) => *row = both,
                None => rows.push(claim),
            }
        }
        claims = rows;
    }
    claims
}

fn same_set<T: PartialEq>(one: &[T], other: &[T]) -> bool {
    one.len() == other.len() && one.iter().all(|member| other.contains(member))
}

/// Adds what is not there yet.
fn extend<T: PartialEq + Copy>(all: &mut Vec<T>, more: &[T]) {
    for &member in more {
        if !all.contains(&member) {
            all.push(member);
        }
    }
}

impl fmt::Display for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Input => f.write_str("the input's"),
            Self::Dtype(dtype) => write!(f, "{dtype}"),
            Self::Entries(EntryForm::Fp8Ds) => write!(f, "{}-byte entries", fp8_ds::BYTES),
            Self::Entries(EntryForm::V4) => write!(f, "{}-byte pages", v4::BYTES),
            Self::Any => f.write_str("any"),
        }
    }
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("–"),
            Self::Dtype(dtype) => write!(f, "{dtype}"),
            Self::Cache => f.write_str("the cache's"),
        }
    }
}

impl fmt::Display for Scales {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Unused => "unused",
            Self::PerTensor => "per tensor",
            Self::PerHead => "per KV head",
            Self::PerTokenHead => "per token and KV head",
            Self::PerLayer => "per layer",
            Self::InEntries => "in the entries",
        })
    }
}

impl fmt::Display for Sizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Heads {
                head_size,
                head_size_v,
            } if head_size == head_size_v => write!(f, "{head_size}"),
            Self::Heads {
                head_size,
                head_size_v,
            } => write!(f, "{head_size}/{head_size_v}"),
            Self::Latent {
                kv_lora_rank,
                qk_rope_head_dim,
            } => write!(f, "{kv_lora_rank} + {qk_rope_head_dim}"),
            Self::UpTo(most) => write!(f, "up to {most}"),
            Self::Any => f.write_str("any"),
        }
    }
}
