//! A case of unified attention on a machine: the request over its tensors, and its output against the reference.

use rand_chacha::ChaCha8Rng;

use super::decode_fill::HostScales;
use super::mistakes::unified_mistakes;
use super::unified::{Causal, UnifiedCase};
use super::unified_fill::UnifiedTensors;
use crate::cases::base::compare::{self, Accuracy, ScoreSums};
use crate::cases::base::device_case::{DeviceCase, Runnable, Workspaces};
use crate::cases::base::memory_mistake::MemoryMistake;
use crate::cases::base::mismatch::Mismatch;
use crate::cases::base::same_bytes::gaps_untouched;
use crate::cases::base::tensors::Amount;
use crate::cases::base::uploads::Uploads;
use crate::error::{RequestError, Result};
use crate::ops::{CheckMode, KvScales, UnifiedOptions, UnifiedPlan, UnifiedRequest};
use crate::reference::{self, HostTensor};
use crate::runtime::{Launcher, Runtime};
use crate::tensor::TensorView;

/// A case of unified attention on a machine.
pub struct DeviceUnified<'m> {
    tensors: UnifiedTensors,
    uploads: Uploads<'m>,
}

impl<'m> DeviceUnified<'m> {
    /// Copies the tensors to the machine.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new(runtime: &'m dyn Runtime, tensors: UnifiedTensors) -> Result<Self> {
        let base = &tensors.base;
        let all = [
            &base.query,
            &base.key_cache,
            &base.value_cache,
            &base.block_table,
            &base.seq_lens,
            &base.out,
            &tensors.query_start_loc,
        ];
        let uploads = Uploads::new(
            runtime,
            all.into_iter()
                .chain(&base.lse)
                .chain(base.scales.iter().flat_map(HostScales::tensors))
                .chain(base.scores.tensors())
                .chain(&tensors.causal_flags)
                .chain(&tensors.output_scale),
        )?;
        Ok(Self { tensors, uploads })
    }

    /// The tensors as they were before any launch.
    pub fn tensors(&self) -> &UnifiedTensors {
        &self.tensors
    }

    /// The request over copy `set` of the batch. `seed` is the one that the tensors were made with.
    ///
    /// # Errors
    /// None: the views fit.
    pub fn request(
        &mut self,
        case: &UnifiedCase,
        seed: u64,
        set: usize,
    ) -> Result<UnifiedRequest<'_>, RequestError> {
        let (tensors, uploads) = (&self.tensors, &self.uploads);
        let (base, num_seqs, num_tokens) =
            (&tensors.base, tensors.base.num_seqs, tensors.num_tokens);
        let by_seq = |tensor: &HostTensor| tensor.slice(set * num_seqs, num_seqs);
        let by_token = |tensor: &HostTensor| tensor.slice(set * num_tokens, num_tokens);
        let view = |tensor: &Option<HostTensor>| -> Result<Option<TensorView<'_>>, RequestError> {
            tensor
                .as_ref()
                .map(|tensor| uploads.view(tensor))
                .transpose()
        };
        let numbers = case.base.scores.numbers();
        let options = UnifiedOptions {
            causal: case.causal == Causal::On,
            causal_flags: match &tensors.causal_flags {
                Some(flags) => Some(uploads.view(&by_seq(flags))?),
                None => None,
            },
            score_mods: base.scores.with_tensors(numbers, uploads)?,
            output_scale: view(&tensors.output_scale)?,
            num_decodes: case.num_decodes(seed),
            max_query_len: case.max_query_len,
            max_seq_len: case.base.max_seq_len,
            f32_scores: case.f32_scores,
            split_policy: case.base.split_policy,
            check: case.base.check,
        };
        Ok(UnifiedRequest {
            scales: match &base.scales {
                Some(scales) => Some(KvScales {
                    q_scale: view(&scales.q_scale)?,
                    k_scale: uploads.view(&scales.k_scale)?,
                    v_scale: uploads.view(&scales.v_scale)?,
                }),
                None => None,
            },
            query: uploads.view(&by_token(&base.query))?,
            key_cache: uploads.view(&base.key_cache)?,
            value_cache: uploads.view(&base.value_cache)?,
            block_table: uploads.view(&by_seq(&base.block_table))?,
            query_start_loc: uploads.view(
                &tensors
                    .query_start_loc
                    .slice(set * (num_seqs + 1), num_seqs + 1),
            )?,
            seq_lens: uploads.view(&by_seq(&base.seq_lens))?,
            // SAFETY: `self` is borrowed exclusively, and launches of one stream run in order.
            out: unsafe { uploads.view_mut(&by_token(&base.out))? },
            lse: match &base.lse {
                // SAFETY: `self` is borrowed exclusively, launches run in order, and `out` is another tensor.
                Some(lse) => Some(unsafe { uploads.view_mut(&by_token(lse))? }),
                None => None,
            },
            softmax_scale: case.base.scale(),
            options,
        })
    }

    /// Waits, and reads output and lse.
    ///
    /// # Errors
    /// Something enqueued failed.
    pub fn results(&self) -> Result<(HostTensor, Option<HostTensor>)> {
        let lse = self.tensors.base.lse.as_ref();
        Ok((
            self.uploads.read(&self.tensors.base.out)?,
            lse.map(|lse| self.uploads.read(lse)).transpose()?,
        ))
    }
}

/// Compares the query tokens `tokens` of an output's first set with the reference, and looks for writes beside
/// it.
///
/// # Errors
/// Where it is wrong.
pub fn compare_unified(
    case: &UnifiedCase,
    tensors: &UnifiedTensors,
    out: &HostTensor,
    lse: Option<&HostTensor>,
    tokens: &[usize],
    sums: ScoreSums,
) -> Result<Accuracy, Mismatch> {
    let mut expected = reference::unified(&tensors.inputs(case), tokens);
    compare::allow(&mut expected, case.base.fill, out.dtype);
    let accuracy = compare::attention(out, lse, tokens, &expected, sums)?;
    // Query tokens past the last sequence's are not written either.
    let sets = out.shape[0] / tensors.num_tokens.max(1);
    if sets == 1 {
        let written = tensors.num_tokens - case.extra_tokens;
        gaps_untouched(&tensors.base.out.slice(0, written), out)?;
        if let (Some(before), Some(after)) = (&tensors.base.lse, lse) {
            gaps_untouched(&before.slice(0, written), after)?;
        }
    }
    Ok(accuracy)
}

/// How the scores of a step are added up by a machine.
pub fn score_sums(plan: &UnifiedPlan, runtime: &dyn Runtime) -> ScoreSums {
    if plan.multiplies_fp8() && !runtime.is_emulator() {
        ScoreSums::Fp8
    } else {
        ScoreSums::F32
    }
}

/// A case of unified attention on a machine, with what its launches need.
struct UnifiedRun<'m> {
    case: UnifiedCase,
    seed: u64,
    device: DeviceUnified<'m>,
    workspaces: Workspaces<'m>,
    /// How the scores of the last launch were added up.
    sums: ScoreSums,
}

impl Runnable for UnifiedCase {
    fn check(&self) -> CheckMode {
        self.base.check
    }

    fn on<'m>(
        &self,
        runtime: &'m dyn Runtime,
        seed: u64,
        amount: Amount,
    ) -> Result<Box<dyn DeviceCase<'m> + 'm>> {
        let tensors =
            UnifiedTensors::new(self, seed, amount).map_err(|error| RequestError::Value {
                name: "case",
                expected: "tensors that can be made".into(),
                got: error.to_string(),
            })?;
        Ok(Box::new(UnifiedRun {
            case: self.clone(),
            seed,
            device: DeviceUnified::new(runtime, tensors)?,
            workspaces: Workspaces::new(runtime, self.base.check),
            sums: ScoreSums::default(),
        }))
    }
}

impl<'m> DeviceCase<'m> for UnifiedRun<'m> {
    fn launch(&mut self, set: usize, launcher: &dyn Launcher) -> Result<String> {
        let checked = self.device.request(&self.case, self.seed, set)?.check()?;
        let plan = checked.plan(&launcher.device())?;
        let workspace = self.workspaces.of(set, plan.workspace_bytes())?;
        checked.launch(&plan, &mut workspace.view_mut(), launcher)?;
        self.sums = score_sums(&plan, self.workspaces.runtime());
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
        let tokens = case.sample_tokens(self.seed, budget);
        let (out, lse) = (&outputs[0], outputs.get(1));
        compare_unified(case, tensors, out, lse, &tokens, self.sums)
    }

    fn mistakes(&self, random: &mut ChaCha8Rng) -> Vec<MemoryMistake> {
        unified_mistakes(&self.case, self.device.tensors(), self.seed, random)
    }
}
