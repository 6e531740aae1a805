//! Attention of any number of query tokens per sequence, by its formula.

use rayon::prelude::*;

use super::attention::{scale_at, times};
use super::{HostTensor, Rows, Scales};

/// Query tokens of several sequences, side by side, against a paged cache.
#[derive(Clone, Copy, Debug)]
pub struct UnifiedInputs<'a> {
    /// `[num_tokens, num_query_heads, head_size]`
    pub query: &'a HostTensor,
    /// `[num_blocks, block_size, num_kv_heads, head_size]`
    pub key_cache: &'a HostTensor,
    /// `[num_blocks, block_size, num_kv_heads, head_size_v]`
    pub value_cache: &'a HostTensor,
    /// `[num_seqs, max_num_blocks_per_seq]`
    pub block_table: &'a HostTensor,
    /// `[num_seqs]`; zero and below are empty sequences.
    pub seq_lens: &'a HostTensor,
    /// `[num_seqs + 1]`
    pub query_start_loc: &'a HostTensor,
    /// Multiplies query · key.
    pub softmax_scale: f64,
    /// What the stored values were divided by, if they were.
    pub scales: Option<Scales<'a>>,
    /// Longer sequences are cut to it, if given.
    pub max_seq_len: Option<usize>,
    /// No key after the query's own.
    pub causal: bool,
    /// `[num_seqs]`: the same for each sequence, instead.
    pub causal_flags: Option<&'a HostTensor>,
    /// Keys that a query sees, itself included; without `causal`, as many after it as before it.
    pub sliding_window: Option<i64>,
    /// Scores become `softcap * tanh(score / softcap)`.
    pub softcap: Option<f64>,
    /// `[num_query_heads]`: `slope * (key - context_len)` is added to scores.
    pub alibi_slopes: Option<&'a HostTensor>,
    /// It is `-slope * sqrt(query - key)` instead, 0 for keys after the query.
    pub alibi_sqrt: bool,
    /// `[num_query_heads]`: `exp(sink)` is added to the softmax's denominator.
    pub sinks: Option<&'a HostTensor>,
    /// `[1]`: the output is divided by it, and cut to the ±448 that an fp8_e4m3 ends at.
    pub output_scale: Option<&'a HostTensor>,
}

/// The outputs of the query tokens `tokens`.
///
/// # Panics
/// If the tensors do not agree with each other, a token belongs to no sequence, or the block table names a
/// block outside the cache.
pub fn unified(inputs: &UnifiedInputs<'_>, tokens: &[usize]) -> Vec<Rows> {
    let num_kv_heads = inputs.key_cache.shape[2];
    tokens
        .par_iter()
        .map(|&token| {
            let mut rows = Rows {
                out: Vec::new(),
                lse: Vec::new(),
            };
            for kv_head in 0..num_kv_heads {
                let seen = seen_by(inputs, token, kv_head);
                let num_queries_per_kv = inputs.query.shape[1] / num_kv_heads;
                for head in kv_head * num_queries_per_kv..(kv_head + 1) * num_queries_per_kv {
                    let (out, lse) = attend(inputs, token, head, &seen);
                    rows.out.push(out);
                    rows.lse.push(lse);
                }
            }
            rows
        })
        .collect()
}

/// A key that a query token sees, with its value; both as they were before they were divided by their scales.
struct Seen {
    key: Vec<f64>,
    value: Vec<f64>,
    /// What ALiBi multiplies a head's slope by.
    distance: f64,
}

/// What a query token sees of a KV head.
fn seen_by(inputs: &UnifiedInputs<'_>, token: usize, kv_head: usize) -> Vec<Seen> {
    let seq = sequence_of(inputs, token);
    let start = |seq: usize| inputs.query_start_loc.integer(&[seq]);
    let seq_len = inputs.seq_lens.integer(&[seq]).max(0);
    let seq_len = match inputs.max_seq_len {
        Some(max) => seq_len.min(i64::try_from(max).expect("a length")),
        None => seq_len,
    };
    let context_len = seq_len - (start(seq + 1) - start(seq));
    let position = context_len + i64::try_from(token).expect("a token") - start(seq);
    (0..seq_len)
        .filter(|&key| is_visible(inputs, seq, key, position))
        .map(|key| {
            let place = place(inputs, seq, key, kv_head);
            let (k_scale, v_scale) = inputs.scales.map_or((1.0, 1.0), |scales| {
                (
                    scale_at(scales.k_scale, &place),
                    scale_at(scales.v_scale, &place),
                )
            });
            Seen {
                key: times(k_scale, inputs.key_cache.row(&place)),
                value: times(v_scale, inputs.value_cache.row(&place)),
                distance: distance(inputs, key, position, context_len),
            }
        })
        .collect()
}

/// One query head of one token: its output and the logarithm of its softmax's denominator.
fn attend(inputs: &UnifiedInputs<'_>, token: usize, head: usize, seen: &[Seen]) -> (Vec<f64>, f64) {
    let q_scale = inputs.scales.and_then(|scales| scales.q_scale);
    let q_scale = q_scale.map_or(1.0, |scale| scale.float(&[0]));
    let query = times(q_scale, inputs.query.row(&[token, head]));
    let slope = inputs.alibi_slopes.map(|slopes| slopes.float(&[head]));
    let mut scores = Vec::with_capacity(seen.len());
    for Seen { key, distance, .. } in seen {
        let mut dot = 0.0;
        for (q, k) in query.iter().zip(key) {
            dot += q * k;
        }
        let mut score = inputs.softmax_scale * dot;
        if let Some(cap) = inputs.softcap {
            score = cap * (score / cap).tanh();
        }
        if let Some(slope) = slope {
            score += slope * distance;
        }
        scores.push(score);
    }

    let sink = inputs
        .sinks
        .map_or(f64::NEG_INFINITY, |sinks| sinks.float(&[head]));
    let max = scores.iter().copied().fold(sink, f64::max);
    let mut out = vec![0.0; inputs.value_cache.shape[3]];
    if max == f64::NEG_INFINITY {
        return (out, max);
    }
    let mut sum = (sink - max).exp();
    for score in &scores {
        sum += (score - max).exp();
    }
    let output_scale = inputs.output_scale.map_or(1.0, |scale| scale.float(&[0]));
    for (score, Seen { value, .. }) in scores.iter().zip(seen) {
        let share = (score - max).exp() / sum / output_scale;
        for (out, v) in out.iter_mut().zip(value) {
            *out += share * v;
        }
    }
    if inputs.output_scale.is_some() {
        for out in &mut out {
            *out = out.clamp(-448.0, 448.0);
        }
    }
    (out, max + sum.ln())
}

/// The sequence that a query token belongs to.
fn sequence_of(inputs: &UnifiedInputs<'_>, token: usize) -> usize {
    let token = i64::try_from(token).expect("a token");
    let start = |seq: usize| inputs.query_start_loc.integer(&[seq]);
    (0..inputs.seq_lens.shape[0])
        .find(|&seq| start(seq) <= token && token < start(seq + 1))
        .expect("a token of a sequence")
}

/// Whether the query at `position` of sequence `seq` sees key `key`.
fn is_visible(inputs: &UnifiedInputs<'_>, seq: usize, key: i64, position: i64) -> bool {
    let in_window = match inputs.sliding_window {
        Some(window) => (position - key).abs() < window,
        None => true,
    };
    let causal = match inputs.causal_flags {
        Some(flags) => flags.integer(&[seq]) != 0,
        None => inputs.causal,
    };
    in_window && (!causal || key <= position)
}

/// What ALiBi multiplies a head's slope by.
#[allow(clippy::cast_precision_loss, reason = "positions are small")]
fn distance(inputs: &UnifiedInputs<'_>, key: i64, position: i64, context_len: i64) -> f64 {
    if inputs.alibi_sqrt {
        -((position - key).max(0) as f64).sqrt()
    } else {
        (key - context_len) as f64
    }
}

/// Block, slot and head of a key.
fn place(inputs: &UnifiedInputs<'_>, seq: usize, key: i64, kv_head: usize) -> [usize; 3] {
    let key = usize::try_from(key).expect("a key");
    let block_size = inputs.key_cache.shape[1];
    let block = inputs.block_table.integer(&[seq, key / block_size]);
    let block = usize::try_from(block).expect("a block id");
    [block, key % block_size, kv_head]
}
