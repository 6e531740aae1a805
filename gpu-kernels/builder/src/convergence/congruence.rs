//! Values that are always the same: copies, and the same computed twice of the same.
//!
//! Compilers compute a value in both arms of a branch where it is needed in both. Behind them it is chosen by the arm
//! that a thread comes from, and yet does not depend on it.

use std::collections::HashMap;

use super::body::{Body, Instr, Operand, Part};
use super::flow::Flow;
use super::operation::Kind;
use super::ssa::{UNDEFINED, Values};

/// For each value one that stands for all that are the same.
pub(super) fn representatives(body: &Body<'_>, flow: &Flow, values: &Values) -> Vec<usize> {
    let mut same: Vec<usize> = (0..values.definitions.len()).collect();
    // By what is done to what, and which of its results this is.
    let mut computed: HashMap<(&str, usize, usize, Vec<Part<'_>>), usize> = HashMap::new();
    for &block in &flow.order {
        for phi in &values.phis[block] {
            // Of what comes round a loop, nothing is known yet: it stands for itself, and differs.
            let mut sources = phi.sources.iter().map(|&source| same[source]);
            let first = sources.next().unwrap_or(UNDEFINED);
            if first != UNDEFINED && sources.all(|source| source == first) {
                same[phi.value] = first;
            }
        }
        if block == flow.end() {
            continue;
        }
        for index in flow.blocks[block].clone() {
            let instr = &body.instrs[index];
            if instr.written == 0 || !is_function(instr) {
                continue;
            }
            let to = &instr.operands[0].parts;
            let from: Vec<Part<'_>> = instr.operands[1..]
                .iter()
                .flat_map(|operand| &operand.parts)
                .map(|part| match *part {
                    Part::Register(value) => Part::Register(same[value]),
                    other => other,
                })
                .collect();
            if let (Kind::Move, [Part::Register(value)], [Part::Register(copied)]) =
                (instr.operation.kind, &to[..], &from[..])
            {
                same[*value] = *copied;
                continue;
            }
            for (place, part) in to.iter().enumerate() {
                if let Part::Register(value) = *part {
                    let key = (instr.opcode, to.len(), place, from.clone());
                    same[value] = *computed.entry(key).or_insert(value);
                }
            }
        }
    }
    same
}

/// Whether it gives the same whenever it is given the same, as far as that can be compared.
fn is_function(instr: &Instr<'_>) -> bool {
    let is_known =
        |operand: &Operand<'_>| !operand.is_negated && !operand.parts.contains(&Part::AnyThread);
    let kind = instr.operation.kind;
    kind.is_function(instr.opcode) && instr.guard.is_none() && instr.operands.iter().all(is_known)
}
