//! Decode attention over a paged latent (MLA) cache: one row per token, shared by all query heads.
//!
//! For query token `t` of sequence `s` and query head `h`, `score[i] = softmax_scale * query[s, t, h] · row[i]` over
//! the first `seq_lens[s] - (query_len - 1 - t)` rows that the block table names, and
//! `out[s, t, h] = Σ softmax(score)[i] row[i][..head_size_v]`: the values are the first columns of the keys, read
//! once. A query token that sees nothing gives 0 and an lse of −inf.
//!
//! `softmax_scale` belongs to the model, not to the row: with the usual heads of 128 + 64 values it is
//! `1 / sqrt(192)`, not `1 / sqrt(576)`. Over an FP8 cache the one scale of the rows multiplies score and output.

use gpu_kernels::dtype::HalfDtype;
use gpu_kernels::entry::Entry;
use gpu_kernels::kv::CacheDtype;
use gpu_kernels::latent::{Cut, STAGES};
use gpu_kernels::params::{DecodeMlaParams, KernelParams};
use gpu_kernels::tile::QueryDtype;

use super::decode::DecodeOptions;
use super::decode_launch::{DecodeFacts, DecodePlan, Rows};
use super::mla_rows;
use super::paged::max_seq_len;
use crate::error::{Error, RequestError, Result};
use crate::ops::checks::{count, grid_count, named, scale, slot_stride_fits};
use crate::ops::device_check::workspace_base;
use crate::ops::made_for::MadeFor;
use crate::ops::tensors::{Given, alike, given, on_machine};
use crate::plan::{DeviceInfo, SplitShape, Splits, variants};
use crate::runtime::{Launch, Launcher};
use crate::tensor::{Dtype, TensorView, TensorViewMut};

/// What is wanted. Row sizes that were compiled: see [`variants::decode_mla_support`].
#[derive(Debug)]
pub struct DecodeMlaRequest<'a> {
    /// `[num_seqs, query_len, num_query_heads, head_size]`, bf16 or f16, or fp8_e4m3 over an FP8 cache; any strides
    /// that are multiples of 2.
    pub query: TensorView<'a>,
    /// `[num_blocks, block_size, head_size]`, the query's dtype, or fp8_e4m3 or fp8_e5m2: each row the latent, then the
    /// rotary part. Strides are multiples of 16 bytes; `block_size` is a multiple of 8.
    pub cache: TensorView<'a>,
    /// `[num_seqs, max_num_blocks_per_seq]`, i32. Entries past a sequence's last block are not read.
    pub block_table: TensorView<'a>,
    /// `[num_seqs]`, i32: tokens in the cache, this step's included. 0 is an empty sequence.
    pub seq_lens: TensorView<'a>,
    /// `[num_seqs, query_len, num_query_heads, head_size_v]`, the query's dtype, or bf16 or f16 for an FP8 query;
    /// `head_size_v` is the size of the latent. Any strides that are multiples of 4.
    pub out: TensorViewMut<'a>,
    /// `[num_seqs, query_len, num_query_heads]`, f32, natural logarithm; if wanted.
    pub lse: Option<TensorViewMut<'a>>,
    /// Multiplies query · row.
    pub softmax_scale: f32,
    /// What an FP8 cache was divided by. There is no default.
    pub scales: Option<MlaScales<'a>>,
    /// The rest.
    pub options: DecodeOptions<'a>,
}

/// What stored values were divided by: real value = stored × scale. Read on the device at each launch.
#[derive(Clone, Copy, Debug)]
pub struct MlaScales<'a> {
    /// `[1]`, f32: of an fp8_e4m3 query, and only of that.
    pub q_scale: Option<TensorView<'a>>,
    /// `[1]`, f32: of the rows, latent and rotary part alike.
    pub k_scale: TensorView<'a>,
}

/// A request whose tensors agree with each other and with a compiled kernel.
#[derive(Debug)]
pub struct CheckedDecodeMla<'a> {
    request: DecodeMlaRequest<'a>,
    /// Of the output.
    dtype: HalfDtype,
    query_dtype: QueryDtype,
    cache: CacheDtype,
    /// The kernel for few rows.
    narrow: &'static Entry,
    num_seqs: u32,
    query_len: u32,
    num_query_heads: u32,
    head_size: u32,
    head_size_v: u32,
    block_size: u32,
    num_blocks: i64,
    max_seq_len: u32,
}

impl<'a> DecodeMlaRequest<'a> {
    /// Checks every tensor against the others, in the order of the fields.
    ///
    /// # Errors
    /// [`RequestError`] naming the first tensor that does not fit; [`Error::Unsupported`] for a row size that was
    /// not compiled.
    pub fn check(self) -> Result<CheckedDecodeMla<'a>> {
        let query = named("query", &self.query);
        let query_dtype = query.dtype(&[Dtype::Bf16, Dtype::F16, Dtype::F8E4m3])?;
        let [num_seqs, query_len, num_query_heads, head_size] =
            query.rank("[num_seqs, query_len, num_query_heads, head_size]")?;
        query.strides(2)?;
        query.aligned(2 * query_dtype.size())?;
        let rows = query_len.saturating_mul(num_query_heads);
        if rows == 0 {
            let form =
                "[num_seqs, query_len, num_query_heads, head_size], none of the middle ones 0";
            return Err(query.wrong_shape(form.into()).into());
        }

        let cache = named("cache", &self.cache);
        let cache_dtype = match query_dtype {
            Dtype::F8E4m3 => cache.dtype(&[Dtype::F8E4m3, Dtype::F8E5m2])?,
            _ => cache.dtype(&[query_dtype, Dtype::F8E4m3, Dtype::F8E5m2])?,
        };
        let form = "[num_blocks, block_size, head_size]";
        let [num_blocks, block_size, _] = cache.rank(form)?;
        if block_size == 0 || block_size % 8 != 0 {
            return Err(RequestError::Value {
                name: "block_size",
                expected: "a multiple of 8, at least 8".into(),
                got: block_size.to_string(),
            }
            .into());
        }
        cache.shape(form, &[num_blocks, block_size, head_size])?;
        cache.strides(16 / cache_dtype.size())?;
        slot_stride_fits("cache", &self.cache)?;
        cache.aligned(16)?;

        let max_seq_len = max_seq_len(
            &self.block_table,
            num_seqs,
            block_size,
            self.options.max_seq_len,
        )?;

        let seq_lens = named("seq_lens", &self.seq_lens);
        seq_lens.dtype(&[Dtype::I32])?;
        seq_lens.shape("[num_seqs]", &[num_seqs])?;
        seq_lens.strides(1)?;
        seq_lens.aligned(4)?;

        let out = named("out", self.out.view());
        let out_dtype = match query_dtype {
            Dtype::F8E4m3 => out.dtype(&[Dtype::Bf16, Dtype::F16])?,
            _ => out.dtype(&[query_dtype])?,
        };
        let form = "[num_seqs, query_len, num_query_heads, head_size_v]";
        let [_, _, _, head_size_v] = out.rank(form)?;
        out.shape(form, &[num_seqs, query_len, num_query_heads, head_size_v])?;
        out.strides(4)?;
        out.aligned(8)?;
        if let Some(lse) = &self.lse {
            let lse = named("lse", lse.view());
            lse.dtype(&[Dtype::F32])?;
            let form = "[num_seqs, query_len, num_query_heads]";
            lse.shape(form, &[num_seqs, query_len, num_query_heads])?;
            lse.no_negative_strides()?;
            lse.aligned(4)?;
        }
        scale("softmax_scale", self.softmax_scale)?;
        self.options.scores().refuse("MLA decode")?;
        self.check_scales(query_dtype, cache_dtype)?;

        let dtype = match out_dtype {
            Dtype::F16 => HalfDtype::F16,
            _ => HalfDtype::Bf16,
        };
        let cache = match cache_dtype {
            Dtype::F8E4m3 => CacheDtype::E4m3,
            Dtype::F8E5m2 => CacheDtype::E5m2,
            Dtype::F16 => CacheDtype::F16,
            _ => CacheDtype::Bf16,
        };
        let head_size = count("head_size", head_size)?;
        let head_size_v = count("head_size_v", head_size_v)?;
        let (narrow, _) = variants::decode_mla_entries(cache, head_size, head_size_v)?[0];
        count("query_len * num_query_heads", rows)?;
        Ok(CheckedDecodeMla {
            dtype,
            query_dtype: match query_dtype {
                Dtype::F8E4m3 => QueryDtype::E4m3,
                _ => QueryDtype::of(dtype),
            },
            cache,
            narrow,
            num_seqs: grid_count("num_seqs", num_seqs)?,
            query_len: grid_count("query_len", query_len)?,
            num_query_heads: count("num_query_heads", num_query_heads)?,
            head_size,
            head_size_v,
            block_size: count("block_size", block_size)?,
            num_blocks: i64::from(count("num_blocks", num_blocks)?),
            max_seq_len,
            request: self,
        })
    }

    /// Scales are there if and only if what they belong to is FP8.
    fn check_scales(&self, query: Dtype, cache: Dtype) -> Result<(), RequestError> {
        let one = |name, tensor: &TensorView<'_>| {
            let tensor = named(name, tensor);
            tensor.dtype(&[Dtype::F32])?;
            tensor.shape("[1]", &[1])?;
            tensor.aligned(4)
        };
        let wrong = |name, expected: &str, got: &str| {
            Err(RequestError::Value {
                name,
                expected: expected.into(),
                got: got.into(),
            })
        };
        let scales = match (&self.scales, cache.size() == 1) {
            (None, false) => return Ok(()),
            (None, true) => return wrong("scales", "given for a cache of bytes", "missing"),
            (Some(_), false) => {
                return wrong("scales", "absent for a cache of 16-bit values", "given");
            }
            (Some(scales), true) => scales,
        };
        one("k_scale", &scales.k_scale)?;
        match (&scales.q_scale, query == Dtype::F8E4m3) {
            (Some(q_scale), true) => one("q_scale", q_scale),
            (None, false) => Ok(()),
            (None, true) => wrong("q_scale", "given for an fp8_e4m3 query", "missing"),
            (Some(_), false) => wrong("q_scale", "absent for a query of 16-bit values", "given"),
        }
    }
}

impl<'a> DecodeMlaRequest<'a> {
    fn tensors(&self) -> [Given<'_, 'a>; 8] {
        let scales = self.scales.as_ref();
        [
            Some(named("query", &self.query)),
            Some(named("cache", &self.cache)),
            Some(named("block_table", &self.block_table)),
            Some(named("seq_lens", &self.seq_lens)),
            Some(named("out", self.out.view())),
            given("lse", self.lse.as_ref().map(TensorViewMut::view)),
            given("q_scale", scales.and_then(|scales| scales.q_scale.as_ref())),
            given("k_scale", scales.map(|scales| &scales.k_scale)),
        ]
    }
}

/// A kernel and how many tiles its ring has on a machine.
#[derive(Clone, Copy)]
struct Choice {
    entry: &'static Entry,
    cut: Cut,
    stages: u32,
}

impl CheckedDecodeMla<'_> {
    fn rows(&self) -> u32 {
        self.query_len * self.num_query_heads
    }

    /// The widest kernel that the rows fill and that fits the machine: few rows leave shared memory for more
    /// thread blocks.
    fn choose(&self, device: &DeviceInfo) -> Result<Choice> {
        let rows = variants::decode_mla_entries(self.cache, self.head_size, self.head_size_v)?;
        let fits = |&(entry, cut): &(&'static Entry, Cut)| {
            let per_cta = device.shared_bytes_per_cta;
            let per_sm = device.shared_bytes_per_sm / entry.min_ctas - 1024;
            let room = |stages: &u32, limit| cut.shared_bytes(*stages) <= limit;
            // As many thread blocks as the kernel is made for if the ring keeps two tiles, else one.
            let stages = (STAGES.0..=STAGES.1)
                .rev()
                .find(|stages| room(stages, per_sm.min(per_cta)))
                .or_else(|| {
                    (STAGES.0..=STAGES.1)
                        .rev()
                        .find(|stages| room(stages, per_cta))
                })?;
            Some(Choice { entry, cut, stages })
        };
        let narrow = rows.first().and_then(fits);
        let is_filled = |choice: &Choice| self.rows() > choice.cut.heads / 2;
        let chosen = rows.last().and_then(fits).filter(is_filled).or(narrow);
        chosen.ok_or_else(|| Error::Unsupported {
            operation: "decode_mla",
            what: "a device with shared memory per thread block of",
            got: format!("{} bytes", device.shared_bytes_per_cta),
            supported: rows.first().map_or_else(String::new, |(_, cut)| {
                format!("at least {} bytes", cut.shared_bytes(STAGES.0))
            }),
        })
    }

    /// Decides splits, grids and workspace for a machine: a pure function of shapes and numbers.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the machine has too little shared memory for the kernel.
    pub fn plan(&self, device: &DeviceInfo) -> Result<DecodePlan> {
        let Choice { entry, cut, stages } = self.choose(device)?;
        let row_tiles = self.rows().div_ceil(cut.heads);
        let value_bytes = if self.cache.is_bytes() { 1 } else { 2 };
        let splits = Splits::choose(
            &SplitShape {
                num_seqs: self.num_seqs,
                ctas_per_split: row_tiles,
                max_seq_len: self.max_seq_len,
                token_bytes: value_bytes * self.head_size,
                tile_nanoseconds: mla_rows::tile_nanoseconds(cut, self.head_size),
                cta_nanoseconds: mla_rows::cta_nanoseconds(cut),
                tile_len: cut.tile_len,
                shared_bytes: cut.shared_bytes(stages),
            },
            device,
            self.request.options.split_policy,
        );
        let stage1 = Launch {
            kernel: entry.id,
            grid: [row_tiles, splits.num_kv_splits, self.num_seqs],
            shared_bytes: cut.shared_bytes(stages),
            overlaps_previous: false,
        };
        let rows = Rows {
            num_seqs: self.num_seqs,
            query_len: self.query_len,
            num_query_heads: self.num_query_heads,
            head_size_v: self.head_size_v,
            dtype: self.dtype,
            check_parts: 1,
        };
        let check = self.request.options.check;
        let mut plan = DecodePlan::around(stage1, splits, rows, self.made_for(), check);
        plan.stages = stages;
        Ok(plan)
    }

    fn made_for(&self) -> MadeFor<12> {
        DecodeFacts {
            kernel: self.narrow.id,
            num_query_heads: self.num_query_heads,
            num_kv_heads: 1,
            query_len: self.query_len,
            query: self.request.query.dtype(),
            out: self.request.out.view().dtype(),
            has_lists: false,
            num_seqs: self.num_seqs,
            max_len: self.max_seq_len,
        }
        .with(&self.request.options)
    }

    /// The same for other tensors, as [`super::CheckedDecode::rebind`].
    ///
    /// # Errors
    /// [`RequestError`] naming the first tensor or option that differs.
    pub fn rebind<'b>(&self, request: DecodeMlaRequest<'b>) -> Result<CheckedDecodeMla<'b>>
    where
        Self: 'b,
    {
        alike(&self.request.tensors(), &request.tensors())?;
        scale("softmax_scale", request.softmax_scale)?;
        self.request.options.same(&request.options)?;
        Ok(CheckedDecodeMla { request, ..*self })
    }

    /// Enqueues the plan's kernels. Allocates nothing and waits for nothing, so it can be captured into a CUDA
    /// graph.
    ///
    /// # Errors
    /// [`RequestError::Plan`] if the plan was made for something that this is not (see [`DecodePlan`]);
    /// [`RequestError::Machine`] for memory of another machine; [`RequestError::Workspace`] if `workspace` (u8, 256-byte aligned) is smaller than the plan's
    /// [`DecodePlan::workspace_bytes`]; whatever the launcher reports.
    pub fn launch(
        &self,
        plan: &DecodePlan,
        workspace: &mut TensorViewMut<'_>,
        launcher: &dyn Launcher,
    ) -> Result<()> {
        plan.fits(&self.made_for())?;
        on_machine(launcher, &self.request.tensors(), workspace)?;
        if self.num_seqs == 0 {
            return plan.launch_nothing(workspace, launcher);
        }
        let base = workspace_base(workspace, plan.workspace_bytes)?;
        let stage1 = self.stage1_params(plan, base);
        let checks = mla_rows::checks(&stage1, self.num_seqs, self.num_blocks);
        let merge = mla_rows::merge(&stage1, self.head_size_v, 0);
        let seqs = [self.num_seqs; 2];
        // SAFETY: views and workspace are valid until the launch has finished, as their makers promised; `check()`
        // made shapes and strides agree, and the plan fits them.
        unsafe { plan.enqueue(launcher, seqs, &checks, stage1.as_bytes(), &merge) }
    }

    fn stage1_params(&self, plan: &DecodePlan, base: u64) -> DecodeMlaParams {
        let request = &self.request;
        let (query, out) = (request.query.strides(), request.out.view().strides());
        let lse = request.lse.as_ref().map(TensorViewMut::view);
        let lse_stride = |dim: usize| lse.map_or(0, |lse| lse.strides()[dim]);
        let scales = request.scales.as_ref();
        DecodeMlaParams {
            query: request.query.address(),
            cache: request.cache.address(),
            block_table: request.block_table.address(),
            seq_lens: request.seq_lens.address(),
            out: request.out.view().address(),
            lse: lse.map_or(0, TensorView::address),
            partial_out: base + plan.partial_out_offset as u64,
            partial_lse: base + plan.partial_lse_offset as u64,
            q_scale: scales
                .and_then(|scales| scales.q_scale)
                .map_or(0, |scale| scale.address()),
            k_scale: scales.map_or(0, |scales| scales.k_scale.address()),
            check: if plan.check.is_some() { base } else { 0 },
            stride_query_seq: query[0],
            stride_query_token: query[1],
            stride_query_head: query[2],
            stride_cache_block: request.cache.strides()[0],
            stride_cache_slot: request.cache.strides()[1],
            stride_block_table: request.block_table.strides()[0],
            stride_seq_lens: request.seq_lens.strides()[0],
            stride_out_seq: out[0],
            stride_out_token: out[1],
            stride_out_head: out[2],
            stride_lse_seq: lse_stride(0),
            stride_lse_token: lse_stride(1),
            stride_lse_head: lse_stride(2),
            num_query_heads: self.num_query_heads,
            query_len: self.query_len,
            block_size: self.block_size,
            max_seq_len: self.max_seq_len,
            split_len: plan.splits.split_len,
            num_kv_splits: plan.splits.num_kv_splits,
            stages: plan.stages,
            qk_scale_log2: request.softmax_scale * std::f32::consts::LOG2_E,
            query_dtype: self.query_dtype as u32,
            out_dtype: QueryDtype::of(self.dtype) as u32,
        }
    }
}
