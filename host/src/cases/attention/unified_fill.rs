//! From a case of unified attention and a seed to tensors.

use super::decode_fill::{DecodeTensors, plain, query};
use super::decode_special::Sight;
use super::unified::{Causal, UnifiedCase};
use crate::cases::base::tensors::{Amount, lse, padded};
use crate::cases::base::text::CaseError;
use crate::reference::{HostTensor, UnifiedInputs};
use crate::tensor::Dtype;

/// Tensors of a step of unified attention.
#[derive(Clone, Debug)]
pub struct UnifiedTensors {
    /// Caches, block table and lengths are those of a decode step; query, output and lse have a row for each
    /// query token.
    pub base: DecodeTensors,
    /// Query tokens of one set, those past the last sequence's included.
    pub num_tokens: usize,
    /// `[sets * (num_seqs + 1)]`
    pub query_start_loc: HostTensor,
    /// `[sets * num_seqs]`
    pub causal_flags: Option<HostTensor>,
    /// `[1]`
    pub output_scale: Option<HostTensor>,
}

impl UnifiedTensors {
    /// The tensors of a case.
    ///
    /// # Errors
    /// A sequence has more query tokens than there is room for positions.
    pub fn new(case: &UnifiedCase, seed: u64, amount: Amount) -> Result<Self, CaseError> {
        let base = plain(&case.base, seed, amount);
        let (heads, cache) = (case.base.num_query_heads, &case.base.cache);
        let query_lens = case.query_lens(seed);
        let num_tokens = case.num_query_tokens(seed) + case.extra_tokens;
        let rows = num_tokens * amount.sets;
        let mut starts = vec![0i32];
        for len in query_lens {
            let next = i32::try_from(len)
                .ok()
                .and_then(|len| starts[starts.len() - 1].checked_add(len));
            starts.push(next.ok_or_else(|| CaseError("too many query tokens".into()))?);
        }
        let starts =
            (0..amount.sets).flat_map(|_| starts.iter().flat_map(|start| start.to_le_bytes()));
        let starts: Vec<u8> = starts.collect();

        let out_dtype = match case.output_scale {
            Some(_) => Dtype::F8E4m3,
            None => case.base.dtype,
        };
        Ok(Self {
            output_scale: case.output_scale.map(|scale| {
                HostTensor::contiguous(
                    "output_scale",
                    Dtype::F32,
                    &[1],
                    scale.to_le_bytes().to_vec(),
                )
            }),
            causal_flags: (case.causal == Causal::Mixed).then(|| {
                let num_seqs = base.num_seqs;
                // Not 0 is enough.
                let flag = |row: usize| {
                    if case.causal.is_on(row % num_seqs) {
                        7
                    } else {
                        0
                    }
                };
                let flags: Vec<u8> = (0..amount.sets * num_seqs).map(flag).collect();
                HostTensor::contiguous("causal_flags", Dtype::U8, &[flags.len()], flags)
            }),
            query_start_loc: HostTensor::contiguous(
                "query_start_loc",
                Dtype::I32,
                &[starts.len() / 4],
                starts,
            ),
            num_tokens,
            base: DecodeTensors {
                query: query(&case.base, rows, seed),
                out: padded(
                    "out",
                    out_dtype,
                    [rows, heads, cache.head_size_v],
                    case.base.pad_out,
                ),
                lse: lse(case.base.lse, rows, heads),
                ..base
            }
            // An FP8 output has no infinity.
            .special(
                &case.base,
                seed,
                &sights(case, seed),
                case.output_scale.is_some(),
            ),
        })
    }

    /// What the reference needs of the first set.
    pub fn inputs(&self, case: &UnifiedCase) -> UnifiedInputs<'_> {
        UnifiedInputs {
            causal: case.causal == Causal::On,
            causal_flags: self.causal_flags.as_ref(),
            output_scale: self.output_scale.as_ref(),
            ..self.base.inputs(&case.base, &self.query_start_loc)
        }
    }
}

/// What of each sequence's keys is seen.
fn sights(case: &UnifiedCase, seed: u64) -> Vec<Sight> {
    let query_lens = case.query_lens(seed).into_iter();
    query_lens
        .zip(case.base.tokens(seed))
        .enumerate()
        .map(|(seq, (query_len, seq_len))| Sight {
            query_len,
            seq_len,
            is_causal: case.causal.is_on(seq),
        })
        .collect()
}
