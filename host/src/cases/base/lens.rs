//! Lengths of the sequences of a batch.

use std::fmt;
use std::str::FromStr;

use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::text::{CaseError, MAX_SEQS, MAX_TOKENS, check_size, parse};

/// Sequence lengths: listed, or drawn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lens {
    /// These. Zero and below are empty sequences.
    List(Vec<i32>),
    /// `uniform:B:L`: B sequences of L tokens.
    Uniform(usize, usize),
    /// `ragged:B:MAX`: B lengths drawn from `1..=MAX`.
    Ragged(usize, usize),
    /// `ragged:B:MAX:MEAN`: B lengths between 1 and MAX whose mean is MEAN to within one token, in a drawn
    /// order. Their sum is the same for every seed, so that bandwidths can be compared.
    RaggedMean(usize, usize, usize),
    /// `zipf:B:MAX`: MAX, a half of it, a third and so on, in a drawn order.
    Zipf(usize, usize),
    /// `long:B:L:MAX`: one sequence of MAX tokens among B - 1 of L, anywhere.
    OneLong(usize, usize, usize),
}

impl Lens {
    /// Sequences.
    pub fn num_seqs(&self) -> usize {
        match self {
            Self::List(lens) => lens.len(),
            &Self::Uniform(num_seqs, _)
            | &Self::Ragged(num_seqs, _)
            | &Self::RaggedMean(num_seqs, _, _)
            | &Self::Zipf(num_seqs, _)
            | &Self::OneLong(num_seqs, _, _) => num_seqs,
        }
    }

    /// The lengths.
    pub fn draw(&self, seed: u64) -> Vec<i32> {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        match *self {
            Self::List(ref lens) => lens.clone(),
            Self::Uniform(num_seqs, len) => vec![small(len); num_seqs],
            Self::Ragged(num_seqs, max) => (0..num_seqs)
                .map(|_| random.random_range(1..=small(max)))
                .collect(),
            Self::RaggedMean(num_seqs, max, mean) => {
                let mut lens = skewed(num_seqs, max, mean);
                lens.shuffle(&mut random);
                lens
            }
            Self::Zipf(num_seqs, max) => {
                let mut lens: Vec<i32> = (1..=num_seqs).map(|rank| small(max / rank)).collect();
                lens.shuffle(&mut random);
                lens
            }
            Self::OneLong(num_seqs, len, max) => {
                let mut lens = vec![small(len); num_seqs];
                if num_seqs > 0 {
                    lens[random.random_range(0..num_seqs)] = small(max);
                }
                lens
            }
        }
    }
}

/// Evenly spaced quantiles of `1 + (max - 1) u^p`, where `u` is uniform and `p` makes the mean right.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "lengths stay below 2^20"
)]
fn skewed(num_seqs: usize, max: usize, mean: usize) -> Vec<i32> {
    let range = max.saturating_sub(1) as f64;
    let power = range / (mean as f64 - 1.0).max(1e-9) - 1.0;
    (0..num_seqs)
        .map(|at| {
            let uniform = (at as f64 + 0.5) / num_seqs as f64;
            1 + (range * uniform.powf(power.max(0.0))).round() as i32
        })
        .collect()
}

/// A length: lengths of cases stay below 2^20.
fn small(len: usize) -> i32 {
    i32::try_from(len).expect("lengths of cases stay below 2^20")
}

impl fmt::Display for Lens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::List(lens) => {
                let lens: Vec<_> = lens.iter().map(i32::to_string).collect();
                f.write_str(&lens.join(","))
            }
            Self::Uniform(num_seqs, len) => write!(f, "uniform:{num_seqs}:{len}"),
            Self::Ragged(num_seqs, max) => write!(f, "ragged:{num_seqs}:{max}"),
            Self::RaggedMean(num_seqs, max, mean) => write!(f, "ragged:{num_seqs}:{max}:{mean}"),
            Self::Zipf(num_seqs, max) => write!(f, "zipf:{num_seqs}:{max}"),
            Self::OneLong(num_seqs, len, max) => write!(f, "long:{num_seqs}:{len}:{max}"),
        }
    }
}

impl FromStr for Lens {
    type Err = CaseError;

    fn from_str(text: &str) -> Result<Self, CaseError> {
        let words: Vec<&str> = text.split(':').collect();
        let size = |at: usize| {
            let max = if at == 1 { MAX_SEQS } else { MAX_TOKENS };
            check_size("lens", parse("lens", words[at])?, max)
        };
        match (words[0], words.len()) {
            ("uniform", 3) => Ok(Self::Uniform(size(1)?, size(2)?)),
            ("ragged", 3) => Ok(Self::Ragged(size(1)?, size(2)?)),
            ("ragged", 4) if size(3)? <= size(2)? => {
                Ok(Self::RaggedMean(size(1)?, size(2)?, size(3)?))
            }
            ("zipf", 3) => Ok(Self::Zipf(size(1)?, size(2)?)),
            ("long", 4) => Ok(Self::OneLong(size(1)?, size(2)?, size(3)?)),
            (list, 1) => {
                let lens: Vec<i32> = list
                    .split(',')
                    .map(|len| parse("lens", len))
                    .collect::<Result<_, _>>()?;
                let too_long = |&len: &i32| usize::try_from(len).is_ok_and(|len| len > MAX_TOKENS);
                if lens.len() > MAX_SEQS || lens.iter().any(too_long) {
                    return Err(CaseError(format!(
                        "there are at most {MAX_SEQS} lengths, each at most {MAX_TOKENS}"
                    )));
                }
                Ok(Self::List(lens))
            }
            _ => Err(CaseError(format!(
                "`lens={text}` is none of LEN,LEN,..., uniform:B:LEN, ragged:B:MAX, ragged:B:MAX:MEAN, zipf:B:MAX, \
                 long:B:LEN:MAX"
            ))),
        }
    }
}
