//! `x + shfl.bfly(x)`: lanes that exchange a value and put it together with their own have the same afterwards.
//!
//! After the last of such steps all lanes have it, which is how warps sum up and find a maximum.

use super::body::{Body, Part};
use super::ssa::{Definition, Values};
use super::transfer::State;

/// An instruction that puts the result of a butterfly together with what went into it, the same in either order.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fold<'t> {
    shuffle: usize,
    /// By which the numbers of two lanes differ that exchange.
    lanes: Part<'t>,
}

impl Fold<'_> {
    /// The bit of the lane's number on which the result does not depend.
    pub(super) fn lanes(self, body: &Body<'_>, state: &State) -> Option<u32> {
        let lanes = state.of_part(self.lanes).as_number()?;
        let lanes = u32::try_from(lanes).ok()?;
        let are_all = state.are_all_lanes(&body.instrs[self.shuffle].operands[4]);
        (are_all && lanes.count_ones() == 1).then_some(lanes)
    }
}

/// By instruction. `same`: of values that are always the same, one.
pub(super) fn folds<'t>(body: &Body<'t>, values: &Values, same: &[usize]) -> Vec<Option<Fold<'t>>> {
    let fold = |index: usize| {
        let instr = &body.instrs[index];
        let is_symmetric = ["add", "max", "min", "and", "or", "xor", "mul"].contains(&instr.base());
        let is_plain = is_symmetric && !instr.has("cc") && instr.guard.is_none();
        let [_, a, b] = instr.operands.get(..3).filter(|_| is_plain)? else {
            return None;
        };
        let ([Part::Register(a)], [Part::Register(b)]) = (&a.parts[..], &b.parts[..]) else {
            return None;
        };
        let (a, b) = (same[*a], same[*b]);
        [(a, b), (b, a)]
            .into_iter()
            .find_map(|(exchanged, source)| {
                let Definition::Instr(shuffle) = values.definitions[exchanged] else {
                    return None;
                };
                let instr = &body.instrs[shuffle];
                let is_butterfly = instr.has("bfly") && instr.guard.is_none();
                let operands = instr.operands.get(1..4).filter(|_| is_butterfly)?;
                let [Part::Register(value)] = operands[0].parts[..] else {
                    return None;
                };
                let lanes = *operands[1].parts.first()?;
                let is_whole = operands[2].parts[..] == [Part::Number(31)];
                (is_whole && same[value] == source).then_some(Fold { shuffle, lanes })
            })
    };
    (0..body.instrs.len()).map(fold).collect()
}
