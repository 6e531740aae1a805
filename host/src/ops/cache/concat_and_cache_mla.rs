//! `concat_and_cache_mla`: writing new tokens into an MLA cache.
//!
//! An entry of the cache is a token's latent (`kv_c`) and its RoPE key (`k_pe`) side by side, in one of the
//! forms of [`MlaCacheForm`]. Negative slots are padding and write nothing; of a slot that two tokens have nothing is
//! promised. The number of tokens is
//! `slot_mapping`'s length; `kv_c` and `k_pe` may be longer.

use gpu_kernels::entry::Variant;
use gpu_kernels::gpu::fast_divmod::FastDivmod;
use gpu_kernels::mla::cache_format::{fp8_ds, v4};
use gpu_kernels::params::{CheckFault, MlaEntryParams, ScaleList};

use super::places::{Places, SidePlaces};
use super::row_layout::Side;
use super::row_write::{RowWrite, Rows};
use super::slots::Slots;
use super::write_plan::{CacheWritePlan, SlotWrite};
use crate::error::{RequestError, Result};
use crate::ops::checks::{Named, count, named, slot_count};
use crate::ops::device_check::{CheckMode, scale_list};
use crate::ops::layout::byte_stride;
use crate::ops::mla_entries::check_entries;
use crate::ops::tensors::{Given, alike, given, same, same_kind};
use crate::plan::dtypes;
use crate::runtime::Launcher;
use crate::tensor::{Dtype, TensorView, TensorViewMut};

/// What is wanted.
#[derive(Debug)]
pub struct ConcatAndCacheMlaRequest<'a> {
    /// `[num_tokens or more, kv_lora_rank]`, bf16, f16 or f32; any token stride. The forms with scales of
    /// their own take bf16 alone, and token strides that are multiples of 8.
    pub kv_c: TensorView<'a>,
    /// `[num_tokens or more, qk_rope_head_dim]`, as `kv_c`; none for a model without RoPE keys.
    pub k_pe: Option<TensorView<'a>>,
    /// `[num_blocks, block_size, entry]`; V4: `[num_blocks, page_bytes]`. What an entry is, `form` says.
    pub kv_cache: TensorViewMut<'a>,
    /// `[num_tokens]`, i64: `block * block_size + offset`; negative slots write nothing.
    pub slot_mapping: TensorView<'a>,
    /// Tokens per block as `slot_mapping` counts them.
    pub block_size: usize,
    /// What the cache stores.
    pub form: MlaCacheForm<'a>,
    /// Whether slots and [`MlaCacheForm::Fp8`]'s scale are checked on the device first, as
    /// [`super::CacheWriteRequest::check`].
    pub check: CheckMode,
}

/// What an MLA cache stores of a token.
#[derive(Clone, Copy, Debug)]
pub enum MlaCacheForm<'a> {
    /// `kv_lora_rank + qk_rope_head_dim` values of the input's dtype.
    Plain,
    /// The same values in FP8 (see [`support`](crate::plan::support)), all divided by one scale.
    Fp8 {
        /// `[1]`, f32.
        scale: TensorView<'a>,
    },
    /// 656 bytes (u8) a token, `fp8_ds_mla`: 512 e4m3 latents, four f32 scales, 64 bf16 RoPE values (zeros
    /// without `k_pe`). Every address is a multiple of 16.
    Fp8Ds {
        /// How a scale is chosen.
        rule: ScaleRule,
    },
    /// DeepSeek V4's pages: 448 e4m3 values and 64 bf16 RoPE values a token, then 7 powers of two (UE8M0) and
    /// a zero for each token of the page. `page_bytes` is `584 * block_size` or more, a multiple of 16.
    V4,
}

impl<'a> MlaCacheForm<'a> {
    /// Which of them it is.
    fn kind(&self) -> &'static str {
        match self {
            Self::Plain => "Plain",
            Self::Fp8 { .. } => "Fp8",
            Self::Fp8Ds {
                rule: ScaleRule::Exact,
            } => "Fp8Ds with exact scales",
            Self::Fp8Ds {
                rule: ScaleRule::PowerOfTwo,
            } => "Fp8Ds with powers of two",
            Self::V4 => "V4",
        }
    }

    /// The one that is given.
    fn scale(&self) -> Option<&TensorView<'a>> {
        match self {
            Self::Fp8 { scale } => Some(scale),
            Self::Plain | Self::Fp8Ds { .. } | Self::V4 => None,
        }
    }
}

/// How the scale of 128 latents is chosen in the 656-byte form. Readers take either.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ScaleRule {
    /// `max(amax / 448, smallest normal f32)`: the finest.
    #[default]
    Exact,
    /// `max(amax / 448, 1e-4)` rounded up to a power of two, as vLLM writes since September 2026.
    PowerOfTwo,
}

/// A request whose tensors agree with each other.
#[derive(Debug)]
pub struct CheckedConcatAndCacheMla<'a> {
    request: ConcatAndCacheMlaRequest<'a>,
    write: SlotWrite,
}

impl<'a> ConcatAndCacheMlaRequest<'a> {
    /// Checks every tensor against the others.
    ///
    /// # Errors
    /// [`crate::error::RequestError`] naming the first tensor that does not fit.
    pub fn check(self) -> Result<CheckedConcatAndCacheMla<'a>> {
        let slots = named("slot_mapping", &self.slot_mapping);
        let [num_tokens] = slots.indices(Dtype::I64, "[num_tokens]")?;
        if self.block_size == 0 {
            return Err(RequestError::Value {
                name: "block_size",
                expected: "at least 1".into(),
                got: "0".into(),
            }
            .into());
        }
        let (write, num_blocks) = match self.form {
            MlaCacheForm::Plain | MlaCacheForm::Fp8 { .. } => self.rows(num_tokens)?,
            MlaCacheForm::Fp8Ds { .. } | MlaCacheForm::V4 => self.entries(num_tokens)?,
        };
        let slots = Slots {
            address: self.slot_mapping.address(),
            num_layers: 1,
            num_tokens: count("num_tokens", num_tokens)?,
            stride_layer: 0,
            has_layers: false,
            limit: i64::from(slot_count(num_blocks, self.block_size)?),
            scales: self.scales_to_check(),
            positions: None,
        };
        Ok(CheckedConcatAndCacheMla {
            write: SlotWrite {
                rows: write,
                slots,
                check: self.check,
            },
            request: self,
        })
    }

    /// Latents and RoPE keys: dtype and sizes. The sizes are the last dimensions.
    fn sources(
        &self,
        num_tokens: usize,
        allowed: &[Dtype],
    ) -> Result<(Dtype, [usize; 2]), RequestError> {
        let kv_c = named("kv_c", &self.kv_c);
        let dtype = kv_c.dtype(allowed)?;
        let size = rows(kv_c, "[num_tokens, kv_lora_rank]", num_tokens)?;
        kv_c.strides(1)?;
        kv_c.aligned(dtype.size())?;
        let Some(k_pe) = &self.k_pe else {
            return Ok((dtype, [size, 0]));
        };
        let k_pe = named("k_pe", k_pe);
        k_pe.dtype(&[dtype])?;
        let rope = rows(k_pe, "[num_tokens, qk_rope_head_dim]", num_tokens)?;
        k_pe.strides(1)?;
        k_pe.aligned(dtype.size())?;
        Ok((dtype, [size, rope]))
    }

    /// Values without scales of their own: latents are written as one head of keys, RoPE keys as one of
    /// values.
    fn rows(&self, num_tokens: usize) -> Result<(RowWrite, usize)> {
        let (dtype, [rank, rope]) = self.sources(num_tokens, dtypes::scaled_sources())?;
        let view = self.kv_cache.view();
        let cache = named("kv_cache", view);
        let cache_dtype = match self.form {
            MlaCacheForm::Fp8 { .. } => cache.dtype(dtypes::scaled_caches())?,
            _ => cache.dtype(&[dtype])?,
        };
        let form = "[num_blocks, block_size, kv_lora_rank + qk_rope_head_dim]";
        let [num_blocks, ..] = cache.rank::<3>(form)?;
        cache.shape(form, &[num_blocks, self.block_size, rank + rope])?;
        cache.strides(1)?;
        cache.aligned(cache_dtype.size())?;
        count("kv_lora_rank", rank)?;
        count("qk_rope_head_dim", rope)?;
        let mut key = Side::latent(&self.kv_c, view, 0);
        let mut value = match &self.k_pe {
            Some(k_pe) => Side::latent(k_pe, view, rank),
            None => Side::none(),
        };
        if let MlaCacheForm::Fp8 { scale } = &self.form {
            let named = named("scale", scale);
            named.dtype(&[Dtype::F32])?;
            named.shape("[1]", &[1])?;
            named.aligned(4)?;
            key = key.with_scales(scale);
            value = value.with_scales(scale);
        }
        let rows = Rows {
            key,
            value,
            slot_mapping: self.slot_mapping.address(),
            stride_slot_mapping_layer: 0,
            cache_table: 0,
            num_layers: 1,
            num_tokens: count("num_tokens", num_tokens)?,
            block_size: count("block_size", self.block_size)?,
        };
        let write = if cache_dtype == dtype {
            rows.copied()?
        } else {
            rows.scaled(dtype, cache_dtype)?
        };
        Ok((write, num_blocks))
    }

    /// Entries with scales of their own.
    fn entries(&self, num_tokens: usize) -> Result<(RowWrite, usize)> {
        let is_v4 = matches!(self.form, MlaCacheForm::V4);
        let (_, [rank, rope]) = self.sources(num_tokens, &[Dtype::Bf16])?;
        let (ranks, ropes) = if is_v4 {
            (v4::VALUES as usize, v4::ROPE as usize)
        } else {
            (fp8_ds::LATENTS as usize, fp8_ds::ROPE as usize)
        };
        let kv_c = named("kv_c", &self.kv_c);
        if rank != ranks {
            return Err(kv_c.wrong_shape(format!("[num_tokens, {ranks}]")).into());
        }
        kv_c.strides(8)?;
        kv_c.aligned(16)?;
        match &self.k_pe {
            Some(view) => {
                let k_pe = named("k_pe", view);
                if rope != ropes {
                    return Err(k_pe.wrong_shape(format!("[num_tokens, {ropes}]")).into());
                }
                k_pe.strides(8)?;
                k_pe.aligned(16)?;
            }
            None if is_v4 => {
                return Err(RequestError::Value {
                    name: "k_pe",
                    expected: "given for V4's form".into(),
                    got: "none".into(),
                }
                .into());
            }
            None => {}
        }
        let view = self.kv_cache.view();
        let num_blocks = check_entries(named("kv_cache", view), is_v4, self.block_size)?;
        let params = MlaEntryParams {
            kv_c: self.kv_c.address(),
            k_pe: self.k_pe.as_ref().map_or(0, TensorView::address),
            kv_cache: view.address(),
            slot_mapping: self.slot_mapping.address(),
            check: 0,
            stride_kv_c_token: byte_stride(&self.kv_c, 0),
            stride_k_pe_token: self.k_pe.as_ref().map_or(0, |k_pe| byte_stride(k_pe, 0)),
            stride_cache_block: byte_stride(view, 0),
            stride_cache_slot: if is_v4 { 0 } else { byte_stride(view, 1) },
            num_tokens: count("num_tokens", num_tokens)?,
            block_size: FastDivmod::new(count("block_size", self.block_size)?),
            power_of_two_scales: u32::from(matches!(
                self.form,
                MlaCacheForm::Fp8Ds {
                    rule: ScaleRule::PowerOfTwo
                }
            )),
            reserved: 0,
        };
        let variant = if is_v4 {
            Variant::ConcatAndCacheMlaV4
        } else {
            Variant::ConcatAndCacheMlaFp8Ds
        };
        Ok((RowWrite::mla_entries(variant, params), num_blocks))
    }
}

/// The last dimension of `[num_tokens or more, size]`.
fn rows(view: Named<'_, '_>, form: &str, num_tokens: usize) -> Result<usize, RequestError> {
    let [rows, size] = view.rank(form)?;
    if rows < num_tokens {
        return Err(view.wrong_shape(format!("{form} with at least {num_tokens} tokens")));
    }
    Ok(size)
}

impl<'a> ConcatAndCacheMlaRequest<'a> {
    fn tensors(&self) -> [Given<'_, 'a>; 5] {
        [
            Some(named("kv_c", &self.kv_c)),
            given("k_pe", self.k_pe.as_ref()),
            Some(named("kv_cache", self.kv_cache.view())),
            Some(named("slot_mapping", &self.slot_mapping)),
            given("scale", self.form.scale()),
        ]
    }

    fn scales_to_check(&self) -> [ScaleList; 3] {
        let scale = scale_list(CheckFault::ENTRY_SCALE, self.form.scale());
        [scale, ScaleList::NONE, ScaleList::NONE]
    }

    fn places(&self) -> Places {
        let (cache, scale) = (self.kv_cache.view(), self.form.scale());
        let latent_bytes = self.kv_c.shape()[1] * cache.dtype().size();
        let rope = self.k_pe.as_ref().map_or(SidePlaces::NONE, |k_pe| {
            SidePlaces::of(k_pe, cache, scale).at_byte(latent_bytes)
        });
        Places::of_rows(
            SidePlaces::of(&self.kv_c, cache, scale),
            // Nothing is stored of a side that there is not, and its scale is the same.
            SidePlaces {
                scale: scale.map_or(0, TensorView::address),
                ..rope
            },
            &self.slot_mapping,
            self.scales_to_check(),
        )
    }
}

impl CheckedConcatAndCacheMla<'_> {
    /// What will be launched: a pure function of shapes.
    pub fn plan(&self) -> CacheWritePlan {
        self.write.plan()
    }

    /// The same for other tensors, as [`super::CheckedCacheWrite::rebind`].
    ///
    /// # Errors
    /// [`RequestError`] naming the first tensor that differs, or `block_size`, `form` or `check`.
    pub fn rebind<'b>(
        &self,
        request: ConcatAndCacheMlaRequest<'b>,
    ) -> Result<CheckedConcatAndCacheMla<'b>> {
        let old = &self.request;
        same_kind("form", old.form.kind(), request.form.kind())?;
        alike(&old.tensors(), &request.tensors())?;
        same("block_size", old.block_size, request.block_size)?;
        same("check", old.check, request.check)?;
        Ok(CheckedConcatAndCacheMla {
            write: self.write.at(&request.places()),
            request,
        })
    }

    /// Enqueues the plan's kernels. Allocates nothing and waits for nothing.
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
        // SAFETY: `check` or `rebind` made the write from these tensors, whose makers promised that they stay valid.
        unsafe { self.write.launch(plan, &tensors, workspace, launcher) }
    }
}
