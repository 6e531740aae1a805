//! A decode step's output against the reference.

use super::decode::DecodeCase;
use super::decode_fill::DecodeTensors;
use super::score_mods::ScoreCase;
use crate::cases::base::compare::{self, Accuracy};
use crate::cases::base::mismatch::Mismatch;
use crate::cases::base::same_bytes::gaps_untouched;
use crate::reference::{self, DecodeInputs, HostTensor};
use crate::tensor::Dtype;

/// Compares the sequences `seqs` of an output with the reference, and looks for writes beside it.
///
/// # Errors
/// Where it is wrong.
pub fn compare_decode(
    case: &DecodeCase,
    tensors: &DecodeTensors,
    out: &HostTensor,
    lse: Option<&HostTensor>,
    seqs: &[usize],
) -> Result<Accuracy, Mismatch> {
    let query_len = case.query_len();
    let max_seq_len = case.max_seq_len.map(|bound| bound as usize);
    let (block_table, seq_lens) = by_query_token(tensors, query_len, max_seq_len);
    let rows: Vec<usize> = seqs
        .iter()
        .flat_map(|seq| seq * query_len..(seq + 1) * query_len)
        .collect();
    let inputs = DecodeInputs {
        query: &tensors.query,
        key_cache: &tensors.key_cache,
        value_cache: &tensors.value_cache,
        block_table: &block_table,
        seq_lens: &seq_lens,
        softmax_scale: f64::from(case.scale()),
        scales: tensors.scales.as_ref().map(|scales| reference::Scales {
            q_scale: scales.q_scale.as_ref(),
            k_scale: &scales.k_scale,
            v_scale: &scales.v_scale,
        }),
        max_seq_len,
    };
    let mut expected = if case.scores == ScoreCase::default() {
        reference::decode(&inputs, &rows)
    } else {
        // Each sequence is one query token of unified attention.
        let num_seqs = i32::try_from(tensors.seq_lens.shape[0]).expect("cases have few sequences");
        let starts = (0..=num_seqs).flat_map(i32::to_le_bytes).collect();
        let shape = [tensors.seq_lens.shape[0] + 1];
        let starts = HostTensor::contiguous("query_start_loc", Dtype::I32, &shape, starts);
        reference::unified(&tensors.inputs(case, &starts), &rows)
    };
    compare::allow(&mut expected, case.fill, out.dtype);
    let accuracy = compare::decode(out, lse, &rows, &expected)?;
    gaps_untouched(&tensors.out, out)?;
    Ok(accuracy)
}

/// Block table and lengths of a batch in which every query token is a sequence of its own: it sees what comes
/// before it, and itself.
fn by_query_token(
    tensors: &DecodeTensors,
    query_len: usize,
    max_seq_len: Option<usize>,
) -> (HostTensor, HostTensor) {
    let (table, lens) = (&tensors.block_table, &tensors.seq_lens);
    if query_len == 1 {
        return (table.clone(), lens.clone());
    }
    let (num_seqs, width) = (table.shape[0], table.shape[1]);
    let (mut ids, mut lengths) = (Vec::new(), Vec::new());
    for seq in 0..num_seqs {
        let len = lens
            .integer(&[seq])
            .min(max_seq_len.map_or(i64::MAX, |max| max as i64));
        for token in 0..query_len {
            let sees = len - (query_len - 1 - token) as i64;
            lengths.extend(
                i32::try_from(sees)
                    .expect("an i32 less a few")
                    .to_le_bytes(),
            );
            for at in 0..width {
                let id = table.integer(&[seq, at]);
                ids.extend(i32::try_from(id).expect("it was an i32").to_le_bytes());
            }
        }
    }
    let rows = num_seqs * query_len;
    (
        HostTensor::contiguous("block_table", Dtype::I32, &[rows, width], ids),
        HostTensor::contiguous("seq_lens", Dtype::I32, &[rows], lengths),
    )
}

/// All sequences if the reference can do them with `budget` multiplications, else as many as it can: the
/// first, the last, the longest, the shortest, and others spread between.
pub fn sample_seqs(case: &DecodeCase, seed: u64, budget: u64) -> Vec<usize> {
    let tokens = case.seen(seed);
    let rows = case.query_len() * case.num_query_heads;
    let per_token = (rows * (case.cache.head_size + case.cache.head_size_v)) as u64;
    let cost = |seq: usize| tokens[seq] as u64 * per_token;
    let num_seqs = tokens.len();
    if (0..num_seqs).map(cost).sum::<u64>() <= budget {
        return (0..num_seqs).collect();
    }
    let longest = (0..num_seqs).max_by_key(|&seq| tokens[seq]).unwrap_or(0);
    let shortest = (0..num_seqs).min_by_key(|&seq| tokens[seq]).unwrap_or(0);
    let spread = (1..16).map(|part| part * num_seqs / 16);
    let mut seqs = Vec::new();
    let mut spent = 0;
    for seq in [longest, num_seqs - 1, 0, shortest]
        .into_iter()
        .chain(spread)
    {
        // One is always compared, however long.
        if !seqs.contains(&seq) && (seqs.is_empty() || spent + cost(seq) <= budget) {
            seqs.push(seq);
            spent += cost(seq);
        }
    }
    seqs
}
