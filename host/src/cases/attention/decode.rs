//! Parameters of a decode step.

use std::fmt;

use super::score_mods::ScoreCase;
use crate::cases::base::device_case::Described;
use crate::cases::base::fill::Fill;
use crate::cases::base::layout::CacheShape;
use crate::cases::base::lens::Lens;
use crate::cases::base::options::{
    LseForm, ScaleForm, read_cache_dtype, read_check, read_split, write_check, write_split,
};
use crate::cases::base::text::{CaseError, Fields, MAX_HEADS, check_size, parse};
use crate::ops::{CheckMode, DecodeOptions};
use crate::plan::SplitPolicy;
use crate::tensor::Dtype;

/// Parameters of a decode step.
#[derive(Clone, Debug, PartialEq)]
pub struct DecodeCase {
    /// Of the output: bf16 or f16.
    pub dtype: Dtype,
    /// Of the query: `dtype` or fp8_e4m3.
    pub query_dtype: Dtype,
    /// Query heads.
    pub num_query_heads: usize,
    /// The cache.
    pub cache: CacheShape,
    /// Lengths of the sequences.
    pub lens: Lens,
    /// Elements of padding after each head and each sequence of the query.
    pub pad_query: usize,
    /// Elements of padding after each head and each sequence of the output.
    pub pad_out: usize,
    /// Elements of padding after each row of the block table.
    pub pad_block_table: usize,
    /// The lse.
    pub lse: LseForm,
    /// If not `1 / sqrt(head_size)`.
    pub softmax_scale: Option<f32>,
    /// The scales, if the cache is of bytes.
    pub scales: ScaleForm,
    /// How the KV range is split.
    pub split_policy: SplitPolicy,
    /// Whether one schedule serves all launches, if the device makes any.
    pub schedule_once: bool,
    /// Whether indices are checked on the device.
    pub check: CheckMode,
    /// The bound that the host knows, if any.
    pub max_seq_len: Option<u32>,
    /// Query tokens per sequence, if the cache is a latent one (MLA): values are the first columns of the keys.
    pub latent: Option<usize>,
    /// What becomes of scores; nothing if the cache is latent.
    pub scores: ScoreCase,
    /// What the numbers are like.
    pub fill: Fill,
}

impl DecodeCase {
    /// The softmax scale.
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        reason = "head sizes are small, and the scale is an f32"
    )]
    pub fn scale(&self) -> f32 {
        self.softmax_scale
            .unwrap_or((1.0 / (self.cache.head_size as f64).sqrt()) as f32)
    }

    /// Whether the cache is of bytes.
    pub fn is_scaled(&self) -> bool {
        self.cache.dtype.size() == 1
    }

    /// The options of the request, but for tensors.
    pub fn options(&self) -> DecodeOptions<'static> {
        let mut options = DecodeOptions::default()
            .split_policy(self.split_policy)
            .check(self.check);
        options.max_seq_len = self.max_seq_len;
        options.score_mods = self.scores.numbers();
        options
    }

    /// Lengths that count: none below zero, none above the bound.
    pub fn tokens(&self, seed: u64) -> Vec<usize> {
        let bound = self.max_seq_len.map_or(usize::MAX, |bound| bound as usize);
        self.lens
            .draw(seed)
            .into_iter()
            .map(|len| usize::try_from(len).unwrap_or(0).min(bound))
            .collect()
    }

    /// Tokens that the sequences' queries see.
    pub(crate) fn seen(&self, seed: u64) -> Vec<usize> {
        let tokens = self.tokens(seed).into_iter();
        tokens.map(|len| self.scores.seen_by_last(len)).collect()
    }

    /// Query tokens per sequence.
    pub fn query_len(&self) -> usize {
        self.latent.unwrap_or(1)
    }

    /// Bytes of a token in the cache.
    fn token_bytes(&self) -> usize {
        match self.latent {
            Some(_) => self.cache.head_size * self.cache.dtype.size(),
            None => self.cache.token_bytes(),
        }
    }

    pub(crate) fn read(fields: &mut Fields<'_>, is_latent: bool) -> Result<Self, CaseError> {
        let heads: String = fields.required("heads")?;
        let (query, kv) = heads
            .split_once('/')
            .ok_or_else(|| CaseError(format!("`heads={heads}` is not of the form QUERY/KV")))?;
        let num_query_heads = check_size("heads", parse("heads", query)?, MAX_HEADS)?;
        let num_kv_heads = check_size("heads", parse("heads", kv)?, MAX_HEADS)?;
        let mut cache = CacheShape::read(fields, num_kv_heads)?;
        let dtype = cache.dtype;
        cache.dtype = read_cache_dtype(fields, dtype)?;
        let query_dtype = match fields.text("q") {
            None => dtype,
            Some(name) if name == Dtype::F8E4m3.name() => Dtype::F8E4m3,
            Some(other) => {
                return Err(CaseError(format!("`q={other}`: given, it is fp8_e4m3")));
            }
        };
        let lens = fields.required("lens")?;
        let pads: Vec<usize> = match fields.text("pad") {
            None => vec![0; 3],
            Some(pads) => pads
                .split('/')
                .map(|pad| parse("pad", pad))
                .collect::<Result<_, _>>()?,
        };
        let [pad_query, pad_out, pad_block_table] = pads[..] else {
            return Err(CaseError("`pad=` is QUERY/OUT/BLOCK_TABLE".into()));
        };
        if pads.iter().any(|&pad| pad > 1 << 16) {
            return Err(CaseError("paddings go up to 65536 elements".into()));
        }
        Ok(Self {
            dtype,
            query_dtype,
            num_query_heads,
            cache,
            lens,
            pad_query,
            pad_out,
            pad_block_table,
            lse: LseForm::read(fields)?,
            softmax_scale: fields.optional("scale")?,
            scales: ScaleForm::read(fields)?,
            split_policy: read_split(fields)?,
            schedule_once: match fields.text("schedule") {
                None => false,
                Some("once") => true,
                Some(other) => {
                    return Err(CaseError(format!("`schedule={other}`: given, it is once")));
                }
            },
            check: read_check(fields)?,
            max_seq_len: fields.optional("max_len")?,
            latent: match is_latent {
                true => Some(check_size(
                    "q_len",
                    fields.optional("q_len")?.unwrap_or(1),
                    MAX_HEADS,
                )?),
                false => None,
            },
            scores: match is_latent {
                true => ScoreCase::default(),
                false => ScoreCase::read(fields)?,
            },
            fill: fields.optional("fill")?.unwrap_or_default(),
        })
    }
}

impl Described for DecodeCase {
    fn peer_name(&self) -> String {
        let (heads, kv_heads) = (self.num_query_heads, self.cache.num_kv_heads);
        let (d, dv) = (self.cache.head_size, self.cache.head_size_v);
        let family = match (heads, kv_heads, d) {
            (64, 8, 128) => "mqa",
            (64, 8, 64) => "oss",
            (16, 8, 256) => "gemma",
            _ if heads == kv_heads => "mha",
            _ => "gqa",
        };
        let sizes = if d == dv {
            format!("{d}")
        } else {
            format!("{d}v{dv}")
        };
        let lens = match &self.lens {
            Lens::Uniform(num_seqs, len) => format!("b={num_seqs} ctx={len}"),
            Lens::Ragged(num_seqs, max) | Lens::RaggedMean(num_seqs, max, _) => {
                format!("b={num_seqs} ctx={max} ragged")
            }
            Lens::Zipf(num_seqs, max) => format!("b={num_seqs} ctx={max} zipf"),
            Lens::OneLong(num_seqs, len, max) => {
                format!("b={num_seqs} ctx={max} and {len}")
            }
            Lens::List(lens) => {
                let max = lens.iter().copied().max().unwrap_or(0);
                format!("b={} ctx={max} ragged", lens.len())
            }
        };
        let lens = if self.split_policy == SplitPolicy::Scheduled {
            let once = if self.schedule_once { " once" } else { "" };
            format!(
                "{lens} bound={} scheduled{once}",
                self.max_seq_len.unwrap_or(0)
            )
        } else {
            lens
        };
        let kv = match self.cache.dtype {
            Dtype::F8E4m3 => "fp8".to_owned(),
            Dtype::I8 => "int8".to_owned(),
            other => other.to_string(),
        };
        if self.is_scaled() && self.scales == ScaleForm::Token {
            return format!("{family}{heads}_{kv_heads}_{sizes} {kv}_per_token_head {lens}");
        }
        let page = self.cache.block_size;
        let query = match self.query_dtype {
            Dtype::F8E4m3 => " q=fp8",
            _ => "",
        };
        match self.latent {
            Some(1) => return format!("mla h={heads} kv={kv} pg={page} {lens}{query}"),
            Some(len) => {
                return format!("mla h={heads} kv={kv} pg={page} {lens} qlen={len}{query}");
            }
            None => {}
        }
        let scores = self.scores;
        format!("{family}{heads}_{kv_heads}_{sizes} kv={kv} pg={page} {lens}{query}{scores}")
    }

    /// Keys and values of all tokens, query, output, lse, lengths and the block-table entries that name
    /// tokens.
    fn unavoidable_bytes(&self, seed: u64) -> u64 {
        let tokens = self.seen(seed);
        let blocks: usize = tokens
            .iter()
            .map(|len| len.div_ceil(self.cache.block_size))
            .sum();
        let heads = tokens.len() * self.query_len() * self.num_query_heads;
        let query_and_out = heads
            * (self.cache.head_size * self.query_dtype.size()
                + self.cache.head_size_v * self.dtype.size());
        let lse = if self.lse == LseForm::Off {
            0
        } else {
            heads * 4
        };
        let scales = match self.scales {
            ScaleForm::Token if self.is_scaled() => 2 * 4 * self.cache.num_kv_heads,
            ScaleForm::Tensor | ScaleForm::Head | ScaleForm::Token => 0,
        };
        let total = tokens.iter().sum::<usize>() * (self.token_bytes() + scales)
            + query_and_out
            + lse
            + 4 * (blocks + tokens.len());
        total as u64
    }

    /// Two per multiplication and addition of the two products.
    fn flops(&self, seed: u64) -> u64 {
        let tokens: usize = self.seen(seed).iter().sum();
        let rows = self.query_len() * self.num_query_heads;
        (tokens * 2 * rows * (self.cache.head_size + self.cache.head_size_v)) as u64
    }
}

impl fmt::Display for DecodeCase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (heads, kv_heads) = (self.num_query_heads, self.cache.num_kv_heads);
        let operation = if self.latent.is_some() {
            "decode_mla"
        } else {
            "decode"
        };
        write!(f, "{operation} {} heads={heads}/{kv_heads}", self.dtype)?;
        if self.cache.dtype != self.dtype {
            write!(f, " kv={}", self.cache.dtype)?;
        }
        if self.query_dtype != self.dtype {
            write!(f, " q={}", self.query_dtype)?;
        }
        self.scales.write(f)?;
        self.cache.write(f)?;
        write!(f, " lens={}", self.lens)?;
        let pads = [self.pad_query, self.pad_out, self.pad_block_table];
        if pads != [0; 3] {
            write!(f, " pad={}/{}/{}", pads[0], pads[1], pads[2])?;
        }
        self.lse.write(f)?;
        if let Some(scale) = self.softmax_scale {
            write!(f, " scale={scale}")?;
        }
        write_split(self.split_policy, f)?;
        if self.schedule_once {
            f.write_str(" schedule=once")?;
        }
        write_check(self.check, f)?;
        if let Some(tokens) = self.max_seq_len {
            write!(f, " max_len={tokens}")?;
        }
        if let Some(len @ 2..) = self.latent {
            write!(f, " q_len={len}")?;
        }
        self.fill.write(f)?;
        self.scores.fmt(f)
    }
}
