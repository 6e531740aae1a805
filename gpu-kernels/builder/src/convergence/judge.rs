//! What is wrong with a body of which everything is known.

use super::analysis::{Analysis, Branch};
use super::body::Body;
use super::copies::are_on_all_ways;
use super::flow::Flow;
use super::operation::{LANE, Together, together};
use super::ssa::{Definition, Values};
use super::{Finding, Place};

pub(super) struct Judge<'a> {
    pub(super) module: &'a str,
    pub(super) body: &'a Body<'a>,
    pub(super) flow: &'a Flow,
    pub(super) values: &'a Values,
    pub(super) analysis: &'a Analysis,
}

impl Judge<'_> {
    /// Branches behind which threads wait for such as do not come, and the findings of which they are.
    pub(super) fn findings(&self) -> Vec<(usize, Finding)> {
        let branches = &self.analysis.branches;
        let branches = branches.iter().filter(|branch| branch.threads != 0);
        let mut findings: Vec<_> = branches
            .filter_map(|branch| Some((branch.block, self.behind(branch)?)))
            .collect();
        for (block, instrs) in self.flow.blocks.iter().enumerate() {
            findings.extend(instrs.clone().filter_map(|index| {
                let guard = self.body.instrs[index].guard?;
                let threads = self.analysis.state.of[guard].threads;
                let apart = self.together(index)?.threads & threads;
                let waiting = vec![self.place(index)];
                (apart != 0).then(|| (block, self.finding(index, apart, waiting)))
            }));
        }
        findings
    }

    /// What threads do not come to together that part at a branch.
    fn behind(&self, branch: &Branch) -> Option<Finding> {
        let waits = |index: usize| {
            let together = self.together(index)?;
            (together.threads & branch.threads != 0).then_some((index, together))
        };
        let mut blocks = branch.apart.blocks.clone();
        blocks.sort_unstable();
        let instrs = |block: usize| self.flow.blocks[block].clone();
        let all: Vec<(usize, Together)> = blocks
            .iter()
            .flat_map(|&block| instrs(block).filter_map(waits))
            .collect();
        let is_exchange = |&(_, together): &(usize, Together)| together.lanes.is_some();
        // Whoever has a guard comes or not.
        let is_guarded = |&(index, _): &(usize, Together)| self.body.instrs[index].guard.is_some();
        let exchanges = |block: usize| {
            let here = instrs(block).filter_map(waits).filter(is_exchange);
            here.map(|(index, _)| self.body.instrs[index].opcode)
                .collect()
        };
        let find_each_other = all.iter().any(is_exchange)
            && !all.iter().filter(|one| is_exchange(one)).any(is_guarded)
            && are_on_all_ways(self.flow, branch, exchanges);
        let waiting = all
            .iter()
            .filter(|one| !(find_each_other && is_exchange(one)));
        let split = waiting.clone().fold(0, |split, (_, together)| {
            split | together.threads & branch.threads
        });
        let waiting = waiting.map(|&(index, _)| self.place(index)).collect();
        let at = self.flow.blocks[branch.block].end - 1;
        (split != 0).then(|| self.finding(at, split, waiting))
    }

    /// Who has to come to an instruction together, if any: not, if some lanes need not come at all.
    fn together(&self, index: usize) -> Option<Together> {
        let instr = &self.body.instrs[index];
        let together = together(instr)?;
        let state = &self.analysis.state;
        let some_stay_away = together.lanes.is_some_and(|lanes| {
            let lanes = &instr.operands[lanes];
            let part = lanes.parts.first();
            let known = part.and_then(|&part| state.of_part(part).as_number());
            known.is_some() && !state.are_all_lanes(lanes)
        });
        (!some_stay_away).then_some(together)
    }

    fn finding(&self, at: usize, split: u32, waiting: Vec<Place>) -> Finding {
        Finding {
            branch: self.place(at),
            is_within_warp: split & LANE != 0,
            because: self.because(at, split),
            waiting,
        }
    }

    /// From an instruction back along what depends on these threads.
    fn because(&self, at: usize, split: u32) -> Vec<Place> {
        let mut because = Vec::new();
        let mut seen = vec![at];
        let mut at = at;
        loop {
            let instr = &self.body.instrs[at];
            let sources = instr.sources().iter();
            let sources = sources.flat_map(|operand| operand.registers());
            let mut guilty = (instr.guard.into_iter().chain(sources))
                .filter(|&value| self.analysis.state.of[value].threads & split != 0)
                .filter_map(|value| self.origin(value))
                .filter(|next| !seen.contains(next));
            let Some(next) = guilty.next() else {
                return because;
            };
            seen.push(next);
            because.push(self.place(next));
            at = next;
        }
    }

    /// The instruction that made a value what it is: its own, or a branch.
    fn origin(&self, value: usize) -> Option<usize> {
        if let Some(branch) = self.analysis.blame[value] {
            let block = self.analysis.branches[branch].block;
            return Some(self.flow.blocks[block].end - 1);
        }
        match self.values.definitions[value] {
            Definition::Instr(index) => Some(index),
            Definition::Phi { block } => {
                let mut phis = self.values.phis[block].iter();
                let phi = phis.find(|phi| phi.value == value)?;
                let mut sources = phi.sources.iter().filter(|&&source| {
                    self.analysis.state.of[source].threads != 0 && source != value
                });
                sources.find_map(|&source| match self.values.definitions[source] {
                    Definition::Instr(index) => Some(index),
                    Definition::Phi { .. } | Definition::Nothing => None,
                })
            }
            Definition::Nothing => None,
        }
    }

    fn place(&self, index: usize) -> Place {
        let instr = &self.body.instrs[index];
        Place {
            line: self.module[..instr.at].matches('\n').count() + 1,
            text: instr.text.to_owned(),
        }
    }
}
