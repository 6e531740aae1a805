//! Planning a checked decode.

use gpu_kernels::attention::tile::TILE_GROUP;
use gpu_kernels::decode::DecodeTile;
use gpu_kernels::entry::Variant;

use super::decode::CheckedDecode;
use super::paged::check_parts;
use super::split_plan::{DecodeFacts, DecodePlan};
use crate::error::{Error, Result};
use crate::ops::device_check::plan_check;
use crate::ops::made_for::MadeFor;
use crate::plan::{DeviceInfo, SplitShape, Splits, warp_tile_nanoseconds};
use crate::runtime::Launch;

impl CheckedDecode<'_> {
    /// Decides splits, grids and workspace for a machine: a pure function of shapes and numbers.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the machine has too little shared memory for the kernel.
    pub fn plan(&self, device: &DeviceInfo) -> Result<DecodePlan> {
        let shape = &self.shape;
        // Times KV heads no more than there are query heads, which fit a grid's first dimension.
        let head_tiles = shape.num_queries_per_kv().div_ceil(self.heads_per_cta);
        let tile = DecodeTile::of(
            shape.head_size,
            shape.head_size_v,
            shape.value_bytes(),
            shape.token_scales(),
        );
        if tile.shared_bytes() > device.shared_bytes_per_cta {
            return Err(Error::Unsupported {
                operation: "decode",
                what: "a device with shared memory per thread block of",
                got: format!("{} bytes", device.shared_bytes_per_cta),
                supported: format!("at least {} bytes", tile.shared_bytes()),
            });
        }
        let visible = self.most_visible();
        let split_shape = SplitShape {
            num_seqs: shape.num_seqs,
            ctas_per_split: shape.num_kv_heads * head_tiles,
            max_seq_len: visible,
            token_bytes: shape.value_bytes() * (shape.head_size + shape.head_size_v),
            tile_nanoseconds: warp_tile_nanoseconds(shape.head_size.max(shape.head_size_v)),
            cta_nanoseconds: 0.0,
            tile_len: tile.tokens_per_cta(),
            shared_bytes: self.shared_bytes(tile, visible).0,
        };
        let policy = self.request.options.split_policy;
        let splits = Splits::choose(&split_shape, device, policy);
        let runs = policy.runs(&split_shape, device);
        let most_len = if runs.is_some() {
            visible
        } else {
            splits.split_len.min(visible)
        };
        let (shared_bytes, ring_tiles) = self.shared_bytes(tile, most_len);
        let stage1 = Launch {
            kernel: self.stage1.id,
            grid: [
                shape.num_kv_heads * head_tiles,
                splits.num_kv_splits,
                shape.num_seqs,
            ],
            shared_bytes,
            overlaps_previous: false,
        };
        let check = plan_check(
            self.request.options.check,
            Variant::CheckPaged,
            [shape.num_seqs, self.check_parts(), 1],
        );
        let mut plan = DecodePlan::around(
            stage1,
            (splits, runs),
            (shape, device),
            1,
            self.made_for(),
            check,
        );
        plan.head_tiles = head_tiles;
        plan.stages = ring_tiles;
        Ok(plan)
    }

    /// Thread blocks that check a sequence.
    pub(super) fn check_parts(&self) -> u32 {
        let shape = &self.shape;
        check_parts(shape.max_seq_len, shape.block_size, shape.token_scales())
    }

    /// The most keys that a query sees, with those that share the first one's group in the cache.
    fn most_visible(&self) -> u32 {
        match self.request.options.score_mods.most_keys() {
            None => self.shape.max_seq_len,
            Some(keys) => self.shape.max_seq_len.min(keys + TILE_GROUP - 1),
        }
    }

    /// Shared memory of a thread block that has at most `split_len` tokens, and tiles in a ring.
    fn shared_bytes(&self, shape: DecodeTile, split_len: u32) -> (u32, u32) {
        if self.ruled {
            let ring_tiles = shape.ring_tiles(split_len);
            (
                shape.shared_bytes_of(ring_tiles, self.shape.head_size_v),
                ring_tiles,
            )
        } else {
            (shape.shared_bytes(), shape.stages)
        }
    }

    pub(super) fn made_for(&self) -> MadeFor<12> {
        DecodeFacts {
            kernel: self.stage1.id,
            query_len: 1,
            has_lists: false,
        }
        .with(&self.shape, &self.request.options)
    }
}
