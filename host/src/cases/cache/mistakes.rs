//! What a check on the device has to find in the tensors of cache writes and gathers.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::gather::{GatherBy, GatherCase};
use super::write::POSITIONS;
use crate::cases::base::memory_mistake::MemoryMistake;
use crate::cases::base::pick::pick;
use crate::reference::HostTensor;

/// A slot outside the cache, and one that two tokens have. Slots are `[num_tokens]` or `[num_layers, num_tokens]`.
pub(crate) fn bad_slots(
    slots: &HostTensor,
    num_slots: usize,
    random: &mut ChaCha8Rng,
) -> Vec<MemoryMistake> {
    let (layers, num_tokens) = match slots.shape[..] {
        [num_tokens] => (Vec::new(), num_tokens),
        // Slots that all layers share are the first one's.
        [_, num_tokens] if slots.strides[0] == 0 => (vec![0], num_tokens),
        [num_layers, num_tokens] => (vec![random.random_range(0..num_layers)], num_tokens),
        _ => panic!("slots of tokens, or of layers and tokens"),
    };
    let at = |token: usize| [&layers[..], &[token]].concat();
    let outside = pick(
        random,
        &[num_slots as i64, 1 << 31, (1 << 32) + 1, i64::MAX],
    );
    let token = random.random_range(0..num_tokens);
    let mut mistakes = vec![MemoryMistake::index(slots, &at(token), outside)];
    let written: Vec<usize> = (0..num_tokens)
        .filter(|&token| slots.integer(&at(token)) >= 0)
        .collect();
    if num_tokens > 1 && !written.is_empty() {
        let first = pick(random, &written);
        let other = (first + random.random_range(1..num_tokens)) % num_tokens;
        let slot = slots.integer(&at(first));
        let [low, high] = [first.min(other), first.max(other)].map(at);
        let message =
            format!("`slot_mapping` gives slot {slot} to two tokens, {low:?} and {high:?}");
        mistakes.push(MemoryMistake::saying(slots, &at(other), slot, message));
    }
    mistakes
}

/// A position that the table of angles does not have, of a token that is turned: all of them if there are queries.
pub(crate) fn bad_positions(
    positions: &HostTensor,
    slots: &HostTensor,
    has_queries: bool,
    random: &mut ChaCha8Rng,
) -> Option<MemoryMistake> {
    let turned: Vec<usize> = (0..slots.shape[0])
        .filter(|&token| has_queries || slots.integer(&[token]) >= 0)
        .collect();
    if turned.is_empty() {
        return None;
    }
    let bad = pick(random, &[-1, POSITIONS as i64, 1 << 32, i64::MAX]);
    Some(MemoryMistake::index(
        positions,
        &[pick(random, &turned)],
        bad,
    ))
}

/// What names tokens that are not there. `rows` are row starts, lengths, indices or slots, as the case says.
pub(crate) fn gather_mistakes(
    case: &GatherCase,
    block_table: &HostTensor,
    rows: &HostTensor,
    num_blocks: usize,
    random: &mut ChaCha8Rng,
) -> Vec<MemoryMistake> {
    let (page, per_seq) = (case.block_size, case.rows_per_seq);
    let seq = random.random_range(0..case.num_seqs);
    let max = i64::from(i32::MAX);
    // Tokens that a row of the block table names.
    let limit = (block_table.shape[1] * page) as i64;
    let bad_block = |column: usize, random: &mut ChaCha8Rng| {
        let bad = pick(random, &[-1, num_blocks as i64, max, i64::from(i32::MIN)]);
        MemoryMistake::index(block_table, &[seq, column], bad)
    };
    match case.by {
        GatherBy::Ragged => {
            let last = case.num_seqs - 1;
            let bad = pick(random, &[-1, case.rows() as i64 + 1, max]);
            let first_row = last * per_seq;
            let message =
                format!("`row_starts` gives sequence {last} the rows {first_row}..{bad},");
            // Another start would make other tokens of the rows, which are not there either.
            let start = MemoryMistake::saying(rows, &[case.num_seqs], bad, message);
            let column = random.random_range(0..block_table.shape[1]);
            vec![start, bad_block(column, random)]
        }
        // Of a sequence that is too long the rows' tokens are still there.
        GatherBy::Padded => {
            let column = random.random_range(0..block_table.shape[1]);
            vec![bad_block(column, random)]
        }
        GatherBy::TopK => {
            let place = random.random_range(0..per_seq);
            let bad = pick(random, &[limit, max]);
            let row = seq * per_seq + place;
            let message =
                format!("row {row} is token {bad} of sequence {seq}, outside 0..{limit},");
            let mut mistakes = vec![MemoryMistake::saying(rows, &[seq, place], bad, message)];
            // An entry that some index needs.
            let named =
                (0..per_seq).filter_map(|at| usize::try_from(rows.integer(&[seq, at])).ok());
            let columns: Vec<usize> = named.map(|token| token / page).collect();
            if !columns.is_empty() {
                mistakes.push(bad_block(pick(random, &columns), random));
            }
            mistakes
        }
        GatherBy::Slots => {
            let place = random.random_range(0..per_seq);
            let bad = pick(random, &[(num_blocks * page) as i64, max]);
            let message = format!("`slots[{}]` is {bad}, outside ", seq * per_seq + place);
            vec![MemoryMistake::saying(rows, &[seq, place], bad, message)]
        }
    }
}
