//! From a case and a seed to tensors.
//!
//! Whatever a kernel must not read is poison: NaN in caches (slots past a sequence's end, blocks that nobody
//! owns) and in the padding between strides, an absurd block id past a row's last block. Outputs start as
//! NaN, so that what was not written shows.

use std::ops::RangeInclusive;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::decode::DecodeCase;
use super::score_mods::ScoreTensors;
use crate::cases::base::fill::{ALIKE, Fill, power_of_two};
use crate::cases::base::layout::{CacheShape, place};
use crate::cases::base::options::ScaleForm;
use crate::cases::base::tensors::{
    Amount, NO_BLOCK, POISON, SPREAD, fill_row, fitting_scale, lse, padded, pattern_blocks,
    shuffled,
};
use crate::reference::{HostTensor, Scales, Storage, UnifiedInputs};
use crate::tensor::Dtype;

/// Tensors of a decode step.
#[derive(Clone, Debug)]
pub struct DecodeTensors {
    /// Sequences of one set.
    pub num_seqs: usize,
    /// Query tokens per sequence, if the cache is latent; query, output and lse have a row for each.
    pub latent: Option<usize>,
    /// `[sets * num_seqs, num_query_heads, head_size]`
    pub query: HostTensor,
    /// `[num_blocks, block_size, num_kv_heads, head_size]`
    pub key_cache: HostTensor,
    /// `[num_blocks, block_size, num_kv_heads, head_size_v]`
    pub value_cache: HostTensor,
    /// `[sets * num_seqs, max_num_blocks_per_seq]`
    pub block_table: HostTensor,
    /// `[sets * num_seqs]`
    pub seq_lens: HostTensor,
    /// `[sets * num_seqs, num_query_heads, head_size_v]`
    pub out: HostTensor,
    /// `[sets * num_seqs, num_query_heads]`
    pub lse: Option<HostTensor>,
    /// Of the query, if it is FP8; of keys and values, if the cache is of bytes.
    pub scales: Option<HostScales>,
    /// Slopes and sinks.
    pub scores: ScoreTensors,
}

/// What stored values were divided by.
#[derive(Clone, Debug)]
pub struct HostScales {
    /// `[1]`, of an FP8 query.
    pub q_scale: Option<HostTensor>,
    /// As the case says.
    pub k_scale: HostTensor,
    /// As `k_scale`.
    pub v_scale: HostTensor,
}

impl HostScales {
    pub(crate) fn tensors(&self) -> impl Iterator<Item = &HostTensor> {
        self.q_scale.iter().chain([&self.k_scale, &self.v_scale])
    }
}

impl DecodeTensors {
    /// What the reference of unified attention needs of the first set, if `query_start_loc` says which rows are the
    /// sequences'.
    pub(crate) fn inputs<'t>(
        &'t self,
        case: &DecodeCase,
        query_start_loc: &'t HostTensor,
    ) -> UnifiedInputs<'t> {
        UnifiedInputs {
            query: &self.query,
            key_cache: &self.key_cache,
            value_cache: &self.value_cache,
            block_table: &self.block_table,
            seq_lens: &self.seq_lens,
            query_start_loc,
            softmax_scale: f64::from(case.scale()),
            scales: self.scales.as_ref().map(|scales| Scales {
                q_scale: scales.q_scale.as_ref(),
                k_scale: &scales.k_scale,
                v_scale: &scales.v_scale,
            }),
            max_seq_len: case.max_seq_len.map(|bound| bound as usize),
            causal: true,
            causal_flags: None,
            mods: self.scores.by_definition(),
            output_scale: None,
        }
    }
}

/// The tensors of a decode step, whatever the fill.
pub(crate) fn plain(case: &DecodeCase, seed: u64, amount: Amount) -> DecodeTensors {
    let (cache, heads) = (&case.cache, case.num_query_heads);
    let tokens = case.tokens(seed);
    let lens = case.lens.draw(seed);
    let (num_seqs, rows) = (tokens.len(), tokens.len() * amount.sets);

    let used: usize = tokens
        .iter()
        .map(|len| len.div_ceil(cache.block_size))
        .sum::<usize>()
        * amount.sets;
    let num_blocks = used + used / 8 + 2;
    let ids = shuffled(num_blocks, seed);
    // Beyond the last block there is always one entry that must not be read, unless the host's bound
    // says how wide the table is.
    let longest = lens.iter().copied().max().unwrap_or(0);
    let longest = usize::try_from(longest).unwrap_or(0);
    let width = match case.max_seq_len {
        Some(bound) => longest.max(bound as usize).div_ceil(cache.block_size),
        None => longest.div_ceil(cache.block_size) + 1,
    };
    let width = width.max(1);
    let row_stride = width + case.pad_block_table;
    let mut table = vec![NO_BLOCK; rows * row_stride];
    let mut valid = vec![0; num_blocks];
    let mut next = ids.into_iter();
    for (row, len) in (0..rows).zip(tokens.iter().cycle()) {
        for at in 0..len.div_ceil(cache.block_size) {
            let id = next.next().expect("as many blocks as were counted");
            table[row * row_stride + at] = i32::try_from(id).expect("cases have few blocks");
            valid[id] = cache.block_size.min(len - at * cache.block_size);
        }
    }
    let (key_cache, mut value_cache) = caches(cache, &valid, seed, amount.pattern_bytes);
    if case.latent.is_some() {
        value_cache = HostTensor {
            shape: value_cache.shape,
            ..key_cache.clone()
        };
    }

    let mut block_table = HostTensor::contiguous(
        "block_table",
        Dtype::I32,
        &[rows, row_stride],
        table.iter().flat_map(|id| id.to_le_bytes()).collect(),
    );
    block_table.shape[1] = width;
    let lens_bytes = (0..amount.sets)
        .flat_map(|_| lens.iter().flat_map(|len| len.to_le_bytes()))
        .collect();
    let query_rows = rows * case.query_len();
    DecodeTensors {
        num_seqs,
        latent: case.latent,
        query: query(case, query_rows, seed),
        key_cache,
        value_cache,
        block_table,
        seq_lens: HostTensor::contiguous("seq_lens", Dtype::I32, &[rows], lens_bytes),
        scales: case.is_scaled().then(|| scales(case, &valid, seed)),
        scores: ScoreTensors::new(&case.scores, heads, case.fill, seed),
        out: padded(
            "out",
            case.dtype,
            [query_rows, heads, cache.head_size_v],
            case.pad_out,
        ),
        lse: lse(case.lse, query_rows, heads),
    }
}

/// Caches whose block `id` holds `valid[id]` tokens, the rest poison; or, if they are larger than
/// `pattern_bytes`, a repeated pattern of full blocks.
fn caches(
    cache: &CacheShape,
    valid: &[usize],
    seed: u64,
    pattern_bytes: usize,
) -> (HostTensor, HostTensor) {
    place(cache, valid.len(), |name, placement| {
        let block_bytes = placement.strides[0] * cache.dtype.size();
        let pattern = pattern_blocks(valid.len(), block_bytes, pattern_bytes);
        let mut bytes = vec![POISON; pattern * block_bytes];
        bytes
            .par_chunks_mut(block_bytes)
            .enumerate()
            .for_each(|(id, block)| {
                let tokens = if pattern == valid.len() {
                    valid[id]
                } else {
                    cache.block_size
                };
                if name != "value_cache" {
                    fill_block(cache, false, tokens, block, seed, id);
                }
                if name != "key_cache" {
                    fill_block(cache, true, tokens, block, seed, id);
                }
            });
        Storage::repeating(name, bytes, valid.len() * block_bytes)
    })
}

/// Random keys, or values, in the first `tokens` slots of a block.
fn fill_block(
    cache: &CacheShape,
    values: bool,
    tokens: usize,
    block: &mut [u8],
    seed: u64,
    id: usize,
) {
    let placement = cache.placement(values);
    let (size, spread) = if values {
        (cache.head_size_v, SPREAD[2])
    } else {
        (cache.head_size, SPREAD[1])
    };
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    random.set_stream(2 + 2 * id as u64 + u64::from(values));
    for slot in 0..tokens {
        for head in 0..cache.num_kv_heads {
            let start =
                placement.offset + slot * placement.strides[1] + head * placement.strides[2];
            let bytes = cache.dtype.size();
            let row = &mut block[bytes * start..bytes * (start + size)];
            fill_row(cache.dtype, row, spread, &mut random);
        }
    }
}

/// Powers of two by which the scales of tokens differ, those of keys and those of values, where numbers are of any size:
/// no score leaves f32 for them, nor an output its dtype. Those of values lie near each other, as decode attention loses bits of
/// far smaller ones: the docs of [`KvScales`](crate::ops::KvScales) say which.
fn token_powers(case: &DecodeCase) -> [RangeInclusive<i32>; 2] {
    if case.scales != ScaleForm::Token {
        return [ALIKE; 2];
    }
    let largest = if case.dtype == Dtype::F16 { 12 } else { 60 };
    let of_values = match case.fill {
        Fill::Tiny => -60..=-56,
        Fill::Huge => largest - 4..=largest,
        Fill::Mixed => -2..=2,
        Fill::Plain | Fill::Zeros | Fill::Equal | Fill::Poison | Fill::NotFinite => ALIKE,
    };
    [case.fill.scale_powers(), of_values]
}

/// Scales of query, keys and values: none is 1, no two are alike, and they bring bytes to about the spread
/// that 16-bit values have.
fn scales(case: &DecodeCase, valid: &[usize], seed: u64) -> HostScales {
    let cache = &case.cache;
    let fit = fitting_scale(cache.dtype);
    let [key_powers, value_powers] = token_powers(case);
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    random.set_stream(0);
    let mut scale = |middle: f32, powers: &RangeInclusive<i32>| {
        let scale = middle * (0.6 + 0.8 * random.random::<f32>());
        scale * 2f32.powi(power_of_two(powers, &mut random))
    };
    let mut tensor = |name, middle: f32, powers: &RangeInclusive<i32>| {
        let shape = match case.scales {
            ScaleForm::Tensor => vec![1],
            ScaleForm::Head => vec![cache.num_kv_heads],
            ScaleForm::Token => vec![valid.len(), cache.block_size, cache.num_kv_heads],
        };
        let slot = |at: usize| at / cache.num_kv_heads;
        let is_read = |at: usize| {
            case.scales != ScaleForm::Token
                || slot(at) % cache.block_size < valid[slot(at) / cache.block_size]
        };
        let count = shape.iter().product();
        let bytes = (0..count)
            .flat_map(|at| match is_read(at) {
                true => scale(middle, powers).to_le_bytes(),
                false => [POISON; 4],
            })
            .collect();
        HostTensor::contiguous(name, Dtype::F32, &shape, bytes)
    };
    let k_scale = tensor("k_scale", fit * SPREAD[1], &key_powers);
    let v_scale = match case.latent {
        Some(_) => k_scale.clone(),
        None => tensor("v_scale", fit * SPREAD[2], &value_powers),
    };
    let q_scale = (case.query_dtype == Dtype::F8E4m3).then(|| {
        let bytes = scale(SPREAD[0] / 70.0, &ALIKE).to_le_bytes().to_vec();
        HostTensor::contiguous("q_scale", Dtype::F32, &[1], bytes)
    });
    HostScales {
        q_scale,
        k_scale,
        v_scale,
    }
}

/// `rows` rows of queries.
pub(crate) fn query(case: &DecodeCase, rows: usize, seed: u64) -> HostTensor {
    let shape = [rows, case.num_query_heads, case.cache.head_size];
    let query = padded("query", case.query_dtype, shape, case.pad_query);
    let size = case.query_dtype.size();
    let mut bytes = query.storage.bytes.clone();
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    random.set_stream(1);
    for row in 0..rows * case.num_query_heads {
        let start = size * query.row_position(row);
        let row = &mut bytes[start..start + size * case.cache.head_size];
        fill_row(case.query_dtype, row, SPREAD[0], &mut random);
    }
    query.with_bytes(bytes)
}
