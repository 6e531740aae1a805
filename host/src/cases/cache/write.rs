//! Parameters of a cache write.

use std::fmt;

use crate::cases::base::device_case::Described;
use crate::cases::base::fill::Fill;
use crate::cases::base::layout::CacheShape;
use crate::cases::base::options::{ScaleForm, read_cache_dtype, read_check, write_check};
use crate::cases::base::text::{CaseError, Fields, MAX_HEADS, MAX_TOKENS, check_size, parse};
use crate::ops::{CheckMode, RopeStyle};
use crate::tensor::Dtype;

/// Rows of the table of angles.
pub(crate) const POSITIONS: usize = 8192;

/// Parameters of a cache write.
#[derive(Clone, Debug, PartialEq)]
pub struct CacheWriteCase {
    /// Of keys and values.
    pub dtype: Dtype,
    /// The cache: of the same dtype, or of bytes.
    pub cache: CacheShape,
    /// The scales, if the cache is of bytes.
    pub scales: ScaleForm,
    /// How queries and keys are rotated in the same launch, if they are.
    pub rope: Option<RopeCase>,
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
    /// What the numbers are like that are not only copied.
    pub fill: Fill,
}

/// The rotation ahead of a cache write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RopeCase {
    /// Which values turn together.
    pub style: RopeStyle,
    /// Values of a head that turn.
    pub rotary_dim: usize,
    /// Query heads; 0 for none.
    pub num_query_heads: usize,
    /// Whether queries become fp8_e4m3.
    pub fp8_query: bool,
}

impl CacheWriteCase {
    /// Whether the cache is of bytes.
    pub fn is_scaled(&self) -> bool {
        self.cache.dtype != self.dtype
    }

    pub(crate) fn read(fields: &mut Fields<'_>, has_rope: bool) -> Result<Self, CaseError> {
        let heads: String = fields.required("heads")?;
        let (query_heads, kv_heads) = match heads.split_once('/') {
            Some((query, kv)) if has_rope => (parse("heads", query)?, kv),
            _ => (0, &*heads),
        };
        let num_kv_heads = check_size("heads", parse("heads", kv_heads)?, MAX_HEADS)?;
        let mut cache = CacheShape::read(fields, num_kv_heads)?;
        let dtype = cache.dtype;
        cache.dtype = read_cache_dtype(fields, dtype)?;
        let scales = ScaleForm::read(fields)?;
        let rope = if has_rope {
            Some(RopeCase::read(fields, query_heads)?)
        } else {
            None
        };
        let num_tokens = fields.required("tokens")?;
        let extra_rows = fields.optional("extra_rows")?.unwrap_or(0);
        if num_tokens > MAX_TOKENS || extra_rows > MAX_TOKENS {
            return Err(CaseError(format!("tokens go up to {MAX_TOKENS}")));
        }
        Ok(Self {
            dtype,
            cache,
            scales,
            rope,
            num_tokens,
            extra_rows,
            skip_every: fields.optional("skip")?.unwrap_or(0),
            fused: match fields.text("from") {
                None => false,
                Some("qkv") => true,
                Some(other) => return Err(CaseError(format!("`from={other}`: given, it is qkv"))),
            },
            check: read_check(fields)?,
            fill: fields.optional("fill")?.unwrap_or_default(),
        })
    }
}

impl Described for CacheWriteCase {
    fn peer_name(&self) -> String {
        let (heads, d, tokens) = (
            self.cache.num_kv_heads,
            self.cache.head_size,
            self.num_tokens,
        );
        let kv = match self.cache.dtype {
            Dtype::F8E4m3 => "fp8".to_owned(),
            Dtype::I8 => "int8".to_owned(),
            other => other.to_string(),
        };
        if self.is_scaled() && self.scales == ScaleForm::Token {
            return format!("write {kv}_per_token_head n={tokens}");
        }
        match self.rope {
            None => format!("write H={heads} D={d} kv={kv} n={tokens}"),
            Some(rope) => {
                let queries = rope.num_query_heads;
                format!("rope+write H={queries}/{heads} D={d} kv={kv} n={tokens}")
            }
        }
    }

    /// What is read and written: tokens that are not padding, in and out, and the slots.
    fn unavoidable_bytes(&self, _seed: u64) -> u64 {
        let skipped = match self.skip_every {
            0 => 0,
            every => self.num_tokens / every,
        };
        let written = self.num_tokens - skipped;
        let stored = self.cache.token_bytes();
        let read = stored / self.cache.dtype.size() * self.dtype.size();
        let scales = if self.is_scaled() && self.scales == ScaleForm::Token {
            2 * 4 * self.cache.num_kv_heads
        } else {
            0
        };
        let rope = self.rope.map_or(0, |rope| {
            let out = if rope.fp8_query { 1 } else { 2 };
            let query = rope.num_query_heads * self.cache.head_size * (2 + out);
            // A position for each token, and the table's rows once.
            let rows = self.num_tokens.min(POSITIONS);
            self.num_tokens * (query + 8) + rows * 4 * rope.rotary_dim
        });
        (written * (read + stored + scales) + self.num_tokens * 8 + rope) as u64
    }
}

impl RopeCase {
    fn read(fields: &mut Fields<'_>, num_query_heads: usize) -> Result<Self, CaseError> {
        let text: String = fields.required("rope")?;
        let (style, rotary_dim) = match text.split_once(':') {
            Some(("neox", size)) => (RopeStyle::Neox, parse("rope", size)?),
            Some(("gptj", size)) => (RopeStyle::GptJ, parse("rope", size)?),
            _ => {
                return Err(CaseError(format!(
                    "`rope={text}` is not neox:SIZE or gptj:SIZE"
                )));
            }
        };
        if num_query_heads > MAX_HEADS || rotary_dim > MAX_HEADS {
            return Err(CaseError(format!("heads and sizes go up to {MAX_HEADS}")));
        }
        Ok(Self {
            style,
            rotary_dim,
            num_query_heads,
            fp8_query: match fields.text("q") {
                None => false,
                Some("fp8_e4m3") => true,
                Some(other) => {
                    return Err(CaseError(format!("`q={other}`: given, it is fp8_e4m3")));
                }
            },
        })
    }
}

impl fmt::Display for CacheWriteCase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cache = &self.cache;
        match self.rope {
            None => write!(
                f,
                "reshape_and_cache_flash {} heads={}",
                self.dtype, cache.num_kv_heads
            )?,
            Some(rope) => write!(
                f,
                "rope_and_cache {} heads={}/{}",
                self.dtype, rope.num_query_heads, cache.num_kv_heads
            )?,
        }
        if self.is_scaled() {
            write!(f, " kv={}", cache.dtype)?;
        }
        self.scales.write(f)?;
        if let Some(rope) = self.rope {
            let style = match rope.style {
                RopeStyle::Neox => "neox",
                RopeStyle::GptJ => "gptj",
            };
            write!(f, " rope={style}:{}", rope.rotary_dim)?;
            if rope.fp8_query {
                write!(f, " q=fp8_e4m3")?;
            }
        }
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
        write_check(self.check, f)?;
        self.fill.write(f)
    }
}
