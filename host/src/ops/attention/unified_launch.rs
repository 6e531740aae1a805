//! A checked step of unified attention at other tensors, and its launch.

use gpu_kernels::gpu::fast_divmod::FastDivmod;
use gpu_kernels::params::{CheckFault, CheckPagedParams, KernelParams, PrefillParams};

use super::decode::Starts;
use super::kv_scales::{ScaleParams, given_scales, scales_to_check};
use super::unified::{CheckedUnified, UnifiedRequest};
use super::unified_plan::UnifiedPlan;
use crate::error::Result;
use crate::ops::checks::named;
use crate::ops::device_check::{CHECK_BYTES, empty_record, scale_list, workspace_base};
use crate::ops::layout::{byte_stride, byte_strides};
use crate::ops::tensors::{Given, alike, given, on_machine};
use crate::runtime::{Launch, Launcher};
use crate::tensor::{TensorView, TensorViewMut};

impl CheckedUnified<'_> {
    /// The same for other tensors, of the next layer for instance: looks at no more than whether they are given where
    /// these are, have the same dtypes, shapes and strides, and are aligned as well (up to 16 bytes). `softmax_scale`
    /// may differ; options may not.
    ///
    /// # Errors
    /// [`crate::error::RequestError`] naming the first tensor or option that differs.
    pub fn rebind<'b>(&self, request: UnifiedRequest<'b>) -> Result<CheckedUnified<'b>>
    where
        Self: 'b,
    {
        alike(&self.request.tensors(), &request.tensors())?;
        let mods = &request.options.score_mods;
        mods.check_scale(request.softmax_scale)?;
        self.request.options.same(&request.options)?;
        let starts = Starts {
            table: request.query_start_loc,
            ..self.starts
        };
        let decodes = self.decodes_on(&request, starts)?;
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
    /// [`crate::error::RequestError::Plan`] if the plan was made for something that this is not (see [`UnifiedPlan`]);
    /// [`crate::error::RequestError::Machine`] for memory of another machine;
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
        if self.shape.num_seqs == 0 || self.num_tokens == 0 {
            let decodes = plan.decodes.as_ref().and_then(|plan| plan.check.as_ref());
            let check = plan.check.as_ref().or(decodes);
            // SAFETY: the workspace is valid until the launch has finished, as its maker promised.
            unsafe { empty_record(check, CHECK_BYTES, workspace, launcher)? };
            return Ok(());
        }
        let base = workspace_base(workspace, plan.workspace_bytes())?;
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
        let ctas = self.ctas(plan.rows);
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

    fn check_params(&self, prefill: &PrefillParams) -> CheckPagedParams {
        let options = &self.request.options;
        let ([q_scale, k_scale, v_scale], token_scales) =
            scales_to_check(self.request.scales.as_ref(), self.shape.token_scales());
        let output_scale = scale_list(CheckFault::OUTPUT_SCALE, options.output_scale.as_ref());
        CheckPagedParams {
            block_table: prefill.block_table,
            seq_lens: prefill.seq_lens,
            check: prefill.check,
            stride_block_table: prefill.stride_block_table,
            num_blocks: self.shape.num_blocks.into(),
            stride_seq_lens: prefill.stride_seq_lens,
            num_seqs: self.shape.num_seqs,
            block_size: self.shape.block_size,
            max_seq_len: self.shape.max_seq_len,
            num_kv_heads: self.shape.num_kv_heads,
            scales: [q_scale, k_scale, v_scale, output_scale],
            token_scales,
            query_start_loc: prefill.query_start_loc,
            num_tokens: self.num_tokens,
            max_query_len: self.starts.max_query_len,
            query_len: 0,
            num_decodes: self.starts.num_decodes,
            mask: prefill.score.mask,
            num_parts: self.check_parts(),
            reserved: Default::default(),
        }
    }

    /// The parameters for the sequences after the decodes.
    fn prefill_params(&self, plan: &UnifiedPlan, base: u64) -> PrefillParams {
        let request = &self.request;
        let options = &request.options;
        let [query, out] = [&request.query, request.out.view()].map(byte_strides::<2>);
        let [key, value] = [&request.key_cache, &request.value_cache].map(byte_strides::<3>);
        let lse = request.lse.as_ref().map(TensorViewMut::view);
        let lse_strides = lse.map_or([0; 2], byte_strides);
        let scales = ScaleParams::of(request.scales.as_ref());
        let stride_block_table = byte_stride(&request.block_table, 0);
        let stride_seq_lens = byte_stride(&request.seq_lens, 0);
        let stride_starts = byte_stride(&request.query_start_loc, 0);
        let skipped = i64::from(self.num_decodes);
        let after =
            |address: u64, stride: i64| address.wrapping_add_signed(skipped.wrapping_mul(stride));
        let address = |view: Option<&TensorView<'_>>| view.map_or(0, TensorView::address);
        let num_queries_per_kv = self.shape.num_queries_per_kv();
        PrefillParams {
            query: request.query.address(),
            key_cache: request.key_cache.address(),
            value_cache: request.value_cache.address(),
            block_table: after(request.block_table.address(), stride_block_table),
            seq_lens: after(request.seq_lens.address(), stride_seq_lens),
            query_start_loc: after(request.query_start_loc.address(), stride_starts),
            causal: options
                .causal_flags
                .map_or(0, |flags| flags.address() + u64::from(self.num_decodes)),
            out: request.out.view().address(),
            lse: address(lse),
            q_scale: scales.q_scale,
            k_scale: scales.k_scale,
            v_scale: scales.v_scale,
            output_scale: address(options.output_scale.as_ref()),
            partial_out: base + plan.partials.out_offset,
            partial_lse: base + plan.partials.lse_offset,
            check: if plan.check.is_some() { base } else { 0 },
            score: options
                .score_mods
                .params(request.softmax_scale, options.causal),
            stride_query_token: query[0],
            stride_query_head: query[1],
            stride_key_block: key[0],
            stride_key_slot: key[1],
            stride_key_head: key[2],
            stride_value_block: value[0],
            stride_value_slot: value[1],
            stride_value_head: value[2],
            stride_block_table,
            stride_seq_lens,
            stride_out_token: out[0],
            stride_out_head: out[1],
            stride_lse_token: lse_strides[0],
            stride_lse_head: lse_strides[1],
            stride_k_scale: scales.k_strides[2],
            stride_v_scale: scales.v_strides[2],
            stride_k_scale_block: scales.k_strides[0],
            stride_k_scale_slot: scales.k_strides[1],
            stride_v_scale_block: scales.v_strides[0],
            stride_v_scale_slot: scales.v_strides[1],
            num_tokens: self.num_tokens,
            num_seqs: self.shape.num_seqs - self.num_decodes,
            num_kv_heads: self.shape.num_kv_heads,
            by_queries_per_kv: FastDivmod::new(num_queries_per_kv),
            by_block_size: FastDivmod::new(self.shape.block_size),
            num_queries_per_kv,
            block_size: self.shape.block_size,
            max_seq_len: self.shape.max_seq_len,
            split_len: plan.splits.split_len,
            num_kv_splits: plan.splits.num_kv_splits,
            head_size_v: self.shape.head_size_v,
            tile_rows: plan.rows.rows(),
            tile_kv: plan.rows.tile_kv,
            reserved: 0,
            query_dtype: self.shape.query as u32,
            out_dtype: self.shape.out as u32,
        }
    }
}

impl<'a> UnifiedRequest<'a> {
    fn tensors(&self) -> [Given<'_, 'a>; 15] {
        let options = &self.options;
        let [q_scale, k_scale, v_scale] = given_scales(self.scales.as_ref());
        let [alibi_slopes, sinks] = options.score_mods.tensors();
        [
            Some(named("query", &self.query)),
            Some(named("key_cache", &self.key_cache)),
            Some(named("value_cache", &self.value_cache)),
            Some(named("block_table", &self.block_table)),
            Some(named("query_start_loc", &self.query_start_loc)),
            Some(named("seq_lens", &self.seq_lens)),
            Some(named("out", self.out.view())),
            given("lse", self.lse.as_ref().map(TensorViewMut::view)),
            q_scale,
            k_scale,
            v_scale,
            given("causal_flags", options.causal_flags.as_ref()),
            alibi_slopes,
            sinks,
            given("output_scale", options.output_scale.as_ref()),
        ]
    }
}
