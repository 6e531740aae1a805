//! Reading `operation dtype key=value key=value ...`.

use std::fmt::Display;
use std::str::FromStr;

use crate::tensor::Dtype;

/// Why a line is not a case.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a case: {0}")]
pub struct CaseError(pub String);

/// Most heads, and most values per head.
pub(crate) const MAX_HEADS: usize = 4096;
/// Most tokens per block.
pub(crate) const MAX_BLOCK_SIZE: usize = 1 << 16;
/// Most sequences.
pub(crate) const MAX_SEQS: usize = 65_535;
/// Most tokens of a sequence, or of a cache write.
pub(crate) const MAX_TOKENS: usize = 1 << 20;

/// The `key=value` fields of a line; reading one takes it out, so that what is left over is a mistake.
pub(crate) struct Fields<'a> {
    dtype: Dtype,
    fields: Vec<(&'a str, &'a str)>,
}

impl<'a> Fields<'a> {
    /// Splits a line into the operation's name and its fields.
    pub(crate) fn read(line: &'a str) -> Result<(&'a str, Self), CaseError> {
        let mut words = line.split_whitespace();
        let operation = words
            .next()
            .ok_or_else(|| CaseError("the line is empty".into()))?;
        let name = words.next().unwrap_or("nothing");
        let mut halves = [Dtype::Bf16, Dtype::F16].into_iter();
        let Some(dtype) = halves.find(|dtype| dtype.name() == name) else {
            return Err(CaseError(format!(
                "after the operation comes bf16 or f16, not `{name}`"
            )));
        };
        let mut fields: Vec<(&str, &str)> = Vec::new();
        for word in words {
            let (key, value) = word
                .split_once('=')
                .ok_or_else(|| CaseError(format!("`{word}` is not of the form key=value")))?;
            if fields.iter().any(|&(other, _)| other == key) {
                return Err(CaseError(format!("`{key}` is given twice")));
            }
            fields.push((key, value));
        }
        Ok((operation, Self { dtype, fields }))
    }

    pub(crate) fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// The value of `key` as text, if given.
    pub(crate) fn text(&mut self, key: &str) -> Option<&'a str> {
        let at = self.fields.iter().position(|&(other, _)| other == key)?;
        Some(self.fields.remove(at).1)
    }

    /// The value of `key`, if given.
    pub(crate) fn optional<T: FromStr<Err: Display>>(
        &mut self,
        key: &str,
    ) -> Result<Option<T>, CaseError> {
        self.text(key).map(|text| parse(key, text)).transpose()
    }

    /// The value of `key`.
    pub(crate) fn required<T: FromStr<Err: Display>>(&mut self, key: &str) -> Result<T, CaseError> {
        self.optional(key)?
            .ok_or_else(|| CaseError(format!("`{key}=` is missing")))
    }

    /// A size between 1 and `max`: small enough that products of all sizes do not overflow.
    pub(crate) fn size(&mut self, key: &str, max: usize) -> Result<usize, CaseError> {
        check_size(key, self.required(key)?, max)
    }

    /// Refuses fields that nobody read.
    pub(crate) fn finish(self) -> Result<(), CaseError> {
        match self.fields.first() {
            None => Ok(()),
            Some((key, _)) => Err(CaseError(format!("no field is called `{key}`"))),
        }
    }
}

/// `text`, the value of `key`.
pub(crate) fn parse<T: FromStr<Err: Display>>(key: &str, text: &str) -> Result<T, CaseError> {
    text.parse()
        .map_err(|error| CaseError(format!("`{key}={text}`: {error}")))
}

/// See [`Fields::size`].
pub(crate) fn check_size(key: &str, size: usize, max: usize) -> Result<usize, CaseError> {
    if (1..=max).contains(&size) {
        return Ok(size);
    }
    Err(CaseError(format!("`{key}={size}` is outside 1..={max}")))
}
