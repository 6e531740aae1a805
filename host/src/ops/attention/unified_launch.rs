//! Planning and launching a checked step of unified attention.

use std::fmt;

use gpu_kernels::divider::Divider;
use gpu_kernels::entry::{Entry, Variant};
use gpu_kernels::kv::CacheDtype;
use gpu_kernels::lse::Lse;
use gpu_kernels::params::{CheckFault, CheckPagedParams, KernelParams, PrefillParams};
use gpu_kernels::tile::QueryDtype;
use gpu_kernels::tile::rows::{Products, RowShape};

use super::decode::Starts;
use super::decode_launch::DecodePlan;
use super::paged::{KvScales, check_parts, scales_to_check};
use super::unified::{CheckedUnified, UnifiedRequest};
use crate::error::{Error, RequestError, Result};
use crate::ops::checks::{named, scale};
use crate::ops::device_check::{
    CHECK_BYTES, CheckMode, empty_record, plan_check, scale_list, workspace_base,
};
use crate::ops::made_for::{Fact, MadeFor};
use crate::ops::tensors::{Given, alike, given, on_machine, same};
use crate::plan::{DeviceInfo, RowSplitShape, Splits, variants};
use crate::runtime::{Launch, Launcher};
use crate::tensor::{TensorView, TensorViewMut};

/// What was decided for a request: kernels, grids, workspace. Prints as one line.
///
/// It fits every request with the same numbers of heads, head sizes, dtypes, `sliding_window`, `f32_scores`,
/// `split_policy` and `check`, with rows of query and output that are aligned to 16 bytes if its own were, and with none
/// that are not; with at most as many sequences and query tokens, and no larger bound of the sequences' lengths. Of its
/// sequences as many may take decode kernels (see [`super::UnifiedOptions::num_decodes`]) as of its own request, or
/// fewer; if all of those did, all have to. Everything else may differ: addresses, strides, the caches' sizes,
/// `softmax_scale`, `causal`, and softcap, ALiBi and sinks as far as [`DecodePlan`] allows it for decodes.
#[derive(Clone, Debug, PartialEq)]
pub struct UnifiedPlan {
    made_for: MadeFor<13>,
    decodes: Option<DecodePlan>,
    check: Option<Launch>,
    prefill: Option<Launch>,
    merge: Option<Launch>,
    splits: Splits,
    /// How a thread block of `prefill` is cut.
    shape: RowShape,
    partial_lse_offset: usize,
    partial_out_offset: usize,
    workspace_bytes: usize,
}

impl CheckedUnified<'_> {
    /// Decides kernels, grids and workspace for a machine: a pure function of shapes and numbers. Nothing
    /// depends on lengths that only the device knows.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the machine has too little shared memory for the kernel.
    pub fn plan(&self, device: &DeviceInfo) -> Result<UnifiedPlan> {
        let decodes = self
            .decodes
            .as_ref()
            .map(|decodes| decodes.plan(device))
            .transpose()?;
        let (prefill, products) = self.prefill_on(device);
        let shape = self.row_shape(products);
        if shape.shared_bytes() > device.shared_bytes_per_cta {
            return Err(Error::Unsupported {
                operation: "unified_attention",
                what: "a device with shared memory per thread block of",
                got: format!("{} bytes", device.shared_bytes_per_cta),
                supported: format!("at least {} bytes", shape.shared_bytes()),
            });
        }
        // Without other sequences, the decodes' plan has it.
        let has_rows = self.has_rows();
        let checks = has_rows && self.request.options.check == CheckMode::Device;
        let mode = if checks {
            CheckMode::Device
        } else {
            CheckMode::Off
        };
        let grid = [self.num_seqs, self.check_parts(), 1];
        let check = plan_check(mode, Variant::CheckPaged, grid);
        let ctas = self.tiles(shape.rows()) * self.num_kv_heads;
        let rows = self.num_tokens as usize * self.num_query_heads as usize;
        let splits = Splits::choose_rows(
            &RowSplitShape {
                ctas,
                max_keys: self.max_keys(shape),
                tile_kv: shape.tile_kv,
                shared_bytes: shape.shared_bytes(),
                most_ctas_per_sm: prefill.min_ctas,
                part_bytes: rows as u64 * (4 * u64::from(self.head_size_v) + 4),
            },
            device,
            self.request.options.split_policy,
        );
        let splits = match (splits.num_kv_splits, self.request.options.sliding_window) {
            // One split is one wherever a tile's keys begin.
            (1, _) => Splits {
                num_kv_splits: 1,
                split_len: self.max_seq_len.max(1).next_multiple_of(shape.tile_kv),
            },
            // Keys that do not begin where a split does may reach into one more.
            (num_kv_splits, Some(_)) => Splits {
                num_kv_splits: num_kv_splits + 1,
                ..splits
            },
            (_, None) => splits,
        };
        let prefill = has_rows.then(|| Launch {
            kernel: prefill.id,
            grid: [ctas, splits.num_kv_splits, 1],
            shared_bytes: shape.shared_bytes(),
            overlaps_previous: false,
        });
        let merge = (has_rows && splits.num_kv_splits > 1).then(|| Launch {
            kernel: variants::entry(Variant::MergeRows).id,
            grid: [ctas, 1, 1],
            shared_bytes: 0,
            overlaps_previous: true,
        });
        // The decode kernels are done with the workspace before the others begin.
        let parts = match &merge {
            Some(_) => rows * splits.num_kv_splits as usize,
            None => 0,
        };
        let partial_lse_offset = if check.is_some() { CHECK_BYTES } else { 0 };
        let partial_out_offset =
            partial_lse_offset + (parts * size_of::<Lse>()).next_multiple_of(256);
        let own_bytes = partial_out_offset + parts * self.head_size_v as usize * 4;
        let decode_bytes = decodes.as_ref().map_or(0, DecodePlan::workspace_bytes);
        Ok(UnifiedPlan {
            made_for: self.made_for(),
            decodes,
            check,
            prefill,
            merge,
            splits,
            shape,
            partial_lse_offset,
            partial_out_offset,
            workspace_bytes: own_bytes.max(decode_bytes),
        })
    }

    fn made_for(&self) -> MadeFor<13> {
        let options = &self.request.options;
        let window = options.sliding_window.unwrap_or(0);
        MadeFor {
            names: &[
                "kernel",
                "num_query_heads",
                "num_kv_heads",
                "query",
                "out",
                "rows aligned to 16 bytes",
                "f32_scores",
                "sliding_window",
                "split_policy",
                "check",
                "num_tokens",
                "num_seqs",
                "max_seq_len",
            ],
            facts: [
                Fact::Kernel(self.prefill.id),
                Fact::Number(self.num_query_heads),
                Fact::Number(self.num_kv_heads),
                Fact::Dtype(self.request.query.dtype()),
                Fact::Dtype(self.request.out.view().dtype()),
                Fact::Flag(self.in_chunks),
                Fact::Flag(options.f32_scores),
                Fact::Number(window),
                Fact::Splits(options.split_policy),
                Fact::Check(options.check),
                Fact::AtMost(self.num_tokens),
                Fact::AtMost(self.num_seqs),
                Fact::AtMost(self.max_seq_len),
            ],
        }
    }

    /// Whether the plan is right for this request: for its decodes and for its other sequences.
    fn check_plan(&self, plan: &UnifiedPlan) -> Result<(), RequestError> {
        plan.made_for.fits(&self.made_for())?;
        match (&plan.decodes, &self.decodes) {
            (_, None) => {}
            (Some(plan), Some(decodes)) => plan.fits(&decodes.made_for())?,
            (None, Some(_)) => {
                return Err(RequestError::Plan {
                    what: "num_decodes",
                    expected: "0".into(),
                    got: self.num_decodes.to_string(),
                });
            }
        }
        if plan.prefill.is_none() && self.has_rows() {
            return Err(RequestError::Plan {
                what: "sequences, all of them decodes,",
                expected: "alone".into(),
                got: format!("{} others", self.num_seqs - self.num_decodes),
            });
        }
        Ok(())
    }

    /// Whether there are sequences that do not take the decode kernels.
    fn has_rows(&self) -> bool {
        self.num_seqs > self.num_decodes
    }

    /// The same for other tensors, of the next layer for instance: looks at no more than whether they are given where
    /// these are, have the same dtypes, shapes and strides, and are aligned as well (up to 16 bytes). `softmax_scale`
    /// may differ; options may not.
    ///
    /// # Errors
    /// [`RequestError`] naming the first tensor or option that differs.
    pub fn rebind<'b>(&self, request: UnifiedRequest<'b>) -> Result<CheckedUnified<'b>>
    where
        Self: 'b,
    {
        alike(&self.request.tensors(), &request.tensors())?;
        scale("softmax_scale", request.softmax_scale)?;
        let (old, new) = (&self.request.options, &request.options);
        old.scores().same(&new.scores())?;
        same("causal", old.causal, new.causal)?;
        same("num_decodes", old.num_decodes, new.num_decodes)?;
        same("max_query_len", old.max_query_len, new.max_query_len)?;
        same("max_seq_len", old.max_seq_len, new.max_seq_len)?;
        same("f32_scores", old.f32_scores, new.f32_scores)?;
        same("split_policy", old.split_policy, new.split_policy)?;
        same("check", old.check, new.check)?;
        let starts = Starts {
            table: request.query_start_loc,
            ..self.starts
        };
        let decodes = match &self.decodes {
            None => None,
            Some(decodes) => {
                let (num_seqs, num_tokens) = (decodes.num_seqs, decodes.num_tokens);
                let part = request.decode_request(num_seqs as usize, num_tokens as usize)?;
                let rows = decodes.query_start_loc.map(|_| request.query_start_loc);
                Some(decodes.on(part, rows, Some(starts)))
            }
        };
        Ok(CheckedUnified {
            request,
            decodes,
            starts,
            ..*self
        })
    }

    /// Enqueues the plan's kernels. Allocates nothing and waits for nothing, so it can be captured into a
    /// CUDA graph.
    ///
    /// # Errors
    /// [`RequestError::Plan`] if the plan was made for something that this is not (see [`UnifiedPlan`]);
    /// [`RequestError::Machine`] for memory of another machine;
    /// [`crate::error::RequestError::Workspace`] if `workspace` (u8, 256-byte aligned) is smaller than the
    /// plan's [`UnifiedPlan::workspace_bytes`]; whatever the launcher reports.
    pub fn launch(
        &self,
        plan: &UnifiedPlan,
        workspace: &mut TensorViewMut<'_>,
        launcher: &dyn Launcher,
    ) -> Result<()> {
        self.check_plan(plan)?;
        on_machine(launcher, &self.request.tensors(), workspace)?;
        if self.num_seqs == 0 || self.num_tokens == 0 {
            let decodes = plan.decodes.as_ref().and_then(|plan| plan.check.as_ref());
            let check = plan.check.as_ref().or(decodes);
            // SAFETY: the workspace is valid until the launch has finished, as its maker promised.
            unsafe { empty_record(check, CHECK_BYTES, workspace, launcher)? };
            return Ok(());
        }
        let base = workspace_base(workspace, plan.workspace_bytes)?;
        if let (Some(decodes), Some(plan)) = (&self.decodes, &plan.decodes) {
            decodes.launch(plan, workspace, launcher)?;
        }
        let Some(prefill) = plan.prefill.as_ref().filter(|_| self.has_rows()) else {
            return Ok(());
        };
        let params = self.prefill_params(plan, base);
        let check = params.check;
        if let Some(launch) = &plan.check {
            let params = self.check_params(&params);
            let grid = [params.num_seqs, params.num_parts, 1];
            // SAFETY: the record lies in the workspace, whose size was checked.
            unsafe { launcher.zero(check, CHECK_BYTES)? };
            // SAFETY: views and workspace are valid until the launch has finished, as their makers promised.
            unsafe { launcher.launch(&Launch { grid, ..*launch }, params.as_bytes())? };
        }
        let ctas = self.tiles(plan.shape.rows()) * self.num_kv_heads;
        let grid = [ctas, prefill.grid[1], 1];
        // SAFETY: as above; `check()` made shapes and strides agree, and the plan fits them.
        unsafe { launcher.launch(&Launch { grid, ..*prefill }, params.as_bytes())? };
        if let Some(launch) = &plan.merge {
            let grid = [ctas, 1, 1];
            // SAFETY: as above.
            unsafe { launcher.launch(&Launch { grid, ..*launch }, params.as_bytes())? };
        }
        Ok(())
    }

    /// The most keys that a tile of rows sees, of those that are not decodes.
    fn max_keys(&self, shape: RowShape) -> u32 {
        let Some(window) = self.request.options.sliding_window else {
            return self.max_seq_len;
        };
        // As many before each query, with `causal` off as many after it, and the rest of the first KV tile.
        let num_queries_per_kv = self.num_query_heads / self.num_kv_heads;
        let tokens = (shape.rows().div_ceil(num_queries_per_kv) + 1).min(self.num_tokens);
        let around = tokens.saturating_add(window.saturating_mul(2)) + shape.tile_kv;
        self.max_seq_len.min(around)
    }

    /// The kernel that a device runs best, and who multiplies in it. Warp groups read queries, and write the output, 16
    /// bytes at a time.
    fn prefill_on(&self, device: &DeviceInfo) -> (&'static Entry, Products) {
        let together = match (self.query_dtype, self.cache.format) {
            _ if !self.in_chunks => None,
            (QueryDtype::E4m3, CacheDtype::E4m3) if !self.request.options.f32_scores => {
                Some(Products::WarpGroupOfBytes)
            }
            _ => Some(Products::WarpGroup),
        };
        let find = |products| {
            variants::find_prefill(
                self.cache.format,
                self.head_size,
                self.head_size_v,
                products,
            )
            .filter(|entry| device.runs(entry))
            .map(|entry| (entry, products))
        };
        together
            .and_then(find)
            .unwrap_or((self.prefill, Products::Warp))
    }

    fn row_shape(&self, products: Products) -> RowShape {
        RowShape::of(
            self.head_size,
            self.head_size_v,
            self.cache.value_bytes(),
            self.cache.token_scales(),
            products,
        )
    }

    /// Tiles of `rows` rows: enough for every division of the tokens into sequences.
    fn tiles(&self, rows: u32) -> u32 {
        let num_queries_per_kv = self.num_query_heads / self.num_kv_heads;
        self.num_tokens * num_queries_per_kv / rows + self.num_seqs - self.num_decodes
    }

    /// Thread blocks that check a sequence.
    fn check_parts(&self) -> u32 {
        check_parts(self.max_seq_len, self.block_size, self.cache.token_scales())
    }

    fn check_params(&self, prefill: &PrefillParams) -> CheckPagedParams {
        let options = &self.request.options;
        let ([q_scale, k_scale, v_scale], token_scales) =
            scales_to_check(self.request.scales.as_ref(), self.cache.token_scales());
        let output_scale = scale_list(CheckFault::OUTPUT_SCALE, options.output_scale.as_ref());
        CheckPagedParams {
            block_table: prefill.block_table,
            seq_lens: prefill.seq_lens,
            check: prefill.check,
            stride_block_table: prefill.stride_block_table,
            num_blocks: i64::try_from(self.cache.num_blocks).unwrap_or(i64::MAX),
            stride_seq_lens: prefill.stride_seq_lens,
            num_seqs: self.num_seqs,
            block_size: self.block_size,
            max_seq_len: self.max_seq_len,
            num_kv_heads: self.num_kv_heads,
            scales: [q_scale, k_scale, v_scale, output_scale],
            token_scales,
            query_start_loc: prefill.query_start_loc,
            num_tokens: self.num_tokens,
            max_query_len: self.starts.max_query_len,
            query_len: 0,
            num_decodes: self.starts.num_decodes,
            sliding_window: prefill.score.sliding_window,
            num_parts: self.check_parts(),
        }
    }

    /// The parameters for the sequences after the decodes.
    fn prefill_params(&self, plan: &UnifiedPlan, base: u64) -> PrefillParams {
        let request = &self.request;
        let options = &request.options;
        let (query, out) = (request.query.strides(), request.out.view().strides());
        let bytes = i64::from(self.cache.value_bytes());
        let (key, value) = (request.key_cache.strides(), request.value_cache.strides());
        let lse = request.lse.as_ref().map(TensorViewMut::view);
        let scales = request.scales.as_ref();
        let token_stride = |which: for<'v, 's> fn(&'v KvScales<'s>) -> &'v TensorView<'s>,
                            dim: usize| {
            let scales = scales.filter(|_| self.cache.token_scales());
            scales.map_or(0, |scales| which(scales).strides()[dim])
        };
        let stride_block_table = request.block_table.strides()[0];
        let stride_seq_lens = request.seq_lens.strides()[0];
        let skipped = i64::from(self.num_decodes);
        let after = |address: u64, stride: i64| address.wrapping_add_signed(4 * skipped * stride);
        let address = |view: Option<&TensorView<'_>>| view.map_or(0, TensorView::address);
        let num_queries_per_kv = self.num_query_heads / self.num_kv_heads;
        PrefillParams {
            query: request.query.address(),
            key_cache: request.key_cache.address(),
            value_cache: request.value_cache.address(),
            block_table: after(request.block_table.address(), stride_block_table),
            seq_lens: after(request.seq_lens.address(), stride_seq_lens),
            query_start_loc: after(request.query_start_loc.address(), 1),
            causal: options
                .causal_flags
                .map_or(0, |flags| flags.address() + u64::from(self.num_decodes)),
            out: request.out.view().address(),
            lse: address(lse),
            q_scale: address(scales.and_then(|scales| scales.q_scale.as_ref())),
            k_scale: address(scales.map(|scales| &scales.k_scale)),
            v_scale: address(scales.map(|scales| &scales.v_scale)),
            output_scale: address(options.output_scale.as_ref()),
            partial_out: base + plan.partial_out_offset as u64,
            partial_lse: base + plan.partial_lse_offset as u64,
            check: if plan.check.is_some() { base } else { 0 },
            score: options
                .scores()
                .params(request.softmax_scale, options.causal),
            stride_query_token: query[0],
            stride_query_head: query[1],
            stride_key_block_bytes: bytes * key[0],
            stride_key_slot_bytes: bytes * key[1],
            stride_key_head_bytes: bytes * key[2],
            stride_value_block_bytes: bytes * value[0],
            stride_value_slot_bytes: bytes * value[1],
            stride_value_head_bytes: bytes * value[2],
            stride_block_table,
            stride_seq_lens,
            stride_out_token: out[0],
            stride_out_head: out[1],
            stride_lse_token: lse.map_or(0, |lse| lse.strides()[0]),
            stride_lse_head: lse.map_or(0, |lse| lse.strides()[1]),
            stride_k_scale: scales.map_or(0, |scales| head_stride(&scales.k_scale)),
            stride_v_scale: scales.map_or(0, |scales| head_stride(&scales.v_scale)),
            stride_k_scale_block: token_stride(|scales| &scales.k_scale, 0),
            stride_k_scale_slot: token_stride(|scales| &scales.k_scale, 1),
            stride_v_scale_block: token_stride(|scales| &scales.v_scale, 0),
            stride_v_scale_slot: token_stride(|scales| &scales.v_scale, 1),
            num_tokens: self.num_tokens,
            num_seqs: self.num_seqs - self.num_decodes,
            num_kv_heads: self.num_kv_heads,
            by_queries_per_kv: Divider::new(num_queries_per_kv),
            by_block_size: Divider::new(self.block_size),
            num_queries_per_kv,
            block_size: self.block_size,
            max_seq_len: self.max_seq_len,
            split_len: plan.splits.split_len,
            num_kv_splits: plan.splits.num_kv_splits,
            head_size_v: self.head_size_v,
            tile_rows: plan.shape.rows(),
            tile_kv: plan.shape.tile_kv,
            reserved: 0,
            query_dtype: self.query_dtype as u32,
            out_dtype: self.out_dtype as u32,
        }
    }
}

impl<'a> UnifiedRequest<'a> {
    fn tensors(&self) -> [Given<'_, 'a>; 15] {
        let (scales, options) = (self.scales.as_ref(), &self.options);
        let slopes = options.alibi.as_ref().map(|alibi| &alibi.slopes);
        [
            Some(named("query", &self.query)),
            Some(named("key_cache", &self.key_cache)),
            Some(named("value_cache", &self.value_cache)),
            Some(named("block_table", &self.block_table)),
            Some(named("query_start_loc", &self.query_start_loc)),
            Some(named("seq_lens", &self.seq_lens)),
            Some(named("out", self.out.view())),
            given("lse", self.lse.as_ref().map(TensorViewMut::view)),
            given("q_scale", scales.and_then(|scales| scales.q_scale.as_ref())),
            given("k_scale", scales.map(|scales| &scales.k_scale)),
            given("v_scale", scales.map(|scales| &scales.v_scale)),
            given("causal_flags", options.causal_flags.as_ref()),
            given("alibi_slopes", slopes),
            given("sinks", options.sinks.as_ref()),
            given("output_scale", options.output_scale.as_ref()),
        ]
    }
}

impl UnifiedPlan {
    /// Whether scores are products of FP8, as they are stored, which the tensor cores of compute capability 9.0 add up
    /// with fewer bits than f32 has.
    pub fn multiplies_fp8(&self) -> bool {
        self.prefill.is_some() && self.shape.products == Products::WarpGroupOfBytes
    }

    /// Bytes of workspace that [`CheckedUnified::launch`] needs.
    pub fn workspace_bytes(&self) -> usize {
        self.workspace_bytes
    }
    /// How the keys of those that are not decodes are split.
    pub fn splits(&self) -> Splits {
        self.splits
    }
    /// The launches, in order: what to prepare before a graph is captured.
    pub fn launches(&self) -> impl Iterator<Item = &Launch> {
        let decodes = self.decodes.iter().flat_map(DecodePlan::launches);
        decodes
            .chain(&self.check)
            .chain(&self.prefill)
            .chain(&self.merge)
    }
}

impl fmt::Display for UnifiedPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(decodes) = &self.decodes {
            write!(f, "decodes: {decodes}")?;
            if self.prefill.is_none() {
                return Ok(());
            }
            f.write_str("; ")?;
        }
        write!(f, "tiles of {} rows, {}", self.shape.rows(), self.splits)?;
        let own = self.check.iter().chain(&self.prefill).chain(&self.merge);
        for launch in own {
            let entry = launch.kernel.entry();
            write!(
                f,
                "; {} grid {:?} x {} threads",
                entry.name, launch.grid, entry.threads
            )?;
        }
        write!(f, "; workspace {} B", self.workspace_bytes)
    }
}

/// Elements from a head's scale to the next head's: none if there is one for all.
fn head_stride(scale: &TensorView<'_>) -> i64 {
    if scale.shape() == [1] {
        0
    } else {
        scale.strides()[scale.strides().len() - 1]
    }
}
