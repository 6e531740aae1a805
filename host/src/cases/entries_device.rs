//! A case over FP8 entries on a machine.

use super::device::Uploads;
use super::entries_fill::{EntryTensors, HostList};
use super::{Accuracy, EntryCase, Mismatch, compare};
use crate::error::{RequestError, Result};
use crate::ops::{DecodeMlaEntryRequest, DecodePlan, EntryTokens, WindowTokens};
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

    pub(super) fn uploads(&self) -> &Uploads<'m> {
        &self.uploads
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
                // SAFETY: as above.
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
    compare::gaps_untouched(&tensors.out, out)?;
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
