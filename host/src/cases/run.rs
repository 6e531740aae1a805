//! Running a case on a machine and judging what comes back.

use super::base::compare::Accuracy;
use super::base::mismatch::Mismatch;
use super::base::same_bytes::same_bytes;
use super::base::tensors::Amount;
use super::case::Case;
use crate::error::{RequestError, Result};
use crate::reference::HostTensor;
use crate::runtime::Runtime;

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
    /// Compares the outputs with another run's of the same case, bit for bit.
    ///
    /// # Errors
    /// The first byte that differs; `expected` is the other run's.
    pub fn same_outputs(&self, other: &Self) -> Result<(), Mismatch> {
        assert_eq!(self.outputs.len(), other.outputs.len(), "one case");
        self.outputs
            .iter()
            .zip(&other.outputs)
            .try_for_each(|(ours, theirs)| same_bytes(ours, &theirs.storage.bytes))
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
    let mut device = case.on(runtime, seed, ONE_SET)?;
    let plan = device.launch(0, runtime)?;
    runtime.synchronize()?;
    device.find_fault()?;
    let mut outcome = Outcome {
        plan,
        verdict: Ok(Accuracy::default()),
        outputs: device.outputs()?,
    };
    outcome.verdict = match before {
        Some(before) if outcome.same_outputs(before).is_ok() => before.verdict.clone(),
        _ => device.judge(&outcome.outputs, REFERENCE_BUDGET),
    };
    Ok(outcome)
}
