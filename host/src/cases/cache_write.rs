//! Parameters of a cache write.

use std::fmt;

use super::CacheShape;
use super::decode::{read_check, write_check};
use super::text::{CaseError, Fields, MAX_HEADS, MAX_TOKENS};
use crate::ops::CheckMode;

/// Parameters of a cache write.
#[derive(Clone, Debug, PartialEq)]
pub struct CacheWriteCase {
    /// The cache.
    pub cache: CacheShape,
    /// Tokens: the length of the slot mapping.
    pub num_tokens: usize,
    /// Rows of `key` and `value` beyond the slot mapping, as a captured graph has.
    pub extra_rows: usize,
    /// Every so many tokens one is padding, with slot −1; 0 for none.
    pub skip_every: usize,
    /// Whether key and value are slices of one tensor, query, key, value side by side.
    pub fused: bool,
    /// Whether slots are checked on the device.
    pub check: CheckMode,
}

impl CacheWriteCase {
    /// What is read and written: tokens that are not padding, in and out, and the slots.
    pub fn unavoidable_bytes(&self) -> u64 {
        let skipped = match self.skip_every {
            0 => 0,
            every => self.num_tokens / every,
        };
        let written = self.num_tokens - skipped;
        (written * 2 * self.cache.token_bytes() + self.num_tokens * 8) as u64
    }

    /// See [`super::Case::peer_name`].
    pub fn peer_name(&self) -> String {
        format!(
            "write H={} D={} kv={} n={}",
            self.cache.num_kv_heads, self.cache.head_size, self.cache.dtype, self.num_tokens
        )
    }

    pub(super) fn read(fields: &mut Fields<'_>) -> Result<Self, CaseError> {
        let num_kv_heads = fields.size("heads", MAX_HEADS)?;
        let cache = CacheShape::read(fields, num_kv_heads)?;
        let num_tokens = fields.required("tokens")?;
        let extra_rows = fields.optional("extra_rows")?.unwrap_or(0);
        if num_tokens > MAX_TOKENS || extra_rows > MAX_TOKENS {
            return Err(CaseError(format!("tokens go up to {MAX_TOKENS}")));
        }
        Ok(Self {
            cache,
            num_tokens,
            extra_rows,
            skip_every: fields.optional("skip")?.unwrap_or(0),
            fused: match fields.text("from") {
                None => false,
                Some("qkv") => true,
                Some(other) => return Err(CaseError(format!("`from={other}`: given, it is qkv"))),
            },
            check: read_check(fields)?,
        })
    }
}

impl fmt::Display for CacheWriteCase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cache = &self.cache;
        write!(
            f,
            "reshape_and_cache_flash {} heads={}",
            cache.dtype, cache.num_kv_heads
        )?;
        cache.write(f)?;
        write!(f, " tokens={}", self.num_tokens)?;
        if self.extra_rows > 0 {
            write!(f, " extra_rows={}", self.extra_rows)?;
        }
        if self.skip_every > 0 {
            write!(f, " skip={}", self.skip_every)?;
        }
        if self.fused {
            write!(f, " from=qkv")?;
        }
        write_check(self.check, f)
    }
}
