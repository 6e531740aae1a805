//! Special values: what a [`Fill`] makes of the random numbers of a case.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use half::{bf16, f16};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::text::CaseError;
use crate::reference::{Fp8Format, HostTensor, fp8_nearest};
use crate::tensor::Dtype;

/// What the numbers of a case are like. If they are tiny, huge or mixed, the scales of single tokens lie many powers of two
/// apart; if they are anything but plain, heads have special sinks and slopes, too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fill {
    /// Random ones that spread around 1.
    #[default]
    Plain,
    /// Half of the heads and tokens are zeros, of either sign.
    Zeros,
    /// The elements of a row are the same, and most keys of a sequence are: equal scores, some of them huge.
    Equal,
    /// Zeros of both signs, subnormals and the least normal numbers.
    Tiny,
    /// In every row one number is huge, up to the largest finite.
    Huge,
    /// Each row is of any of these kinds.
    Mixed,
    /// Plain, and NaN, infinity or a huge number in every place that some row does not see: for rows that see the place,
    /// the output is not finite, or huge; for others it is as if nothing were there.
    Poison,
    /// Plain, and some queries and keys have a NaN, or an infinity that makes all scores minus infinity.
    NotFinite,
}

const NAMES: [(Fill, &str); 8] = [
    (Fill::Plain, "plain"),
    (Fill::Zeros, "zeros"),
    (Fill::Equal, "equal"),
    (Fill::Tiny, "tiny"),
    (Fill::Huge, "huge"),
    (Fill::Mixed, "mixed"),
    (Fill::Poison, "poison"),
    (Fill::NotFinite, "not-finite"),
];

impl Fill {
    /// All but the plain one.
    pub(crate) const SPECIAL: [Self; 7] = [
        Self::Zeros,
        Self::Equal,
        Self::Tiny,
        Self::Huge,
        Self::Mixed,
        Self::Poison,
        Self::NotFinite,
    ];

    /// Those whose numbers are finite wherever they are seen.
    pub const FINITE: [Self; 6] = [
        Self::Plain,
        Self::Zeros,
        Self::Equal,
        Self::Tiny,
        Self::Huge,
        Self::Mixed,
    ];

    /// ` fill=name`, unless it is the plain one.
    pub(crate) fn write(self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain => Ok(()),
            other => write!(f, " fill={other}"),
        }
    }
}

impl fmt::Display for Fill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = NAMES.iter().find(|(it, _)| it == self);
        f.pad(name.map_or("", |&(_, name)| name))
    }
}

impl FromStr for Fill {
    type Err = CaseError;

    fn from_str(text: &str) -> Result<Self, CaseError> {
        let named = NAMES.iter().find(|&&(_, name)| name == text);
        named.map(|&(fill, _)| fill).ok_or_else(|| {
            let names: Vec<_> = NAMES.iter().map(|&(_, name)| name).collect();
            CaseError(format!("fills are {}", names.join(", ")))
        })
    }
}

/// What a row is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Query,
    Key,
    Value,
}

/// Rewrites rows as a fill wants them.
pub(crate) struct Painter {
    fill: Fill,
    random: ChaCha8Rng,
}

impl Painter {
    /// `stream` tells the tensors of one seed apart.
    pub(crate) fn new(fill: Fill, seed: u64, stream: u64) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed ^ 0x0005_eec1_a100);
        random.set_stream(stream);
        Self { fill, random }
    }

    /// Whether rows may be left as they are.
    pub(crate) fn leaves_rows(&self) -> bool {
        matches!(self.fill, Fill::Plain | Fill::Poison)
    }

    /// A row of `role`. Rows of the same `kin` have much in common where equality is wanted.
    pub(crate) fn paint(&mut self, role: Role, dtype: Dtype, row: &mut [u8], kin: usize) {
        let fill = match self.fill {
            Fill::Mixed => Fill::FINITE[self.random.random_range(0..5)],
            other => other,
        };
        match fill {
            Fill::Plain | Fill::Mixed | Fill::Poison => {}
            Fill::Zeros => {
                if self.random.random() {
                    let negative = self.random.random() && dtype != Dtype::I8;
                    for element in row.chunks_exact_mut(dtype.size()) {
                        put_code(element, if negative { sign(dtype) } else { 0 });
                    }
                }
            }
            Fill::Equal => self.equal(role, dtype, row, kin),
            Fill::Tiny => {
                // The least normal number, and the subnormals next to zero.
                let normal = match (dtype, Fp8Format::of(dtype)) {
                    (Dtype::F16, _) => 0x400,
                    (Dtype::Bf16, _) => 0x80,
                    (_, Some(format)) => 1 << format.mantissa_bits,
                    (_, None) => 1,
                };
                for element in row.chunks_exact_mut(dtype.size()) {
                    let code = [0, 1, 2, normal - 1, normal][self.random.random_range(0..5)];
                    let negative = self.random.random() && dtype != Dtype::I8;
                    put_code(element, code | if negative { sign(dtype) } else { 0 });
                }
            }
            Fill::Huge => {
                let at = self.random.random_range(0..row.len() / dtype.size());
                let share = 0.5 + 0.5 * self.random.random::<f32>();
                let x = match (dtype, role) {
                    (Dtype::F16, _) => 65_504.0,
                    // Products of these are still no infinity in an f32.
                    (Dtype::Bf16, Role::Query | Role::Key) => 2f32.powi(55) * share,
                    (Dtype::Bf16, Role::Value) => 2f32.powi(100) * share,
                    _ => f32::MAX,
                };
                put(
                    dtype,
                    element(row, dtype, at),
                    if self.random.random() { x } else { -x },
                );
            }
            Fill::NotFinite => self.not_finite(role, dtype, row, kin),
        }
    }

    fn equal(&mut self, role: Role, dtype: Dtype, row: &mut [u8], kin: usize) {
        const SIZES: [f32; 4] = [1.0, 0.5, 8192.0, 2.0];
        let negative = self.random.random_range(0..4) == 0;
        let x = match role {
            Role::Key => SIZES[kin % 4],
            Role::Query | Role::Value => SIZES[self.random.random_range(0..4)],
        };
        for element in row.chunks_exact_mut(dtype.size()) {
            put(dtype, element, if negative { -x } else { x });
        }
    }

    /// Of three heads one has a NaN, and one meets keys that begin with a positive number with minus infinity.
    fn not_finite(&mut self, role: Role, dtype: Dtype, row: &mut [u8], kin: usize) {
        let first = element(row, dtype, 0);
        match role {
            Role::Query if kin.is_multiple_of(3) => put(dtype, first, f32::NAN),
            Role::Query if kin % 3 == 1 => put(dtype, first, f32::NEG_INFINITY),
            Role::Query => {}
            Role::Key if self.random.random_range(0..40) == 0 => put(dtype, first, f32::NAN),
            Role::Key => put(dtype, first, 1.0),
            Role::Value => {}
        }
    }

    /// All rows of a tensor; kin by the index before the last.
    pub(crate) fn paint_all(&mut self, role: Role, tensor: &mut HostTensor) {
        if self.leaves_rows() {
            return;
        }
        let [.., heads, width] = tensor.shape[..] else {
            panic!("rows of heads")
        };
        let size = tensor.dtype.size();
        let mut bytes = tensor.storage.bytes.clone();
        for row in 0..tensor.num_elements() / width.max(1) {
            let start = size * tensor.row_position(row);
            let numbers = &mut bytes[start..start + size * width];
            self.paint(role, tensor.dtype, numbers, row % heads);
        }
        *tensor = tensor.with_bytes(bytes);
    }
}

impl Fill {
    /// Powers of two by which scales of single tokens or groups differ, where numbers are of any size: no score leaves f32
    /// for them.
    pub(crate) fn scale_powers(self) -> RangeInclusive<i32> {
        match self {
            Self::Tiny => -60..=0,
            Self::Huge => -10..=24,
            Self::Mixed => -40..=24,
            Self::Plain | Self::Zeros | Self::Equal | Self::Poison | Self::NotFinite => ALIKE,
        }
    }

    /// What a head has instead of `plain`, by turns one of `special`, in a case with special values.
    pub(crate) fn of_head(self, head: usize, plain: f32, special: [f32; 2]) -> f32 {
        if self == Self::Plain {
            return plain;
        }
        special.get(head % 4).copied().unwrap_or(plain)
    }
}

/// Powers of two of scales that differ by none.
pub(crate) const ALIKE: RangeInclusive<i32> = 0..=0;

/// One of the powers; where there is but one, nothing is drawn.
pub(crate) fn power_of_two(powers: &RangeInclusive<i32>, random: &mut ChaCha8Rng) -> i32 {
    match powers.start() == powers.end() {
        true => *powers.start(),
        false => random.random_range(powers.clone()),
    }
}

/// A sink that is none, and one beside which no token counts.
pub(crate) const SPECIAL_SINKS: [f32; 2] = [f32::NEG_INFINITY, 1e30];

/// What poison there may be in a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Venom {
    /// Nobody reads it: NaN, infinities, 1e30, the largest number.
    Any,
    /// Some row reads it: the same without the largest number, which roundings might take beyond itself.
    Seen,
    /// NaN alone.
    Nan,
}

/// NaN or an infinity in every element, by turns; only NaN where `nan_only`, or where there is no infinity.
pub(crate) fn poison(dtype: Dtype, row: &mut [u8], turn: usize, nan_only: bool) {
    let infinity = match dtype {
        Dtype::F16 => Some(0x7c00),
        Dtype::Bf16 => Some(0x7f80),
        other => Fp8Format::of(other).and_then(|format| format.infinity.map(u16::from)),
    };
    let code = match (infinity, turn % 3) {
        (Some(infinity), 1) if !nan_only => infinity,
        (Some(infinity), 2) if !nan_only => infinity | sign(dtype),
        _ => 0xffff,
    };
    for element in row.chunks_exact_mut(dtype.size()) {
        put_code(element, code);
    }
}

/// The same or, by more turns, a huge number, the largest where a dtype has none of 1e30.
pub(crate) fn poison_value(dtype: Dtype, row: &mut [u8], turn: usize, venom: Venom) {
    let huge = match (venom, turn % 5) {
        (Venom::Any | Venom::Seen, 3) => 1e30,
        (Venom::Any, 4) => f32::MAX,
        (_, turn) => return poison(dtype, row, turn, venom == Venom::Nan),
    };
    for element in row.chunks_exact_mut(dtype.size()) {
        put_finite(dtype, element, huge);
    }
}

/// The poison of a scale, of each kind by turns; 1e30 alone where it has to be one that a check lets pass.
pub(crate) fn poison_scale(turn: usize, venom: Venom, is_checked: bool) -> f32 {
    match (venom, turn % 3) {
        (Venom::Any, 1) => f32::MAX,
        (Venom::Any | Venom::Seen, 2) => 1e30,
        (Venom::Seen, _) if is_checked => 1e30,
        _ => f32::NAN,
    }
}

/// Element `at` of a row.
fn element(row: &mut [u8], dtype: Dtype, at: usize) -> &mut [u8] {
    let size = dtype.size();
    &mut row[size * at..size * (at + 1)]
}

/// The bit of the sign.
fn sign(dtype: Dtype) -> u16 {
    if dtype.size() == 1 { 0x80 } else { 0x8000 }
}

/// The low bytes of `code`.
fn put_code(element: &mut [u8], code: u16) {
    let size = element.len().min(2);
    element[..size].copy_from_slice(&code.to_le_bytes()[..size]);
}

/// The number that is nearest to `x`, or the largest.
fn put_finite(dtype: Dtype, element: &mut [u8], x: f32) {
    let largest = match dtype {
        Dtype::F16 => f16::MAX.to_f32(),
        Dtype::Bf16 => bf16::MAX.to_f32(),
        _ => f32::MAX,
    };
    put(dtype, element, x.clamp(-largest, largest));
}

/// The number that is nearest to `x`.
fn put(dtype: Dtype, element: &mut [u8], x: f32) {
    match dtype {
        Dtype::F16 => element.copy_from_slice(&f16::from_f32(x).to_le_bytes()),
        Dtype::Bf16 => element.copy_from_slice(&bf16::from_f32(x).to_le_bytes()),
        #[allow(clippy::cast_possible_truncation, reason = "saturates")]
        Dtype::I8 => element[0] = (x as i8).cast_unsigned(),
        // That panics if the dtype is none of them.
        fp8 => element[0] = fp8_nearest(fp8, f64::from(x)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fill_reads_back() {
        for (fill, _) in NAMES {
            assert_eq!(fill.to_string().parse(), Ok(fill));
        }
        assert!("nothing".parse::<Fill>().is_err());
    }

    /// What a painter makes of rows of ones.
    fn painted(fill: Fill, role: Role, dtype: Dtype) -> Vec<f64> {
        let mut ones = vec![0; 100 * 8 * dtype.size()];
        ones.chunks_exact_mut(dtype.size())
            .for_each(|element| put(dtype, element, 1.0));
        let mut tensor = HostTensor::contiguous("rows", dtype, &[50, 2, 8], ones);
        Painter::new(fill, 1, 0).paint_all(role, &mut tensor);
        (0..800).map(|at| tensor.float_at(at)).collect()
    }

    #[test]
    fn each_fill_has_what_it_is_for() {
        for dtype in [Dtype::F16, Dtype::Bf16, Dtype::F8E4m3, Dtype::F8E5m2] {
            for role in [Role::Query, Role::Key, Role::Value] {
                for fill in Fill::FINITE {
                    let numbers = painted(fill, role, dtype);
                    assert!(numbers.iter().all(|x| x.is_finite()), "{fill} {dtype}");
                }
            }
            let zeros = painted(Fill::Zeros, Role::Key, dtype);
            assert!(
                zeros
                    .chunks(8)
                    .any(|row| row.iter().all(|x| x.to_bits() == 0))
            );
            assert!(zeros.contains(&1.0));
            assert!(zeros.iter().any(|x| x.to_bits() == (-0.0f64).to_bits()));
            let tiny = painted(Fill::Tiny, Role::Value, dtype);
            assert!(tiny.iter().all(|x| x.abs() < 0.1) && tiny.iter().any(|&x| x != 0.0));
            let huge = painted(Fill::Huge, Role::Value, dtype);
            for row in huge.chunks(8) {
                assert_eq!(row.iter().filter(|x| x.abs() > 400.0).count(), 1);
            }
            let equal = painted(Fill::Equal, Role::Key, dtype);
            assert!(equal.chunks(8).all(|row| row == [row[0]; 8]));
            let lost = painted(Fill::NotFinite, Role::Query, dtype);
            assert!(lost.iter().any(|x| x.is_nan()));
        }
    }
}
