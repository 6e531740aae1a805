//! Division by a number that the host knows: a multiplication and a shift instead of a hundred cycles.

/// A divisor, prepared on the host.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FastDivmod {
    divisor: u32,
    /// `floor(2^shift / divisor) + 1`.
    magic: u32,
    /// 31 more than the bits of `divisor - 1`.
    shift: u32,
}

impl FastDivmod {
    /// For divisors from 1 to 2^31 - 1; a larger one counts as that, and 0 as 1.
    pub const fn new(divisor: u32) -> Self {
        let divisor = match divisor {
            0 => 1,
            d if d > i32::MAX as u32 => i32::MAX as u32,
            d => d,
        };
        let shift = 31 + u32::BITS - (divisor - 1).leading_zeros();
        // The divisor is more than half of `2^(shift - 31)`, or 1: the quotient fits 32 bits.
        let magic = ((1u64 << shift) / divisor as u64 + 1) as u32;
        Self {
            divisor,
            magic,
            shift,
        }
    }

    /// The divisor.
    #[inline(always)]
    pub const fn divisor(&self) -> u32 {
        self.divisor
    }

    /// `n / divisor` for `n < 2^31`. Exact: `magic * divisor` is above `2^shift` by at most the divisor, and
    /// `n` times that is less than `2^shift`.
    #[inline(always)]
    pub const fn divide(&self, n: u32) -> u32 {
        ((n as u64 * self.magic as u64) >> self.shift) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divides_as_the_machine_does() {
        const MOST: u32 = i32::MAX as u32;
        let around = |n: u32| [n.saturating_sub(1), n, n.saturating_add(1).min(MOST)];
        let powers = (0..31).map(|bit| 1u32 << bit);
        let divisors = powers
            .flat_map(around)
            .chain([3, 7, 46, 299, 641, 6_700_417, MOST]);
        for divisor in divisors.filter(|&divisor| divisor > 0) {
            let divider = FastDivmod::new(divisor);
            let multiples =
                [1, 2, 3, 1000, MOST / divisor].map(|n| divisor.saturating_mul(n).min(MOST));
            for n in multiples.into_iter().flat_map(around).chain([0, MOST]) {
                assert_eq!(divider.divide(n), n / divisor, "{n} / {divisor}");
            }
        }
    }
}
