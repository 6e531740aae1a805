//! Division by a number that the host knows.

/// Divides by one number without dividing: a multiplication and a shift.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Divisor {
    magic: u32,
    shift: u32,
}

impl Divisor {
    /// Division by `divisor`, which is at least 1 and below 2^31.
    ///
    /// # Panics
    /// If it is not.
    pub const fn new(divisor: u32) -> Self {
        assert!(divisor >= 1 && divisor <= i32::MAX as u32);
        let bits = u32::BITS - (divisor - 1).leading_zeros();
        // Above the exact factor by less than 1, hence below 2^32, and a product off by less than 2^-bits.
        let magic = (1u64 << (31 + bits)) / divisor as u64 + 1;
        Self {
            magic: magic as u32,
            shift: 31 + bits,
        }
    }

    /// `value / divisor`, for a `value` below 2^31.
    #[inline(always)]
    pub const fn divide(self, value: u32) -> u32 {
        ((value as u64 * self.magic as u64) >> self.shift) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::Divisor;

    #[test]
    fn quotients_are_exact() {
        let divisors = (1..300).chain([
            1000,
            4096,
            65_535,
            65_537,
            (1 << 30) - 1,
            1 << 30,
            (1 << 31) - 1,
        ]);
        for divisor in divisors {
            let by = Divisor::new(divisor);
            let edges = (0..1000).flat_map(|times| {
                let at = divisor as u64 * times;
                [at.saturating_sub(1), at, at + 1]
            });
            let largest = (0..1000).map(|less| (1u64 << 31) - 1 - less);
            for value in edges.chain(largest).filter(|&value| value < 1 << 31) {
                let value = value as u32;
                assert_eq!(by.divide(value), value / divisor, "{value} / {divisor}");
            }
        }
    }
}
