//! Rotary position embedding by its formula.

use half::{bf16, f16};

use super::HostTensor;
use super::cache::narrow;
use crate::tensor::Dtype;

/// The rows of `new` (`[num_tokens or more, num_heads, head_size]`) with each token turned by its position's
/// angles; positions that the table does not have turn nothing. `cos_sin` is `[num_positions, rotary_dim]`:
/// cosines, then sines. Of a pair, products and sums are those of f32 with one rounding for `x cos - (y sin)`,
/// where the inner product was rounded; then the value is rounded to the tensor's dtype.
pub fn rotate(
    new: &HostTensor,
    positions: &HostTensor,
    cos_sin: &HostTensor,
    is_interleaved: bool,
) -> HostTensor {
    let half = cos_sin.shape[1] / 2;
    let mut bytes = new.storage.bytes.clone();
    for token in 0..new.shape[0].min(positions.shape[0]) {
        let Ok(row) = usize::try_from(positions.integer(&[token])) else {
            continue;
        };
        if row >= cos_sin.shape[0] {
            continue;
        }
        for head in 0..new.shape[1] {
            for pair in 0..half {
                let dims = if is_interleaved {
                    [2 * pair, 2 * pair + 1]
                } else {
                    [pair, pair + half]
                };
                let [x, y] = dims.map(|dim| narrow(new.float(&[token, head, dim])));
                let cos = narrow(cos_sin.float(&[row, pair]));
                let sin = narrow(cos_sin.float(&[row, half + pair]));
                let turned = [x.mul_add(cos, -(y * sin)), y.mul_add(cos, x * sin)];
                for (dim, value) in dims.into_iter().zip(turned) {
                    let at = 2 * new.position(&[token, head, dim]);
                    bytes[at..at + 2].copy_from_slice(&rounded(new.dtype, value));
                }
            }
        }
    }
    new.with_bytes(bytes)
}

fn rounded(dtype: Dtype, value: f32) -> [u8; 2] {
    match dtype {
        Dtype::F16 => f16::from_f32(value).to_le_bytes(),
        Dtype::Bf16 => bf16::from_f32(value).to_le_bytes(),
        other => panic!("{other} is not rotated"),
    }
}
