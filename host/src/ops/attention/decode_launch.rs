//! Planning and launching a checked decode.

use std::fmt;

use gpu_kernels::dtype::HalfDtype;
use gpu_kernels::entry::{EntryId, Variant};
use gpu_kernels::kernels::merge_splits;
use gpu_kernels::lse::Lse;
use gpu_kernels::params::{CheckPagedParams, DecodeParams, KernelParams, MergeParams, ScaleList};
use gpu_kernels::tile::{QueryDtype, Shape, TILE_GROUP};

use super::decode::{CheckedDecode, DecodeOptions, DecodeRequest, Starts};
use super::paged::{KvScales, check_parts, scales_to_check};
use crate::error::{Error, RequestError, Result};
use crate::ops::checks::{named, scale};
use crate::ops::device_check::{CHECK_BYTES, CheckMode, empty_record, plan_check, workspace_base};
use crate::ops::made_for::{Fact, MadeFor};
use crate::ops::tensors::{Given, alike, given, on_machine, same};
use crate::plan::{DeviceInfo, SplitShape, Splits, variants, warp_tile_nanoseconds};
use crate::runtime::{Launch, Launcher};
use crate::tensor::{Dtype, TensorView, TensorViewMut};

/// What was decided for a request: kernels, grids, splits, workspace. Prints as one line.
///
/// It fits every request of the same kind (decode, or over latents, or over entries, with or without index lists) with
/// the same numbers of heads and of query tokens per sequence, head sizes, dtypes, `sliding_window`, `split_policy` and
/// `check`; with a softcap, ALiBi, sinks or a window if its own request had any of them, and with none if it had none;
/// and with at most as many sequences and no larger bound of their lengths (of the lists' lengths, where there are
/// lists). Everything else may differ: addresses, strides, the caches' sizes, `softmax_scale`.
#[derive(Clone, Debug, PartialEq)]
pub struct DecodePlan {
    made_for: MadeFor<12>,
    pub(super) check: Option<Launch>,
    stage1: Launch,
    merge: Option<Launch>,
    pub(super) splits: Splits,
    /// Thread blocks that share out the query heads of a KV head.
    head_tiles: u32,
    /// Tiles in a ring, where thread blocks have one.
    pub(super) stages: u32,
    pub(super) partial_lse_offset: usize,
    pub(super) partial_out_offset: usize,
    pub(super) workspace_bytes: usize,
}

impl CheckedDecode<'_> {
    /// Decides splits, grids and workspace for a machine: a pure function of shapes and numbers.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the machine has too little shared memory for the kernel.
    pub fn plan(&self, device: &DeviceInfo) -> Result<DecodePlan> {
        let num_queries_per_kv = self.num_query_heads / self.num_kv_heads;
        let head_tiles = num_queries_per_kv.div_ceil(self.heads_per_cta);
        let tile = Shape::of(
            self.head_size,
            self.head_size_v,
            self.cache_bytes,
            self.token_scales,
        );
        if tile.shared_bytes() > device.shared_bytes_per_cta {
            return Err(Error::Unsupported {
                operation: "decode",
                what: "a device with shared memory per thread block of",
                got: format!("{} bytes", device.shared_bytes_per_cta),
                supported: format!("at least {} bytes", tile.shared_bytes()),
            });
        }
        let visible = self.most_visible();
        let splits = Splits::choose(
            &SplitShape {
                num_seqs: self.num_seqs,
                ctas_per_split: self.num_kv_heads * head_tiles,
                max_seq_len: visible,
                token_bytes: self.cache_bytes * (self.head_size + self.head_size_v),
                tile_nanoseconds: warp_tile_nanoseconds(self.head_size.max(self.head_size_v)),
                cta_nanoseconds: 0.0,
                tile_len: tile.tokens_per_cta(),
                shared_bytes: self.shared_bytes(tile, visible).0,
            },
            device,
            self.request.options.split_policy,
        );
        let (shared_bytes, ring_tiles) = self.shared_bytes(tile, splits.split_len.min(visible));
        let stage1 = Launch {
            kernel: self.stage1.id,
            grid: [
                self.num_kv_heads * head_tiles,
                splits.num_kv_splits,
                self.num_seqs,
            ],
            shared_bytes,
            overlaps_previous: false,
        };
        let rows = Rows {
            num_seqs: self.num_seqs,
            query_len: 1,
            num_query_heads: self.num_query_heads,
            head_size_v: self.head_size_v,
            dtype: self.dtype,
            check_parts: self.check_parts(),
        };
        let plan = DecodePlan::around(
            stage1,
            splits,
            rows,
            self.made_for(),
            self.request.options.check,
        );
        Ok(DecodePlan {
            head_tiles,
            stages: ring_tiles,
            ..plan
        })
    }

    /// Thread blocks that check a sequence.
    fn check_parts(&self) -> u32 {
        check_parts(self.max_seq_len, self.block_size, self.token_scales)
    }

    /// The most keys that a query sees, with those that share the first one's group in the cache.
    fn most_visible(&self) -> u32 {
        match self.request.options.sliding_window {
            None => self.max_seq_len,
            Some(window) => self.max_seq_len.min(window + TILE_GROUP - 1),
        }
    }

    /// Shared memory of a thread block that has at most `split_len` tokens, and tiles in a ring.
    fn shared_bytes(&self, shape: Shape, split_len: u32) -> (u32, u32) {
        if self.ruled {
            let ring_tiles = shape.ring_tiles(split_len);
            (
                shape.shared_bytes_of(ring_tiles, self.head_size_v),
                ring_tiles,
            )
        } else {
            (shape.shared_bytes(), shape.stages)
        }
    }

    pub(super) fn made_for(&self) -> MadeFor<12> {
        DecodeFacts {
            kernel: self.stage1.id,
            num_query_heads: self.num_query_heads,
            num_kv_heads: self.num_kv_heads,
            query_len: 1,
            query: self.request.query.dtype(),
            out: self.request.out.view().dtype(),
            has_lists: false,
            num_seqs: self.num_seqs,
            max_len: self.max_seq_len,
        }
        .with(&self.request.options)
    }

    /// The same for other tensors, of the next layer for instance: looks at no more than whether they are given where
    /// these are, have the same dtypes, shapes and strides, and are aligned as well (up to 16 bytes). `softmax_scale`
    /// may differ; options may not.
    ///
    /// # Errors
    /// [`RequestError`] naming the first tensor or option that differs.
    pub fn rebind<'b>(&self, request: DecodeRequest<'b>) -> Result<CheckedDecode<'b>>
    where
        Self: 'b,
    {
        alike(&self.request.tensors(), &request.tensors())?;
        scale("softmax_scale", request.softmax_scale)?;
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
    /// [`RequestError::Plan`] if the plan was made for something that this is not (see [`DecodePlan`]);
    /// [`RequestError::Machine`] for memory of another machine;
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
        if self.num_seqs == 0 {
            return plan.launch_nothing(workspace, launcher);
        }
        let base = workspace_base(workspace, plan.workspace_bytes)?;
        let check = if plan.check.is_some() { base } else { 0 };
        let request = &self.request;
        let decode = self.decode_params(plan, base, check);
        let ([q_scale, k_scale, v_scale], token_scales) =
            scales_to_check(request.scales.as_ref(), self.token_scales);
        let starts = self.starts.as_ref();
        let checks = CheckPagedParams {
            block_table: request.block_table.address(),
            seq_lens: request.seq_lens.address(),
            check,
            stride_block_table: request.block_table.strides()[0],
            num_blocks: self.num_blocks,
            stride_seq_lens: request.seq_lens.strides()[0],
            num_seqs: self.num_seqs,
            block_size: self.block_size,
            max_seq_len: self.max_seq_len,
            num_kv_heads: self.num_kv_heads,
            scales: [q_scale, k_scale, v_scale, ScaleList::NONE],
            token_scales,
            query_start_loc: starts.map_or(0, |starts| starts.table.address()),
            num_tokens: starts.map_or(self.num_tokens, |starts| starts.num_tokens),
            max_query_len: starts.map_or(1, |starts| starts.max_query_len),
            query_len: 1,
            num_decodes: starts.map_or(0, |starts| starts.num_decodes),
            sliding_window: decode.score.sliding_window,
            num_parts: self.check_parts(),
        };
        let merge = self.merge_params(plan, &decode);
        // SAFETY: views and workspace are valid until the launch has finished, as their makers promised;
        // `check()` made shapes and strides agree, and the plan fits them.
        unsafe {
            plan.enqueue(
                launcher,
                [self.num_seqs; 2],
                &checks,
                decode.as_bytes(),
                &merge,
            )
        }
    }

    fn decode_params(&self, plan: &DecodePlan, base: u64, check: u64) -> DecodeParams {
        let request = &self.request;
        let (query, out) = (request.query.strides(), request.out.view().strides());
        let (key, value) = (request.key_cache.strides(), request.value_cache.strides());
        let lse = request.lse.as_ref().map(TensorViewMut::view);
        let scales = request.scales.as_ref();
        let token_stride = |which: for<'v, 's> fn(&'v KvScales<'s>) -> &'v TensorView<'s>,
                            dim: usize| {
            let scales = scales.filter(|_| self.token_scales);
            scales.map_or(0, |scales| which(scales).strides()[dim])
        };
        DecodeParams {
            query: request.query.address(),
            key_cache: request.key_cache.address(),
            value_cache: request.value_cache.address(),
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
            v_scale: scales.map_or(0, |scales| scales.v_scale.address()),
            check,
            query_start_loc: self.query_start_loc.as_ref().map_or(0, TensorView::address),
            score: request.options.scores().params(request.softmax_scale, true),
            stride_query_seq: query[0],
            stride_query_head: query[1],
            stride_key_block: key[0],
            stride_key_slot: key[1],
            stride_key_head: key[2],
            stride_value_block: value[0],
            stride_value_slot: value[1],
            stride_value_head: value[2],
            stride_block_table: request.block_table.strides()[0],
            stride_seq_lens: request.seq_lens.strides()[0],
            stride_out_seq: out[0],
            stride_out_head: out[1],
            stride_lse_seq: lse.map_or(0, |lse| lse.strides()[0]),
            stride_lse_head: lse.map_or(0, |lse| lse.strides()[1]),
            stride_k_scale: scales.map_or(0, |scales| head_stride(&scales.k_scale)),
            stride_v_scale: scales.map_or(0, |scales| head_stride(&scales.v_scale)),
            stride_k_scale_block: token_stride(|scales| &scales.k_scale, 0),
            stride_k_scale_slot: token_stride(|scales| &scales.k_scale, 1),
            stride_v_scale_block: token_stride(|scales| &scales.v_scale, 0),
            stride_v_scale_slot: token_stride(|scales| &scales.v_scale, 1),
            num_query_heads: self.num_query_heads,
            num_queries_per_kv: self.num_query_heads / self.num_kv_heads,
            head_tiles: plan.head_tiles,
            block_size: self.block_size,
            max_seq_len: self.max_seq_len,
            split_len: plan.splits.split_len,
            num_kv_splits: plan.splits.num_kv_splits,
            query_dtype: self.query_dtype as u32,
            out_dtype: QueryDtype::of(self.dtype) as u32,
            num_tokens: self.num_tokens,
            ring_tiles: plan.stages,
            reserved: 0,
        }
    }

    fn merge_params(&self, plan: &DecodePlan, stage1: &DecodeParams) -> MergeParams {
        MergeParams {
            partial_out: stage1.partial_out,
            partial_lse: stage1.partial_lse,
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
            num_rows: self.num_query_heads,
            num_query_heads: self.num_query_heads,
            head_size_v: self.head_size_v,
            max_seq_len: self.max_seq_len,
            split_len: plan.splits.split_len,
            num_kv_splits: plan.splits.num_kv_splits,
            sliding_window: stage1.score.sliding_window,
            sink_in_lse: u32::from(stage1.score.sinks != 0),
            num_tokens: self.num_tokens,
            reserved: 0,
        }
    }
}

/// Output rows of a decode step.
#[derive(Clone, Copy)]
pub(super) struct Rows {
    pub(super) num_seqs: u32,
    pub(super) query_len: u32,
    pub(super) num_query_heads: u32,
    pub(super) head_size_v: u32,
    pub(super) dtype: HalfDtype,
    /// Thread blocks that check a sequence.
    pub(super) check_parts: u32,
}

/// What a decode's plan depends on, beside its options.
pub(super) struct DecodeFacts {
    /// One name for each cache dtype, head size and set of rules.
    pub(super) kernel: EntryId,
    pub(super) num_query_heads: u32,
    pub(super) num_kv_heads: u32,
    pub(super) query_len: u32,
    pub(super) query: Dtype,
    pub(super) out: Dtype,
    pub(super) has_lists: bool,
    pub(super) num_seqs: u32,
    /// Tokens of the longest sequence, or entries of the lists.
    pub(super) max_len: u32,
}

impl DecodeFacts {
    pub(super) fn with(self, options: &DecodeOptions<'_>) -> MadeFor<12> {
        let window = options.sliding_window.unwrap_or(0);
        MadeFor {
            names: &[
                "kernel",
                "num_query_heads",
                "num_kv_heads",
                "query_len",
                "query",
                "out",
                "index lists",
                "sliding_window",
                "split_policy",
                "check",
                "num_seqs",
                "max_seq_len",
            ],
            facts: [
                Fact::Kernel(self.kernel),
                Fact::Number(self.num_query_heads),
                Fact::Number(self.num_kv_heads),
                Fact::Number(self.query_len),
                Fact::Dtype(self.query),
                Fact::Dtype(self.out),
                Fact::Flag(self.has_lists),
                Fact::Number(window),
                Fact::Splits(options.split_policy),
                Fact::Check(options.check),
                Fact::AtMost(self.num_seqs),
                Fact::AtMost(self.max_len),
            ],
        }
    }
}

impl DecodeOptions<'_> {
    /// Whether others are the same, but for addresses.
    pub(super) fn same(&self, new: &DecodeOptions<'_>) -> Result<(), RequestError> {
        self.scores().same(&new.scores())?;
        same("max_seq_len", self.max_seq_len, new.max_seq_len)?;
        same("split_policy", self.split_policy, new.split_policy)?;
        same("check", self.check, new.check)
    }
}

impl<'a> DecodeRequest<'a> {
    fn tensors(&self) -> [Given<'_, 'a>; 12] {
        let scales = self.scales.as_ref();
        [
            Some(named("query", &self.query)),
            Some(named("key_cache", &self.key_cache)),
            Some(named("value_cache", &self.value_cache)),
            Some(named("block_table", &self.block_table)),
            Some(named("seq_lens", &self.seq_lens)),
            Some(named("out", self.out.view())),
            given("lse", self.lse.as_ref().map(TensorViewMut::view)),
            given("q_scale", scales.and_then(|scales| scales.q_scale.as_ref())),
            given("k_scale", scales.map(|scales| &scales.k_scale)),
            given("v_scale", scales.map(|scales| &scales.v_scale)),
            given(
                "alibi_slopes",
                self.options.alibi.as_ref().map(|alibi| &alibi.slopes),
            ),
            given("sinks", self.options.sinks.as_ref()),
        ]
    }
}

impl DecodePlan {
    /// Whether it is right for a request.
    pub(super) fn fits(&self, request: &MadeFor<12>) -> Result<(), RequestError> {
        self.made_for.fits(request)
    }

    /// Adds to stage 1 what comes before and after it, and lays out the workspace: the check record, the splits'
    /// lse, their outputs.
    pub(super) fn around(
        stage1: Launch,
        splits: Splits,
        rows: Rows,
        made_for: MadeFor<12>,
        check: CheckMode,
    ) -> Self {
        let grid = [rows.num_seqs, rows.check_parts, 1];
        let check = plan_check(check, Variant::CheckPaged, grid);
        let merge = (splits.num_kv_splits > 1).then(|| Launch {
            kernel: variants::entry(Variant::MergeSplits { dtype: rows.dtype }).id,
            grid: [
                rows.num_query_heads,
                rows.num_seqs,
                rows.query_len * merge_splits::column_tiles(rows.head_size_v),
            ],
            shared_bytes: merge_splits::SHARED_BYTES,
            overlaps_previous: true,
        });
        let parts = match merge {
            Some(_) => {
                rows.num_seqs as usize
                    * (rows.query_len * rows.num_query_heads) as usize
                    * splits.num_kv_splits as usize
            }
            None => 0,
        };
        let partial_lse_offset = if check.is_some() { CHECK_BYTES } else { 0 };
        let partial_out_offset =
            partial_lse_offset + (parts * size_of::<Lse>()).next_multiple_of(256);
        Self {
            made_for,
            check,
            stage1,
            merge,
            splits,
            head_tiles: 1,
            stages: 0,
            partial_lse_offset,
            partial_out_offset,
            workspace_bytes: partial_out_offset + parts * rows.head_size_v as usize * 4,
        }
    }

    /// Nothing to do, and nothing found.
    pub(super) fn launch_nothing(
        &self,
        workspace: &TensorViewMut<'_>,
        launcher: &dyn Launcher,
    ) -> Result<()> {
        // SAFETY: the workspace is valid until the launch has finished, as its maker promised.
        unsafe { empty_record(self.check.as_ref(), CHECK_BYTES, workspace, launcher)? };
        Ok(())
    }

    /// Enqueues the kernels of a plan, on grids for `num_seqs` sequences, of which there are as many `groups` as a
    /// thread block of stage 1 takes; `check`, `stage1` and `merge` are the parameters.
    ///
    /// # Safety
    /// The parameters name tensors that are valid until the launch has finished, for so many sequences, and fit the
    /// plan.
    pub(super) unsafe fn enqueue(
        &self,
        launcher: &dyn Launcher,
        [num_seqs, groups]: [u32; 2],
        check: &CheckPagedParams,
        stage1: &[u8],
        merge: &MergeParams,
    ) -> Result<()> {
        // SAFETY: as the caller promises; the record lies in the workspace, whose size was checked.
        unsafe {
            if let Some(launch) = &self.check {
                launcher.zero(check.check, CHECK_BYTES)?;
                let grid = [check.num_seqs, check.num_parts, 1];
                launcher.launch(&Launch { grid, ..*launch }, check.as_bytes())?;
            }
            let [rows, splits, _] = self.stage1.grid;
            let grid = [rows, splits, groups];
            launcher.launch(
                &Launch {
                    grid,
                    ..self.stage1
                },
                stage1,
            )?;
            if let Some(launch) = &self.merge {
                let [heads, _, columns] = launch.grid;
                let grid = [heads, num_seqs, columns];
                launcher.launch(&Launch { grid, ..*launch }, merge.as_bytes())?;
            }
        }
        Ok(())
    }

    /// Bytes of workspace that [`CheckedDecode::launch`] needs.
    pub fn workspace_bytes(&self) -> usize {
        self.workspace_bytes
    }
    /// How the KV range is split.
    pub fn splits(&self) -> Splits {
        self.splits
    }
    /// The launches, in order: what to prepare before a graph is captured.
    pub fn launches(&self) -> impl Iterator<Item = &Launch> {
        self.check.iter().chain([&self.stage1]).chain(&self.merge)
    }
}

impl fmt::Display for DecodePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Splits {
            num_kv_splits,
            split_len,
        } = self.splits;
        write!(f, "{num_kv_splits} splits of {split_len} tokens")?;
        for launch in self.launches() {
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
