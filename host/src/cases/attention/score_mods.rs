//! What a case of attention says of its scores, beyond their scale.

use std::fmt;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::cases::base::options::read_flag;
use crate::cases::base::text::{CaseError, Fields};
use crate::cases::base::uploads::Uploads;
use crate::error::RequestError;
use crate::ops::{AlibiForm, AlibiSlopes};
use crate::reference::HostTensor;
use crate::tensor::{Dtype, TensorView};

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
    form: Option<AlibiForm>,
    /// `[num_query_heads]`
    pub alibi_slopes: Option<HostTensor>,
    /// `[num_query_heads]`
    pub sinks: Option<HostTensor>,
}

impl ScoreTensors {
    pub(crate) fn new(case: &ScoreCase, num_query_heads: usize, seed: u64) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed ^ 0x5eed);
        let mut per_head = |name, low: f32, high: f32| {
            let bytes = (0..num_query_heads)
                .flat_map(|_| (low + (high - low) * random.random::<f32>()).to_le_bytes())
                .collect();
            HostTensor::contiguous(name, Dtype::F32, &[num_query_heads], bytes)
        };
        Self {
            form: case.alibi,
            alibi_slopes: case.alibi.map(|_| per_head("alibi_slopes", 0.01, 0.3)),
            sinks: case.sinks.then(|| per_head("sinks", -1.0, 4.0)),
        }
    }

    pub(crate) fn tensors(&self) -> impl Iterator<Item = &HostTensor> {
        self.alibi_slopes.iter().chain(&self.sinks)
    }

    /// Slopes and sinks on a machine.
    pub(crate) fn views<'u>(
        &self,
        uploads: &'u Uploads<'_>,
    ) -> Result<(Option<AlibiSlopes<'u>>, Option<TensorView<'u>>), RequestError> {
        let alibi = match (self.form, &self.alibi_slopes) {
            (Some(form), Some(slopes)) => Some(AlibiSlopes {
                slopes: uploads.view(slopes)?,
                form,
            }),
            _ => None,
        };
        let sinks = self.sinks.as_ref().map(|sinks| uploads.view(sinks));
        Ok((alibi, sinks.transpose()?))
    }
}
