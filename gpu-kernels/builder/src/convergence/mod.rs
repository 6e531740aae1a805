//! Threads that have to meet, and cannot.
//!
//! `bar.sync`, `mma.sync`, `shfl.sync` and their like wait for all threads of a block or of a warp, which may not have
//! parted on the way. Rust cannot tell its compilers so: `asm!` has no way to say `convergent`, and LLVM may copy such an
//! instruction into both arms of a branch that some lanes of a warp take and others do not. With a barrier in each arm,
//! a GPU hangs. Nothing that runs on a CPU can see this; PTX shows it.
//!
//! So a kernel's branches are told apart by who takes them: all threads of a block alike, all lanes of a warp, or each
//! thread as it likes. What waits may not stand where threads are apart for which it waits. Threads that part at a branch
//! are taken to be together again where all ways from it meet. Values in memory are taken to be what they are to
//! whoever loads them: two threads that load from one address load the same.
//!
//! | module | holds |
//! |---|---|
//! | `parse`, `body` | PTX as instructions |
//! | `operation` | what each does, and who has to come to it together |
//! | `flow` | blocks, and where ways part and meet |
//! | `ssa` | registers as values that are defined once |
//! | `congruence` | values that are always the same |
//! | `dependence`, `transfer`, `butterfly` | on which bits of a thread's index a value depends |
//! | `analysis` | all of that until nothing new is learnt |
//! | `judge`, `copies` | what waits where it should not, and what may |
//! | `cases` | a kernel once for each outcome of a condition |

mod analysis;
mod body;
mod butterfly;
mod cases;
mod congruence;
mod copies;
mod dependence;
mod flow;
mod judge;
mod operation;
mod parse;
mod ssa;
#[cfg(test)]
mod tests;
mod transfer;

use std::num::NonZero;
use std::{fmt, thread};

use anyhow::{Context, Result};

use crate::ptx;
use crate::ptx_set::PtxSet;

/// A branch at which threads part, and what they do not come to together then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The branch.
    pub branch: Place,
    /// Whether lanes of one warp part, or only warps.
    pub is_within_warp: bool,
    /// The instructions that decide it, from the branch back to what threads differ in.
    pub because: Vec<Place>,
    /// Instructions that wait for threads that may not come.
    pub waiting: Vec<Place>,
}

/// A kernel in which threads that have to meet may not.
#[derive(Clone, Debug)]
pub struct Refused<'s> {
    /// The PTX symbol.
    pub kernel: &'s str,
    /// Of the PTX.
    pub arch: &'s str,
    /// The PTX.
    pub module: &'s str,
    /// At least one.
    pub findings: Vec<Finding>,
}

/// An instruction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Line in the module, the first being 1.
    pub line: usize,
    /// The instruction.
    pub text: String,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text: Vec<&str> = self.text.split_whitespace().collect();
        write!(f, "line {}: `{}`", self.line, text.join(" "))
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let who = if self.is_within_warp {
            "lanes of a warp"
        } else {
            "warps"
        };
        write!(f, "{who} part at {}", self.branch)?;
        for place in &self.because {
            write!(f, "\n    because of {place}")?;
        }
        for place in self.waiting.iter().take(SHOWN) {
            write!(f, "\n    and do not come together to {place}")?;
        }
        if let Some(more @ 1..) = self.waiting.len().checked_sub(SHOWN) {
            write!(f, "\n    and to {more} more")?;
        }
        Ok(())
    }
}

/// Instructions of a kind that are shown.
const SHOWN: usize = 4;

/// The kernels of a set that are to be refused.
///
/// # Errors
/// A kernel is not understood.
pub fn check_set(set: &PtxSet) -> Result<Vec<Refused<'_>>> {
    let kernels = set.manifest.kernels.iter().zip(&set.texts);
    let modules: Vec<(&str, &str, &str)> = kernels
        .flat_map(|(kernel, text)| {
            let archs = kernel.archs.iter();
            archs.filter_map(|arch| Some((&*kernel.name, &**arch, ptx::module(text, arch)?)))
        })
        .collect();
    let workers = thread::available_parallelism().map_or(1, NonZero::get);
    let check_some = |worker: usize| {
        let mine = modules.iter().skip(worker).step_by(workers);
        let checked = mine.map(|&(kernel, arch, module)| {
            let findings = check(module).with_context(|| format!("{kernel} for {arch}"))?;
            Ok(Refused {
                kernel,
                arch,
                module,
                findings,
            })
        });
        checked.collect::<Result<Vec<_>>>()
    };
    let mut refused = thread::scope(|scope| {
        let running: Vec<_> = (0..workers)
            .map(|worker| scope.spawn(move || check_some(worker)))
            .collect();
        let results = running
            .into_iter()
            .map(|job| job.join().expect("checking does not panic"));
        results.collect::<Result<Vec<_>>>()
    })?
    .concat();
    refused.retain(|kernel| !kernel.findings.is_empty());
    refused.sort_by_key(|kernel| (kernel.kernel, kernel.arch));
    Ok(refused)
}

/// What is wrong with the entry of a module.
///
/// # Errors
/// The module is not understood.
pub fn check(module: &str) -> Result<Vec<Finding>> {
    cases::examine(module)
}
