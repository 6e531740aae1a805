//! How an MLA cache stores tokens: what the cases of its writes and gathers share.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::cases::base::fill::{Fill, Painter, Role};
use crate::cases::base::mla_entry::{EntryLayout, LATENTS, ROPE};
use crate::cases::base::tensors::{fill_row, noise};
use crate::cases::base::text::CaseError;
use crate::reference::{HostTensor, Storage};
use crate::tensor::Dtype;

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

    /// The layout of a form with scales of its own.
    pub(crate) fn layout(self) -> Option<EntryLayout> {
        match self {
            Self::Plain | Self::Fp8 => None,
            Self::Ds656 => Some(EntryLayout::FP8_DS),
            Self::V4 => Some(EntryLayout::V4),
        }
    }

    /// Latents of a token.
    pub fn rank(self) -> usize {
        self.layout().map_or(LATENTS, |layout| layout.latents)
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
            Self::Ds656 => EntryLayout::FP8_DS.bytes(),
            Self::V4 => EntryLayout::V4.bytes(),
        }
    }

    /// A cache of `num_blocks` blocks: `[num_blocks, block_size, entry]`, V4's `[num_blocks, page_bytes]`.
    /// V4's pages have some bytes more than they need.
    pub(crate) fn cache(
        self,
        dtype: Dtype,
        num_blocks: usize,
        block_size: usize,
        bytes: impl Fn(usize) -> Vec<u8>,
    ) -> HostTensor {
        let (dtype, shape) = match self {
            Self::Plain => (dtype, vec![num_blocks, block_size, self.values()]),
            Self::Fp8 => (Dtype::F8E4m3, vec![num_blocks, block_size, self.values()]),
            Self::Ds656 => (Dtype::U8, vec![num_blocks, block_size, self.stored_bytes()]),
            Self::V4 => {
                let page_bytes = EntryLayout::V4.block_stride(block_size);
                (Dtype::U8, vec![num_blocks, page_bytes])
            }
        };
        let block_bytes = shape[1..].iter().product::<usize>() * dtype.size();
        let pattern = bytes(block_bytes);
        let storage = Storage::repeating("kv_cache", pattern, num_blocks * block_bytes);
        let mut cache = HostTensor::contiguous("kv_cache", dtype, &shape, Vec::new());
        cache.storage = storage;
        cache
    }

    /// The one or two runs of bytes that slot `slot` of a block is; the second is empty but for V4, whose scales it is.
    pub(crate) fn runs(self, slot: usize, block_size: usize) -> [Range<usize>; 2] {
        match self.layout() {
            Some(layout) => layout.runs(slot, block_size),
            None => {
                let bytes = self.stored_bytes();
                [slot * bytes..(slot + 1) * bytes, 0..0]
            }
        }
    }

    /// A block whose tokens can all be read: finite values and scales.
    pub(crate) fn block(
        self,
        block_size: usize,
        block_bytes: usize,
        seed: u64,
        fill: Fill,
    ) -> Vec<u8> {
        let mut block = noise(block_bytes, seed, "kv_cache");
        if self == Self::Plain {
            return block;
        }
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let scales = noise(8 * block_size, seed, "scales");
        let mut painter = Painter::new(fill, seed, 0);
        for slot in 0..block_size {
            let [token, _] = self.runs(slot, block_size);
            let place = self.layout().map(|layout| layout.place(slot, block_size));
            let latents = place.as_ref().map_or(token, |place| place.latents.clone());
            let row = &mut block[latents];
            fill_row(Dtype::F8E4m3, row, 0.0, &mut random);
            painter.paint(Role::Value, Dtype::F8E4m3, row, 0);
            if let Some(place) = place {
                let noise = &scales[8 * slot..8 * slot + 8];
                self.fill_scales(&mut block[place.scales], noise, fill);
            }
        }
        block
    }

    /// Finite scales made of some noise.
    fn fill_scales(self, scales: &mut [u8], noise: &[u8], fill: Fill) {
        match self {
            Self::Plain | Self::Fp8 => {}
            Self::Ds656 => {
                let groups = EntryLayout::FP8_DS.groups;
                for (place, &byte) in scales.chunks_exact_mut(4).zip(&noise[..groups]) {
                    let scale = match fill {
                        Fill::Tiny => f32::from_bits(u32::from(byte) + 1),
                        Fill::Huge => f32::from(byte) * 2f32.powi(112),
                        _ => 0.001 + f32::from(byte) / 3000.0,
                    };
                    place.copy_from_slice(&scale.to_le_bytes());
                }
            }
            Self::V4 => {
                let groups = EntryLayout::V4.groups;
                for (place, &byte) in scales.iter_mut().zip(&noise[..groups]) {
                    *place = match fill {
                        Fill::Tiny => byte % 3,
                        Fill::Huge => 254 - byte % 16,
                        _ => 110 + byte % 24,
                    };
                }
            }
        }
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
