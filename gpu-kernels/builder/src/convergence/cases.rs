//! Looking at a kernel once for each outcome of a condition.
//!
//! A kernel that asks twice whether the same parameter is 0 goes two of the four ways that its branches seem to have.
//! Where something is wrong only on the others, nothing is: so a condition that threads share, and that is decided once
//! for all, is taken to be true, and then to be false.

use anyhow::Result;

use super::Finding;
use super::analysis::{Analysis, analyse};
use super::body::Body;
use super::flow::Flow;
use super::judge::Judge;
use super::operation::together;
use super::parse::parse;
use super::ssa::{self, Values};

/// Conditions that are assumed at a time.
const DEPTH: usize = 4;
/// Conditions that are tried before one is given up.
const TRIED: usize = 12;

/// Jumps that have the same condition, and whether it is negated.
type Condition = Vec<(usize, bool)>;
/// A jump, and whether it is taken.
type Decision = (usize, bool);

/// What is wrong with a module, whatever its conditions are.
pub(super) fn examine(module: &str) -> Result<Vec<Finding>> {
    resolve(module, Case::of(module, &[])?, &[], DEPTH)
}

/// What remains of the findings of a case once conditions are told apart by which they may be excluded.
fn resolve(module: &str, case: Case, decided: &[Decision], depth: usize) -> Result<Vec<Finding>> {
    let Some(depth) = depth.checked_sub(1) else {
        return Ok(case.findings);
    };
    for condition in case.conditions.iter().take(TRIED) {
        let mut cases = Vec::new();
        for outcome in [true, false] {
            let jumps = condition.iter();
            let here = jumps.map(|&(jump, is_negated)| (jump, outcome != is_negated));
            let decided: Vec<Decision> = decided.iter().copied().chain(here).collect();
            cases.push((Case::of(module, &decided)?, decided));
        }
        if cases
            .iter()
            .all(|(one, _)| one.num_waiting() < case.num_waiting())
        {
            let mut findings: Vec<Finding> = Vec::new();
            for (case, decided) in cases {
                let rest = resolve(module, case, &decided, depth)?;
                for finding in rest {
                    if !findings.contains(&finding) {
                        findings.push(finding);
                    }
                }
            }
            return Ok(findings);
        }
    }
    Ok(case.findings)
}

/// A module, if some of its conditions are known.
struct Case {
    findings: Vec<Finding>,
    /// Conditions that may exclude one.
    conditions: Vec<Condition>,
}

impl Case {
    fn of(module: &str, decided: &[Decision]) -> Result<Self> {
        let mut body = parse(module)?;
        for &(jump, is_taken) in decided {
            body.decide(jump, is_taken);
        }
        if !body.instrs.iter().any(|instr| together(instr).is_some()) {
            return Ok(Self {
                findings: Vec::new(),
                conditions: Vec::new(),
            });
        }
        let flow = Flow::of(&body);
        let values = ssa::rename(&mut body, &flow);
        let analysis = analyse(&body, &flow, &values);
        let judge = Judge {
            module,
            body: &body,
            flow: &flow,
            values: &values,
            analysis: &analysis,
        };
        let (blocks, findings): (Vec<usize>, Vec<Finding>) = judge.findings().into_iter().unzip();
        Ok(Self {
            conditions: conditions(&body, &flow, &values, &analysis, &blocks),
            findings,
        })
    }

    fn num_waiting(&self) -> usize {
        let findings = self.findings.iter();
        findings.map(|finding| finding.waiting.len()).sum()
    }
}

/// Conditions of which a jump lies where threads are apart that part at the end of one of these blocks, and another
/// anywhere.
fn conditions(
    body: &Body<'_>,
    flow: &Flow,
    values: &Values,
    analysis: &Analysis,
    blocks: &[usize],
) -> Vec<Condition> {
    let apart: Vec<_> = blocks.iter().map(|&block| flow.apart(block)).collect();
    let mut known: Vec<(usize, Condition)> = Vec::new();
    let mut matter = Vec::new();
    let branches = analysis.branches.iter();
    for branch in branches.filter(|branch| branch.threads == 0) {
        let jump = flow.blocks[branch.block].end - 1;
        let instr = &body.instrs[jump];
        let Some(guard) = instr.guard.filter(|_| instr.base() == "bra") else {
            continue;
        };
        let value = analysis.same[guard];
        let place = known.iter().position(|(other, _)| *other == value);
        let place = place.unwrap_or(known.len());
        if place == known.len() {
            known.push((value, Vec::new()));
        }
        known[place].1.push((jump, instr.is_negated));
        if apart.iter().any(|apart| apart.is_in[branch.block]) {
            matter.push(place);
        }
    }
    matter.sort_unstable();
    matter.dedup();
    let is_decided_once = |value: usize| !flow.is_in_loop(values.block_of[value]);
    let matter = matter.into_iter().map(|place| known[place].clone());
    matter
        .filter(|(value, jumps)| jumps.len() > 1 && is_decided_once(*value))
        .map(|(_, jumps)| jumps)
        .collect()
}
