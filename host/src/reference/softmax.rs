//! One query head's softmax over the keys that it sees.

use super::ScoreMods;

/// A key that a query sees.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen<'a> {
    pub(super) key: &'a [f64],
    /// The key's Euclidean length.
    pub(super) length: f64,
    pub(super) value: &'a [f64],
    /// The largest magnitude in the value.
    pub(super) amount: f64,
    /// What is added to its score.
    pub(super) bias: f64,
}

impl<'a> Seen<'a> {
    /// A key and its value.
    pub(super) fn new(key: &'a [f64], value: &'a [f64]) -> Self {
        Self {
            key,
            length: length(key),
            value,
            amount: value.iter().fold(0.0, |max, v| v.abs().max(max)),
            bias: 0.0,
        }
    }
}

/// What becomes of products of query and key.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scoring<'a> {
    pub(super) scale: f64,
    pub(super) mods: ScoreMods<'a>,
    /// The score of a key without a value; minus infinity is none.
    pub(super) sink: f64,
}

/// What one query head makes of the keys that it sees.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Head {
    pub(super) out: Vec<f64>,
    /// Natural logarithm of the softmax's denominator: minus infinity if there is no score but minus infinity, NaN
    /// if a score is NaN.
    pub(super) lse: f64,
    /// What the terms of a score amount to at most.
    pub(super) terms: f64,
    /// See [`super::Rows::amounts`].
    pub(super) amount: f64,
    /// See [`super::Rows::slack`].
    pub(super) slack: Vec<f64>,
}

/// A score may be off by so much of what its terms amount to: a few roundings of an f32.
const SCORE_ERROR: f64 = 1.0 / (1 << 22) as f64;
/// Shares far below the largest are rounded to an f16's subnormals, or away.
const LEAST_SHARE: f64 = 1.0 / (1 << 14) as f64;
/// A share below this, that of the least normal f32, kernels take for none: `exp2` gives no subnormals.
const NO_SHARE: f64 = f32::MIN_POSITIVE as f64;
/// Below this, what scores may be off by drowns in the roundings of probabilities and outputs.
const NO_DOUBT: f64 = 1e-4;

/// `softmax(scale * query · keys) values`. Values that are not seen are in no sum.
pub(super) fn attend(
    query: &[f64],
    seen: &[Seen<'_>],
    scoring: &Scoring<'_>,
    head_size_v: usize,
) -> Head {
    let dots: Vec<f64> = seen.iter().map(|seen| dot(query, seen.key)).collect();
    let scores: Vec<f64> = dots
        .iter()
        .zip(seen)
        .map(|(&dot, seen)| scoring.mods.transform(scoring.scale * dot) + seen.bias)
        .collect();
    let longest = seen.iter().map(|seen| seen.length).fold(0.0, f64::max);
    let mut head = Head {
        out: vec![0.0; head_size_v],
        lse: f64::NEG_INFINITY,
        terms: scoring.scale * length(query) * longest,
        amount: 0.0,
        slack: Vec::new(),
    };
    if scoring.sink.is_nan() || scores.iter().any(|score| score.is_nan()) {
        (head.out, head.lse) = (vec![f64::NAN; head_size_v], f64::NAN);
        return head;
    }
    let max = scores.iter().copied().fold(scoring.sink, f64::max);
    if max == f64::NEG_INFINITY {
        return head;
    }
    let sum: f64 =
        (scoring.sink - max).exp() + scores.iter().map(|score| (score - max).exp()).sum::<f64>();
    head.lse = max + sum.ln();
    let shares: Vec<f64> = scores
        .iter()
        .map(|score| (score - max).exp() / sum)
        .collect();
    let largest = shares.iter().copied().fold(0.0, f64::max);
    for (share, seen) in shares.iter().zip(seen) {
        head.amount += (share + LEAST_SHARE * largest) * seen.amount;
        for (out, v) in head.out.iter_mut().zip(seen.value) {
            *out += share * v;
        }
    }
    let error = |at: usize| {
        SCORE_ERROR
            * (scoring.scale * length(query) * seen[at].length
                + seen[at].bias.abs()
                + scores[at].abs())
    };
    if (0..seen.len()).any(|at| error(at) > NO_DOUBT) {
        // Scores count relative to the largest: that one is right, and so are those of the same exact product.
        let first = (0..seen.len()).find(|&at| scores[at] == max);
        let is_sure = |at: usize| {
            first.is_some_and(|first| {
                at == first
                    || dots[at] == dots[first]
                        && seen[at].bias == seen[first].bias
                        && [at, first].iter().all(|&at| is_exact(query, seen[at].key))
            })
        };
        let doubt = |at: usize| error(at) + first.map_or(0.0, error);
        // How far off the share of each of the other keys may be.
        let off: Vec<f64> = (0..seen.len())
            .map(|at| match 2.0 * doubt(at) {
                _ if is_sure(at) => 0.0,
                doubt if doubt < 1.0 => shares[at] * doubt.exp_m1(),
                doubt => (scores[at] - head.lse + doubt).exp(),
            })
            .map(|off: f64| off.min(1.0))
            .collect();
        // And that of the sink, which is exact, but stands beside a largest score that is not.
        let sink_share = (scoring.sink - max).exp() / sum;
        let sink_off = match first {
            Some(first) if sink_share > 0.0 && !is_exact(query, seen[first].key) => {
                let doubt = 2.0 * error(first);
                (sink_share * doubt.exp_m1()).min(1.0)
            }
            _ => 0.0,
        };
        let all_off = (off.iter().sum::<f64>() + sink_off).min(1.0);
        head.slack = (0..head_size_v)
            .map(|dim| {
                let distance = |at: usize| (seen[at].value[dim] - head.out[dim]).abs();
                (0..seen.len())
                    .filter(|&at| off[at] > 0.0 || shares[at] > 0.0)
                    .map(|at| (off[at] + all_off * shares[at]) * distance(at))
                    .sum::<f64>()
                    + (sink_off + all_off * sink_share) * head.out[dim].abs()
            })
            .collect();
    }
    // All keys together, beside a sink.
    if largest < NO_SHARE {
        head.slack.resize(head_size_v, 0.0);
        for (share, seen) in shares.iter().zip(seen) {
            for (slack, v) in head.slack.iter_mut().zip(seen.value) {
                *slack += share * v.abs();
            }
        }
    }
    head
}

/// `query · key`, in four sums: one addition need not wait for the one before.
pub(super) fn dot(query: &[f64], key: &[f64]) -> f64 {
    let (query, last_of_query) = query.as_chunks::<4>();
    let (key, last_of_key) = key.as_chunks::<4>();
    let mut sums = [0.0; 4];
    for ([q0, q1, q2, q3], [k0, k1, k2, k3]) in query.iter().zip(key) {
        sums[0] += q0 * k0;
        sums[1] += q1 * k1;
        sums[2] += q2 * k2;
        sums[3] += q3 * k3;
    }
    for ((sum, q), k) in sums.iter_mut().zip(last_of_query).zip(last_of_key) {
        *sum += q * k;
    }
    sums.iter().sum()
}

/// The Euclidean length.
pub(super) fn length(values: &[f64]) -> f64 {
    dot(values, values).sqrt()
}

/// Whether f32 adds up the products of `query · key` without rounding, in any order: they are multiples of a unit
/// that their magnitudes do not exceed 2^24 times.
fn is_exact(query: &[f64], key: &[f64]) -> bool {
    let products = || {
        let products = query.iter().zip(key).map(|(q, k)| q * k);
        products.filter(|&product| product != 0.0)
    };
    let unit = products().map(lowest_bit).fold(f64::INFINITY, f64::min);
    products().all(f64::is_finite)
        && products().map(f64::abs).sum::<f64>() <= unit * f64::from(1 << 24)
}

/// The value of the lowest bit that is set in a number's mantissa.
fn lowest_bit(x: f64) -> f64 {
    let mantissa = x.to_bits() & ((1 << 52) - 1) | 1 << 52;
    let power = f64::from_bits(x.abs().to_bits() & !((1 << 52) - 1));
    power * 2f64.powi(-52) * 2f64.powi(mantissa.trailing_zeros().cast_signed())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Scoring<'_> = Scoring {
        scale: 1.0,
        mods: ScoreMods::NONE,
        sink: f64::NEG_INFINITY,
    };

    fn head(query: &[f64], keys: &[Vec<f64>], values: &[Vec<f64>]) -> Head {
        let seen: Vec<Seen<'_>> = keys
            .iter()
            .zip(values)
            .map(|(key, value)| Seen::new(key, value))
            .collect();
        attend(query, &seen, &PLAIN, 1)
    }

    #[test]
    fn one_token_is_its_value_and_its_score() {
        let head = head(&[1.0, 0.5], &[vec![3.0, -1.0]], &[vec![7.0]]);
        assert_eq!((head.out, head.lse), (vec![7.0], 2.5));
    }

    #[test]
    fn two_tokens_are_weighted_by_the_exponentials_of_their_scores() {
        let keys = [vec![0.0], vec![3.0f64.ln()]];
        let head = head(&[1.0], &keys, &[vec![4.0], vec![8.0]]);
        assert!((head.out[0] - 7.0).abs() < 1e-12, "1/4 of 4 and 3/4 of 8");
        assert!((head.lse - 4.0f64.ln()).abs() < 1e-12);
        assert!(head.slack.is_empty());
    }

    #[test]
    fn no_score_gives_zero_and_minus_infinity() {
        let nothing = head(&[1.0], &[], &[]);
        assert_eq!((nothing.out, nothing.lse), (vec![0.0], f64::NEG_INFINITY));
        let keys = [vec![1.0], vec![2.0]];
        let lost = head(&[f64::NEG_INFINITY], &keys, &[vec![4.0], vec![8.0]]);
        assert_eq!((lost.out, lost.lse), (vec![0.0], f64::NEG_INFINITY));
    }

    #[test]
    fn a_score_that_is_nan_makes_everything_nan() {
        let head = head(
            &[1.0],
            &[vec![1.0], vec![f64::NAN]],
            &[vec![4.0], vec![8.0]],
        );
        assert!(head.out[0].is_nan() && head.lse.is_nan());
    }

    #[test]
    fn keys_that_a_sink_dwarfs_leave_slack_for_nothing_at_all() {
        for (sink, slack) in [(86.0, vec![]), (89.0, vec![3.0 * (-89f64).exp()])] {
            let scoring = Scoring { sink, ..PLAIN };
            let head = attend(&[1.0], &[Seen::new(&[0.0], &[-3.0])], &scoring, 1);
            assert!((head.out[0] / (-3.0 * (-sink).exp()) - 1.0).abs() < 1e-9);
            assert_eq!(head.slack.len(), slack.len());
            let is_near = |(a, b): (&f64, &f64)| (a / b - 1.0).abs() < 1e-9;
            assert!(head.slack.iter().zip(&slack).all(is_near), "{head:?}");
        }
    }

    #[test]
    fn large_scores_leave_slack_only_where_an_f32_cannot_tell_them_apart() {
        let values = [vec![4.0], vec![8.0]];
        // Far apart, and equal.
        for keys in [[vec![1e7], vec![2e7]], [vec![8192.0], vec![8192.0]]] {
            let head = head(&[1024.0], &keys, &values);
            assert_eq!(head.slack, [0.0], "{keys:?}");
        }
        let near = head(&[1.0, 1.0], &[vec![1e7, 0.1], vec![1e7, 0.2]], &values);
        assert!(near.slack[0] > 1.0, "{near:?}");
    }
}
