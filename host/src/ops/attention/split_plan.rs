//! The plan that all decodes have: a check, a kernel over splits of the keys, and the merge of what they found.

use std::fmt;

use gpu_kernels::attention::item::MergeItem;
use gpu_kernels::attention::schedule;
use gpu_kernels::entry::EntryId;
use gpu_kernels::params::{KernelParams, MaskParams, MergeParams, ScheduleParams};

use super::merge_plan::{MergePlan, MergeShare};
use super::options::DecodeOptions;
use super::partials::Partials;
use super::shape::AttentionShape;
use crate::error::{RequestError, Result};
use crate::ops::checks::named;
use crate::ops::device_check::{CHECK_BYTES, CheckParams, empty_record, workspace_base};
use crate::ops::layout::byte_stride;
use crate::ops::made_for::{Fact, MadeFor};
use crate::ops::plan::Summary;
use crate::ops::tensors::{given, on_machine};
use crate::plan::{DeviceInfo, Runs, Splits};
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
    schedule: Option<Launch>,
    stage1: Launch,
    merge: Option<MergePlan>,
    pub(super) splits: Splits,
    /// How the device cuts the batch, if it does.
    pub(super) runs: Option<Runs>,
    /// Thread blocks that share out the query heads of a KV head.
    pub(super) head_tiles: u32,
    /// Tiles in a ring, where thread blocks have one.
    pub(super) stages: u32,
    pub(super) partials: Partials,
}

/// What a decode's plan depends on, beside its shape and its options.
pub(super) struct DecodeFacts {
    /// One name for each cache dtype, head size and set of rules.
    pub(super) kernel: EntryId,
    pub(super) query_len: u32,
    pub(super) has_lists: bool,
}

impl DecodeFacts {
    pub(super) fn with(self, shape: &AttentionShape, options: &DecodeOptions<'_>) -> MadeFor<12> {
        MadeFor {
            names: &[
                "kernel",
                "num_query_heads",
                "num_kv_heads",
                "query_len",
                "query",
                "out",
                "index lists",
                "mask",
                "split_policy",
                "check",
                "num_seqs",
                "max_seq_len",
            ],
            facts: [
                Fact::Kernel(self.kernel),
                Fact::Number(shape.num_query_heads),
                Fact::Number(shape.num_kv_heads),
                Fact::Number(self.query_len),
                Fact::Dtype(shape.query.dtype()),
                Fact::Dtype(shape.out.dtype()),
                Fact::Flag(self.has_lists),
                Fact::Mask(options.score_mods.mask()),
                Fact::Splits(options.split_policy),
                Fact::Check(options.check),
                Fact::AtMost(shape.num_seqs),
                Fact::AtMost(shape.max_seq_len),
            ],
        }
    }
}

impl DecodePlan {
    /// Whether it is right for a request.
    pub(super) fn fits(&self, request: &MadeFor<12>) -> Result<(), RequestError> {
        self.made_for.fits(request)
    }

    /// Adds to a check, if there is one, and stage 1, whose grid is that of splits, what else comes before and after, and
    /// lays out the workspace. Sequences have `query_len` query tokens.
    pub(super) fn around(
        stage1: Launch,
        (splits, runs): (Splits, Option<Runs>),
        (shape, device): (&AttentionShape, &DeviceInfo),
        query_len: u32,
        made_for: MadeFor<12>,
        check: Option<Launch>,
    ) -> Self {
        let (num_kv_splits, num_parts) = match runs {
            Some(runs) => (runs.num_runs, [runs.num_parts(), 1]),
            None => (splits.num_kv_splits, [shape.num_seqs, splits.num_kv_splits]),
        };
        let merge = (num_kv_splits > 1)
            .then(|| MergePlan::new((shape, device), query_len, num_kv_splits, runs));
        let parts = match merge {
            Some(_) => {
                let [a, b] = num_parts;
                [a, b, query_len, shape.num_query_heads]
            }
            None => [0; 4],
        };
        let schedule = runs.map(|_| Launch {
            kernel: EntryId::schedule,
            grid: [1; 3],
            shared_bytes: schedule::SHARED_BYTES,
            overlaps_previous: false,
        });
        let room = runs.map(|runs| (runs.schedule_rows(shape.num_seqs), shape.num_seqs));
        let grid = stage1_grid(stage1.grid, runs, shape.num_seqs);
        Self {
            made_for,
            partials: Partials::with_schedule(check.is_some(), room, parts, shape.head_size_v),
            check,
            schedule,
            stage1: Launch { grid, ..stage1 },
            merge,
            splits,
            runs,
            head_tiles: 1,
            stages: 0,
        }
    }

    /// Splits of the longest sequence, or runs.
    pub(super) fn num_kv_splits(&self) -> u32 {
        self.runs
            .map_or(self.splits.num_kv_splits, |runs| runs.num_runs)
    }

    /// How the merge of `num_seqs` sequences is shared out.
    pub(super) fn merge_share(&self, num_seqs: u32) -> MergeShare {
        match &self.merge {
            Some(merge) => merge.share(num_seqs),
            None => MergeShare::NONE,
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
    /// thread block of stage 1 takes; `check`, `stage1` and `merge` are the parameters, and `schedule` those of the
    /// schedule, if it is not given.
    ///
    /// # Safety
    /// The parameters name tensors that are valid until the launch has finished, for so many sequences, and fit the
    /// plan.
    pub(super) unsafe fn enqueue(
        &self,
        launcher: &dyn Launcher,
        [num_seqs, groups]: [u32; 2],
        check: CheckParams<'_>,
        schedule: Option<&ScheduleParams>,
        stage1: &[u8],
        merge: &MergeParams,
    ) -> Result<()> {
        // SAFETY: this function's contract; the record lies in the workspace, whose size was checked.
        unsafe {
            if let Some(launch) = &self.check {
                launcher.zero(check.record, CHECK_BYTES)?;
                let grid = check.grid;
                launcher.launch(&Launch { grid, ..*launch }, check.bytes)?;
            }
            if let (Some(launch), Some(schedule)) = (&self.schedule, schedule) {
                launcher.launch(launch, schedule.as_bytes())?;
            }
            let [rows, splits, _] = self.stage1.grid;
            let grid = stage1_grid([rows, splits, groups], self.runs, num_seqs);
            launcher.launch(
                &Launch {
                    grid,
                    ..self.stage1
                },
                stage1,
            )?;
            if let Some(MergePlan { launch, .. }) = &self.merge {
                let [x, _, z] = launch.grid;
                let grid = [x, merge.ctas_y, z];
                launcher.launch(&Launch { grid, ..*launch }, merge.as_bytes())?;
            }
        }
        Ok(())
    }

    /// The schedule that the launch of a request reads, if its plan has one: `given`, or one in the workspace at `base`.
    ///
    /// # Errors
    /// [`RequestError`] for one that is given and not of this plan.
    pub(super) fn schedule_at(
        &self,
        given: Option<&TensorView<'_>>,
        base: u64,
        lengths: Lengths<'_, '_>,
    ) -> Result<Option<ScheduleParams>, RequestError> {
        let Some(runs) = self.runs else {
            return match given {
                None => Ok(None),
                Some(_) => Err(RequestError::Value {
                    name: "schedule",
                    expected: "none, as `split_policy` is not Scheduled".into(),
                    got: "given".into(),
                }),
            };
        };
        let merges = match given {
            Some(view) => {
                check_schedule(view, runs, lengths.num_seqs)?;
                view.address()
            }
            None => base + self.partials.schedule_offset,
        };
        Ok(Some(ScheduleParams {
            seq_lens: lengths.seq_lens.address(),
            query_start_loc: lengths.query_start_loc.map_or(0, TensorView::address),
            merges,
            items: merges + MergeItem::BYTES * (1 + u64::from(runs.most_merges(lengths.num_seqs))),
            line: base + self.partials.line_offset,
            stride_seq_lens: byte_stride(lengths.seq_lens, 0),
            num_seqs: lengths.num_seqs,
            num_tokens: lengths.num_tokens,
            max_seq_len: lengths.max_seq_len,
            num_runs: runs.num_runs,
            tile_len: runs.tile_len,
            ends: runs.ends,
            least_tiles: runs.least_tiles,
            merge_tiles: runs.merge_tiles,
            parts_per_tile: runs.parts_per_tile,
            mask: lengths.mask,
            reserved: Default::default(),
        }))
    }

    /// Enqueues the kernel that makes the schedule, into `out`, for a request with the facts of `request`.
    ///
    /// # Errors
    /// [`RequestError`] for a plan that does not fit or has no schedule, memory of another machine, or a tensor or
    /// workspace that is not large enough; whatever the launcher reports.
    pub(super) fn launch_schedule(
        &self,
        request: &MadeFor<12>,
        lengths: Lengths<'_, '_>,
        out: &mut TensorViewMut<'_>,
        workspace: &mut TensorViewMut<'_>,
        launcher: &dyn Launcher,
    ) -> Result<()> {
        self.fits(request)?;
        let own = [
            Some(named("seq_lens", lengths.seq_lens)),
            given("query_start_loc", lengths.query_start_loc),
            Some(named("schedule", out.view())),
        ];
        on_machine(launcher, &own, workspace)?;
        let base = workspace_base(workspace, self.workspace_bytes())?;
        let Some(launch) = &self.schedule else {
            return Err(RequestError::Value {
                name: "split_policy",
                expected: "Scheduled".into(),
                got: "another".into(),
            }
            .into());
        };
        if let Some(params) = self.schedule_at(Some(out.view()), base, lengths)? {
            // SAFETY: views and workspace are valid until the launch has finished, as their makers promised; `out` and the
            // workspace are as large as the plan says, as was checked.
            unsafe { launcher.launch(launch, params.as_bytes())? };
        }
        Ok(())
    }

    /// Bytes of workspace that [`super::CheckedDecode::launch`] needs.
    pub fn workspace_bytes(&self) -> usize {
        self.partials.workspace_bytes
    }
    /// How the KV range is split, if the device does not decide.
    pub fn splits(&self) -> Splits {
        self.splits
    }
    /// How the device cuts the batch, under [`crate::plan::SplitPolicy::Scheduled`].
    pub fn runs(&self) -> Option<Runs> {
        self.runs
    }
    /// The launches, in order: what to prepare before a graph is captured.
    pub fn launches(&self) -> impl Iterator<Item = &Launch> {
        let before = self.check.iter().chain(&self.schedule);
        let merge = self.merge.iter().map(|merge| &merge.launch);
        before.chain([&self.stage1]).chain(merge)
    }
}

impl fmt::Display for DecodePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.runs {
            Some(runs) => runs.fmt(f)?,
            None => self.splits.fmt(f)?,
        }
        for launch in self.launches() {
            write!(f, "; {}", Summary(launch))?;
        }
        write!(f, "; workspace {} B", self.workspace_bytes())
    }
}

/// Which sequences a schedule is made for, as its kernel is told.
#[derive(Clone, Copy)]
pub(super) struct Lengths<'r, 'a> {
    pub(super) seq_lens: &'r TensorView<'a>,
    pub(super) query_start_loc: Option<&'r TensorView<'a>>,
    pub(super) num_seqs: u32,
    pub(super) num_tokens: u32,
    pub(super) max_seq_len: u32,
    pub(super) mask: MaskParams,
}

/// The grid of stage 1 for `num_seqs` sequences: `by_splits`, or an item for each y where there are runs.
fn stage1_grid(by_splits: [u32; 3], runs: Option<Runs>, num_seqs: u32) -> [u32; 3] {
    match runs {
        Some(runs) => [by_splits[0], runs.most_items(num_seqs), 1],
        None => by_splits,
    }
}

/// Whether a tensor has room for a schedule of so many runs and sequences.
fn check_schedule(view: &TensorView<'_>, runs: Runs, num_seqs: u32) -> Result<(), RequestError> {
    let schedule = named("schedule", view);
    schedule.dtype(&[Dtype::I32])?;
    schedule.shape("[rows, 4]", &[runs.schedule_rows(num_seqs), 4])?;
    schedule.dense_from(0)?;
    schedule.aligned(16)
}
