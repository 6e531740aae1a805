//! Planning a checked step of unified attention.

use std::fmt;

use gpu_kernels::dtype::{CacheDtype, Dtype, QueryDtype};
use gpu_kernels::entry::{Entry, Variant};
use gpu_kernels::prefill::{MmaKind, PrefillTile};

use super::paged::check_parts;
use super::partials::Partials;
use super::split_plan::DecodePlan;
use super::unified::CheckedUnified;
use super::unified_check::{row_shape, thread_blocks};
use crate::error::{Error, RequestError, Result};
use crate::ops::device_check::{CheckMode, plan_check};
use crate::ops::made_for::{Fact, MadeFor};
use crate::ops::plan::Summary;
use crate::plan::{DeviceInfo, RowSplitShape, Splits, variants};
use crate::runtime::Launch;

/// What was decided for a request: kernels, grids, workspace. Prints as one line.
///
/// It fits every request with the same numbers of heads, head sizes, dtypes, `sliding_window`, `f32_scores`,
/// `split_policy` and `check`, with rows of query and output that are aligned to 16 bytes if its own were, and with none
/// that are not; with at most as many sequences and query tokens, and no larger bound of the sequences' lengths. Of its
/// sequences as many may take decode kernels (see [`super::UnifiedOptions::num_decodes`]) as of its own request, or
/// fewer; if all of those did, all have to. Everything else may differ: addresses, strides, the caches' sizes,
/// `softmax_scale`, `causal`, and softcap, ALiBi and sinks as far as [`DecodePlan`] allows it for decodes.
#[derive(Clone, Debug, PartialEq)]
pub struct UnifiedPlan {
    made_for: MadeFor<13>,
    pub(super) decodes: Option<DecodePlan>,
    pub(super) check: Option<Launch>,
    pub(super) prefill: Option<Launch>,
    pub(super) merge: Option<Launch>,
    pub(super) splits: Splits,
    /// How a thread block of `prefill` is cut.
    pub(super) rows: PrefillTile,
    pub(super) partials: Partials,
}

impl CheckedUnified<'_> {
    /// Decides kernels, grids and workspace for a machine: a pure function of shapes and numbers. Nothing
    /// depends on lengths that only the device knows.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the machine has too little shared memory for the kernel.
    pub fn plan(&self, device: &DeviceInfo) -> Result<UnifiedPlan> {
        let decodes = self
            .decodes
            .as_ref()
            .map(|decodes| decodes.plan(device))
            .transpose()?;
        let (prefill, products) = self.prefill_on(device);
        let cut = row_shape(&self.shape, products);
        if cut.shared_bytes() > device.shared_bytes_per_cta {
            return Err(Error::Unsupported {
                operation: "unified_attention",
                what: "a device with shared memory per thread block of",
                got: format!("{} bytes", device.shared_bytes_per_cta),
                supported: format!("at least {} bytes", cut.shared_bytes()),
            });
        }
        // Without other sequences, the decodes' plan has it.
        let has_rows = self.has_rows();
        let checks = has_rows && self.request.options.check == CheckMode::Device;
        let mode = if checks {
            CheckMode::Device
        } else {
            CheckMode::Off
        };
        let grid = [self.shape.num_seqs, self.check_parts(), 1];
        let check = plan_check(mode, Variant::CheckPaged, grid);
        let ctas = self.ctas(cut);
        let rows = u64::from(self.num_tokens) * u64::from(self.shape.num_query_heads);
        let row_bytes = 4 * u64::from(self.shape.head_size_v) + 4;
        let splits = Splits::choose_rows(
            &RowSplitShape {
                ctas,
                max_keys: self.max_keys(cut),
                tile_kv: cut.tile_kv,
                shared_bytes: cut.shared_bytes(),
                most_ctas_per_sm: prefill.min_ctas,
                part_bytes: rows.saturating_mul(row_bytes),
            },
            device,
            self.request.options.split_policy,
        );
        let splits = match (splits.num_kv_splits, self.most_keys()) {
            // One split is one wherever a tile's keys begin.
            (1, _) => Splits {
                num_kv_splits: 1,
                split_len: self.shape.max_seq_len.max(1).next_multiple_of(cut.tile_kv),
            },
            // Keys that do not begin where a split does may reach into one more.
            (num_kv_splits, Some(_)) => Splits {
                num_kv_splits: num_kv_splits + 1,
                ..splits
            },
            (_, None) => splits,
        };
        let prefill = has_rows.then(|| Launch {
            kernel: prefill.id,
            grid: [ctas, splits.num_kv_splits, 1],
            shared_bytes: cut.shared_bytes(),
            overlaps_previous: false,
        });
        let merge = (has_rows && splits.num_kv_splits > 1).then(|| Launch {
            kernel: variants::entry(Variant::MergeRows).id,
            grid: [ctas, 1, 1],
            shared_bytes: 0,
            overlaps_previous: true,
        });
        let parts = match &merge {
            Some(_) => [
                self.num_tokens,
                self.shape.num_query_heads,
                splits.num_kv_splits,
                1,
            ],
            None => [0; 4],
        };
        Ok(UnifiedPlan {
            made_for: self.made_for(),
            decodes,
            partials: Partials::new(check.is_some(), parts, self.shape.head_size_v),
            check,
            prefill,
            merge,
            splits,
            rows: cut,
        })
    }

    fn made_for(&self) -> MadeFor<13> {
        let options = &self.request.options;
        MadeFor {
            names: &[
                "kernel",
                "num_query_heads",
                "num_kv_heads",
                "query",
                "out",
                "rows aligned to 16 bytes",
                "f32_scores",
                "mask",
                "split_policy",
                "check",
                "num_tokens",
                "num_seqs",
                "max_seq_len",
            ],
            facts: [
                Fact::Kernel(self.prefill.id),
                Fact::Number(self.shape.num_query_heads),
                Fact::Number(self.shape.num_kv_heads),
                Fact::Dtype(self.shape.query.dtype()),
                Fact::Dtype(self.shape.out.dtype()),
                Fact::Flag(self.in_chunks),
                Fact::Flag(options.f32_scores),
                Fact::Mask(options.score_mods.mask()),
                Fact::Splits(options.split_policy),
                Fact::Check(options.check),
                Fact::AtMost(self.num_tokens),
                Fact::AtMost(self.shape.num_seqs),
                Fact::AtMost(self.shape.max_seq_len),
            ],
        }
    }

    /// Whether the plan is right for this request: for its decodes and for its other sequences.
    pub(super) fn check_plan(&self, plan: &UnifiedPlan) -> Result<(), RequestError> {
        plan.made_for.fits(&self.made_for())?;
        match (&plan.decodes, &self.decodes) {
            (_, None) => {}
            (Some(plan), Some(decodes)) => plan.fits(&decodes.made_for())?,
            (None, Some(_)) => {
                return Err(RequestError::Plan {
                    what: "num_decodes",
                    expected: "0".into(),
                    got: self.num_decodes.to_string(),
                });
            }
        }
        if plan.prefill.is_none() && self.has_rows() {
            return Err(RequestError::Plan {
                what: "sequences, all of them decodes,",
                expected: "alone".into(),
                got: format!("{} others", self.shape.num_seqs - self.num_decodes),
            });
        }
        Ok(())
    }

    /// Whether there are sequences that do not take the decode kernels.
    pub(super) fn has_rows(&self) -> bool {
        self.shape.num_seqs > self.num_decodes
    }

    /// The most keys that a query sees, if not as many as there are.
    fn most_keys(&self) -> Option<u32> {
        self.request.options.score_mods.most_keys()
    }

    /// The most keys that a tile of rows sees, of those that are not decodes.
    fn max_keys(&self, cut: PrefillTile) -> u32 {
        let Some(keys) = self.most_keys() else {
            return self.shape.max_seq_len;
        };
        // As many before each query, with `causal` off as many after it, and the rest of the first KV tile.
        let tokens =
            (cut.rows().div_ceil(self.shape.num_queries_per_kv()) + 1).min(self.num_tokens);
        let around = tokens
            .saturating_add(keys.saturating_mul(2))
            .saturating_add(cut.tile_kv);
        self.shape.max_seq_len.min(around)
    }

    /// The kernel that a device runs best, and who multiplies in it. Warp groups read queries, and write the output, 16
    /// bytes at a time.
    fn prefill_on(&self, device: &DeviceInfo) -> (&'static Entry, MmaKind) {
        let together: &[MmaKind] = match (self.shape.query, self.shape.cache) {
            _ if !self.in_chunks => &[],
            (QueryDtype::F8E4m3, cache)
                if cache == CacheDtype::of(Dtype::F8E4m3) && !self.request.options.f32_scores =>
            {
                // Not for every head size.
                &[MmaKind::WarpGroupOfBytes, MmaKind::WarpGroup]
            }
            _ => &[MmaKind::WarpGroup],
        };
        let find = |&products| {
            variants::find_prefill(
                self.shape.cache,
                self.shape.head_size,
                self.shape.head_size_v,
                products,
            )
            .filter(|entry| device.runs(entry))
            .map(|entry| (entry, products))
        };
        together
            .iter()
            .find_map(find)
            .unwrap_or((self.prefill, MmaKind::Warp))
    }

    /// Thread blocks that share out the rows of the sequences that are no decodes.
    pub(super) fn ctas(&self, cut: PrefillTile) -> u32 {
        let num_seqs = self.shape.num_seqs - self.num_decodes;
        let ctas = thread_blocks(&self.shape, self.num_tokens, num_seqs, cut.rows());
        u32::try_from(ctas).expect("the check counted those of all sequences")
    }

    /// Thread blocks that check a sequence.
    pub(super) fn check_parts(&self) -> u32 {
        let shape = &self.shape;
        check_parts(shape.max_seq_len, shape.block_size, shape.token_scales())
    }
}

impl UnifiedPlan {
    /// Whether scores are products of FP8, as they are stored, which the tensor cores of compute capability 9.0 add up
    /// with fewer bits than f32 has.
    pub fn multiplies_fp8(&self) -> bool {
        self.prefill.is_some() && self.rows.products == MmaKind::WarpGroupOfBytes
    }

    /// Bytes of workspace that [`CheckedUnified::launch`] needs.
    pub fn workspace_bytes(&self) -> usize {
        // The decode kernels are done with the workspace before the others begin.
        let decodes = self.decodes.as_ref().map_or(0, DecodePlan::workspace_bytes);
        self.partials.workspace_bytes.max(decodes)
    }
    /// How the keys of those that are not decodes are split.
    pub fn splits(&self) -> Splits {
        self.splits
    }
    /// The launches, in order: what to prepare before a graph is captured.
    pub fn launches(&self) -> impl Iterator<Item = &Launch> {
        let decodes = self.decodes.iter().flat_map(DecodePlan::launches);
        decodes
            .chain(&self.check)
            .chain(&self.prefill)
            .chain(&self.merge)
    }
}

impl fmt::Display for UnifiedPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(decodes) = &self.decodes {
            write!(f, "decodes: {decodes}")?;
            if self.prefill.is_none() {
                return Ok(());
            }
            f.write_str("; ")?;
        }
        write!(f, "tiles of {} rows, {}", self.rows.rows(), self.splits)?;
        let own = self.check.iter().chain(&self.prefill).chain(&self.merge);
        for launch in own {
            write!(f, "; {}", Summary(launch))?;
        }
        write!(f, "; workspace {} B", self.workspace_bytes())
    }
}
