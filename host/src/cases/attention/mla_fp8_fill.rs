//! From a case over FP8 entries and a seed to tensors. Tokens past a sequence's end, blocks that nobody owns, gaps and
//! outputs are poison.

use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::mla_fp8::{EntryCase, TopK};
use super::mla_fp8_pages::{pages, poisoned};
use crate::cases::base::fill::{Fill, Painter, Role, SPECIAL_SINKS};
use crate::cases::base::mla_entry::OUT_SIZE;
use crate::cases::base::tensors::{Amount, NO_BLOCK, SPREAD, fill_row, lse, padded, shuffled};
use crate::ops::CheckMode;
use crate::reference::{EntryCache, HostTensor};
use crate::tensor::Dtype;

/// Tensors of a decode step over FP8 entries.
#[derive(Clone, Debug)]
pub struct EntryTensors {
    /// Sequences of one set.
    pub num_seqs: usize,
    /// `[sets * num_seqs * query_len, num_query_heads, head_size]`
    pub query: HostTensor,
    /// The cache.
    pub cache: HostTensor,
    /// `[sets * num_seqs, max_num_blocks_per_seq]`
    pub block_table: HostTensor,
    /// `[sets * num_seqs]`
    pub seq_lens: HostTensor,
    /// The list over `cache`, if the case has one.
    pub topk: Option<HostList>,
    /// The second cache, and the list over it.
    pub window: Option<(HostTensor, HostList)>,
    /// `[num_query_heads]`
    pub sinks: Option<HostTensor>,
    /// `[sets * num_seqs * query_len, num_query_heads, 512]`
    pub out: HostTensor,
    /// `[sets * num_seqs * query_len, num_query_heads]`
    pub lse: Option<HostTensor>,
}

/// An index list.
#[derive(Clone, Debug)]
pub struct HostList {
    /// `[sets * num_seqs * query_len, topk]`
    pub indices: HostTensor,
    /// `[sets * num_seqs * query_len]`
    pub lengths: Option<HostTensor>,
}

impl EntryTensors {
    /// The tensors of a case.
    pub fn new(case: &EntryCase, seed: u64, amount: Amount) -> Self {
        let mut tensors = Self::plain(case, seed, amount);
        Painter::new(case.fill, seed, 1).paint_all(Role::Query, &mut tensors.query);
        if case.fill == Fill::Poison {
            tensors.poison(case);
        }
        tensors
    }

    fn plain(case: &EntryCase, seed: u64, amount: Amount) -> Self {
        let num_seqs = case.tokens(seed).len();
        let rows = num_seqs * amount.sets * case.query_len;
        let (heads, d) = (case.num_query_heads, case.head_size());
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        random.set_stream(1);
        let query = padded("query", Dtype::Bf16, [rows, heads, d], case.pad);
        let mut bytes = query.storage.bytes.clone();
        for row in 0..rows * heads {
            let start = 2 * query.row_position(row);
            let row = &mut bytes[start..start + 2 * d];
            fill_row(Dtype::Bf16, row, SPREAD[0], &mut random);
        }
        let paged = Paged::new(case, seed, 0, amount);
        let topk = case.topk.map(|topk| {
            let by_table = topk.by_table;
            paged.list(
                case,
                &topk,
                topk.topk,
                by_table,
                "topk_indices",
                &mut random,
            )
        });
        let window = case.topk.filter(|topk| topk.window > 0).map(|topk| {
            let paged = Paged::new(case, seed, 1, amount);
            let list = paged.list(
                case,
                &topk,
                topk.window,
                false,
                "window.indices",
                &mut random,
            );
            (paged.cache, list)
        });
        Self {
            num_seqs,
            query: query.with_bytes(bytes),
            cache: paged.cache,
            block_table: paged.block_table,
            seq_lens: paged.seq_lens,
            topk,
            window,
            sinks: case.sinks.then(|| {
                let sinks = (0..heads).flat_map(|head| {
                    let plain = 6.0 * random.random::<f32>();
                    case.fill.of_head(head, plain, SPECIAL_SINKS).to_le_bytes()
                });
                HostTensor::contiguous("sinks", Dtype::F32, &[heads], sinks.collect())
            }),
            out: padded("out", Dtype::Bf16, [rows, heads, OUT_SIZE], case.pad),
            lse: lse(case.lse, rows, heads),
        }
    }

    /// All tensors.
    pub(crate) fn all(&self) -> impl Iterator<Item = &HostTensor> {
        let lists = self
            .topk
            .iter()
            .chain(self.window.iter().map(|(_, list)| list));
        [
            &self.query,
            &self.cache,
            &self.block_table,
            &self.seq_lens,
            &self.out,
        ]
        .into_iter()
        .chain(self.window.iter().map(|(cache, _)| cache))
        .chain(lists.flat_map(|list| [&list.indices].into_iter().chain(&list.lengths)))
        .chain(&self.sinks)
        .chain(&self.lse)
    }

    /// NaN in the entries that no list names, or that the last query token of a sequence alone sees.
    fn poison(&mut self, case: &EntryCase) {
        let rows = self.query.shape[0];
        let seen = |which: usize| -> Vec<i64> {
            // Without lists, what query tokens before the last see.
            let sees = |row: usize| {
                let hides_some = self.topk.is_some() || case.query_len == 1;
                hides_some || row % case.query_len != case.query_len - 1
            };
            let rows = (0..rows).filter(|&row| sees(row));
            rows.flat_map(|row| self.slots_of(case, row)[which].clone())
                .collect()
        };
        let cache = poisoned(case, &self.cache, &seen(0));
        let window = self
            .window
            .as_ref()
            .map(|(cache, list)| (poisoned(case, cache, &seen(1)), list.clone()));
        (self.cache, self.window) = (cache, window);
    }

    /// What query row `row` attends to.
    pub(crate) fn tokens_of(&self, case: &EntryCase, row: usize) -> Vec<Vec<f64>> {
        let [slots, window_slots] = self.slots_of(case, row);
        let rows = |pages: &HostTensor, slots: Vec<i64>| -> Vec<Vec<f64>> {
            let cache = EntryCache {
                pages,
                block_size: case.block_size,
                form: case.form,
            };
            let rows = slots.into_iter().map(|slot| cache.row(slot));
            if self.topk.is_some() {
                rows.flatten().collect()
            } else {
                rows.map(|row| row.expect("a token of the sequence"))
                    .collect()
            }
        };
        let mut seen = rows(&self.cache, slots);
        if let Some((pages, _)) = &self.window {
            seen.extend(rows(pages, window_slots));
        }
        seen
    }

    /// The slots that query row `row` names in the cache and in the second one.
    fn slots_of(&self, case: &EntryCase, row: usize) -> [Vec<i64>; 2] {
        let (seq, token) = (row / case.query_len, row % case.query_len);
        let slot_of = |index: i64| {
            let at = usize::try_from(index).unwrap_or(usize::MAX);
            let column = at / case.block_size;
            if column >= self.block_table.shape[1] {
                return -1;
            }
            let block = self.block_table.integer(&[seq, column]);
            block * case.block_size as i64 + (at % case.block_size) as i64
        };
        let Some(topk) = &self.topk else {
            let hidden = (case.query_len - 1 - token) as i64;
            let len = self.seq_lens.integer(&[seq]) - hidden;
            return [(0..len).map(slot_of).collect(), Vec::new()];
        };
        let by_table = case.topk.is_some_and(|topk| topk.by_table);
        let slots = topk.named(row).into_iter();
        let slots = slots.map(|index| if by_table { slot_of(index) } else { index });
        let window = self.window.as_ref();
        [
            slots.collect(),
            window.map_or(Vec::new(), |(_, list)| list.named(row)),
        ]
    }
}

impl HostList {
    /// The indices of a row that count.
    pub(crate) fn named(&self, row: usize) -> Vec<i64> {
        let all = self.indices.shape[1];
        let len = self.lengths.as_ref().map_or(all, |lengths| {
            usize::try_from(lengths.integer(&[row]))
                .unwrap_or(0)
                .min(all)
        });
        (0..len)
            .map(|at| self.indices.integer(&[row, at]))
            .collect()
    }
}

/// A cache of entries, and where the sequences' tokens are in it.
struct Paged {
    cache: HostTensor,
    block_table: HostTensor,
    seq_lens: HostTensor,
    /// Lengths that count.
    tokens: Vec<usize>,
}

impl Paged {
    /// Cache `which` of two, with sequences of the same lengths.
    fn new(case: &EntryCase, seed: u64, which: usize, amount: Amount) -> Self {
        let (tokens, lens) = (case.tokens(seed), case.lens.draw(seed));
        let (name, seed) = [("cache", seed), ("window.cache", !seed)][which];
        let rows = tokens.len() * amount.sets;
        let blocks = |len: &usize| len.div_ceil(case.block_size);
        let used = tokens.iter().map(blocks).sum::<usize>() * amount.sets;
        let num_blocks = used + used / 8 + 2;
        // Past the last block there is always one entry that must not be read.
        let width = tokens.iter().map(blocks).max().unwrap_or(0) + 1;
        let mut table = vec![NO_BLOCK; rows * width];
        let mut valid = vec![0; num_blocks];
        let mut ids = shuffled(num_blocks, seed).into_iter();
        for (row, len) in (0..rows).zip(tokens.iter().cycle()) {
            for at in 0..blocks(len) {
                let id = ids.next().expect("as many blocks as were counted");
                table[row * width + at] = i32::try_from(id).expect("cases have few blocks");
                valid[id] = case.block_size.min(len - at * case.block_size);
            }
        }
        let table = table.iter().flat_map(|id| id.to_le_bytes()).collect();
        let lens = (0..amount.sets).flat_map(|_| lens.iter().flat_map(|len| len.to_le_bytes()));
        Self {
            cache: pages(case, &valid, seed, amount.pattern_bytes, name),
            block_table: HostTensor::contiguous("block_table", Dtype::I32, &[rows, width], table),
            seq_lens: HostTensor::contiguous("seq_lens", Dtype::I32, &[rows], lens.collect()),
            tokens,
        }
    }

    /// Distinct tokens of each query token's sequence, as tokens or slots.
    fn list(
        &self,
        case: &EntryCase,
        topk: &TopK,
        len: usize,
        by_table: bool,
        name: &'static str,
        random: &mut ChaCha8Rng,
    ) -> HostList {
        let num_seqs = self.seq_lens.shape[0];
        // A check takes what is negative, and nothing outside the cache.
        let nothing = match case.check {
            CheckMode::Off => [-1, i32::MAX, i32::MIN, -7],
            CheckMode::Device => [-1, -2, i32::MIN, -7],
        };
        let mut indices = Vec::new();
        let mut lengths = Vec::new();
        for seq in 0..num_seqs {
            let mut tokens: Vec<usize> = (0..self.tokens[seq % self.tokens.len()]).collect();
            for token in 0..case.query_len {
                let (chosen, _) = tokens.partial_shuffle(random, len);
                for at in 0..len {
                    let skipped = topk.skip_every > 0 && at % topk.skip_every == 0;
                    let index = match chosen.get(at) {
                        Some(_) if skipped => nothing[at / topk.skip_every % 4],
                        Some(&token) if by_table => small(token),
                        Some(&token) => self.slot(case, seq, token),
                        None => -1,
                    };
                    indices.extend(index.to_le_bytes());
                }
                // None, some, all, more than there are where nobody looks.
                let more = match case.check {
                    CheckMode::Off => len + 5,
                    CheckMode::Device => len,
                };
                let length = [len / 2, 0, len, more, 1][(seq * case.query_len + token) % 5];
                lengths.extend(small(length).to_le_bytes());
            }
        }
        let rows = num_seqs * case.query_len;
        HostList {
            indices: HostTensor::contiguous(name, Dtype::I32, &[rows, len], indices),
            lengths: topk.has_lengths.then(|| {
                let name = if name == "topk_indices" {
                    "topk_length"
                } else {
                    "window.length"
                };
                HostTensor::contiguous(name, Dtype::I32, &[rows], lengths)
            }),
        }
    }

    fn slot(&self, case: &EntryCase, seq: usize, token: usize) -> i32 {
        let block = self.block_table.integer(&[seq, token / case.block_size]);
        let block = usize::try_from(block).expect("a block");
        small(block * case.block_size + token % case.block_size)
    }
}

fn small(number: usize) -> i32 {
    i32::try_from(number).expect("cases have few slots")
}
