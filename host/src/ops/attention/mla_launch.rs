//! Planning and launching a checked decode over latents.

use gpu_kernels::entry::Variant;
use gpu_kernels::mla::{MlaTile, STAGES};
use gpu_kernels::params::{DecodeMlaParams, KernelParams, MaskParams, MergeParams};

use super::mla::{CheckedDecodeMla, DecodeMlaRequest};
use super::mla_rows::{self, Choice, Need};
use super::split_plan::{DecodeFacts, DecodePlan, Lengths};
use crate::error::Result;
use crate::ops::checks::named;
use crate::ops::device_check::{plan_check, workspace_base};
use crate::ops::layout::{byte_stride, byte_strides};
use crate::ops::made_for::MadeFor;
use crate::ops::tensors::{Given, alike, given, on_machine};
use crate::plan::{DeviceInfo, SplitShape, Splits, variants};
use crate::runtime::{Launch, Launcher};
use crate::tensor::{TensorView, TensorViewMut};

impl CheckedDecodeMla<'_> {
    fn rows(&self) -> u32 {
        self.query_len * self.shape.num_query_heads
    }

    fn choose(&self, device: &DeviceInfo) -> Result<Choice> {
        let shape = &self.shape;
        let kernels =
            variants::decode_mla_entries(shape.cache, shape.head_size, shape.head_size_v)?;
        let need = Need {
            operation: "decode_mla",
            rows: self.rows(),
            stages: STAGES,
            shared_bytes: |cut: MlaTile, stages| cut.shared_bytes(stages),
        };
        need.choose(kernels, device)
    }

    /// Decides splits, grids and workspace for a machine: a pure function of shapes and numbers.
    ///
    /// # Errors
    /// [`crate::error::Error::Unsupported`] if the machine has too little shared memory for the kernel.
    pub fn plan(&self, device: &DeviceInfo) -> Result<DecodePlan> {
        let Choice { entry, cut, stages } = self.choose(device)?;
        let row_tiles = self.rows().div_ceil(cut.heads);
        let split_shape = SplitShape {
            num_seqs: self.shape.num_seqs,
            ctas_per_split: row_tiles,
            max_seq_len: self.shape.max_seq_len,
            token_bytes: self.shape.value_bytes() * self.shape.head_size,
            tile_nanoseconds: mla_rows::tile_nanoseconds(cut, self.shape.head_size),
            cta_nanoseconds: mla_rows::cta_nanoseconds(cut),
            tile_len: cut.tile_len,
            shared_bytes: cut.shared_bytes(stages),
        };
        let policy = self.request.options.split_policy;
        let splits = Splits::choose(&split_shape, device, policy);
        let runs = policy.runs(&split_shape, device);
        let stage1 = Launch {
            kernel: entry.id,
            grid: [row_tiles, splits.num_kv_splits, self.shape.num_seqs],
            shared_bytes: cut.shared_bytes(stages),
            overlaps_previous: false,
        };
        let check = plan_check(
            self.request.options.check,
            Variant::CheckPaged,
            [self.shape.num_seqs, 1, 1],
        );
        let mut plan = DecodePlan::around(
            stage1,
            (splits, runs),
            (&self.shape, device),
            self.query_len,
            self.made_for(),
            check,
        );
        plan.stages = stages;
        Ok(plan)
    }

    fn made_for(&self) -> MadeFor<12> {
        DecodeFacts {
            kernel: self.narrow.id,
            query_len: self.query_len,
            has_lists: false,
        }
        .with(&self.shape, &self.request.options)
    }

    /// The same for other tensors, as [`super::CheckedDecode::rebind`].
    ///
    /// # Errors
    /// [`crate::error::RequestError`] naming the first tensor or option that differs.
    pub fn rebind<'b>(&self, request: DecodeMlaRequest<'b>) -> Result<CheckedDecodeMla<'b>>
    where
        Self: 'b,
    {
        alike(&self.request.tensors(), &request.tensors())?;
        let mods = &request.options.score_mods;
        mods.check_scale(request.softmax_scale)?;
        self.request.options.same(&request.options)?;
        Ok(CheckedDecodeMla { request, ..*self })
    }

    /// Enqueues the plan's kernels. Allocates nothing and waits for nothing, so it can be captured into a CUDA
    /// graph.
    ///
    /// # Errors
    /// [`crate::error::RequestError::Plan`] if the plan was made for something that this is not (see [`DecodePlan`]);
    /// [`crate::error::RequestError::Machine`] for memory of another machine; [`crate::error::RequestError::Workspace`] if `workspace` (u8, 256-byte aligned) is smaller than the plan's
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
        let given = self.request.options.schedule.as_ref();
        let schedule = plan.schedule_at(given, base, self.lengths())?;
        let stage1 = DecodeMlaParams {
            items: schedule.map_or(0, |schedule| schedule.items),
            ..self.stage1_params(plan, base)
        };
        let checks = mla_rows::checks(&stage1, &self.shape);
        let merges = schedule.map_or(0, |schedule| schedule.merges);
        let merge = MergeParams {
            merges,
            ..mla_rows::merge(&stage1, plan, self.shape.head_size_v, 0)
        };
        let seqs = [self.shape.num_seqs; 2];
        // SAFETY: views and workspace are valid until the launch has finished, as their makers promised; `check()`
        // made shapes and strides agree, and the plan fits them.
        unsafe {
            plan.enqueue(
                launcher,
                seqs,
                (&checks).into(),
                schedule.as_ref().filter(|_| given.is_none()),
                stage1.as_bytes(),
                &merge,
            )
        }
    }

    /// Enqueues the schedule of `plan` alone, as [`super::CheckedDecode::schedule`].
    ///
    /// # Errors
    /// As there.
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
            query_start_loc: None,
            num_seqs: self.shape.num_seqs,
            num_tokens: 0,
            max_seq_len: self.shape.max_seq_len,
            mask: MaskParams::ALL,
        }
    }

    fn stage1_params(&self, plan: &DecodePlan, base: u64) -> DecodeMlaParams {
        let request = &self.request;
        let [query, out] = [&request.query, request.out.view()].map(byte_strides::<3>);
        let cache = byte_strides::<2>(&request.cache);
        let lse = request.lse.as_ref().map(TensorViewMut::view);
        let lse_strides = lse.map_or([0; 3], byte_strides);
        let scales = request.scales.as_ref();
        DecodeMlaParams {
            query: request.query.address(),
            cache: request.cache.address(),
            block_table: request.block_table.address(),
            seq_lens: request.seq_lens.address(),
            out: request.out.view().address(),
            lse: lse.map_or(0, TensorView::address),
            partial_out: base + plan.partials.out_offset,
            partial_lse: base + plan.partials.lse_offset,
            q_scale: scales
                .and_then(|scales| scales.q_scale)
                .map_or(0, |scale| scale.address()),
            k_scale: scales.map_or(0, |scales| scales.k_scale.address()),
            check: if plan.check.is_some() { base } else { 0 },
            items: 0,
            stride_query_seq: query[0],
            stride_query_token: query[1],
            stride_query_head: query[2],
            stride_cache_block: cache[0],
            stride_cache_slot: cache[1],
            stride_block_table: byte_stride(&request.block_table, 0),
            stride_seq_lens: byte_stride(&request.seq_lens, 0),
            stride_out_seq: out[0],
            stride_out_token: out[1],
            stride_out_head: out[2],
            stride_lse_seq: lse_strides[0],
            stride_lse_token: lse_strides[1],
            stride_lse_head: lse_strides[2],
            num_query_heads: self.shape.num_query_heads,
            query_len: self.query_len,
            block_size: self.shape.block_size,
            max_seq_len: self.shape.max_seq_len,
            split_len: plan.splits.split_len,
            num_kv_splits: plan.num_kv_splits(),
            stages: plan.stages,
            qk_scale_log2: request.softmax_scale * std::f32::consts::LOG2_E,
            query_dtype: self.shape.query as u32,
            out_dtype: self.shape.out as u32,
            num_seqs: self.shape.num_seqs,
            reserved: 0,
        }
    }
}

impl<'a> DecodeMlaRequest<'a> {
    fn tensors(&self) -> [Given<'_, 'a>; 9] {
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
            given("schedule", self.options.schedule.as_ref()),
        ]
    }
}
