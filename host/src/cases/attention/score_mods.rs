//! What a case of attention says of its scores, beyond their scale.

use std::fmt;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::cases::base::fill::{Fill, SPECIAL_SINKS};
use crate::cases::base::options::read_flag;
use crate::cases::base::pick::{one_in, pick};
use crate::cases::base::text::{CaseError, Fields};
use crate::cases::base::uploads::Uploads;
use crate::error::RequestError;
use crate::ops::{AlibiForm, AlibiSlopes, ScoreMods};
use crate::reference::{self, HostTensor};
use crate::tensor::Dtype;

/// Window, softcap, ALiBi and sinks of a case.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ScoreCase {
    /// Keys that a query sees.
    pub sliding_window: Option<u32>,
    /// The softcap.
    pub softcap: Option<f32>,
    /// ALiBi.
    pub alibi: Option<AlibiForm>,
    /// Whether heads have sinks.
    pub sinks: bool,
}

impl ScoreCase {
    pub(crate) fn draw(random: &mut ChaCha8Rng) -> Self {
        let mut case = Self::default();
        if one_in(random, 3) {
            case.sliding_window = Some(random.random_range(1..150));
        }
        if one_in(random, 4) {
            case.softcap = Some(pick(random, &[1.0, 30.0, 50.0, 1e3, 1e7]));
        }
        case.alibi = match random.random_range(0..8) {
            0 => Some(AlibiForm::Linear),
            1 => Some(AlibiForm::Sqrt),
            _ => None,
        };
        case.sinks = one_in(random, 4);
        case
    }

    /// What it says without tensors.
    pub(crate) fn numbers(self) -> ScoreMods<'static> {
        ScoreMods {
            sliding_window: self.sliding_window,
            softcap: self.softcap,
            alibi: None,
            sinks: None,
        }
    }

    /// The first key that any of the last `query_len` of `seq_len` tokens sees.
    pub(crate) fn first_seen(self, query_len: usize, seq_len: usize) -> usize {
        self.sliding_window.map_or(0, |window| {
            (seq_len + 1).saturating_sub(query_len + window as usize)
        })
    }

    /// As peers name it in their tables.
    pub(crate) fn peer_name(self) -> String {
        let window = self
            .sliding_window
            .map_or(String::new(), |w| format!(" window={w}"));
        let sinks = if self.sinks { " sinks" } else { "" };
        let softcap = self
            .softcap
            .map_or(String::new(), |cap| format!(" softcap={cap}"));
        format!("{window}{sinks}{softcap}")
    }

    /// Keys that the last of `seq_len` tokens sees.
    pub(crate) fn seen_by_last(&self, seq_len: usize) -> usize {
        seq_len.min(
            self.sliding_window
                .map_or(usize::MAX, |window| window as usize),
        )
    }

    pub(crate) fn read(fields: &mut Fields<'_>) -> Result<Self, CaseError> {
        Ok(Self {
            sliding_window: fields.optional("window")?,
            softcap: fields.optional("softcap")?,
            alibi: match fields.text("alibi") {
                None => None,
                Some("linear") => Some(AlibiForm::Linear),
                Some("sqrt") => Some(AlibiForm::Sqrt),
                Some(other) => {
                    return Err(CaseError(format!(
                        "`alibi={other}`: given, it is linear or sqrt"
                    )));
                }
            },
            sinks: read_flag(fields, "sinks", "on")?,
        })
    }
}

impl fmt::Display for ScoreCase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(window) = self.sliding_window {
            write!(f, " window={window}")?;
        }
        if let Some(softcap) = self.softcap {
            write!(f, " softcap={softcap}")?;
        }
        match self.alibi {
            None => {}
            Some(AlibiForm::Linear) => f.write_str(" alibi=linear")?,
            Some(AlibiForm::Sqrt) => f.write_str(" alibi=sqrt")?,
        }
        if self.sinks {
            f.write_str(" sinks=on")?;
        }
        Ok(())
    }
}

/// The tensors of a [`ScoreCase`].
#[derive(Clone, Debug)]
pub struct ScoreTensors {
    case: ScoreCase,
    /// `[num_query_heads]`
    pub alibi_slopes: Option<HostTensor>,
    /// `[num_query_heads]`
    pub sinks: Option<HostTensor>,
}

impl ScoreTensors {
    /// Of a case with special values, heads have special ones by turns, too: a slope of 0 and a steep one, a sink that is
    /// none and one beside which no key counts.
    pub(crate) fn new(case: &ScoreCase, num_query_heads: usize, fill: Fill, seed: u64) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed ^ 0x5eed);
        let mut per_head = |name, low: f32, high: f32, special: [f32; 2]| {
            let bytes = (0..num_query_heads)
                .flat_map(|head| {
                    let plain = low + (high - low) * random.random::<f32>();
                    fill.of_head(head, plain, special).to_le_bytes()
                })
                .collect();
            HostTensor::contiguous(name, Dtype::F32, &[num_query_heads], bytes)
        };
        Self {
            case: *case,
            alibi_slopes: case
                .alibi
                .map(|_| per_head("alibi_slopes", 0.01, 0.3, [0.0, 1e6])),
            sinks: case
                .sinks
                .then(|| per_head("sinks", -1.0, 4.0, SPECIAL_SINKS)),
        }
    }

    pub(crate) fn tensors(&self) -> impl Iterator<Item = &HostTensor> {
        self.alibi_slopes.iter().chain(&self.sinks)
    }

    /// What the reference is told.
    pub(crate) fn by_definition(&self) -> reference::ScoreMods<'_> {
        reference::ScoreMods {
            sliding_window: self.case.sliding_window.map(i64::from),
            softcap: self.case.softcap.map(f64::from),
            alibi_slopes: self.alibi_slopes.as_ref(),
            alibi_sqrt: self.case.alibi == Some(AlibiForm::Sqrt),
            sinks: self.sinks.as_ref(),
        }
    }

    /// What a request is told, with slopes and sinks on a machine.
    pub(crate) fn with_tensors<'u>(
        &self,
        numbers: ScoreMods<'u>,
        uploads: &'u Uploads<'_>,
    ) -> Result<ScoreMods<'u>, RequestError> {
        let mut mods = numbers;
        if let (Some(form), Some(slopes)) = (self.case.alibi, &self.alibi_slopes) {
            let slopes = uploads.view(slopes)?;
            mods.alibi = Some(AlibiSlopes { slopes, form });
        }
        let sinks = self.sinks.as_ref().map(|sinks| uploads.view(sinks));
        mods.sinks = sinks.transpose()?;
        Ok(mods)
    }
}
