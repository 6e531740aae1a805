//! A kernel's instructions, with registers and labels as numbers.

use super::operation::{Operation, base, has};

/// The body of an entry.
#[derive(Debug)]
pub(super) struct Body<'t> {
    /// Threads of a thread block at most, if it has one dimension: only then are 32 threads of consecutive `%tid.x` a
    /// warp.
    pub(super) threads: Option<u32>,
    pub(super) instrs: Vec<Instr<'t>>,
    /// Registers, or values once they are renamed.
    pub(super) num_registers: usize,
}

impl Body<'_> {
    /// Lets a jump always be taken, or never.
    pub(super) fn decide(&mut self, jump: usize, is_taken: bool) {
        if is_taken {
            self.instrs[jump].guard = None;
        } else {
            self.remove(jump);
        }
    }

    /// Leaves nothing of an instruction but its place.
    pub(super) fn remove(&mut self, index: usize) {
        let instr = &mut self.instrs[index];
        instr.opcode = "nop";
        instr.guard = None;
        instr.operands.clear();
        instr.written = 0;
        instr.targets.clear();
    }
}

/// One instruction.
#[derive(Debug)]
pub(super) struct Instr<'t> {
    /// Where it begins in the text.
    pub(super) at: usize,
    pub(super) text: &'t str,
    /// With its dots: `shfl.sync.bfly.b32`.
    pub(super) opcode: &'t str,
    pub(super) operation: Operation,
    /// The register of `@%p` or `@!%p`.
    pub(super) guard: Option<usize>,
    pub(super) is_negated: bool,
    pub(super) operands: Vec<Operand<'t>>,
    /// How many of them, from the first, it writes.
    pub(super) written: usize,
    /// What it leaves in the registers it writes where the guard does not let it.
    pub(super) kept: Vec<usize>,
    /// Instructions that it may jump to.
    pub(super) targets: Vec<usize>,
}

impl<'t> Instr<'t> {
    /// The opcode before its first dot.
    pub(super) fn base(&self) -> &'t str {
        base(self.opcode)
    }

    /// What it reads.
    pub(super) fn sources(&self) -> &[Operand<'t>] {
        &self.operands[self.written..]
    }

    /// Whether the opcode has this word after a dot.
    pub(super) fn has(&self, word: &str) -> bool {
        has(self.opcode, word)
    }
}

/// One operand: a register, a number, `{several}`, `one|two` or `[an address]`.
#[derive(Debug)]
pub(super) struct Operand<'t> {
    pub(super) parts: Vec<Part<'t>>,
    pub(super) is_address: bool,
    /// `!%p`
    pub(super) is_negated: bool,
}

impl Operand<'_> {
    pub(super) fn registers(&self) -> impl Iterator<Item = usize> {
        self.parts.iter().filter_map(|part| match part {
            Part::Register(register) => Some(*register),
            Part::Thread | Part::Lane | Part::Warp | Part::AnyThread => None,
            Part::Number(_) | Part::Shared(_) => None,
        })
    }
}

/// What stands in an operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Part<'t> {
    Register(usize),
    Number(i64),
    /// What is the same for all threads of a block: a symbol's address, a number with a fraction, `%ctaid`.
    Shared(&'t str),
    /// `%tid.x`
    Thread,
    /// `%laneid`
    Lane,
    /// `%warpid`
    Warp,
    /// What nothing is known of: `%clock`.
    AnyThread,
}
