//! A decode case's tensors on a machine, and the requests over them.

use rand_chacha::ChaCha8Rng;

use super::decode::DecodeCase;
use super::decode_compare::{compare_decode, sample_seqs};
use super::decode_fill::{DecodeTensors, HostScales};
use super::decode_special::decode;
use super::mistakes::decode_mistakes;
use crate::cases::base::compare::Accuracy;
use crate::cases::base::device_case::{DeviceCase, Runnable, Workspaces};
use crate::cases::base::memory_mistake::MemoryMistake;
use crate::cases::base::mismatch::Mismatch;
use crate::cases::base::tensors::Amount;
use crate::cases::base::uploads::Uploads;
use crate::error::{RequestError, Result};
use crate::ops::{
    CheckMode, DecodeMlaRequest, DecodeOptions, DecodePlan, DecodeRequest, KvScales, MlaScales,
};
use crate::plan::DeviceInfo;
use crate::reference::HostTensor;
use crate::runtime::{Buffer, Launcher, Runtime};
use crate::tensor::Dtype;

/// A decode case on a machine.
pub struct DeviceDecode<'m> {
    tensors: DecodeTensors,
    uploads: Uploads<'m>,
}

impl<'m> DeviceDecode<'m> {
    /// Copies the tensors to the machine.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new(runtime: &'m dyn Runtime, tensors: DecodeTensors) -> Result<Self> {
        let all = [
            &tensors.query,
            &tensors.key_cache,
            &tensors.value_cache,
            &tensors.block_table,
            &tensors.seq_lens,
            &tensors.out,
        ];
        let uploads = Uploads::new(
            runtime,
            all.into_iter()
                .chain(&tensors.lse)
                .chain(tensors.scales.iter().flat_map(HostScales::tensors))
                .chain(tensors.scores.tensors()),
        )?;
        Ok(Self { tensors, uploads })
    }

    /// The tensors as they were before any launch.
    pub fn tensors(&self) -> &DecodeTensors {
        &self.tensors
    }

    /// The plan for one copy of the batch.
    ///
    /// # Errors
    /// The request was refused.
    pub fn plan(&mut self, case: &DecodeCase, device: &DeviceInfo) -> Result<DecodePlan> {
        let (scale, options) = (case.scale(), case.options());
        match self.tensors.latent {
            None => self.request(0, scale, options)?.check()?.plan(device),
            Some(_) => self.mla_request(0, scale, options)?.check()?.plan(device),
        }
    }

    /// Enqueues the step of copy `set` of the batch.
    ///
    /// # Errors
    /// The request was refused, or the machine failed.
    pub fn launch(
        &mut self,
        case: &DecodeCase,
        set: usize,
        plan: &DecodePlan,
        workspace: &mut Buffer<'_>,
        launcher: &dyn Launcher,
    ) -> Result<()> {
        self.launch_on(case, set, plan, (workspace, None), launcher)
    }

    /// The same, by a schedule that was made already.
    ///
    /// # Errors
    /// As [`DeviceDecode::launch`].
    pub fn launch_on(
        &mut self,
        case: &DecodeCase,
        set: usize,
        plan: &DecodePlan,
        (workspace, schedule): (&mut Buffer<'_>, Option<&Buffer<'_>>),
        launcher: &dyn Launcher,
    ) -> Result<()> {
        let scale = case.scale();
        let mut options = case.options();
        options.schedule = schedule.map(Buffer::view);
        let workspace = &mut workspace.view_mut();
        match self.tensors.latent {
            None => self
                .request(set, scale, options)?
                .check()?
                .launch(plan, workspace, launcher),
            Some(_) => self
                .mla_request(set, scale, options)?
                .check()?
                .launch(plan, workspace, launcher),
        }
    }

    /// Enqueues the schedule of copy `set` of the batch, into `out`.
    ///
    /// # Errors
    /// As [`DeviceDecode::launch`].
    pub fn schedule(
        &mut self,
        case: &DecodeCase,
        set: usize,
        plan: &DecodePlan,
        (workspace, out): (&mut Buffer<'_>, &mut Buffer<'_>),
        launcher: &dyn Launcher,
    ) -> Result<()> {
        let (scale, options) = (case.scale(), case.options());
        let (workspace, out) = (&mut workspace.view_mut(), &mut out.view_mut());
        match self.tensors.latent {
            None => self
                .request(set, scale, options)?
                .check()?
                .schedule(plan, out, workspace, launcher),
            Some(_) => self
                .mla_request(set, scale, options)?
                .check()?
                .schedule(plan, out, workspace, launcher),
        }
    }

    /// The request over copy `set` of a batch with a latent cache.
    ///
    /// # Errors
    /// None: the views fit.
    pub fn mla_request<'s>(
        &'s mut self,
        set: usize,
        softmax_scale: f32,
        options: DecodeOptions<'s>,
    ) -> Result<DecodeMlaRequest<'s>, RequestError> {
        let (tensors, uploads) = (&self.tensors, &self.uploads);
        let query_len = tensors.latent.unwrap_or(1);
        let num_seqs = tensors.num_seqs;
        let part = |tensor: &HostTensor| tensor.slice(set * num_seqs, num_seqs);
        // A row for each query token: sequences and their tokens as two dimensions.
        let rows = |tensor: &HostTensor| {
            let mut rows = tensor.slice(set * num_seqs * query_len, num_seqs * query_len);
            rows.shape.splice(..1, [num_seqs, query_len]);
            rows.strides.insert(0, query_len * rows.strides[0]);
            rows
        };
        let mut cache = tensors.key_cache.clone();
        cache.shape.remove(2);
        cache.strides.remove(2);
        let scale = |scale: &HostTensor| uploads.view(scale);
        Ok(DecodeMlaRequest {
            query: uploads.view(&rows(&tensors.query))?,
            cache: uploads.view(&cache)?,
            block_table: uploads.view(&part(&tensors.block_table))?,
            seq_lens: uploads.view(&part(&tensors.seq_lens))?,
            // SAFETY: `self` is borrowed exclusively, and launches of one stream run in order.
            out: unsafe { uploads.view_mut(&rows(&tensors.out))? },
            lse: match &tensors.lse {
                // SAFETY: `self` is borrowed exclusively, launches run in order, and `out` is another tensor.
                Some(lse) => Some(unsafe { uploads.view_mut(&rows(lse))? }),
                None => None,
            },
            softmax_scale,
            scales: match &tensors.scales {
                Some(scales) => Some(MlaScales {
                    q_scale: scales.q_scale.as_ref().map(scale).transpose()?,
                    k_scale: scale(&scales.k_scale)?,
                }),
                None => None,
            },
            options,
        })
    }

    /// The request over copy `set` of the batch; slopes and sinks are those of the tensors.
    ///
    /// # Errors
    /// None: the views fit.
    pub fn request<'s>(
        &'s mut self,
        set: usize,
        softmax_scale: f32,
        mut options: DecodeOptions<'s>,
    ) -> Result<DecodeRequest<'s>, RequestError> {
        let (tensors, uploads) = (&self.tensors, &self.uploads);
        let num_seqs = tensors.num_seqs;
        let part = |tensor: &HostTensor| tensor.slice(set * num_seqs, num_seqs);
        options.score_mods = tensors.scores.with_tensors(options.score_mods, uploads)?;
        Ok(DecodeRequest {
            scales: match &tensors.scales {
                Some(scales) => Some(KvScales {
                    q_scale: scales
                        .q_scale
                        .as_ref()
                        .map(|scale| uploads.view(scale))
                        .transpose()?,
                    k_scale: uploads.view(&scales.k_scale)?,
                    v_scale: uploads.view(&scales.v_scale)?,
                }),
                None => None,
            },
            query: uploads.view(&part(&tensors.query))?,
            key_cache: uploads.view(&tensors.key_cache)?,
            value_cache: uploads.view(&tensors.value_cache)?,
            block_table: uploads.view(&part(&tensors.block_table))?,
            seq_lens: uploads.view(&part(&tensors.seq_lens))?,
            // SAFETY: `self` is borrowed exclusively, and launches of one stream run in order.
            out: unsafe { uploads.view_mut(&part(&tensors.out))? },
            lse: match &tensors.lse {
                // SAFETY: `self` is borrowed exclusively, launches run in order, and `out` is another tensor.
                Some(lse) => Some(unsafe { uploads.view_mut(&part(lse))? }),
                None => None,
            },
            softmax_scale,
            options,
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

/// A decode case on a machine, with what its launches need.
struct DecodeRun<'m> {
    runtime: &'m dyn Runtime,
    case: DecodeCase,
    seed: u64,
    sets: usize,
    device: DeviceDecode<'m>,
    workspaces: Workspaces<'m>,
    /// Of each copy, if the case wants one for all launches.
    schedules: Vec<Buffer<'m>>,
}

impl Runnable for DecodeCase {
    fn check(&self) -> CheckMode {
        self.check
    }

    fn on<'m>(
        &self,
        runtime: &'m dyn Runtime,
        seed: u64,
        amount: Amount,
    ) -> Result<Box<dyn DeviceCase<'m> + 'm>> {
        Ok(Box::new(DecodeRun {
            case: self.clone(),
            seed,
            sets: amount.sets,
            device: DeviceDecode::new(runtime, decode(self, seed, amount))?,
            workspaces: Workspaces::new(runtime, self.check),
            schedules: Vec::new(),
            runtime,
        }))
    }
}

impl<'m> DeviceCase<'m> for DecodeRun<'m> {
    fn launch(&mut self, set: usize, launcher: &dyn Launcher) -> Result<String> {
        let (case, device) = (&self.case, &mut self.device);
        let plan = device.plan(case, &launcher.device())?;
        let workspace = self.workspaces.of(set, plan.workspace_bytes())?;
        if !case.schedule_once {
            device.launch(case, set, &plan, workspace, launcher)?;
            return Ok(plan.to_string());
        }
        if let (true, Some(runs)) = (set == self.schedules.len(), plan.runs()) {
            let rows =
                runs.schedule_rows(u32::try_from(device.tensors.num_seqs).unwrap_or(u32::MAX));
            let mut schedule = Buffer::uninit(self.runtime, "schedule", Dtype::I32, &[rows, 4])?;
            device.schedule(case, set, &plan, (workspace, &mut schedule), launcher)?;
            self.schedules.push(schedule);
        }
        let schedule = self.schedules.get(set);
        device.launch_on(case, set, &plan, (workspace, schedule), launcher)?;
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
        let tensors = self.device.tensors();
        let mut seqs = sample_seqs(&self.case, self.seed, budget);
        if self.sets > 1 {
            // The first and the last set.
            let last = (self.sets - 1) * tensors.num_seqs;
            seqs.extend(seqs.clone().into_iter().map(|seq| last + seq));
        }
        compare_decode(&self.case, tensors, &outputs[0], outputs.get(1), &seqs)
    }

    fn mistakes(&self, random: &mut ChaCha8Rng) -> Vec<MemoryMistake> {
        decode_mistakes(&self.case, self.device.tensors(), self.seed, random)
    }
}
