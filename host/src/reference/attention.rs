//! Attention by its formula.

use rayon::prelude::*;

use super::softmax::{Head, Scoring, Seen, attend};
use super::{HostTensor, ScoreMods};

/// One decode step: one query token per sequence against a paged cache.
#[derive(Clone, Copy, Debug)]
pub struct DecodeInputs<'a> {
    /// `[num_seqs, num_query_heads, head_size]`
    pub query: &'a HostTensor,
    /// `[num_blocks, block_size, num_kv_heads, head_size]`
    pub key_cache: &'a HostTensor,
    /// `[num_blocks, block_size, num_kv_heads, head_size_v]`
    pub value_cache: &'a HostTensor,
    /// `[num_seqs, max_num_blocks_per_seq]`
    pub block_table: &'a HostTensor,
    /// `[num_seqs]`; zero and below are empty sequences.
    pub seq_lens: &'a HostTensor,
    /// Multiplies query · key.
    pub softmax_scale: f64,
    /// What the stored values were divided by, if they were.
    pub scales: Option<Scales<'a>>,
    /// Longer sequences are cut to it, if given.
    pub max_seq_len: Option<usize>,
}

/// What stored values were divided by.
#[derive(Clone, Copy, Debug)]
pub struct Scales<'a> {
    /// `[1]`, of the query.
    pub q_scale: Option<&'a HostTensor>,
    /// `[1]`, `[num_kv_heads]` or `[num_blocks, block_size, num_kv_heads]`
    pub k_scale: &'a HostTensor,
    /// As `k_scale`.
    pub v_scale: &'a HostTensor,
}

/// One sequence's output.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rows {
    /// `[num_query_heads, head_size_v]`
    pub out: Vec<Vec<f64>>,
    /// `[num_query_heads]`, natural logarithm.
    pub lse: Vec<f64>,
    /// `[num_query_heads]`, what the terms of a score amount to at most: `softmax_scale`, times the length of the
    /// query, times that of the longest key. Rounding errors are relative to it, whatever cancels.
    pub terms: Vec<f64>,
    /// `[num_query_heads]`, what the terms of an output amount to: the shares of values, times their largest elements.
    pub amounts: Vec<f64>,
    /// `[num_query_heads, head_size_v]`, how far off an element may be because f32 cannot hold the scores any better;
    /// no elements where scores are so small that it can.
    pub slack: Vec<Vec<f64>>,
}

impl Rows {
    /// The next query head.
    pub(super) fn push(&mut self, head: Head) {
        self.out.push(head.out);
        self.lse.push(head.lse);
        self.terms.push(head.terms);
        self.amounts.push(head.amount);
        self.slack.push(head.slack);
    }

    /// Lets every element be off by a fraction of what its terms amount to: where many values or shares are the same,
    /// their roundings add up instead of cancelling each other.
    pub fn allow(&mut self, fraction: f64) {
        for ((slack, out), amount) in self.slack.iter_mut().zip(&self.out).zip(&self.amounts) {
            slack.resize(out.len(), 0.0);
            slack
                .iter_mut()
                .for_each(|slack| *slack += fraction * amount);
        }
    }

    /// The next query heads.
    pub(super) fn append(&mut self, mut heads: Self) {
        self.out.append(&mut heads.out);
        self.lse.append(&mut heads.lse);
        self.terms.append(&mut heads.terms);
        self.amounts.append(&mut heads.amounts);
        self.slack.append(&mut heads.slack);
    }
}

/// The outputs of the sequences `seqs`.
///
/// # Panics
/// If the tensors do not agree with each other, or the block table names a block outside the cache.
pub fn decode(inputs: &DecodeInputs<'_>, seqs: &[usize]) -> Vec<Rows> {
    let num_kv_heads = inputs.key_cache.shape[2];
    let heads: Vec<(usize, usize)> = seqs
        .iter()
        .flat_map(|&seq| (0..num_kv_heads).map(move |kv_head| (seq, kv_head)))
        .collect();
    let mut groups = heads
        .into_par_iter()
        .map(|(seq, kv_head)| decode_group(inputs, seq, kv_head))
        .collect::<Vec<_>>()
        .into_iter();
    seqs.iter()
        .map(|_| {
            let mut rows = Rows::default();
            for group in groups.by_ref().take(num_kv_heads) {
                rows.append(group);
            }
            rows
        })
        .collect()
}

/// The query heads that share one KV head.
fn decode_group(inputs: &DecodeInputs<'_>, seq: usize, kv_head: usize) -> Rows {
    let block_size = inputs.key_cache.shape[1];
    let seq_len = usize::try_from(inputs.seq_lens.integer(&[seq])).unwrap_or(0);
    let seq_len = inputs.max_seq_len.map_or(seq_len, |max| seq_len.min(max));
    let mut keys = Vec::with_capacity(seq_len);
    let mut values = Vec::with_capacity(seq_len);
    for token in 0..seq_len {
        let block = inputs.block_table.integer(&[seq, token / block_size]);
        let block = usize::try_from(block).expect("a block id");
        let place = [block, token % block_size, kv_head];
        let (k_scale, v_scale) = inputs.scales.map_or((1.0, 1.0), |scales| {
            (
                scale_at(scales.k_scale, &place),
                scale_at(scales.v_scale, &place),
            )
        });
        keys.push(times(k_scale, inputs.key_cache.row(&place)));
        values.push(times(v_scale, inputs.value_cache.row(&place)));
    }
    let num_query_heads = inputs.query.shape[1];
    let num_queries_per_kv = num_query_heads / inputs.key_cache.shape[2];
    let seen: Vec<Seen<'_>> = keys
        .iter()
        .zip(&values)
        .map(|(key, value)| Seen::new(key, value))
        .collect();
    let scoring = Scoring {
        scale: inputs.softmax_scale,
        mods: ScoreMods::NONE,
        sink: f64::NEG_INFINITY,
    };
    let mut rows = Rows::default();
    for query_head in kv_head * num_queries_per_kv..(kv_head + 1) * num_queries_per_kv {
        let q_scale = inputs.scales.and_then(|scales| scales.q_scale);
        let q_scale = q_scale.map_or(1.0, |scale| scale.float(&[0]));
        let query = times(q_scale, inputs.query.row(&[seq, query_head]));
        rows.push(attend(&query, &seen, &scoring, inputs.value_cache.shape[3]));
    }
    rows
}

/// The scale of block, slot and head `place`.
pub(super) fn scale_at(scales: &HostTensor, place: &[usize; 3]) -> f64 {
    match scales.shape[..] {
        [1] => scales.float(&[0]),
        [_] => scales.float(&place[2..]),
        _ => scales.float(place),
    }
}

pub(super) fn times(scale: f64, values: Vec<f64>) -> Vec<f64> {
    values.into_iter().map(|value| scale * value).collect()
}
