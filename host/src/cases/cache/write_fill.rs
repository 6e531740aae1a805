//! From a cache write and a seed to tensors.

use std::sync::Arc;

use super::slots::{given_scales, poison_unwritten, slot_mapping, written_role};
use super::write::{CacheWriteCase, POSITIONS, RopeCase};
use crate::cases::base::fill::{Fill, Painter};
use crate::cases::base::layout::{Placement, place};
use crate::cases::base::options::ScaleForm;
use crate::cases::base::tensors::{Amount, noise, pattern_blocks, random, shuffled};
use crate::reference::{HostTensor, Storage};
use crate::tensor::Dtype;

/// Tensors of a cache write.
#[derive(Clone, Debug)]
pub struct CacheWriteTensors {
    /// `[sets * rows, num_kv_heads, head_size]`
    pub key: HostTensor,
    /// `[sets * rows, num_kv_heads, head_size_v]`
    pub value: HostTensor,
    /// `[num_blocks, block_size, num_kv_heads, head_size]`
    pub key_cache: HostTensor,
    /// `[num_blocks, block_size, num_kv_heads, head_size_v]`
    pub value_cache: HostTensor,
    /// `[sets * num_tokens]`
    pub slot_mapping: HostTensor,
    /// Of keys and of values, if the cache is of bytes: `[1]`, `[num_kv_heads]`, or
    /// `[num_blocks, block_size, num_kv_heads]`, to be written.
    pub scales: Option<[HostTensor; 2]>,
    /// If queries and keys are rotated.
    pub rope: Option<RopeTensors>,
}

/// Tensors of a rotation.
#[derive(Clone, Debug)]
pub struct RopeTensors {
    /// `[sets * rows]`
    pub positions: HostTensor,
    /// `[num_positions, rotary_dim]`, f32
    pub cos_sin: HostTensor,
    /// `[sets * rows, num_query_heads, head_size]`
    pub query: HostTensor,
    /// As `query`.
    pub query_out: HostTensor,
    /// `[1]`, of queries that become FP8.
    pub q_scale: HostTensor,
}

/// The tensors of a cache write. What is only copied is noise, since any bits have to arrive as they are.
pub fn cache_write(case: &CacheWriteCase, seed: u64, amount: Amount) -> CacheWriteTensors {
    let (cache, heads) = (&case.cache, case.cache.num_kv_heads);
    let num_tokens = case.num_tokens * amount.sets;
    let rows = num_tokens + case.extra_rows;
    let num_blocks = num_tokens.div_ceil(cache.block_size) * 5 / 4 + 2;

    // A row holds query, key and value side by side, or only one of the latter.
    let (key_row, value_row) = (heads * cache.head_size, heads * cache.head_size_v);
    let is_copied = !case.is_scaled() && case.rope.is_none();
    let storage = |name: &'static str, row: usize, stream: u64| {
        if is_copied {
            let bytes = rows * row * case.dtype.size();
            return Storage::new(name, noise(bytes, seed, name));
        }
        random(name, case.dtype, &[rows, row], 1.25, (seed, stream)).storage
    };
    let new = |row, offset, size: usize, storage: Arc<Storage>| HostTensor {
        storage,
        offset,
        dtype: case.dtype,
        shape: vec![rows, heads, size],
        strides: vec![row, size, 1],
    };
    let (key, value) = if case.fused {
        let row = 2 * key_row + value_row;
        let qkv = storage("qkv", row, 20);
        (
            new(row, key_row, cache.head_size, qkv.clone()),
            new(row, 2 * key_row, cache.head_size_v, qkv),
        )
    } else {
        let key = storage("key", key_row, 20);
        let value = storage("value", value_row, 21);
        (
            new(key_row, 0, cache.head_size, key),
            new(value_row, 0, cache.head_size_v, value),
        )
    };
    let storage = |name, placement: &Placement| {
        let block_bytes = placement.strides[0] * cache.dtype.size();
        let pattern = pattern_blocks(num_blocks, block_bytes, amount.pattern_bytes);
        let bytes = noise(pattern * block_bytes, seed, name);
        Storage::repeating(name, bytes, num_blocks * block_bytes)
    };
    let (key_cache, value_cache) = place(cache, num_blocks, storage);
    let tensors = CacheWriteTensors {
        key,
        value,
        key_cache,
        value_cache,
        slot_mapping: slot_mapping(
            num_tokens,
            num_blocks * cache.block_size,
            case.skip_every,
            seed,
        ),
        scales: case.is_scaled().then(|| {
            // None is 1, and no two are alike.
            [("k_scale", 0.013), ("v_scale", 0.007)].map(|(name, first)| match case.scales {
                ScaleForm::Tensor => given_scales(name, 1, first),
                ScaleForm::Head => given_scales(name, heads, first),
                ScaleForm::Token => {
                    let shape = [num_blocks, cache.block_size, heads];
                    let bytes = noise(4 * shape.iter().product::<usize>(), seed, name);
                    HostTensor::contiguous(name, Dtype::F32, &shape, bytes)
                }
            })
        }),
        rope: case.rope.map(|rope| rope_tensors(case, rope, rows, seed)),
    };
    if is_copied && case.fill != Fill::Poison {
        return tensors;
    }
    tensors.special(case.fill, seed)
}

impl CacheWriteTensors {
    /// The tensors as the fill wants them.
    fn special(mut self, fill: Fill, seed: u64) -> Self {
        for (stream, new) in [(20, &mut self.key), (21, &mut self.value)] {
            if fill == Fill::Poison {
                poison_unwritten(new, &self.slot_mapping);
            } else {
                Painter::new(fill, seed, stream).paint_all(written_role(fill), new);
            }
        }
        if let Some(rope) = &mut self.rope {
            Painter::new(fill, seed, 22).paint_all(written_role(fill), &mut rope.query);
        }
        self
    }
}

#[allow(
    clippy::cast_precision_loss,
    reason = "small positions, and angles are what f32 makes of them"
)]
fn rope_tensors(case: &CacheWriteCase, rope: RopeCase, rows: usize, seed: u64) -> RopeTensors {
    let half = rope.rotary_dim / 2;
    let angle =
        |row: usize, pair: usize| row as f32 * 10_000f32.powf(-(pair as f32) / half.max(1) as f32);
    let angles = (0..POSITIONS).flat_map(|row| {
        let cosines = (0..half).map(move |pair| angle(row, pair).cos());
        cosines.chain((0..half).map(move |pair| angle(row, pair).sin()))
    });
    let cos_sin = angles.flat_map(f32::to_le_bytes).collect();
    let positions = shuffled(rows, seed ^ 1)
        .into_iter()
        .flat_map(|row| ((row % POSITIONS) as u64).to_le_bytes())
        .collect();
    let shape = [rows, rope.num_query_heads, case.cache.head_size];
    let out_dtype = if rope.fp8_query {
        Dtype::F8E4m3
    } else {
        case.dtype
    };
    let out_bytes = shape.iter().product::<usize>() * out_dtype.size();
    RopeTensors {
        positions: HostTensor::contiguous("positions", Dtype::I64, &[rows], positions),
        cos_sin: HostTensor::contiguous("cos_sin", Dtype::F32, &[POSITIONS, 2 * half], cos_sin),
        query: random("query", case.dtype, &shape, 1.5, (seed, 22)),
        query_out: HostTensor::contiguous(
            "query_out",
            out_dtype,
            &shape,
            noise(out_bytes, seed, "query_out"),
        ),
        q_scale: given_scales("q_scale", 1, 0.011),
    }
}
