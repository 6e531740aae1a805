//! Registers become values that are defined once: every definition is a value of its own, and where several may be
//! meant, the block begins with a [`Phi`] that chooses by the way on which it is entered (static single assignment).
//!
//! Compilers keep several values in one register where their lives do not meet. Of registers one could only say what is
//! true of all of their values.

use super::body::{Body, Part};
use super::flow::Flow;

/// The value of a register that nothing was written to.
pub(super) const UNDEFINED: usize = 0;

/// A value that depends on where a block is entered from.
#[derive(Debug)]
pub(super) struct Phi {
    pub(super) value: usize,
    register: usize,
    /// One for each predecessor of the block.
    pub(super) sources: Vec<usize>,
}

/// Where a value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Definition {
    Nothing,
    Instr(usize),
    Phi { block: usize },
}

/// What renaming adds to a body.
#[derive(Debug)]
pub(super) struct Values {
    pub(super) definitions: Vec<Definition>,
    /// By block.
    pub(super) phis: Vec<Vec<Phi>>,
    /// By value, where it is defined; the end, if nowhere.
    pub(super) block_of: Vec<usize>,
    /// By value, the blocks that need it; a phi needs it at the end of the block it comes from.
    pub(super) used_in: Vec<Vec<usize>>,
}

/// Renames the registers of a body to values. What is never reached is removed.
pub(super) fn rename(body: &mut Body<'_>, flow: &Flow) -> Values {
    let mut is_reached = vec![false; flow.successors.len()];
    flow.order
        .iter()
        .for_each(|&block| is_reached[block] = true);
    for (block, instrs) in flow.blocks.iter().enumerate() {
        if !is_reached[block] {
            instrs.clone().for_each(|index| body.remove(index));
        }
    }
    let mut renaming = Renaming::of(body, flow);
    renaming.insert_phis(flow);
    renaming.walk(body, flow);
    body.num_registers = renaming.values.definitions.len();
    renaming.values.block_of = block_of(body, flow, &renaming.values);
    renaming.values.used_in = used_in(body, flow, &renaming.values);
    renaming.values
}

struct Renaming {
    /// By register, the blocks that write it, once for each time.
    written_in: Vec<Vec<usize>>,
    /// By register, whether a block needs what another wrote.
    crosses: Vec<bool>,
    /// By register, the values that it has on the way to the block that is being renamed, the last being current.
    current: Vec<Vec<usize>>,
    values: Values,
}

impl Renaming {
    fn of(body: &mut Body<'_>, flow: &Flow) -> Self {
        let mut written_in = vec![Vec::new(); body.num_registers];
        let mut crosses = vec![false; body.num_registers];
        let mut last_written = vec![usize::MAX; body.num_registers];
        for &block in flow.order.iter().filter(|&&block| block != flow.end()) {
            for instr in &mut body.instrs[flow.blocks[block].clone()] {
                let (to, from) = instr.operands.split_at(instr.written);
                let to = || to.iter().flat_map(|operand| operand.registers());
                if instr.guard.is_some() {
                    instr.kept = to().collect();
                }
                let from = from.iter().flat_map(|operand| operand.registers());
                for register in from.chain(instr.guard).chain(instr.kept.iter().copied()) {
                    crosses[register] |= last_written[register] != block;
                }
                for register in to() {
                    last_written[register] = block;
                    written_in[register].push(block);
                }
            }
        }
        Self {
            current: vec![Vec::new(); written_in.len()],
            written_in,
            crosses,
            values: Values {
                definitions: vec![Definition::Nothing],
                phis: flow.successors.iter().map(|_| Vec::new()).collect(),
                block_of: Vec::new(),
                used_in: Vec::new(),
            },
        }
    }

    fn define(&mut self, register: usize, definition: Definition) -> usize {
        let value = self.values.definitions.len();
        self.values.definitions.push(definition);
        self.current[register].push(value);
        value
    }

    /// Wherever paths from two definitions meet first, one that chooses is defined.
    fn insert_phis(&mut self, flow: &Flow) {
        let frontiers = frontiers(flow);
        let mut has_phi = vec![usize::MAX; frontiers.len()];
        for (register, blocks) in self.written_in.iter().enumerate() {
            if blocks.len() < 2 || !self.crosses[register] {
                continue;
            }
            let mut open = blocks.clone();
            while let Some(block) = open.pop() {
                for &meeting in &frontiers[block] {
                    if has_phi[meeting] != register {
                        has_phi[meeting] = register;
                        let sources = vec![UNDEFINED; flow.predecessors[meeting].len()];
                        self.values.phis[meeting].push(Phi {
                            value: UNDEFINED,
                            register,
                            sources,
                        });
                        open.push(meeting);
                    }
                }
            }
        }
    }

    /// Goes down the tree of dominators, in which every definition stands above its uses.
    fn walk(&mut self, body: &mut Body<'_>, flow: &Flow) {
        let mut below = vec![Vec::new(); flow.successors.len()];
        for &block in &flow.order {
            if let Some(above) = flow.dominator[block] {
                below[above].push(block);
            }
        }
        // A register that is written once has that value everywhere.
        for register in 0..self.written_in.len() {
            if self.written_in[register].len() == 1 {
                self.define(register, Definition::Nothing);
            }
        }
        let mut open = vec![(0, 0)];
        let mut defined: Vec<Vec<usize>> = vec![self.enter(0, body, flow)];
        while let Some((block, next)) = open.last_mut() {
            if let Some(&child) = below[*block].get(*next) {
                *next += 1;
                open.push((child, 0));
                defined.push(self.enter(child, body, flow));
            } else {
                open.pop();
                for register in defined.pop().into_iter().flatten() {
                    self.current[register].pop();
                }
            }
        }
    }

    fn value(&self, register: usize) -> usize {
        self.current[register].last().copied().unwrap_or(UNDEFINED)
    }

    /// The value that an instruction gives a register.
    fn write(&mut self, register: usize, instr: usize, defined: &mut Vec<usize>) -> usize {
        if self.written_in[register].len() == 1 {
            let value = self.value(register);
            self.values.definitions[value] = Definition::Instr(instr);
            return value;
        }
        defined.push(register);
        self.define(register, Definition::Instr(instr))
    }

    /// Renames what a block uses and writes, and what it hands to phis behind it. The registers it wrote.
    fn enter(&mut self, block: usize, body: &mut Body<'_>, flow: &Flow) -> Vec<usize> {
        let mut defined = Vec::new();
        for index in 0..self.values.phis[block].len() {
            let register = self.values.phis[block][index].register;
            let value = self.define(register, Definition::Phi { block });
            self.values.phis[block][index].value = value;
            defined.push(register);
        }
        if block == flow.end() {
            return defined;
        }
        for index in flow.blocks[block].clone() {
            let instr = &mut body.instrs[index];
            let (to, from) = instr.operands.split_at_mut(instr.written);
            for operand in from {
                for part in &mut operand.parts {
                    if let Part::Register(register) = part {
                        *register = self.value(*register);
                    }
                }
            }
            for register in instr.guard.iter_mut().chain(&mut instr.kept) {
                *register = self.value(*register);
            }
            for operand in to {
                for part in &mut operand.parts {
                    if let Part::Register(register) = part {
                        *register = self.write(*register, index, &mut defined);
                    }
                }
            }
        }
        for &next in &flow.successors[block] {
            let way = flow.predecessors[next]
                .iter()
                .position(|&from| from == block);
            let way = way.expect("blocks know whom they follow");
            for phi in &mut self.values.phis[next] {
                let current = self.current[phi.register].last();
                phi.sources[way] = current.copied().unwrap_or(UNDEFINED);
            }
        }
        defined
    }
}

/// By block, those that it does not dominate, but a predecessor of which it does.
fn frontiers(flow: &Flow) -> Vec<Vec<usize>> {
    let mut frontiers: Vec<Vec<usize>> = vec![Vec::new(); flow.successors.len()];
    for &block in &flow.order {
        if flow.predecessors[block].len() < 2 && flow.dominator[block].is_some() {
            continue;
        }
        for &before in &flow.predecessors[block] {
            let mut runner = Some(before);
            while let Some(at) = runner.filter(|_| runner != flow.dominator[block]) {
                if !frontiers[at].contains(&block) {
                    frontiers[at].push(block);
                }
                runner = flow.dominator[at];
            }
        }
    }
    frontiers
}

fn block_of(body: &Body<'_>, flow: &Flow, values: &Values) -> Vec<usize> {
    let mut block_of = vec![flow.end(); body.instrs.len()];
    for (block, range) in flow.blocks.iter().enumerate() {
        block_of[range.clone()].fill(block);
    }
    let of = |definition: &Definition| match *definition {
        Definition::Instr(index) => block_of[index],
        Definition::Phi { block } => block,
        Definition::Nothing => flow.end(),
    };
    values.definitions.iter().map(of).collect()
}

fn used_in(body: &Body<'_>, flow: &Flow, values: &Values) -> Vec<Vec<usize>> {
    let mut used_in: Vec<Vec<usize>> = vec![Vec::new(); values.definitions.len()];
    let mut note = |value: usize, block| {
        if used_in[value].last() != Some(&block) {
            used_in[value].push(block);
        }
    };
    for &block in flow.order.iter().filter(|&&block| block != flow.end()) {
        for instr in &body.instrs[flow.blocks[block].clone()] {
            let from = instr
                .sources()
                .iter()
                .flat_map(|operand| operand.registers());
            from.chain(instr.guard)
                .chain(instr.kept.iter().copied())
                .for_each(|value| note(value, block));
        }
    }
    for &block in &flow.order {
        for phi in &values.phis[block] {
            for (&value, &from) in phi.sources.iter().zip(&flow.predecessors[block]) {
                note(value, from);
            }
        }
    }
    used_in
}
