//! From what values depend on to where threads part, and back: what a value is may depend on the way that led to it.

use super::body::{Body, Part};
use super::butterfly::{self, Fold};
use super::congruence::representatives;
use super::dependence::{Dependence, NOTHING};
use super::flow::{Flow, Region};
use super::operation::{Kind, LANE};
use super::ssa::{Phi, Values};
use super::transfer::State;

/// A jump that threads of a block take or not.
#[derive(Debug)]
pub(super) struct Branch {
    /// It ends this block.
    pub(super) block: usize,
    /// Bits of the thread's index that decide.
    pub(super) threads: u32,
    /// Where they are apart.
    pub(super) apart: Region,
}

/// What is known of a body in the end.
#[derive(Debug)]
pub(super) struct Analysis {
    pub(super) state: State,
    pub(super) branches: Vec<Branch>,
    /// By value, the branch on which it depends because threads come together that took different ways.
    pub(super) blame: Vec<Option<usize>>,
    /// By value, one that is always the same.
    pub(super) same: Vec<usize>,
    /// By block, bits of the index of threads that may be apart there.
    apart: Vec<u32>,
}

/// Follows a body until nothing new is learnt.
pub(super) fn analyse(body: &Body<'_>, flow: &Flow, values: &Values) -> Analysis {
    let same = representatives(body, flow, values);
    let mut defined = vec![Vec::new(); flow.successors.len()];
    for (value, &block) in values.block_of.iter().enumerate() {
        defined[block].push(value);
    }
    let threads = body.threads.unwrap_or(1024).max(2);
    let mut follower = Follower {
        folds: butterfly::folds(body, values, &same),
        body,
        flow,
        values,
        defined,
        known: Analysis {
            state: State {
                of: vec![NOTHING; values.definitions.len()],
                index: threads.next_power_of_two() - 1,
                is_linear: body.threads.is_some(),
            },
            branches: branches(flow),
            blame: vec![None; values.definitions.len()],
            same,
            apart: vec![0; flow.successors.len()],
        },
    };
    while follower.values() | follower.ways() {}
    follower.known
}

struct Follower<'a> {
    body: &'a Body<'a>,
    flow: &'a Flow,
    values: &'a Values,
    folds: Vec<Option<Fold<'a>>>,
    /// By block, the values that it defines.
    defined: Vec<Vec<usize>>,
    known: Analysis,
}

impl Follower<'_> {
    fn learn(&mut self, value: usize, new: Dependence) -> bool {
        let of = &mut self.known.state.of[value];
        let all = of.or(new);
        let is_new = all != *of;
        *of = all;
        is_new
    }

    /// What values depend on by their sources. Whether that is news.
    fn values(&mut self) -> bool {
        let (flow, values) = (self.flow, self.values);
        let mut changed = false;
        for &block in &flow.order {
            for phi in &values.phis[block] {
                let of = &self.known.state.of;
                let same = self.known.same[phi.value];
                let chosen = if same == phi.value {
                    let sources = phi.sources.iter().map(|&source| of[source]);
                    sources.fold(NOTHING, Dependence::or)
                } else {
                    of[same]
                };
                changed |= self.learn(phi.value, chosen);
            }
            if block != flow.end() {
                for index in flow.blocks[block].clone() {
                    changed |= self.instruction(index, self.known.apart[block] & LANE != 0);
                }
            }
        }
        changed
    }

    fn instruction(&mut self, index: usize, are_lanes_apart: bool) -> bool {
        let body = self.body;
        let instr = &body.instrs[index];
        if instr.written == 0 {
            return false;
        }
        let kind = match instr.operation.kind {
            // Other lanes may give something else, at a copy of the instruction.
            Kind::Exchange(_) | Kind::Agree if are_lanes_apart => Kind::Unknown,
            kind => kind,
        };
        let fold = self.folds[index].filter(|_| !are_lanes_apart);
        let lanes = fold.and_then(|fold| fold.lanes(body, &self.known.state));
        let mut changed = false;
        for (place, part) in instr.operands[0].parts.iter().enumerate() {
            if let Part::Register(value) = *part {
                let result = self.known.state.result(instr, kind, place, lanes);
                changed |= self.learn(value, result);
            }
        }
        changed
    }

    /// Lets threads part, and meet: what is chosen then depends on who came which way, and so does what they bring
    /// along, of which some threads may have a later one.
    fn ways(&mut self) -> bool {
        let mut changed = false;
        for number in 0..self.known.branches.len() {
            let branch = &mut self.known.branches[number];
            let last = &self.body.instrs[self.flow.blocks[branch.block].end - 1];
            let index = last.operands.first().filter(|_| last.base() == "brx");
            let index = index.into_iter().flat_map(|index| index.registers());
            let of = &self.known.state.of;
            let deciding = last.guard.into_iter().chain(index);
            let threads = deciding.fold(0, |all, value| all | of[value].threads);
            if threads == branch.threads {
                continue;
            }
            branch.threads = threads;
            if branch.apart.is_in.is_empty() {
                branch.apart = self.flow.apart(branch.block);
            }
            for &block in &branch.apart.blocks {
                self.known.apart[block] |= threads;
            }
            for value in self.chosen(number) {
                if self.learn(value, Dependence::on(threads)) {
                    self.known.blame[value].get_or_insert(number);
                }
            }
            changed = true;
        }
        changed
    }

    /// Values that depend on who took which way at a branch: what is chosen where threads meet, and what they bring
    /// along from where they were apart. (Where they are apart, nothing may wait for them all anyway.)
    fn chosen(&self, branch: usize) -> Vec<usize> {
        let branch = &self.known.branches[branch];
        let apart = &branch.apart.is_in;
        // What was there before they parted is still the same, whoever computes it again.
        let is_settled = |value: usize| !apart[self.values.block_of[self.known.same[value]]];
        let is_used_outside = |value: usize| {
            let mut users = self.values.used_in[value].iter();
            users.any(|&user| !apart[user])
        };
        let mut chosen = Vec::new();
        for &block in &branch.apart.blocks {
            let defined = self.defined[block].iter().copied();
            chosen.extend(defined.filter(|&value| is_used_outside(value) && !is_settled(value)));
        }
        let Some(meeting) = self.flow.meeting[branch.block] else {
            return chosen;
        };
        let is_from_both = |phi: &&Phi| {
            let ways = self.flow.predecessors[meeting].iter().zip(&phi.sources);
            let mut brought = ways
                .filter(|&(&from, _)| from == branch.block || apart[from])
                .map(|(_, &source)| source);
            let first = brought.next();
            let is_one = brought.all(|source| Some(source) == first);
            !(is_one && first.is_none_or(is_settled))
        };
        let phis = self.values.phis[meeting].iter();
        let phis = phis.filter(|phi| self.known.same[phi.value] == phi.value);
        chosen.extend(phis.filter(is_from_both).map(|phi| phi.value));
        chosen
    }
}

/// Jumps that have a choice.
fn branches(flow: &Flow) -> Vec<Branch> {
    let has_choice = |block: &usize| flow.successors[*block].len() > 1;
    let branch = |block| Branch {
        block,
        threads: 0,
        apart: Region::default(),
    };
    flow.order
        .iter()
        .copied()
        .filter(has_choice)
        .map(branch)
        .collect()
}
