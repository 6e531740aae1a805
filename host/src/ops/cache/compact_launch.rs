//! A checked compaction's plan, and its launch.

use std::fmt;

use gpu_kernels::cache::compact;
use gpu_kernels::entry::EntryId;
use gpu_kernels::params::{CompactParams, GatherParams, KernelParams};

use super::compact::{BlockGather, CheckedCompact, CompactRequest, launch};
use crate::error::Result;
use crate::ops::checks::named;
use crate::ops::device_check::{CHECK_BYTES, empty_record, plan_check, workspace_base};
use crate::ops::made_for::{Fact, MadeFor};
use crate::ops::tensors::{Given, alike, on_machine, same, same_kind};
use crate::runtime::{Launch, Launcher};
use crate::tensor::{TensorView, TensorViewMut};

/// What was decided: prints as one line.
///
/// It fits every request with the same `check` and references of the same kind, at most as many of them (sequences, or
/// slots), at most as many caches, and at most as many blocks in each, before and after.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompactPlan {
    made_for: MadeFor<6>,
    check: Option<Launch>,
    launches: Vec<Launch>,
    num_blocks: u32,
    num_compact_blocks: u32,
}

impl CheckedCompact<'_> {
    /// What will be launched: a pure function of shapes.
    pub fn plan(&self) -> CompactPlan {
        let params = &self.params;
        let walk = compact::walk_grid(params.num_rows, params.seq_lens == 0);
        let number = compact::number_grid(params.num_blocks);
        let names = [
            launch(EntryId::compact_mark.variant(), walk, 0),
            launch(
                EntryId::compact_number.variant(),
                number,
                compact::SHARED_BYTES,
            ),
            launch(EntryId::compact_rename.variant(), walk, 0),
        ];
        let gathers = self.gathers.iter().map(|gather| gather.launch);
        CompactPlan {
            made_for: MadeFor {
                names: &[
                    "references that are slots",
                    "references",
                    "caches",
                    "num_blocks",
                    "num_compact_blocks",
                    "check",
                ],
                facts: [
                    Fact::Flag(params.seq_lens == 0),
                    Fact::AtMost(params.num_rows),
                    Fact::AtMost(u32::try_from(self.gathers.len()).unwrap_or(u32::MAX)),
                    Fact::AtMost(params.num_blocks),
                    Fact::AtMost(params.num_compact_blocks),
                    Fact::Check(self.request.check),
                ],
            },
            check: plan_check(self.request.check, EntryId::check_compact.variant(), walk),
            launches: names.into_iter().chain(gathers).collect(),
            num_blocks: params.num_blocks,
            num_compact_blocks: params.num_compact_blocks,
        }
    }

    /// The same for other tensors, of the next layers for instance: looks at no more than whether they are given where
    /// these are, have the same dtypes, shapes and strides, and are aligned as well (up to 16 bytes).
    ///
    /// # Errors
    /// [`crate::error::RequestError`] naming the first tensor that differs, or `caches` (another number of them),
    /// `references`, `block_size` or `check`.
    pub fn rebind<'b>(&self, request: CompactRequest<'b>) -> Result<CheckedCompact<'b>> {
        let old = &self.request;
        same_kind(
            "references",
            old.references.kind(),
            request.references.kind(),
        )?;
        same("caches", old.caches.len(), request.caches.len())?;
        for (old, new) in old.caches.iter().zip(&request.caches) {
            alike(&pair(old), &pair(new))?;
        }
        alike(&old.tensors(), &request.tensors())?;
        same("block_size", old.block_size, request.block_size)?;
        same("check", old.check, request.check)?;
        let gathers = self.gathers.iter().zip(&request.caches);
        Ok(CheckedCompact {
            params: request.at(self.params),
            gathers: gathers
                .map(|(gather, (pool, compact))| gather.at(pool, compact.view()))
                .collect(),
            request,
        })
    }

    /// Enqueues the plan's kernels. Allocates nothing and waits for nothing.
    ///
    /// # Errors
    /// [`crate::error::RequestError::Plan`] if the plan was made for something that this is not (see [`CompactPlan`]);
    /// [`crate::error::RequestError::Machine`] for memory of another machine;
    /// [`crate::error::RequestError::Workspace`] if `workspace` (u8, 256-byte aligned) is smaller than the
    /// plan's [`CompactPlan::workspace_bytes`]; whatever the launcher reports.
    pub fn launch(
        &self,
        plan: &CompactPlan,
        workspace: &mut TensorViewMut<'_>,
        launcher: &dyn Launcher,
    ) -> Result<()> {
        let own = self.plan();
        plan.made_for.fits(&own.made_for)?;
        let plan = own;
        for caches in &self.request.caches {
            on_machine(launcher, &pair(caches), workspace)?;
        }
        on_machine(launcher, &self.request.tensors(), workspace)?;
        let base = workspace_base(workspace, plan.workspace_bytes())?;
        let [marks, new_ids, old_ids] = plan.parts().map(|at| base + at as u64);
        // SAFETY: the workspace is valid until the launch has finished, as its maker promised.
        let check = unsafe { empty_record(plan.check.as_ref(), CHECK_BYTES, workspace, launcher)? };
        let params = CompactParams {
            check,
            marks,
            new_ids,
            old_ids,
            ..self.params
        };
        let (names, gathers) = plan.launches.split_at(3);
        // SAFETY: the marks lie in the workspace, whose size was checked.
        unsafe { launcher.zero(marks, 4 * plan.num_blocks as usize)? };
        let checks = plan.check.iter().map(|launch| (launch, true));
        for (launch, is_walk) in checks.chain(names.iter().zip([true, false, true])) {
            if is_walk && params.num_rows == 0 {
                continue;
            }
            // SAFETY: views and workspace are valid until the launch has finished, as their makers promised;
            // `check()` made shapes and strides agree.
            unsafe { launcher.launch(launch, params.as_bytes())? };
        }
        for (launch, gather) in gathers.iter().zip(&self.gathers) {
            let params = GatherParams {
                rows: old_ids,
                check,
                ..gather.params
            };
            if params.num_rows > 0 {
                // SAFETY: as above; the ids are those of blocks of the pool.
                unsafe { launcher.launch(launch, params.as_bytes())? };
            }
        }
        Ok(())
    }
}

impl CompactPlan {
    /// Where marks, new ids and old ids begin in the workspace; before them is the check's record, if there is one.
    fn parts(&self) -> [usize; 3] {
        let ids = (4 * self.num_blocks as usize).next_multiple_of(256);
        let marks = self.check.map_or(0, |_| CHECK_BYTES);
        [marks, marks + ids, marks + 2 * ids]
    }
    /// Bytes of workspace that [`CheckedCompact::launch`] needs.
    pub fn workspace_bytes(&self) -> usize {
        self.parts()[2] + 4 * self.num_compact_blocks as usize
    }
    /// The launches, in order: what to prepare before a graph is captured.
    pub fn launches(&self) -> impl Iterator<Item = &Launch> {
        self.check.iter().chain(&self.launches)
    }
}

impl fmt::Display for CompactPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self
            .launches()
            .map(|launch| launch.kernel.entry().name)
            .collect();
        write!(
            f,
            "{}, {} bytes of workspace",
            names.join(", "),
            self.workspace_bytes()
        )
    }
}

/// A pool and its compact cache.
fn pair<'v, 'a>((pool, compact): &'v (TensorView<'a>, TensorViewMut<'a>)) -> [Given<'v, 'a>; 2] {
    [pool, compact.view()].map(|cache| Some(named("caches", cache)))
}

impl BlockGather {
    /// The same of other caches.
    fn at(&self, pool: &TensorView<'_>, compact: &TensorView<'_>) -> Self {
        let params = GatherParams {
            cache: pool.address(),
            out: compact.address(),
            ..self.params
        };
        Self { params, ..*self }
    }
}
