//! Judging an output against the reference.
//!
//! First the places that are not finite, then each sequence's relative error, then single elements.
//!
//! # The limits
//!
//! A kernel that is as exact as its dtype allows makes two independent roundings that show: probabilities
//! are rounded before the second product, and the output is rounded when it is stored. For bf16, rounding a
//! number of random magnitude errs by 2^-7 / sqrt(12) * 0.735 = 1.7e-3 of it (root mean square), two such by
//! 2.3e-3. A sequence may be off by 4e-3 in the Frobenius norm; f16 has three bits more, hence 5e-4. A wrong
//! token, scale or head costs several per cent and more. A single element may be off by two units in the last
//! place of the largest value of its row, many times its standard deviation.
//!
//! The lse is a sum of f32 numbers and is stored as one: products of 16-bit values are exact, and what
//! remains are roundings of 2^-24 of the largest score, a few hundred of them at worst. Where a score is small because
//! its terms cancel, they are relative to what the terms amount to.
//!
//! Scores of thousands and more are known to no more than a fraction of 1, and so are the shares of values whose scores
//! lie as near to each other: the reference says how far off an element may be for that, beyond the limits above
//! ([`Rows::slack`]). It is nothing where one score stands out, or where scores are equal and exact.
//!
//! Numbers below the least that a dtype has are a matter of rounding.
//!
//! Where the reference is not finite, because a value or a score that a row sees is not, an output may be any number that
//! is not finite either; an lse is NaN or minus infinity as the reference says.
//!
//! Hopper's tensor cores add up products of bytes with fewer bits than f32 has. On an H200 a score was off by 2^-15 of
//! what its terms can amount to (root mean square over 90,000 rows of 64 and 128 dims), and by 2^-12 at worst. Limits of
//! single numbers grow by twice the worst, those of a sequence by the mean.

use gpu_kernels::dtype::QueryDtype;

use super::fill::Fill;
use super::mismatch::Mismatch;
use crate::reference::{HostTensor, Rows};
use crate::tensor::Dtype;

/// How a machine adds up the products that make a score.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ScoreSums {
    /// In f32.
    #[default]
    F32,
    /// In the accumulators that the tensor cores of compute capability 9.0 have for products of FP8.
    Fp8,
}

impl ScoreSums {
    /// How far off a score may be whose terms amount to `terms`.
    fn worst_error(self, terms: f64) -> f64 {
        match self {
            Self::F32 => 0.0,
            Self::Fp8 => terms * 2f64.powi(-11),
        }
    }

    /// How far off such scores are together.
    fn mean_error(self, terms: f64) -> f64 {
        self.worst_error(terms) * 2f64.powi(-4)
    }
}

/// How near an output came.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Accuracy {
    /// Largest relative Frobenius error of a sequence.
    pub rel_frobenius: f64,
    /// Largest error of an element, in units in the last place of its row's largest value.
    pub ulps: f64,
    /// Largest error of an lse.
    pub lse_abs: f64,
}

/// Compares the output of sequences `seqs` with what the reference says of them.
///
/// # Errors
/// The first kind of mismatch, at its worst place.
pub fn decode(
    out: &HostTensor,
    lse: Option<&HostTensor>,
    seqs: &[usize],
    expected: &[Rows],
) -> Result<Accuracy, Mismatch> {
    attention(out, lse, seqs, expected, ScoreSums::F32)
}

/// The same for scores that were added up as `sums` says.
///
/// # Errors
/// As there.
pub fn attention(
    out: &HostTensor,
    lse: Option<&HostTensor>,
    seqs: &[usize],
    expected: &[Rows],
    sums: ScoreSums,
) -> Result<Accuracy, Mismatch> {
    for (&seq, rows) in seqs.iter().zip(expected) {
        finite_places(out, lse, seq, rows)?;
    }
    let mut accuracy = Accuracy::default();
    for (&seq, rows) in seqs.iter().zip(expected) {
        let error = frobenius(out, seq, rows, sums)?;
        accuracy.rel_frobenius = accuracy.rel_frobenius.max(error);
    }
    for (&seq, rows) in seqs.iter().zip(expected) {
        assert_eq!(rows.out.len(), rows.terms.len(), "one of each head");
        for (head, (row, &terms)) in rows.out.iter().zip(&rows.terms).enumerate() {
            let slack = &rows.slack[head];
            let ulps = elements(out, [seq, head], row, slack, sums.worst_error(terms))?;
            accuracy.ulps = accuracy.ulps.max(ulps);
        }
        let Some(lse) = lse else { continue };
        for (head, (&expected, &terms)) in rows.lse.iter().zip(&rows.terms).enumerate() {
            let got = lse.float(&[seq, head]);
            if !expected.is_finite() {
                continue;
            }
            let limit = (2e-5 * expected.abs().max(1.0)).max(terms * 2f64.powi(-24))
                + sums.worst_error(terms);
            let error = (got - expected).abs();
            if error > limit {
                return Err(Mismatch::Element {
                    tensor: "lse",
                    at: vec![seq, head],
                    got,
                    expected,
                    limit,
                });
            }
            accuracy.lse_abs = accuracy.lse_abs.max(error);
        }
    }
    Ok(accuracy)
}

/// Outputs and lse are finite where they have to be, and nowhere else.
fn finite_places(
    out: &HostTensor,
    lse: Option<&HostTensor>,
    seq: usize,
    rows: &Rows,
) -> Result<(), Mismatch> {
    for (head, row) in rows.out.iter().enumerate() {
        for (element, &expected) in row.iter().enumerate() {
            let got = reached(out, &[seq, head, element], expected);
            if got.is_finite() != expected.is_finite() {
                return Err(Mismatch::NonFinite {
                    tensor: "out",
                    at: vec![seq, head, element],
                    got,
                    expected,
                });
            }
        }
    }
    let Some(lse) = lse else { return Ok(()) };
    for (head, &expected) in rows.lse.iter().enumerate() {
        let got = lse.float(&[seq, head]);
        let agrees = if expected.is_finite() {
            got.is_finite()
        } else {
            got == expected || got.is_nan() && expected.is_nan()
        };
        if !agrees {
            return Err(Mismatch::NonFinite {
                tensor: "lse",
                at: vec![seq, head],
                got,
                expected,
            });
        }
    }
    Ok(())
}

/// The sequence's error relative to its norm. A sequence whose output is zero has to be exact. Of an FP8 output only what
/// is beyond the rounding of each number counts: how large roundings of three bits are together depends on where the
/// numbers lie between two powers of two, and few of them may all lie badly.
fn frobenius(out: &HostTensor, seq: usize, rows: &Rows, sums: ScoreSums) -> Result<f64, Mismatch> {
    let most_terms = rows.terms.iter().copied().fold(0.0, f64::max);
    let roundings = match stored_as(out.dtype) {
        QueryDtype::F16 => 5e-4,
        QueryDtype::Bf16 | QueryDtype::F8E4m3 => 4e-3,
    };
    // Elements of a head share the roundings of its probabilities, so that with one head they all may be off the same way.
    let few_heads = 1.0 + 1.0 / rows.out.len().max(1) as f64;
    let limit = few_heads * roundings + sums.mean_error(most_terms);
    let (mut off, mut norm, mut worst) = (0.0, 0.0, (0.0, Vec::new(), 0.0, 0.0));
    for (head, row) in rows.out.iter().enumerate() {
        for (element, &expected) in row.iter().enumerate() {
            if !expected.is_finite() {
                continue;
            }
            let at = vec![seq, head, element];
            let got = reached(out, &at, expected);
            let mut error = beyond(got - expected, &rows.slack[head], element, out.dtype);
            if out.dtype == Dtype::F8E4m3 {
                error = (error - 0.5 * ulp(out.dtype, expected.abs())).max(0.0);
            }
            off += error * error;
            norm += expected * expected;
            if error > worst.0 {
                worst = (error, at, got, expected);
            }
        }
    }
    let error = if off == 0.0 { 0.0 } else { (off / norm).sqrt() };
    if error <= limit {
        return Ok(error);
    }
    let (_, at, got, expected) = worst;
    Err(Mismatch::Frobenius {
        seq,
        error,
        limit,
        at,
        got,
        expected,
    })
}

/// The largest error of row `[seq, head]`, in units in the last place of its largest value. A score that is off by
/// `score_error` changes what is added up, and by what it is divided, by that much of it.
fn elements(
    out: &HostTensor,
    [seq, head]: [usize; 2],
    row: &[f64],
    slack: &[f64],
    score_error: f64,
) -> Result<f64, Mismatch> {
    let finite = || row.iter().enumerate().filter(|(_, x)| x.is_finite());
    let largest = finite().fold(0.0f64, |max, (_, value)| max.max(value.abs()));
    let ulp = ulp(out.dtype, largest);
    let limit = 2.0 * (ulp + score_error * largest);
    let mut worst = 0.0f64;
    for (element, &expected) in finite() {
        let got = reached(out, &[seq, head, element], expected);
        let error = beyond(got - expected, slack, element, out.dtype);
        if error > limit {
            return Err(Mismatch::Element {
                tensor: "out",
                at: vec![seq, head, element],
                got,
                expected,
                limit,
            });
        }
        worst = worst.max(error / ulp);
    }
    Ok(worst)
}

/// An output as it was before it was rounded, where a f16 has an infinity: what is a rounding away from the largest number
/// becomes one. It counts as the number that would come next.
fn reached(out: &HostTensor, at: &[usize], expected: f64) -> f64 {
    let got = out.float(at);
    if out.dtype == Dtype::F16 && got.is_infinite() && got * expected > 0.0 && expected.is_finite()
    {
        65_536f64.copysign(got)
    } else {
        got
    }
}

/// What of an error is more than the slack of an element, and more than the least number of its dtype.
fn beyond(error: f64, slack: &[f64], element: usize, dtype: Dtype) -> f64 {
    let slack = slack.get(element).copied().unwrap_or(0.0);
    let least = if error.abs() <= ulp(dtype, 0.0) {
        error.abs()
    } else {
        0.0
    };
    (error.abs() - slack - least).max(0.0)
}

/// What an output's dtype is among those that outputs may have.
fn stored_as(out: Dtype) -> QueryDtype {
    QueryDtype::try_from(out).expect("attention writes no others")
}

/// The unit in the last place of a number of this size.
fn ulp(dtype: Dtype, value: f64) -> f64 {
    let (fraction_bits, min_exponent) = match stored_as(dtype) {
        QueryDtype::F16 => (10, -14.0),
        QueryDtype::F8E4m3 => (3, -6.0),
        QueryDtype::Bf16 => (7, -126.0),
    };
    let exponent = value.log2().floor().max(min_exponent);
    (exponent - f64::from(fraction_bits)).exp2()
}

/// What [`Rows::allow`] allows where a fill makes roundings add up: those of the probabilities, and one more.
pub(crate) fn allow(expected: &mut [Rows], fill: Fill, out: Dtype) {
    if fill == Fill::Plain {
        return;
    }
    let fraction = match stored_as(out) {
        QueryDtype::F16 => 2f64.powi(-11),
        QueryDtype::Bf16 | QueryDtype::F8E4m3 => 2f64.powi(-8),
    };
    expected.iter_mut().for_each(|rows| rows.allow(fraction));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn out(values: &[f32]) -> HostTensor {
        let bytes = values
            .iter()
            .flat_map(|&value| half::bf16::from_f32(value).to_le_bytes())
            .collect();
        HostTensor::contiguous("out", Dtype::Bf16, &[1, 1, values.len()], bytes)
    }

    fn judge(got: &[f32], expected: &[f64]) -> Result<Accuracy, Mismatch> {
        let rows = Rows {
            out: vec![expected.to_vec()],
            lse: vec![0.0],
            terms: vec![0.0],
            amounts: vec![0.0],
            slack: vec![Vec::new()],
        };
        decode(&out(got), None, &[0], &[rows])
    }

    #[test]
    fn an_exact_output_has_no_error() {
        assert_eq!(judge(&[1.0, -2.0], &[1.0, -2.0]), Ok(Accuracy::default()));
    }

    /// An lse of 1 that is off by `error`.
    fn judge_lse(error: f32, terms: f64, sums: ScoreSums) -> Result<Accuracy, Mismatch> {
        let bytes = (1.0 + error).to_le_bytes().to_vec();
        let lse = HostTensor::contiguous("lse", Dtype::F32, &[1, 1], bytes);
        let rows = Rows {
            out: vec![vec![1.0]],
            lse: vec![1.0],
            terms: vec![terms],
            amounts: vec![0.0],
            slack: vec![Vec::new()],
        };
        attention(&out(&[1.0]), Some(&lse), &[0], &[rows], sums)
    }

    #[test]
    fn an_lse_may_be_off_by_what_its_terms_round_to_and_no_more() {
        let off = |error, terms| judge_lse(error, terms, ScoreSums::F32);
        assert!(off(1e-5, 1.0).is_ok());
        assert!(off(1e-4, 1.0).is_err());
        assert!(off(1e-4, 2000.0).is_ok());
        assert!(off(2e-4, 2000.0).is_err());
    }

    #[test]
    fn sums_of_fp8_may_be_off_by_more_but_not_by_much() {
        let off = |error, sums| judge_lse(error, 10.0, sums);
        assert!(off(4e-3, ScoreSums::F32).is_err());
        assert!(off(4e-3, ScoreSums::Fp8).is_ok());
        assert!(off(6e-3, ScoreSums::Fp8).is_err());
    }

    #[test]
    fn nan_is_found_before_anything_else() {
        let verdict = judge(&[9.0, f32::NAN], &[1.0, 1.0]);
        assert!(matches!(verdict, Err(Mismatch::NonFinite { ref at, .. }) if at == &[0, 0, 1]));
    }

    #[test]
    fn a_sequence_off_by_one_per_cent_is_refused_at_its_worst_element() {
        let verdict = judge(&[1.0, 2.03125], &[1.0, 2.0]);
        assert!(matches!(verdict, Err(Mismatch::Frobenius { ref at, .. }) if at == &[0, 0, 1]));
    }

    #[test]
    fn one_small_element_far_off_is_refused_by_the_row() {
        // 3 ulp of 1.0 in a row of norm 16: small as a whole.
        let mut got = [1.0; 256];
        got[7] = 1.0 + 3.0 / 128.0;
        let verdict = judge(&got, &[1.0; 256]);
        assert!(
            matches!(verdict, Err(Mismatch::Element { ref at, .. }) if at == &[0, 0, 7]),
            "{verdict:?}"
        );
    }

    #[test]
    fn zero_has_to_be_exact() {
        assert!(judge(&[1e-30], &[0.0]).is_err());
        assert!(judge(&[0.0], &[0.0]).is_ok());
    }
}
