//! New tokens and the slots that they go to.

use crate::cases::base::fill::{Fill, Role, poison};
use crate::cases::base::tensors::shuffled;
use crate::reference::HostTensor;
use crate::tensor::Dtype;

/// How rows are painted that are stored: NaN and infinities may be anywhere in them.
pub(crate) fn written_role(fill: Fill) -> Role {
    if fill == Fill::NotFinite {
        Role::Query
    } else {
        Role::Value
    }
}

/// NaN in the rows of tokens without a slot.
pub(crate) fn poison_unwritten(new: &mut HostTensor, slots: &HostTensor) {
    let size = new.dtype.size();
    let width = new.shape[new.shape.len() - 1];
    let rows_per_token = new.num_elements() / width.max(1) / new.shape[0].max(1);
    let mut bytes = new.storage.bytes.clone();
    for token in 0..new.shape[0] {
        let is_written = token < slots.shape[0] && slots.integer(&[token]) >= 0;
        if is_written {
            continue;
        }
        for row in token * rows_per_token..(token + 1) * rows_per_token {
            let at = size * new.row_position(row);
            poison(new.dtype, &mut bytes[at..at + size * width], token, false);
        }
    }
    *new = new.with_bytes(bytes);
}

/// What marks tokens without a slot: anything negative, whatever its low half looks like.
const PADDING: [i64; 5] = [-1, -2, i64::MIN, -(1 << 32) + 3, i64::MIN + 7];

/// A slot for each token, none twice, in no order; every `skip_every`-th is padding.
pub(crate) fn slot_mapping(
    num_tokens: usize,
    num_slots: usize,
    skip_every: usize,
    seed: u64,
) -> HostTensor {
    let slots = shuffled(num_slots, seed);
    let slots = slots[..num_tokens]
        .iter()
        .enumerate()
        .map(|(token, &slot)| {
            let skipped = skip_every > 0 && token % skip_every == skip_every - 1;
            let slot = i64::try_from(slot).expect("cases have few slots");
            if skipped {
                PADDING[token / skip_every % PADDING.len()]
            } else {
                slot
            }
        });
    let bytes = slots.flat_map(i64::to_le_bytes).collect();
    HostTensor::contiguous("slot_mapping", Dtype::I64, &[num_tokens], bytes)
}

/// Scales from `first` on.
#[allow(clippy::cast_precision_loss, reason = "few heads")]
pub(crate) fn given_scales(name: &'static str, count: usize, first: f32) -> HostTensor {
    let bytes = (0..count).flat_map(|head| (first * (1.0 + 0.11 * head as f32)).to_le_bytes());
    HostTensor::contiguous(name, Dtype::F32, &[count], bytes.collect())
}
