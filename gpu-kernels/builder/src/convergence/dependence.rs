//! On which bits of a thread's index a value depends.
//!
//! Of a value that depends on none, all threads of a block have the same; of one that depends on none of the low five,
//! all lanes of a warp. Of values that were the index itself, and were shifted, masked or offset since, each bit is
//! known to come from one bit of the index: `%tid.x >> 5` depends on the warp, `%tid.x < 64` on no lane.

/// What is known of a value in all threads that have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Dependence {
    /// Bits of the thread's index that it depends on.
    pub(super) threads: u32,
    /// Bits of the value that differ between threads.
    bits: u64,
    /// If some: of those bits, bit `i` depends on bit `i + shift` of the index alone.
    shift: Option<i32>,
    /// Low bits that are zero.
    zeros: u32,
    /// What it is, if that is known.
    number: Number,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Number {
    /// Nothing was written yet.
    None,
    One(i64),
    Several,
}

/// Where nothing was written: any other value may be taken instead.
pub(super) const NOTHING: Dependence = Dependence {
    threads: 0,
    bits: 0,
    shift: None,
    zeros: 64,
    number: Number::None,
};

/// The same in all threads of a block.
pub(super) const SHARED: Dependence = Dependence {
    zeros: 0,
    number: Number::Several,
    ..NOTHING
};

/// A comparison of whole numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compare {
    /// `<` or `>=`
    Below,
    /// `>` or `<=`
    Above,
    Other,
}

impl Dependence {
    pub(super) fn number(number: i64) -> Self {
        Self {
            zeros: number.trailing_zeros(),
            number: Number::One(number),
            ..NOTHING
        }
    }

    /// The low bits of the thread's index.
    pub(super) fn index(threads: u32) -> Self {
        Self {
            threads,
            bits: u64::from(threads),
            shift: Some(0),
            ..SHARED
        }
    }

    /// Any function of these bits of the index.
    pub(super) fn on(threads: u32) -> Self {
        Self {
            threads,
            bits: if threads == 0 { 0 } else { u64::MAX },
            ..SHARED
        }
    }

    pub(super) fn as_number(self) -> Option<i64> {
        match self.number {
            Number::One(number) => Some(number),
            Number::None | Number::Several => None,
        }
    }

    /// A value that is the one or the other, all threads having the same of the two.
    pub(super) fn or(self, other: Self) -> Self {
        Self {
            zeros: self.zeros.min(other.zeros),
            number: match (self.number, other.number) {
                (Number::None, number) | (number, Number::None) => number,
                (a, b) if a == b => a,
                (Number::One(_) | Number::Several, Number::One(_) | Number::Several) => {
                    Number::Several
                }
            },
            ..self.mix(other)
        }
    }

    /// A value each bit of which comes of the same bits of both.
    pub(super) fn mix(self, other: Self) -> Self {
        let shift = match (self.bits, other.bits) {
            (0, _) => other.shift,
            (_, 0) => self.shift,
            _ if self.shift == other.shift => self.shift,
            _ => None,
        };
        Self {
            threads: self.threads | other.threads,
            bits: self.bits | other.bits,
            shift,
            zeros: self.zeros.min(other.zeros),
            number: Number::Several,
        }
    }

    /// Only these bits of it matter.
    pub(super) fn mask(self, mask: u64) -> Self {
        let bits = self.bits & mask;
        let threads = match self.shift {
            _ if bits == 0 => 0,
            Some(shift) => self.threads & index_bits(bits, shift),
            None => self.threads,
        };
        Self {
            threads,
            bits,
            number: Number::Several,
            ..self
        }
    }

    /// Its low bits.
    pub(super) fn truncate(self, width: u32) -> Self {
        let number = match self.number {
            Number::One(number) if width < 64 => Number::One(number & ((1 << width) - 1)),
            Number::None | Number::One(_) | Number::Several => self.number,
        };
        Self {
            number,
            ..self.mask(low(width))
        }
    }

    /// `self & other`
    pub(super) fn and(self, other: Self) -> Self {
        let zeros = self.zeros.max(other.zeros);
        let both = match (self.as_number(), other.as_number()) {
            (_, Some(mask)) => self.mask(mask.cast_unsigned()),
            (Some(mask), None) => other.mask(mask.cast_unsigned()),
            (None, None) => self
                .mask(!low(other.zeros))
                .mix(other.mask(!low(self.zeros))),
        };
        Self { zeros, ..both }
    }

    pub(super) fn shift_left(self, by: Self) -> Self {
        let Some(by) = shift_of(by) else {
            return self.carry(by);
        };
        Self {
            bits: self.bits.checked_shl(by).unwrap_or(0),
            shift: self.shift.map(|shift| shift - by.cast_signed()),
            zeros: self.zeros + by,
            number: Number::Several,
            ..self
        }
        .mask(u64::MAX)
    }

    /// Of a number of `width` bits; if it is signed, its sign fills up.
    pub(super) fn shift_right(self, by: Self, width: u32, is_signed: bool) -> Self {
        let Some(by) = shift_of(by) else {
            return Self::on(self.threads | by.threads);
        };
        if is_signed && self.bits >> (width - 1) & 1 != 0 {
            return Self::on(self.threads);
        }
        Self {
            bits: (self.bits & low(width)).checked_shr(by).unwrap_or(0),
            shift: self.shift.map(|shift| shift + by.cast_signed()),
            zeros: self.zeros.saturating_sub(by),
            number: Number::Several,
            ..self
        }
        .mask(u64::MAX)
    }

    /// Sum or difference.
    pub(super) fn add(self, other: Self) -> Self {
        if other.bits == 0 && self.bits & !low(other.zeros) == 0 {
            // Nothing is carried.
            return self.mix(other);
        }
        self.carry(other)
    }

    /// Whatever comes of both, with every bit depending on itself and lower ones, as in sum and product.
    pub(super) fn carry(self, other: Self) -> Self {
        let bits = self.bits | other.bits;
        Self {
            threads: self.threads | other.threads,
            bits: if bits == 0 {
                0
            } else {
                !low(bits.trailing_zeros())
            },
            shift: None,
            zeros: self.zeros.min(other.zeros),
            number: Number::Several,
        }
    }

    pub(super) fn multiply(self, by: Self) -> Self {
        let zeros = (self.zeros + by.zeros).min(64);
        let power = by.as_number().filter(|by| by.count_ones() == 1);
        if let Some(power) = power {
            return self.shift_left(Self::number(power.trailing_zeros().into()));
        }
        Self {
            zeros,
            ..self.carry(by)
        }
    }

    /// Unsigned.
    pub(super) fn divide(self, by: Self) -> Self {
        let rest = self.mask(!low(by.zeros));
        Self::on(rest.threads | by.threads)
    }

    /// `self < other` and the like: of `self`, bits below the lowest one of `other` do not matter.
    pub(super) fn compare(self, how: Compare, other: Self, width: u32) -> Self {
        let to_number = |value: Self| match value.as_number() {
            Some(number) => number.wrapping_add(1).trailing_zeros(),
            None => 0,
        };
        let (of_self, of_other) = match how {
            Compare::Below => (other.zeros, to_number(self)),
            Compare::Above => (to_number(other), self.zeros),
            Compare::Other => (0, 0),
        };
        // The sign decides even where a number is compared with 0.
        let top = width - 1;
        let threads =
            self.mask(!low(of_self.min(top))).threads | other.mask(!low(of_other.min(top))).threads;
        Self::on(threads).mask(1)
    }
}

/// The amount of a shift by a number.
fn shift_of(by: Dependence) -> Option<u32> {
    by.as_number()
        .map(|by| u32::try_from(by).unwrap_or(64).min(64))
}

/// The lowest bits.
fn low(bits: u32) -> u64 {
    if bits >= 64 {
        u64::MAX
    } else {
        (1 << bits) - 1
    }
}

/// Bits of the index that these bits of a value come from.
fn index_bits(bits: u64, shift: i32) -> u32 {
    let bits = if shift < 0 {
        bits.checked_shr(shift.unsigned_abs()).unwrap_or(0)
    } else {
        bits.checked_shl(shift.unsigned_abs()).unwrap_or(0)
    };
    u32::try_from(bits & u64::from(u32::MAX)).expect("masked")
}
