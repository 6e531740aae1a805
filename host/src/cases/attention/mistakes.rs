//! What a check on the device has to find in the tensors of attention over paged caches.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::decode::DecodeCase;
use super::decode_fill::{DecodeTensors, HostScales};
use super::mla_fp8::{EntryCase, TopK};
use super::mla_fp8_fill::{EntryTensors, HostList};
use super::score_mods::ScoreCase;
use super::unified::UnifiedCase;
use super::unified_fill::UnifiedTensors;
use crate::cases::base::memory_mistake::MemoryMistake;
use crate::cases::base::pick::pick;
use crate::reference::HostTensor;

/// The keys of a sequence that its query tokens see, together.
struct Seen {
    seq: usize,
    first: usize,
    end: usize,
}

impl Seen {
    /// What `query_len` query tokens at the end of `seq_len` keys see.
    fn new(seq: usize, query_len: usize, seq_len: usize, scores: ScoreCase) -> Self {
        let first = scores.first_seen(query_len, seq_len);
        Self {
            seq,
            first: first.min(seq_len),
            end: seq_len,
        }
    }
}

/// A paged cache, and who sees what of it.
struct Paged<'t> {
    block_table: &'t HostTensor,
    seq_lens: &'t HostTensor,
    block_size: usize,
    num_blocks: usize,
    /// Sequences with query tokens.
    seen: Vec<Seen>,
}

impl Paged<'_> {
    /// A wrong length of a sequence, and a wrong block that it needs.
    fn mistakes(&self, random: &mut ChaCha8Rng) -> Vec<MemoryMistake> {
        let (min, max) = (i64::from(i32::MIN), i64::from(i32::MAX));
        let mut mistakes = Vec::new();
        if !self.seen.is_empty() {
            let seq = self.seen[random.random_range(0..self.seen.len())].seq;
            let bad = pick(random, &[-1, min, max]);
            mistakes.push(MemoryMistake::index(self.seq_lens, &[seq], bad));
        }
        if let Some([seq, token]) = self.token(random) {
            let bad = pick(random, &[-1, self.num_blocks as i64, min, max]);
            let index = [seq, token / self.block_size];
            mistakes.push(MemoryMistake::index(self.block_table, &index, bad));
        }
        mistakes
    }

    /// A sequence, and a token of it that is seen.
    fn token(&self, random: &mut ChaCha8Rng) -> Option<[usize; 2]> {
        let some: Vec<&Seen> = self.seen.iter().filter(|s| s.first < s.end).collect();
        if some.is_empty() {
            return None;
        }
        let seen = some[random.random_range(0..some.len())];
        Some([seen.seq, random.random_range(seen.first..seen.end)])
    }

    /// One bad scale of each tensor that is read; values have none of their own if the cache is latent.
    fn bad_scales(
        &self,
        scales: &HostScales,
        is_latent: bool,
        random: &mut ChaCha8Rng,
    ) -> Vec<MemoryMistake> {
        let mut mistakes: Vec<MemoryMistake> = scales
            .q_scale
            .iter()
            .map(|scale| MemoryMistake::one_scale(scale, random))
            .collect();
        let sides = [
            Some(&scales.k_scale),
            (!is_latent).then_some(&scales.v_scale),
        ];
        for scale in sides.into_iter().flatten() {
            let [_, _, heads] = scale.shape[..] else {
                mistakes.push(MemoryMistake::one_scale(scale, random));
                continue;
            };
            if let Some([seq, token]) = self.token(random) {
                let block = self.block_table.integer(&[seq, token / self.block_size]);
                let block = usize::try_from(block).expect("a block of the sequence");
                let head = random.random_range(0..heads);
                let index = [block, token % self.block_size, head];
                mistakes.push(MemoryMistake::scale(scale, &index, random));
            }
        }
        mistakes
    }
}

/// Mistakes in the tensors of a decode step.
pub(crate) fn decode_mistakes(
    case: &DecodeCase,
    tensors: &DecodeTensors,
    seed: u64,
    random: &mut ChaCha8Rng,
) -> Vec<MemoryMistake> {
    let query_lens = vec![case.query_len(); tensors.num_seqs];
    over_heads(case, tensors, &query_lens, seed, random)
}

fn over_heads(
    case: &DecodeCase,
    tensors: &DecodeTensors,
    query_lens: &[usize],
    seed: u64,
    random: &mut ChaCha8Rng,
) -> Vec<MemoryMistake> {
    let lens = query_lens.iter().zip(case.tokens(seed)).enumerate();
    let paged = Paged {
        block_table: &tensors.block_table,
        seq_lens: &tensors.seq_lens,
        block_size: case.cache.block_size,
        num_blocks: tensors.key_cache.shape[0],
        seen: lens
            .filter(|&(_, (&query_len, _))| query_len > 0)
            .map(|(seq, (&query_len, seq_len))| Seen::new(seq, query_len, seq_len, case.scores))
            .collect(),
    };
    let mut mistakes = paged.mistakes(random);
    if let Some(scales) = &tensors.scales {
        mistakes.extend(paged.bad_scales(scales, case.latent.is_some(), random));
    }
    mistakes
}

/// Mistakes in the tensors of unified attention.
pub(crate) fn unified_mistakes(
    case: &UnifiedCase,
    tensors: &UnifiedTensors,
    seed: u64,
    random: &mut ChaCha8Rng,
) -> Vec<MemoryMistake> {
    if tensors.num_tokens == 0 {
        return Vec::new();
    }
    let query_lens = case.query_lens(seed);
    let mut mistakes = over_heads(&case.base, &tensors.base, &query_lens, seed, random);
    let starts = &tensors.query_start_loc;
    let at = random.random_range(0..=tensors.base.num_seqs);
    let past_all = tensors.num_tokens as i64 + 1;
    let bad = pick(random, &[-1, past_all, i64::from(i32::MAX)]);
    // The sequence before it and the one after it are both wrong.
    let message = "`query_start_loc` gives sequence ".to_owned();
    mistakes.push(MemoryMistake::saying(starts, &[at], bad, message));
    if let Some(scale) = &tensors.output_scale {
        mistakes.push(MemoryMistake::one_scale(scale, random));
    }
    mistakes
}

/// Mistakes in the tensors of a decode step over FP8 entries.
pub(crate) fn mla_fp8_mistakes(
    case: &EntryCase,
    tensors: &EntryTensors,
    seed: u64,
    random: &mut ChaCha8Rng,
) -> Vec<MemoryMistake> {
    if let (Some(topk), Some(list)) = (case.topk, &tensors.topk) {
        return bad_lists(case, topk, tensors, list, random);
    }
    let lens = case.tokens(seed).into_iter().enumerate();
    let paged = Paged {
        block_table: &tensors.block_table,
        seq_lens: &tensors.seq_lens,
        block_size: case.block_size,
        num_blocks: tensors.cache.shape[0],
        seen: lens
            .map(|(seq, seq_len)| Seen::new(seq, case.query_len, seq_len, ScoreCase::default()))
            .collect(),
    };
    paged.mistakes(random)
}

/// Of each list a length that is none, and an index that counts and names nothing; of the block table an entry that an
/// index needs.
fn bad_lists(
    case: &EntryCase,
    topk: TopK,
    tensors: &EntryTensors,
    list: &HostList,
    random: &mut ChaCha8Rng,
) -> Vec<MemoryMistake> {
    let table = &tensors.block_table;
    let slots = |cache: &HostTensor| (cache.shape[0] * case.block_size) as i64;
    let first = match topk.by_table {
        true => (table.shape[1] * case.block_size) as i64,
        false => slots(&tensors.cache),
    };
    let (min, max) = (i64::from(i32::MIN), i64::from(i32::MAX));
    let mut mistakes = Vec::new();
    let window = tensors.window.as_ref();
    let window = window.map(|(cache, list)| (list, slots(cache)));
    for (list, limit) in [(list, first)].into_iter().chain(window) {
        let row = random.random_range(0..list.indices.shape[0]);
        let (seq, token) = (row / case.query_len, row % case.query_len);
        if let Some(lengths) = &list.lengths {
            let most = list.indices.shape[1] as i64;
            let bad = pick(random, &[-1, min, most + 1, max]);
            let name = lengths.storage.name;
            let message = format!("`{name}` of query token {token} of sequence {seq} is {bad}, ");
            mistakes.push(MemoryMistake::saying(lengths, &[row], bad, message));
        }
        let counted = list.named(row).len();
        if counted > 0 {
            let at = random.random_range(0..counted);
            let bad = pick(random, &[limit, max]);
            let name = list.indices.storage.name;
            let message = format!("`{name}[{seq}, {token}, {at}]` is {bad}, outside 0..{limit} ");
            mistakes.push(MemoryMistake::saying(
                &list.indices,
                &[row, at],
                bad,
                message,
            ));
        }
    }
    if topk.by_table {
        let row = random.random_range(0..list.indices.shape[0]);
        let named = list.named(row).into_iter();
        let columns: Vec<usize> = named
            .filter_map(|index| usize::try_from(index).ok())
            .map(|token| token / case.block_size)
            .collect();
        if !columns.is_empty() {
            let index = [row / case.query_len, pick(random, &columns)];
            let bad = pick(random, &[-1, tensors.cache.shape[0] as i64, min, max]);
            mistakes.push(MemoryMistake::index(table, &index, bad));
        }
    }
    mistakes
}
