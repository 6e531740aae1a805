//! What cache writes have in common: rows of new tokens go to slots of a paged cache, by one of a few
//! kernels.

use gpu_kernels::cache::reshape_and_cache_flash::Spread;
use gpu_kernels::cache::{
    concat_and_cache_mla, reshape_and_cache_flash, reshape_and_cache_per_token_head,
};
use gpu_kernels::entry::Variant;
use gpu_kernels::gpu::fast_divmod::FastDivmod;
use gpu_kernels::params::{
    CacheSide, KernelParams, MlaEntryParams, PerTokenHeadParams, ReshapeAndCacheParams,
    RopeAndCacheParams, ScaleList,
};

use super::places::{Places, SidePlaces};
use super::row_layout::Side;
use super::slots::Slots;
use crate::error::{Error, RequestError, Result};
use crate::ops::plan::overlapping;
use crate::runtime::{Launch, Launcher};
use crate::tensor::Dtype;

/// Rows to write: keys and values of tokens.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rows {
    pub(super) key: Side,
    pub(super) value: Side,
    /// Address of the slots.
    pub(super) slot_mapping: u64,
    pub(super) stride_slot_mapping_layer: i64,
    /// Address of the caches' addresses; 0 for one cache.
    pub(super) cache_table: u64,
    pub(super) num_layers: u32,
    pub(super) num_tokens: u32,
    pub(super) block_size: u32,
}

/// A kernel and its parameters, all but the check record.
#[derive(Clone, Copy, Debug)]
pub(super) struct RowWrite {
    pub(super) launch: Launch,
    params: Params,
}

#[derive(Clone, Copy, Debug)]
enum Params {
    Rows(ReshapeAndCacheParams),
    PerTokenHead(PerTokenHeadParams),
    MlaEntries(MlaEntryParams),
    Rope(RopeAndCacheParams),
}

impl RowWrite {
    /// MLA entries with scales of their own.
    pub(super) fn mla_entries(variant: Variant, params: MlaEntryParams) -> Self {
        Self {
            launch: overlapping(variant, concat_and_cache_mla::grid(params.num_tokens)),
            params: Params::MlaEntries(params),
        }
    }

    /// Rotated queries and keys, on a grid over items.
    pub(super) fn rope(variant: Variant, grid: [u32; 3], params: RopeAndCacheParams) -> Self {
        Self {
            launch: overlapping(variant, grid),
            params: Params::Rope(params),
        }
    }

    /// The same with tensors in other places.
    pub(super) fn at(&self, places: &Places) -> Self {
        let side = |side: CacheSide, places: &SidePlaces| CacheSide {
            source: places.source,
            target: places.target,
            // Scales that were given though nothing is scaled are not read.
            scale: if side.scale == 0 { 0 } else { places.scale },
            ..side
        };
        let slot_mapping = places.slot_mapping;
        let params = match self.params {
            Params::Rows(params) => Params::Rows(ReshapeAndCacheParams {
                key: side(params.key, &places.key),
                value: side(params.value, &places.value),
                slot_mapping,
                cache_table: places.cache_table,
                ..params
            }),
            Params::PerTokenHead(params) => Params::PerTokenHead(PerTokenHeadParams {
                key: side(params.key, &places.key),
                value: side(params.value, &places.value),
                slot_mapping,
                ..params
            }),
            Params::MlaEntries(params) => Params::MlaEntries(MlaEntryParams {
                kv_c: places.key.source,
                k_pe: places.value.source,
                kv_cache: places.key.target,
                slot_mapping,
                ..params
            }),
            Params::Rope(params) => Params::Rope(RopeAndCacheParams {
                query: side(params.query, &places.query),
                key: side(params.key, &places.key),
                value: side(params.value, &places.value),
                slot_mapping,
                positions: places.positions,
                cos_sin: places.cos_sin,
                ..params
            }),
        };
        Self {
            launch: self.launch,
            params,
        }
    }

    /// Enqueues the kernel.
    ///
    /// # Safety
    /// What the parameters name is valid until the launch has finished; `check` is a record or 0.
    pub(super) unsafe fn launch(&self, launcher: &dyn Launcher, check: u64) -> Result<()> {
        match self.params {
            Params::Rows(params) => {
                let params = ReshapeAndCacheParams { check, ..params };
                // SAFETY: as the caller promises.
                unsafe { launcher.launch(&self.launch, params.as_bytes()) }
            }
            Params::PerTokenHead(params) => {
                let params = PerTokenHeadParams { check, ..params };
                // SAFETY: as the caller promises.
                unsafe { launcher.launch(&self.launch, params.as_bytes()) }
            }
            Params::MlaEntries(params) => {
                let params = MlaEntryParams { check, ..params };
                // SAFETY: as the caller promises.
                unsafe { launcher.launch(&self.launch, params.as_bytes()) }
            }
            Params::Rope(params) => {
                let params = RopeAndCacheParams { check, ..params };
                // SAFETY: as the caller promises.
                unsafe { launcher.launch(&self.launch, params.as_bytes()) }
            }
        }
    }
}

impl Rows {
    /// The slots of a cache that has so many.
    pub(super) fn slots(&self, num_slots: u32) -> Slots {
        Slots {
            address: self.slot_mapping,
            num_layers: self.num_layers,
            num_tokens: self.num_tokens,
            stride_layer: self.stride_slot_mapping_layer,
            has_layers: self.cache_table != 0,
            limit: i64::from(num_slots),
            scales: [ScaleList::NONE; 3],
            positions: None,
        }
    }

    /// Copied byte by byte.
    pub(super) fn copied(self) -> Result<RowWrite> {
        let (key, value) = (self.key.flattened(), self.value.flattened());
        let unit = [&key, &value]
            .into_iter()
            .filter(|side| !side.is_empty())
            .map(|side| side.source_alignment().min(side.target_alignment()))
            .min()
            .unwrap_or(1);
        let sides = [key.in_units(unit), value.in_units(unit)];
        self.write(Variant::CacheCopy, unit, sides)
    }

    /// Divided by the sides' scales.
    pub(super) fn scaled(self, source: Dtype, cache: Dtype) -> Result<RowWrite> {
        let (key, value) = (self.key.flattened(), self.value.flattened());
        let vec8 = is_vec8(&[key, value], 8);
        let unit = if vec8 { 8 } else { 1 };
        let variant = Variant::CacheScaled {
            source,
            cache,
            vec8,
        };
        let sides = [key.in_units_of(unit), value.in_units_of(unit)];
        self.write(variant, unit, sides)
    }

    fn write(self, variant: Variant, unit: u32, sides: [Option<CacheSide>; 2]) -> Result<RowWrite> {
        let [Some(key), Some(value)] = sides else {
            return Err(self.too_large());
        };
        let units = key.units.max(value.units);
        let (Spread { grid, lanes_log2 }, sides_log2) =
            reshape_and_cache_flash::spread(self.num_layers, self.num_tokens, units)
                .ok_or_else(|| self.too_large())?
                .by_side();
        Ok(RowWrite {
            launch: overlapping(variant, grid),
            params: Params::Rows(ReshapeAndCacheParams {
                key,
                value,
                slot_mapping: self.slot_mapping,
                cache_table: self.cache_table,
                check: 0,
                stride_slot_mapping_layer: self.stride_slot_mapping_layer,
                num_tokens: self.num_tokens,
                block_size: FastDivmod::new(self.block_size),
                unit,
                lanes_log2,
                sides_log2,
                reserved: 0,
            }),
        })
    }

    /// Each head of each token with a scale of its own, stored at the sides' scales.
    pub(super) fn per_token_head(self, source: Dtype, cache: Dtype) -> Result<RowWrite> {
        let sides = [self.key, self.value];
        let largest = self.key.head_size().max(self.value.head_size());
        if largest > reshape_and_cache_per_token_head::MAX_HEAD_SIZE {
            return Err(Error::Unsupported {
                operation: "a cache write with a scale per token and head",
                what: "head size",
                got: largest.to_string(),
                supported: format!("up to {}", reshape_and_cache_per_token_head::MAX_HEAD_SIZE),
            });
        }
        let store_bytes = match () {
            () if is_vec8(&sides, 8) => 8,
            () if is_vec8(&sides, 4) => 4,
            () => 0,
        };
        let (unit, lanes_per_row) = match store_bytes {
            0 => (1, gpu_kernels::gpu::WARP),
            _ => (
                8,
                reshape_and_cache_per_token_head::lanes_per_row((largest / 8).max(1)),
            ),
        };
        let [Some(key), Some(value)] = sides.map(|side| side.in_units_of(unit)) else {
            return Err(self.too_large());
        };
        let rows =
            u64::from(self.num_tokens) * (u64::from(key.num_heads) + u64::from(value.num_heads));
        let (grid, rows_per_group) = reshape_and_cache_per_token_head::grid(rows, lanes_per_row)
            .ok_or_else(|| self.too_large())?;
        let variant = Variant::CachePerTokenHead {
            source,
            cache,
            vec8: store_bytes != 0,
        };
        Ok(RowWrite {
            launch: overlapping(variant, grid),
            params: Params::PerTokenHead(PerTokenHeadParams {
                key,
                value,
                slot_mapping: self.slot_mapping,
                check: 0,
                num_tokens: self.num_tokens,
                block_size: FastDivmod::new(self.block_size),
                rows_per_token: FastDivmod::new(key.num_heads + value.num_heads),
                store_bytes,
                lanes_per_row,
                rows_per_group,
            }),
        })
    }

    pub(super) fn too_large(&self) -> Error {
        Error::Request(RequestError::Value {
            name: "num_tokens",
            expected: "few enough for one launch".into(),
            got: self.num_tokens.to_string(),
        })
    }
}

/// Whether eight values can be loaded and stored at a time: sources aligned to 16 bytes, targets to
/// `store_bytes`.
pub(super) fn is_vec8(sides: &[Side], store_bytes: u32) -> bool {
    sides.iter().filter(|side| !side.is_empty()).all(|side| {
        side.head_size().is_multiple_of(8)
            && side.source_alignment() == 16
            && side.target_alignment() >= store_bytes
    })
}
