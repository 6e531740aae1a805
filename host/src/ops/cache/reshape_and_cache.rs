//! `reshape_and_cache_flash`: writing new tokens' keys and values into a paged cache.
//!
//! For each token `t` with `slot = slot_mapping[t] >= 0`:
//! `key_cache[slot / block_size, slot % block_size] = key[t]`, values likewise. Negative slots are padding
//! and write nothing; a cache has fewer than 2^31 slots. The number of tokens is `slot_mapping`'s length; `key` and
//! `value` may be longer. No two tokens may have one slot: of what is in it then nothing is promised, not even that it
//! is all of one token.
//!
//! What is stored depends on [`CacheScales`]: the values as they are; `fp8(x / scale)` with given scales; or
//! 8 bits with a scale for each head of each token, which is stored too. The quotient is IEEE's, rounded to
//! nearest even, saturating at the largest finite value; NaN stays NaN.

use gpu_kernels::params::{CheckFault, ScaleList};

use super::places::{Places, SidePlaces};
use super::row_layout::Side;
use super::row_write::{RowWrite, Rows};
use super::slots::Slots;
use super::write_plan::{CacheWritePlan, SlotWrite};
use crate::error::{RequestError, Result};
use crate::ops::checks::{count, named, slot_count};
use crate::ops::device_check::{CheckMode, scale_list};
use crate::ops::tensors::{Given, alike, given, same, same_kind};
use crate::plan::dtypes;
use crate::runtime::Launcher;
use crate::tensor::{Dtype, TensorView, TensorViewMut};

/// What is wanted.
#[derive(Debug)]
pub struct CacheWriteRequest<'a> {
    /// `[num_tokens or more, num_kv_heads, head_size]`, bf16, f16, f32 or FP8; any strides whose last is 1.
    pub key: TensorView<'a>,
    /// `[num_tokens or more, num_kv_heads, head_size_v]`, as `key`.
    pub value: TensorView<'a>,
    /// `[num_blocks, block_size, num_kv_heads, head_size]`; any strides whose last is 1: also heads before
    /// slots in memory (HND), keys and values in one row, or layers between blocks. `key`'s dtype, or what
    /// `scales` allows.
    pub key_cache: TensorViewMut<'a>,
    /// `[num_blocks, block_size, num_kv_heads, head_size_v]`, as `key_cache`.
    pub value_cache: TensorViewMut<'a>,
    /// `[num_tokens]`, i64: `block * block_size + offset`; negative slots write nothing.
    pub slot_mapping: TensorView<'a>,
    /// Tokens per block as `slot_mapping` counts them. It must be the caches' second dimension: a view with
    /// another one would send every token somewhere else.
    pub block_size: usize,
    /// How values become what the cache stores.
    pub scales: CacheScales<'a>,
    /// Whether slots (below the number of slots, no two alike) and given scales are checked on the device first. Takes
    /// 8 to 16 bytes of workspace for each token.
    pub check: CheckMode,
}

/// How values become what a cache stores.
#[derive(Debug)]
pub enum CacheScales<'a> {
    /// They do not change: the caches have the dtype of `key` and `value`.
    None,
    /// `stored = fp8(value / scale)`, in the caches' dtype. Input that is FP8 already is copied. Scales
    /// are read on the device, when the kernel runs.
    Given {
        /// `[1]` or `[num_kv_heads]`, f32.
        k_scale: TensorView<'a>,
        /// As `k_scale`.
        v_scale: TensorView<'a>,
    },
    /// Each head of each token has a scale of its own, `max(amax / 448, 1e-6)` in fp8_e4m3 or
    /// `max(amax / 127, 1e-6)` in i8, which is stored; `stored = round(value * (1 / scale))`, ties away from
    /// zero in i8. The views may lie anywhere, also between the rows that they belong to.
    PerTokenHead {
        /// `[num_blocks, block_size, num_kv_heads]`, f32, any strides.
        k_scale: TensorViewMut<'a>,
        /// As `k_scale`.
        v_scale: TensorViewMut<'a>,
    },
}

/// A request whose tensors agree with each other.
#[derive(Debug)]
pub struct CheckedCacheWrite<'a> {
    request: CacheWriteRequest<'a>,
    write: SlotWrite,
}

impl<'a> CacheWriteRequest<'a> {
    /// Checks every tensor against the others, in the order of the fields.
    ///
    /// # Errors
    /// [`crate::error::RequestError`] naming the first tensor that does not fit;
    /// [`crate::error::Error::Unsupported`] for heads that are too long for a scale each.
    pub fn check(self) -> Result<CheckedCacheWrite<'a>> {
        let CheckedRows {
            rows,
            dtype,
            cache_dtype,
            slots,
        } = self.check_rows()?;
        Ok(CheckedCacheWrite {
            write: SlotWrite {
                rows: self.scales.write(rows, dtype, cache_dtype)?,
                slots: Slots {
                    scales: self.scales_to_check(),
                    ..slots
                },
                check: self.check,
            },
            request: self,
        })
    }

    /// The same for whoever writes these rows in another way.
    pub(super) fn check_rows(&self) -> Result<CheckedRows> {
        let slots = named("slot_mapping", &self.slot_mapping);
        let [num_tokens] = slots.indices(Dtype::I64, "[num_tokens]")?;

        let key = named("key", &self.key);
        let dtype = key.dtype(dtypes::written_sources())?;
        let form = "[num_tokens, num_kv_heads, head_size]";
        let [rows, num_kv_heads, head_size] = key.rank(form)?;
        if rows < num_tokens {
            return Err(key
                .wrong_shape(format!("{form} with at least {num_tokens} tokens"))
                .into());
        }
        key.strides(1)?;
        key.aligned(dtype.size())?;

        let value = named("value", &self.value);
        value.dtype(&[dtype])?;
        let form = "[num_tokens, num_kv_heads, head_size_v]";
        let [rows, heads, head_size_v] = value.rank(form)?;
        if rows < num_tokens || heads != num_kv_heads {
            let expected =
                format!("{form} with at least {num_tokens} tokens and {num_kv_heads} heads");
            return Err(value.wrong_shape(expected).into());
        }
        value.strides(1)?;
        value.aligned(dtype.size())?;

        let key_cache = named("key_cache", self.key_cache.view());
        let allowed = self.scales.cache_dtypes(&dtype)?;
        let cache_dtype = key_cache.dtype(allowed)?;
        let form = "[num_blocks, block_size, num_kv_heads, head_size]";
        let [num_blocks, ..] = key_cache.rank::<4>(form)?;
        let block_size = self.block_size;
        if block_size == 0 {
            return Err(RequestError::Value {
                name: "block_size",
                expected: "at least 1".into(),
                got: "0".into(),
            }
            .into());
        }
        key_cache.shape(form, &[num_blocks, block_size, num_kv_heads, head_size])?;
        key_cache.strides(1)?;
        key_cache.aligned(cache_dtype.size())?;

        let value_cache = named("value_cache", self.value_cache.view());
        value_cache.dtype(&[cache_dtype])?;
        let form = "[num_blocks, block_size, num_kv_heads, head_size_v]";
        value_cache.shape(form, &[num_blocks, block_size, num_kv_heads, head_size_v])?;
        value_cache.strides(1)?;
        value_cache.aligned(cache_dtype.size())?;

        self.scales
            .check(num_kv_heads, [num_blocks, block_size, num_kv_heads])?;
        count("num_kv_heads", num_kv_heads)?;
        count("head_size", head_size)?;
        count("head_size_v", head_size_v)?;
        let rows = Rows {
            key: Side::new(&self.key, self.key_cache.view()),
            value: Side::new(&self.value, self.value_cache.view()),
            slot_mapping: self.slot_mapping.address(),
            stride_slot_mapping_layer: 0,
            cache_table: 0,
            num_layers: 1,
            num_tokens: count("num_tokens", num_tokens)?,
            block_size: count("block_size", block_size)?,
        };
        Ok(CheckedRows {
            rows,
            dtype,
            cache_dtype,
            slots: rows.slots(slot_count(num_blocks, block_size)?),
        })
    }
}

/// Rows that agree with each other.
pub(super) struct CheckedRows {
    pub(super) rows: Rows,
    pub(super) dtype: Dtype,
    pub(super) cache_dtype: Dtype,
    pub(super) slots: Slots,
}

impl<'a> CacheScales<'a> {
    /// Which of them it is.
    fn kind(&self) -> &'static str {
        match self {
            Self::None => "None",
            Self::Given { .. } => "Given",
            Self::PerTokenHead { .. } => "PerTokenHead",
        }
    }

    /// Of keys and of values.
    fn views(&self) -> [Option<&TensorView<'a>>; 2] {
        match self {
            Self::None => [None; 2],
            Self::Given { k_scale, v_scale } => [Some(k_scale), Some(v_scale)],
            Self::PerTokenHead { k_scale, v_scale } => [Some(k_scale.view()), Some(v_scale.view())],
        }
    }

    /// What the caches may be.
    fn cache_dtypes<'d>(&self, dtype: &'d Dtype) -> Result<&'d [Dtype], RequestError> {
        let is_copied = dtypes::scaled_caches().contains(dtype);
        match self {
            Self::Given { .. } if !is_copied => Ok(dtypes::scaled_caches()),
            Self::None | Self::Given { .. } => Ok(std::slice::from_ref(dtype)),
            Self::PerTokenHead { .. } if !is_copied => Ok(dtypes::token_scaled_caches()),
            Self::PerTokenHead { .. } => Err(RequestError::Dtype {
                tensor: "key",
                expected: "bf16 or f16 or f32, to have a scale per token and head".into(),
                got: *dtype,
            }),
        }
    }

    fn check(&self, num_kv_heads: usize, rows: [usize; 3]) -> Result<(), RequestError> {
        match self {
            Self::None => {}
            Self::Given { k_scale, v_scale } => {
                for (name, view) in [("k_scale", k_scale), ("v_scale", v_scale)] {
                    let scales = named(name, view);
                    scales.dtype(&[Dtype::F32])?;
                    if view.shape() != [1] {
                        scales.shape("[1] or [num_kv_heads]", &[num_kv_heads])?;
                    }
                    scales.no_negative_strides()?;
                    scales.aligned(4)?;
                }
            }
            Self::PerTokenHead { k_scale, v_scale } => {
                for (name, view) in [("k_scale", k_scale), ("v_scale", v_scale)] {
                    let scales = named(name, view.view());
                    scales.dtype(&[Dtype::F32])?;
                    scales.shape("[num_blocks, block_size, num_kv_heads]", &rows)?;
                    scales.no_negative_strides()?;
                    scales.aligned(4)?;
                }
            }
        }
        Ok(())
    }

    /// Those that are read and were not just made: FP8 input is copied.
    fn to_check(&self, source: Dtype, cache: Dtype) -> [ScaleList; 3] {
        match self {
            Self::Given { k_scale, v_scale } if source != cache => [
                scale_list(CheckFault::K_SCALE, Some(k_scale)),
                scale_list(CheckFault::V_SCALE, Some(v_scale)),
                ScaleList::NONE,
            ],
            Self::None | Self::Given { .. } | Self::PerTokenHead { .. } => [ScaleList::NONE; 3],
        }
    }

    fn write(&self, rows: Rows, source: Dtype, cache: Dtype) -> Result<RowWrite> {
        match self {
            Self::Given { k_scale, v_scale } if source != cache => Rows {
                key: rows.key.with_scales(k_scale),
                value: rows.value.with_scales(v_scale),
                ..rows
            }
            .scaled(source, cache),
            Self::None | Self::Given { .. } => rows.copied(),
            Self::PerTokenHead { k_scale, v_scale } => Rows {
                key: rows.key.with_scale_cache(k_scale.view()),
                value: rows.value.with_scale_cache(v_scale.view()),
                ..rows
            }
            .per_token_head(source, cache),
        }
    }
}

impl<'a> CacheWriteRequest<'a> {
    pub(super) fn tensors(&self) -> [Given<'_, 'a>; 7] {
        let [k_scale, v_scale] = self.scales.views();
        [
            Some(named("key", &self.key)),
            Some(named("value", &self.value)),
            Some(named("key_cache", self.key_cache.view())),
            Some(named("value_cache", self.value_cache.view())),
            Some(named("slot_mapping", &self.slot_mapping)),
            given("k_scale", k_scale),
            given("v_scale", v_scale),
        ]
    }

    /// Whether `new` says the same of what is not a tensor.
    pub(super) fn same_settings(&self, new: &CacheWriteRequest<'_>) -> Result<(), RequestError> {
        same("block_size", self.block_size, new.block_size)?;
        same_kind("scales", self.scales.kind(), new.scales.kind())?;
        same("check", self.check, new.check)
    }

    pub(super) fn scales_to_check(&self) -> [ScaleList; 3] {
        let cache = self.key_cache.view().dtype();
        self.scales.to_check(self.key.dtype(), cache)
    }

    pub(super) fn places(&self) -> Places {
        let [k_scale, v_scale] = self.scales.views();
        Places::of_rows(
            SidePlaces::of(&self.key, self.key_cache.view(), k_scale),
            SidePlaces::of(&self.value, self.value_cache.view(), v_scale),
            &self.slot_mapping,
            self.scales_to_check(),
        )
    }
}

impl CheckedCacheWrite<'_> {
    /// What will be launched: a pure function of shapes.
    pub fn plan(&self) -> CacheWritePlan {
        self.write.plan()
    }

    /// The same for other tensors, of the next layer for instance: looks at no more than whether they are given where
    /// these are, have the same dtypes, shapes and strides, and are aligned as well (up to 16 bytes).
    ///
    /// # Errors
    /// [`RequestError`] naming the first tensor that differs, or `block_size`, `scales` or `check`.
    pub fn rebind<'b>(&self, request: CacheWriteRequest<'b>) -> Result<CheckedCacheWrite<'b>> {
        alike(&self.request.tensors(), &request.tensors())?;
        self.request.same_settings(&request)?;
        Ok(CheckedCacheWrite {
            write: self.write.at(&request.places()),
            request,
        })
    }

    /// Enqueues the plan's kernels. Allocates nothing and waits for nothing.
    ///
    /// # Errors
    /// [`crate::error::RequestError::Plan`] if the plan was made for something that this is not (see [`CacheWritePlan`]);
    /// [`crate::error::RequestError::Machine`] for memory of another machine;
    /// [`crate::error::RequestError::Workspace`] if `workspace` (u8, 256-byte aligned) is smaller than the
    /// plan's [`CacheWritePlan::workspace_bytes`]; whatever the launcher reports.
    pub fn launch(
        &self,
        plan: &CacheWritePlan,
        workspace: &mut TensorViewMut<'_>,
        launcher: &dyn Launcher,
    ) -> Result<()> {
        let tensors = self.request.tensors();
        // SAFETY: `check` or `rebind` made the write from these tensors, whose makers promised that they stay valid.
        unsafe { self.write.launch(plan, &tensors, workspace, launcher) }
    }
}
