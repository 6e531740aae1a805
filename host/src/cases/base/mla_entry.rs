//! How MLA caches store a token, as the cases write and read it. The reference has numbers of its own.

use std::ops::Range;

use crate::ops::EntryForm;

/// Latents of a token of a cache without scales of its own.
pub(crate) const LATENTS: usize = 512;
/// RoPE values of a token.
pub(crate) const ROPE: usize = 64;
/// Values of an output head of attention over FP8 entries.
pub(crate) const OUT_SIZE: usize = 512;
/// The softmax scale of a model with heads of 128 + 64.
pub(crate) const SOFTMAX_SCALE: f32 = 0.072_168_78;

/// Bytes of a token's RoPE values, bf16.
const ROPE_BYTES: usize = 2 * ROPE;

/// How an FP8 form with scales of its own lays out the tokens of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct EntryLayout {
    /// fp8_e4m3 latents of a token.
    pub(crate) latents: usize,
    /// Scales of a token, each of as many latents as the others.
    pub(crate) groups: usize,
    /// Bytes of all scales of a token, with padding.
    scale_bytes: usize,
    /// Whether scales come behind all tokens of the block, instead of between a token's latents and its RoPE values.
    scales_behind: bool,
}

/// Where a token lies, in bytes from the start of its block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct EntryPlace {
    pub(crate) latents: Range<usize>,
    pub(crate) scales: Range<usize>,
    pub(crate) rope: Range<usize>,
}

impl EntryLayout {
    /// 656 bytes a token: latents, four f32 scales, RoPE values.
    pub(crate) const FP8_DS: Self = Self {
        latents: 512,
        groups: 4,
        scale_bytes: 16,
        scales_behind: false,
    };
    /// 584 bytes a token: latents and RoPE values, and behind all tokens seven powers of two and a zero for each.
    pub(crate) const V4: Self = Self {
        latents: 448,
        groups: 7,
        scale_bytes: 8,
        scales_behind: true,
    };

    pub(crate) const fn of(form: EntryForm) -> Self {
        match form {
            EntryForm::Fp8Ds => Self::FP8_DS,
            EntryForm::V4 => Self::V4,
        }
    }

    /// Values of a token.
    pub(crate) const fn values(self) -> usize {
        self.latents + ROPE
    }

    /// Bytes of a token.
    pub(crate) const fn bytes(self) -> usize {
        self.latents + ROPE_BYTES + self.scale_bytes
    }

    /// Bytes from a token of a block to the next.
    const fn stride(self) -> usize {
        match self.scales_behind {
            true => self.latents + ROPE_BYTES,
            false => self.bytes(),
        }
    }

    /// Bytes from a block to the next: V4's are padded to whole tokens.
    pub(crate) const fn block_stride(self, block_size: usize) -> usize {
        let bytes = block_size * self.bytes();
        match self.scales_behind {
            true => bytes.next_multiple_of(self.stride()),
            false => bytes,
        }
    }

    /// Where slot `slot` of a block of `block_size` tokens lies.
    pub(crate) fn place(self, slot: usize, block_size: usize) -> EntryPlace {
        let at = slot * self.stride();
        let latents = at..at + self.latents;
        let scales_at = match self.scales_behind {
            true => block_size * self.stride() + slot * self.scale_bytes,
            false => latents.end,
        };
        let rope_at = match self.scales_behind {
            true => latents.end,
            false => latents.end + self.scale_bytes,
        };
        EntryPlace {
            latents,
            scales: scales_at..scales_at + self.scale_bytes,
            rope: rope_at..rope_at + ROPE_BYTES,
        }
    }

    /// The one or two runs of bytes that such a token is; the second is empty if there is one.
    pub(crate) fn runs(self, slot: usize, block_size: usize) -> [Range<usize>; 2] {
        let at = slot * self.stride();
        let scales = match self.scales_behind {
            true => self.place(slot, block_size).scales,
            false => 0..0,
        };
        [at..at + self.stride(), scales]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gpu_kernels::mla::cache_format::{fp8_ds, v4};

    #[test]
    fn entries_lie_where_the_kernels_look_for_them() {
        let (ds, pages) = (EntryLayout::FP8_DS, EntryLayout::V4);
        assert_eq!(
            (ds.bytes(), pages.bytes()),
            (fp8_ds::BYTES as usize, v4::BYTES as usize)
        );
        let place = ds.place(2, 16);
        let scales_at = 2 * 656 + fp8_ds::SCALES_AT as usize;
        assert_eq!(place.latents, 2 * 656..scales_at);
        assert_eq!(place.scales.start, scales_at);
        assert_eq!(place.rope.end, 3 * fp8_ds::BYTES as usize);
        assert_eq!(ds.runs(2, 16), [2 * 656..3 * 656, 0..0]);
        let place = pages.place(2, 16);
        let value_bytes = v4::VALUE_BYTES as usize;
        assert_eq!(place.rope, 2 * value_bytes + 448..3 * value_bytes);
        assert_eq!(place.scales.start, 16 * value_bytes + 2 * 8);
        assert_eq!(pages.runs(2, 16)[0], place.latents.start..place.rope.end);
        assert_eq!(
            (ds.block_stride(16), pages.block_stride(1)),
            (16 * 656, 2 * 576)
        );
    }
}
