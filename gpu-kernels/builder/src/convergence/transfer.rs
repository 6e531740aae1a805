//! What an instruction's result depends on, by what its sources do.

use super::body::{Instr, Operand, Part};
use super::dependence::{Compare, Dependence, NOTHING, SHARED};
use super::operation::{Exchange, Kind, LANE, Operation, width};

/// What values depend on, as far as is known.
#[derive(Debug)]
pub(super) struct State {
    pub(super) of: Vec<Dependence>,
    /// Bits that tell a block's threads apart.
    pub(super) index: u32,
    /// Whether 32 threads of consecutive `%tid.x` are a warp.
    pub(super) is_linear: bool,
}

impl State {
    pub(super) fn of_part(&self, part: Part<'_>) -> Dependence {
        match part {
            Part::Register(value) => self.of[value],
            Part::Number(number) => Dependence::number(number),
            Part::Shared(_) => SHARED,
            Part::Thread if self.is_linear => Dependence::index(self.index),
            Part::Lane => Dependence::index(LANE),
            Part::Warp => Dependence::on(self.index & !LANE),
            Part::Thread | Part::AnyThread => self.anything(),
        }
    }

    fn anything(&self) -> Dependence {
        Dependence::on(self.index)
    }

    /// Everything that stands in an operand, whatever comes of it.
    fn of_operand(&self, operand: &Operand<'_>) -> Dependence {
        match operand.parts[..] {
            [part] => self.of_part(part),
            _ => operand
                .parts
                .iter()
                .fold(NOTHING, |all, &part| all.carry(self.of_part(part))),
        }
    }

    /// Lanes that take part in an exchange: whether it is known that all do.
    pub(super) fn are_all_lanes(&self, operand: &Operand<'_>) -> bool {
        let lanes = self.of_operand(operand).as_number();
        lanes.is_some_and(|lanes| lanes & 0xffff_ffff == 0xffff_ffff)
    }

    /// What result number `place` of an instruction depends on. `folded`: it puts the result of a butterfly together
    /// with what went into it, and does not depend on these bits of the index any more.
    pub(super) fn result(
        &self,
        instr: &Instr<'_>,
        kind: Kind,
        place: usize,
        folded: Option<u32>,
    ) -> Dependence {
        let new = match folded {
            Some(lanes) => Dependence::on(self.all(instr) & !lanes),
            None => self.unguarded(instr, kind, place),
        };
        let Some(guard) = instr.guard else {
            return new;
        };
        let kept = instr.kept.get(place).map_or(NOTHING, |&kept| self.of[kept]);
        new.or(kept).or(Dependence::on(self.of[guard].threads))
    }

    /// Bits of the index on which any source depends.
    fn all(&self, instr: &Instr<'_>) -> u32 {
        let sources = instr.sources().iter();
        sources.fold(0, |all, source| all | self.of_operand(source).threads)
    }

    fn unguarded(&self, instr: &Instr<'_>, kind: Kind, place: usize) -> Dependence {
        let Operation {
            width, is_signed, ..
        } = instr.operation;
        let sources = instr.sources();
        let places = instr.operands[0].parts.len();
        let source = |index: usize| {
            let source = sources.get(index);
            source.map_or(SHARED, |source| self.of_operand(source))
        };
        let any_way = || Dependence::on(self.all(instr));
        match kind {
            Kind::Move => self.moved(&sources[0], place, places, width),
            Kind::And => source(0).and(source(1)).truncate(width),
            Kind::Bitwise if sources.len() == 1 => source(0).mix(SHARED).truncate(width),
            Kind::Bitwise => source(0).mix(source(1)).truncate(width),
            Kind::Add if source(0).threads == 0 => source(1).add(source(0)).truncate(width),
            Kind::Add | Kind::Sub => source(0).add(source(1)).truncate(width),
            Kind::ShiftLeft => source(0).shift_left(source(1)).truncate(width),
            Kind::ShiftRight => source(0).shift_right(source(1), width, is_signed),
            Kind::Extract => match source(2).as_number().map(u32::try_from) {
                Some(Ok(bits)) if !is_signed => {
                    let low = source(0).shift_right(source(1), width, false);
                    low.truncate(bits)
                }
                Some(_) | None => any_way(),
            },
            Kind::Multiply => self.product(instr),
            Kind::MultiplyAdd => match self.product(instr) {
                product if product.threads == 0 => source(2).add(product),
                product => product.add(source(2)),
            },
            Kind::Divide if !is_signed => source(0).divide(source(1)),
            Kind::Convert => convert(instr.opcode, source(0)),
            Kind::Compare if places == 1 && sources.len() == 2 => {
                let how = match instr.opcode.split('.').nth(1).unwrap_or_default() {
                    "lt" | "ge" | "lo" | "hs" => Compare::Below,
                    "gt" | "le" | "hi" | "ls" => Compare::Above,
                    _ => Compare::Other,
                };
                let (a, b) = (source(0).truncate(width), source(1).truncate(width));
                a.compare(how, b, width)
            }
            Kind::Select if source(2).threads == 0 => source(0).or(source(1)),
            Kind::Divide | Kind::Remainder | Kind::Compare | Kind::Select => any_way(),
            Kind::Pure | Kind::Load => any_way(),
            Kind::Exchange(how) => self.exchanged(how, instr, place),
            Kind::Agree
                if sources
                    .last()
                    .is_some_and(|lanes| self.are_all_lanes(lanes)) =>
            {
                Dependence::on(self.all(instr) & !LANE)
            }
            Kind::Tile => Dependence::on(self.all(instr) | self.index & LANE),
            Kind::Agree | Kind::Unknown => self.anything(),
        }
    }

    /// `mov`, of which one side may be put together of the parts of the other.
    fn moved(&self, source: &Operand<'_>, place: usize, places: usize, width: u32) -> Dependence {
        if source.parts.len() > 1 {
            let each = width / u32::try_from(source.parts.len()).unwrap_or(1);
            let mut whole = Dependence::number(0);
            for &part in source.parts.iter().rev() {
                let part = self.of_part(part).truncate(each);
                whole = whole.shift_left(Dependence::number(each.into())).mix(part);
            }
            return whole;
        }
        let source = self.of_operand(source);
        if places == 1 {
            return source;
        }
        let each = width / u32::try_from(places).unwrap_or(1);
        let before = i64::from(each) * i64::try_from(place).unwrap_or(0);
        source
            .shift_right(Dependence::number(before), width, false)
            .truncate(each)
    }

    fn product(&self, instr: &Instr<'_>) -> Dependence {
        let Operation {
            width, is_signed, ..
        } = instr.operation;
        let [a, b] = [1, 2].map(|index| self.of_operand(&instr.operands[index]).truncate(width));
        match (instr.has("wide"), is_signed) {
            (true, true) => a.carry(b),
            (true, false) => a.multiply(b),
            (false, _) => a.multiply(b).truncate(width),
        }
    }

    fn exchanged(&self, how: Exchange, instr: &Instr<'_>, place: usize) -> Dependence {
        let [value, lane, clamp, lanes] = [1, 2, 3, 4].map(|index| &instr.operands[index]);
        let lane = self.of_operand(lane);
        let value = self.of_operand(value).threads;
        let is_whole = self.of_operand(clamp).as_number() == Some(31);
        if place > 0 || !self.are_all_lanes(lanes) {
            return self.anything();
        }
        Dependence::on(match how {
            Exchange::Index if is_whole => value & !LANE | lane.threads,
            Exchange::Butterfly => value | lane.threads,
            // Of lanes that all have the same, it does not matter which.
            Exchange::Index | Exchange::Distance if value & LANE == 0 => value,
            Exchange::Index | Exchange::Distance => value | lane.threads | LANE,
        })
    }
}

/// Between whole numbers.
fn convert(opcode: &str, source: Dependence) -> Dependence {
    let mut types = opcode.rsplit('.');
    let (from, to) = (
        types.next().unwrap_or_default(),
        types.next().unwrap_or_default(),
    );
    let from_width = width(from);
    let (to_width, narrow) = (width(to), source.truncate(from_width));
    if from.starts_with('s') && to_width > from_width {
        // Shifting out nothing, it says whether the sign is the same.
        return narrow
            .shift_right(Dependence::number(0), from_width, true)
            .or(narrow);
    }
    narrow.truncate(to_width)
}
