//! `copy_blocks` and `swap_blocks`: whole blocks of a cache to other places of the same one (prefix sharing,
//! copy on write), or of another one: also to and from pinned host memory, which a GPU reads and writes by
//! its address ([`crate::runtime::Pinned`]).
//!
//! Which blocks, is in device memory, and the launch depends on the number of pairs alone: it can be captured,
//! and pairs that are not needed this time are −1. One launch copies the blocks of all layers' keys and
//! values, if their addresses are in a table.

use std::fmt;

use gpu_kernels::entry::Variant;
use gpu_kernels::kernels::copy_blocks;
use gpu_kernels::params::{CopyBlocksParams, KernelParams};

use super::concat_and_cache_mla_grouped::CacheTable;
use crate::error::{RequestError, Result};
use crate::ops::checks::{Named, count, named};
use crate::ops::device_check::{CHECK_BYTES, CheckMode, empty_record, plan_check};
use crate::ops::layout::{alignment, byte_stride};
use crate::ops::made_for::{Fact, MadeFor};
use crate::ops::tensors::{Given, given, on_machine};
use crate::plan::variants;
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
pub struct CopyBlocksPlan {
    made_for: MadeFor<3>,
    check: Option<Launch>,
    launch: Launch,
}

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
        let (source, target) = match &self.caches {
            BlockCaches::Within(cache) => (cache.view(), cache.view()),
            BlockCaches::Between { source, target } => (source, target.view()),
            BlockCaches::Tables { source, target } => (&source.cache, &target.cache),
        };
        let block_bytes = check_blocks(named("source", source), named("target", target))?;
        if !matches!(self.caches, BlockCaches::Tables { .. }) {
            named("source", source).aligned(1)?;
            named("target", target).aligned(1)?;
        }
        let (tables, num_caches) = match &self.caches {
            BlockCaches::Tables { source, target } => check_tables(source, target)?,
            _ => ([0; 2], 1),
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
        let params = CopyBlocksParams {
            source_table: tables[0],
            target_table: tables[1],
            source: source.address(),
            target: target.address(),
            pairs: self.pairs.address(),
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
        };
        let ctas = num_pairs.div_ceil(copy_blocks::THREADS).max(1);
        Ok(CheckedCopyBlocks {
            check: plan_check(self.check, Variant::CheckPairs, [ctas, 1, 1]),
            launch: Launch {
                kernel: variants::entry(Variant::CopyBlocks).id,
                grid,
                shared_bytes: 0,
                overlaps_previous: true,
            },
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
    let values: usize = shape[1..].iter().product();
    Ok(values as u64 * dtype.size() as u64)
}

/// Two tables of as many caches: their addresses, and how many.
fn check_tables(
    source: &CacheTable<'_>,
    target: &CacheTable<'_>,
) -> Result<([u64; 2], u32), RequestError> {
    let addresses = named("source", &source.addresses);
    let [num_caches] = addresses.indices(Dtype::I64, "[num_caches]")?;
    let others = named("target", &target.addresses);
    others.indices::<1>(Dtype::I64, "[num_caches]")?;
    others.shape("[num_caches]", &[num_caches])?;
    let tables = [&source.addresses, &target.addresses].map(TensorView::address);
    Ok((tables, count("num_caches", num_caches)?))
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
}

impl CheckedCopyBlocks<'_> {
    /// What will be launched: a pure function of shapes.
    pub fn plan(&self) -> CopyBlocksPlan {
        CopyBlocksPlan {
            made_for: MadeFor {
                names: &["check", "num_pairs", "num_caches"],
                facts: [
                    Fact::Check(self.request.check),
                    Fact::AtMost(self.params.num_pairs),
                    Fact::AtMost(self.params.num_caches),
                ],
            },
            check: self.check,
            launch: self.launch,
        }
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
        let own = self.plan();
        plan.made_for.fits(&own.made_for)?;
        on_machine(launcher, &self.request.tensors(), workspace)?;
        let planned = own.check.as_ref();
        // SAFETY: the workspace is valid until the launch has finished, as its maker promised.
        let check = unsafe { empty_record(planned, CHECK_BYTES, workspace, launcher)? };
        if self.is_empty {
            return Ok(());
        }
        let params = CopyBlocksParams {
            check,
            ..self.params
        };
        for launch in own.launches() {
            // SAFETY: views, caches and workspace are valid until the launch has finished, as their makers
            // promised; `check()` made shapes, strides and grids agree.
            unsafe { launcher.launch(launch, params.as_bytes())? };
        }
        Ok(())
    }
}

impl CopyBlocksPlan {
    /// Bytes of workspace that [`CheckedCopyBlocks::launch`] needs: 0 without a check.
    pub fn workspace_bytes(&self) -> usize {
        self.check.map_or(0, |_| CHECK_BYTES)
    }
    /// The launches, in order: what to prepare before a graph is captured.
    pub fn launches(&self) -> impl Iterator<Item = &Launch> {
        self.check.iter().chain([&self.launch])
    }
}

impl fmt::Display for CopyBlocksPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let entry = self.launch.kernel.entry();
        let (name, grid, threads) = (entry.name, self.launch.grid, entry.threads);
        write!(f, "{name} grid {grid:?} x {threads} threads")
    }
}
