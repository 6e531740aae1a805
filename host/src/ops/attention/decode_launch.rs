//! A checked decode at other tensors, and its launch.

use gpu_kernels::params::{
    CheckPagedParams, DecodeParams, KernelParams, MergeParams, ScaleList, ScheduleParams,
};

use super::decode::{CheckedDecode, DecodeRequest, Starts};
use super::kv_scales::{ScaleParams, given_scales, scales_to_check};
use super::split_plan::{DecodePlan, Lengths};
use crate::error::Result;
use crate::ops::checks::named;
use crate::ops::device_check::workspace_base;
use crate::ops::layout::{byte_stride, byte_strides};
use crate::ops::tensors::{Given, alike, given, on_machine};
use crate::runtime::Launcher;
use crate::tensor::{TensorView, TensorViewMut};

impl CheckedDecode<'_> {
    /// The same for other tensors, of the next layer for instance: looks at no more than whether they are given where
    /// these are, have the same dtypes, shapes and strides, and are aligned as well (up to 16 bytes). `softmax_scale`
    /// may differ; options may not.
    ///
    /// # Errors
    /// [`crate::error::RequestError`] naming the first tensor or option that differs.
    pub fn rebind<'b>(&self, request: DecodeRequest<'b>) -> Result<CheckedDecode<'b>>
    where
        Self: 'b,
    {
        alike(&self.request.tensors(), &request.tensors())?;
        let mods = &request.options.score_mods;
        mods.check_scale(request.softmax_scale)?;
        self.request.options.same(&request.options)?;
        Ok(self.on(request, None, None))
    }

    /// The same numbers for a request of the same shapes, with starts of rows where this one has them.
    pub(super) fn on<'b>(
        &self,
        request: DecodeRequest<'b>,
        query_start_loc: Option<TensorView<'b>>,
        starts: Option<Starts<'b>>,
    ) -> CheckedDecode<'b>
    where
        Self: 'b,
    {
        CheckedDecode {
            request,
            query_start_loc,
            starts,
            ..*self
        }
    }

    /// Enqueues the plan's kernels. Allocates nothing and waits for nothing, so it can be captured into a
    /// CUDA graph.
    ///
    /// # Errors
    /// [`crate::error::RequestError::Plan`] if the plan was made for something that this is not (see [`DecodePlan`]);
    /// [`crate::error::RequestError::Machine`] for memory of another machine;
    /// [`crate::error::RequestError::Workspace`] if `workspace` (u8, 256-byte aligned) is smaller than the plan's
    /// [`DecodePlan::workspace_bytes`]; whatever the launcher reports.
    pub fn launch(
        &self,
        plan: &DecodePlan,
        workspace: &mut TensorViewMut<'_>,
        launcher: &dyn Launcher,
    ) -> Result<()> {
        plan.fits(&self.made_for())?;
        on_machine(launcher, &self.request.tensors(), workspace)?;
        if self.shape.num_seqs == 0 {
            return plan.launch_nothing(workspace, launcher);
        }
        let base = workspace_base(workspace, plan.workspace_bytes())?;
        let check = if plan.check.is_some() { base } else { 0 };
        let request = &self.request;
        let given = request.options.schedule.as_ref();
        let schedule = plan.schedule_at(given, base, self.lengths())?;
        let decode = DecodeParams {
            items: schedule.map_or(0, |schedule| schedule.items),
            ..self.decode_params(plan, base, check)
        };
        let ([q_scale, k_scale, v_scale], token_scales) =
            scales_to_check(request.scales.as_ref(), self.shape.token_scales());
        let starts = self.starts.as_ref();
        let checks = CheckPagedParams {
            block_table: request.block_table.address(),
            seq_lens: request.seq_lens.address(),
            check,
            stride_block_table: decode.stride_block_table,
            num_blocks: self.shape.num_blocks.into(),
            stride_seq_lens: decode.stride_seq_lens,
            num_seqs: self.shape.num_seqs,
            block_size: self.shape.block_size,
            max_seq_len: self.shape.max_seq_len,
            num_kv_heads: self.shape.num_kv_heads,
            scales: [q_scale, k_scale, v_scale, ScaleList::NONE],
            token_scales,
            query_start_loc: starts.map_or(0, |starts| starts.table.address()),
            num_tokens: starts.map_or(self.num_tokens, |starts| starts.num_tokens),
            max_query_len: starts.map_or(1, |starts| starts.max_query_len),
            query_len: 1,
            num_decodes: starts.map_or(0, |starts| starts.num_decodes),
            mask: decode.score.mask,
            num_parts: self.check_parts(),
            reserved: Default::default(),
        };
        let merge = self.merge_params(plan, &decode, schedule.as_ref());
        // SAFETY: views and workspace are valid until the launch has finished, as their makers promised;
        // `check()` made shapes and strides agree, and the plan fits them.
        unsafe {
            plan.enqueue(
                launcher,
                [self.shape.num_seqs; 2],
                (&checks).into(),
                schedule.as_ref().filter(|_| given.is_none()),
                decode.as_bytes(),
                &merge,
            )
        }
    }

    /// Enqueues the schedule of `plan` alone, which it has under [`crate::plan::SplitPolicy::Scheduled`]: launches of the
    /// same step whose [`crate::ops::DecodeOptions::schedule`] it is do not make one of their own. `out` is `[rows, 4]`,
    /// i32, contiguous, 16-byte aligned (see [`crate::plan::Runs::schedule_rows`]). Allocates nothing and waits for
    /// nothing.
    ///
    /// # Errors
    /// As [`CheckedDecode::launch`]; [`crate::error::RequestError`] for a plan without a schedule, or `out` of another
    /// shape.
    pub fn schedule(
        &self,
        plan: &DecodePlan,
        out: &mut TensorViewMut<'_>,
        workspace: &mut TensorViewMut<'_>,
        launcher: &dyn Launcher,
    ) -> Result<()> {
        plan.launch_schedule(&self.made_for(), self.lengths(), out, workspace, launcher)
    }

    fn lengths(&self) -> Lengths<'_, '_> {
        Lengths {
            seq_lens: &self.request.seq_lens,
            query_start_loc: self.query_start_loc.as_ref(),
            num_seqs: self.shape.num_seqs,
            num_tokens: self.num_tokens,
            max_seq_len: self.shape.max_seq_len,
            mask: self.request.options.score_mods.mask(),
        }
    }

    fn decode_params(&self, plan: &DecodePlan, base: u64, check: u64) -> DecodeParams {
        let request = &self.request;
        let [query, out] = [&request.query, request.out.view()].map(byte_strides::<2>);
        let [key, value] = [&request.key_cache, &request.value_cache].map(byte_strides::<3>);
        let lse = request.lse.as_ref().map(TensorViewMut::view);
        let lse_strides = lse.map_or([0; 2], byte_strides);
        let scales = ScaleParams::of(request.scales.as_ref());
        DecodeParams {
            query: request.query.address(),
            key_cache: request.key_cache.address(),
            value_cache: request.value_cache.address(),
            block_table: request.block_table.address(),
            seq_lens: request.seq_lens.address(),
            out: request.out.view().address(),
            lse: lse.map_or(0, TensorView::address),
            partial_out: base + plan.partials.out_offset,
            partial_lse: base + plan.partials.lse_offset,
            q_scale: scales.q_scale,
            k_scale: scales.k_scale,
            v_scale: scales.v_scale,
            check,
            query_start_loc: self.query_start_loc.as_ref().map_or(0, TensorView::address),
            items: 0,
            score: request
                .options
                .score_mods
                .params(request.softmax_scale, true),
            stride_query_seq: query[0],
            stride_query_head: query[1],
            stride_key_block: key[0],
            stride_key_slot: key[1],
            stride_key_head: key[2],
            stride_value_block: value[0],
            stride_value_slot: value[1],
            stride_value_head: value[2],
            stride_block_table: byte_stride(&request.block_table, 0),
            stride_seq_lens: byte_stride(&request.seq_lens, 0),
            stride_out_seq: out[0],
            stride_out_head: out[1],
            stride_lse_seq: lse_strides[0],
            stride_lse_head: lse_strides[1],
            stride_k_scale: scales.k_strides[2],
            stride_v_scale: scales.v_strides[2],
            stride_k_scale_block: scales.k_strides[0],
            stride_k_scale_slot: scales.k_strides[1],
            stride_v_scale_block: scales.v_strides[0],
            stride_v_scale_slot: scales.v_strides[1],
            num_query_heads: self.shape.num_query_heads,
            num_queries_per_kv: self.shape.num_queries_per_kv(),
            head_tiles: plan.head_tiles,
            block_size: self.shape.block_size,
            max_seq_len: self.shape.max_seq_len,
            split_len: plan.splits.split_len,
            num_kv_splits: plan.num_kv_splits(),
            query_dtype: self.shape.query as u32,
            out_dtype: self.shape.out as u32,
            num_tokens: self.num_tokens,
            ring_tiles: plan.stages,
            num_seqs: self.shape.num_seqs,
        }
    }

    fn merge_params(
        &self,
        plan: &DecodePlan,
        stage1: &DecodeParams,
        schedule: Option<&ScheduleParams>,
    ) -> MergeParams {
        let share = plan.merge_share(self.shape.num_seqs);
        MergeParams {
            partial_out: stage1.partial_out,
            partial_lse: stage1.partial_lse,
            merges: schedule.map_or(0, |schedule| schedule.merges),
            seq_lens: stage1.seq_lens,
            out: stage1.out,
            lse: stage1.lse,
            check: stage1.check,
            sink: stage1.score.sinks,
            query_start_loc: stage1.query_start_loc,
            stride_seq_lens: stage1.stride_seq_lens,
            stride_out_seq: stage1.stride_out_seq,
            stride_out_token: 0,
            stride_out_head: stage1.stride_out_head,
            stride_lse_seq: stage1.stride_lse_seq,
            stride_lse_token: 0,
            stride_lse_head: stage1.stride_lse_head,
            num_rows: self.shape.num_query_heads,
            num_query_heads: self.shape.num_query_heads,
            head_size_v: self.shape.head_size_v,
            max_seq_len: self.shape.max_seq_len,
            split_len: plan.splits.split_len,
            num_kv_splits: stage1.num_kv_splits,
            mask: stage1.score.mask,
            sink_in_lse: u32::from(stage1.score.sinks != 0),
            num_tokens: self.num_tokens,
            num_seqs: self.shape.num_seqs,
            units: share.units,
            ctas_y: share.ctas_y,
            reserved: Default::default(),
        }
    }
}

impl<'a> DecodeRequest<'a> {
    fn tensors(&self) -> [Given<'_, 'a>; 13] {
        let [q_scale, k_scale, v_scale] = given_scales(self.scales.as_ref());
        let [alibi_slopes, sinks] = self.options.score_mods.tensors();
        [
            Some(named("query", &self.query)),
            Some(named("key_cache", &self.key_cache)),
            Some(named("value_cache", &self.value_cache)),
            Some(named("block_table", &self.block_table)),
            Some(named("seq_lens", &self.seq_lens)),
            Some(named("out", self.out.view())),
            given("lse", self.lse.as_ref().map(TensorViewMut::view)),
            q_scale,
            k_scale,
            v_scale,
            alibi_slopes,
            sinks,
            given("schedule", self.options.schedule.as_ref()),
        ]
    }
}
