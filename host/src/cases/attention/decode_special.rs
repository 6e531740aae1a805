//! Special values in the tensors of a case of attention over heads or latents.

use super::decode::DecodeCase;
use super::decode_fill::{DecodeTensors, plain};
use crate::cases::base::fill::{Fill, Painter, Role, Venom, poison_scale, poison_value};
use crate::cases::base::tensors::{Amount, NO_BLOCK};
use crate::ops::CheckMode;
use crate::reference::{HostTensor, Storage};
use crate::tensor::Dtype;

/// What of a sequence's keys is seen.
pub(crate) struct Sight {
    /// Query tokens; the last of them is the last key's.
    pub(crate) query_len: usize,
    /// Keys that count.
    pub(crate) seq_len: usize,
    pub(crate) is_causal: bool,
}

/// The tensors of a decode step.
pub fn decode(case: &DecodeCase, seed: u64, amount: Amount) -> DecodeTensors {
    let sights: Vec<Sight> = case
        .tokens(seed)
        .into_iter()
        .map(|seq_len| Sight {
            query_len: case.query_len(),
            seq_len,
            is_causal: true,
        })
        .collect();
    plain(case, seed, amount).special(case, seed, &sights, false)
}

impl DecodeTensors {
    /// The tensors of `case` as its fill wants them, if this is what its sequences see. Poison is NaN alone if
    /// `nan_only`.
    pub(crate) fn special(
        mut self,
        case: &DecodeCase,
        seed: u64,
        sights: &[Sight],
        nan_only: bool,
    ) -> Self {
        match case.fill {
            Fill::Plain => {}
            Fill::Poison => self.poison(case, sights, nan_only),
            Fill::Zeros | Fill::Equal | Fill::Tiny | Fill::Huge | Fill::Mixed | Fill::NotFinite => {
                Painter::new(case.fill, seed, 1).paint_all(Role::Query, &mut self.query);
                self.paint_caches(case, seed);
            }
        }
        self
    }

    fn paint_caches(&mut self, case: &DecodeCase, seed: u64) {
        let num_seqs = self.num_seqs;
        let tokens = case.tokens(seed);
        let mut keys = Painter::new(case.fill, seed, 2);
        let mut values = Painter::new(case.fill, seed, 3);
        let places: Vec<(usize, usize)> = (0..self.block_table.shape[0])
            .flat_map(|row| (0..tokens[row % num_seqs]).map(move |token| (row, token)))
            .collect();
        let dtype = case.cache.dtype;
        self.edit_tokens(case, &places, |role, kin, row| match role {
            Role::Value => values.paint(role, dtype, row, kin),
            Role::Key | Role::Query => keys.paint(role, dtype, row, kin),
        });
    }

    /// NaN, infinity and huge numbers in values that some query token of the sequence does not see, NaN in their keys, and
    /// no block where none sees any of it.
    fn poison(&mut self, case: &DecodeCase, sights: &[Sight], nan_only: bool) {
        let page = case.cache.block_size;
        let mut places = Vec::new();
        let mut seen_by_one = Vec::new();
        let mut freed = Vec::new();
        for row in 0..self.block_table.shape[0] {
            let sight = &sights[row % sights.len()];
            // The first key that any query token sees.
            let first_of = |query_len| case.scores.first_seen(query_len, sight.seq_len);
            let first = match sight.query_len {
                0 => sight.seq_len,
                query_len => first_of(query_len),
            };
            places.extend((0..first).map(|token| (row, token)));
            let whole_blocks = match sight.query_len {
                0 => 0,
                _ => first / page,
            };
            freed.extend((0..whole_blocks).map(|at| (row, at)));
            if sight.query_len >= 2 && sight.seq_len > first + 2 {
                if first < first_of(sight.query_len - 1) {
                    // The first query token alone sees it.
                    seen_by_one.push((row, first));
                }
                if sight.is_causal {
                    // The last one alone does.
                    seen_by_one.push((row, sight.seq_len - 1));
                }
            }
        }
        let seen = match nan_only {
            true => Venom::Nan,
            false => Venom::Seen,
        };
        let dtype = case.cache.dtype;
        for (places, venom) in [(places, Venom::Any), (seen_by_one, seen)] {
            self.poison_scales(case, &places, venom);
            let mut turn = 0;
            self.edit_tokens(case, &places, |role, _, row| {
                turn += 1;
                // A key of infinities would make a score that is NaN or infinite, as it happens.
                let venom = match role {
                    Role::Value => venom,
                    Role::Key | Role::Query => Venom::Nan,
                };
                poison_value(dtype, row, turn, venom);
            });
        }
        let mut table = self.block_table.storage.bytes.clone();
        for (row, at) in freed {
            let position = 4 * self.block_table.position(&[row, at]);
            // Engines write −1; no block's number is as good.
            let id = if at % 2 == 0 { -1 } else { NO_BLOCK };
            table[position..position + 4].copy_from_slice(&id.to_le_bytes());
        }
        self.block_table = self.block_table.with_bytes(table);
    }

    /// Block and slot of token `token` of row `row` of the block table.
    fn place(&self, case: &DecodeCase, (row, token): (usize, usize)) -> Option<[usize; 2]> {
        let page = case.cache.block_size;
        let block = self.block_table.integer(&[row, token / page]);
        Some([usize::try_from(block).ok()?, token % page])
    }

    /// Calls `edit` with each row of keys and values of the tokens, by row of the block table and number. A cache that
    /// repeats a pattern is left as it is.
    fn edit_tokens(
        &mut self,
        case: &DecodeCase,
        places: &[(usize, usize)],
        mut edit: impl FnMut(Role, usize, &mut [u8]),
    ) {
        if self.key_cache.storage.bytes.len() != self.key_cache.storage.len {
            return;
        }
        let places: Vec<(usize, [usize; 2])> = places
            .iter()
            .filter_map(|&at| Some((at.0, self.place(case, at)?)))
            .collect();
        let mut bytes_of = |tensor: &HostTensor, role: Role, mut bytes: Vec<u8>| {
            let (size, heads, width) = (tensor.dtype.size(), tensor.shape[2], tensor.shape[3]);
            for &(row, [block, slot]) in &places {
                for head in 0..heads {
                    let at = size * tensor.position(&[block, slot, head, 0]);
                    edit(role, row + head, &mut bytes[at..at + size * width]);
                }
            }
            bytes
        };
        let (keys, values) = (&self.key_cache, &self.value_cache);
        let name = keys.storage.name;
        let key_bytes = bytes_of(keys, Role::Key, keys.storage.bytes.clone());
        if std::sync::Arc::ptr_eq(&keys.storage, &values.storage) {
            let both = match self.latent {
                Some(_) => key_bytes,
                None => bytes_of(values, Role::Value, key_bytes),
            };
            let storage = Storage::new(name, both);
            (self.key_cache.storage, self.value_cache.storage) = (storage.clone(), storage);
        } else {
            let value_bytes = bytes_of(values, Role::Value, values.storage.bytes.clone());
            self.key_cache = self.key_cache.with_bytes(key_bytes);
            self.value_cache = self.value_cache.with_bytes(value_bytes);
        }
    }

    /// Poison in the scales of the tokens, if each has its own. One that a row reads has to be good where scales are looked
    /// at, and of values not so large that an output has none of it.
    fn poison_scales(&mut self, case: &DecodeCase, places: &[(usize, usize)], venom: Venom) {
        let is_checked = case.check == CheckMode::Device;
        if venom == Venom::Nan && is_checked {
            return;
        }
        let places: Vec<[usize; 2]> = places
            .iter()
            .filter_map(|&at| self.place(case, at))
            .collect();
        let Some(scales) = &mut self.scales else {
            return;
        };
        for (scale, is_of_values) in [(&mut scales.k_scale, false), (&mut scales.v_scale, true)] {
            if scale.shape.len() != 3 {
                continue;
            }
            let venom = match venom {
                Venom::Seen if is_of_values && case.dtype == Dtype::F16 && is_checked => continue,
                Venom::Seen if is_of_values && case.dtype == Dtype::F16 => Venom::Nan,
                other => other,
            };
            let mut bytes = scale.storage.bytes.clone();
            for (turn, &[block, slot]) in places.iter().enumerate() {
                for head in 0..scale.shape[2] {
                    let at = 4 * scale.position(&[block, slot, head]);
                    let poison = poison_scale(turn + head, venom, is_checked);
                    bytes[at..at + 4].copy_from_slice(&poison.to_le_bytes());
                }
            }
            *scale = scale.with_bytes(bytes);
        }
    }
}
