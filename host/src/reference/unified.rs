//! Attention of any number of query tokens per sequence, by its formula.

use rayon::prelude::*;

use super::attention::{scale_at, times};
use super::softmax::{Head, Scoring, Seen, attend};
use super::{HostTensor, Rows, Scales, ScoreMods};

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
    /// Which keys a query sees of those that `causal` leaves, and what becomes of their scores.
    pub mods: ScoreMods<'a>,
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
    let seqs: Vec<usize> = tokens
        .iter()
        .map(|&token| sequence_of(inputs, token))
        .collect();
    let mut contexts: Vec<(usize, usize)> = seqs
        .iter()
        .flat_map(|&seq| (0..num_kv_heads).map(move |kv_head| (seq, kv_head)))
        .collect();
    contexts.sort_unstable();
    contexts.dedup();
    let parts: Vec<Vec<(usize, Rows)>> = contexts
        .into_par_iter()
        .map(|(seq, kv_head)| {
            let ours: Vec<usize> = (0..tokens.len()).filter(|&at| seqs[at] == seq).collect();
            let positions: Vec<i64> = ours
                .iter()
                .map(|&at| position_of(inputs, seq, tokens[at]))
                .collect();
            let context = Context::new(inputs, seq, kv_head, &positions);
            ours.into_par_iter()
                .zip(positions)
                .map(|(at, position)| (at, context.attend(tokens[at], position)))
                .collect()
        })
        .collect();
    let mut rows = vec![Rows::default(); tokens.len()];
    // A token's heads in order, as those of a sequence's KV heads are.
    for (at, part) in parts.into_iter().flatten() {
        rows[at].append(part);
    }
    rows
}

/// What the queries of a sequence attend of a KV head, as it was before it was divided by its scales.
struct Context<'a> {
    inputs: &'a UnifiedInputs<'a>,
    seq: usize,
    kv_head: usize,
    /// The key that `keys` and `values` begin with: no query sees an earlier one.
    first: i64,
    keys: Vec<Vec<f64>>,
    values: Vec<Vec<f64>>,
    /// Lengths of the keys, and the largest elements of the values.
    sizes: Vec<(f64, f64)>,
}

impl<'a> Context<'a> {
    /// What the queries at `positions` see, and what lies between.
    fn new(inputs: &'a UnifiedInputs<'a>, seq: usize, kv_head: usize, positions: &[i64]) -> Self {
        // Blocks before a window may have been given back: not a key of them is read.
        let seen_by = |&position: &i64| {
            let mut seen =
                (0..seq_len_of(inputs, seq)).filter(move |&key| inputs.mods.sees(key, position));
            let first = seen.next()?;
            Some((first, seen.next_back().unwrap_or(first) + 1))
        };
        let first = positions.iter().min().and_then(seen_by);
        let first = first.map_or(0, |(first, _)| first);
        let end = positions.iter().max().and_then(seen_by);
        let end = end.map_or(0, |(_, end)| end);
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        for key in first..end {
            let place = place(inputs, seq, key, kv_head);
            let (k_scale, v_scale) = inputs.scales.map_or((1.0, 1.0), |scales| {
                (
                    scale_at(scales.k_scale, &place),
                    scale_at(scales.v_scale, &place),
                )
            });
            keys.push(times(k_scale, inputs.key_cache.row(&place)));
            values.push(times(v_scale, inputs.value_cache.row(&place)));
        }
        Self {
            inputs,
            seq,
            kv_head,
            first,
            sizes: keys
                .iter()
                .zip(&values)
                .map(|(key, value)| {
                    let seen = Seen::new(key, value);
                    (seen.length, seen.amount)
                })
                .collect(),
            keys,
            values,
        }
    }

    /// The query heads of one token that share the KV head.
    fn attend(&self, token: usize, position: i64) -> Rows {
        let inputs = self.inputs;
        let seen: Vec<(i64, Seen<'_>)> = (self.first..)
            .zip(0..self.keys.len())
            .filter(|&(key, _)| is_visible(inputs, self.seq, key, position))
            .map(|(key, at)| {
                let seen = Seen {
                    key: &self.keys[at],
                    length: self.sizes[at].0,
                    value: &self.values[at],
                    amount: self.sizes[at].1,
                    bias: 0.0,
                };
                (key, seen)
            })
            .collect();
        let q_scale = inputs.scales.and_then(|scales| scales.q_scale);
        let q_scale = q_scale.map_or(1.0, |scale| scale.float(&[0]));
        let num_queries_per_kv = inputs.query.shape[1] / inputs.key_cache.shape[2];
        let mut rows = Rows::default();
        for head in self.kv_head * num_queries_per_kv..(self.kv_head + 1) * num_queries_per_kv {
            let query = times(q_scale, inputs.query.row(&[token, head]));
            rows.push(self.attend_head(&query, head, &seen, position));
        }
        rows
    }

    /// One query head.
    fn attend_head(
        &self,
        query: &[f64],
        head: usize,
        seen: &[(i64, Seen<'_>)],
        position: i64,
    ) -> Head {
        let inputs = self.inputs;
        let context_len = context_len_of(inputs, self.seq);
        let seen: Vec<Seen<'_>> = seen
            .iter()
            .map(|&(key, seen)| Seen {
                bias: inputs.mods.bias(head, key, position, context_len),
                ..seen
            })
            .collect();
        let scoring = Scoring {
            scale: inputs.softmax_scale,
            mods: inputs.mods,
            sink: inputs.mods.sink(head),
        };
        let mut result = attend(query, &seen, &scoring, inputs.value_cache.shape[3]);
        if let Some(scale) = inputs.output_scale {
            let scale = scale.float(&[0]);
            for out in &mut result.out {
                *out = (*out / scale).clamp(-448.0, 448.0);
            }
            for slack in result.slack.iter_mut().chain([&mut result.amount]) {
                *slack /= scale;
            }
        }
        result
    }
}

/// The length of a sequence, cut if it is to be.
fn seq_len_of(inputs: &UnifiedInputs<'_>, seq: usize) -> i64 {
    let seq_len = inputs.seq_lens.integer(&[seq]).max(0);
    match inputs.max_seq_len {
        Some(max) => seq_len.min(i64::try_from(max).expect("a length")),
        None => seq_len,
    }
}

/// How many of a sequence's keys come before its first query token.
fn context_len_of(inputs: &UnifiedInputs<'_>, seq: usize) -> i64 {
    let start = |seq: usize| inputs.query_start_loc.integer(&[seq]);
    seq_len_of(inputs, seq) - (start(seq + 1) - start(seq))
}

/// The key that a query token's own is.
fn position_of(inputs: &UnifiedInputs<'_>, seq: usize, token: usize) -> i64 {
    let start = inputs.query_start_loc.integer(&[seq]);
    context_len_of(inputs, seq) + i64::try_from(token).expect("a token") - start
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
    let causal = match inputs.causal_flags {
        Some(flags) => flags.integer(&[seq]) != 0,
        None => inputs.causal,
    };
    inputs.mods.sees(key, position) && (!causal || key <= position)
}

/// Block, slot and head of a key.
fn place(inputs: &UnifiedInputs<'_>, seq: usize, key: i64, kv_head: usize) -> [usize; 3] {
    let key = usize::try_from(key).expect("a key");
    let block_size = inputs.key_cache.shape[1];
    let block = inputs.block_table.integer(&[seq, key / block_size]);
    let block = usize::try_from(block).expect("a block id");
    [block, key % block_size, kv_head]
}
