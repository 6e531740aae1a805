//! Running a case on a machine and judging what comes back.

use super::fill::{self, Amount, DecodeTensors};
use super::{
    Accuracy, Case, DecodeCase, DeviceDecode, DeviceEntries, DeviceUnified, EntryCase,
    EntryTensors, Mismatch, ScoreCase, ScoreSums, UnifiedCase, UnifiedTensors, compare,
    compare_entries, exact, sample_rows,
};
use crate::error::{RequestError, Result};
use crate::ops::{CHECK_BYTES, CheckMode, UnifiedPlan, check_result};
use crate::reference::{self, DecodeInputs, HostTensor};
use crate::runtime::{Buffer, Runtime};
use crate::tensor::Dtype;

/// What became of a case.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The plan, on one line.
    pub plan: String,
    /// How near the output came, or where it is wrong. Cache writes and gathers are exact or wrong.
    pub verdict: Result<Accuracy, Mismatch>,
    /// Every tensor that was written, with the bytes that lie between its elements.
    pub outputs: Vec<HostTensor>,
}

impl Outcome {
    /// Of attention's output and lse, judged by `judge`, or as they were `before`.
    fn of(
        plan: String,
        (out, lse): (HostTensor, Option<HostTensor>),
        before: Option<&Self>,
        judge: impl FnOnce(&HostTensor, Option<&HostTensor>) -> Result<Accuracy, Mismatch>,
    ) -> Self {
        let mut outcome = Self {
            plan,
            verdict: Ok(Accuracy::default()),
            outputs: [out].into_iter().chain(lse).collect(),
        };
        outcome.verdict = match before {
            Some(before) if outcome.same_outputs(before).is_ok() => before.verdict.clone(),
            _ => judge(&outcome.outputs[0], outcome.outputs.get(1)),
        };
        outcome
    }

    /// Compares the outputs with another run's of the same case, bit for bit.
    ///
    /// # Errors
    /// The first byte that differs; `expected` is the other run's.
    pub fn same_outputs(&self, other: &Self) -> Result<(), Mismatch> {
        assert_eq!(self.outputs.len(), other.outputs.len(), "one case");
        self.outputs
            .iter()
            .zip(&other.outputs)
            .try_for_each(|(ours, theirs)| compare::same_bytes(ours, &theirs.storage.bytes))
    }
}

/// A case's tensors once; beyond so much host memory, its cache repeats a pattern.
const ONE_SET: Amount = Amount {
    sets: 1,
    pattern_bytes: 1 << 30,
};
/// Device memory that a case may take.
const MAX_BYTES: u64 = 120 << 30;
/// Multiplications that the reference spends on a case: a few seconds on a desktop's cores.
const REFERENCE_BUDGET: u64 = 3_000_000_000;

/// Runs a case once and compares it with the reference. Of sequences that would keep the reference busy for
/// long, a sample.
///
/// # Errors
/// The request was refused, the machine failed, or it caught the kernel breaking a rule.
pub fn run_case(case: &Case, runtime: &dyn Runtime, seed: u64) -> Result<Outcome> {
    run_case_again(case, runtime, seed, None)
}

/// [`run_case`], after the same case has run elsewhere: where the outputs are the same to the bit, so is what the
/// reference says of them.
///
/// # Errors
/// As [`run_case`].
pub fn run_case_again(
    case: &Case,
    runtime: &dyn Runtime,
    seed: u64,
    before: Option<&Outcome>,
) -> Result<Outcome> {
    let bytes = case.unavoidable_bytes(seed);
    if bytes > MAX_BYTES {
        return Err(RequestError::Value {
            name: "case",
            expected: format!("at most {MAX_BYTES} bytes of tensors"),
            got: bytes.to_string(),
        }
        .into());
    }
    match case {
        Case::Decode(case) => return run_decode(case, runtime, seed, before),
        Case::DecodeEntries(case) => return run_entries(case, runtime, seed, before),
        Case::Unified(case) => return run_unified(case, runtime, seed, before),
        _ => {}
    }
    let mut device = case
        .on(runtime, seed, Amount::WHOLE)?
        .expect("only attention is not exact");
    exact::run(device.as_mut(), runtime)
}

fn run_decode(
    case: &DecodeCase,
    runtime: &dyn Runtime,
    seed: u64,
    before: Option<&Outcome>,
) -> Result<Outcome> {
    let mut device = DeviceDecode::new(runtime, fill::decode(case, seed, ONE_SET))?;
    let plan = device.plan(case, &runtime.device())?;
    let mut workspace = workspace(runtime, plan.workspace_bytes())?;
    device.launch(case, 0, &plan, &mut workspace, runtime)?;
    runtime.synchronize()?;
    read_check(&workspace, case.check)?;
    let (out, lse) = device.results()?;
    Ok(Outcome::of(
        plan.to_string(),
        (out, lse),
        before,
        |out, lse| {
            let seqs = sample_seqs(case, seed, REFERENCE_BUDGET);
            compare_decode(case, device.tensors(), out, lse, &seqs)
        },
    ))
}

fn run_entries(
    case: &EntryCase,
    runtime: &dyn Runtime,
    seed: u64,
    before: Option<&Outcome>,
) -> Result<Outcome> {
    let mut device = DeviceEntries::new(runtime, EntryTensors::new(case, seed, ONE_SET))?;
    let plan = device.plan(case, &runtime.device())?;
    let mut workspace = workspace(runtime, plan.workspace_bytes())?;
    device.launch(case, 0, &plan, &mut workspace, runtime)?;
    runtime.synchronize()?;
    read_check(&workspace, case.check)?;
    let (out, lse) = device.results()?;
    Ok(Outcome::of(
        plan.to_string(),
        (out, lse),
        before,
        |out, lse| {
            let rows = sample_rows(case, seed, 1, REFERENCE_BUDGET);
            compare_entries(case, device.tensors(), out, lse, &rows)
        },
    ))
}

/// Compares the sequences `seqs` of an output with the reference, and looks for writes beside it.
///
/// # Errors
/// Where it is wrong.
pub fn compare_decode(
    case: &DecodeCase,
    tensors: &DecodeTensors,
    out: &HostTensor,
    lse: Option<&HostTensor>,
    seqs: &[usize],
) -> Result<Accuracy, Mismatch> {
    let query_len = case.query_len();
    let max_seq_len = case.max_seq_len.map(|bound| bound as usize);
    let (block_table, seq_lens) = by_query_token(tensors, query_len, max_seq_len);
    let rows: Vec<usize> = seqs
        .iter()
        .flat_map(|seq| seq * query_len..(seq + 1) * query_len)
        .collect();
    let inputs = DecodeInputs {
        query: &tensors.query,
        key_cache: &tensors.key_cache,
        value_cache: &tensors.value_cache,
        block_table: &block_table,
        seq_lens: &seq_lens,
        softmax_scale: f64::from(case.scale()),
        scales: tensors.scales.as_ref().map(|scales| reference::Scales {
            q_scale: scales.q_scale.as_ref(),
            k_scale: &scales.k_scale,
            v_scale: &scales.v_scale,
        }),
        max_seq_len,
    };
    let mut expected = if case.scores == ScoreCase::default() {
        reference::decode(&inputs, &rows)
    } else {
        // Each sequence is one query token of unified attention.
        let num_seqs = i32::try_from(tensors.seq_lens.shape[0]).expect("cases have few sequences");
        let starts = (0..=num_seqs).flat_map(i32::to_le_bytes).collect();
        let shape = [tensors.seq_lens.shape[0] + 1];
        let starts = HostTensor::contiguous("query_start_loc", Dtype::I32, &shape, starts);
        reference::unified(&tensors.inputs(case, &starts), &rows)
    };
    compare::allow(&mut expected, case.fill, out.dtype);
    let accuracy = compare::decode(out, lse, &rows, &expected)?;
    compare::gaps_untouched(&tensors.out, out)?;
    Ok(accuracy)
}

/// Block table and lengths of a batch in which every query token is a sequence of its own: it sees what comes
/// before it, and itself.
fn by_query_token(
    tensors: &DecodeTensors,
    query_len: usize,
    max_seq_len: Option<usize>,
) -> (HostTensor, HostTensor) {
    let (table, lens) = (&tensors.block_table, &tensors.seq_lens);
    if query_len == 1 {
        return (table.clone(), lens.clone());
    }
    let (num_seqs, width) = (table.shape[0], table.shape[1]);
    let (mut ids, mut lengths) = (Vec::new(), Vec::new());
    for seq in 0..num_seqs {
        let len = lens
            .integer(&[seq])
            .min(max_seq_len.map_or(i64::MAX, |max| max as i64));
        for token in 0..query_len {
            let sees = len - (query_len - 1 - token) as i64;
            lengths.extend(
                i32::try_from(sees)
                    .expect("an i32 less a few")
                    .to_le_bytes(),
            );
            for at in 0..width {
                let id = table.integer(&[seq, at]);
                ids.extend(i32::try_from(id).expect("it was an i32").to_le_bytes());
            }
        }
    }
    let rows = num_seqs * query_len;
    (
        HostTensor::contiguous("block_table", Dtype::I32, &[rows, width], ids),
        HostTensor::contiguous("seq_lens", Dtype::I32, &[rows], lengths),
    )
}

/// All sequences if the reference can do them with `budget` multiplications, else as many as it can: the
/// first, the last, the longest, the shortest, and others spread between.
pub fn sample_seqs(case: &DecodeCase, seed: u64, budget: u64) -> Vec<usize> {
    let tokens = case.seen(seed);
    let rows = case.query_len() * case.num_query_heads;
    let per_token = (rows * (case.cache.head_size + case.cache.head_size_v)) as u64;
    let cost = |seq: usize| tokens[seq] as u64 * per_token;
    let num_seqs = tokens.len();
    if (0..num_seqs).map(cost).sum::<u64>() <= budget {
        return (0..num_seqs).collect();
    }
    let longest = (0..num_seqs).max_by_key(|&seq| tokens[seq]).unwrap_or(0);
    let shortest = (0..num_seqs).min_by_key(|&seq| tokens[seq]).unwrap_or(0);
    let spread = (1..16).map(|part| part * num_seqs / 16);
    let mut seqs = Vec::new();
    let mut spent = 0;
    for seq in [longest, num_seqs - 1, 0, shortest]
        .into_iter()
        .chain(spread)
    {
        // One is always compared, however long.
        if !seqs.contains(&seq) && (seqs.is_empty() || spent + cost(seq) <= budget) {
            seqs.push(seq);
            spent += cost(seq);
        }
    }
    seqs
}

fn run_unified(
    case: &UnifiedCase,
    runtime: &dyn Runtime,
    seed: u64,
    before: Option<&Outcome>,
) -> Result<Outcome> {
    let tensors =
        UnifiedTensors::new(case, seed, ONE_SET).map_err(|error| RequestError::Value {
            name: "case",
            expected: "tensors that can be made".into(),
            got: error.to_string(),
        })?;
    let mut device = DeviceUnified::new(runtime, tensors)?;
    let checked = device.request(case, seed, 0)?.check()?;
    let plan = checked.plan(&runtime.device())?;
    let mut workspace = workspace(runtime, plan.workspace_bytes())?;
    checked.launch(&plan, &mut workspace.view_mut(), runtime)?;
    runtime.synchronize()?;
    read_check(&workspace, case.base.check)?;
    let (out, lse) = device.results()?;
    Ok(Outcome::of(
        plan.to_string(),
        (out, lse),
        before,
        |out, lse| {
            let tokens = case.sample_tokens(seed, REFERENCE_BUDGET);
            let sums = score_sums(&plan, runtime);
            compare_unified(case, device.tensors(), out, lse, &tokens, sums)
        },
    ))
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
        compare::gaps_untouched(&tensors.base.out.slice(0, written), out)?;
        if let (Some(before), Some(after)) = (&tensors.base.lse, lse) {
            compare::gaps_untouched(&before.slice(0, written), after)?;
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

/// A workspace of at least `bytes` bytes.
pub(super) fn workspace(runtime: &dyn Runtime, bytes: usize) -> Result<Buffer<'_>> {
    Buffer::uninit(runtime, "workspace", Dtype::U8, &[bytes.max(256)])
}

/// What the device-side check found, if there was one.
pub(super) fn read_check(workspace: &Buffer<'_>, check: CheckMode) -> Result<()> {
    if check == CheckMode::Device {
        check_result(&workspace.read()?[..CHECK_BYTES])?;
    }
    Ok(())
}
