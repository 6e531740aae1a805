//! Planning and launching a checked decode over FP8 entries.

use gpu_kernels::entry::{EntryId, Variant};
use gpu_kernels::mla::cache_format::{EntryForm, fp8_ds, v4};
use gpu_kernels::mla::kernel_fp8::HEAD_SIZE_V;
use gpu_kernels::mla::{MlaTile, RAW_STAGES};
use gpu_kernels::params::{DecodeMlaEntryParams, DecodeMlaParams, KernelParams};

use super::mla_fp8::{CheckedDecodeMlaEntry, DecodeMlaEntryRequest, EntryTokens};
use super::mla_rows::{self, Choice, Need};
use super::split_plan::{DecodeFacts, DecodePlan};
use crate::error::Result;
use crate::ops::checks::named;
use crate::ops::device_check::{CheckParams, plan_check, workspace_base};
use crate::ops::layout::{byte_stride, byte_strides};
use crate::ops::made_for::MadeFor;
use crate::ops::tensors::{Given, alike, given, on_machine, same, same_kind};
use crate::plan::{DeviceInfo, SplitPolicy, SplitShape, Splits, variants};
use crate::runtime::{Launch, Launcher};
use crate::tensor::{TensorView, TensorViewMut};

/// Most slots of a thread block whose warps multiply for themselves: they lie in its shared memory.
const LONGEST_LIST: u32 = 4096;
/// Nanoseconds that such a warp takes to convert its entries of a tile. Of groups, one converts while others multiply.
const CONVERSION: f64 = 500.0;

impl CheckedDecodeMlaEntry<'_> {
    /// Query tokens that a thread block may take together: with index lists each has its own tokens.
    fn tokens_per_group(&self) -> u32 {
        if self.request.is_sparse() {
            1
        } else {
            self.query_len
        }
    }

    /// Groups of all sequences.
    fn groups(&self) -> u32 {
        self.shape.num_seqs * (self.query_len / self.tokens_per_group())
    }

    /// Bytes of a thread block's shared memory with the longest list that may come.
    fn most_bytes(&self, cut: MlaTile, stages: u32) -> u32 {
        let list = self
            .shape
            .max_seq_len
            .clamp(1, LONGEST_LIST)
            .next_multiple_of(cut.tile_len);
        cut.entry_shared_bytes(self.request.form, stages, list)
    }

    /// With as many thread blocks on a multiprocessor as the kernel is made for, if there is room for one raw tile each.
    fn choose(&self, device: &DeviceInfo) -> Result<Choice> {
        let need = Need {
            operation: "decode_mla_entry",
            rows: self.tokens_per_group() * self.shape.num_query_heads,
            stages: RAW_STAGES,
            shared_bytes: |cut, stages| self.most_bytes(cut, stages),
        };
        need.choose(
            variants::decode_mla_entry_entries(self.request.form),
            device,
        )
    }

    /// Decides splits, grids and workspace for a machine: a pure function of shapes and numbers.
    ///
    /// # Errors
    /// [`crate::error::Error::Unsupported`] if the machine has too little shared memory for the kernel.
    pub fn plan(&self, device: &DeviceInfo) -> Result<DecodePlan> {
        let Choice { entry, cut, stages } = self.choose(device)?;
        let options = self.request.options;
        let tokens = self.tokens_per_group();
        let groups = self.groups();
        let row_tiles = (tokens * self.shape.num_query_heads).div_ceil(cut.heads);
        let token_bytes = match self.request.form {
            EntryForm::Fp8Ds => fp8_ds::BYTES,
            EntryForm::V4 => v4::BYTES,
        };
        let (conversion, longest) = if cut.products.is_group() {
            (0.0, u32::MAX)
        } else {
            (CONVERSION, LONGEST_LIST)
        };
        let shape = SplitShape {
            num_seqs: groups,
            ctas_per_split: row_tiles,
            max_seq_len: self.shape.max_seq_len,
            token_bytes,
            tile_nanoseconds: mla_rows::tile_nanoseconds(cut, self.shape.head_size) + conversion,
            cta_nanoseconds: mla_rows::cta_nanoseconds(cut),
            tile_len: cut.tile_len,
            shared_bytes: self.most_bytes(cut, stages),
        };
        let mut splits = Splits::choose(&shape, device, options.split_policy);
        if splits.split_len > longest {
            splits = Splits::choose(&shape, device, SplitPolicy::Fixed(longest));
        }
        let stage1 = Launch {
            kernel: entry.id,
            grid: [row_tiles, splits.num_kv_splits, groups],
            shared_bytes: cut.entry_shared_bytes(self.request.form, stages, splits.split_len),
            overlaps_previous: false,
        };
        let (variant, grid) = if self.request.is_sparse() {
            (EntryId::check_lists.variant(), self.check_grid())
        } else {
            (Variant::CheckPaged, [self.shape.num_seqs, 1, 1])
        };
        let mut plan = DecodePlan::around(
            stage1,
            (splits, None),
            (&self.shape, device),
            self.query_len,
            self.made_for(),
            plan_check(options.check, variant, grid),
        );
        plan.stages = stages;
        Ok(plan)
    }

    /// Thread blocks of the check of index lists: one for each query token.
    fn check_grid(&self) -> [u32; 3] {
        [self.shape.num_seqs * self.query_len, 1, 1]
    }

    fn made_for(&self) -> MadeFor<12> {
        DecodeFacts {
            kernel: self.narrow.id,
            query_len: self.query_len,
            has_lists: self.request.is_sparse(),
        }
        .with(&self.shape, &self.request.options)
    }

    /// The same for other tensors, as [`super::CheckedDecode::rebind`].
    ///
    /// # Errors
    /// [`crate::error::RequestError`] naming the first tensor or option that differs, or `form`, `tokens` or a `block_size`.
    pub fn rebind<'b>(
        &self,
        request: DecodeMlaEntryRequest<'b>,
    ) -> Result<CheckedDecodeMlaEntry<'b>> {
        let (old, new) = (&self.request, &request);
        same("form", old.form, new.form)?;
        same_kind("tokens", old.tokens.kind(), new.tokens.kind())?;
        alike(&old.tensors(), &new.tensors())?;
        same("block_size", old.block_size, new.block_size)?;
        same(
            "window.block_size",
            old.tokens.window_block_size(),
            new.tokens.window_block_size(),
        )?;
        let mods = &new.options.score_mods;
        mods.check_scale(new.softmax_scale)?;
        old.options.same(&new.options)?;
        Ok(CheckedDecodeMlaEntry {
            lists: request.at(self.lists),
            request,
            ..*self
        })
    }

    /// Enqueues the plan's kernels. Allocates nothing and waits for nothing, so it can be captured into a CUDA
    /// graph.
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
        let stage1 = self.stage1_params(plan, base);
        let paged;
        let checks = if self.request.is_sparse() {
            // It looks at what the decode is told to read.
            CheckParams {
                record: stage1.rows.check,
                grid: self.check_grid(),
                bytes: stage1.as_bytes(),
            }
        } else {
            paged = mla_rows::checks(&stage1.rows, &self.shape);
            (&paged).into()
        };
        let merge = mla_rows::merge(&stage1.rows, plan, HEAD_SIZE_V, stage1.sink);
        let seqs = [self.shape.num_seqs, self.groups()];
        // SAFETY: views and workspace are valid until the launch has finished, as their makers promised; `check()`
        // made shapes and strides agree, and the plan fits them.
        unsafe { plan.enqueue(launcher, seqs, checks, None, stage1.as_bytes(), &merge) }
    }

    fn stage1_params(&self, plan: &DecodePlan, base: u64) -> DecodeMlaEntryParams {
        let request = &self.request;
        let [query, out] = [&request.query, request.out.view()].map(byte_strides::<3>);
        let lse = request.lse.as_ref().map(TensorViewMut::view);
        let lse_strides = lse.map_or([0; 3], byte_strides);
        let (block_table, seq_lens) = match &request.tokens {
            EntryTokens::All {
                block_table,
                seq_lens,
            } => (Some(block_table), Some(seq_lens)),
            EntryTokens::TopK { block_table, .. } => (block_table.as_ref(), None),
        };
        let address = |view: Option<&TensorView<'_>>| view.map_or(0, TensorView::address);
        let stride = |view: Option<&TensorView<'_>>| view.map_or(0, |view| byte_stride(view, 0));
        DecodeMlaEntryParams {
            rows: DecodeMlaParams {
                query: request.query.address(),
                cache: 0,
                block_table: address(block_table),
                seq_lens: address(seq_lens),
                out: request.out.view().address(),
                lse: lse.map_or(0, TensorView::address),
                partial_out: base + plan.partials.out_offset,
                partial_lse: base + plan.partials.lse_offset,
                q_scale: 0,
                k_scale: 0,
                check: if plan.check.is_some() { base } else { 0 },
                items: 0,
                stride_query_seq: query[0],
                stride_query_token: query[1],
                stride_query_head: query[2],
                stride_cache_block: 0,
                stride_cache_slot: 0,
                stride_block_table: stride(block_table),
                stride_seq_lens: stride(seq_lens),
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
                num_kv_splits: plan.splits.num_kv_splits,
                stages: plan.stages,
                qk_scale_log2: request.softmax_scale * std::f32::consts::LOG2_E,
                query_dtype: self.shape.query as u32,
                out_dtype: self.shape.out as u32,
                num_seqs: self.shape.num_seqs,
                reserved: 0,
            },
            lists: self.lists,
            sink: request.sinks.map_or(0, |sinks| sinks.address()),
            tokens_per_group: self.tokens_per_group(),
            reserved: 0,
        }
    }
}

impl<'a> DecodeMlaEntryRequest<'a> {
    fn tensors(&self) -> [Given<'_, 'a>; 11] {
        let (block_table, first, second, window) = match &self.tokens {
            EntryTokens::All {
                block_table,
                seq_lens,
            } => (
                Some(block_table),
                given("seq_lens", Some(seq_lens)),
                None,
                None,
            ),
            EntryTokens::TopK {
                topk_indices,
                topk_length,
                block_table,
                window,
            } => (
                block_table.as_ref(),
                given("topk_indices", Some(topk_indices)),
                given("topk_length", topk_length.as_ref()),
                window.as_ref(),
            ),
        };
        [
            Some(named("query", &self.query)),
            Some(named("cache", &self.cache)),
            given("block_table", block_table),
            first,
            second,
            given("window.cache", window.map(|window| &window.cache)),
            given("window.indices", window.map(|window| &window.indices)),
            given(
                "window.length",
                window.and_then(|window| window.length.as_ref()),
            ),
            given("sinks", self.sinks.as_ref()),
            Some(named("out", self.out.view())),
            given("lse", self.lse.as_ref().map(TensorViewMut::view)),
        ]
    }
}
