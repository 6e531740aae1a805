//! Random requests: valid ones against the reference, and each with one mistake in it, in the request or in device
//! memory.

use std::panic::{AssertUnwindSafe, catch_unwind};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::break_request::break_request;
use super::case::Case;
use super::corrupt_memory::corrupt_memory;
use super::draw;
use super::run::run_case;
use crate::emulator::Emulator;
use crate::plan::DeviceInfo;
use crate::runtime::Runtime;

pub use super::draw::OPERATIONS;

/// One random request.
#[derive(Clone, Debug, PartialEq)]
pub struct Drawn {
    /// The case.
    pub case: Case,
    /// What fills its tensors.
    pub seed: u64,
    /// What an emulator passes for.
    device: DeviceInfo,
    random: ChaCha8Rng,
}

/// Requests of `operations` in turn, drawn from `seed`, without end. Every second of an operation is for an emulated H200,
/// which has kernels and shared memory that the plain emulator lacks.
pub fn requests(operations: &[&str], seed: u64) -> impl Iterator<Item = Drawn> {
    let num_operations = operations.len().max(1) as u64;
    (0..)
        .zip(operations.iter().cycle())
        .map(move |(at, operation)| {
            let round = at / num_operations;
            let mut random = ChaCha8Rng::seed_from_u64(seed);
            random.set_stream(at);
            Drawn {
                case: draw::draw(operation, &mut random),
                // Short enough to type.
                seed: random.random_range(0..1_000_000),
                device: match round % 2 {
                    0 => DeviceInfo::EMULATED,
                    _ => DeviceInfo::H200,
                },
                random,
            }
        })
}

impl Drawn {
    /// A fresh emulator of the kind that the request is for.
    #[must_use]
    pub fn emulator(&self) -> Emulator {
        Emulator::with_seed(self.seed).with_device(self.device)
    }

    /// Runs the case and compares it with the reference.
    ///
    /// # Errors
    /// In words: it was refused, the machine failed, the output is wrong, something panicked.
    pub fn judge(&self, runtime: &dyn Runtime) -> Result<(), String> {
        without_panic(|| {
            let outcome = run_case(&self.case, runtime, self.seed).map_err(|e| e.to_string())?;
            match outcome.verdict {
                Ok(_) => Ok(()),
                Err(mismatch) => Err(format!("{mismatch} ({})", outcome.plan)),
            }
        })
    }

    /// Makes a mistake in the request, and says which; none if it could not be made. Only for an emulator, which
    /// looks at every access.
    ///
    /// # Errors
    /// In words: there was no error, it was not one of the request, something was written, something panicked.
    pub fn judge_broken(&self, runtime: &dyn Runtime) -> Result<Option<String>, String> {
        without_panic(|| break_request(&self.case, runtime, self.seed, &mut self.random.clone()))
    }

    /// Puts a wrong value into device memory where the check on the device looks, and says into which tensor; none if
    /// the case has no check, or the check nothing to look at. Only for an emulator, which looks at every access.
    ///
    /// # Errors
    /// In words: the check did not name the value, something was written, something panicked.
    pub fn judge_corrupted(&self, runtime: &dyn Runtime) -> Result<Option<String>, String> {
        without_panic(|| corrupt_memory(&self.case, runtime, self.seed, &mut self.random.clone()))
    }

    /// The command that runs the case again, on a GPU.
    pub fn replay(&self) -> String {
        format!(
            "ferroattn sweep --case '{}' --seed {}",
            self.case, self.seed
        )
    }
}

fn without_panic<T>(work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied());
        Err(format!("panicked: {}", text.unwrap_or("without a word")))
    })
}
