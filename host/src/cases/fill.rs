//! From a case and a seed to tensors.
//!
//! Whatever a kernel must not read is poison: NaN in caches (slots past a sequence's end, blocks that nobody
//! owns) and in the padding between strides, an absurd block id past a row's last block. Outputs start as
//! NaN, so that what was not written shows.

use std::sync::Arc;

use half::{bf16, f16};
use rand::seq::SliceRandom;
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

pub use super::fill_cache::{CacheWriteTensors, RopeTensors, cache_write};
use super::layout::Placement;
use super::{CacheShape, DecodeCase, LseForm, ScaleForm, ScoreTensors};
use crate::reference::{HostTensor, Storage};
use crate::tensor::Dtype;

/// NaN in every float type, whatever the number of bytes.
pub const POISON: u8 = 0xff;
/// What stands in a block table where no block is named.
pub const NO_BLOCK: i32 = -1_000_000;

/// Standard deviations of query, key and value. They differ, so that mixing two up shows; scores then
/// spread enough for a softmax that is neither flat nor a single spike.
pub(super) const SPREAD: [f32; 3] = [1.5, 1.25, 0.75];

/// How much there is to fill.
#[derive(Clone, Copy, Debug)]
pub struct Amount {
    /// Copies of the batch over disjoint blocks, side by side along the first dimension of each tensor.
    pub sets: usize,
    /// Bytes of cache that are generated; a larger cache repeats them, and has no poison in it.
    pub pattern_bytes: usize,
}

impl Amount {
    /// One batch, every byte of its cache generated and poisoned.
    pub const WHOLE: Self = Self {
        sets: 1,
        pattern_bytes: usize::MAX,
    };
}

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
    pub(super) fn tensors(&self) -> impl Iterator<Item = &HostTensor> {
        self.q_scale.iter().chain([&self.k_scale, &self.v_scale])
    }
}

/// The tensors of a decode step.
pub fn decode(case: &DecodeCase, seed: u64, amount: Amount) -> DecodeTensors {
    plain(case, seed, amount).special(case, seed)
}

/// The same, whatever the fill.
pub(super) fn plain(case: &DecodeCase, seed: u64, amount: Amount) -> DecodeTensors {
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
    let lse = |strides: [usize; 2]| HostTensor {
        storage: Storage::new("lse", vec![POISON; query_rows * heads * 4]),
        offset: 0,
        dtype: Dtype::F32,
        shape: vec![query_rows, heads],
        strides: strides.to_vec(),
    };
    DecodeTensors {
        num_seqs,
        latent: case.latent,
        query: query(case, query_rows, seed),
        key_cache,
        value_cache,
        block_table,
        seq_lens: HostTensor::contiguous("seq_lens", Dtype::I32, &[rows], lens_bytes),
        scales: case.is_scaled().then(|| scales(case, &valid, seed)),
        scores: ScoreTensors::new(&case.scores, heads, seed),
        out: padded(
            "out",
            case.dtype,
            [query_rows, heads, cache.head_size_v],
            case.pad_out,
        ),
        lse: match case.lse {
            LseForm::Off => None,
            LseForm::On => Some(lse([heads, 1])),
            LseForm::HeadsFirst => Some(lse([1, query_rows])),
        },
    }
}

/// Key and value cache over storages that `storage` makes: two, or one if they are packed.
pub(super) fn place(
    cache: &CacheShape,
    num_blocks: usize,
    storage: impl Fn(&'static str, &Placement) -> Arc<Storage>,
) -> (HostTensor, HostTensor) {
    let tensor = |storage: Arc<Storage>, placement: &Placement, size| HostTensor {
        storage,
        offset: placement.offset,
        dtype: cache.dtype,
        shape: vec![num_blocks, cache.block_size, cache.num_kv_heads, size],
        strides: placement.strides.to_vec(),
    };
    let (keys, values) = (cache.placement(false), cache.placement(true));
    let (key_storage, value_storage) = if cache.layout.is_packed() {
        let both = storage("kv_cache", &keys);
        (both.clone(), both)
    } else {
        (storage("key_cache", &keys), storage("value_cache", &values))
    };
    (
        tensor(key_storage, &keys, cache.head_size),
        tensor(value_storage, &values, cache.head_size_v),
    )
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

/// Blocks to generate: all, or as many as fit.
pub(super) fn pattern_blocks(num_blocks: usize, block_bytes: usize, pattern_bytes: usize) -> usize {
    num_blocks.min((pattern_bytes / block_bytes).max(1))
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

/// Scales of query, keys and values: none is 1, no two are alike, and they bring bytes to about the spread
/// that 16-bit values have.
fn scales(case: &DecodeCase, valid: &[usize], seed: u64) -> HostScales {
    let cache = &case.cache;
    let fit = match cache.dtype {
        Dtype::F8E5m2 => 1.0 / 120.0,
        _ => 1.0 / 70.0,
    };
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    random.set_stream(0);
    let mut scale = |middle: f32| middle * (0.6 + 0.8 * random.random::<f32>());
    let mut tensor = |name, middle: f32| {
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
                true => scale(middle).to_le_bytes(),
                false => [POISON; 4],
            })
            .collect();
        HostTensor::contiguous(name, Dtype::F32, &shape, bytes)
    };
    let k_scale = tensor("k_scale", fit * SPREAD[1]);
    let v_scale = match case.latent {
        Some(_) => k_scale.clone(),
        None => tensor("v_scale", fit * SPREAD[2]),
    };
    let q_scale = (case.query_dtype == Dtype::F8E4m3).then(|| {
        let bytes = scale(SPREAD[0] / 70.0).to_le_bytes().to_vec();
        HostTensor::contiguous("q_scale", Dtype::F32, &[1], bytes)
    });
    HostScales {
        q_scale,
        k_scale,
        v_scale,
    }
}

/// `rows` rows of queries.
pub(super) fn query(case: &DecodeCase, rows: usize, seed: u64) -> HostTensor {
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

/// A contiguous 16-bit tensor of random numbers with standard deviation `spread`; `stream` tells the tensors
/// of one seed apart.
pub(crate) fn random(
    name: &'static str,
    dtype: Dtype,
    shape: &[usize],
    spread: f32,
    (seed, stream): (u64, u64),
) -> HostTensor {
    let mut bytes = vec![0; shape.iter().product::<usize>() * dtype.size()];
    bytes
        .par_chunks_mut(1 << 16)
        .enumerate()
        .for_each(|(at, chunk)| {
            let mut random = ChaCha8Rng::seed_from_u64(seed ^ stream.rotate_left(32));
            random.set_stream(at as u64);
            fill_row(dtype, chunk, spread, &mut random);
        });
    HostTensor::contiguous(name, dtype, shape, bytes)
}

/// A poisoned tensor with `pad` elements after each head and each row.
pub(super) fn padded(
    name: &'static str,
    dtype: Dtype,
    shape: [usize; 3],
    pad: usize,
) -> HostTensor {
    let [rows, heads, size] = shape;
    let stride = heads * (size + pad) + pad;
    HostTensor {
        storage: Storage::new(name, vec![POISON; rows * stride * dtype.size()]),
        offset: 0,
        dtype,
        shape: shape.to_vec(),
        strides: vec![stride, size + pad, 1],
    }
}

/// Random numbers: of 16 bits with standard deviation `spread`; of bytes all finite ones alike.
pub(super) fn fill_row(dtype: Dtype, row: &mut [u8], spread: f32, random: &mut ChaCha8Rng) {
    if dtype.size() == 1 {
        random.fill_bytes(row);
        let largest = match dtype {
            Dtype::F8E4m3 => 0x7e,
            // Where e5m2 goes further than e4m3, a softmax would be a single spike.
            Dtype::F8E5m2 => 0x5f,
            _ => 0x7f,
        };
        for byte in row {
            *byte = *byte & 0x80 | (*byte & 0x7f).min(largest);
        }
        return;
    }
    for element in row.chunks_exact_mut(2) {
        let value = spread * bell(random);
        let bytes = if dtype == Dtype::F16 {
            f16::from_f32(value).to_le_bytes()
        } else {
            bf16::from_f32(value).to_le_bytes()
        };
        element.copy_from_slice(&bytes);
    }
}

/// Near to normal: the sum of four uniform numbers, mean 0 and variance 1.
#[allow(
    clippy::cast_precision_loss,
    reason = "the sum of four 16-bit numbers is exact in an f32"
)]
fn bell(random: &mut ChaCha8Rng) -> f32 {
    let bits: u64 = random.random();
    let sum: u64 = (0..4).map(|at| bits >> (16 * at) & 0xffff).sum();
    (sum as f32 - 131_070.0) / 65_536.0 * 3.0f32.sqrt()
}

/// Bytes without meaning, different for each `name`: any bit pattern has to be copied as it is.
pub(super) fn noise(bytes: usize, seed: u64, name: &str) -> Vec<u8> {
    let mut noise = vec![0; bytes];
    let label = name
        .bytes()
        .fold(0u64, |label, byte| label.rotate_left(7) ^ u64::from(byte));
    noise
        .par_chunks_mut(1 << 16)
        .enumerate()
        .for_each(|(at, chunk)| {
            let mut random = ChaCha8Rng::seed_from_u64(seed ^ label.rotate_left(32));
            random.set_stream(at as u64);
            random.fill_bytes(chunk);
        });
    noise
}

pub(crate) fn shuffled(count: usize, seed: u64) -> Vec<usize> {
    let mut ids: Vec<usize> = (0..count).collect();
    ids.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
    ids
}
