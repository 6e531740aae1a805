//! `rope_and_cache`: rotary position embedding of queries and keys, and writing keys and values into a paged
//! cache, in one launch.
//!
//! To the bit what rotating first and writing after would leave. A pair `(x, y)` of a token at position `p`
//! becomes `(x cos - y sin, y cos + x sin)` with the cosine and sine of row `p` of the table, computed in f32
//! (one product rounded, the other one and the sum fused) and rounded to the input's dtype; after that, keys
//! and values are written as [`CacheWriteRequest`] says, and queries stored, divided by `q_scale` if they
//! become FP8. Queries of tokens with a negative slot are rotated too; positions that the table does not
//! have turn nothing.

use gpu_kernels::cache::reshape_and_cache_flash;
use gpu_kernels::entry::Variant;
use gpu_kernels::gpu::fast_divmod::FastDivmod;
use gpu_kernels::params::{CheckFault, RopeAndCacheParams, ScaleList};

use super::places::{Places, SidePlaces};
use super::reshape_and_cache::{CacheScales, CacheWriteRequest, CheckedRows};
use super::row_layout::Side;
use super::row_write::{RowWrite, is_vec8};
use super::slots::{Positions, Slots};
use super::write_plan::{CacheWritePlan, SlotWrite};
use crate::error::{Error, RequestError, Result};
use crate::ops::checks::{count, named};
use crate::ops::device_check::scale_list;
use crate::ops::layout::byte_stride;
use crate::ops::tensors::{Given, alike, given, same};
use crate::plan::dtypes;
use crate::runtime::Launcher;
use crate::tensor::{Dtype, TensorView, TensorViewMut};

/// What is wanted.
#[derive(Debug)]
pub struct RopeAndCacheRequest<'a> {
    /// Keys before rotation, and what is written. bf16 or f16; a scale per token and head is not supported.
    pub write: CacheWriteRequest<'a>,
    /// How keys and queries are rotated.
    pub table: RopeTable<'a>,
    /// Queries to rotate in the same launch.
    pub query: Option<RopeQuery<'a>>,
}

/// Which angles, and which values turn together.
#[derive(Clone, Copy, Debug)]
pub struct RopeTable<'a> {
    /// `[num_tokens or more]`, i64: each token's row of the table. Positions that it does not have turn nothing; a
    /// check ([`CacheWriteRequest::check`]) refuses them, and those of tokens with a negative slot if there are queries.
    pub positions: TensorView<'a>,
    /// `[num_positions, rotary_dim]`, f32 or the keys' dtype: cosines of `rotary_dim / 2` pairs, then their
    /// sines. With a `rotary_dim` below the head size, the values from there on stay as they are.
    pub cos_sin: TensorView<'a>,
    /// Which values turn together.
    pub style: RopeStyle,
}

/// Which values of a head turn together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RopeStyle {
    /// `i` and `i + rotary_dim / 2`.
    #[default]
    Neox,
    /// `2 i` and `2 i + 1`.
    GptJ,
}

/// Queries to rotate.
#[derive(Debug)]
pub struct RopeQuery<'a> {
    /// `[num_tokens or more, num_query_heads, head_size]`, the keys' dtype; any strides whose last is 1.
    pub query: TensorView<'a>,
    /// The same shape; may be the very same memory with the same strides. The keys' dtype, or fp8_e4m3 if
    /// there is a scale (and the caches are FP8).
    pub out: TensorViewMut<'a>,
    /// `[1]`, f32: `out = fp8(rotated / q_scale)`.
    pub q_scale: Option<TensorView<'a>>,
}

/// A request whose tensors agree with each other.
#[derive(Debug)]
pub struct CheckedRopeAndCache<'a> {
    request: RopeAndCacheRequest<'a>,
    write: SlotWrite,
}

impl<'a> RopeAndCacheRequest<'a> {
    /// Checks every tensor against the others.
    ///
    /// # Errors
    /// [`crate::error::RequestError`] naming the first tensor that does not fit;
    /// [`crate::error::Error::Unsupported`] for a scale per token and head.
    pub fn check(self) -> Result<CheckedRopeAndCache<'a>> {
        let CheckedRows {
            rows,
            dtype,
            cache_dtype,
            slots,
        } = self.write.check_rows()?;
        named("key", &self.write.key).dtype(dtypes::rotated_sources())?;
        let (mut key, mut value) = (rows.key, rows.value);
        match &self.write.scales {
            CacheScales::None => {}
            CacheScales::Given { k_scale, v_scale } => {
                named("key_cache", self.write.key_cache.view()).dtype(dtypes::rotated_caches())?;
                key = key.with_scales(k_scale);
                value = value.with_scales(v_scale);
            }
            CacheScales::PerTokenHead { .. } => {
                return Err(Error::Unsupported {
                    operation: "rope_and_cache",
                    what: "scales",
                    got: "one per token and head".into(),
                    supported: "none, or given ones (rotate first, then write)".into(),
                });
            }
        }
        let head_size = key.head_size();
        let (rotary_dim, table_dtype) = self.check_table(dtype, head_size)?;
        let (query, query_dtype) = self.check_query(dtype, cache_dtype, head_size)?;

        let table = &self.table.cos_sin;
        // What is stored as it is goes 16 bytes at a time.
        let store_bytes = |stored: Dtype| if stored == dtype { 16 } else { 8 };
        let eight = is_vec8(&[query], store_bytes(query_dtype))
            && is_vec8(&[key, value], store_bytes(cache_dtype))
            && rotary_dim.is_multiple_of(16)
            && table.address().is_multiple_of(16)
            && byte_stride(table, 0) % 16 == 0;
        let run = if eight { 8 } else { 1 };
        let rotated_items = rotary_dim / 2 / run;
        // The rest of a head goes in items of two runs, too.
        let items = |runs: u32, rotated: u32| rotated + (runs - 2 * rotated).div_ceil(2);
        let (head_runs, head_runs_v) = (head_size / run, value.head_size() / run);
        let sides = [
            query.counting(items(head_runs, rotated_items)),
            key.counting(items(head_runs, rotated_items)),
            value.counting(items(head_runs_v, 0)),
        ];
        let [Some(query), Some(key), Some(value)] = sides else {
            return Err(rows.too_large());
        };
        let spread = (query.units)
            .checked_add(key.units)
            .and_then(|units| units.checked_add(value.units))
            .and_then(|units| reshape_and_cache_flash::spread(1, rows.num_tokens, units))
            .ok_or_else(|| rows.too_large())?;
        let params = RopeAndCacheParams {
            query,
            key,
            value,
            slot_mapping: rows.slot_mapping,
            positions: self.table.positions.address(),
            cos_sin: table.address(),
            check: 0,
            stride_cos_sin: byte_stride(table, 0),
            sines_at: u64::from(rotary_dim / 2) * table_dtype.size() as u64,
            num_positions: count("num_positions", table.shape()[0])?,
            num_tokens: rows.num_tokens,
            block_size: FastDivmod::new(rows.block_size),
            run,
            head_runs,
            head_runs_v,
            rotated_items,
            is_interleaved: u32::from(self.table.style == RopeStyle::GptJ),
            table_is_f32: u32::from(table_dtype == Dtype::F32),
            lanes_log2: spread.lanes_log2,
        };
        let slots = Slots {
            scales: self.scales_to_check(),
            // Without pairs nothing is read of the table.
            positions: (rotary_dim > 0).then_some(Positions {
                address: params.positions,
                num_positions: params.num_positions,
                of_all: self.query.is_some(),
            }),
            ..slots
        };
        let variant = Variant::RopeAndCache {
            source: dtype,
            cache: cache_dtype,
            query: query_dtype,
        };
        Ok(CheckedRopeAndCache {
            write: SlotWrite {
                rows: RowWrite::rope(variant, spread.grid, params),
                slots,
                check: self.write.check,
            },
            request: self,
        })
    }

    /// Positions and angles: the rotary dimension and the table's dtype.
    fn check_table(&self, dtype: Dtype, head_size: u32) -> Result<(u32, Dtype), RequestError> {
        let num_tokens = self.write.slot_mapping.shape()[0];
        let positions = named("positions", &self.table.positions);
        let [rows] = positions.indices(Dtype::I64, "[num_tokens]")?;
        if rows < num_tokens {
            return Err(
                positions.wrong_shape(format!("[num_tokens] with at least {num_tokens} tokens"))
            );
        }
        let cos_sin = named("cos_sin", &self.table.cos_sin);
        let table_dtype = cos_sin.dtype(&[Dtype::F32, dtype])?;
        let [_, rotary_dim] = cos_sin.rank("[num_positions, rotary_dim]")?;
        if rotary_dim % 2 != 0 || rotary_dim > head_size as usize {
            return Err(cos_sin.wrong_shape(format!(
                "[num_positions, rotary_dim] with an even rotary_dim up to the head size {head_size}"
            )));
        }
        cos_sin.strides(1)?;
        cos_sin.aligned(table_dtype.size())?;
        Ok((count("rotary_dim", rotary_dim)?, table_dtype))
    }

    /// Queries and what they become.
    fn check_query(
        &self,
        dtype: Dtype,
        cache_dtype: Dtype,
        head_size: u32,
    ) -> Result<(Side, Dtype), RequestError> {
        let Some(request) = &self.query else {
            return Ok((Side::none(), dtype));
        };
        let query = named("query", &request.query);
        query.dtype(&[dtype])?;
        let form = "[num_tokens, num_query_heads, head_size]";
        let [rows, heads, size] = query.rank(form)?;
        let num_tokens = self.write.slot_mapping.shape()[0];
        if rows < num_tokens || size != head_size as usize {
            return Err(query.wrong_shape(format!(
                "{form} with at least {num_tokens} tokens and head size {head_size}"
            )));
        }
        query.strides(1)?;
        query.aligned(dtype.size())?;
        let out = named("query_out", request.out.view());
        let Some(q_scale) = &request.q_scale else {
            out.dtype(&[dtype])?;
            out.shape(form, &[rows, heads, size])?;
            out.strides(1)?;
            out.aligned(dtype.size())?;
            count("num_query_heads", heads)?;
            return Ok((Side::rows(&request.query, request.out.view()), dtype));
        };
        if cache_dtype == dtype {
            return Err(RequestError::Value {
                name: "q_scale",
                expected: "none, unless the caches are FP8".into(),
                got: "given".into(),
            });
        }
        let out_dtype = out.dtype(&[Dtype::F8E4m3])?;
        out.shape(form, &[rows, heads, size])?;
        out.strides(1)?;
        out.aligned(1)?;
        count("num_query_heads", heads)?;
        let scale = named("q_scale", q_scale);
        scale.dtype(&[Dtype::F32])?;
        scale.shape("[1]", &[1])?;
        scale.aligned(4)?;
        let side = Side::rows(&request.query, request.out.view()).with_scales(q_scale);
        Ok((side, out_dtype))
    }
}

impl<'a> RopeAndCacheRequest<'a> {
    fn tensors(&self) -> [Given<'_, 'a>; 12] {
        let [key, value, key_cache, value_cache, slots, k_scale, v_scale] = self.write.tensors();
        let query = self.query.as_ref();
        [
            key,
            value,
            key_cache,
            value_cache,
            slots,
            k_scale,
            v_scale,
            Some(named("positions", &self.table.positions)),
            Some(named("cos_sin", &self.table.cos_sin)),
            given("query", query.map(|query| &query.query)),
            given("query_out", query.map(|query| query.out.view())),
            given("q_scale", self.q_scale()),
        ]
    }

    fn q_scale(&self) -> Option<&TensorView<'a>> {
        self.query.as_ref()?.q_scale.as_ref()
    }

    fn scales_to_check(&self) -> [ScaleList; 3] {
        let [k_scale, v_scale, _] = self.write.scales_to_check();
        [
            scale_list(CheckFault::Q_SCALE, self.q_scale()),
            k_scale,
            v_scale,
        ]
    }

    fn places(&self) -> Places {
        let query = self.query.as_ref().map_or(SidePlaces::NONE, |query| {
            SidePlaces::of(&query.query, query.out.view(), query.q_scale.as_ref())
        });
        Places {
            query,
            positions: self.table.positions.address(),
            cos_sin: self.table.cos_sin.address(),
            scales: self.scales_to_check(),
            ..self.write.places()
        }
    }
}

impl CheckedRopeAndCache<'_> {
    /// What will be launched: a pure function of shapes.
    pub fn plan(&self) -> CacheWritePlan {
        self.write.plan()
    }

    /// The same for other tensors, as [`super::CheckedCacheWrite::rebind`].
    ///
    /// # Errors
    /// [`RequestError`] naming the first tensor that differs, or `block_size`, `scales`, `check` or `style`.
    pub fn rebind<'b>(&self, request: RopeAndCacheRequest<'b>) -> Result<CheckedRopeAndCache<'b>> {
        alike(&self.request.tensors(), &request.tensors())?;
        self.request.write.same_settings(&request.write)?;
        same("style", self.request.table.style, request.table.style)?;
        Ok(CheckedRopeAndCache {
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
