//! `concat_and_cache_mla` for many layers in one launch: bit for bit what a call per layer would write.

use gpu_kernels::params::{CheckFault, ScaleList};

use super::places::{Places, SidePlaces};
use super::row_layout::Side;
use super::row_write::Rows;
use super::slots::Slots;
use super::write_plan::{CacheWritePlan, SlotWrite};
use crate::error::{RequestError, Result};
use crate::ops::checks::{count, named, slot_count};
use crate::ops::device_check::{CheckMode, scale_list};
use crate::ops::layout::byte_stride;
use crate::ops::tensors::{Given, alike, given, laid_out_alike, same};
use crate::plan::dtypes;
use crate::runtime::Launcher;
use crate::tensor::{Dtype, TensorView, TensorViewMut};

/// The caches of several layers, all of one shape, by their addresses in device memory.
#[derive(Clone, Copy, Debug)]
pub struct CacheTable<'a> {
    pub(super) addresses: TensorView<'a>,
    /// Shape and strides of each; the address is 0.
    pub(super) cache: TensorView<'a>,
}

impl<'a> CacheTable<'a> {
    /// Caches of `shape` (`[num_blocks, block_size, entry]`) and `strides` at the addresses that
    /// `addresses` (`[num_layers]`, i64) holds.
    ///
    /// # Errors
    /// As [`TensorView::from_raw`].
    ///
    /// # Safety
    /// Each address is a multiple of 16, and what [`crate::tensor::TensorViewMut::from_raw`] asks holds for
    /// each cache.
    pub unsafe fn from_raw(
        addresses: TensorView<'a>,
        dtype: Dtype,
        shape: &[usize],
        strides: &[i64],
    ) -> Result<Self, RequestError> {
        // SAFETY: the view names no memory by itself; the caller promises it for each address.
        let cache = unsafe { TensorView::from_raw(0, dtype, shape, strides) }?;
        Ok(Self { addresses, cache })
    }

    /// Whether the caches of `new` are laid out as these are.
    pub(super) fn alike(
        &self,
        name: &'static str,
        new: &CacheTable<'_>,
    ) -> Result<(), RequestError> {
        laid_out_alike(&self.cache, named(name, &new.cache))
    }
}

/// What is wanted.
#[derive(Debug)]
pub struct ConcatAndCacheMlaGroupedRequest<'a> {
    /// `[num_layers, num_tokens or more, kv_lora_rank]`, bf16, f16 or f32.
    pub kv_c: TensorView<'a>,
    /// `[num_layers, num_tokens or more, qk_rope_head_dim]`, as `kv_c`.
    pub k_pe: TensorView<'a>,
    /// The layers' caches: of the input's dtype, or FP8 if there are scales.
    pub kv_caches: CacheTable<'a>,
    /// `[num_layers, num_tokens]`, i64; a layer stride of 0 if all layers share them. Negative slots write
    /// nothing.
    pub slot_mapping: TensorView<'a>,
    /// Tokens per block as `slot_mapping` counts them.
    pub block_size: usize,
    /// `[num_layers]`, f32, if the caches are FP8.
    pub scales: Option<TensorView<'a>>,
    /// Whether slots and scales are checked on the device first, as [`super::CacheWriteRequest::check`], of each layer
    /// with slots of its own.
    pub check: CheckMode,
}

/// A request whose tensors agree with each other.
#[derive(Debug)]
pub struct CheckedConcatAndCacheMlaGrouped<'a> {
    write: SlotWrite,
    request: ConcatAndCacheMlaGroupedRequest<'a>,
}

impl<'a> ConcatAndCacheMlaGroupedRequest<'a> {
    /// Checks every tensor against the others.
    ///
    /// # Errors
    /// [`crate::error::RequestError`] naming the first tensor that does not fit.
    pub fn check(self) -> Result<CheckedConcatAndCacheMlaGrouped<'a>> {
        let slots = named("slot_mapping", &self.slot_mapping);
        let [num_layers, num_tokens] = slots.indices(Dtype::I64, "[num_layers, num_tokens]")?;

        let addresses = named("kv_caches", &self.kv_caches.addresses);
        addresses.dtype(&[Dtype::I64])?;
        addresses.shape("[num_layers]", &[num_layers])?;
        addresses.strides(1)?;
        addresses.aligned(8)?;

        let kv_c = named("kv_c", &self.kv_c);
        let dtype = kv_c.dtype(dtypes::scaled_sources())?;
        let [.., rank] = kv_c.rank::<3>("[num_layers, num_tokens, kv_lora_rank]")?;
        let k_pe = named("k_pe", &self.k_pe);
        k_pe.dtype(&[dtype])?;
        let [.., rope] = k_pe.rank::<3>("[num_layers, num_tokens, qk_rope_head_dim]")?;
        for (side, view) in [(kv_c, &self.kv_c), (k_pe, &self.k_pe)] {
            let [layers, rows, _] = side.rank("[num_layers, num_tokens, size]")?;
            if layers != num_layers || rows < num_tokens {
                let expected =
                    format!("[{num_layers}, at least {num_tokens}, {}]", view.shape()[2]);
                return Err(side.wrong_shape(expected).into());
            }
            side.strides(1)?;
            side.aligned(dtype.size())?;
        }

        let cache = named("kv_caches", &self.kv_caches.cache);
        let cache_dtype = if self.scales.is_some() {
            cache.dtype(dtypes::scaled_caches())?
        } else {
            cache.dtype(&[dtype])?
        };
        let form = "[num_blocks, block_size, kv_lora_rank + qk_rope_head_dim]";
        let [num_blocks, block_size, _] = cache.rank(form)?;
        cache.shape(form, &[num_blocks, self.block_size, rank + rope])?;
        cache.strides(1)?;
        if block_size == 0 {
            return Err(cache
                .wrong_shape(format!("{form} with a block_size above 0"))
                .into());
        }
        if let Some(scales) = &self.scales {
            let named = named("scales", scales);
            named.dtype(&[Dtype::F32])?;
            named.shape("[num_layers]", &[num_layers])?;
            named.no_negative_strides()?;
            named.aligned(4)?;
        }
        count("kv_lora_rank", rank)?;
        count("qk_rope_head_dim", rope)?;

        let side = |source: &TensorView<'a>, offset| {
            let side = Side::latent(source, &self.kv_caches.cache, offset);
            let stride = byte_stride(source, 0);
            match &self.scales {
                Some(scales) => side
                    .with_scales(scales)
                    .with_layers(stride, byte_stride(scales, 0)),
                None => side.with_layers(stride, 0),
            }
        };
        let rows = Rows {
            key: side(&self.kv_c, 0),
            value: side(&self.k_pe, rank),
            slot_mapping: self.slot_mapping.address(),
            stride_slot_mapping_layer: byte_stride(&self.slot_mapping, 0),
            cache_table: self.kv_caches.addresses.address(),
            num_layers: count("num_layers", num_layers)?,
            num_tokens: count("num_tokens", num_tokens)?,
            block_size: count("block_size", self.block_size)?,
        };
        let write = if cache_dtype == dtype {
            rows.copied()?
        } else {
            rows.scaled(dtype, cache_dtype)?
        };
        let slots = Slots {
            scales: self.scales_to_check(),
            ..rows.slots(slot_count(num_blocks, block_size)?)
        };
        Ok(CheckedConcatAndCacheMlaGrouped {
            write: SlotWrite {
                rows: write,
                slots,
                check: self.check,
            },
            request: self,
        })
    }
}

impl<'a> ConcatAndCacheMlaGroupedRequest<'a> {
    fn tensors(&self) -> [Given<'_, 'a>; 5] {
        [
            Some(named("kv_c", &self.kv_c)),
            Some(named("k_pe", &self.k_pe)),
            Some(named("kv_caches", &self.kv_caches.addresses)),
            Some(named("slot_mapping", &self.slot_mapping)),
            given("scales", self.scales.as_ref()),
        ]
    }

    fn scales_to_check(&self) -> [ScaleList; 3] {
        let scales = scale_list(CheckFault::LAYER_SCALES, self.scales.as_ref());
        [scales, ScaleList::NONE, ScaleList::NONE]
    }

    fn places(&self) -> Places {
        let (cache, scales) = (&self.kv_caches.cache, self.scales.as_ref());
        let latent_bytes = self.kv_c.shape()[2] * cache.dtype().size();
        let rows = Places::of_rows(
            SidePlaces::of(&self.kv_c, cache, scales),
            SidePlaces::of(&self.k_pe, cache, scales).at_byte(latent_bytes),
            &self.slot_mapping,
            self.scales_to_check(),
        );
        Places {
            cache_table: self.kv_caches.addresses.address(),
            ..rows
        }
    }
}

impl CheckedConcatAndCacheMlaGrouped<'_> {
    /// What will be launched: a pure function of shapes.
    pub fn plan(&self) -> CacheWritePlan {
        self.write.plan()
    }

    /// The same for other tensors, as [`super::CheckedCacheWrite::rebind`]. There is no next layer here, as one launch
    /// writes all: this is for the next step's tokens, or for another group of layers, as many as these.
    ///
    /// # Errors
    /// [`RequestError`] naming the first tensor that differs (`kv_caches` also if the caches' shape or strides do), or
    /// `block_size` or `check`.
    pub fn rebind<'b>(
        &self,
        request: ConcatAndCacheMlaGroupedRequest<'b>,
    ) -> Result<CheckedConcatAndCacheMlaGrouped<'b>> {
        let old = &self.request;
        alike(&old.tensors(), &request.tensors())?;
        old.kv_caches.alike("kv_caches", &request.kv_caches)?;
        same("block_size", old.block_size, request.block_size)?;
        same("check", old.check, request.check)?;
        Ok(CheckedConcatAndCacheMlaGrouped {
            write: self.write.at(&request.places()),
            request,
        })
    }

    /// Enqueues the plan's kernels: one for all layers, and one for the check. Allocates nothing and waits for
    /// nothing. If the check finds a fault in any layer, no layer is written.
    ///
    /// # Errors
    /// As [`super::CheckedCacheWrite::launch`].
    pub fn launch(
        &self,
        plan: &CacheWritePlan,
        workspace: &mut TensorViewMut<'_>,
        launcher: &dyn Launcher,
    ) -> Result<()> {
        let tensors = self.request.tensors();
        // SAFETY: `check` or `rebind` made the write from these tensors and caches, whose makers promised that they stay valid.
        unsafe { self.write.launch(plan, &tensors, workspace, launcher) }
    }
}
