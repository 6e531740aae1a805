//! Attention over FP8 entries of an MLA cache, by its formula.

use half::bf16;
use rayon::prelude::*;

use super::ScoreMods;
use super::softmax::{Scoring, Seen, attend};
use super::{HostTensor, Rows, mla_fp8_ds_values, mla_v4_values};
use crate::ops::EntryForm;

/// A cache of entries.
#[derive(Clone, Copy, Debug)]
pub struct EntryCache<'t> {
    /// `[num_blocks, block_size, 656]` or `[num_blocks, page_bytes]`, bytes.
    pub pages: &'t HostTensor,
    /// Tokens per block.
    pub block_size: usize,
    /// How a token is stored.
    pub form: EntryForm,
}

impl EntryCache<'_> {
    /// The values of the token at `slot`; `None` if there is no such slot.
    pub fn row(&self, slot: i64) -> Option<Vec<f64>> {
        let slot = usize::try_from(slot).ok()?;
        let (block, offset) = (slot / self.block_size, slot % self.block_size);
        if block >= self.pages.shape[0] {
            return None;
        }
        let page = self.pages.offset + block * self.pages.strides[0];
        let bytes = |at, len| self.pages.storage.bytes_at(at, len);
        let values: Vec<bf16> = match self.form {
            EntryForm::Fp8Ds => {
                mla_fp8_ds_values(&bytes(page + offset * self.pages.strides[1], 656))
            }
            EntryForm::V4 => mla_v4_values(
                &bytes(page + offset * 576, 576),
                &bytes(page + self.block_size * 576 + offset * 8, 8),
            ),
        };
        Some(values.into_iter().map(f64::from).collect())
    }
}

/// The output of query rows `rows` of `query`, `[rows, num_query_heads, head_size]`, each over the tokens that
/// `tokens_of` names, values being their first 512 numbers. `exp(sinks[head])` is added to the denominator, not to
/// the lse.
pub fn decode_entries(
    query: &HostTensor,
    rows: &[usize],
    tokens_of: impl Fn(usize) -> Vec<Vec<f64>> + Sync,
    softmax_scale: f64,
    sinks: Option<&HostTensor>,
) -> Vec<Rows> {
    let decode_row = |&row: &usize| {
        let keys = tokens_of(row);
        let seen: Vec<Seen<'_>> = keys.iter().map(|key| Seen::new(key, &key[..512])).collect();
        let scoring = Scoring {
            scale: softmax_scale,
            mods: ScoreMods::NONE,
            sink: f64::NEG_INFINITY,
        };
        let mut result = Rows::default();
        for at in 0..query.shape[1] {
            let mut head = attend(&query.row(&[row, at]), &seen, &scoring, 512);
            if let Some(sinks) = sinks
                && head.lse != f64::NEG_INFINITY
            {
                let share = 1.0 / (1.0 + (sinks.float(&[at]) - head.lse).exp());
                let numbers = head.out.iter_mut().chain(&mut head.slack);
                numbers.for_each(|value| *value *= share);
                head.amount *= share;
            }
            result.push(head);
        }
        result
    };
    rows.par_iter().map(decode_row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Dtype;

    #[test]
    fn a_sink_as_heavy_as_the_token_halves_it_and_leaves_the_lse() {
        let floats = |name, shape: &[usize], values: &[f32]| {
            let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
            HostTensor::contiguous(name, Dtype::F32, shape, bytes)
        };
        let query = floats("query", &[1, 1, 512], &[1.0; 512]);
        let sinks = floats("sinks", &[1], &[2.0]);
        // 512 values of 1/256 add up to a score of 2.
        let token = vec![1.0 / 256.0; 512];
        let rows = decode_entries(&query, &[0], |_| vec![token.clone()], 1.0, Some(&sinks));
        assert_eq!(rows[0].lse, [2.0]);
        assert!((rows[0].out[0][7] - 0.5 / 256.0).abs() < 1e-15);
        let rows = decode_entries(&query, &[0], |_| Vec::new(), 1.0, Some(&sinks));
        assert_eq!(rows[0].lse, [f64::NEG_INFINITY]);
        assert_eq!(rows[0].out, [vec![0.0; 512]]);
    }
}
