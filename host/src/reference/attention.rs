//! Attention by its formula.

use rayon::prelude::*;

use super::HostTensor;

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
}

impl Rows {
    /// The next query head.
    pub(super) fn push(&mut self, out: Vec<f64>, lse: f64, terms: f64) {
        self.out.push(out);
        self.lse.push(lse);
        self.terms.push(terms);
    }

    /// The next query heads.
    pub(super) fn append(&mut self, mut heads: Self) {
        self.out.append(&mut heads.out);
        self.lse.append(&mut heads.lse);
        self.terms.append(&mut heads.terms);
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
    let longest_key = longest(&keys);
    let mut rows = Rows::default();
    for query_head in kv_head * num_queries_per_kv..(kv_head + 1) * num_queries_per_kv {
        let q_scale = inputs.scales.and_then(|scales| scales.q_scale);
        let q_scale = q_scale.map_or(1.0, |scale| scale.float(&[0]));
        let query = times(q_scale, inputs.query.row(&[seq, query_head]));
        let head_size_v = inputs.value_cache.shape[3];
        let (out, lse) = attend(&query, &keys, &values, inputs.softmax_scale, head_size_v);
        let terms = inputs.softmax_scale * length(&query) * longest_key;
        rows.push(out, lse, terms);
    }
    rows
}

/// `softmax(scale * query · keys) values`, and the logarithm of the softmax's denominator.
pub(super) fn attend(
    query: &[f64],
    keys: &[Vec<f64>],
    values: &[Vec<f64>],
    softmax_scale: f64,
    head_size_v: usize,
) -> (Vec<f64>, f64) {
    let mut out = vec![0.0; head_size_v];
    if keys.is_empty() {
        return (out, f64::NEG_INFINITY);
    }
    let mut scores = Vec::with_capacity(keys.len());
    for key in keys {
        scores.push(softmax_scale * dot(query, key));
    }
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let mut sum = 0.0;
    for score in &scores {
        sum += (score - max).exp();
    }
    for (score, value) in scores.iter().zip(values) {
        let prob = (score - max).exp() / sum;
        for (out, v) in out.iter_mut().zip(value) {
            *out += prob * v;
        }
    }
    (out, max + sum.ln())
}

/// `query · key`, in four sums: one addition need not wait for the one before.
pub(super) fn dot(query: &[f64], key: &[f64]) -> f64 {
    let mut sums = [0.0; 4];
    for (q, k) in query.chunks(4).zip(key.chunks(4)) {
        for ((sum, q), k) in sums.iter_mut().zip(q).zip(k) {
            *sum += q * k;
        }
    }
    sums.iter().sum()
}

/// The Euclidean length.
pub(super) fn length(values: &[f64]) -> f64 {
    dot(values, values).sqrt()
}

/// The length of the longest.
pub(super) fn longest(keys: &[Vec<f64>]) -> f64 {
    keys.iter().map(|key| length(key)).fold(0.0, f64::max)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_token_is_its_value_and_its_score() {
        let (out, lse) = attend(&[2.0, 1.0], &[vec![3.0, -1.0]], &[vec![7.0]], 0.5, 1);
        assert_eq!(out, [7.0]);
        assert_eq!(lse, 2.5);
    }

    #[test]
    fn two_tokens_are_weighted_by_the_exponentials_of_their_scores() {
        let keys = [vec![0.0], vec![3.0f64.ln()]];
        let (out, lse) = attend(&[1.0], &keys, &[vec![4.0], vec![8.0]], 1.0, 1);
        assert!(
            (out[0] - 7.0).abs() < 1e-12,
            "1/4 of 4 and 3/4 of 8, not {out:?}"
        );
        assert!((lse - 4.0f64.ln()).abs() < 1e-12);
    }

    #[test]
    fn no_token_gives_zero_and_minus_infinity() {
        let nothing: [Vec<f64>; 0] = [];
        assert_eq!(
            attend(&[1.0], &nothing, &nothing, 1.0, 2),
            (vec![0.0; 2], f64::NEG_INFINITY)
        );
    }
}
