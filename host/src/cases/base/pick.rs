//! Drawing parameters at random.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::fill::Fill;
use crate::ops::CheckMode;

/// One of these.
pub(crate) fn pick<T: Clone>(random: &mut ChaCha8Rng, from: &[T]) -> T {
    from[random.random_range(0..from.len())].clone()
}

/// True once in `n` times.
pub(crate) fn one_in(random: &mut ChaCha8Rng, n: u32) -> bool {
    random.random_range(0..n) == 0
}

/// The plain fill as often as all of these together.
pub(crate) fn fill(random: &mut ChaCha8Rng, from: &[Fill]) -> Fill {
    if random.random() {
        Fill::Plain
    } else {
        pick(random, from)
    }
}

/// A check once in four times.
pub(crate) fn check(random: &mut ChaCha8Rng) -> CheckMode {
    if one_in(random, 4) {
        CheckMode::Device
    } else {
        CheckMode::Off
    }
}
