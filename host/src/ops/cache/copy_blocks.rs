//! `copy_blocks` and `swap_blocks`: whole blocks of a cache to other places of the same one (prefix sharing,
//! copy on write), or of another one: also to and from pinned host memory, which a GPU reads and writes by
//! its address ([`crate::runtime::Pinned`]).
//!
//! Which blocks, is in device memory, and the launch depends on the number of pairs alone: it can be captured,
//! and pairs that are not needed this time are −1. One launch copies the blocks of all layers' keys and
//! values, if their addresses are in a table.

use std::fmt;

use gpu_kernels::cache::copy_blocks;
use gpu_kernels::entry::EntryId;
use gpu_kernels::params::CopyBlocksParams;

use super::concat_and_cache_mla_grouped::CacheTable;
use crate::error::{RequestError, Result};
use crate::ops::checks::{Named, count, named};
use crate::ops::device_check::{CheckMode, plan_check};
use crate::ops::layout::{alignment, byte_stride, elements};
use crate::ops::made_for::{Fact, MadeFor};
use crate::ops::plan::{KernelPlan, overlapping};
use crate::ops::tensors::{Given, alike, given, laid_out_alike, on_machine, same, same_kind};
use crate::runtime::{Launch, Launcher};
use crate::tensor::{Dtype, TensorView, TensorViewMut};

/// What is wanted.
#[derive(Debug)]
pub struct CopyBlocksRequest<'a> {
    /// From where to where.
    pub caches: BlockCaches<'a>,
    /// `[num_pairs, 2]`, i64: source block, target block. Pairs with a negative number, and blocks outside
    /// the caches, are skipped. No target may be another pair's target, nor its source in the same cache: nothing is
    /// promised of such a block.
    pub pairs: TensorView<'a>,
    /// Whether pairs are checked on the device first: blocks outside the caches, targets that are other pairs' targets
    /// or sources. Each pair is held against all others, which takes time with the square of their number.
    pub check: CheckMode,
}

/// Caches between which blocks are copied. Of each, a block (`[block, ..]`) fills one piece of memory, in any
/// order of its dimensions, which is the same in source and target; any dtype.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "one is made for each launch")]
pub enum BlockCaches<'a> {
    /// Within one cache, `[num_blocks, ..]`.
    Within(TensorViewMut<'a>),
    /// From one to another, `[num_blocks, ..]` each.
    Between {
        /// Read.
        source: TensorView<'a>,
        /// Written.
        target: TensorViewMut<'a>,
    },
    /// From each cache of a table to the one at the same place of another (or the same) table.
    Tables {
        /// Read.
        source: CacheTable<'a>,
        /// Written.
        target: CacheTable<'a>,
    },
}

/// A request whose tensors agree with each other.
#[derive(Debug)]
pub struct CheckedCopyBlocks<'a> {
    request: CopyBlocksRequest<'a>,
    check: Option<Launch>,
    launch: Launch,
    params: CopyBlocksParams,
    is_empty: bool,
}

/// What was decided: prints as one line.
///
/// It fits every request with the same `check` and at most as many pairs and caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyBlocksPlan(KernelPlan<3>);

impl<'a> CopyBlocksRequest<'a> {
    /// Checks every tensor against the others.
    ///
    /// # Errors
    /// [`crate::error::RequestError`] naming the first tensor that does not fit.
    pub fn check(self) -> Result<CheckedCopyBlocks<'a>> {
        let pairs = named("pairs", &self.pairs);
        let [num_pairs, two] = pairs.indices(Dtype::I64, "[num_pairs, 2]")?;
        if two != 2 {
            return Err(pairs.wrong_shape("[num_pairs, 2]".into()).into());
        }
        let (source, target) = self.caches.views();
        let block_bytes = check_blocks(named("source", source), named("target", target))?;
        if !matches!(self.caches, BlockCaches::Tables { .. }) {
            named("source", source).aligned(1)?;
            named("target", target).aligned(1)?;
        }
        let num_caches = match &self.caches {
            BlockCaches::Tables { source, target } => check_tables(source, target)?,
            BlockCaches::Within(_) | BlockCaches::Between { .. } => 1,
        };
        let strides = [source, target].map(|view| byte_stride(view, 0));
        let unit = alignment(&[
            source.address(),
            target.address(),
            strides[0].cast_unsigned(),
            strides[1].cast_unsigned(),
            block_bytes,
        ]);
        let units = block_bytes / u64::from(unit);
        let units = count(
            "bytes of a block",
            usize::try_from(units).unwrap_or(usize::MAX),
        )?;
        let num_pairs = count("num_pairs", num_pairs)?;
        let grid =
            copy_blocks::grid(units, num_pairs, num_caches).ok_or_else(|| RequestError::Value {
                name: "num_pairs",
                expected: "at most 65535, of at most 65535 caches".into(),
                got: format!("{num_pairs} of {num_caches}"),
            })?;
        let params = self.at(CopyBlocksParams {
            source_table: 0,
            target_table: 0,
            source: 0,
            target: 0,
            pairs: 0,
            check: 0,
            stride_source: strides[0],
            stride_target: strides[1],
            stride_pairs: byte_stride(&self.pairs, 0),
            num_blocks_source: count("num_blocks", source.shape()[0])?,
            num_blocks_target: count("num_blocks", target.shape()[0])?,
            unit,
            units,
            num_pairs,
            num_caches,
        });
        let ctas = num_pairs.div_ceil(copy_blocks::THREADS).max(1);
        Ok(CheckedCopyBlocks {
            check: plan_check(self.check, EntryId::check_pairs.variant(), [ctas, 1, 1]),
            launch: overlapping(EntryId::copy_blocks.variant(), grid),
            params,
            is_empty: num_pairs == 0 || num_caches == 0 || units == 0,
            request: self,
        })
    }
}

/// Blocks that are alike on both sides: bytes of one.
pub(super) fn check_blocks(
    source: Named<'_, '_>,
    target: Named<'_, '_>,
) -> Result<u64, RequestError> {
    let (source_view, target_view) = (source.view, target.view);
    let dtype = source_view.dtype();
    target.dtype(&[dtype])?;
    let shape = source_view.shape();
    if shape.len() < 2 {
        return Err(source.wrong_shape("[num_blocks, ..], two dimensions at least".into()));
    }
    if target_view.shape().len() != shape.len() || target_view.shape()[1..] != shape[1..] {
        return Err(
            target.wrong_shape(format!("[num_blocks, ..] with blocks of {:?}", &shape[1..]))
        );
    }
    source.dense_from(1)?;
    target.dense_from(1)?;
    let is_alike = |dim| byte_stride(source_view, dim) == byte_stride(target_view, dim);
    if !(1..shape.len()).all(is_alike) {
        return Err(RequestError::Stride {
            tensor: target.name(),
            expected: format!(
                "blocks ordered as those of `{}`, {:?}",
                source.name(),
                source_view.strides()
            ),
            got: target_view.strides().to_vec(),
        });
    }
    let values = elements(&shape[1..]) as u64;
    Ok(values.saturating_mul(dtype.size() as u64))
}

/// Two tables of as many caches: how many.
fn check_tables(source: &CacheTable<'_>, target: &CacheTable<'_>) -> Result<u32, RequestError> {
    let addresses = named("source", &source.addresses);
    let [num_caches] = addresses.indices(Dtype::I64, "[num_caches]")?;
    let others = named("target", &target.addresses);
    others.indices::<1>(Dtype::I64, "[num_caches]")?;
    others.shape("[num_caches]", &[num_caches])?;
    count("num_caches", num_caches)
}

impl<'a> BlockCaches<'a> {
    /// How blocks lie where they are read and where they are written; with tables, without an address.
    fn views(&self) -> (&TensorView<'a>, &TensorView<'a>) {
        match self {
            Self::Within(cache) => (cache.view(), cache.view()),
            Self::Between { source, target } => (source, target.view()),
            Self::Tables { source, target } => (&source.cache, &target.cache),
        }
    }

    /// Which of them it is.
    fn kind(&self) -> &'static str {
        match self {
            Self::Within(_) => "Within",
            Self::Between { .. } => "Between",
            Self::Tables { .. } => "Tables",
        }
    }
}

impl<'a> CopyBlocksRequest<'a> {
    fn tensors(&self) -> [Given<'_, 'a>; 3] {
        let (source, target) = match &self.caches {
            BlockCaches::Within(cache) => (None, cache.view()),
            BlockCaches::Between { source, target } => (Some(source), target.view()),
            BlockCaches::Tables { source, target } => (Some(&source.addresses), &target.addresses),
        };
        [
            given("source", source),
            Some(named("target", target)),
            Some(named("pairs", &self.pairs)),
        ]
    }

    /// Parameters with the addresses of the tensors.
    fn at(&self, params: CopyBlocksParams) -> CopyBlocksParams {
        let (source, target) = self.caches.views();
        let [source_table, target_table] = match &self.caches {
            BlockCaches::Tables { source, target } => {
                [&source.addresses, &target.addresses].map(TensorView::address)
            }
            BlockCaches::Within(_) | BlockCaches::Between { .. } => [0; 2],
        };
        CopyBlocksParams {
            source_table,
            target_table,
            source: source.address(),
            target: target.address(),
            pairs: self.pairs.address(),
            ..params
        }
    }
}

impl CheckedCopyBlocks<'_> {
    /// What will be launched: a pure function of shapes.
    pub fn plan(&self) -> CopyBlocksPlan {
        let made_for = MadeFor {
            names: &["check", "num_pairs", "num_caches"],
            facts: [
                Fact::Check(self.request.check),
                Fact::AtMost(self.params.num_pairs),
                Fact::AtMost(self.params.num_caches),
            ],
        };
        CopyBlocksPlan(KernelPlan::new(made_for, self.check, self.launch))
    }

    /// The same for other tensors, of the next layer for instance: looks at no more than whether they are given where
    /// these are, have the same dtypes, shapes and strides, and are aligned as well (up to 16 bytes).
    ///
    /// # Errors
    /// [`RequestError`] naming the first tensor that differs (with tables, also if the caches' shape or strides do), or
    /// `caches` or `check`.
    pub fn rebind<'b>(&self, request: CopyBlocksRequest<'b>) -> Result<CheckedCopyBlocks<'b>> {
        let (old, new) = (&self.request, &request);
        same_kind("caches", old.caches.kind(), new.caches.kind())?;
        alike(&old.tensors(), &new.tensors())?;
        let ((old_source, old_target), (source, target)) = (old.caches.views(), new.caches.views());
        laid_out_alike(old_source, named("source", source))?;
        laid_out_alike(old_target, named("target", target))?;
        same("check", old.check, new.check)?;
        Ok(CheckedCopyBlocks {
            params: request.at(self.params),
            request,
            ..*self
        })
    }

    /// Enqueues the plan's kernels. Allocates nothing and waits for nothing.
    ///
    /// # Errors
    /// [`crate::error::RequestError::Plan`] if the plan was made for something that this is not (see [`CopyBlocksPlan`]);
    /// [`crate::error::RequestError::Machine`] for memory of another machine;
    /// [`crate::error::RequestError::Workspace`] if `workspace` (u8, 256-byte aligned) is smaller than the
    /// plan's [`CopyBlocksPlan::workspace_bytes`]; whatever the launcher reports.
    pub fn launch(
        &self,
        plan: &CopyBlocksPlan,
        workspace: &mut TensorViewMut<'_>,
        launcher: &dyn Launcher,
    ) -> Result<()> {
        let plan = plan.0.refit(self.plan().0)?;
        on_machine(launcher, &self.request.tensors(), workspace)?;
        let params = |check| CopyBlocksParams {
            check,
            ..self.params
        };
        // SAFETY: views and caches are valid until the launch has finished, as their makers promised; `check()` made
        // shapes, strides and grids agree.
        unsafe { plan.enqueue(!self.is_empty, workspace, launcher, params) }
    }
}

impl CopyBlocksPlan {
    /// Bytes of workspace that [`CheckedCopyBlocks::launch`] needs: 0 without a check.
    pub fn workspace_bytes(&self) -> usize {
        self.0.workspace_bytes
    }
    /// The launches, in order: what to prepare before a graph is captured.
    pub fn launches(&self) -> impl Iterator<Item = &Launch> {
        self.0.launches()
    }
}

impl fmt::Display for CopyBlocksPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
