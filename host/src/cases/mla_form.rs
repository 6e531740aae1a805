//! How an MLA cache stores tokens: what the cases of its writes and gathers share.

use std::fmt;
use std::str::FromStr;

use super::CaseError;
use super::fill::{fill_row, noise};
use super::special::{Fill, Painter, Role};
use crate::reference::{HostTensor, Storage};
use crate::tensor::Dtype;

/// RoPE values of a token.
pub(super) const ROPE: usize = 64;

/// How an MLA cache stores a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MlaForm {
    /// 512 latents and 64 RoPE values of the input's dtype.
    Plain,
    /// The same in fp8_e4m3 with one scale.
    Fp8,
    /// 656 bytes: `fp8_ds_mla`.
    Ds656,
    /// DeepSeek V4's pages, 584 bytes a token.
    V4,
}

impl MlaForm {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Plain, Self::Fp8, Self::Ds656, Self::V4];

    /// Latents of a token.
    pub fn rank(self) -> usize {
        if self == Self::V4 { 448 } else { 512 }
    }

    /// Values of a token.
    pub fn values(self) -> usize {
        self.rank() + ROPE
    }

    /// Bytes of a stored token.
    pub fn stored_bytes(self) -> usize {
        match self {
            Self::Plain => 2 * self.values(),
            Self::Fp8 => self.values(),
            Self::Ds656 => 656,
            Self::V4 => 584,
        }
    }

    /// A cache of `num_blocks` blocks: `[num_blocks, block_size, entry]`, V4's `[num_blocks, page_bytes]`.
    /// V4's pages have some bytes more than they need.
    pub(super) fn cache(
        self,
        dtype: Dtype,
        num_blocks: usize,
        block_size: usize,
        bytes: impl Fn(usize) -> Vec<u8>,
    ) -> HostTensor {
        let (dtype, shape) = match self {
            Self::Plain => (dtype, vec![num_blocks, block_size, self.values()]),
            Self::Fp8 => (Dtype::F8E4m3, vec![num_blocks, block_size, self.values()]),
            Self::Ds656 => (Dtype::U8, vec![num_blocks, block_size, 656]),
            Self::V4 => (Dtype::U8, vec![num_blocks, self.page_bytes(block_size)]),
        };
        let block_bytes = shape[1..].iter().product::<usize>() * dtype.size();
        let pattern = bytes(block_bytes);
        let storage = Storage::repeating("kv_cache", pattern, num_blocks * block_bytes);
        let mut cache = HostTensor::contiguous("kv_cache", dtype, &shape, Vec::new());
        cache.storage = storage;
        cache
    }

    fn page_bytes(self, block_size: usize) -> usize {
        (584 * block_size).next_multiple_of(576)
    }

    /// Where the two parts of slot `offset` of a block begin in the block, values and V4's scales.
    pub(super) fn entry(self, offset: usize, block_size: usize) -> [usize; 2] {
        match self {
            Self::V4 => [576 * offset, 576 * block_size + 8 * offset],
            _ => [self.stored_bytes() * offset, 0],
        }
    }

    /// A block whose tokens can all be read: finite values and scales.
    pub(super) fn block(
        self,
        block_size: usize,
        block_bytes: usize,
        seed: u64,
        fill: Fill,
    ) -> Vec<u8> {
        use rand::SeedableRng;
        let mut block = noise(block_bytes, seed, "kv_cache");
        if self == Self::Plain {
            return block;
        }
        let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
        let scales = noise(8 * block_size, seed, "scales");
        let mut painter = Painter::new(fill, seed, 0);
        for offset in 0..block_size {
            let [at, scales_at] = self.entry(offset, block_size);
            let latents = if self == Self::Fp8 {
                self.values()
            } else {
                self.rank()
            };
            fill_row(
                Dtype::F8E4m3,
                &mut block[at..at + latents],
                0.0,
                &mut random,
            );
            painter.paint(Role::Value, Dtype::F8E4m3, &mut block[at..at + latents], 0);
            let scales = &scales[8 * offset..8 * offset + 8];
            match self {
                Self::Ds656 => {
                    for (group, &byte) in scales[..4].iter().enumerate() {
                        let scale = match fill {
                            Fill::Tiny => f32::from_bits(u32::from(byte) + 1),
                            Fill::Huge => f32::from(byte) * 2f32.powi(112),
                            _ => 0.001 + f32::from(byte) / 3000.0,
                        };
                        let at = at + 512 + 4 * group;
                        block[at..at + 4].copy_from_slice(&scale.to_le_bytes());
                    }
                }
                Self::V4 => {
                    for (group, &byte) in scales[..7].iter().enumerate() {
                        block[scales_at + group] = match fill {
                            Fill::Tiny => byte % 3,
                            Fill::Huge => 254 - byte % 16,
                            _ => 110 + byte % 24,
                        };
                    }
                }
                _ => {}
            }
        }
        block
    }
}

impl fmt::Display for MlaForm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Plain => "plain",
            Self::Fp8 => "fp8",
            Self::Ds656 => "ds656",
            Self::V4 => "v4",
        })
    }
}

impl FromStr for MlaForm {
    type Err = CaseError;

    fn from_str(text: &str) -> Result<Self, CaseError> {
        Self::ALL
            .into_iter()
            .find(|form| form.to_string() == text)
            .ok_or_else(|| CaseError("forms are plain, fp8, ds656, v4".into()))
    }
}
