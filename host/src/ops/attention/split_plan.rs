//! The plan that all decodes have: a check, a kernel over splits of the keys, and the merge of what they found.

use std::fmt;

use gpu_kernels::decode::merge as merge_splits;
use gpu_kernels::entry::{EntryId, Variant};
use gpu_kernels::params::{CheckPagedParams, KernelParams, MergeParams};

use super::options::DecodeOptions;
use super::partials::Partials;
use super::shape::AttentionShape;
use crate::error::{RequestError, Result};
use crate::ops::device_check::{CHECK_BYTES, CheckMode, empty_record, plan_check};
use crate::ops::made_for::{Fact, MadeFor};
use crate::ops::plan::Summary;
use crate::plan::{MOST_CTAS_YZ, Splits, variants};
use crate::runtime::{Launch, Launcher};
use crate::tensor::TensorViewMut;

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
    pub(super) head_tiles: u32,
    /// Tiles in a ring, where thread blocks have one.
    pub(super) stages: u32,
    pub(super) partials: Partials,
}

/// Rows of a decode step, beyond its shape.
#[derive(Clone, Copy)]
pub(super) struct Rows {
    /// Query tokens of a sequence.
    pub(super) query_len: u32,
    /// Thread blocks that check a sequence.
    pub(super) check_parts: u32,
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

    /// Adds to stage 1 what comes before and after it, and lays out the workspace.
    ///
    /// # Errors
    /// [`RequestError::Value`] for more query tokens than the merge's grid takes.
    pub(super) fn around(
        stage1: Launch,
        splits: Splits,
        shape: &AttentionShape,
        rows: Rows,
        made_for: MadeFor<12>,
        check: CheckMode,
    ) -> Result<Self, RequestError> {
        let grid = [shape.num_seqs, rows.check_parts, 1];
        let check = plan_check(check, Variant::CheckPaged, grid);
        let merge = (splits.num_kv_splits > 1)
            .then(|| merge_launch(shape, rows.query_len, splits.num_kv_splits))
            .transpose()?;
        let parts = match merge {
            Some(_) => [
                shape.num_seqs,
                rows.query_len,
                shape.num_query_heads,
                splits.num_kv_splits,
            ],
            None => [0; 4],
        };
        Ok(Self {
            made_for,
            check,
            stage1,
            merge,
            splits,
            head_tiles: 1,
            stages: 0,
            partials: Partials::new(check.is_some(), parts, shape.head_size_v),
        })
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
                let [x, _, z] = launch.grid;
                let grid = [x, num_seqs, z];
                launcher.launch(&Launch { grid, ..*launch }, merge.as_bytes())?;
            }
        }
        Ok(())
    }

    /// Bytes of workspace that [`super::CheckedDecode::launch`] needs.
    pub fn workspace_bytes(&self) -> usize {
        self.partials.workspace_bytes
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
        write!(f, "{}", self.splits)?;
        for launch in self.launches() {
            write!(f, "; {}", Summary(launch))?;
        }
        write!(f, "; workspace {} B", self.workspace_bytes())
    }
}

/// The merge of each row's splits.
fn merge_launch(
    shape: &AttentionShape,
    query_len: u32,
    num_kv_splits: u32,
) -> Result<Launch, RequestError> {
    let most = MOST_CTAS_YZ / merge_splits::column_tiles(shape.head_size_v);
    if query_len > most {
        return Err(RequestError::Value {
            name: "query_len",
            expected: format!("at most {most} where keys are split"),
            got: query_len.to_string(),
        });
    }
    let dtype = shape.half_out();
    let (x, z) = merge_splits::grid(
        shape.num_query_heads,
        shape.head_size_v,
        query_len,
        num_kv_splits,
    );
    Ok(Launch {
        kernel: variants::entry(Variant::MergeSplits { dtype }).id,
        grid: [x, shape.num_seqs, z],
        shared_bytes: merge_splits::SHARED_BYTES,
        overlaps_previous: true,
    })
}
