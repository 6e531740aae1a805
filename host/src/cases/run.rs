//! Running a case on a machine and judging what comes back.

use super::fill::{self, Amount, DecodeTensors};
use super::{
    Accuracy, CacheWriteCase, Case, DecodeCase, DeviceCacheWrite, DeviceDecode, Mismatch, compare,
};
use crate::error::{RequestError, Result};
use crate::ops::{CHECK_BYTES, CheckMode, check_result};
use crate::reference::{self, DecodeInputs, HostTensor};
use crate::runtime::{Buffer, Runtime};
use crate::tensor::Dtype;

/// What became of a case.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The plan, on one line.
    pub plan: String,
    /// How near the output came, or where it is wrong. A cache write is exact or wrong.
    pub verdict: Result<Accuracy, Mismatch>,
    /// Every tensor that was written, with the bytes that lie between its elements.
    pub outputs: Vec<HostTensor>,
}

impl Outcome {
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

/// Host memory that a case may take: beyond it, its cache repeats a pattern.
const PATTERN_BYTES: usize = 1 << 30;
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
        Case::Decode(case) => run_decode(case, runtime, seed),
        Case::CacheWrite(case) => run_cache_write(case, runtime, seed),
    }
}

fn run_decode(case: &DecodeCase, runtime: &dyn Runtime, seed: u64) -> Result<Outcome> {
    let amount = Amount {
        sets: 1,
        pattern_bytes: PATTERN_BYTES,
    };
    let mut device = DeviceDecode::new(runtime, fill::decode(case, seed, amount))?;
    let checked = device.request(0, case.scale(), case.options())?.check()?;
    let plan = checked.plan(&runtime.device())?;
    let mut workspace = workspace(runtime, plan.workspace_bytes())?;
    checked.launch(&plan, &mut workspace.view_mut(), runtime)?;
    runtime.synchronize()?;
    read_check(&workspace, case.check)?;
    let (out, lse) = device.results()?;
    let seqs = sample_seqs(case, seed, REFERENCE_BUDGET);
    Ok(Outcome {
        plan: plan.to_string(),
        verdict: compare_decode(case, device.tensors(), &out, lse.as_ref(), &seqs),
        outputs: [out].into_iter().chain(lse).collect(),
    })
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
    let inputs = DecodeInputs {
        query: &tensors.query,
        key_cache: &tensors.key_cache,
        value_cache: &tensors.value_cache,
        block_table: &tensors.block_table,
        seq_lens: &tensors.seq_lens,
        softmax_scale: f64::from(case.scale()),
        scales: tensors.scales.as_ref().map(|scales| reference::Scales {
            q_scale: scales.q_scale.as_ref(),
            k_scale: &scales.k_scale,
            v_scale: &scales.v_scale,
        }),
        max_seq_len: case.max_seq_len.map(|bound| bound as usize),
    };
    let expected = reference::decode(&inputs, seqs);
    let accuracy = compare::decode(out, lse, seqs, &expected)?;
    compare::gaps_untouched(&tensors.out, out)?;
    Ok(accuracy)
}

/// All sequences if the reference can do them with `budget` multiplications, else as many as it can: the
/// first, the last, the longest, the shortest, and others spread between.
pub fn sample_seqs(case: &DecodeCase, seed: u64, budget: u64) -> Vec<usize> {
    let tokens = case.tokens(seed);
    let per_token = (case.num_query_heads * (case.cache.head_size + case.cache.head_size_v)) as u64;
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

fn run_cache_write(case: &CacheWriteCase, runtime: &dyn Runtime, seed: u64) -> Result<Outcome> {
    let mut device = DeviceCacheWrite::new(runtime, fill::cache_write(case, seed, Amount::WHOLE))?;
    let checked = device.request(0, case.num_tokens, case.check)?.check()?;
    let plan = checked.plan();
    let mut workspace = workspace(runtime, plan.workspace_bytes())?;
    checked.launch(&plan, &mut workspace.view_mut(), runtime)?;
    runtime.synchronize()?;
    read_check(&workspace, case.check)?;

    let (key_cache, value_cache) = device.results()?;
    let tensors = device.tensors();
    let slots = &tensors.slot_mapping;
    let mut keys = tensors.key_cache.storage.bytes.clone();
    reference::reshape_and_cache_flash(&tensors.key, slots, &tensors.key_cache, &mut keys);
    let mut values = if case.cache.layout.is_packed() {
        keys.clone()
    } else {
        tensors.value_cache.storage.bytes.clone()
    };
    reference::reshape_and_cache_flash(&tensors.value, slots, &tensors.value_cache, &mut values);
    if case.cache.layout.is_packed() {
        keys.clone_from(&values);
    }
    let verdict = compare::same_bytes(&key_cache, &keys)
        .and_then(|()| compare::same_bytes(&value_cache, &values))
        .map(|()| Accuracy::default());
    Ok(Outcome {
        plan: plan.to_string(),
        verdict,
        outputs: vec![key_cache, value_cache],
    })
}

/// A workspace of at least `bytes` bytes.
fn workspace(runtime: &dyn Runtime, bytes: usize) -> Result<Buffer<'_>> {
    Buffer::uninit(runtime, "workspace", Dtype::U8, &[bytes.max(256)])
}

/// What the device-side check found, if there was one.
fn read_check(workspace: &Buffer<'_>, check: CheckMode) -> Result<()> {
    if check == CheckMode::Device {
        check_result(&workspace.read()?[..CHECK_BYTES])?;
    }
    Ok(())
}
