//! A case over FP8 entries on a machine: the request over its tensors, and its output against the reference.

use rand_chacha::ChaCha8Rng;

use super::mistakes::mla_fp8_mistakes;
use super::mla_fp8::EntryCase;
use super::mla_fp8_fill::{EntryTensors, HostList};
use crate::cases::base::compare::{self, Accuracy};
use crate::cases::base::device_case::{Described, DeviceCase, Runnable, Workspaces};
use crate::cases::base::memory_mistake::MemoryMistake;
use crate::cases::base::mismatch::Mismatch;
use crate::cases::base::same_bytes::gaps_untouched;
use crate::cases::base::tensors::Amount;
use crate::cases::base::uploads::Uploads;
use crate::error::{RequestError, Result};
use crate::ops::{CheckMode, DecodeMlaEntryRequest, DecodePlan, EntryTokens, WindowTokens};
use crate::plan::DeviceInfo;
use crate::reference::{self, HostTensor};
use crate::runtime::{Buffer, Launcher, Runtime};
use crate::tensor::TensorView;

/// A case over FP8 entries on a machine.
pub struct DeviceEntries<'m> {
    tensors: EntryTensors,
    uploads: Uploads<'m>,
}

impl<'m> DeviceEntries<'m> {
    /// Copies the tensors to the machine.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new(runtime: &'m dyn Runtime, tensors: EntryTensors) -> Result<Self> {
        let uploads = Uploads::new(runtime, tensors.all())?;
        Ok(Self { tensors, uploads })
    }

    /// The tensors as they were before any launch.
    pub fn tensors(&self) -> &EntryTensors {
        &self.tensors
    }

    /// The plan for one copy of the batch.
    ///
    /// # Errors
    /// The request was refused.
    pub fn plan(&mut self, case: &EntryCase, device: &DeviceInfo) -> Result<DecodePlan> {
        self.request(case, 0)?.check()?.plan(device)
    }

    /// Enqueues the step of copy `set` of the batch.
    ///
    /// # Errors
    /// The request was refused, or the machine failed.
    pub fn launch(
        &mut self,
        case: &EntryCase,
        set: usize,
        plan: &DecodePlan,
        workspace: &mut Buffer<'_>,
        launcher: &dyn Launcher,
    ) -> Result<()> {
        let checked = self.request(case, set)?.check()?;
        checked.launch(plan, &mut workspace.view_mut(), launcher)
    }

    /// The request over copy `set` of the batch.
    ///
    /// # Errors
    /// None: the views fit.
    pub fn request(
        &mut self,
        case: &EntryCase,
        set: usize,
    ) -> Result<DecodeMlaEntryRequest<'_>, RequestError> {
        let (tensors, uploads) = (&self.tensors, &self.uploads);
        let (num_seqs, query_len) = (tensors.num_seqs, case.query_len);
        let by_seq = |tensor: &HostTensor| tensor.slice(set * num_seqs, num_seqs);
        // A row for each query token: sequences and their tokens as two dimensions.
        let rows = |tensor: &HostTensor| {
            let mut rows = tensor.slice(set * num_seqs * query_len, num_seqs * query_len);
            rows.shape.splice(..1, [num_seqs, query_len]);
            rows.strides.insert(0, query_len * rows.strides[0]);
            rows
        };
        let lengths = |list: &HostList| -> Result<Option<TensorView<'_>>, RequestError> {
            let lengths = list.lengths.as_ref();
            lengths
                .map(|lengths| uploads.view(&rows(lengths)))
                .transpose()
        };
        let block_table = || uploads.view(&by_seq(&tensors.block_table));
        let tokens = match &tensors.topk {
            None => EntryTokens::All {
                block_table: block_table()?,
                seq_lens: uploads.view(&by_seq(&tensors.seq_lens))?,
            },
            Some(list) => EntryTokens::TopK {
                topk_indices: uploads.view(&rows(&list.indices))?,
                topk_length: lengths(list)?,
                block_table: case
                    .topk
                    .filter(|topk| topk.by_table)
                    .map(|_| block_table())
                    .transpose()?,
                window: match &tensors.window {
                    None => None,
                    Some((cache, list)) => Some(WindowTokens {
                        cache: uploads.view(cache)?,
                        block_size: case.block_size,
                        indices: uploads.view(&rows(&list.indices))?,
                        length: lengths(list)?,
                    }),
                },
            },
        };
        Ok(DecodeMlaEntryRequest {
            query: uploads.view(&rows(&tensors.query))?,
            form: case.form,
            cache: uploads.view(&tensors.cache)?,
            block_size: case.block_size,
            tokens,
            sinks: match &tensors.sinks {
                Some(sinks) => Some(uploads.view(sinks)?),
                None => None,
            },
            // SAFETY: `self` is borrowed exclusively, and launches of one stream run in order.
            out: unsafe { uploads.view_mut(&rows(&tensors.out))? },
            lse: match &tensors.lse {
                // SAFETY: `self` is borrowed exclusively, launches run in order, and `out` is another tensor.
                Some(lse) => Some(unsafe { uploads.view_mut(&rows(lse))? }),
                None => None,
            },
            softmax_scale: case.scale(),
            options: case.options(),
        })
    }

    /// Waits, and reads output and lse.
    ///
    /// # Errors
    /// Something enqueued failed.
    pub fn results(&self) -> Result<(HostTensor, Option<HostTensor>)> {
        let lse = self.tensors.lse.as_ref();
        Ok((
            self.uploads.read(&self.tensors.out)?,
            lse.map(|lse| self.uploads.read(lse)).transpose()?,
        ))
    }
}

/// Compares query rows `rows` of an output with the reference, and looks for writes beside it.
///
/// # Errors
/// Where it is wrong.
pub fn compare_entries(
    case: &EntryCase,
    tensors: &EntryTensors,
    out: &HostTensor,
    lse: Option<&HostTensor>,
    rows: &[usize],
) -> Result<Accuracy, Mismatch> {
    let mut expected = reference::decode_entries(
        &tensors.query,
        rows,
        |row| tensors.tokens_of(case, row),
        f64::from(case.scale()),
        tensors.sinks.as_ref(),
    );
    compare::allow(&mut expected, case.fill, out.dtype);
    let accuracy = compare::decode(out, lse, rows, &expected)?;
    gaps_untouched(&tensors.out, out)?;
    Ok(accuracy)
}

/// Query rows of the first `sets` copies of the batch: all if the reference can do them with `budget`
/// multiplications, else the first, the last, and others spread between.
pub fn sample_rows(case: &EntryCase, seed: u64, sets: usize, budget: u64) -> Vec<usize> {
    let rows = case.tokens(seed).len() * case.query_len * sets;
    let per_row = (case.flops(seed) / 2 * sets as u64 / rows.max(1) as u64).max(1);
    let most = usize::try_from(budget / per_row).unwrap_or(usize::MAX);
    if rows <= most.max(1) {
        return (0..rows).collect();
    }
    let parts = most.clamp(2, 64);
    (0..parts)
        .map(|part| part * (rows - 1) / (parts - 1))
        .collect()
}

/// A case over FP8 entries on a machine, with what its launches need.
struct EntryRun<'m> {
    case: EntryCase,
    seed: u64,
    sets: usize,
    device: DeviceEntries<'m>,
    workspaces: Workspaces<'m>,
}

impl Runnable for EntryCase {
    fn check(&self) -> CheckMode {
        self.check
    }

    fn on<'m>(
        &self,
        runtime: &'m dyn Runtime,
        seed: u64,
        amount: Amount,
    ) -> Result<Box<dyn DeviceCase<'m> + 'm>> {
        Ok(Box::new(EntryRun {
            case: self.clone(),
            seed,
            sets: amount.sets,
            device: DeviceEntries::new(runtime, EntryTensors::new(self, seed, amount))?,
            workspaces: Workspaces::new(runtime, self.check),
        }))
    }
}

impl<'m> DeviceCase<'m> for EntryRun<'m> {
    fn launch(&mut self, set: usize, launcher: &dyn Launcher) -> Result<String> {
        let (case, device) = (&self.case, &mut self.device);
        let plan = device.plan(case, &launcher.device())?;
        let workspace = self.workspaces.of(set, plan.workspace_bytes())?;
        device.launch(case, set, &plan, workspace, launcher)?;
        Ok(plan.to_string())
    }

    fn uploads(&self) -> &Uploads<'m> {
        &self.device.uploads
    }

    fn find_fault(&self) -> Result<()> {
        self.workspaces.find_fault()
    }

    fn outputs(&self) -> Result<Vec<HostTensor>> {
        let (out, lse) = self.device.results()?;
        Ok([out].into_iter().chain(lse).collect())
    }

    fn judge(&self, outputs: &[HostTensor], budget: u64) -> Result<Accuracy, Mismatch> {
        let (case, tensors) = (&self.case, self.device.tensors());
        let rows = sample_rows(case, self.seed, self.sets, budget);
        compare_entries(case, tensors, &outputs[0], outputs.get(1), &rows)
    }

    fn mistakes(&self, random: &mut ChaCha8Rng) -> Vec<MemoryMistake> {
        mla_fp8_mistakes(&self.case, self.device.tensors(), self.seed, random)
    }
}
