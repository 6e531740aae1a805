//! Parameters of a decode step over FP8 entries.

use std::fmt;

use crate::cases::base::device_case::Described;
use crate::cases::base::fill::Fill;
use crate::cases::base::lens::Lens;
use crate::cases::base::mla_entry::{EntryLayout, OUT_SIZE, SOFTMAX_SCALE};
use crate::cases::base::options::{
    LseForm, read_check, read_flag, read_split, write_check, write_split,
};
use crate::cases::base::text::{
    CaseError, Fields, MAX_BLOCK_SIZE, MAX_HEADS, MAX_TOKENS, check_size,
};
use crate::ops::{CheckMode, DecodeOptions, EntryForm};
use crate::plan::SplitPolicy;
use crate::tensor::Dtype;

/// Parameters of a decode step over FP8 entries; query and output are bf16.
#[derive(Clone, Debug, PartialEq)]
pub struct EntryCase {
    /// How a token is stored.
    pub form: EntryForm,
    /// Whether the scales of 656-byte entries are powers of two; V4's always are.
    pub round_scales: bool,
    /// Query heads.
    pub num_query_heads: usize,
    /// Query tokens per sequence.
    pub query_len: usize,
    /// Tokens per block.
    pub block_size: usize,
    /// Lengths of the sequences.
    pub lens: Lens,
    /// Which tokens are attended to; all if none.
    pub topk: Option<TopK>,
    /// Whether heads have sinks.
    pub sinks: bool,
    /// Elements of padding after each head and each row of query and output.
    pub pad: usize,
    /// The lse.
    pub lse: LseForm,
    /// How the positions are split.
    pub split_policy: SplitPolicy,
    /// Whether block table and lengths, or index lists, are checked on the device.
    pub check: CheckMode,
    /// What the numbers are like.
    pub fill: Fill,
}

/// How tokens are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TopK {
    /// Indices of a query token, or as many as there are tokens.
    pub topk: usize,
    /// Indices of the second list, over a second cache; 0 for none.
    pub window: usize,
    /// Every so many indices one is negative or outside the cache; 0 for none.
    pub skip_every: usize,
    /// Whether query tokens have numbers of indices that count, from 0 on.
    pub has_lengths: bool,
    /// Whether indices are tokens of the sequence instead of slots.
    pub by_table: bool,
}

impl EntryCase {
    /// The plainest case.
    pub fn of(form: EntryForm, num_query_heads: usize, lens: Lens) -> Self {
        Self {
            form,
            round_scales: true,
            num_query_heads,
            query_len: 1,
            block_size: 64,
            lens,
            topk: None,
            sinks: false,
            pad: 0,
            lse: LseForm::On,
            split_policy: SplitPolicy::Auto,
            check: CheckMode::Off,
            fill: Fill::Plain,
        }
    }

    /// The softmax scale: that of a model with heads of 128 + 64.
    pub fn scale(&self) -> f32 {
        SOFTMAX_SCALE
    }

    /// How a token lies in its block.
    pub(crate) fn layout(&self) -> EntryLayout {
        EntryLayout::of(self.form)
    }

    /// Values of a query head, and of a cache row.
    pub fn head_size(&self) -> usize {
        self.layout().values()
    }

    /// Bytes of a token.
    pub fn entry_bytes(&self) -> usize {
        self.layout().bytes()
    }

    /// The options of the request.
    pub fn options(&self) -> DecodeOptions<'static> {
        DecodeOptions::default()
            .split_policy(self.split_policy)
            .check(self.check)
    }

    /// Lengths that count: none below zero.
    pub fn tokens(&self, seed: u64) -> Vec<usize> {
        let lens = self.lens.draw(seed).into_iter();
        lens.map(|len| usize::try_from(len).unwrap_or(0)).collect()
    }

    /// Tokens that each sequence's query tokens attend to, all of them together.
    fn attended(&self, seed: u64) -> usize {
        let per_seq = |len: usize| match self.topk {
            None => len,
            Some(topk) => self.query_len * (topk.topk.min(len) + topk.window.min(len)),
        };
        self.tokens(seed).into_iter().map(per_seq).sum()
    }

    pub(crate) fn read(fields: &mut Fields<'_>) -> Result<Self, CaseError> {
        if fields.dtype() != Dtype::Bf16 {
            return Err(CaseError("entries go with bf16".into()));
        }
        let (form, round_scales) = match fields.text("form") {
            Some("656") => (EntryForm::Fp8Ds, true),
            Some("656-any-scale") => (EntryForm::Fp8Ds, false),
            Some("584") => (EntryForm::V4, true),
            other => {
                let other = other.unwrap_or("");
                return Err(CaseError(format!(
                    "`form={other}`: it is 656, 656-any-scale or 584"
                )));
            }
        };
        let num_query_heads = fields.size("heads", MAX_HEADS)?;
        let block_size = fields.size("page", MAX_BLOCK_SIZE)?;
        let lens = fields.required("lens")?;
        let query_len = fields.optional("q_len")?.unwrap_or(1);
        let topk = match fields.optional("topk")? {
            None => None,
            Some(topk) => Some(TopK {
                topk: check_size("topk", topk, MAX_TOKENS)?,
                window: fields.optional("swa")?.unwrap_or(0).min(MAX_TOKENS),
                skip_every: fields.optional("skip")?.unwrap_or(0),
                has_lengths: read_flag(fields, "lengths", "drawn")?,
                by_table: read_flag(fields, "by", "table")?,
            }),
        };
        let pad = fields.optional("pad")?.unwrap_or(0);
        if pad > 1 << 16 {
            return Err(CaseError("paddings go up to 65536 elements".into()));
        }
        Ok(Self {
            form,
            round_scales,
            num_query_heads,
            query_len: check_size("q_len", query_len, MAX_HEADS)?,
            block_size,
            lens,
            topk,
            sinks: read_flag(fields, "sinks", "on")?,
            pad,
            lse: LseForm::read(fields)?,
            split_policy: read_split(fields)?,
            check: read_check(fields)?,
            fill: fields.optional("fill")?.unwrap_or_default(),
        })
    }
}

impl Described for EntryCase {
    fn peer_name(&self) -> String {
        let (bytes, heads) = (self.entry_bytes(), self.num_query_heads);
        let num_seqs = self.lens.num_seqs();
        let tokens = match self.query_len {
            1 => String::new(),
            query_len => format!(" qlen={query_len}"),
        };
        match self.topk {
            None => format!(
                "mla dense{bytes} h={heads} b={num_seqs} lens={}{tokens}",
                self.lens
            ),
            Some(TopK {
                topk, window: 0, ..
            }) => {
                format!("mla sparse{bytes} h={heads} b={num_seqs} topk={topk}{tokens}")
            }
            Some(TopK { topk, window, .. }) => {
                format!("mla sparse{bytes} h={heads} b={num_seqs} swa={window} topk={topk}{tokens}")
            }
        }
    }

    /// Entries, query, output, lse, and the indices or lengths.
    fn unavoidable_bytes(&self, seed: u64) -> u64 {
        let rows = self.tokens(seed).len() * self.query_len * self.num_query_heads;
        let lse = if self.lse == LseForm::Off { 0 } else { 4 };
        let attended = self.attended(seed);
        let index = if self.topk.is_some() { 4 } else { 0 };
        (attended * (self.entry_bytes() + index) + rows * (2 * (self.head_size() + OUT_SIZE) + lse))
            as u64
    }

    /// Two per multiplication and addition of the two products.
    fn flops(&self, seed: u64) -> u64 {
        let rows = match self.topk {
            None => self.query_len * self.num_query_heads,
            Some(_) => self.num_query_heads,
        };
        (self.attended(seed) * 2 * rows * (self.head_size() + OUT_SIZE)) as u64
    }
}

impl fmt::Display for EntryCase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let form = match (self.form, self.round_scales) {
            (EntryForm::V4, _) => "584",
            (_, true) => "656",
            (_, false) => "656-any-scale",
        };
        write!(
            f,
            "decode_mla_entry bf16 form={form} heads={} page={} lens={}",
            self.num_query_heads, self.block_size, self.lens
        )?;
        if self.query_len > 1 {
            write!(f, " q_len={}", self.query_len)?;
        }
        if let Some(topk) = &self.topk {
            write!(f, " topk={}", topk.topk)?;
            if topk.window > 0 {
                write!(f, " swa={}", topk.window)?;
            }
            if topk.skip_every > 0 {
                write!(f, " skip={}", topk.skip_every)?;
            }
            if topk.has_lengths {
                write!(f, " lengths=drawn")?;
            }
            if topk.by_table {
                write!(f, " by=table")?;
            }
        }
        if self.sinks {
            write!(f, " sinks=on")?;
        }
        if self.pad > 0 {
            write!(f, " pad={}", self.pad)?;
        }
        self.lse.write(f)?;
        write_split(self.split_policy, f)?;
        write_check(self.check, f)?;
        self.fill.write(f)
    }
}
