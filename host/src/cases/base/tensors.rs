//! Tensors of random numbers, of noise and of poison.

use gpu_kernels::dtype::HalfDtype;
use half::{bf16, f16};
use rand::seq::SliceRandom;
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::options::LseForm;
use crate::reference::{Fp8Format, HostTensor, Storage, fp8_nearest};
use crate::tensor::Dtype;

/// NaN in every float type, whatever the number of bytes.
pub const POISON: u8 = 0xff;
/// What stands in a block table where no block is named.
pub const NO_BLOCK: i32 = -1_000_000;

/// Standard deviations of query, key and value. They differ, so that mixing two up shows; scores then
/// spread enough for a softmax that is neither flat nor a single spike.
pub(crate) const SPREAD: [f32; 3] = [1.5, 1.25, 0.75];

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

/// Blocks to generate: all, or as many as fit.
pub(crate) fn pattern_blocks(num_blocks: usize, block_bytes: usize, pattern_bytes: usize) -> usize {
    num_blocks.min((pattern_bytes / block_bytes).max(1))
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
pub(crate) fn padded(
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
pub(crate) fn fill_row(dtype: Dtype, row: &mut [u8], spread: f32, random: &mut ChaCha8Rng) {
    if dtype.size() == 1 {
        random.fill_bytes(row);
        // Where a format goes further than e4m3, a softmax would be a single spike.
        let largest = Fp8Format::of(dtype)
            .map_or(0x7f, |format| format.largest.min(fp8_nearest(dtype, 448.0)));
        for byte in row {
            *byte = *byte & 0x80 | (*byte & 0x7f).min(largest);
        }
        return;
    }
    let dtype = HalfDtype::try_from(dtype).expect("other numbers are not random");
    for element in row.chunks_exact_mut(2) {
        let value = spread * bell(random);
        let bytes = match dtype {
            HalfDtype::F16 => f16::from_f32(value).to_le_bytes(),
            HalfDtype::Bf16 => bf16::from_f32(value).to_le_bytes(),
        };
        element.copy_from_slice(&bytes);
    }
}

/// What brings the bytes of [`fill_row`] to about the spread that 16-bit values have.
pub(crate) fn fitting_scale(dtype: Dtype) -> f32 {
    // The fewer bits a mantissa has, the more of the codes are small numbers.
    match Fp8Format::of(dtype) {
        Some(format) if format.mantissa_bits < 3 => 1.0 / 120.0,
        Some(_) | None => 1.0 / 70.0,
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
pub(crate) fn noise(bytes: usize, seed: u64, name: &str) -> Vec<u8> {
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

/// All bytes of a tensor's storage, a repeated pattern written out.
pub(crate) fn whole(tensor: &HostTensor) -> Vec<u8> {
    let storage = &tensor.storage;
    storage
        .bytes
        .iter()
        .copied()
        .cycle()
        .take(storage.len)
        .collect()
}

/// `values` as an i32 tensor.
///
/// # Panics
/// If one is no i32.
pub(crate) fn integers(
    name: &'static str,
    shape: &[usize],
    values: impl IntoIterator<Item = i64>,
) -> HostTensor {
    let values = values.into_iter();
    let bytes = values.flat_map(|value| i32::try_from(value).expect("an i32").to_le_bytes());
    HostTensor::contiguous(name, Dtype::I32, shape, bytes.collect())
}

/// A poisoned lse, `[rows, heads]`, f32, if one is wanted.
pub(crate) fn lse(form: LseForm, rows: usize, heads: usize) -> Option<HostTensor> {
    let strides = match form {
        LseForm::Off => return None,
        LseForm::On => vec![heads, 1],
        LseForm::HeadsFirst => vec![1, rows],
    };
    Some(HostTensor {
        storage: Storage::new("lse", vec![POISON; rows * heads * 4]),
        offset: 0,
        dtype: Dtype::F32,
        shape: vec![rows, heads],
        strides,
    })
}
