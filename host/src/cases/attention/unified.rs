//! Parameters of a step of unified attention.

use std::fmt;
use std::str::FromStr;

use super::decode::DecodeCase;
use crate::cases::base::device_case::Described;
use crate::cases::base::lens::Lens;
use crate::cases::base::options::{LseForm, read_flag};
use crate::cases::base::text::{CaseError, Fields, MAX_TOKENS, parse};
use crate::ops::CheckMode;
use crate::tensor::Dtype;

/// Parameters of a step of unified attention.
#[derive(Clone, Debug, PartialEq)]
pub struct UnifiedCase {
    /// What it has in common with a decode step: `lens` are the sequences' lengths. Its query and output have
    /// a row for each query token.
    pub base: DecodeCase,
    /// Query tokens of each sequence.
    pub query_lens: QueryLens,
    /// Query tokens past the last sequence's.
    pub extra_tokens: usize,
    /// Who sees no key after the query's own.
    pub causal: Causal,
    /// The output is fp8_e4m3, divided by this.
    pub output_scale: Option<f32>,
    /// Whether the host says that the first sequences have one query token each.
    pub decodes_first: bool,
    /// The bound of the sequences' query tokens that the host knows, if any.
    pub max_query_len: Option<u32>,
    /// Whether scores are added up in f32 everywhere.
    pub f32_scores: bool,
}

/// Query tokens of the sequences of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QueryLens {
    /// These.
    List(Vec<usize>),
    /// `all`: as many as the sequence has keys.
    All,
    /// `each:N`: so many each.
    Each(usize),
}

/// Whose queries see no key after their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Causal {
    /// All sequences'.
    On,
    /// `causal=off`: nobody's.
    Off,
    /// `causal=mixed`: those of every second sequence, by a flag for each.
    Mixed,
}

impl Causal {
    /// Whether it is so for sequence `seq`.
    pub fn is_on(self, seq: usize) -> bool {
        match self {
            Self::On => true,
            Self::Off => false,
            Self::Mixed => seq % 2 == 1,
        }
    }
}

impl UnifiedCase {
    /// The plainest case of a base.
    pub fn of(base: DecodeCase, query_lens: QueryLens) -> Self {
        Self {
            base,
            query_lens,
            extra_tokens: 0,
            causal: Causal::On,
            output_scale: None,
            decodes_first: false,
            max_query_len: None,
            f32_scores: false,
        }
    }

    /// Query tokens of each sequence.
    pub fn query_lens(&self, seed: u64) -> Vec<usize> {
        let tokens = self.base.tokens(seed);
        match &self.query_lens {
            QueryLens::List(lens) => lens.clone(),
            QueryLens::All => tokens,
            QueryLens::Each(len) => vec![*len; tokens.len()],
        }
    }

    /// Query tokens of all sequences.
    pub fn num_query_tokens(&self, seed: u64) -> usize {
        self.query_lens(seed).iter().sum()
    }

    /// Sequences at the start of the batch that have one query token, if the host says so.
    pub fn num_decodes(&self, seed: u64) -> u32 {
        if !self.decodes_first {
            return 0;
        }
        let lens = self.query_lens(seed);
        let decodes = lens.iter().take_while(|&&len| len == 1).count();
        u32::try_from(decodes).expect("cases have few sequences")
    }

    /// Keys that query token `token` of sequence `seq` sees.
    fn visible(&self, seq: usize, query_len: usize, seq_len: usize, token: usize) -> usize {
        let window = self.base.scores.seen_by_last(seq_len);
        if self.causal.is_on(seq) {
            (seq_len + token + 1).saturating_sub(query_len).min(window)
        } else {
            seq_len.min(2 * window)
        }
    }

    /// The sum over all sequences, of each by its number, query tokens and length.
    fn sum(&self, seed: u64, of_seq: impl Fn(usize, usize, usize) -> usize) -> usize {
        let query_lens = self.query_lens(seed).into_iter();
        query_lens
            .zip(self.base.tokens(seed))
            .enumerate()
            .map(|(seq, (query_len, seq_len))| of_seq(seq, query_len, seq_len))
            .sum()
    }

    /// Query tokens that the reference can do with `budget` multiplications: all, or the first and the last of
    /// each sequence and others spread between.
    pub fn sample_tokens(&self, seed: u64, budget: u64) -> Vec<usize> {
        let num_tokens = self.num_query_tokens(seed);
        let cost = self.flops(seed) / 2 / (num_tokens.max(1) as u64);
        let affordable = usize::try_from(budget / cost.max(1)).unwrap_or(usize::MAX);
        if affordable >= num_tokens {
            return (0..num_tokens).collect();
        }
        let mut ends = Vec::new();
        let mut start = 0;
        for len in self.query_lens(seed).into_iter().filter(|&len| len > 0) {
            ends.extend([start + len - 1, start]);
            start += len;
        }
        let spread = (1..affordable).map(|part| part * num_tokens / affordable);
        let mut tokens: Vec<usize> = ends
            .into_iter()
            .take(affordable / 2)
            .chain(spread)
            .collect();
        tokens.truncate(affordable.max(1));
        tokens.sort_unstable();
        tokens.dedup();
        tokens
    }

    pub(crate) fn read(fields: &mut Fields<'_>) -> Result<Self, CaseError> {
        let case = Self {
            query_lens: fields.required("q_lens")?,
            extra_tokens: fields.optional("extra")?.unwrap_or(0),
            causal: match fields.text("causal") {
                None => Causal::On,
                Some("off") => Causal::Off,
                Some("mixed") => Causal::Mixed,
                Some(other) => {
                    return Err(CaseError(format!(
                        "`causal={other}`: off or mixed, if given"
                    )));
                }
            },
            output_scale: fields.optional("output_scale")?,
            decodes_first: read_flag(fields, "decodes_first", "on")?,
            max_query_len: fields.optional("max_q_len")?,
            f32_scores: read_flag(fields, "f32_scores", "on")?,
            base: DecodeCase::read(fields, false)?,
        };
        let seqs = case.base.lens.num_seqs();
        if matches!(&case.query_lens, QueryLens::List(lens) if lens.len() != seqs) {
            return Err(CaseError(format!(
                "`q_lens=` has to have {seqs} lengths, as `lens=`"
            )));
        }
        if case.extra_tokens > MAX_TOKENS {
            return Err(CaseError(format!("`extra=` goes up to {MAX_TOKENS}")));
        }
        if case.base.check == CheckMode::Device
            && matches!(case.base.lens, Lens::List(ref lens) if lens.iter().any(|&len| len < 0))
        {
            return Err(CaseError("`check=device` refuses negative lengths".into()));
        }
        Ok(case)
    }
}

impl Described for UnifiedCase {
    fn peer_name(&self) -> String {
        let base = self.base.peer_name();
        let shape = base.split(' ').next().unwrap_or_default();
        let size = |tokens: usize| match tokens {
            0 => "0".to_owned(),
            _ if tokens.is_multiple_of(1024) => format!("{}k", tokens / 1024),
            _ => tokens.to_string(),
        };
        let lens = self.base.tokens(0);
        let query_lens = self.query_lens(0);
        let decodes = query_lens.iter().filter(|&&len| len == 1).count();
        let chunk = query_lens.iter().zip(&lens).find(|&(&len, _)| len > 1);
        let what = match chunk {
            None => {
                let ctx = lens.iter().copied().max().unwrap_or(0);
                let scores = self.base.scores.peer_name();
                format!("decode b={} ctx={ctx}{scores}", lens.len())
            }
            Some((&len, &seq_len)) if decodes == 0 => {
                let context = size(seq_len.saturating_sub(len));
                format!("prefill {}x{len} ctx{context}", query_lens.len())
            }
            Some((&len, &seq_len)) => {
                let decoded = query_lens.iter().zip(&lens).find(|&(&len, _)| len == 1);
                let ctx = size(decoded.map_or(0, |(_, &len)| len));
                match seq_len.saturating_sub(len) {
                    0 => format!("mixed {decodes}dec@{ctx} + 1x{len}"),
                    context => format!("mixed {decodes}dec@{ctx} + {len}@{}", size(context)),
                }
            }
        };
        let dtype = |dtype: Dtype| match dtype {
            Dtype::F8E4m3 => "fp8".to_owned(),
            other => other.to_string(),
        };
        let (query, cache) = (dtype(self.base.query_dtype), dtype(self.base.cache.dtype));
        format!("{shape} {what} q={query} kv={cache}")
    }

    fn unavoidable_bytes(&self, seed: u64) -> u64 {
        let (base, cache) = (&self.base, &self.base.cache);
        let keys = self.sum(seed, |_, query_len, seq_len| {
            if query_len == 0 {
                return 0;
            }
            let window = self.base.scores.seen_by_last(seq_len);
            seq_len.min(query_len - 1 + window)
        });
        let heads = self.num_query_tokens(seed) * base.num_query_heads;
        let out_size = match self.output_scale {
            Some(_) => 1,
            None => base.dtype.size(),
        };
        let rows =
            heads * (cache.head_size * base.query_dtype.size() + cache.head_size_v * out_size);
        let lse = match base.lse {
            LseForm::Off => 0,
            LseForm::On | LseForm::HeadsFirst => 4 * heads,
        };
        let indices = 4 * (keys.div_ceil(cache.block_size) + 2 * base.lens.num_seqs() + 1);
        (keys * cache.token_bytes() + rows + lse + indices) as u64
    }

    fn flops(&self, seed: u64) -> u64 {
        let pairs = self.sum(seed, |seq, query_len, seq_len| {
            (0..query_len)
                .map(|token| self.visible(seq, query_len, seq_len, token))
                .sum()
        });
        let per_pair = 2
            * self.base.num_query_heads
            * (self.base.cache.head_size + self.base.cache.head_size_v);
        (pairs * per_pair) as u64
    }
}

impl fmt::Display for UnifiedCase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut base = self.base.clone();
        let scores = std::mem::take(&mut base.scores);
        let base = base.to_string();
        let fields = base.strip_prefix("decode").unwrap_or(&base);
        write!(f, "unified{fields} q_lens={}", self.query_lens)?;
        if self.extra_tokens > 0 {
            write!(f, " extra={}", self.extra_tokens)?;
        }
        f.write_str(match self.causal {
            Causal::On => "",
            Causal::Off => " causal=off",
            Causal::Mixed => " causal=mixed",
        })?;
        scores.fmt(f)?;
        if let Some(scale) = self.output_scale {
            write!(f, " output_scale={scale}")?;
        }
        if self.decodes_first {
            f.write_str(" decodes_first=on")?;
        }
        if let Some(len) = self.max_query_len {
            write!(f, " max_q_len={len}")?;
        }
        if self.f32_scores {
            f.write_str(" f32_scores=on")?;
        }
        Ok(())
    }
}

impl fmt::Display for QueryLens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::List(lens) => {
                let lens: Vec<_> = lens.iter().map(usize::to_string).collect();
                f.write_str(&lens.join(","))
            }
            Self::All => f.write_str("all"),
            Self::Each(len) => write!(f, "each:{len}"),
        }
    }
}

impl FromStr for QueryLens {
    type Err = CaseError;

    fn from_str(text: &str) -> Result<Self, CaseError> {
        let size = |text: &str| -> Result<usize, CaseError> {
            match parse("q_lens", text)? {
                len if len <= MAX_TOKENS => Ok(len),
                len => Err(CaseError(format!("`q_lens={len}` is above {MAX_TOKENS}"))),
            }
        };
        match text.split_once(':') {
            None if text == "all" => Ok(Self::All),
            Some(("each", len)) => Ok(Self::Each(size(len)?)),
            _ => {
                let lens: Result<Vec<usize>, _> = text.split(',').map(size).collect();
                Ok(Self::List(lens?))
            }
        }
    }
}
